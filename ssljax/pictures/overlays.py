"""Draws boxes and masks over images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ssljax.data import annotated, sampler
from ssljax.data.annotate import IGNORED
from ssljax.data.source import Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TIMES = 4  # how often an image is drawn as training sees it
OPACITY = 0.55  # of a mask
TOP = 0.06  # of an image: above a box that begins there is no room for its name


class Cell(NamedTuple):
    """One picture.

    Attributes:
        image: uint8 [H, W, 3].
        title: the line above it.
        boxes: [G, 4], x1, y1, x2, y2 in pixels of the image.
        names: what is written on the boxes.
        classes: int [G], which gives a box its colour.
        mask: uint8 [H, W], or None.
    """

    image: np.ndarray
    title: str = ""
    boxes: np.ndarray = np.zeros((0, 4))
    names: Sequence[str] = ()
    classes: Sequence[int] = ()
    mask: np.ndarray | None = None


def training(config: ConfigDict, source: Source, rows: int) -> list[list[Cell]]:
    """The images of the first batch: as they are stored, then as TIMES passes see them.

    The second picture of a row is that of the first batch, pixel for pixel.

    Args:
        config: of an annotated run.
        source: its training split.
        rows: how many images.
    """
    portrait = annotated.in_portrait_bucket(source, config, training=True)
    positions, passes = sampler.oriented(config.seed, 0, portrait, batch_size=config.batch_size)
    return [
        [
            _stored(source, int(i)),
            *(_seen(source, int(i), config, int(first) + later) for later in range(TIMES)),
        ]
        for i, first in zip(positions[:rows], passes[:rows], strict=True)
    ]


def _stored(source: Source, position: int) -> Cell:
    image = annotated.pixels(source, position)
    cell = Cell(image, f"{Path(source.describe(position)).name}, {image.shape[1]} x {image.shape[0]}")
    if source.mask_of is not None:
        return _masked(cell, annotated.with_mask(source, position)[1], source.class_names)
    targets = source.targets
    return _boxed(cell, targets["boxes"][position], targets["classes"][position], source.class_names)


def _seen(source: Source, position: int, config: ConfigDict, number: int) -> Cell:
    example = annotated.training_example(source, position, config, number)
    draw = annotated.draws(config.seed, number, int(source.index[position]))
    height, width = example["size"]
    words = f"{width} x {height}" + (", mirrored" if annotated.mirrored(config, draw) else "")
    cell = Cell(example["image"], words)
    if "mask" in example:
        return _masked(cell, example["mask"], source.class_names)
    return _boxed(cell, example["boxes"], example["classes"], source.class_names)


def _boxed(cell: Cell, boxes: np.ndarray, classes: np.ndarray, names: Sequence[str]) -> Cell:
    there = classes >= 0
    return cell._replace(
        boxes=boxes[there], names=[names[c] for c in classes[there]], classes=classes[there].tolist()
    )


def _masked(cell: Cell, mask: np.ndarray, names: Sequence[str]) -> Cell:
    there = [names[c] for c in np.unique(mask) if 0 < c < IGNORED]
    return cell._replace(mask=mask, title=f"{cell.title}\n{', '.join(there)}" if there else cell.title)


def sheet(path: Path, heading: str, rows: Sequence[Sequence[Cell]]) -> None:
    """Draws a grid of pictures into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(rows[0]), 2.9 * len(rows) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for line, cells in zip(grid, rows, strict=True):
        for axes, cell in zip(line, cells, strict=True):
            show(axes, cell)
    figure.suptitle(heading, fontsize=11)
    figure.savefig(path, dpi=100)


def show(axes: Axes, cell: Cell) -> None:
    """Draws one picture."""
    from matplotlib import patheffects
    from matplotlib.patches import Rectangle

    image = cell.image if cell.mask is None else over(cell.image, cell.mask)
    axes.imshow(image, interpolation="nearest")
    axes.set_title(cell.title, fontsize=8)
    axes.set_axis_off()
    outline = [patheffects.withStroke(linewidth=1.0, foreground="black")]
    for (x1, y1, x2, y2), name, number in zip(cell.boxes, cell.names, cell.classes, strict=True):
        shade = colour(number)
        corner = (x1 - 0.5, y1 - 0.5)  # Matplotlib has the middle of the first pixel at 0
        axes.add_patch(Rectangle(corner, x2 - x1, y2 - y1, fill=False, edgecolor=shade, linewidth=1.4))
        side = "top" if y1 < TOP * len(image) else "bottom"  # inside the box where there is no room above it
        axes.text(*corner, name, fontsize=7, color=shade, va=side, path_effects=outline, clip_on=True)


def over(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An image under its mask: classes in their colours, the background clear, what has no class white."""
    colours = np.array([colour(number) for number in range(IGNORED)] + [(1.0, 1.0, 1.0)])[mask]
    opacity = np.where(mask == 0, 0.0, OPACITY)[..., None]
    mixed = image * (1.0 - opacity) + 255.0 * colours * opacity
    return np.rint(mixed).astype(np.uint8)


def colour(number: int) -> tuple[float, float, float]:
    """The colour of a class: neighbours in number are far apart in hue."""
    from colorsys import hsv_to_rgb

    return hsv_to_rgb(number * 0.381966 % 1.0, 0.85 if number % 2 else 0.6, 1.0)
