"""`ssljax config`: shows a whole config, or how two configs differ.

    ssljax config --config configs/x.py[:preset] [overrides]                    # every key, value and meaning
    ssljax config --config configs/x.py[:preset] --diff configs/y.py[:preset]   # where they differ
    ssljax config --keys                                                        # all keys: docs/config.md

Only keys that the recipe reads are shown. Nothing is run, and JAX is not loaded.
"""

from __future__ import annotations

import sys
from typing import Any

from ml_collections import ConfigDict

from ssljax import cli, config
from ssljax.config.keys import KEYS, row
from ssljax.config.leaves import ABSENT


def value(of: Any) -> str:
    """A leaf, written as the command line takes it."""
    return repr(tuple(of)) if isinstance(of, list) else repr(of)


def ordered(leaves: dict[str, Any]) -> list[str]:
    """The names of the leaves in the table's order; unknown keys come last, sorted by name."""
    places = {name: place for place, name in enumerate(KEYS)}

    def place(name: str) -> tuple[int, str]:
        key = row(name)
        return (places[key.name] if key else len(places), name)

    return sorted(leaves, key=place)


def lines(stage: ConfigDict) -> list[str]:
    """One line `key = value   # meaning` for each leaf of a stage."""
    leaves = config.flat(stage)
    texts = {name: f"{name} = {value(leaves[name])}" for name in leaves}
    width = min(max(map(len, texts.values())), 60)

    found = []
    for name in ordered(leaves):
        key = row(name)
        meaning = f"   # {key.meaning}" if key else ""
        found.append((texts[name].ljust(width) + meaning).rstrip())
    return found


def compared(first: ConfigDict, second: ConfigDict) -> list[str]:
    """One line `key: first value | second value` for each leaf in which two stages differ."""
    a = config.flat(first)
    b = config.flat(second)

    def side(leaves: dict[str, Any], name: str) -> str:
        return value(leaves[name]) if name in leaves else ABSENT

    return [
        f"{name}: {side(a, name)} | {side(b, name)}"
        for name in ordered(a | b)
        if name not in a or name not in b or a[name] != b[name]
    ]


def show(first: ConfigDict) -> list[str]:
    """The lines of a whole config, each stage under its name."""
    found = []
    for name, stage in config.stages(first).items():
        found += [f"[{name}]"] if name else []
        found += lines(stage)
    return found


def difference(first: ConfigDict, second: ConfigDict) -> list[str]:
    """The lines that compare two whole configs, stage by stage of the same name.

    A config without stages is compared with the last stage of the other.
    """
    a = config.stages(first)
    b = config.stages(second)
    if ("" in a) != ("" in b):
        a = {"": list(a.values())[-1]}
        b = {"": list(b.values())[-1]}

    found = [f"[{name}] only in the first" for name in a if name not in b]
    found += [f"[{name}] only in the second" for name in b if name not in a]
    for name in a:
        if name in b:
            found += [f"[{name}]"] if name else []
            found += compared(a[name], b[name])
    return found


def main(argv: list[str] | None = None) -> None:
    """`ssljax config`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv in (["--keys"], ["-keys"]):
        print(config.reference(), end="")
        return
    flags = cli.parse("config", ["--workdir=.", *argv], diff="")
    try:
        found = difference(flags.config, cli.preset_of(flags.diff)) if flags.diff else show(flags.config)
    except ValueError as error:
        raise SystemExit(f"ssljax config: --diff: {error}") from error
    print("\n".join(found))


if __name__ == "__main__":
    cli.run(main)
