"""A table of paper.json as a figure: accuracy against the labels used, or against the size of the network.

A table with the key `figure` is drawn as well as written, once one of its cells was measured:

    {"kind": "labels", "labels": {"1 %": 1, "10 %": 10}}     a curve per row, over these columns
    {"kind": "parameters"}                                   a panel per column, a curve per `series` of rows

The figure shows what the table's cells show: means over the seeds, with one standard deviation. What was
measured here has filled markers. The paper's numbers have hollow ones, in panels of their own; a table that
has no such numbers can show those of another one, `"beside": ID`. Columns that `labels` does not name use all
labels in another way, for example for a linear probe. They stand to the right, without a line.

Rows have `parameters`, in millions, for the paper's networks, and in a figure of sizes a `series`, such as
"fine-tuned". The sizes of what was measured are in results.jsonl.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ssljax.pictures.figures import CLASSES, GREY, blank, save, spread_out
from ssljax.pictures.page import Block
from ssljax.pictures.tables import aggregate
from ssljax.results import Row

Table = Mapping[str, Any]  # a table of paper.json, or a row of one
MARKERS = ("o", "s", "^", "D", "v")


class Point(NamedTuple):
    """One cell of a table.

    Attributes:
        x: where it stands: see `label_positions`, or millions of parameters.
        mean: accuracy in percent, over the seeds.
        spread: the standard deviation over the seeds; 0 for a single number.
    """

    x: float
    mean: float
    spread: float


class Curve(NamedTuple):
    """The points of a row or of a series.

    Attributes:
        name: what the reader sees.
        line: the points that a line joins, from left to right.
        apart: further points, without a line.
    """

    name: str
    line: list[Point]
    apart: list[Point]


class Panel(NamedTuple):
    """A part of the figure.

    Attributes:
        title: what stands above it.
        hollow: whether the numbers are those of a paper.
        curves: what it shows.
    """

    title: str
    hollow: bool
    curves: list[Curve]


def figure_blocks(
    table: Table, tables: Sequence[Table], cells: Sequence[Sequence[Sequence[Row]]], folder: Path
) -> list[Block]:
    """The figure of a table, or nothing if it has none or if no cell was measured.

    Args:
        table: a table of paper.json.
        tables: all of them.
        cells: row by row, the measurements behind each cell; see `tables.measured`.
        folder: where to write figure-ID.png.

    Raises:
        ValueError: the table's `figure` is not one that this module can draw.
    """
    if "figure" not in table or not any(any(row) for row in cells):
        return []
    asked = table["figure"]
    beside = checked(table, tables)
    panels, across = KINDS[asked["kind"]]
    here = panels(table, here_values(cells), "here", False)
    paper = panels(beside, paper_values(beside), "the paper", True)
    shown = [*here, *(paper if any(curve.line or curve.apart for p in paper for curve in p.curves) else [])]
    file = f"figure-{table['id']}.png"
    draw(folder / file, shown, across(table, beside), table["title"])

    said = "Filled: measured here, with one standard deviation over the seeds."
    if len(shown) > len(here):
        said += " Hollow: the numbers of the paper."
    if nameless := unsized(table, cells):
        said += f" Not drawn, for their sizes were not recorded: {', '.join(nameless)}."
    return [Block("img", (file, said))]


def checked(table: Table, tables: Sequence[Table]) -> Table:
    """Checks a table's `figure`, and returns the table with the paper's numbers.

    Raises:
        ValueError: the figure is not one that this module can draw; the message says what is missing.
    """
    asked = table["figure"]
    found = [other for other in tables if other["id"] == asked.get("beside", table["id"])]
    wrong = ""
    if asked["kind"] not in KINDS:
        wrong = f"kind must be one of {', '.join(KINDS)}"
    elif not found:
        wrong = "beside must be the id of another table"
    elif asked["kind"] == "labels" and not all(
        set(t["figure"]["labels"]) & {*t["columns"]} for t in (table, *found)
    ):
        wrong = "labels must name columns of the table"
    elif asked["kind"] == "parameters" and not all(
        "series" in row for t in (table, *found) for row in t["rows"]
    ):
        wrong = "each row must have a series"
    if wrong:
        raise ValueError(f"paper.json: the figure of table {table['id']!r} is {asked}, but {wrong}")
    return found[0]


# ------------------------------------------------------------------------------------------ the cells' values

# Per row and column: (parameters in millions, or 0; mean; standard deviation), or None for an empty cell.
Values = list[list[tuple[float, float, float] | None]]


def here_values(cells: Sequence[Sequence[Sequence[Row]]]) -> Values:
    """What was measured here."""

    def one(rows: Sequence[Row]) -> tuple[float, float, float] | None:
        if not rows:
            return None
        mean, spread, _ = aggregate(rows)
        return max(row["parameters"] for row in rows) / 1e6, mean, spread

    return [[one(rows) for rows in row] for row in cells]


def paper_values(table: Table) -> Values:
    """The paper's numbers."""
    found: Values = []
    for row in table["rows"]:
        size = float(row.get("parameters", 0))
        numbers = row.get("paper", [None] * len(table["columns"]))
        found.append([None if value is None else (size, float(value), 0.0) for value in numbers])
    return found


