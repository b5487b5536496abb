"""Command-line flags, the same for every verb.

    [--config FILE[:preset]] --workdir DIR [--config.optim.learning_rate=0.1 ...]

FILE is the path of a config, e.g. configs/simclr.py, or the name of one that comes with ssljax, e.g. simclr.
Where DIR holds a run, its own config is the one to start from, and `--config FILE` may be left out.
Nothing here imports JAX: a wrong setting is answered before anything heavy is loaded.
"""

from __future__ import annotations

import difflib
import importlib.util
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from ssljax import config as configs
from ssljax.config import leaves
from ssljax.config.stored import of_run
from ssljax.process import answered, run
from ssljax.run.files import read_config

__all__ = ["answered", "config_file", "installed_configs", "load", "overridden", "parse", "preset_of", "run"]

OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(=?)", re.DOTALL)
BARE = re.compile(r"(--?config\.([^=]+)=)([^()\[\]{}'\"]*)")  # a value without brackets and quotes
ILLEGAL = re.compile(r"flag --config\.(.*?)=(.*?): .*", re.DOTALL)  # absl's message about a value


def parse(verb: str, argv: list[str] | None, **extra: str | int | float | bool) -> SimpleNamespace:
    """The flags of `ssljax <verb>`.

    Args:
        verb: the name in messages.
        argv: what follows the verb; None takes it from the command line.
        extra: further flags with their defaults, whose types they take.

    Returns:
        .config (a resolved, checked and locked ConfigDict), .overrides (what the command line changed of the
        preset, by dotted key), .workdir, and the further flags.

    Raises:
        SystemExit: a flag is missing or wrong; the message says which and what is valid.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "the run's folder", flag_values=values)
    define: dict[type, Callable[..., Any]] = {
        str: flags.DEFINE_string,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        bool: flags.DEFINE_bool,
    }
    for name, default in extra.items():
        define[type(default)](name, default, "", flag_values=values)
    config, overrides, rest = load(verb, argv, values)
    if not values.workdir:
        raise SystemExit(
            f"ssljax {verb}: --workdir is missing: the folder that this run writes to, "
            "e.g. --workdir runs/digits"
        )
    if rest:
        word = configs.shown(rest[0])
        raise SystemExit(f"ssljax {verb}: {word} is no flag; overrides look like --config.seed=1")
    return SimpleNamespace(
        config=config,
        overrides=overrides,
        workdir=values.workdir,
        **{name: values[name].value for name in extra},
    )


def load(
    verb: str, argv: list[str], values: flags.FlagValues | None = None
) -> tuple[ConfigDict, dict[str, Any], list[str]]:
    """The config that the words of a command line name, with its overrides.

    Args:
        verb: the name in messages.
        argv: what follows the verb.
        values: the verb's other flags, which are read too; None leaves them alone, for a check before the
        verb is imported.

    Returns:
        the resolved, checked and locked config; what was overridden, by dotted key; the words that belong to
        no flag.

    Raises:
        SystemExit: as for `parse`.
    """
    file, argv = _without_file(argv)
    try:
        preset = preset_of(file) if file else of_folder(_workdir(argv))
        wide = configs.widen(preset)
        argv = _in_every_stage(argv, preset)
        _check_words(argv, wide)
        argv = _quoted(argv, wide)
        known_only, values = values is None, values or flags.FlagValues()
        config_flags.DEFINE_config_dict(
            "config", _Unprinted(wide), flag_values=values, sys_argv=[f"ssljax {verb}", *argv]
        )
        rest = values([f"ssljax {verb}", *argv], known_only=known_only)[1:]
        given = config_flags.get_override_values(values["config"])
        config, overrides = overridden(preset, given)
        if not file:
            overrides = against_preset(config)
    except flags.IllegalFlagValueError as error:
        raise SystemExit(f"ssljax {verb}: {_illegal(str(error), wide)}") from error
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError, FileNotFoundError) as error:
        text = error.args[0] if isinstance(error, KeyError) else error  # a KeyError shows its message's repr
        raise SystemExit(f"ssljax {verb}: {text}") from error
    return config, overrides, rest


class _Unprinted(ConfigDict):
    """A config that absl does not write out, as it does to describe a flag: two thirds of the reading."""

    def __str__(self) -> str:
        return "the settings of --config"


def overridden(preset: ConfigDict, given: dict[str, Any]) -> tuple[ConfigDict, dict[str, Any]]:
    """A preset with overrides by dotted key, and those of them that changed something.

    Raises:
        ValueError: another method, a wrong value, or a key that nothing reads in this recipe.
    """
    config = preset.copy_and_resolve_references().unlock()
    before = configs.flat(preset)
    given = {key: _unquoted(value) for key, value in given.items()}
    for key, value in given.items():
        if key.rpartition(".")[2] == "method" and value != before[key]:
            paper = value if value in configs.METHODS else "byol"
            raise ValueError(
                f"--config.{key}={configs.cut(value)}: a method's settings come with its own presets, "
                f"e.g. --config {paper}:digits"
            )
        if key == "stages":
            raise ValueError(
                "--config.stages: a preset has the stages that it has; set their keys one by one, e.g. "
                f"--config.{preset.stages[0]}.seed=1"
            )
        if isinstance(value, tuple) and not all(isinstance(x, (bool, int, float, str)) for x in value):
            raise ValueError(
                f"--config.{key}={configs.shown(value)}: the entries must be numbers, words, True or False"
            )
        configs.put(config, key, value)
    resolved = configs.resolve(config)
    configs.check(resolved)
    for key in given:
        reason = configs.unread(key, config)
        if reason:
            raise ValueError(reason)
    after = configs.flat(resolved)
    took = {key: value for key, value in given.items() if key not in before or after[key] != before[key]}
    return resolved.lock(), took


def _unquoted(value: Any) -> Any:
    """The words of a list that was given without quotes, as in knn,linear; other values as they are."""
    if isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], str):
        return tuple(word.strip() for word in value[0].split(","))
    return value


def preset_of(name: str) -> ConfigDict:
    """The config that FILE[:preset] names.

    Raises:
        ValueError: no such file or preset, with the nearest; or a value in it that is out of range.
    """
    file, _, preset = name.partition(":")
    path = config_file(file)
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--config {path} is no config, which is a Python file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise ValueError(f"--config {path} cannot be loaded: {error}") from error
    if not hasattr(module, "get_config"):
        raise ValueError(f"--config {path} has no function get_config(preset): see configs/simclr.py")
    return configs.resolve(module.get_config(preset) if preset else module.get_config())


def of_folder(workdir: str) -> ConfigDict:
    """The config of the run in a folder.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: its config.json is damaged.
    """
    if not workdir:
        raise FileNotFoundError("--config is missing, e.g. --config simclr:digits")
    file = epath.Path(workdir) / "config.json"
    if not file.exists():
        raise FileNotFoundError(
            f"--config is missing, and {workdir} holds no run (no config.json) to take it from: name the "
            "--workdir of `ssljax train`, or add e.g. --config simclr:digits"
        )
    return of_run(read_config(file))


def against_preset(config: ConfigDict) -> dict[str, Any]:
    """What a run's config changes of the preset that it names, by dotted key.

    Nothing, if no preset of that name comes with ssljax.
    """
    *_, last = configs.stages(config).values()
    try:
        before = configs.flat(preset_of(f"{last.name}:{last.preset}"))
    except ValueError:
        return {}
    after = configs.flat(config)
    facts = {f"{stage}.{key}".lstrip(".") for stage in configs.stages(config) for key in configs.FACTS}

    def unchanged(key: str) -> bool:
        """A key that only this config reads, because of another that was changed, has its default there."""
        stage, _, rest = key.partition(".")
        plain = rest if stage in configs.stages(config) else key
        return key in facts or after[key] == before.get(key, leaves.default(plain))

    return {key: after[key] for key in after if not unchanged(key)}


def config_file(file: str) -> Path:
    """The file that --config names: by its path, or by its name among those that come with ssljax.

    Raises:
        ValueError: there is none; names the nearest.
    """
    path = Path(file)
    if path.is_file():
        return path
    known = {found.stem: found for found in sorted(installed_configs().glob("*.py"))}
    # configs/simclr.py means the same outside the repository, where there is no such folder.
    by_name = path.parent in (Path("."), Path("configs")) and path.suffix in ("", ".py")
    if by_name and path.stem in known:
        return known[path.stem]
    beside = [str(found) for found in sorted(path.parent.glob("*.py"))]
    candidates = beside if beside and path.suffix else list(known)
    near = difflib.get_close_matches(file, candidates, n=1, cutoff=0.3)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(
        f"no file {file} below {Path.cwd()}, and no config of that name comes with ssljax; {hint}"
        f"The names that it knows: {', '.join(known)}"
    )


def installed_configs() -> Path:
    """The folder of the configs that come with ssljax: in the package, or beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def _without_file(argv: list[str]) -> tuple[str, list[str]]:
    """What the last --config says, "" without one, and the words without it."""
    file, rest, words = "", [], iter(argv)
    for word in words:
        if re.match(r"--?config=", word):
            file = word.partition("=")[2]
        elif word in ("--config", "-config"):
            file = next(words, "")
        else:
            rest.append(word)
    return file, rest


