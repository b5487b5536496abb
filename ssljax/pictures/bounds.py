"""What pairs of views tell about each other, as a run of CMC has logged it: log(k) - L, in nats.

It is a lower bound of the mutual information of the two views' embeddings, and cannot be above log(k), where
k is the number of negatives.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssljax import models
from ssljax.pictures.figures import CLASSES, GREY, blank, name_ends, save
from ssljax.pictures.page import Block


class Curve(NamedTuple):
    """The bound of one pair of views during one run.

    Attributes:
        pair: the two views, for readers.
        steps, nats: its points.
        ceiling: log(k).
    """

    pair: str
    steps: list[float]
    nats: list[float]
    ceiling: float


def bound_curves(config: Mapping[str, Any], rows: Sequence[Mapping[str, float]]) -> list[Curve]:
    """The curves of one run, in the order of `model.split`; none if it has logged no bound.

    Args:
        config: dotted key -> value.
        rows: the lines of its metrics.jsonl.
    """
    split = [models.view_name(view) for view in config.get("model.split", ())]
    found = []
    for first, second in itertools.combinations(split, 2):
        points = [(row["step"], row[key]) for row in rows if (key := f"bound_{first}_{second}") in row]
        if points:
            negatives = config.get("bank.negatives") or config["batch_size"] - 1
            steps, nats = (list(values) for values in zip(*points, strict=True))
            found.append(Curve(f"{first}, {second}", steps, nats, math.log(negatives)))
    return found


def bound_blocks(
    slug: str,
    title: str,
    runs: Sequence[tuple[Mapping[str, Any], Sequence[Mapping[str, float]]]],
    folder: Path,
) -> list[Block]:
    """The figure of some runs, each a config and its log; nothing if none has logged a bound.

    Args:
        slug: names the file, bounds-SLUG.png.
        title: of the figure.
        runs: the config (dotted key -> value) and the lines of metrics.jsonl of each.
        folder: where to write.
    """
    curves = [curve for config, rows in runs for curve in bound_curves(config, rows)]
    if not curves:
        return []
    file = f"bounds-{slug}.png"
    draw(folder / file, curves, title)
    text = (
        "What the embeddings of two views tell about each other, at least: log(k) - L in nats, a line per "
        "run. The dotted line is log(k), above which the bound cannot rise"
    )
    return [Block("img", (file, text))]


def draw(path: Path, curves: Sequence[Curve], title: str) -> None:
    """Draws the bound of each pair against the step, one line per run, with the pair's name at the right.

    Args:
        path: PNG to write.
        curves: of one run or several.
        title: title of the figure.
    """
    pairs = list(dict.fromkeys(curve.pair for curve in curves))
    colours = {pair: CLASSES[i % len(CLASSES)] for i, pair in enumerate(pairs)}
    figure, (axis,) = blank(6.4, 3.6)
    for curve in curves:
        axis.plot(curve.steps, curve.nats, color=colours[curve.pair], linewidth=1.4)
    for ceiling in sorted({curve.ceiling for curve in curves}):
        axis.axhline(ceiling, color=GREY, linewidth=0.9, linestyle=":")
    ends = {
        pair: float(np.mean([curve.nats[-1] for curve in curves if curve.pair == pair])) for pair in pairs
    }
    name_ends(axis, ends, colours)
    axis.set_xlabel("step", color=GREY)
    axis.set_ylabel("log(k) - L, nats", color=GREY)
    axis.set_title(f"{title}: information shared by views", loc="left", fontsize=10)
    save(figure, path)
