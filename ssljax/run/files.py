"""The files that describe a run: written whole or not at all, and read with an error that names them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from etils import epath

NEW_CONFIG = (
    "Put back a copy of it, or delete it and start `ssljax train` with the settings of the run, which writes "
    "it anew (run.json has the command)"
)


def replace(file: epath.Path | Path, text: str) -> None:
    """Write a file so that a reader, or a crash at any moment, finds the old or the new text and no mixture.

    Args:
        file: local, or on a bucket, which shows a file only when it is complete.
        text: all of its new content.
    """
    if "://" in str(file):
        file.write_text(text)
        return
    unfinished = f"{os.fspath(file)}.{os.getpid()}"
    with open(unfinished, "w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())  # otherwise the new name may reach the disk before the content does
    os.replace(unfinished, file)


def read_config(file: epath.Path | Path) -> dict[str, Any]:
    """What a config.json holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty or damaged; the message names it and says what to do.
    """
    return read_object(file, NEW_CONFIG)


def read_object(file: epath.Path | Path, way_out: str) -> dict[str, Any]:
    """What a JSON file of one object holds.

    Args:
        file: its path.
        way_out: what the user can do if it is damaged, a sentence without the full stop.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty or damaged.
    """
    text = file.read_bytes().decode(errors="replace")
    found, wrong = _object(text)
    if wrong:
        raise ValueError(f"{file} {wrong}. {way_out}.")
    return found


def read_lines(file: epath.Path | Path) -> list[dict[str, Any]]:
    """What a file of one JSON object per line holds.

    A damaged last line is left out: its writer was interrupted, or is writing it now.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another line is damaged; the message names it.
    """
    lines = file.read_bytes().decode(errors="replace").splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        row, wrong = _object(line)
        if not wrong:
            rows.append(row)
        elif number < len(lines):
            raise ValueError(f"{file}, line {number} of {len(lines)}, {wrong}. Delete that line.")
    return rows


def _object(text: str) -> tuple[dict[str, Any], str]:
    """The object in a JSON text, and what is wrong with the text; "" if nothing is."""
    if not text.strip():
        return {}, "is empty"
    try:
        found = json.loads(text)
    except ValueError as error:
        return {}, f"is damaged or half-written ({error})"
    if not isinstance(found, dict):
        return {}, "is damaged (it holds no JSON object)"
    return found, ""
