"""A paper's tables beside what was measured here: experiments/*/paper.json as blocks of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssljax import results
from ssljax.pictures.page import Block
from ssljax.pictures.tables import Group, cell, groups, measured

Table = Mapping[str, Any]  # or a row of one, as paper.json has it


def paper_blocks(tables: Sequence[Table], own: Sequence[Group], folder: Path) -> list[Block]:
    """The paper's tables, each number beside the one measured here, or the command that would measure it.

    A table with `ours` has no paper's numbers: it compares runs made here. A row with `from` reads the
    results of another experiment, a row with `changed` those of a preset in which these settings were
    changed.

    Args:
        tables: of paper.json.
        own: the groups of this experiment.
        folder: of this experiment; the others lie beside it.
    """
    blocks = []
    known: dict[str, Sequence[Group]] = {"": own}
    for table in tables:
        for other in {row["from"] for row in table["rows"] if "from" in row} - known.keys():
            known[other] = groups(results.read(folder.parent / other / "results.jsonl"))
        commands: list[str] = []
        body = [header(table)]
        for row in table["rows"]:
            body += lines(table, row, known[row.get("from", "")], commands)
        source = "" if table.get("ours", False) else f"Source: {table['source']}."
        text = " ".join(part for part in (table["note"], source) if part)
        blocks += [Block("h2", table["title"]), Block("p", text), Block("table", body)]
        if commands:
            blocks.append(Block("pre", [f"[{i}] {command}" for i, command in enumerate(commands, 1)]))
    return blocks


def header(table: Table) -> list[str]:
    """The first row: the paper's number and the one made here side by side, or below each other."""
    if table.get("ours", False) or wide(table):
        return ["", *table["columns"], "how"]
    return ["", *(word for column in table["columns"] for word in (f"{column}, paper", "here")), "how"]


def wide(table: Table) -> bool:
    """Has it too many columns to double them?"""
    return len(table["columns"]) > 5


def lines(table: Table, row: Table, known: Sequence[Group], commands: list[str]) -> list[list[str]]:
    """One row of the paper's table, which is one or two rows here. Adds its command to `commands`."""
    numbers = row.get("paper", [None] * len(table["columns"]))
    paper = ["–" if value is None else f"{value:.1f}" for value in numbers]
    found = [measured(known, match, row) for match in row.get("match", [])]
    here = [cell(rows) for rows, _ in found]
    here += ["–"] * (len(paper) - len(here))
    how = "quoted"
    if "command" in row:
        if row["command"] not in commands:  # several rows may come from one run
            commands.append(row["command"])
        number = f"[{commands.index(row['command']) + 1}]"
        missing = row.get("missing", "not run: " if table.get("ours", False) else "needs a TPU: ")
        how = number if any(value != "–" for value in here) else missing + number
    said = "; ".join([how, *dict.fromkeys(note for _, note in found if note)])
    if table.get("ours", False):
        return [[row["name"], *here, said]]
    if wide(table):
        first = [f"{row['name']}, paper", *paper, how if how == "quoted" else ""]
        return [first] if how == "quoted" else [first, [f"{row['name']}, here", *here, said]]
    return [[row["name"], *(value for pair in zip(paper, here, strict=True) for value in pair), said]]
