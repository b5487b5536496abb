"""The blocks of a report (text, tables, figures), written as Markdown, HTML or plain text."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

BEGIN = "<!-- report: written by `ssljax report`, do not edit -->"
END = "<!-- /report -->"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222 }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
div { overflow-x: auto }
table { border-collapse: collapse; font-size: 14px }
td, th { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left }
img { max-width: 100% }
figure { margin: 1.5rem 0 }
figcaption { color: #666; font-size: 14px }
pre { background: #f5f5f5; padding: .7rem; overflow-x: auto; font-size: 12px }
"""


class Block(NamedTuple):
    """A piece of the report.

    Attributes:
        kind: "h2", "p", "table", "img" or "pre".
        content: the text of a heading or paragraph, the rows of a table (the first is its header), the file
            and the caption of an image, or the lines of a pre.
    """

    kind: str
    content: Any


def markdown(blocks: Sequence[Block]) -> str:
    """The blocks as GitHub Markdown."""
    out = []
    for kind, content in blocks:
        if kind == "table":
            head, *body = content
            rows = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
            out.append("\n".join("| " + " | ".join(row) + " |" for row in rows))
        elif kind == "img":
            out.append(f"![{content[1]}]({content[0]})")
        elif kind == "pre":
            out.append("\n".join(["```", *content, "```"]))
        else:
            out.append(f"## {content}" if kind == "h2" else content)
    return "\n\n".join(out) + "\n"


def page(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """The blocks as one HTML file, with the images of `folder` embedded."""
    out = []
    for kind, content in blocks:
        if kind == "table":
            rows = [_row("th", content[0]), *(_row("td", row) for row in content[1:])]
            out.append("<div><table>" + "".join(rows) + "</table></div>")
        elif kind == "img":
            data = base64.b64encode((folder / content[0]).read_bytes()).decode()
            image = f'<img alt="{html.escape(content[1])}" src="data:image/png;base64,{data}">'
            out.append(f"<figure>{image}<figcaption>{_rich(content[1])}</figcaption></figure>")
        else:
            text = html.escape("\n".join(content)) if kind == "pre" else _rich(content)
            out.append(f"<{kind}>{text}</{kind}>")

    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
    heading = f"<title>{html.escape(title)}</title><h1>{html.escape(title)}</h1>"
    return f'<!doctype html><html lang="en">{head}{heading}\n' + "\n".join(out) + "\n</html>\n"


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_rich(cell)}</{tag}>" for cell in cells) + "</tr>"


def _rich(text: str) -> str:
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(text))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", text)


def terminal(table: Sequence[Sequence[str]]) -> str:
    """A table as aligned plain text."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    out = []
    for first, *others in table:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        out.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(out)


def renew(readme: Path, text: str) -> None:
    """Replaces the text between the two `report` comments of a README.

    Raises:
        ValueError: the README has no such comments.
    """
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{readme} has no place for the report: add the lines\n{BEGIN}\n{END}")
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")
