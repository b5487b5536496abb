"""The figure of `ssljax compare`: the curves of several groups of runs, and what was measured on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ssljax.pictures.figures import CLASSES, CURVES, GREY, blank, name, save

Rows = Sequence[Mapping[str, Any]]  # the lines of a metrics.jsonl
Style = tuple[str, Literal["-", "--", ":"]]  # a colour and a kind of line
DASHES: tuple[Literal["-", "--", ":"], ...] = ("-", "--", ":")  # the next once all colours are used


class Curves(NamedTuple):
    """What is drawn of one group.

    Attributes:
        name: the group's name.
        method: its method; losses of different methods are drawn apart.
        runs: the lines of each run's metrics.jsonl.
        points: name of a protocol -> (mean, standard deviation) of its accuracy, in percent.
    """

    name: str
    method: str
    runs: Sequence[Rows]
    points: Mapping[str, tuple[float, float]]


def epochs(rows: Rows) -> float:
    """How many epochs a run has logged; 0 for none."""
    return max((row["epoch"] for row in rows if "epoch" in row), default=0.0)


def curve(rows: Rows, metric: str) -> tuple[list[float], list[float]]:
    """The epochs and the values at which a metric was logged.

    A line without an epoch, as of kNN, gets it from its step.
    """
    known = [(row["step"], row["epoch"]) for row in rows if row.get("epoch")]
    per_step = known[-1][1] / known[-1][0] if known else 1.0
    found = [(row["step"] * per_step, row[metric]) for row in rows if row.get(metric) is not None]
    return [x for x, _ in found], [y for _, y in found]


def draw(path: Path, groups: Sequence[Curves]) -> None:
    """Draws one panel per metric and, if anything was measured, one of the protocols.

    A group has one colour; each of its seeds is a line.

    Args:
        path: PNG to write.
        groups: what to draw.
    """
    methods = list(dict.fromkeys(group.method for group in groups))
    panels: list[tuple[str, str]] = []
    for metric in CURVES:
        for method in methods if metric == "loss" else [""]:
            if any(_logged(group, metric) for group in groups if method in ("", group.method)):
                panels.append((metric, method))
    protocols = list(dict.fromkeys(text for group in groups for text in group.points))
    count = max(len(panels) + bool(protocols), 1)

    columns = 2 if count in (2, 4) else min(count, 3)
    lines = -(-count // columns)
    height = 3.1 * lines + 0.25 * len(groups) + 0.2
    figure, axes = blank(max(4.4 * columns, 6.0), height, columns, lines)
    styles: dict[str, Style] = {
        group.name: (CLASSES[i % len(CLASSES)], DASHES[i // len(CLASSES) % len(DASHES)])
        for i, group in enumerate(groups)
    }
    for axis, (metric, method) in zip(axes, panels, strict=False):
        of = f"{name(method)}: " if len(methods) > 1 and method else ""
        axis.set_title(f"{of}{CURVES[metric]}", loc="left", fontsize=10)
        axis.set_xlabel("epoch", color=GREY)
        for group in groups:
            if method in ("", group.method):
                _lines(axis, group, metric, styles[group.name])
    if protocols:
        _points(axes[len(panels)], groups, protocols, styles)
    for axis in axes[len(panels) + bool(protocols) :]:
        axis.set_axis_off()

    handles = [Line2D([], [], color=c, linestyle=s, label=key) for key, (c, s) in styles.items()]
    figure.legend(handles=handles, loc="outside lower left", frameon=False, fontsize=9)
    save(figure, path)


def _logged(group: Curves, metric: str) -> bool:
    return any(row.get(metric) is not None for rows in group.runs for row in rows)


def _lines(axis: Axes, group: Curves, metric: str, style: Style) -> None:
    """One line per seed."""
    colour, dashes = style
    for rows in group.runs:
        x, y = curve(rows, metric)
        marker = "o" if metric == "knn" or len(x) == 1 else ""
        axis.plot(x, y, color=colour, linestyle=dashes, linewidth=1.4, marker=marker, markersize=4, alpha=0.8)


def _points(
    axis: Axes, groups: Sequence[Curves], protocols: Sequence[str], styles: Mapping[str, Style]
) -> None:
    """The mean of each group under each protocol, with its standard deviation."""
    step = 0.6 / max(len(groups), 1)
    for i, group in enumerate(groups):
        x = [
            p + (i - (len(groups) - 1) / 2) * step for p, text in enumerate(protocols) if text in group.points
        ]
        mean = [group.points[text][0] for text in protocols if text in group.points]
        std = [group.points[text][1] for text in protocols if text in group.points]
        axis.errorbar(x, mean, std, color=styles[group.name][0], fmt="o", markersize=5, linewidth=1.2)
    axis.set_xticks(range(len(protocols)), protocols, rotation=20 if len(protocols) > 3 else 0)
    axis.set_xlim(-0.5, len(protocols) - 0.5)
    axis.set_title("held-out accuracy, %", loc="left", fontsize=10)
