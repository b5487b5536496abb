"""results.jsonl to tables and figures: `ssljax report DIR`, e.g. experiments/simclr or runs/demo.

Reads DIR/results.jsonl (of `ssljax evaluate`), DIR/gallery-*.npz, every metrics.jsonl at most two folders below DIR, and DIR/paper.json,
the paper's own tables. Writes DIR/report.md, its PNGs and the self-contained DIR/report.html, and renews the part between the two `report`
comments of DIR/README.md. No number in a table is typed: a row that was not run says which command fills it.
"""

from __future__ import annotations

import base64
import html
import json
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np

Row = Mapping[str, Any]

BEGIN, END = "<!-- report: written by `ssljax report`, do not edit -->", "<!-- /report -->"
ORDER = ("raw_pixels", "random_init", "supervised")         # and then the methods themselves
SAME = ("experiment", "preset", "data", "data_checksum", "epochs", "train_images", "config_hash", "protocol", "features", "metric",
        "labels_per_class", "draw", "seed")
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
div { overflow-x: auto }
table { border-collapse: collapse; font-size: 14px }
td, th { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left }
img { max-width: 100% }
figure { margin: 1.5rem 0 }
figcaption { color: #666; font-size: 14px }
pre { background: #f5f5f5; padding: .7rem; overflow-x: auto; font-size: 12px }
"""


class Group(NamedTuple):
    """Measurements that belong in one table.

    Attributes:
        slug: for file names: the preset, with the epochs where one preset was run for several.
        title: for readers.
        rows: lines of results.jsonl.
    """

    slug: str
    title: str
    rows: list[Row]


class Block(NamedTuple):
    """A piece of the report. kind: "h2", "p", "table" (header row, rows), "img" (file, text) or "pre" (lines)."""

    kind: str
    content: Any


def load(path: Path) -> list[Row]:
    """The lines of results.jsonl; of lines that measure the same thing, the last.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, or a line is not a measurement; names the line.
    """
    if not path.exists():
        raise FileNotFoundError(f"no {path}: run `ssljax evaluate ... --results {path}` first")
    latest: dict[tuple, Row] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            # Pixels do not know the seed of the network.
            key = tuple(0 if name == "seed" and row["features"] == "raw_pixels" else row[name] for name in (*SAME, "value"))[:-1]
        except (json.JSONDecodeError, KeyError) as error:
            raise ValueError(f"{path}, line {number} is no measurement ({error!r}): delete it, or evaluate again") from error
        latest.pop(key, None)                    # so that the order is the order of the last time
        latest[key] = row
    if not latest:
        raise ValueError(f"{path} is empty: run `ssljax evaluate` first")
    return list(latest.values())


def groups(rows: Sequence[Row]) -> list[Group]:
    """Rows by preset, data, epochs and number of training images. Of several configs of one group only the newest counts."""
    found: dict[tuple, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row["preset"], row["data"], row["epochs"], row["train_images"]][row["config_hash"] + row["data_checksum"]].append(row)
    out = []
    for (preset, data, epochs, images), configs in found.items():
        several = sum(key[0] == preset for key in found) > 1
        slug = f"{preset}-{epochs}ep-{images}" if several else preset
        out.append(Group(slug, f"{preset} ({data}, {images:,} training images, {epochs} epochs)", list(configs.values())[-1]))
    return out


def aggregate(rows: Sequence[Row]) -> tuple[float, float, int]:
    """Mean, sample standard deviation (0 for one) and number of values over seeds and draws."""
    values = [row["value"] for row in rows]
    return fmean(values), stdev(values) if len(values) > 1 else 0.0, len(values)


def cell(rows: Sequence[Row]) -> str:
    """`85.1 ± 1.2`, without the spread where there is one value; a dash for none."""
    if not rows:
        return "–"
    mean, std, n = aggregate(rows)
    return f"{mean:.1f} ± {std:.1f}" if n > 1 else f"{mean:.1f}"


def pick(rows: Sequence[Row], **want: Any) -> list[Row]:
    """Rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in want.items())]


def kinds(rows: Sequence[Row]) -> list[str]:
    """Kinds of features: the baselines, then the method."""
    present = {row["features"] for row in rows}
    return [k for k in ORDER if k in present] + sorted(present - set(ORDER))


