"""Robustness in a report: the errors of several runs under the same corruptions, side by side.

The runs are those of one results.jsonl that were judged on the same images, such as a teacher and its
student. The first of them is the reference of the ratios.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ssljax import results
from ssljax.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from ssljax.pictures import figures
from ssljax.pictures.page import Block
from ssljax.pictures.tables import Group, cell, pick
from ssljax.protocols.robustness import mce


class Curve(NamedTuple):
    """The errors of one kind of run, in percent, means over its seeds.

    Attributes:
        name: for readers.
        clean: the error on clean images.
        errors: corruption -> [5], one per severity.
        rows: the measurements behind it.
        rest: the measurements of the same runs with another metric.
    """

    name: str
    clean: float
    errors: dict[str, np.ndarray]
    rows: list[results.Row]
    rest: list[results.Row]


def robustness_blocks(known: Sequence[Group], folder: Path) -> list[Block]:
    """A table and a figure for each set of corrupted images that runs were judged on; none if there is none.

    Args:
        known: the groups of the report.
        folder: where figures are written. If it has the gallery of the first run, and that has images of
            the size that the network sees, one of them is shown under every corruption.
    """
    blocks = []
    for number, (key, group) in enumerate(images(known).items()):
        said = json.loads(key)[0]
        curves = curves_of(group)
        first = group[0][0]
        slug = first.slug if number == 0 else f"{first.slug}-{number + 1}"
        n = curves[0].rows[0]["n"]
        file = f"corruptions-{slug}.png"
        draw_curves(folder / file, curves)
        blocks += [
            Block("h2", f"Robustness to corruptions ({first.rows[0]['data']}, {n:,} images)"),
            Block("table", table(curves)),
            Block("p", note(said, curves)),
            Block("img", (file, "Error against severity; 0 is the clean image; the mean over seeds")),
        ]
        gallery = folder / f"gallery-{results.label(first.preset, first.stage)}.npz"
        shown = np.load(gallery)["query"][0] if gallery.exists() else np.zeros((0, 0, 1), np.uint8)
        whole = len(shown) == said["size"]  # large images are thumbnails there
        if said["images"] == "regenerated" and whole:
            sheet = f"corrupted-{slug}.png"
            draw_sheet(folder / sheet, shown)
            blocks.append(Block("img", (sheet, "A held-out image, clean and at severities 1 to 5")))
    return blocks


def images(known: Sequence[Group]) -> dict[str, list[tuple[Group, list[results.Row]]]]:
    """What the images are, their data and their number, as JSON -> groups judged on them, and their rows."""
    found: dict[str, list[tuple[Group, list[results.Row]]]] = defaultdict(list)
    for group in known:
        apart: dict[str, list[results.Row]] = defaultdict(list)
        for row in pick(group.rows, protocol="corruptions", metric="mean_error"):
            said = {key: value for key, value in row["settings"].items() if key not in ("errors", "head")}
            apart[json.dumps([said, row["data"], row["n"]], sort_keys=True)].append(row)
        for key, rows in apart.items():
            found[key].append((group, rows))
    return dict(found)


def curves_of(group: Sequence[tuple[Group, list[results.Row]]]) -> list[Curve]:
    """One curve per group and kind of features, the oldest first."""
    found = []
    for one, rows in group:
        for kind in dict.fromkeys(row["features"] for row in rows):
            own = [row for row in rows if row["features"] == kind]
            rest = pick(one.rows, protocol="corruptions", features=kind)
            clean = [row["value"] for row in rest if row["metric"] == "clean_error"]
            errors = {c: np.mean([row["settings"]["errors"][c] for row in own], axis=0) for c in CORRUPTIONS}
            name = f"{figures.name(kind)}, {one.slug}"
            found.append(Curve(name, float(np.mean(clean)), errors, own, rest))
    found.sort(key=lambda curve: min(row["time"] for row in curve.rows))
    return found


def table(curves: Sequence[Curve]) -> list[list[str]]:
    """Errors in percent: a column per run; the mean, the ratio to the first run, and every corruption."""
    reference = curves[0]
    head = ["error, %", *(curve.name for curve in curves)]
    rows = [head, ["clean", *(cell(pick(curve.rest, metric="clean_error")) for curve in curves)]]
    rows.append(["mean over corruptions", *(cell(curve.rows) for curve in curves)])
    if any(pick(curve.rest, metric="mce") for curve in curves):
        for metric, name in (("mce", "mCE (AlexNet is 100)"), ("relative_mce", "relative mCE")):
            rows.append([name, *(cell(pick(curve.rest, metric=metric)) for curve in curves)])
    if len(curves) > 1:
        base = np.array([reference.errors[c].mean() for c in CORRUPTIONS])
        ratios = [mce(np.stack([curve.errors[c] for c in CORRUPTIONS]), base) for curve in curves]
        rows.append([f"mean ratio, {reference.name} is 100", *(f"{ratio:.1f}" for ratio in ratios)])
    for c in CORRUPTIONS:
        rows.append([c.replace("_", " "), *(f"{curve.errors[c].mean():.1f}" for curve in curves)])
    return rows


def note(said: Mapping[str, Any], curves: Sequence[Curve]) -> str:
    """Where the corrupted images come from, in words."""
    seeds = sorted({row["seed"] for curve in curves for row in curve.rows})
    made = {
        "regenerated": "Images regenerated from the test split by ssljax, so this is not a result on the "
        f"published files: constants of {said.get('constants')}, {said.get('size')} px; frost is "
        f"{said.get('frost')}",
        "as published": "The published images",
    }.get(said["images"], f"Images {said['images']}, so this is not a result on the published files")
    plural = "s" if len(seeds) > 1 else ""
    return f"{made}. Seed{plural} {', '.join(map(str, seeds))}. A line per corruption: mean over severities."


def draw_curves(path: Path, curves: Sequence[Curve]) -> None:
    """Draws a panel per corruption: error against severity, one line per run."""
    figure = Figure(figsize=(11, 6.6), layout="constrained", dpi=100)
    axes = figure.subplots(3, 5, sharex=True, sharey=True)
    highest = max(max(curve.clean, *(values.max() for values in curve.errors.values())) for curve in curves)
    for axis, corruption in zip(axes.flat, CORRUPTIONS, strict=True):
        for i, curve in enumerate(curves):
            values = [curve.clean, *curve.errors[corruption]]
            colour = figures.CLASSES[i % len(figures.CLASSES)]
            axis.plot((0, *SEVERITIES), values, color=colour, linewidth=1.4, marker="o", markersize=3)
        axis.set_title(corruption.replace("_", " "), loc="left", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color("#aaaaaa")
        axis.tick_params(colors=figures.GREY, labelsize=8)
        axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axis.set(xticks=(0, *SEVERITIES), ylim=(0, 1.05 * highest))
    for axis in axes[-1]:
        axis.set_xlabel("severity", color=figures.GREY, fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel("error, %", color=figures.GREY, fontsize=9)
    names = [curve.name for curve in curves]
    figure.legend(axes[0, 0].lines, names, loc="outside upper left", frameon=False, ncols=3, fontsize=9)
    figures.save(figure, path)


def draw_sheet(path: Path, image: np.ndarray) -> None:
    """Draws an image, uint8 [S, S, C], under every corruption: three corruptions in a row of the sheet."""
    width = len(SEVERITIES) + 1
    figure, axes = figures.tiles(5, 3 * width, 15.0, 5.2)
    for i, corruption in enumerate(CORRUPTIONS):
        row, place = i % 5, width * (i // 5)
        figures.draw(axes[row, place], image)
        axes[row, place].set_title(corruption.replace("_", " "), loc="left", fontsize=9)
        for severity in SEVERITIES:
            shown = corrupt(image[None], np.array([0]), corruption, severity)[0]
            figures.draw(axes[row, place + severity], shown)
    figures.save(figure, path)
