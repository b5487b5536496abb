"""Configs as flat leaves: how they differ from the defaults and from older runs, and their hash."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from ssljax.config.keys import FACTS, row

ABSENT = "absent"

# Settings that change no number in the results. The seed does, but results have a field for it.
NOT_HASHED = ("seed", "name", "preset", "log_every", "eval_every_epochs", "checkpoint")

VIEW_NAMES = ("one", "two", "three", "four", "five", "six", "seven", "eight")


def stages(config: ConfigDict) -> dict[str, ConfigDict]:
    """The stages of a config by name. A config without stages counts as one stage named ""."""
    if "stages" not in config:
        return {"": config}
    return {name: config[name] for name in config.stages}


def view_names(config: ConfigDict) -> tuple[str, ...]:
    """The names of the views in the config's order, which iterating over a ConfigDict would lose."""
    return tuple(json.loads(config.views.to_json()))


def flat(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Returns every leaf by its dotted name, as JSON would read it back: tuples become lists.

    `views` itself is a leaf as well, the list of the views' names in order. This way the order counts, and so
    does a view without overrides.

    Args:
        config: a ConfigDict of one stage or several, or its JSON as `json.loads` returns it.
    """
    tree = json.loads(config.to_json()) if isinstance(config, ConfigDict) else config
    found: dict[str, Any] = {}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for name, value in node.items():
            if name == "views" and isinstance(value, Mapping):
                found[prefix + name] = list(value)
            if isinstance(value, Mapping):
                walk(value, f"{prefix}{name}.")
            else:
                found[prefix + name] = list(value) if isinstance(value, tuple) else value

    walk(tree, "")
    return found


def default(name: str) -> Any:
    """The default of a key, in the form of `flat`. ABSENT for a view's overrides and for unknown keys."""
    key = row(name)
    if key is None or name.startswith("views."):
        return ABSENT
    return list(key.default) if isinstance(key.default, tuple) else key.default


def changed(config: ConfigDict) -> dict[str, Any]:
    """The leaves of one stage that differ from the table's defaults.

    A leaf that the table does not know always differs. FACTS never do.
    """
    leaves = flat(config)
    return {name: leaves[name] for name in leaves if name not in FACTS and leaves[name] != default(name)}


def modern(old: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of one stage of an older config.json, under today's names.

    Args:
        old: the stage, as `json.loads` returns it.
    """
    leaves = flat(old)
    for name in FACTS:
        leaves.pop(name, None)
    if "data.views" in leaves:
        leaves["views"] = list(VIEW_NAMES[: leaves.pop("data.views")])
    if "init_head" in leaves:
        heads = ["head", "distillation_head"] if leaves.get("model.distillation") else ["head"]
        leaves["init_branches"] = ["encoder", *heads] if leaves.pop("init_head") else ["encoder"]
    return leaves


def differences(old: Mapping[str, Any], new: ConfigDict | Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The differences that keep a run of one config from being resumed with the other.

    A key that the old config lacks counts with its default. A key that only the old config has counts if the
    table does not know it or if it belongs to a view. Otherwise nothing reads it in the new config.

    Args:
        old: one stage of a config.json, of this or an older version, as `json.loads` returns it.
        new: one stage, resolved.

    Returns:
        (dotted key, old value, new value), sorted; "absent" stands for no value.
    """
    before = modern(old)
    after = flat(new)
    pairs = [(name, before.get(name, default(name)), after[name]) for name in after if name not in FACTS]
    other = [pair for pair in pairs if pair[1] != pair[2]]
    gone = [
        (name, before[name], ABSENT)
        for name in before
        if name not in after and (row(name) is None or name.startswith("views."))
    ]
    return sorted(other + gone)


def hashed(config: ConfigDict, told: Mapping[str, Any] = MappingProxyType({})) -> str:
    """A hash, 12 hex digits, of all settings that a result depends on and that differ from the defaults.

    The location of the data is left out: results have a field for the data's checksum.

    Args:
        config: of one stage.
        told: dotted key -> value, which count in place of those in the config, or beside them.
    """
    leaves = {name: value for name, value in changed(config).items() if name.split(".")[0] not in NOT_HASHED}
    leaves.pop("data.data_dir", None)
    leaves["data.source"] = public(config.data.source)
    leaves |= told
    return hashlib.sha256(json.dumps(leaves, sort_keys=True).encode()).hexdigest()[:12]


def public(text: str) -> str:
    """Hides the folders of this machine in a text: folder:/home/me/photos becomes folder:PATH/photos."""
    return re.sub(r"""(^|[\s'"=:])~?/[^\s'":]*?([^\s'"/:]+)/?(?=[\s'":]|$)""", r"\1PATH/\2", text)
