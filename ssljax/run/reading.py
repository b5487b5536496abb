"""Reading checkpoints: the newest that is not damaged, and why another was passed over.

A checkpoint is damaged if it cannot be read, or if what is read is not what was written, see `digest`. An
error of the storage (permissions, connections, memory) proves nothing and stops the command.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from ssljax.run import digest
from ssljax.types import Pytree

T = TypeVar("T")

# What TensorStore's messages begin with when a storage cannot be read.
STORAGE = ("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
STORAGE_ERRNO = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)


class Damaged(Exception):
    """A checkpoint can be read, and is not what was written."""


class Mismatch(ValueError):
    """A checkpoint is intact and belongs to another network."""


class Stored(NamedTuple):
    """What a checkpoint says about its leaves, by their paths.

    Attributes:
        shapes: of every leaf.
        digests: of every leaf as it was written; empty if it was written without.
    """

    shapes: dict[str, tuple[int, ...]]
    digests: dict[str, str]


def steps(directory: epath.Path) -> list[int]:
    """The steps that have a complete checkpoint in a folder, in order. None if there is no folder.

    Raises:
        ValueError: the folder cannot be read.
    """
    try:
        found = ocp.path.step.standard_name_format().find_all(directory)
        return sorted(each.step for each in found)
    except OSError as error:
        raise ValueError(_not_now(directory, error)) from error


def newest(directory: epath.Path, read: Callable[[epath.Path], T]) -> tuple[T | None, list[int]]:
    """Read the newest checkpoint that is not damaged. Log each damaged one.

    Args:
        directory: the folder of the checkpoints.
        read: the folder of one checkpoint -> what is wanted of it.

    Returns:
        what `read` returned, None if there is no checkpoint; and the steps of the damaged ones before it.

    Raises:
        ValueError: every checkpoint is damaged, or the storage could not be read.
        Mismatch: as `read` raises it.
    """
    _hush_reads_in_flight()
    damaged: list[int] = []
    for step in reversed(steps(directory)):
        folder = directory / str(step)
        try:
            return read(folder), damaged
        except Mismatch:
            raise
        except Exception as error:  # Orbax, TensorStore and the file system each raise their own
            if of_storage(error):
                raise ValueError(_not_now(folder, error)) from error
            logging.error(
                "the checkpoint of step %d cannot be read (%s). The one before it is tried.",
                step,
                _said(error),
            )
            damaged.append(step)
    if damaged:
        raise ValueError(
            f"none of the checkpoints in {directory} can be read (steps "
            f"{', '.join(map(str, sorted(damaged)))}). Put back a copy of one of them, or begin anew with "
            "another --workdir"
        )
    return None, []


def _hush_reads_in_flight() -> None:
    """Keep off the terminal what Orbax's other reads say after one of them has failed.

    They end later, in a loop that is closed by then, and Python would print a traceback for each.
    """
    before = sys.unraisablehook
    if getattr(before, "hushes_orbax", False):
        return

    def hook(what: sys.UnraisableHookArgs) -> None:
        code = getattr(what.object, "cr_code", None)
        of_orbax = code is not None and "orbax" in code.co_filename
        if not of_orbax and str(what.exc_value) != "Event loop is closed":
            before(what)

    hook.hushes_orbax = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook


def describe(folder: epath.Path) -> Stored:
    """What a checkpoint says about its leaves. They are not read.

    Raises:
        Damaged: its parts contradict each other.
        Exception: it cannot be read.
    """
    read_metrics(folder)
    metadata = ocp.PyTreeCheckpointHandler().metadata(folder / "default")
    shapes = digest.shapes(metadata.tree)
    written = (metadata.custom_metadata or {}).get("leaves")
    if written is None:
        return Stored(shapes, {})
    if shapes != {name: tuple(shape) for name, (shape, _) in written.items()}:
        raise Damaged("the names or shapes of its leaves differ from what was written")
    return Stored(shapes, {name: found for name, (_, found) in written.items()})


def described(state: Pytree) -> dict:
    """What `describe` reads, for the metadata that Orbax keeps with the leaves."""
    shapes = digest.shapes(state)
    return {"leaves": {name: (shapes[name], found) for name, found in digest.digests(state).items()}}


def read_metrics(folder: epath.Path) -> None:
    """Read the metric by which the best checkpoint is chosen, where there is one.

    Raises:
        Damaged: the file is not JSON.
    """
    file = folder / "metrics" / "metrics"
    if not file.exists():
        return
    try:
        json.loads(file.read_text())
    except ValueError as error:
        raise Damaged(f"{file} is not JSON") from error


def read_leaves(folder: epath.Path, like: Pytree, digests: Mapping[str, str]) -> Pytree:
    """Read the leaves of `like` from a checkpoint that may hold more.

    Args:
        folder: of the checkpoint.
        like: shapes, dtypes and shardings.
        digests: see `Stored`.

    Raises:
        Damaged: a leaf is not what was written (names it).
        Exception: it cannot be read.
    """
    each = ocp.checkpoint_utils.construct_restore_args(like)
    arguments = ocp.args.PyTreeRestore(like, restore_args=each, partial_restore=True)
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.restore(folder / "default", args=arguments)
    wrong = digest.changed(tree, digests) if digests else []
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise Damaged(f"its digest shows that {wrong[0]} is not what was written{more}")
    return tree


def of_storage(error: Exception) -> bool:
    """Whether an error is one of permissions, connections, memory or the disk, not of what a file holds."""
    if isinstance(error, (PermissionError, MemoryError, ConnectionError, TimeoutError)):
        return True
    if isinstance(error, OSError) and error.errno in STORAGE_ERRNO:
        return True
    return any(word in str(error) for word in STORAGE)


def _not_now(path: epath.Path, error: Exception) -> str:
    return (
        f"the checkpoint {path} could not be read now ({_said(error)}). That says nothing about what is in "
        "it, so nothing was moved or begun anew. Look at permissions, credentials, memory and the disk; "
        "then the same command goes on"
    )


def _said(error: Exception) -> str:
    """An error's first line."""
    if isinstance(error, Damaged):
        return str(error)
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
