"""The blocks of a report (text, tables, figures), written as Markdown, HTML or plain text."""

from __future__ import annotations

import base64
import html
import re
import shlex
import urllib.parse
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
@media (max-width: 46rem) { figure { overflow-x: auto } figure img { max-width: 46rem } }
pre { background: #f5f5f5; padding: .7rem; font-size: 12px; white-space: pre-wrap; overflow-wrap: anywhere }
"""

WIDE = 100  # characters of a command, before it goes on in the next line
SHELL_WORD = re.compile(r"""(?:'[^']*'|"[^"]*"|\\.|[^\s'"\\])+""")

# Code in a text. Code with a bar or a bracket is not taken for code, because it cannot be escaped.
CODE = re.compile(r"((?<!`)`[^`|<]+`(?!`))")


class Block(NamedTuple):
    """A piece of the report.

    Attributes:
        kind: "h1" (Markdown only), "h2", "p", "table", "img" or "pre".
        content: the text of a heading or paragraph, the rows of a table (the first is its header), the file
            and the caption of an image, or the lines of a pre.
    """

    kind: str
    content: Any


def markdown(blocks: Sequence[Block], *, ours: bool = False) -> str:
    """The blocks as GitHub Markdown.

    Args:
        blocks: their texts are plain, but for `code` and **bold**. Names of classes and settings come from
            other people's files, so nothing else in them becomes a link, a tag or a further cell.
        ours: whether the texts are Markdown that was written in this repository.
    """
    out = []
    for kind, content in blocks:
        if kind == "table":
            table = content if ours else [[_plain(cell) for cell in row] for row in content]
            head, *body = table
            rows = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
            out.append("\n".join("| " + " | ".join(row) + " |" for row in rows))
        elif kind == "img":
            said = _plain(content[1].translate({ord("["): "(", ord("]"): ")"}))
            out.append(f"![{said}]({urllib.parse.quote(content[0])})")
        elif kind == "pre":
            out.append(_fenced([wrapped(line) for line in content]))
        else:
            text = content if ours else _plain(content)
            out.append({"h1": "# ", "h2": "## ", "p": ""}[kind] + text)
    return "\n\n".join(out) + "\n"


def _plain(text: str) -> str:
    """Escape what Markdown and HTML would act on, except `code` and **bold**."""
    parts = CODE.split(" ".join(text.split()))  # every second part is code
    for i in range(0, len(parts), 2):
        part = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", parts[i].replace("\\", "\\\\"))
        part = part.replace("|", "&#124;").replace("`", "\\`")
        parts[i] = re.sub(r"\](?=[(\[:])", r"\\]", part)
    return "".join(parts)


def wrapped(line: str) -> str:
    """A command in lines of at most WIDE characters where it has a flag to begin the next with.

    The shell reads the lines as one. A text that is no command is left as it is.
    """
    lines = [""]
    for word in SHELL_WORD.findall(line):
        if word.lstrip("'").startswith("--") and len(lines[-1]) + 1 + len(word) > WIDE - 2:
            lines.append(f"    {word}")
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    try:
        same = shlex.split(" ".join(lines)) == shlex.split(line)
    except ValueError:  # a quote that is not closed
        same = False
    return " \\\n".join(lines) if same and "\n" not in line else line


def _fenced(lines: Sequence[str]) -> str:
    """Lines of code between two fences that are longer than any run of backticks in them."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([fence, *lines, fence])


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
            lines = [wrapped(line) for line in content] if kind == "pre" else []
            text = html.escape("\n".join(lines)) if kind == "pre" else _rich(content)
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
