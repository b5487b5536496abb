"""What a drill is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Drill(NamedTuple):
    """Something that goes wrong with a run, and what must follow.

    Attributes:
        name: what happens.
        follows: what must follow.
        run: an empty folder -> what was seen, in a few words. Raises AssertionError, with what was seen, if
            something else followed.
    """

    name: str
    follows: str
    run: Callable[[Path], str]


def expect(holds: bool, seen: str) -> None:
    """Raise an AssertionError that says what was seen, unless what must hold does."""
    if not holds:
        raise AssertionError(seen)
