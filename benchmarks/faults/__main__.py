"""Do every drill, or those of some groups, and print a table.

    python -m benchmarks.faults [GROUP ...] [--only WORDS] [--record]

GROUP is a module of this package, see GROUPS. Ends with exit code 1 if something else followed than must.
`--only` takes the drills whose name contains the words. `--record` appends what was seen to results.jsonl
beside this file and writes docs/faults.md from the newest line of each drill.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.faults import checkpoints, folders, hosts, images, kills, settings, terminal
from benchmarks.faults.drill import Drill
from ssljax import results

HERE = Path(__file__).parent
RECORDS = HERE / "results.jsonl"
PAGE = HERE.parent.parent / "docs" / "faults.md"

GROUPS: dict[str, tuple[Drill, ...]] = {
    "kills": kills.DRILLS,
    "checkpoints": checkpoints.DRILLS,
    "folders": folders.DRILLS,
    "hosts": hosts.DRILLS,
    "images": images.DRILLS,
    "settings": settings.DRILLS,
    "terminal": terminal.DRILLS,
}
TITLES = {
    "kills": "A run is killed",
    "checkpoints": "A checkpoint is damaged",
    "folders": "Two processes, other data, damaged files",
    "hosts": "A host is lost, or differs",
    "images": "Images that cannot be read",
    "settings": "Nonsense in the settings",
    "terminal": "What reaches a terminal",
}
HEADER = "| what happens | what must follow | what was seen | seconds |\n| --- | --- | --- | ---: |"
INTRODUCTION = """# What goes wrong, and what follows

Each row is a drill: `python -m benchmarks.faults [GROUP]` does it to a real run from the command line, checks
what follows, and fails if it is something else. Written by `python -m benchmarks.faults --record`; seconds
are those of two CPU cores that do other work as well.
"""


def main() -> None:
    """Print one table per group."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="*", help=f"of {', '.join(GROUPS)}; default: all")
    parser.add_argument("--only", default="")
    parser.add_argument("--record", action="store_true")
    flags = parser.parse_args()
    for name in flags.groups:
        if name not in GROUPS:
            parser.error(f"no group {name!r}: {', '.join(GROUPS)}")

    commit = results.commit()  # before the record makes the tree differ from it
    failed = 0
    for name in flags.groups or GROUPS:
        print(f"\n## {name}\n\n{HEADER}", flush=True)
        for drill in GROUPS[name]:
            if flags.only not in drill.name:
                continue
            passed, seen, seconds = done(drill)
            failed += not passed
            print(row(drill, seen, seconds), flush=True)
            if flags.record:
                record(name, drill, passed, seen, seconds, commit)
                PAGE.write_text(page())
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
        seen = seen.replace(folder, "FOLDER")
    return passed, " ".join(seen.replace("|", "/").split()), time.monotonic() - begin


def row(drill: Drill, seen: str, seconds: float) -> str:
    """A drill as a row of the table."""
    return f"| {drill.name} | {drill.follows} | {seen} | {seconds:.0f} |"


def record(group: str, drill: Drill, passed: bool, seen: str, seconds: float, commit: str) -> None:
    """Append a line to results.jsonl."""
    line = {
        "group": group,
        "drill": drill.name,
        "passed": passed,
        "seen": seen,
        "seconds": round(seconds),
        "commit": commit,
        "date": results.now(),
    }
    with RECORDS.open("a") as out:
        out.write(json.dumps(line) + "\n")


def page() -> str:
    """docs/faults.md, from the newest line of each drill."""
    lines = [json.loads(text) for text in RECORDS.read_text().splitlines()]
    newest = {(line["group"], line["drill"]): line for line in lines}
    parts = [INTRODUCTION]
    for name, drills in GROUPS.items():
        found = [(drill, newest.get((name, drill.name))) for drill in drills]
        commits = sorted({line["commit"] for _, line in found if line})
        rows = [
            row(drill, line["seen"], line["seconds"])
            if line
            else f"| {drill.name} | {drill.follows} | not run | |"
            for drill, line in found
        ]
        parts.append(f"## {TITLES[name]}\n\nGroup `{name}`, commit {', '.join(commits) or '-'}.\n")
        parts.append("\n".join([HEADER, *rows]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    main()