def main_table(rows: Sequence[Row]) -> list[list[str]]:
    """Header and rows: kNN, linear probe, and a probe with k labels a class, for every kind of features."""
    from ssljax.pictures.figures import name

    top1 = pick(rows, metric="top1")
    titles = {"classifier": "own head", "classifier_class_token": "class token's head",
              "classifier_distillation_token": "distillation token's head",
              "knn": "kNN", "linear_lbfgs": "linear", "linear_sgd_cached": "linear (SGD, cached)"}
    titles |= {row["protocol"]: row["protocol"].removeprefix("layer_") for row in top1 if row["protocol"].startswith("layer_")}
    full = [p for p in titles if pick(top1, protocol=p)]
    counts = sorted({row["labels_per_class"] for row in pick(top1, protocol="label_fraction")})
    found = pick(rows, protocol="clusters")
    header = ["held-out top-1, %", *(titles[p] for p in full), *(f"{k} label{'s' if k > 1 else ''} a class" for k in counts),
              *(["NMI of clusters with labels"] if found else [])]
    table = [header]
    for kind in kinds(top1):
        own = pick(top1, features=kind)
        table.append([name(kind), *(cell(pick(own, protocol=p)) for p in full),
                      *(cell(pick(own, protocol="label_fraction", labels_per_class=k)) for k in counts),
                      *([cell(pick(found, features=kind))] if found else [])])
    return table


def caption(rows: Sequence[Row]) -> str:
    """How the numbers of a group came about."""
    def values(key: str) -> list[Any]:
        return sorted({row[key] for row in rows})
    draws = len({row["draw"] for row in rows if row["labels_per_class"]})
    few = f", {draws} draws of the labels" if draws else ""
    versions = rows[-1]["versions"]
    return (f"Mean ± standard deviation over seeds {', '.join(map(str, values('seed')))}{few}; "
            f"{', '.join(f'{n:,}' for n in values('n'))} held-out images; "
            f"last checkpoint (step {', '.join(f'{s:,}' for s in values('step'))}); "
            f"commit {', '.join(values('commit'))}; config {rows[-1]['config_hash']}; data {rows[-1]['data_checksum']}; "
            + ", ".join(f"{p} {versions[p]}" for p in ("jax", "flax") if p in versions) + ".")


def group_blocks(group: Group, folder: Path, runs: Mapping[str, Sequence[Row]]) -> list[Block]:
    """Table, caption, commands and figures of one group."""
    from ssljax.pictures import figures

    blocks = [Block("h2", group.title), Block("table", main_table(group.rows)), Block("p", caption(group.rows)),
              Block("pre", sorted({row["command"] for row in group.rows}))]
    few = pick(group.rows, metric="top1", protocol="label_fraction")
    if few:
        curves = {kind: {k: aggregate(pick(few, features=kind, labels_per_class=k))[:2]
                         for k in {row["labels_per_class"] for row in pick(few, features=kind)}} for kind in kinds(few)}
        linear = [row for row in pick(group.rows, metric="top1") if row["protocol"].startswith("linear")]
        full = {kind: aggregate(pick(linear, features=kind))[0] for kind in kinds(linear)}
        figures.label_efficiency(folder / f"labels-{group.slug}.png", curves, full, f"{group.rows[0]['preset']}: accuracy with few labels")
        text = "Accuracy against labelled images a class; the band is one standard deviation"
        blocks.append(Block("img", (f"labels-{group.slug}.png", text)))
    if runs:
        figures.training(folder / f"training-{group.slug}.png", runs, group.rows[0]["preset"])
        blocks.append(Block("img", (f"training-{group.slug}.png", "What was measured while training")))
    gallery = folder / f"gallery-{group.rows[0]['preset']}.npz"
    return blocks + (gallery_blocks(gallery, group, folder) if gallery.exists() else [])


