"""What the table of keys says of a config: which keys it reads, what is wrong with it, and how to say so."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from ssljax.config.keys import KEYS, VIEW_COUNTS, row
from ssljax.config.leaves import flat, stages, view_names
from ssljax.config.rows import Key, Read

# Keys of older versions, and what says the same today.
RETIRED = {
    "data.views": "views have names now and overrides of their own: a config's `views`",
    "data.num_ids": "it is read from the data",
    "init_head": "it is init_branches now, the branches to start from",
}


def reader(leaves: Mapping[str, Any], view: str) -> Read:
    """What `when` asks: the value of a key, as `view` overrides it, or the key's default."""

    def read(name: str) -> Any:
        own = name.replace("augment.", f"views.{view}.", 1)
        if name.startswith("augment.") and own in leaves:
            return leaves[own]
        return leaves[name] if name in leaves else KEYS[name].default

    return read


def live(name: str, leaves: Mapping[str, Any]) -> bool | None:
    """Whether a stage of these leaves reads a key, in one view at least; None where the table cannot know."""
    key = row(name)
    if key is None:
        return None
    views = [name.split(".")[1]] if name.startswith("views.") else leaves["views"]
    found = [key.when.holds(reader(leaves, view)) for view in views]
    if True in found:
        return True
    return None if None in found else False


def resolve(config: ConfigDict) -> ConfigDict:
    """A config, of one stage or of several, with every key that it reads and none that it does not.

    Missing keys come with the table's default. Keys that the table does not know stay as they are, and so do
    those that it cannot judge, because it does not know the method, the network or the optimizer.

    Returns:
        an unlocked copy.
    """
    config = config.copy_and_resolve_references().unlock()
    for stage in stages(config).values():
        _resolve(stage)
    return config


def _resolve(stage: ConfigDict) -> None:
    if "views" not in stage:
        stage.views = {"one": {}}
    leaves = flat(stage)
    for name in dict.fromkeys([*leaves, *(key for key in KEYS if not key.startswith("views"))]):
        state = live(name, leaves)
        if state is False and name in leaves:
            _drop(stage, name)
        elif state is True and name not in leaves:
            put(stage, name, KEYS[name].default)


def put(config: ConfigDict, name: str, value: Any) -> None:
    """Sets a dotted key, its sections included, in an unlocked config."""
    *sections, last = name.split(".")
    for section in sections:
        if section not in config:
            config[section] = ConfigDict()
        config = config[section]
    config[last] = value


def _drop(config: ConfigDict, name: str) -> None:
    """Deletes a dotted key, and its section if that is empty then; a view without overrides stays."""
    section, _, last = name.rpartition(".")
    inside = config
    for word in section.split(".") if section else ():
        inside = inside[word]
    del inside[last]
    if section and not len(inside) and not section.startswith("views."):
        _drop(config, section)


def widen(config: ConfigDict) -> ConfigDict:
    """An unlocked copy with every key of the table in every stage, to be overridden with its own type."""
    config = config.copy_and_resolve_references().unlock()
    for stage in stages(config).values():
        names = [key for key in KEYS if not key.startswith("views")]
        for view in view_names(stage):
            names += [key.replace("*", view, 1) for key in KEYS if key.startswith("views.*.")]
        there = flat(stage)
        for name in names:
            if name not in there:
                put(stage, name, row(name).default)
    return config


KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a string", tuple: "a tuple"}


def check(config: ConfigDict) -> None:
    """Refuses wrong types, ranges and choices of every key that the table knows, in every stage.

    Raises:
        ValueError: names the key, its value and what is valid.
    """
    for name, stage in stages(config).items():
        prefix = f"{name}." if name else ""
        for key, value in flat(stage).items():
            found = row(key)
            if found is not None and key != "views":
                _check(prefix + key, value, found)
        _check_views(prefix, stage)


