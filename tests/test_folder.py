"""A run's folder: what it refuses, what it says, and that its files are whole."""

import json
import os
import re

import jax
import pytest
from etils import epath

from configs import simclr
from ssljax.data import change, sources
from ssljax.network import load
from ssljax.report import training_runs
from ssljax.run import files
from ssljax.run.folder import RunFolder, describe_stages, facts_of
from ssljax.train import run_stages
from ssljax.types import Facts, TrainState

CONFIG = simclr.get_config("digits")
FACTS = Facts(num_examples=1500, num_classes=10, num_ids=1500)
EMPTY = TrainState(step=jax.numpy.int32(0), params={}, model_state={}, opt_state=(), extra=())


def opened(folder, **settings) -> RunFolder:
    return RunFolder(str(folder), CONFIG, FACTS, **settings)


@pytest.fixture(scope="module")
def data():
    return {split: change.describe(sources.load(CONFIG.data, split)) for split in ("train", "test")}


def without_one(description):
    """A description in which the class of the digit 3 has lost an image."""
    changed = json.loads(json.dumps(description))
    changed["checksum"] = "changed"
    changed["classes"][3][1:] = [changed["classes"][3][1] - 1, "other"]
    return changed


def test_a_folder_in_use_is_refused_and_left_as_it_is(tmp_path):
    with opened(tmp_path):
        before = (tmp_path / "run.json").read_text()
        with pytest.raises(ValueError, match=f"is in use: process {os.getpid()}"):
            opened(tmp_path)
        assert (tmp_path / "run.json").read_text() == before
    with opened(tmp_path):
        assert len((tmp_path / "run.json").read_text().splitlines()) == 2


def test_a_refused_start_lets_go_of_the_folder(tmp_path):
    opened(tmp_path).close()
    other = CONFIG.copy_and_resolve_references().unlock()
    other.seed = 7
    with pytest.raises(ValueError, match="seed was 0, now 7"):
        RunFolder(str(tmp_path), other, FACTS)
    opened(tmp_path).close()


def test_changed_training_images_are_refused_or_accepted_and_noted(tmp_path, data, capsys):
    opened(tmp_path, data=data).close()
    opened(tmp_path, data=data).close()
    changed = {**data, "train": without_one(data["train"])}
    message = r"training images changed .*: class 3 had 153 images, now 152.*--accept-changed-data"
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, data=changed)
    assert "changed_data" not in (tmp_path / "run.json").read_text()

    opened(tmp_path, data=changed, accept_changed_data=True).close()
    assert "WARNING going on with changed training images: class 3 had" in capsys.readouterr().out
    noted = json.loads((tmp_path / "run.json").read_text().splitlines()[-1])
    assert noted["changed_data"] == {"train": "class 3 had 153 images, now 152"}
    opened(tmp_path, data=changed).close()


def test_changed_test_images_are_said(tmp_path, data, capsys):
    opened(tmp_path, data=data).close()
    opened(tmp_path, data={**data, "test": without_one(data["test"])}).close()
    assert "WARNING the held-out images changed" in capsys.readouterr().out


def test_a_run_of_an_older_version_remembers_its_data_from_now_on(tmp_path, data, capsys):
    opened(tmp_path).close()
    assert not (tmp_path / "data.json").exists()
    opened(tmp_path, data=data).close()
    assert capsys.readouterr().out == "" and (tmp_path / "data.json").exists()


def test_one_stage_is_refused_in_a_folder_of_several_and_the_other_way_round(tmp_path):
    stages = simclr.get_config("digits_finetune")
    describe_stages(str(tmp_path / "two"), stages)
    with pytest.raises(
        ValueError, match="holds a run of the stages pretrain, finetune, and this config is a"
    ):
        opened(tmp_path / "two")
    opened(tmp_path / "one").close()
    with pytest.raises(ValueError, match="holds a run of a single stage, and the stages of this config are"):
        describe_stages(str(tmp_path / "one"), stages)


