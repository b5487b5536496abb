"""A run's config, read back from the config.json in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ssljax.config.leaves import modern
from ssljax.config.rules import put, resolve


def restored(stored: Mapping[str, Any]) -> ConfigDict:
    """The config of one stage as it was before it was written.

    Keys of older versions have today's names, and keys that are younger than the run have their defaults.

    Args:
        stored: what json.loads makes of the file.

    Returns:
        a resolved and locked config.
    """
    leaves = modern(stored)
    config = ConfigDict()
    if "views" in leaves:  # first, so that they keep their order, and those without overrides are there
        config.views = {view: {} for view in leaves.pop("views")}
    for name, value in leaves.items():
        put(config, name, tuple(value) if isinstance(value, list) else value)
    return resolve(config).lock()


def of_run(stored: Mapping[str, Any]) -> ConfigDict:
    """The config that a run of one stage or several was started with.

    Args:
        stored: what json.loads makes of the config.json in its folder.

    Returns:
        a resolved and locked config, as `get_config` would return it.
    """
    if "stages" not in stored:
        return restored(stored)
    config = ConfigDict({"stages": tuple(stored["stages"])})
    for stage in config.stages:
        config[stage] = restored(stored[stage])
    return resolve(config).lock()