def unsized(table: Table, cells: Sequence[Sequence[Sequence[Row]]]) -> list[str]:
    """The rows that were measured, but before results.jsonl held the size of a network."""
    if table["figure"]["kind"] != "parameters":
        return []
    rows = zip(table["rows"], here_values(cells), strict=True)
    return [row["name"] for row, values in rows if any(cell and not cell[0] for cell in values)]


# ----------------------------------------------------------------------------------------------- the panels


def label_positions(table: Table) -> dict[str, float]:
    """Where each column of a figure of labels stands: at the logarithm of its number of labels.

    The columns that `labels` does not name follow to the right, a decade apart.
    """
    labels = table["figure"]["labels"]
    found = {column: math.log10(labels[column]) for column in table["columns"] if column in labels}
    end = max(found.values())
    others = [column for column in table["columns"] if column not in labels]
    return {**found, **{column: end + 1 + i for i, column in enumerate(others)}}


def label_panels(table: Table, values: Values, title: str, hollow: bool) -> list[Panel]:
    """One panel with a curve per row, from the smallest network to the largest."""
    at = label_positions(table)
    named = table["figure"]["labels"]
    curves = []
    for row, cells in zip(table["rows"], values, strict=True):
        points = {
            column: Point(at[column], cell[1], cell[2])
            for column, cell in zip(table["columns"], cells, strict=False)
            if cell is not None
        }
        line = sorted(point for column, point in points.items() if column in named)
        apart = sorted(point for column, point in points.items() if column not in named)
        size = max((cell[0] for cell in cells if cell is not None), default=0.0)
        curves.append((size, Curve(plain(row["name"]), line, apart)))
    order = sorted(range(len(curves)), key=lambda i: (curves[i][0], i))
    shown = [curves[i][1] for i in order if curves[i][1].line or curves[i][1].apart]
    return [Panel(title, hollow, shown)]


def parameter_panels(table: Table, values: Values, title: str, hollow: bool) -> list[Panel]:
    """A panel per column with a curve per series, from the smallest network to the largest."""
    panels = []
    for number, column in enumerate(table["columns"]):
        series: dict[str, list[Point]] = {row["series"]: [] for row in table["rows"]}
        for row, cells in zip(table["rows"], values, strict=True):
            cell = cells[number] if number < len(cells) else None
            if cell is not None and cell[0]:
                series[row["series"]].append(Point(*cell))
        curves = [Curve(name, sorted(points), []) for name, points in series.items()]
        panels.append(Panel(f"{title}: {column}", hollow, curves))
    return panels


def plain(name: str) -> str:
    """The name of a row without Markdown's bold."""
    return name.replace("**", "")


# ---------------------------------------------------------------------------------------------- the drawing


class Across(NamedTuple):
    """The horizontal axes of a figure.

    Attributes:
        label: what they show.
        ticks: position -> text, for the panels of what was measured here and for those of the paper; empty
            for a logarithmic axis.
        columns: panels side by side.
    """

    label: str
    ticks: tuple[Mapping[float, str], Mapping[float, str]]
    columns: int