def test_the_folder_of_all_stages_says_what_their_folders_hold(tmp_path):
    def settings(pretrain=256, finetune=256):
        config = simclr.get_config("digits_finetune").copy_and_resolve_references().unlock()
        config.pretrain.batch_size = pretrain
        config.finetune.batch_size = finetune
        return config.lock()

    def written():
        stored = json.loads((tmp_path / "config.json").read_text())
        return stored["pretrain"]["batch_size"], stored["finetune"]["batch_size"]

    describe_stages(str(tmp_path), settings())
    describe_stages(str(tmp_path), settings(pretrain=64))  # nothing has begun
    assert written() == (64, 256)
    RunFolder(str(tmp_path / "pretrain"), settings(pretrain=64).pretrain, FACTS).close()
    describe_stages(str(tmp_path), settings(pretrain=64, finetune=32))
    assert written() == (64, 32)
    with pytest.raises(ValueError, match="pretrain holds a run of another config: batch_size was 64, now 32"):
        describe_stages(str(tmp_path), settings(pretrain=32, finetune=16))
    assert written() == (64, 32)
    describe_stages(str(tmp_path), settings(pretrain=32, finetune=16), only="finetune")
    assert written() == (64, 16)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("batch_size", 4096, "stage finetune: 100 examples do not fill one batch of 4096"),
        ("optim.warmup_epochs", 99, "stage finetune: warm-up of 154 steps does not fit a run of 94"),
        ("data.source", "folder:nowhere", "data.source=folder:nowhere: there is no folder nowhere"),
    ],
)
def test_what_a_later_stage_is_refused_for_is_said_before_the_first(tmp_path, key, value, message):
    config = simclr.get_config("digits_finetune").copy_and_resolve_references().unlock()
    config.finetune.update_from_flattened_dict(
        {"batch_size": 64, "epochs": 60, "optim.warmup_epochs": 0, key: value}
    )
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_stages(config.lock(), str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text, wrong", [("", "is empty"), ('{"seed": 0,', "is damaged or half-written"), ("[]", "no JSON object")]
)
def test_a_damaged_config_is_named_by_whoever_reads_it(tmp_path, text, wrong):
    opened(tmp_path).close()
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "metrics.jsonl").write_text("")
    message = rf"{re.escape(str(tmp_path))}/config.json .*{wrong}.*delete it and start `ssljax train`"
    for read in (
        lambda: opened(tmp_path),
        lambda: load(str(tmp_path)),
        lambda: training_runs(tmp_path),
        lambda: describe_stages(str(tmp_path), simclr.get_config("digits_finetune")),
    ):
        with pytest.raises(ValueError, match=message):
            read()
    (tmp_path / "config.json").unlink()
    opened(tmp_path).close()
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0


def test_damaged_data_are_named(tmp_path, data):
    opened(tmp_path, data=data).close()
    (tmp_path / "data.json").write_text('{"train"')
    with pytest.raises(ValueError, match=r"data.json is damaged .* or delete it"):
        opened(tmp_path, data=data)


def test_a_half_written_start_is_named_and_written_anew_by_the_next(tmp_path):
    opened(tmp_path).close()
    file = tmp_path / "run.json"
    whole = file.read_text()
    file.write_text(whole + whole[:50])
    assert facts_of(str(tmp_path)) == FACTS  # of the start before
    for text in ("", whole[:50]):
        file.write_text(text)
        with pytest.raises(ValueError, match="run.json is empty or half-written.*ssljax train"):
            facts_of(str(tmp_path))
        opened(tmp_path).close()
        assert facts_of(str(tmp_path)) == FACTS
    file.write_text(whole[:50] + "\n" + whole)
    for read in (lambda: facts_of(str(tmp_path)), lambda: opened(tmp_path)):
        with pytest.raises(ValueError, match="run.json, line 1 of 2, is damaged .* Delete that line"):
            read()


def test_a_damaged_line_of_the_log_is_named_and_a_half_written_last_one_cut_off(tmp_path):
    file = tmp_path / "metrics.jsonl"
    rows = ['{"step": -3, "loss": 1.25}', '{"step": -2, "loss": 0.5}', '{"step": -1, "lo']
    with opened(tmp_path) as run:
        file.write_text("\n".join(rows))
        assert run.restore(EMPTY) is None
        assert file.read_text() == "\n".join(rows[:2]) + "\n"
        file.write_text("\n".join([rows[0], rows[2], rows[1]]))
        with pytest.raises(ValueError, match="metrics.jsonl, line 2 of 3, is damaged .* Delete that line"):
            run.restore(EMPTY)
    assert len(file.read_text().splitlines()) == 3


def test_a_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    file = epath.Path(tmp_path) / "config.json"
    files.replace(file, "old")

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        files.replace(file, "new")
    assert file.read_text() == "old"