def _workdir(argv: list[str]) -> str:
    """What the last --workdir says; "" without one."""
    found, words = "", iter(argv)
    for word in words:
        if re.match(r"--?workdir=", word):
            found = word.partition("=")[2]
        elif word in ("--workdir", "-workdir"):
            found = next(words, "")
    return found


def _in_every_stage(argv: list[str], preset: ConfigDict) -> list[str]:
    """The words, with the seed and settings of the data given for every stage that has them.

    These are what the stages of a run share. Other settings name their stage.
    """
    stages = configs.stages(preset)
    if "stages" not in preset:
        return argv
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        found = OVERRIDE.match(word)
        name = found.group(2) if found else ""
        shared = name == "seed" or name.startswith("data.")
        has = [stage for stage, part in stages.items() if shared and name in configs.flat(part)]
        if not has:
            words.append(word)
            continue
        separate = "=" not in word and rest and not rest[0].startswith("-")
        value = [rest.pop(0)] if separate else []
        for stage in has:
            words += [word.replace(f"config.{name}", f"config.{stage}.{name}", 1), *value]
    return words


def _check_words(argv: list[str], wide: ConfigDict) -> None:
    """Refuses overrides of what no config has, and overrides without a value."""
    known = configs.flat(wide)
    for word, following in itertools.zip_longest(argv, argv[1:]):
        found = OVERRIDE.match(word)
        if found is None:
            continue
        switch, name, equals = found.groups()
        if name not in known:
            raise ValueError(configs.unknown(name, wide))

        yes_or_no = isinstance(known[name], bool)
        if switch and not yes_or_no:
            raise ValueError(
                f"{configs.shown(word)} switches a setting off, but {name} is not True or False: write "
                f"--config.{name}=VALUE"
            )
        if equals:
            continue
        if yes_or_no and following is not None and not following.startswith("-"):
            raise ValueError(
                f"--config.{name} {configs.shown(following)}: True or False follows an equals sign: write "
                f"--config.{name}=True or --config.{name}=False"
            )
        if not yes_or_no and (following is None or following.startswith("--")):
            raise ValueError(f"--config.{name} has no value: write --config.{name}=VALUE")


def _quoted(argv: list[str], wide: ConfigDict) -> list[str]:
    """Puts quotes around the words of a list with a colon, such as 0:1,1:3, which absl cannot read."""
    known = configs.flat(wide)
    words = []
    for word in argv:
        found = BARE.fullmatch(word)
        if found and isinstance(known.get(found[2]), list) and ":" in found[3] and "," in found[3]:
            word = found[1] + repr(tuple(entry.strip() for entry in found[3].split(",")))
        words.append(word)
    return words


def _illegal(message: str, wide: ConfigDict) -> str:
    """The message about a value that is not of its key's type, in place of absl's."""
    found = ILLEGAL.fullmatch(message)
    if found is None:
        return message
    name, value = found.groups()
    return f"--config.{name}={configs.cut(value)}: invalid literal; {configs.needed(name, wide)}"
