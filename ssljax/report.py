"""Turns results.jsonl into tables and figures: `ssljax report DIR`, e.g. experiments/simclr or runs/demo.

Reads DIR/results.jsonl (written by `ssljax evaluate`), DIR/gallery-*.npz, every metrics.jsonl at most two
folders below DIR, and DIR/paper.json, the paper's own tables. Writes DIR/report.md, its PNGs and the
self-contained DIR/report.html, and replaces the part between the two `report` comments of DIR/README.md.

No measured number is typed by hand: a row that was not run names the command that fills it. Runs of one
preset with different settings get separate tables, titled by what differs. Every measurement is shown, or
counted where a later one replaced it.

`ssljax report experiments` reads experiments/methods.json instead, and writes the table of methods, one line
each, between the `report` comments of the README beside that folder (see `pictures/overview.py`).
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.npyio import NpzFile

from ssljax import cli, results
from ssljax.config import flat
from ssljax.pictures import figures
from ssljax.pictures.bounds import bound_blocks
from ssljax.pictures.overview import overview
from ssljax.pictures.page import Block, markdown, page, renew, terminal
from ssljax.pictures.paper import paper_blocks
from ssljax.pictures.robustness import robustness_blocks
from ssljax.pictures.tables import Group, aggregate, caption, groups, kinds, main_table, newest, pick
from ssljax.run import files

# Settings of a run that do not appear in the names of its curves.
UNNAMED = (*results.UNSAID, "evaluate", "sharding")


class Training(NamedTuple):
    """A training run.

    Attributes:
        folder: the path of its folder, below that of the report.
        config: dotted key -> value.
        rows: the lines of its metrics.jsonl.
        stage: the name of the stage; "" for the last or only one.
    """

    folder: str
    config: dict[str, Any]
    rows: list[dict[str, float]]
    stage: str = ""


def group_blocks(group: Group, folder: Path, runs: Sequence[Training]) -> list[Block]:
    """The table, caption, commands and figures of one group."""
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
        blocks += training_blocks(group.slug, group.preset, runs, folder)
    newest_slug = results.label(group.preset, group.stage)
    gallery = folder / f"gallery-{newest_slug}.npz"
    if group.slug == newest_slug and gallery.exists():  # written by the last evaluation: the newest group
        blocks += gallery_blocks(gallery, group, folder)
    return blocks


def label_block(group: Group, few: Sequence[results.Row], folder: Path) -> Block:
    """The figure of accuracy against the number of labels."""
    curves = {}
    for kind in kinds(few):
        own = pick(few, features=kind)
        counts = {row["labels_per_class"] for row in own}
        curves[kind] = {k: aggregate(pick(own, labels_per_class=k))[:2] for k in counts}

    linear = [row for row in pick(group.rows, metric="top1") if row["protocol"].startswith("linear")]
    full = {kind: aggregate(pick(linear, features=kind))[0] for kind in kinds(linear)}

    file = f"labels-{group.slug}.png"
    figures.label_efficiency(folder / file, curves, full, f"{group.preset}: accuracy with few labels")
    text = "Accuracy against the number of labelled images per class; the band is one standard deviation"
    return Block("img", (file, text))


def gallery_blocks(path: Path, group: Group, folder: Path) -> list[Block]:
    """The figures of a gallery, of what it has: features, neighbours, attention maps, clusters and so on."""
    g = np.load(path)
    names = [str(name) for name in g["class_names"]]
    blocks = []
    if "neighbour" in g:
        blocks.append(features_block(g, names, group.slug, folder))
        blocks.append(neighbours_block(g, names, group.slug, folder))
    if "masked" in g:
        blocks.append(masked_block(g, names, group.slug, folder))
    if "attention" in g:
        blocks.append(attention_block(g, names, group.slug, folder))
    if "reconstruction" in g:
        blocks.append(reconstruction_block(g, names, group.slug, folder))
    if "cluster" in g:
        blocks.append(clusters_block(g, names, group.slug, folder))
    return blocks


def features_block(g: NpzFile, names: list[str], slug: str, folder: Path) -> Block:
    """The t-SNE of raw pixels and of each kind of features, without those of a random network."""
    points = {}
    for kind in ("raw_pixels", *map(str, g["kinds"])):
        if f"points/{kind}" in g and kind != "random_init":
            points[kind] = g[f"points/{kind}"]

    file = f"features-{slug}.png"
    figures.feature_map(folder / file, points, g["labels"], names, str(g["preset"]))
    text = (
        f"t-SNE of the features of held-out images, seed {g['seed']}; the projection does not use the labels"
    )
    return Block("img", (file, text))


def neighbours_block(g: NpzFile, names: list[str], slug: str, folder: Path) -> Block:
    """Held-out images and their nearest training images."""
    file = f"neighbours-{slug}.png"
    figures.neighbours(
        folder / file,
        g["query"],
        g["query_labels"],
        g["neighbour"],
        g["neighbour_labels"],
        names,
        f"{g['preset']}: nearest neighbours by {figures.name(str(g['kinds'][0]))} features",
    )
    text = "Held-out images and their nearest training images; a frame marks an image of another class"
    return Block("img", (file, text))


def attention_block(g: NpzFile, names: list[str], slug: str, folder: Path) -> Block:
    """Attention maps of a vision transformer."""
    file = f"attention-{slug}.png"
    figures.attention(folder / file, g["query"], g["query_labels"], g["attention"], names, str(g["preset"]))
    text = (
        "Attention of the class token, and of the distillation token if there is one, in the last block; "
        "mean over the heads"
    )
    return Block("img", (file, text))


def reconstruction_block(g: NpzFile, names: list[str], slug: str, folder: Path) -> Block:
    """Held-out images and what a tokenizer's codes keep of them."""
    file = f"reconstruction-{slug}.png"
    rows = {"test": g["query"], "of its codes": g["reconstruction"]}
    figures.rows_of_images(folder / file, rows, g["query_labels"], names, f"{g['preset']}: reconstructions")
    return Block(
        "img", (file, f"Held-out images, and the images made of their codes alone, seed {g['seed']}")
    )


