"""Whether a start goes on with the run in its folder, and the record that the start leaves in run.json."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from ssljax.config import differences
from ssljax.data import change
from ssljax.results import commit, versions
from ssljax.run import files
from ssljax.types import Facts

# Settings, or whole sections, that may change between two starts of the same run. Where on_bad_image="error"
# has ended a run, "skip" goes on with the same stream, in which only unreadable images are replaced.
HARMLESS = (
    "log_every",
    "eval_every_epochs",
    "checkpoint",
    "evaluate",
    "name",
    "preset",
    "sharding",
    "data.on_bad_image",
)

# What a start leaves in the folder before it trains.
DESCRIBED = {"config.json", "run.json", "data.json", "lock", "checkpoints", "train.log"}


def harmless(key: str) -> bool:
    """Whether a setting may change between two starts of the same run."""
    return any(key == name or key.startswith(f"{name}.") for name in HARMLESS)


def begun(folder: epath.Path) -> bool:
    """Whether there is more in a run's folder than what a start describes before it trains anything."""
    found = {file.name for file in folder.iterdir()} - DESCRIBED
    checkpoints = folder / "checkpoints"
    return bool(found) or (checkpoints.exists() and any(checkpoints.iterdir()))


def refuse_other_config(folder: epath.Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise a ValueError if a setting differs that is not harmless, or if the old run has stages.

    Args:
        folder: of the run, for the message.
        old: what its config.json holds.
        new: the config of this start, one stage.
    """
    if "stages" in old:
        raise ValueError(
            f"{folder} holds a run of the stages {', '.join(old['stages'])}, and this config is a single "
            "one. Use another --workdir, or the old config."
        )
    differ = [
        f"{key} was {before!r}, now {now!r}"
        for key, before, now in differences(old, new)
        if not harmless(key)
    ]
    if differ:
        raise ValueError(
            f"{folder} holds a run of another config: {'; '.join(differ[:3])}. "
            "Use another --workdir, or the old settings."
            + ("" if begun(folder) else " It ended before it trained, so you may delete the folder.")
        )


def changed_data(folder: epath.Path, data: Mapping[str, Any], accept: bool) -> dict[str, str]:
    """What changed in the data since the last start.

    Args:
        folder: of the run. Its data.json says what the data were; a run of an older version has none.
        data: "train" and "test" -> what `data.change.describe` says of the split now.
        accept: whether the training images may change.

    Returns:
        split -> the first difference; nothing for a split that is the same.

    Raises:
        ValueError: the training images changed, and may not; or data.json is damaged.
    """
    file = folder / "data.json"
    if not file.exists():
        return {}
    old = files.read_object(
        file,
        "Put back a copy of it, or delete it: the same command writes it anew, from the data as they are",
    )
    found = {split: change.difference(old[split], data[split]) for split in data if split in old}
    changed = {split: what for split, what in found.items() if what}
    if "train" in changed and not accept:
        raise ValueError(
            f"the training images changed since the last start of {folder}: {changed['train']}. Put them "
            "back, or go on with the changed ones (--accept-changed-data), or begin anew in another --workdir"
        )
    return changed


def record(facts: Facts | None, changed: Mapping[str, str]) -> dict[str, Any]:
    """The line of run.json for this start.

    Args:
        facts: the facts of the training data, if any were read.
        changed: from `changed_data`.
    """
    return {
        "command": ["ssljax", *sys.argv[1:]],
        "commit": commit(),
        "versions": versions(),
        "hosts": jax.process_count(),
        **({} if facts is None else {"facts": facts._asdict()}),
        **({"changed_data": dict(changed)} if changed else {}),
        "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
