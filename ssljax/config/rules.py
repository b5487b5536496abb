"""Applies the table of keys to a config: which keys it reads, what is wrong with it, and the messages."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from ssljax.config.keys import KEYS, VIEW_COUNTS, row
from ssljax.config.leaves import flat, stages, view_names
from ssljax.config.rows import Key, Read

# Keys of older versions, and what replaced them.
RETIRED = {
    "data.views": "views have names now, and overrides of their own: see `views` in the config",
    "data.num_ids": "it is read from the data",
    "init_head": "it is init_branches now, the branches to start from",
}

# Per type of a default: its name in messages, and the types of values that it accepts. A bool is no int here.
KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a string", tuple: "a tuple"}
ACCEPTED: dict[type, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
    tuple: (list, tuple),
}


def reader(leaves: Mapping[str, Any], view: str) -> Read:
    """The lookup that conditions use: a key's value, with the overrides of `view`, or the key's default."""

    def read(name: str) -> Any:
        override = name.replace("augment.", f"views.{view}.", 1)
        if name.startswith("augment.") and override in leaves:
            return leaves[override]
        return leaves[name] if name in leaves else KEYS[name].default

    return read


def live(name: str, leaves: Mapping[str, Any]) -> bool | None:
    """Whether a stage with these leaves reads a key in at least one view. None if the table cannot tell."""
    key = row(name)
    if key is None:
        return None

    views = [name.split(".")[1]] if name.startswith("views.") else leaves["views"]
    found = [key.when.holds(reader(leaves, view)) for view in views]
    if True in found:
        return True
    return None if None in found else False


def resolve(config: ConfigDict) -> ConfigDict:
    """Adds every key that a config reads and removes every key that it does not, in each stage.

    Missing keys get the table's default. Keys that the table does not know stay as they are. So do keys that
    it cannot judge, because it does not know the method, the network or the optimizer.

    Args:
        config: of one stage or of several.

    Returns:
        An unlocked copy.
    """
    config = config.copy_and_resolve_references().unlock()
    for stage in stages(config).values():
        _resolve(stage)
    return config


def _resolve(stage: ConfigDict) -> None:
    if "views" not in stage:
        stage.views = {"one": {}}
    leaves = flat(stage)
    known = [key for key in KEYS if not key.startswith("views")]

    for name in dict.fromkeys([*leaves, *known]):
        state = live(name, leaves)
        if state is False and name in leaves:
            _drop(stage, name)
        elif state is True and name not in leaves:
            put(stage, name, KEYS[name].default)


def put(config: ConfigDict, name: str, value: Any) -> None:
    """Sets a dotted key in an unlocked config, and creates the sections on the way to it."""
    *sections, last = name.split(".")
    for section in sections:
        if section not in config:
            config[section] = ConfigDict()
        config = config[section]
    config[last] = value


def _drop(config: ConfigDict, name: str) -> None:
    """Deletes a dotted key, and its section if that is now empty. A view without overrides stays."""
    section, _, last = name.rpartition(".")
    inside = config
    if section:
        for word in section.split("."):
            inside = inside[word]
    del inside[last]
    if section and not len(inside) and not section.startswith("views."):
        _drop(config, section)


def widen(config: ConfigDict) -> ConfigDict:
    """Adds every key of the table to every stage, so that any of them can be overridden with its type.

    Returns:
        An unlocked copy.
    """
    config = config.copy_and_resolve_references().unlock()
    for stage in stages(config).values():
        defaults = {name: key.default for name, key in KEYS.items() if not name.startswith("views")}
        for view in view_names(stage):
            for name, key in KEYS.items():
                if name.startswith("views.*."):
                    defaults[name.replace("*", view, 1)] = key.default

        present = flat(stage)
        for name, default in defaults.items():
            if name not in present:
                put(stage, name, default)
    return config


def check(config: ConfigDict) -> None:
    """Checks the type and the value of every key that the table knows, and the views, in every stage.

    Raises:
        ValueError: a value is wrong; the message names the key, the value and what is valid.
    """
    for name, stage in stages(config).items():
        prefix = f"{name}." if name else ""
        for key, value in flat(stage).items():
            found = row(key)
            if found is not None and key != "views":
                _check(prefix + key, value, found)
        _check_views(prefix, stage)


def _check(name: str, value: Any, key: Key) -> None:
    """Checks one value against its row."""
    kind = type(key.default)
    fits = isinstance(value, ACCEPTED[kind]) and (kind is bool or not isinstance(value, bool))
    if not fits:
        raise ValueError(
            f"config.{name}={value!r} is of type {type(value).__name__}, but it must be {KINDS[kind]} "
            f"({key.meaning})"
        )
    if key.valid is None:
        return

    entries = value if kind is tuple else (value,)
    for entry in entries:
        if not key.valid.holds(entry):
            choices = [str(choice) for choice in getattr(key.valid, "values", ())]
            near = difflib.get_close_matches(str(entry), choices, 1, 0.5)
            raise ValueError(
                f"config.{name}={value!r} is not valid; it must be {_valid(key)}{_did_you_mean(near)} "
                f"({key.meaning})"
            )


def _valid(key: Key) -> str:
    """The valid values in words."""
    text = f"one of {key.valid}" if hasattr(key.valid, "values") else str(key.valid)
    text = text if text[0] not in "[(" else f"in {text}"
    return f"{text} in every entry" if isinstance(key.default, tuple) else text


def _check_views(prefix: str, stage: ConfigDict) -> None:
    """Checks that every override of a view is known, and that the method takes that many views."""
    names = view_names(stage)
    known = [name.removeprefix("views.*.") for name in KEYS if name.startswith("views.*.")]
    total = 0

    for view in names:
        overrides = stage.views[view]
        for key in overrides:
            if key not in known:
                raise ValueError(
                    f"config.{prefix}views.{view}.{key}: a view has no such setting"
                    f"{_did_you_mean(nearest(key, known))}"
                )
        if "of" in overrides and overrides.of not in set(names) - {view}:
            raise ValueError(
                f"config.{prefix}views.{view}.of={overrides.of!r} does not name another view; "
                f"the views are {', '.join(names)}"
            )
        total += overrides.count if "count" in overrides else 1

    read = reader(flat(stage), "")
    for when, wanted in VIEW_COUNTS:
        if when.holds(read) and total != wanted:
            raise ValueError(
                f"config.{prefix}views has {total} views ({', '.join(names)}), but method {stage.method!r} "
                f"takes {wanted}: give `views` that many entries"
            )


def nearest(name: str, known: Collection[str]) -> list[str]:
    """The known keys that someone who wrote `name` may have meant.

    These are the keys with the same last word in another section or, if there are none, the key with the
    nearest spelling.
    """
    last = name.rpartition(".")[2]
    places = [key for key in known if key.rpartition(".")[2] == last and "views." not in key]
    if places:
        return places[:4]

    near = difflib.get_close_matches(name, known, 1, 0.6)
    words = {key.rpartition(".")[2]: key for key in known if "views." not in key}
    return near or [words[word] for word in difflib.get_close_matches(last, words, 1, 0.6)]


def unknown(name: str, config: ConfigDict) -> str:
    """The message about a key that a config returned by `widen` does not have."""
    first = name.partition(".")[0]
    stage = first if "stages" in config and first in config.stages else ""
    plain = name.removeprefix(f"{stage}.")
    if plain in RETIRED:
        return f"--config.{name}: no such setting any more; {RETIRED[plain]}"

    known = list(flat(config))
    inside = [key for key in known if key.startswith(f"{name}.")]
    if inside:
        return f"--config.{name} is a section: set its keys one by one, e.g. --config.{inside[0]}"
    return f"--config.{name}: no such setting{_did_you_mean(nearest(name, known))}"


def _did_you_mean(names: list[str]) -> str:
    return f"; did you mean {' or '.join(names)}?" if names else ""


def unread(name: str, config: ConfigDict) -> str:
    """The message about an override that nothing reads in this recipe; "" if something reads it."""
    found = stages(config)
    stage = ""
    plain = name
    if "" not in found:
        stage, _, plain = name.partition(".")

    key = row(plain)
    if key is None or stage not in found or live(plain, flat(found[stage])) is not False:
        return ""
    return f"--config.{name}: nothing reads it in this recipe; it is read when {key.when.text}"