def masked_block(g: NpzFile, names: list[str], slug: str, folder: Path) -> Block:
    """Held-out images as BEiT sees them while it pretrains."""
    file = f"masked-{slug}.png"
    rows = {"test": g["query"], "masked": g["masked"]}
    figures.rows_of_images(folder / file, rows, g["query_labels"], names, f"{g['preset']}: masked patches")
    return Block("img", (file, f"Held-out images, and what is left of them in pretraining, seed {g['seed']}"))


def clusters_block(g: NpzFile, names: list[str], slug: str, folder: Path) -> Block:
    """Training images of some clusters."""
    file = f"clusters-{slug}.png"
    figures.clusters(
        folder / file,
        g["cluster"],
        g["cluster_labels"],
        g["cluster_size"],
        names,
        f"{g['preset']}: training images of some clusters",
    )
    text = (
        f"Training images of some clusters, largest first, seed {g['seed']}; a frame marks an image outside "
        "the most common class of its row"
    )
    return Block("img", (file, text))


def training_runs(folder: Path) -> list[Training]:
    """The runs in `folder` or at most two folders below it.

    Raises:
        FileNotFoundError: a run has no config.json.
        ValueError: a file of a run is damaged; the message names it and says what to do.
    """
    found = []
    for depth in ("", "*/", "*/*/"):
        for file in sorted(folder.glob(depth + "metrics.jsonl")):
            config = flat(files.read_config(file.with_name("config.json")))
            stage = earlier_stage(file.parent)
            name = str(file.parent.relative_to(folder))
            found.append(Training(name, config, files.read_lines(file), stage))
    return found


def earlier_stage(folder: Path) -> str:
    """The name of the stage whose folder this is; "" for the last or only stage of a run."""
    above = folder.parent / "config.json"
    if not above.exists():
        return ""
    config = files.read_config(above)
    return folder.name if "stages" in config and folder.name in config["stages"][:-1] else ""


def owner(run: Training, known: Sequence[Group]) -> str:
    """The slug of the group that a training run belongs to, or "" if there is none.

    The group has the run's experiment, preset, stage and epochs, and the run has the settings that were
    changed in the group. Of several such groups, the one with the most changes counts, and of those the
    newest.
    """
    config = run.config
    asked = (config["name"], config["preset"], run.stage, config["epochs"])
    fits = []
    for group in known:
        row = group.rows[0]
        alike = (row["experiment"], row["preset"], row["stage"], row["epochs"]) == asked
        if alike and all(key not in config or config[key] == value for key, value in group.changed.items()):
            fits.append((len(group.changed), newest(group.rows), group.slug))
    return max(fits)[2] if fits else ""