def _check(name: str, value: Any, key: Key) -> None:
    """One value against its row."""
    kind = type(key.default)
    fits = {bool: (bool,), int: (int,), float: (int, float), str: (str,), tuple: (list, tuple)}[kind]
    if not isinstance(value, fits) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(
            f"config.{name}={value!r} is of type {type(value).__name__}, but it must be "
            f"{KINDS[kind]}: {key.meaning}"
        )
    for entry in value if kind is tuple else (value,):
        if key.valid is not None and not key.valid.holds(entry):
            near = difflib.get_close_matches(
                str(entry), [str(v) for v in getattr(key.valid, "values", ())], 1, 0.5
            )
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"config.{name}={value!r} is not valid, it must be {_valid(key)}{hint} ({key.meaning})"
            )


def _valid(key: Key) -> str:
    """What is valid, in words."""
    text = f"one of {key.valid}" if hasattr(key.valid, "values") else str(key.valid)
    text = text if text[0] not in "[(" else f"in {text}"
    return f"{text} in every entry" if isinstance(key.default, tuple) else text


def _check_views(prefix: str, stage: ConfigDict) -> None:
    """As many views as the method takes, and no override that nobody knows."""
    total = 0
    for view in view_names(stage):
        overrides = stage.views[view]
        for key in overrides:
            if row(f"views.{view}.{key}") is None:
                known = [name.removeprefix("views.*.") for name in KEYS if name.startswith("views.*.")]
                raise ValueError(
                    f"config.{prefix}views.{view}.{key}: a view has no such setting"
                    + _mean(nearest(key, known))
                )
        if "of" in overrides and overrides.of not in set(view_names(stage)) - {view}:
            raise ValueError(
                f"config.{prefix}views.{view}.of={overrides.of!r} is no other view: "
                f"{', '.join(view_names(stage))}"
            )
        total += overrides.count if "count" in overrides else 1
    read = reader(flat(stage), "")
    for when, wanted in VIEW_COUNTS:
        if when.holds(read) and total != wanted:
            names = ", ".join(view_names(stage))
            raise ValueError(
                f"config.{prefix}views has {total} views ({names}), but method {stage.method!r} "
                f"takes {wanted}: name as many in `views`"
            )


def nearest(name: str, known: Collection[str]) -> list[str]:
    """The known keys that someone who wrote `name` may have meant.

    Those with its last word in other places, or else the nearest spelling.
    """
    last = name.rpartition(".")[2]
    places = [key for key in known if key.rpartition(".")[2] == last and "views." not in key]
    if places:
        return places[:4]
    near = difflib.get_close_matches(name, known, 1, 0.6)
    words = {key.rpartition(".")[2]: key for key in known if "views." not in key}
    return near or [words[word] for word in difflib.get_close_matches(last, words, 1, 0.6)]


def unknown(name: str, config: ConfigDict) -> str:
    """The message about a key that a widened config does not have."""
    words = name.split(".")
    stage = words[0] if "stages" in config and words[0] in config.stages else ""
    if name.removeprefix(f"{stage}.") in RETIRED:
        return f"--config.{name}: no such setting any more; {RETIRED[name.removeprefix(f'{stage}.')]}"
    inside = [key for key in flat(config) if key.startswith(f"{name}.")]
    if inside:
        return f"--config.{name} is a section: set its keys one by one, e.g. --config.{inside[0]}"
    return f"--config.{name}: no such setting" + _mean(nearest(name, list(flat(config))))


def _mean(names: list[str]) -> str:
    return f"; did you mean {' or '.join(names)}?" if names else ""


def unread(name: str, config: ConfigDict) -> str:
    """The message about an override of a key that nothing reads in this recipe; empty where it is read."""
    found = stages(config)
    stage, _, rest = name.partition(".") if "" not in found else ("", "", name)
    if stage not in found or live(rest, flat(found[stage])) is not False:
        return ""
    return f"--config.{name}: nothing reads it in this recipe; it is read when {row(rest).when.text}"
