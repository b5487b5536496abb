"""A paper's tables beside the results measured here: experiments/*/paper.json as blocks of the report."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssljax import results
from ssljax.pictures.page import Block
from ssljax.pictures.scaling import figure_blocks
from ssljax.pictures.tables import Group, cell, groups, measured
from ssljax.results import Row

Table = Mapping[str, Any]  # a table of paper.json, or a row of one


def paper_blocks(tables: Sequence[Table], own: Sequence[Group], folder: Path) -> list[Block]:
    """The paper's tables: each number beside the one measured here, or beside the command that measures it.

    A table with `ours` has no numbers from a paper: it compares runs made here. A row with `from` reads the
    results of another experiment. A row with `changed` reads those of a preset with these settings changed.
    A table with `figure` is drawn as well, see `scaling`.

    Args:
        tables: the contents of paper.json.
        own: the groups of this experiment.
        folder: the folder of this experiment. The other experiments are beside it.
    """
    blocks = []
    known: dict[str, Sequence[Group]] = {"": own}
    for table in tables:
        for other in {row["from"] for row in table["rows"] if "from" in row} - known.keys():
            known[other] = groups(results.read(folder.parent / other / "results.jsonl"))

        commands: list[str] = []
        body = [header(table)]
        cells = []
        for row in table["rows"]:
            found = [measured(known[row.get("from", "")], match, row) for match in row.get("match", [])]
            body += lines(table, row, found, commands)
            cells.append([rows for rows, _ in found])

        source = "" if table.get("ours", False) else f"Source: {table['source']}."
        text = " ".join(part for part in (table["note"], source) if part)
        blocks += [Block("h2", table["title"]), Block("p", text), Block("table", body)]
        blocks += figure_blocks(table, tables, cells, folder)
        if commands:
            blocks.append(Block("pre", [f"[{i}] {command}" for i, command in enumerate(commands, 1)]))
    return blocks


def header(table: Table) -> list[str]:
    """The header row. Each column of the paper becomes two, unless our numbers stand below the paper's."""
    if table.get("ours", False) or wide(table):
        return ["", *table["columns"], "how"]

    names = [""]
    for column in table["columns"]:
        names += [f"{column}, paper", "here"]
    return [*names, "how"]


def wide(table: Table) -> bool:
    """Whether the table has too many columns to double them."""
    return len(table["columns"]) > 5


def lines(
    table: Table, row: Table, found: Sequence[tuple[Sequence[Row], str]], commands: list[str]
) -> list[list[str]]:
    """One row of the paper's table, as one or two rows here. Adds the row's command to `commands`.

    Args:
        table: the table.
        row: the row.
        found: the measurements that fill each cell, and how they were chosen; see `measured`.
        commands: of the rows above.
    """
    ours = table.get("ours", False)
    numbers = row.get("paper", [None] * len(table["columns"]))
    paper = ["–" if value is None else f"{value:.1f}" for value in numbers]
    here = [cell(rows) for rows, _ in found]
    here += ["–"] * (len(paper) - len(here))

    how = "quoted"
    if "command" in row:
        if row["command"] not in commands:  # several rows may come from one run
            commands.append(row["command"])
        number = f"[{commands.index(row['command']) + 1}]"
        missing = row.get("missing", "not run: " if ours else "needs a TPU: ")
        how = number if any(value != "–" for value in here) else missing + number
    notes = dict.fromkeys(note for _, note in found if note)
    said = "; ".join([how, *notes])

    if ours:
        return [[row["name"], *here, said]]
    if wide(table):
        if how == "quoted":
            return [[f"{row['name']}, paper", *paper, how]]
        return [[f"{row['name']}, paper", *paper, ""], [f"{row['name']}, here", *here, said]]
    pairs = itertools.chain.from_iterable(zip(paper, here, strict=True))
    return [[row["name"], *pairs, said]]