def run_names(runs: Sequence[Training]) -> dict[str, list[dict[str, float]]]:
    """Names for the curves of several runs.

    A name consists of the seed, the settings in which the runs differ and, if that is not enough, the folder.
    A setting that a run does not have, because it is older than the setting, does not count as a difference.
    """

    def named(key: str) -> bool:
        return not any(key == name or key.startswith(name + ".") for name in UNNAMED)

    differ = []
    for key in dict.fromkeys(key for run in runs for key in run.config):
        values = {json.dumps(run.config[key]) for run in runs if key in run.config}
        if named(key) and len(values) > 1:
            differ.append(key)

    names = []
    for run in runs:
        settings = [f"{key}={run.config[key]}" for key in differ if key in run.config]
        names.append(", ".join([f"seed {run.config['seed']}", *settings]))

    return {
        name if names.count(name) == 1 else f"{name} ({run.folder})": run.rows
        for name, run in zip(names, runs, strict=True)
    }


def training_blocks(slug: str, preset: str, runs: Sequence[Training], folder: Path) -> list[Block]:
    """The training curves of some runs, and what views tell about each other, where that was logged."""
    file = f"training-{slug}.png"
    figures.training(folder / file, run_names(runs), preset)
    block = Block("img", (file, "Metrics during training"))
    return [block, *bound_blocks(slug, preset, [(run.config, run.rows) for run in runs], folder)]


def unjudged_blocks(runs: Sequence[Training], folder: Path) -> list[Block]:
    """The training curves of runs without a measurement."""
    presets: dict[tuple[str, str, int], list[Training]] = defaultdict(list)
    for run in runs:
        name = results.label(run.config["preset"], run.stage)
        presets[run.config["name"], name, run.config["epochs"]].append(run)
    blocks = []
    for (experiment, preset, epochs), own in presets.items():
        blocks += [
            Block("h2", f"{experiment}: {preset} ({epochs} epochs), trained but not evaluated here"),
            *training_blocks(f"{experiment}-{preset}-{epochs}ep", preset, own, folder),
        ]
    return blocks


def report(folder: Path) -> list[Path]:
    """Writes the report of a folder and prints its tables.

    Returns:
        The files it wrote.
    """
    tables = folder / "paper.json"
    paper = json.loads(tables.read_text()) if tables.exists() else []
    file = folder / "results.jsonl"
    rows = results.read(file) if file.exists() or not paper else []

    known = groups(rows)
    runs: dict[str, list[Training]] = defaultdict(list)
    for run in training_runs(folder):
        runs[owner(run, known)].append(run)

    blocks = []
    for group in known:
        blocks += group_blocks(group, folder, runs[group.slug])
        print(f"\n{group.title}\n{terminal(main_table(group.rows))}")
    blocks += robustness_blocks(known, folder)
    blocks += unjudged_blocks(runs[""], folder)
    blocks += paper_blocks(paper, known, folder)

    experiment = rows[0]["experiment"] if rows else folder.resolve().name
    title = f"ssljax: {experiment}"
    (folder / "report.md").write_text(markdown([Block("h1", title), *blocks]))
    (folder / "report.html").write_text(page(title, blocks, folder))
    if (folder / "README.md").exists():
        renew(folder / "README.md", markdown(blocks))

    pictures = [folder / block.content[0] for block in blocks if block.kind == "img"]
    return [folder / "report.html", folder / "report.md", *pictures]


def report_methods(folder: Path) -> list[Path]:
    """Writes the table of methods into the README beside the folder of experiments, and prints it.

    Returns:
        The file it wrote.
    """
    table = overview(folder)
    readme = folder.resolve().parent / "README.md"
    renew(readme, markdown([table], ours=True))
    print(terminal(table.content))
    return [readme]


def main(argv: list[str] | None = None) -> None:
    """`ssljax report DIR`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if len(words) != 1 or words[0].startswith("-"):
        raise SystemExit(
            "usage: ssljax report DIR, where DIR holds the results.jsonl of `ssljax evaluate`, "
            "e.g. experiments/simclr"
        )
    folder = Path(words[0])
    with cli.answered("report"):
        files = report_methods(folder) if (folder / "methods.json").exists() else report(folder)
    print("\n" + "\n".join(str(file) for file in files))


if __name__ == "__main__":
    cli.run(main)
