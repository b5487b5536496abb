"""What `mkdocs build` needs beside docs/: the pages that are generated, and links that work on the site too.

The pages of docs/ link to one another, to experiments/ and to source files as on a code host. On the site

    the README's section on methods   is papers
    experiments/PAPER/README.md       is papers/PAPER
    a source file that a page names   is source/FILE, the file itself
    ssljax/protocols, and the rooms   are protocols/NAME and api/ROOM, made of their docstrings

A link to anything else, or to a file that does not exist, ends a build with `--strict`.
"""

from __future__ import annotations

import ast
import inspect
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes):$")
CODE = {
    ".py": "python",
    ".sh": "bash",
    ".toml": "toml",
    "": "text",
}  # what is shown as a page, and its language
ROOMS = (
    "",
    "methods",
    "losses",
    "targets",
    "models",
    "data",
    "protocols",
    "run",
    "config",
    "convert",
    "pictures",
)


def page_of(file: str) -> str:
    """Where the site keeps a file of the repository.

    Args:
        file: its path from the repository's root.
    """
    folder, name = posixpath.split(file)
    if file == "README.md":
        return "papers.md"
    if file in ("CHANGELOG.md", "CONTRIBUTING.md"):
        return file.lower()
    shown_as_page = (ROOT / file).is_dir() or Path(file).suffix in CODE
    if file.startswith("docs/"):
        return file.removeprefix("docs/") + ".md" * shown_as_page
    if folder.startswith("experiments/") and name == "README.md":
        return f"papers/{folder.removeprefix('experiments/')}.md"
    if file.startswith("experiments/") and not shown_as_page:
        return f"papers/{file.removeprefix('experiments/')}"
    return f"source/{file}" + ".md" * shown_as_page


def relinked(text: str, file: str, place: str, found: Callable[[str], None]) -> str:
    """A page with its links changed from the repository to the site. Code blocks stay as they are.

    Args:
        text: the page in Markdown.
        file: the path from the repository's root that its links start from.
        place: where the site keeps the page.
        found: is told every file that is linked, by its path from the root.
    """

    def moved(link: re.Match[str]) -> str:
        target, part = link[1], link[2] or ""
        if "://" in target:
            return link[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(file), target))
        found(path)
        return f"]({posixpath.relpath(page_of(path), posixpath.dirname(place) or '.')}{part})"

    pieces = FENCE.split(text)
    return "".join(piece if i % 2 else LINK.sub(moved, piece) for i, piece in enumerate(pieces))


def prose(docstring: str) -> str:
    """A docstring in Google's style as Markdown: its sections become lists, indented lines are code."""
    lines: list[str] = []
    section = ""
    for line in docstring.split("\n"):
        heading = SECTION.match(line)
        if heading:
            section = heading[1]
            lines += [f"**{section}**", ""]
            continue
        if section and line and not line.startswith(" "):
            section = ""
        if not section:
            lines.append(line if line.startswith("    ") else _escaped(line))
            continue
        entry = re.match(r"    (\*{0,2}[\w, .*()]+?): (.*)", line)
        if entry and section not in ("Returns", "Yields"):
            lines.append(f"- `{entry[1]}`: {_escaped(entry[2])}")
        else:
            lines.append(_escaped(line.strip()) if section in ("Returns", "Yields") else _escaped(line[2:]))
    return "\n".join(lines).strip()


def _escaped(line: str) -> str:
    """A line of a docstring in which < and * and _ mean themselves, outside of `code`."""
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(x if x.startswith("`") else re.sub(r"([<*_\[\]])", r"\\\1", x) for x in parts)


def api(room: str) -> str:
    """The page of a room of the package: the public names of its files, with their docstrings.

    Args:
        room: the name of a folder of ssljax; "" for the files that are in none.
    """
    folder = ROOT / "ssljax" / room
    files = sorted(folder.glob("*.py") if not room else folder.rglob("*.py"))
    text = [f"# ssljax{'.' * bool(room)}{room}", ""]
    for file in files:
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(file.read_text())
        described = ast.get_docstring(tree) or ""
        members = [part for node in tree.body for part in _member(node, 3)]
        if described or members:
            text += [f"## `{name}`", "", prose(described), "", *members]
    return "\n".join(text) + "\n"


