"""What a run began from counts by its settings: seeds share a table, other settings do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ssljax import cli, compare, origin
from ssljax.config import hashed, stages

NAMES = ["pretrain", "frozen", "finetune"]


def run(folder: Path, **changes: Any) -> str:
    """A folder of `ssljax train --config simclr:digits`, of which only the config is read."""
    config, _ = cli.overridden(cli.preset_of("simclr:digits"), changes)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json())
    (folder / "metrics.jsonl").touch()
    return str(folder)


def staged(changes: dict[str, Any], stage: str = "") -> tuple[dict[str, Any], str]:
    """What is filed of a stage of cpc:digits_finetune: what was changed, and the hash."""
    config, overrides = cli.overridden(cli.preset_of("cpc:digits_finetune"), changes)
    name = stage or NAMES[-1]
    return (
        origin.changed(overrides, NAMES, stage),
        origin.config_hash(stages(config)[name], overrides, NAMES, stage),
    )


@pytest.mark.parametrize("stage", ["frozen", ""])
def test_seeds_of_a_run_in_another_folder_count_as_one(tmp_path, stage):
    first = run(tmp_path / "a", seed=0)
    second = run(tmp_path / "b", seed=1, log_every=7)
    hot = run(tmp_path / "c", **{"loss.temperature": 0.9})
    found = [staged({"frozen.init_from": folder}, stage) for folder in (first, second, hot)]
    assert [changed for changed, _ in found] == [{"frozen.init_from": "simclr:digits"}] * 3
    hashes = [name for _, name in found]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_run_as_its_preset_has_it_has_the_hash_of_its_own_settings():
    config = cli.preset_of("cpc:digits_finetune")
    for stage in NAMES:
        assert staged({"pretrain.seed": 3}, stage) == ({}, hashed(config[stage]))


def test_settings_of_the_stages_before_count_and_those_after_do_not():
    plain = [staged({}, stage)[1] for stage in NAMES]
    other = [staged({"frozen.optim.learning_rate": 0.125}, stage)[1] for stage in NAMES]
    assert [one == two for one, two in zip(plain, other, strict=True)] == [True, False, False]
    said = [staged({"frozen.optim.learning_rate": 0.125}, stage)[0] for stage in NAMES[:2]]
    assert said == [{}, {"frozen.optim.learning_rate": 0.125}]
    judged = [staged({"pretrain.evaluate.linear": "sgd"}, stage)[1] for stage in NAMES[1:]]
    assert judged == plain[1:]


def test_converted_weights_are_told_apart_by_their_folder(tmp_path):
    folders = [run(tmp_path / name) for name in ("a", "b")]
    for folder in folders:
        (Path(folder) / "metrics.jsonl").unlink()
    found = [staged({"frozen.init_from": folder}, "frozen") for folder in folders]
    assert [changed["frozen.init_from"] for changed, _ in found] == ["PATH/a", "PATH/b"]
    assert found[0][1] != found[1][1]


def test_a_stage_of_another_run_counts_with_the_stages_before_it(tmp_path):
    """The folder of a stage has its own config.json, and that of the run has those of all stages."""

    def stage_of(folder: Path, **changes: Any) -> str:
        config, _ = cli.overridden(cli.preset_of("simclr:digits_linear"), changes)
        for place, part in ((folder, config), (folder / "pretrain", config.pretrain)):
            place.mkdir(exist_ok=True)
            (place / "config.json").write_text(part.to_json())
        (folder / "linear").mkdir()
        (folder / "linear" / "config.json").write_text(config.linear.to_json())
        return origin.of_folder(str(folder / "linear"))

    plain = stage_of(tmp_path / "a")
    assert plain == hashed(cli.preset_of("simclr:digits_linear").linear)
    assert stage_of(tmp_path / "b", **{"pretrain.loss.temperature": 0.9}) != plain


def test_a_comparison_does_not_take_the_row_of_a_run_with_another_earlier_stage():
    default = cli.preset_of("cpc:digits_finetune")
    other, _ = cli.overridden(default, {"frozen.optim.learning_rate": 0.125})
    last = default.finetune
    changed, config_hash = staged({})
    row = {
        "experiment": last.name,
        "preset": last.preset,
        "stage": "",
        "seed": last.seed,
        "epochs": last.epochs,
    }
    row |= {"changed": changed, "config_hash": config_hash}
    assert compare._is_of(row, default, NAMES[-1], "")
    assert not compare._is_of(row, other, NAMES[-1], "")
