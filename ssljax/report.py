"""results.jsonl to tables and figures: `ssljax report DIR`, e.g. experiments/simclr or runs/demo.

Reads DIR/results.jsonl (of `ssljax evaluate`), DIR/gallery-*.npz, every metrics.jsonl at most two folders
below DIR, and DIR/paper.json, the paper's own tables. Writes DIR/report.md, its PNGs and the self-contained
DIR/report.html, and renews the part between the two `report` comments of DIR/README.md. No number in a table
is typed: a row that was not run says which command fills it. Runs of one preset with other settings have
tables of their own, titled by what differs; nothing that was measured is left out without a word.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssljax import results
from ssljax.config import flat
from ssljax.pictures import figures
from ssljax.pictures.page import Block, markdown, page, renew, terminal
from ssljax.pictures.paper import paper_blocks
from ssljax.pictures.tables import Group, aggregate, caption, groups, kinds, main_table, newest, pick

# Besides results.UNSAID, settings of a run that give its curves no other name.
UNNAMED = (*results.UNSAID, "evaluate", "sharding")


class Training(NamedTuple):
    """A run's folder.

    Attributes:
        folder: its path below the report's.
        config: dotted key -> value.
        rows: the lines of its metrics.jsonl.
    """

    folder: str
    config: dict[str, Any]
    rows: list[dict[str, float]]


def group_blocks(group: Group, folder: Path, runs: Sequence[Training]) -> list[Block]:
    """Table, caption, commands and figures of one group."""
    blocks = [
        Block("h2", group.title),
        Block("table", main_table(group.rows)),
        Block("p", caption(group)),
        Block("pre", sorted({row["command"] for row in group.rows})),
    ]
    few = pick(group.rows, metric="top1", protocol="label_fraction")
    if few:
        blocks.append(label_block(group, few, folder))
    if runs:
        blocks.append(training_block(group.slug, group.preset, runs, folder))
    gallery = folder / f"gallery-{group.preset}.npz"
    if group.slug == group.preset and gallery.exists():  # of the last evaluation, so the newest group's
        blocks += gallery_blocks(gallery, group, folder)
    return blocks


def label_block(group: Group, few: Sequence[results.Row], folder: Path) -> Block:
    """Accuracy against the number of labels."""
    curves = {}
    for kind in kinds(few):
        own = pick(few, features=kind)
        counts = {row["labels_per_class"] for row in own}
        curves[kind] = {k: aggregate(pick(own, labels_per_class=k))[:2] for k in counts}
    linear = [row for row in pick(group.rows, metric="top1") if row["protocol"].startswith("linear")]
    full = {kind: aggregate(pick(linear, features=kind))[0] for kind in kinds(linear)}
    file = f"labels-{group.slug}.png"
    figures.label_efficiency(folder / file, curves, full, f"{group.preset}: accuracy with few labels")
    text = "Accuracy against labelled images per class; the band is one standard deviation"
    return Block("img", (file, text))


def gallery_blocks(path: Path, group: Group, folder: Path) -> list[Block]:
    """The feature map, the nearest neighbours, and where there are such, attention maps and clusters."""
    g = np.load(path)
    names = [str(n) for n in g["class_names"]]
    preset, slug = str(g["preset"]), group.slug
    chosen = [k for k in ("raw_pixels", *map(str, g["kinds"])) if f"points/{k}" in g]
    shown = {k: g[f"points/{k}"] for k in dict.fromkeys(chosen) if k != "random_init"}
    figures.feature_map(folder / f"features-{slug}.png", shown, g["labels"], names, preset)
    figures.neighbours(
        folder / f"neighbours-{slug}.png",
        g["query"],
        g["query_labels"],
        g["neighbour"],
        g["neighbour_labels"],
        names,
        f"{preset}: nearest neighbours by {figures.name(str(g['kinds'][0]))} features",
    )
    text = f"t-SNE of held-out images' features, seed {g['seed']}; the projection saw no label"
    blocks = [Block("img", (f"features-{slug}.png", text))]
    text = "Nearest training images of held-out images; a frame marks another class"
    blocks.append(Block("img", (f"neighbours-{slug}.png", text)))
    if "attention" in g:
        figures.attention(
            folder / f"attention-{slug}.png", g["query"], g["query_labels"], g["attention"], names, preset
        )
        text = (
            "Where the class token, and the distillation token if there is one, look in the last block; "
            "the mean over its heads"
        )
        blocks.append(Block("img", (f"attention-{slug}.png", text)))
    if "cluster" in g:
        figures.clusters(
            folder / f"clusters-{slug}.png",
            g["cluster"],
            g["cluster_labels"],
            g["cluster_size"],
            names,
            f"{preset}: training images of some clusters",
        )
        text = (
            f"Members of clusters, the largest to the smallest, seed {g['seed']}; a frame marks "
            "another class than the row's commonest"
        )
        blocks.append(Block("img", (f"clusters-{slug}.png", text)))
    return blocks


def training_runs(folder: Path) -> list[Training]:
    """The runs in `folder` or at most two folders below it."""
    found = []
    for depth in ("", "*/", "*/*/"):
        for file in sorted(folder.glob(depth + "metrics.jsonl")):
            config = flat(json.loads(file.with_name("config.json").read_text()))
            rows = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
            found.append(Training(str(file.parent.relative_to(folder)), config, rows))
    return found


def owner(run: Training, known: Sequence[Group]) -> str:
    """The slug of the group that a training run belongs to, or "".

    It is of the same experiment, preset and epochs, and the run has the settings that were changed in it; of
    several such groups the one with the most changes, and of those the newest.
    """
    config, fits = run.config, []
    asked = (config["name"], config["preset"], config["epochs"])
    for group in known:
        row = group.rows[0]
        alike = (row["experiment"], row["preset"], row["epochs"]) == asked
        if alike and all(key not in config or config[key] == value for key, value in group.changed.items()):
            fits.append((len(group.changed), newest(group.rows), group.slug))
    return max(fits)[2] if fits else ""


def run_names(runs: Sequence[Training]) -> dict[str, list[dict[str, float]]]:
    """Curves by name: the seed, the settings in which the runs differ, and the folder where that is not
    enough.

    A setting that a run is older than tells it apart from no other.
    """
    keys = dict.fromkeys(
        key
        for run in runs
        for key in run.config
        if not any(key == name or key.startswith(name + ".") for name in UNNAMED)
    )
    differ, names = [], []
    for key in keys:
        if len({json.dumps(run.config[key]) for run in runs if key in run.config}) > 1:
            differ.append(key)
    for run in runs:
        settings = [f"{key}={run.config[key]}" for key in differ if key in run.config]
        names.append(", ".join([f"seed {run.config['seed']}", *settings]))
    return {
        name if names.count(name) == 1 else f"{name} ({run.folder})": run.rows
        for name, run in zip(names, runs, strict=True)
    }


def training_block(slug: str, preset: str, runs: Sequence[Training], folder: Path) -> Block:
    """What was measured while training."""
    figures.training(folder / f"training-{slug}.png", run_names(runs), preset)
    return Block("img", (f"training-{slug}.png", "What was measured while training"))


def unjudged_blocks(runs: Sequence[Training], folder: Path) -> list[Block]:
    """The curves of runs that no measurement belongs to."""
    presets: dict[tuple[str, str, int], list[Training]] = defaultdict(list)
    for run in runs:
        presets[run.config["name"], run.config["preset"], run.config["epochs"]].append(run)
    blocks = []
    for (experiment, preset, epochs), own in presets.items():
        blocks += [
            Block("h2", f"{experiment}: {preset} ({epochs} epochs), trained and not evaluated here"),
            training_block(f"{experiment}-{preset}-{epochs}ep", preset, own, folder),
        ]
    return blocks


def report(folder: Path) -> list[Path]:
    """Writes everything, prints the tables, returns the files."""
    file, tables = folder / "results.jsonl", folder / "paper.json"
    paper = json.loads(tables.read_text()) if tables.exists() else []
    rows = results.read(file) if file.exists() or not paper else []
    known, blocks = groups(rows), []
    runs: dict[str, list[Training]] = defaultdict(list)
    for run in training_runs(folder):
        runs[owner(run, known)].append(run)
    for group in known:
        blocks += group_blocks(group, folder, runs[group.slug])
        print(f"\n{group.title}\n{terminal(main_table(group.rows))}")
    blocks += unjudged_blocks(runs[""], folder)
    blocks += paper_blocks(paper, known, folder)
    title = f"ssljax: {rows[0]['experiment'] if rows else folder.resolve().name}"
    (folder / "report.md").write_text(f"# {title}\n\n{markdown(blocks)}")
    (folder / "report.html").write_text(page(title, blocks, folder))
    if (folder / "README.md").exists():
        renew(folder / "README.md", markdown(blocks))
    pictures = [folder / block.content[0] for block in blocks if block.kind == "img"]
    return [folder / "report.html", folder / "report.md", *pictures]


def main(argv: list[str] | None = None) -> None:
    """`ssljax report DIR`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if len(words) != 1 or words[0].startswith("-"):
        raise SystemExit(
            "usage: ssljax report DIR, where DIR holds the results.jsonl of `ssljax evaluate`, "
            "e.g. experiments/simclr"
        )
    try:
        files = report(Path(words[0]))
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"ssljax report: {error}") from error
    print("\n" + "\n".join(str(file) for file in files))


if __name__ == "__main__":
    main()
