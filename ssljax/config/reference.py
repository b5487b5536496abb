"""The table of keys as Markdown: docs/config.md."""

from __future__ import annotations

from ssljax.config.keys import KEYS
from ssljax.config.rows import Key

HEAD = """# Configuration keys

This page is written by `ssljax config --keys` from the table in `ssljax/config/keys.py`, and a test compares
the two. A config contains only the keys that its recipe reads; the column "read when" says which those are.
Sections that are not listed here belong to a method, a network or an optimizer of your own, and are taken as
they are. Every view in `views` may override the keys of `augment`.
"""


def reference() -> str:
    """Returns the page."""
    sections: dict[str, list[Key]] = {}
    for key in KEYS.values():
        section = key.name.rpartition(".")[0]
        sections.setdefault(section or "run", []).append(key)
    pages = [HEAD]
    for section, keys in sections.items():
        title = "The run" if section == "run" else f"`{section}`"
        rows = [_line(key) for key in keys if not _repeats(key)]
        lines = [
            f"## {title}",
            "",
            "| key | default | valid | meaning | read when |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
        pages.append("\n".join(lines))
    return "\n".join(pages)


def _repeats(key: Key) -> bool:
    """Whether the key is a view's override of an `augment` key, which has its row there."""
    return key.name.startswith("views.*.") and key.name.replace("views.*.", "augment.", 1) in KEYS


def _line(key: Key) -> str:
    valid = str(key.valid) if key.valid is not None else type(key.default).__name__
    default = f"`{key.default!r}`" if key.name != "views" else "`one`"
    return f"| `{key.name}` | {default} | {valid} | {key.meaning} | {key.when.text or 'always'} |"
