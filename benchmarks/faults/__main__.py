"""Do every drill, or those of some groups, and print a table.

    python -m benchmarks.faults [GROUP ...] [--only WORDS]

GROUP is a module of this package, see GROUPS. Ends with exit code 1 if something else followed than must.
`--only` takes the drills whose name contains the words.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.faults import checkpoints, folders, hosts, images, kills, settings, terminal
from benchmarks.faults.drill import Drill

GROUPS: dict[str, tuple[Drill, ...]] = {
    "hosts": hosts.DRILLS,
    "folders": folders.DRILLS,
    "kills": kills.DRILLS,
    "checkpoints": checkpoints.DRILLS,
    "images": images.DRILLS,
    "settings": settings.DRILLS,
    "terminal": terminal.DRILLS,
}
HEADER = "| what happens | what must follow | what was seen | seconds |\n| --- | --- | --- | ---: |"


def main() -> None:
    """Print one table per group."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*", help=f"of {', '.join(GROUPS)}; default: all")
    parser.add_argument("--only", default="")
    flags = parser.parse_args()
    for name in flags.groups:
        if name not in GROUPS:
            parser.error(f"no group {name!r}: {', '.join(GROUPS)}")

    failed = 0
    for name in flags.groups or GROUPS:
        print(f"\n## {name}\n\n{HEADER}", flush=True)
        for drill in GROUPS[name]:
            if flags.only not in drill.name:
                continue
            passed, seen, seconds = done(drill)
            failed += not passed
            print(f"| {drill.name} | {drill.follows} | {seen} | {seconds:.0f} |", flush=True)
    if failed:
        sys.exit(f"{failed} drills went wrong")


def done(drill: Drill) -> tuple[bool, str, float]:
    """Do one drill in a temporary folder. Returns whether it went as it must, what was seen, and seconds."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            seen = drill.run(Path(folder))
            passed = True
        except AssertionError as error:
            seen = f"**WRONG**: {error}"
            passed = False
    return passed, seen.replace("|", "/").replace("\n", " "), time.monotonic() - begin


if __name__ == "__main__":
    main()