def across_labels(table: Table, beside: Table) -> Across:
    here, paper = ({at: name for name, at in label_positions(one).items()} for one in (table, beside))
    return Across("labels used", (here, paper), 2)


def across_parameters(table: Table, beside: Table) -> Across:
    return Across("parameters of the backbone, millions", ({}, {}), max(2, len(table["columns"])))


KINDS = {"labels": (label_panels, across_labels), "parameters": (parameter_panels, across_parameters)}


def draw(path: Path, panels: Sequence[Panel], across: Across, title: str) -> None:
    """Writes the figure.

    Args:
        path: PNG to write.
        panels: row by row, `across.columns` in each.
        across: the horizontal axes.
        title: above the figure.
    """
    columns = min(across.columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    longest = max(len(panel.curves) for panel in panels)
    height = max(3.4, 1.2 + 0.3 * longest)
    figure, axes = blank(5.8 * columns, height * rows, columns, rows)
    for axis, panel in zip(axes, panels, strict=True):
        own = styles(panel, panels)
        for curve in panel.curves:
            draw_curve(axis, curve, *own[curve.name], panel.hollow)
        horizontal(axis, across, panel)
        write_names(axis, panel, own, 13 / (72 * 0.8 * height))
        axis.set_ylabel("accuracy, %", color=GREY)
        axis.set_title(panel.title, loc="left", fontsize=10)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    save(figure, path)


def styles(panel: Panel, panels: Sequence[Panel]) -> dict[str, tuple[str, str]]:
    """The colour and the marker of each curve; a name that other panels have too looks alike in all of them.

    A few curves have colours that are easy to tell apart. Many have shades, from dark to light.
    """
    mine = {curve.name for curve in panel.curves}
    lists = [[curve.name for curve in other.curves] for other in panels]
    names = max((other for other in lists if mine <= set(other)), key=len)
    if len(names) <= len(MARKERS):
        return {name: (CLASSES[i], MARKERS[i]) for i, name in enumerate(names)}
    shade = matplotlib.colormaps["viridis"]
    return {name: (to_hex(shade(0.85 * i / (len(names) - 1))), "o") for i, name in enumerate(names)}


def draw_curve(axis: Axes, curve: Curve, colour: str, marker: str, hollow: bool) -> None:
    """Draws one curve: its line, its bars of one standard deviation, and the points apart."""
    fill = "white" if hollow else colour
    for points, line in ((curve.line, "--" if hollow else "-"), (curve.apart, "none")):
        if points:
            axis.plot(
                [point.x for point in points],
                [point.mean for point in points],
                color=colour,
                linestyle=line,
                linewidth=1.4,
                marker=marker,
                markersize=5,
                markerfacecolor=fill,
            )
        for x, mean, spread in points:
            if spread:
                axis.errorbar(x, mean, spread, fmt="none", ecolor=colour, capsize=2, elinewidth=1.0)


def horizontal(axis: Axes, across: Across, panel: Panel) -> None:
    """Labels the horizontal axis, and makes it logarithmic unless its ticks are given."""
    axis.set_xlabel(across.label, color=GREY)
    ticks = across.ticks[1 if panel.hollow else 0]
    if ticks:
        used = sorted({point.x for curve in panel.curves for point in (*curve.line, *curve.apart)})
        axis.set_xticks(used, [ticks[x] for x in used])
        axis.set_xlim(used[0] - 0.15, used[-1] + 0.15)
        return
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def write_names(axis: Axes, panel: Panel, own: Mapping[str, tuple[str, str]], line: float) -> None:
    """Writes the name of each curve to the right of the panel, at the height of its last point.

    Args:
        axis: of the panel.
        panel: its curves.
        own: their styles.
        line: the height of a line of text, as a share of the panel's.
    """
    ends = {curve.name: (curve.apart or curve.line)[-1].mean for curve in panel.curves if any(curve[1:])}
    low, high = axis.get_ylim()
    heights = spread_out(ends, line * (high - low))
    above = max(0.0, max(heights.values(), default=low) - high)
    for name, y in heights.items():
        axis.annotate(
            name,
            (1, y - above),
            (6, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=9,
            annotation_clip=False,
            color=own[name][0],
        )
