"""The table of keys as Markdown: docs/config.md."""

from __future__ import annotations

from ssljax.config.keys import KEYS
from ssljax.config.rows import Key

HEAD = """# Configuration keys

Written by `ssljax config --keys`; a test compares this page with the table in `ssljax/config/keys.py`. A
config has the keys that it reads and no others: "read when" says which. Sections that are not here belong to
a method, a network or an optimizer of your own and are taken as they stand. Every view in `views` may
override the keys of `augment` for itself.
"""


def reference() -> str:
    """The page."""
    sections: dict[str, list[Key]] = {}
    for key in KEYS.values():
        section = key.name.rpartition(".")[0]
        sections.setdefault(section or "run", []).append(key)
    pages = [HEAD]
    for section, keys in sections.items():
        title = "Of the run" if section == "run" else f"`{section}`"
        rows = [_line(key) for key in keys if not _repeats(key)]
        pages.append(
            "\n".join(
                [
                    f"## {title}",
                    "",
                    "| key | default | valid | meaning | read when |",
                    "|---|---|---|---|---|",
                    *rows,
                    "",
                ]
            )
        )
    return "\n".join(pages)


def _repeats(key: Key) -> bool:
    """An override of `augment` in a view, which has its row there."""
    return key.name.startswith("views.*.") and key.name.replace("views.*.", "augment.", 1) in KEYS


def _line(key: Key) -> str:
    valid = str(key.valid) if key.valid is not None else type(key.default).__name__
    default = f"`{key.default!r}`" if key.name != "views" else "`one`"
    return f"| `{key.name}` | {default} | {valid} | {key.meaning} | {key.when.text or 'always'} |"
