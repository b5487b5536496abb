"""Turns results.jsonl into tables and figures: `ssljax report DIR`, e.g. experiments/simclr or runs/demo.

DIR is the folder of one run (`--workdir DIR` means the same), of several runs, or of an experiment. Reads
every results.jsonl and gallery-*.npz (written by `ssljax evaluate`) and every metrics.jsonl, in DIR and at
most two folders below it, DIR/preview.png, and DIR/paper.json, the paper's own tables. Writes DIR/report.md,
its PNGs and the self-contained DIR/report.html, and replaces the part between the two `report` comments of
DIR/README.md.

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
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssljax import cli, results
from ssljax.config import flat
from ssljax.pictures import figures
from ssljax.pictures.bounds import bound_blocks
from ssljax.pictures.findings import precision_blocks
from ssljax.pictures.kept import galleries
from ssljax.pictures.overview import overview
from ssljax.pictures.page import Block, markdown, page, renew, terminal
from ssljax.pictures.paper import paper_blocks
from ssljax.pictures.robustness import robustness_blocks
from ssljax.pictures.shown import drawn, gallery_blocks
from ssljax.pictures.tables import (
    Group,
    aggregate,
    caption,
    data_name,
    groups,
    kinds,
    main_table,
    newest,
    pick,
)
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


def group_blocks(group: Group, folder: Path, runs: Sequence[Training], gallery: Path | None) -> list[Block]:
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
    blocks += precision_blocks(group, folder)
    if runs:
        blocks += training_blocks(group.slug, data_name(group.rows[0]["data"]), runs, folder)
    if gallery is not None:
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
    data = data_name(group.rows[0]["data"])
    figures.label_efficiency(folder / file, curves, full, f"{data}: accuracy with few labels")
    text = "Accuracy against the number of labelled images per class"
    if any(std for curve in curves.values() for _, std in curve.values()):
        text += "; the band is one standard deviation"
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


def training_blocks(slug: str, title: str, runs: Sequence[Training], folder: Path) -> list[Block]:
    """The training curves of some runs, and what views tell about each other, where that was logged."""
    file = f"training-{slug}.png"
    figures.training(folder / file, run_names(runs), title)
    block = Block("img", (file, "Metrics during training"))
    return [block, *bound_blocks(slug, title, [(run.config, run.rows) for run in runs], folder)]


def unjudged_blocks(runs: Sequence[Training], folder: Path, shown: Collection[Path]) -> list[Block]:
    """The training curves of runs without a measurement, and a gallery, as images without labels leave it.

    Args:
        runs: those without a group.
        folder: of the report.
        shown: the galleries of groups.
    """
    presets: dict[tuple[str, str, int], list[Training]] = defaultdict(list)
    for run in runs:
        name = results.label(run.config["preset"], run.stage)
        presets[run.config["name"], name, run.config["epochs"]].append(run)
    blocks = []
    for (experiment, preset, epochs), own in presets.items():
        slug = f"{experiment}-{preset}-{epochs}ep"
        beside = [folder / run.folder / f"gallery-{preset}.npz" for run in own]
        gallery = next((file for file in beside if file.exists() and file not in shown), None)
        what = "trained but not evaluated here" if gallery is None else "evaluated by its pictures alone"
        blocks += [
            Block("h2", f"{experiment}: {preset} ({epochs} epochs), {what}"),
            *training_blocks(slug, _data_of(own[0]), own, folder),
        ]
        if gallery is not None:
            blocks += drawn(gallery, _data_of(own[0]), slug, folder)
    return blocks


def _data_of(run: Training) -> str:
    """The name of a run's data set; its preset, if the run does not say."""
    return data_name(str(run.config.get("data.source", run.config["preset"])))


def measurements(folder: Path) -> list[results.Row]:
    """What the results.jsonl of a folder, and of the runs at most two folders below it, hold.

    Raises:
        ValueError: a line of one is damaged.
    """
    rows: dict[str, results.Row] = {}  # a measurement may be in a run's own file and in one of several runs
    for depth in ("", "*/", "*/*/"):
        for file in sorted(folder.glob(f"{depth}results.jsonl")):
            for row in results.read(file):
                rows.setdefault(json.dumps(row, sort_keys=True), row)
    return list(rows.values())


def report(folder: Path) -> list[Path]:
    """Writes the report of a folder and prints its tables.

    Returns:
        The files it wrote.
    """
    tables = folder / "paper.json"
    paper = json.loads(tables.read_text()) if tables.exists() else []
    rows = measurements(folder)
    trained = training_runs(folder)
    if not (rows or paper or trained):
        rows = results.read(folder / "results.jsonl")  # which says what to do

    known = groups(rows)
    pictures_of = galleries(folder, known)
    runs: dict[str, list[Training]] = defaultdict(list)
    for run in trained:
        runs[owner(run, known)].append(run)

    blocks = []
    if (folder / "preview.png").exists():
        blocks.append(Block("img", ("preview.png", "What the network sees in training")))
    for group in known:
        blocks += group_blocks(group, folder, runs[group.slug], pictures_of.get(group.slug))
        print(f"\n{group.title}\n{terminal(main_table(group.rows))}")
    blocks += robustness_blocks(known, folder)
    blocks += unjudged_blocks(runs[""], folder, pictures_of.values())
    blocks += paper_blocks(paper, known, folder)

    experiments = {row["experiment"] for row in rows}
    experiment = experiments.pop() if len(experiments) == 1 else folder.resolve().name
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
    """`ssljax report DIR`, or `ssljax report --workdir DIR`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0].partition("=")[0] in ("--workdir", "-workdir"):
        _, equals, value = words.pop(0).partition("=")
        words = [value, *words] if equals else words
    if len(words) != 1 or words[0].startswith("-"):
        raise SystemExit(
            "usage: ssljax report DIR, where DIR holds a run of `ssljax train`, or the results.jsonl of "
            "`ssljax evaluate`, e.g. experiments/simclr"
        )
    folder = Path(words[0])
    with cli.answered("report"):
        files = report_methods(folder) if (folder / "methods.json").exists() else report(folder)
    print("\n" + "\n".join(str(file) for file in files))


if __name__ == "__main__":
    cli.run(main)