def gallery_blocks(path: Path, group: Group, folder: Path) -> list[Block]:
    """The feature map and the nearest neighbours."""
    from ssljax.pictures import figures

    g = np.load(path)
    names, preset = [str(n) for n in g["class_names"]], str(g["preset"])
    chosen = [k for k in ("raw_pixels", *map(str, g["kinds"])) if f"points/{k}" in g]
    shown = {k: g[f"points/{k}"] for k in dict.fromkeys(chosen) if k != "random_init"}
    figures.feature_map(folder / f"features-{group.slug}.png", shown, g["labels"], names, preset)
    figures.neighbours(folder / f"neighbours-{group.slug}.png", g["query"], g["query_labels"], g["neighbour"], g["neighbour_labels"], names,
                       f"{preset}: nearest neighbours by {figures.name(str(g['kinds'][0]))} features")
    map_of = f"t-SNE of held-out images' features, seed {g['seed']}; the projection saw no label"
    blocks = [Block("img", (f"features-{group.slug}.png", map_of)),
              Block("img", (f"neighbours-{group.slug}.png", "Nearest training images of held-out images; a frame marks another class"))]
    if "attention" in g:
        figures.attention(folder / f"attention-{group.slug}.png", g["query"], g["query_labels"], g["attention"], names, preset)
        text = "Where the class token, and the distillation token if there is one, look in the last block; the mean over its heads"
        blocks.append(Block("img", (f"attention-{group.slug}.png", text)))
    if "cluster" in g:
        figures.clusters(folder / f"clusters-{group.slug}.png", g["cluster"], g["cluster_labels"], g["cluster_size"], names,
                         f"{preset}: training images of some clusters")
        text = f"Members of clusters, the largest to the smallest, seed {g['seed']}; a frame marks another class than the row's commonest"
        blocks.append(Block("img", (f"clusters-{group.slug}.png", text)))
    return blocks


def training_runs(folder: Path) -> dict[tuple[str, int], dict[str, list[Row]]]:
    """(preset, epochs) -> {run: lines of metrics.jsonl}, for runs in `folder` or at most two folders below it."""
    out: dict[tuple[str, int], dict[str, list[Row]]] = defaultdict(dict)
    for depth in ("", "*/", "*/*/"):
        for file in sorted(folder.glob(depth + "metrics.jsonl")):
            config = json.loads(file.with_name("config.json").read_text())
            if config["method"] != "supervised":
                rows = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
                out[config["preset"], config["epochs"]][f"seed {config['seed']}"] = rows
    return out


def paper_blocks(tables: Sequence[Mapping[str, Any]], rows: Sequence[Row], folder: Path) -> list[Block]:
    """The paper's tables, each number beside the one measured here, or the command that would measure it.

    A table with `ours` has no paper's numbers: it compares runs made here. A row with `from` reads the results of another experiment.
    """
    blocks = []
    for table in tables:
        commands: list[str] = []
        ours, wide = table.get("ours", False), len(table["columns"]) > 5
        single = ours or wide
        body = [["", *(table["columns"] if single else [c for name in table["columns"] for c in (f"{name}, paper", "here")]), "how"]]
        for row in table["rows"]:
            paper = ["–" if value is None else f"{value:.1f}" for value in row.get("paper", [None] * len(table["columns"]))]
            known = load(folder.parent / row["from"] / "results.jsonl") if "from" in row else rows
            here = [cell(measured(known, match, row)) for match in row["match"]] if "match" in row else ["–"] * len(paper)
            here += ["–"] * (len(paper) - len(here))
            how = "quoted"
            if "command" in row:
                if row["command"] not in commands:                     # several rows may come from one run
                    commands.append(row["command"])
                number = f"[{commands.index(row['command']) + 1}]"
                missing = row.get("missing", "not run: " if ours else "needs a TPU: ")
                how = number if any(h != "–" for h in here) else missing + number
            if ours:
                body.append([row["name"], *here, how])
            elif wide:
                body.append([f"{row['name']}, paper", *paper, how if how == "quoted" else ""])
                body += [[f"{row['name']}, here", *here, how]] if how != "quoted" else []
            else:
                body.append([row["name"], *(value for pair in zip(paper, here, strict=True) for value in pair), how])
        note = f"{table['note']} " if table["note"] else ""
        source = "" if ours else f"Source: {table['source']}."
        blocks += [Block("h2", table["title"]), Block("p", f"{note}{source}".strip()), Block("table", body)]
        if commands:
            blocks.append(Block("pre", [f"[{i}] {command}" for i, command in enumerate(commands, 1)]))
    return blocks


