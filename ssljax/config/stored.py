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
    config = ConfigDict()
    for name, value in modern(stored).items():
        if name == "views":
            config.views = {view: {} for view in value}
    for name, value in modern(stored).items():
        if name != "views":
            put(config, name, tuple(value) if isinstance(value, list) else value)
    return resolve(config).lock()
