"""What a run began from, told by its settings, so that runs which differ only in their seeds share a table.

A stage may start from another run, or learn of it, by the name of an earlier stage or by a folder. The folder
tells a reader little, and every seed has another. In results the preset of that run stands in its place, and
the hash of the settings counts what that run, and the earlier stages of this one, were trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from ssljax import cli, results
from ssljax.config import flat, hashed, stages
from ssljax.config.stored import of_run
from ssljax.run import files

# The settings that name an earlier stage or the folder of a run.
NAMING = ("init_from", "distill.teacher", "pseudo.teacher", "recover.tokenizer")


def changed(overrides: Mapping[str, Any], names: Sequence[str], stage: str = "") -> dict[str, Any]:
    """As `results.changed`, with "simclr:digits" in place of the folder of such a run.

    What is changed in later stages is left out.

    Args:
        overrides: dotted key -> value, what differs from the preset, of all stages.
        names: of the config's stages; () if it has none.
        stage: which of them it is; "" for the last.
    """
    after = names[names.index(stage) + 1 :] if stage else ()
    told = _told(overrides, names, _preset)
    return results.changed({key: told[key] for key in told if key.split(".")[0] not in after}, names)


def config_hash(
    config: ConfigDict, overrides: Mapping[str, Any], names: Sequence[str] = (), stage: str = ""
) -> str:
    """As `config.hashed`, and the settings of the runs that this one began from.

    It equals `hashed` where these are earlier stages of the same config, as its preset has them.

    Args:
        config: of the stage.
        overrides: dotted key -> value, what differs from the preset, of all stages.
        names: of the config's stages; () if it has none.
        stage: which of them it is; "" for the last.
    """
    before = names[: names.index(stage)] if stage else names[:-1]
    all_changed = results.changed(_told(overrides, names, _settings), names)
    earlier = {
        key: value
        for key, value in all_changed.items()
        if key.split(".")[0] in before and key.split(".")[1] != "evaluate"
    }
    named = {key: value for key, value in flat(config).items() if key in NAMING}
    folders = {key: value for key, value in _told(named, names, _settings).items() if value != named[key]}
    return hashed(config, {**folders, **earlier})


def of_folder(folder: str) -> str:
    """The `config_hash` of the run in a folder, of one stage or without stages."""
    path = epath.Path(folder)
    config = of_run(files.read_config(path / "config.json"))
    above = path.parent / "config.json"
    whole = of_run(files.read_config(above)) if above.exists() else config
    if path.name not in stages(whole):
        return config_hash(config, {})
    return config_hash(config, cli.against_preset(whole), list(stages(whole)), path.name)


def _told(settings: Mapping[str, Any], names: Sequence[str], tell: Callable[[str], str]) -> dict[str, Any]:
    """Settings, with another word for each folder of a run that they name.

    Weights that were converted keep their folder: their settings do not say which weights they are.
    """

    def word(key: str, value: Any) -> Any:
        plain = key.partition(".")[2] if key.split(".")[0] in names else key
        trained = plain in NAMING and value not in ("", *names) and _trained(value)
        return tell(value) if trained else value

    return {key: word(key, value) for key, value in settings.items()}


def _trained(folder: str) -> bool:
    """Whether a folder holds a run of one stage that `ssljax train` has begun."""
    path = epath.Path(folder)
    return (path / "metrics.jsonl").exists() and (path / "config.json").exists()


def _preset(folder: str) -> str:
    config = of_run(files.read_config(epath.Path(folder) / "config.json"))
    return f"{config.name}:{config.preset}"


def _settings(folder: str) -> str:
    return f"{_preset(folder)} {of_folder(folder)}"