def _member(node: ast.AST, level: int) -> list[str]:
    """The lines of a public function or class; none of anything else."""
    if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return []
    described = ast.get_docstring(node)
    if node.name.startswith("_") or not described:
        return []
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        line = f"class {node.name}({bases})" if bases else f"class {node.name}"
        inner = [part for child in node.body for part in _member(child, level + 1)]
    else:
        returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        line = f"def {node.name}({ast.unparse(node.args)}){returned}"
        inner = []
    if len(line) > 100:
        line = re.sub(r", (?=\w+: |\*, |\*\w)", ",\n    ", line.replace("(", "(\n    ", 1))
    shown = [f"{'#' * level} `{node.name}`", "", "```python", line, "```", "", prose(described), ""]
    return [*shown, *inner]


def protocol(name: str) -> str:
    """The page of a protocol: what it reads, its metrics, its settings and the command."""
    from ssljax.config.keys import KEYS
    from ssljax.protocols import PROTOCOLS

    reads = {
        "features": "the features of the network; those of `--baselines raw_pixels,random_init` too",
        "images": "images of its own, which the network encodes",
        "maps": "the maps of single layers; those of `--baselines random_init` too",
        "predictions": "the predictions of the run's own heads",
        "annotations": "what the network finds in images with boxes or masks",
        "state": "what the run keeps beside its network",
    }
    one = PROTOCOLS[name]
    module = inspect.getmodule(one.judge)
    assert module is not None and module.__doc__, name
    settings = _read_settings(inspect.getsource(module))
    text = [
        *(f"# {name}", "", prose(inspect.cleandoc(module.__doc__)), ""),
        *("```", f"ssljax evaluate --workdir runs/mine --protocols {name}", "```", ""),
        f"- **Reads:** {reads[one.reads]}.",
        f"- **Gives:** {', '.join(f'`{metric}`' for metric in one.metrics)}.",
        f"- **Condition:** {_first(one.refuse)}",
        f"- **Measurements:** {_first(one.judge)}",
    ]
    if settings:
        text += ["", "| setting | default | valid | meaning |", "|---|---|---|---|"]
    for key in settings:
        row = KEYS[key]
        valid = str(row.valid) if row.valid is not None else type(row.default).__name__
        text.append(f"| `{key}` | `{row.default!r}` | {valid} | {row.meaning} |")
    return "\n".join(text) + "\n"


def _first(function: Callable[..., Any]) -> str:
    """The first paragraph of a function's docstring."""
    return prose((inspect.getdoc(function) or "").split("\n\n")[0])


def _read_settings(source: str) -> list[str]:
    """The settings of `evaluate` that a protocol's file reads, in the order of the reference."""
    from ssljax.config.keys import KEYS

    read = {
        f"evaluate.{node.attr}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith(("evaluate", "e"))
    }
    return [key for key in KEYS if key in read]


def papers() -> str:
    """The page of the methods: the README's section on them."""
    text = (ROOT / "README.md").read_text()
    return "# Methods" + text.split("## Methods")[1].split("\n## ")[0] + "\n"


def shown(path: Path) -> str:
    """A page with the lines of a source file, or the names of the files in a folder."""
    title = f"# {path.relative_to(ROOT)}\n\n"
    if path.is_dir():
        return title + "".join(f"- {file.name}\n" for file in sorted(path.iterdir()))
    return f"{title}````{CODE[path.suffix]}\n{path.read_text()}````\n"


def pages() -> tuple[dict[str, str], dict[str, Path]]:
    """Every page of the site and its text, and every other file of it and where it comes from."""
    texts = {f"protocols/{name}.md": protocol(name) for name in _protocols()}
    texts |= {f"api/{room or 'ssljax'}.md": api(room) for room in ROOMS}
    others: dict[str, Path] = {}
    waiting = ["CHANGELOG.md", "CONTRIBUTING.md"]
    for pattern in ("docs/*.md", "docs/*.sh", "experiments/*.md", "experiments/*/README.md"):
        waiting += [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob(pattern))]
    texts["papers.md"] = relinked(papers(), "README.md", "papers.md", waiting.append)
    while waiting:
        file = waiting.pop()
        path, place = ROOT / file, page_of(file)
        if place in texts or place in others or not path.exists():
            continue
        if path.suffix == ".md":
            texts[place] = relinked(path.read_text(), file, place, waiting.append)
        elif place.endswith(".md"):
            texts[place] = shown(path)
        else:
            others[place] = path
    return texts, others


def _protocols() -> list[str]:
    from ssljax.protocols import PROTOCOLS

    return list(PROTOCOLS)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by mkdocs with the files of docs/, all of which are made anew, with those of elsewhere."""
    from mkdocs.structure.files import File

    texts, others = pages()
    for file in list(files.documentation_pages()):
        files.remove(file)
    for place, text in texts.items():
        files.append(File.generated(config, place, content=text))
    for place, path in others.items():
        if place not in files.src_uris:
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files
