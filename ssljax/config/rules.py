"""Applies the table of keys to a config: which keys it reads, what is wrong with it, and the messages."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from ssljax.config.keys import KEYS, VIEW_COUNTS, row
from ssljax.config.leaves import flat, stages, view_names
from ssljax.config.rows import LINE, WORD, Entries, Key, OneOf, Range, Read, Text, beyond, interval

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

# What is valid where a row does not say it.
UNSAID: dict[type, Range | OneOf | Text | Entries] = {
    bool: OneOf((False, True)),
    int: Range(whole=True),
    float: Range(),
    str: LINE,
    tuple: Entries(WORD),
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
    _count_channels(stage)


def _count_channels(stage: ConfigDict) -> None:
    """Sets `data.channels` to the sum over `data.view_folders`, if a stage has that key."""
    folders = stage.data.get("view_folders", ())
    valid = KEYS["data.view_folders"].valid
    if folders and valid is not None and valid.holds(folders):
        stage.data.channels = sum(int(name.rpartition(":")[2]) for name in folders)


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
        leaves = flat(stage)
        counted = ("views", "data.channels") if leaves.get("data.view_folders") else ("views",)
        for key, value in leaves.items():
            found = row(key)
            if found is not None and key not in counted:
                _check(prefix + key, value, found)
        _check_views(prefix, stage)


def _check(name: str, value: Any, key: Key) -> None:
    """Checks one value against its row."""
    kind = type(key.default)
    fits = isinstance(value, ACCEPTED[kind]) and (kind is bool or not isinstance(value, bool))
    if not fits:
        raise ValueError(
            f"config.{name}={shown(value)} is of type {type(value).__name__}, but it must be {KINDS[kind]} "
            f"({key.meaning})"
        )
    valid = UNSAID[kind] if key.valid is None else key.valid
    if not valid.holds(value):
        raise ValueError(
            f"config.{name}={shown(value)} is not valid; it must be {_valid(valid, value)} ({key.meaning})"
        )


def _valid(valid: Range | OneOf | Text | Entries, value: Any) -> str:
    """The valid values in words, and those that someone who gave `value` may have meant."""
    text = interval(valid)
    of = valid.of if isinstance(valid, Entries) else valid
    entries = value if isinstance(valid, Entries) else [value]
    if isinstance(of, Range):
        limits = [beyond(entry, of) for entry in entries]
        return " and ".join([text, *filter(None, limits[:1])])
    if isinstance(of, OneOf):
        near = difflib.get_close_matches(str(value), [str(choice) for choice in of.values], 1, 0.5)
        return text + _did_you_mean(near)
    return text


def shown(value: Any) -> str:
    """The representation of a value in a message, of at most 80 characters."""
    return cut(repr(value))


def cut(text: str) -> str:
    """A text on one line, of at most 80 characters."""
    line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text[:80])
    return line if len(text) <= 80 else f"{line[:60]}... ({len(text)} characters)"


def needed(name: str, config: ConfigDict) -> str:
    """What the value of a key must be, as a sentence: its type and its meaning.

    Args:
        name: dotted, with the stage.
        config: from `widen`.
    """
    value = flat(config)[name]
    kind = tuple if isinstance(value, list) else type(value)
    stage = name.partition(".")[0]
    key = row(name.removeprefix(f"{stage}.") if stage in stages(config) else name)
    meaning = f" ({key.meaning})" if key else ""
    return f"it must be {KINDS.get(kind, 'of another type')}{meaning}"


def _check_views(prefix: str, stage: ConfigDict) -> None:
    """Checks that every override of a view is known, and that the method takes that many views."""
    names = view_names(stage)
    known = [name.removeprefix("views.*.") for name in KEYS if name.startswith("views.*.")]
    leaves = flat(stage)
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
        _check_areas(prefix, view, leaves)

    read = reader(leaves, "")
    for when, wanted in VIEW_COUNTS:
        if when.holds(read) and total != wanted:
            raise ValueError(
                f"config.{prefix}views has {total} views ({', '.join(names)}), but method {stage.method!r} "
                f"takes {wanted} where {when.text}: give `views` that many entries, each with count=1"
            )


def _check_areas(prefix: str, view: str, leaves: Mapping[str, Any]) -> None:
    """Checks that the smallest crop of a view is not larger than the largest."""
    read = reader(leaves, view)
    smallest = read("augment.min_area")
    largest = read("augment.max_area")
    if smallest > largest:
        raise ValueError(
            f"config.{prefix}views.{view}: min_area={smallest} is above max_area={largest}; it must be at "
            "most that (smallest and largest area of a crop; see config.augment for what a view does not say)"
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
    if not name.strip("."):
        return f"--config.{name} names no setting; overrides look like --config.seed=1"

    known = list(flat(config))
    inside = [key for key in known if key.startswith(f"{name}.")]
    if inside:
        return f"--config.{name} is a section: set its keys one by one, e.g. --config.{inside[0]}"
    return f"--config.{cut(name)}: no such setting{_did_you_mean(nearest(name, known))}"


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
