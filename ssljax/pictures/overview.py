"""One line per method: the table of the main README, out of every experiment's results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssljax import results
from ssljax.pictures.page import Block
from ssljax.pictures.tables import Group, cell, groups, measured

HEADER = ["", "digits: kNN", "linear", "own head", "ImageNet: the paper", "here", "read"]
PROTOCOLS = ("knn", "linear_lbfgs", "classifier")  # of the columns "kNN", "linear" and "own head"

Line = Mapping[str, Any]  # one entry of methods.json


def overview(folder: Path) -> Block:
    """The table of methods: what each measures on the digits here, and on ImageNet in its paper.

    No number is typed: those measured here come from the results.jsonl of the experiments, those of the
    papers from their paper.json.

    Args:
        folder: of the experiments; its methods.json has one entry per line: `name` (Markdown), `read`
            (Markdown, links to the files), and unless nothing is here yet `experiment` (a folder), `features`
            and `preset` of the line's runs, and `headline`, a row of the paper's tables: `table`, `row` and
            `column`.

    Raises:
        ValueError: a headline names a table, row or column that paper.json does not have.
    """
    lines = json.loads((folder / "methods.json").read_text())
    names = dict.fromkeys(line["experiment"] for line in lines if "experiment" in line)
    known = {name: groups(results.read(folder / name / "results.jsonl")) for name in names}
    return Block("table", [HEADER, *(_cells(line, folder, known) for line in lines)])


def _cells(line: Line, folder: Path, known: Mapping[str, list[Group]]) -> list[str]:
    """One row of the table."""
    if "experiment" not in line:
        return [line["name"], *["–"] * (len(HEADER) - 2), line["read"]]
    own = known[line["experiment"]]
    digits = [_here(own, line, protocol) for protocol in PROTOCOLS]
    if "headline" not in line:
        return [line["name"], *digits, "–", "–", line["read"]]
    row, number, match = _headline(line["headline"], folder / line["experiment"] / "paper.json")
    found, _ = measured(own, match, row)
    here = cell(found) if found else "not run"
    return [line["name"], *digits, f"{number:.1f}", here, line["read"]]


def _here(own: list[Group], line: Line, protocol: str) -> str:
    """What a protocol gave on this line's preset, by mean and deviation over its seeds."""
    match = {"protocol": protocol, "features": line["features"], "metric": "top1", "labels_per_class": 0}
    found, _ = measured(own, match, {"preset": line["preset"]})
    return cell(found)


def _headline(headline: Mapping[str, str], file: Path) -> tuple[Line, float, Line]:
    """The row of a paper's table, the number in it, and what fills its cell here."""
    for table in json.loads(file.read_text()):
        if table["id"] != headline["table"] or headline["column"] not in table["columns"]:
            continue
        column = table["columns"].index(headline["column"])
        for row in table["rows"]:
            if row["name"] == headline["row"]:
                return row, row["paper"][column], row["match"][column]
    raise ValueError(
        f"{file} has no table {headline['table']!r} with a row {headline['row']!r} and a column "
        f"{headline['column']!r}: correct the headline in methods.json"
    )