def measured(rows: Sequence[Row], match: Mapping[str, Any], row: Mapping[str, Any]) -> list[Row]:
    """The newest group's rows that fill one cell."""
    wanted = {"preset": row["preset"], **match} if "preset" in row else match
    found = pick(rows, **wanted)
    return [r for r in found if r["config_hash"] == found[-1]["config_hash"]]


def markdown(blocks: Sequence[Block]) -> str:
    """The blocks as GitHub's Markdown."""
    out = []
    for kind, content in blocks:
        if kind == "table":
            head, *body = content
            out.append("\n".join(["| " + " | ".join(r) + " |" for r in [head, ["---"] + ["---:"] * (len(head) - 1), *body]]))
        else:
            out.append({"h2": lambda c: f"## {c}", "p": lambda c: c, "pre": lambda c: "```\n" + "\n".join(c) + "\n```",
                        "img": lambda c: f"![{c[1]}]({c[0]})"}[kind](content))
    return "\n\n".join(out) + "\n"


def page(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """The blocks as one HTML file with its images inside."""
    def rich(text: str) -> str:
        text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(text))
        return re.sub(r"`(.+?)`", r"<code>\1</code>", text)

    out = []
    for kind, content in blocks:
        if kind == "table":
            cells = [[f"<{tag}>{rich(c)}</{tag}>" for c in row] for tag, rows in (("th", content[:1]), ("td", content[1:])) for row in rows]
            out.append("<div><table>" + "".join(f"<tr>{''.join(row)}</tr>" for row in cells) + "</table></div>")
        elif kind == "img":
            data = base64.b64encode((folder / content[0]).read_bytes()).decode()
            image = f'<img alt="{html.escape(content[1])}" src="data:image/png;base64,{data}">'
            out.append(f"<figure>{image}<figcaption>{rich(content[1])}</figcaption></figure>")
        else:
            out.append(f"<{kind}>" + (html.escape("\n".join(content)) if kind == "pre" else rich(content)) + f"</{kind}>")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
    heading = f"<title>{html.escape(title)}</title><h1>{html.escape(title)}</h1>"
    return f'<!doctype html><html lang="en">{head}{heading}\n' + "\n".join(out) + "\n</html>\n"


def terminal(table: Sequence[Sequence[str]]) -> str:
    """A table as aligned text."""
    width = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return "\n".join("  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, width, strict=True))) for row in table)


def renew(readme: Path, text: str) -> None:
    """Puts the text between the two `report` comments of a README.

    Raises:
        ValueError: it has no such comments.
    """
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{readme} has no place for the report: add the lines\n{BEGIN}\n{END}")
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


def report(folder: Path) -> list[Path]:
    """Writes everything, prints the tables, returns the files."""
    results, tables = folder / "results.jsonl", folder / "paper.json"
    paper = json.loads(tables.read_text()) if tables.exists() else []
    rows = load(results) if results.exists() or not paper else []
    runs, blocks = training_runs(folder), []
    for group in groups(rows):
        blocks += group_blocks(group, folder, runs.get((group.rows[0]["preset"], group.rows[0]["epochs"]), {}))
        print(f"\n{group.title}\n{terminal(main_table(group.rows))}")
    blocks += paper_blocks(paper, rows, folder)
    title = f"ssljax: {rows[0]['experiment'] if rows else folder.resolve().name}"
    (folder / "report.md").write_text(f"# {title}\n\n{markdown(blocks)}")
    (folder / "report.html").write_text(page(title, blocks, folder))
    if (folder / "README.md").exists():
        renew(folder / "README.md", markdown(blocks))
    return [folder / "report.html", folder / "report.md", *(folder / b.content[0] for b in blocks if b.kind == "img")]


def main(argv: list[str] | None = None) -> None:
    """`ssljax report DIR`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if len(words) != 1 or words[0].startswith("-"):
        raise SystemExit("usage: ssljax report DIR, where DIR holds the results.jsonl of `ssljax evaluate`, e.g. experiments/simclr")
    try:
        files = report(Path(words[0]))
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"ssljax report: {error}") from error
    print("\n" + "\n".join(str(file) for file in files))


if __name__ == "__main__":
    main()
