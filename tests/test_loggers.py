"""`ssljax train --log`: what the loggers are given, and what happens where one is missing or fails."""

import importlib.util
import json

import jax
import pytest

from ssljax.run import writers
from tests.test_folder import opened


class Recorder:
    """A logger that keeps what it is given, with the interface of `writers.Writer`."""

    given: list

    def __init__(self, folder, config):
        self.id, self.resumed = writers.remembered(folder, "wandb", lambda: "first")
        Recorder.given.append(("open", self.id, self.resumed, config.preset))

    def scalars(self, step, values):
        if step == 3:
            raise ConnectionError("no network")
        Recorder.given.append((step, dict(values)))

    def close(self, failed):
        Recorder.given.append(("close", failed))


@pytest.fixture
def given(monkeypatch):
    monkeypatch.setitem(writers.WRITERS, "wandb", Recorder)
    Recorder.given = []
    return Recorder.given


def test_a_logger_gets_every_row_and_goes_on_under_its_id_and_its_failure_ends_nothing(
    tmp_path, given, capsys
):
    with opened(tmp_path, log=("wandb",)) as run:
        run.tick(1, 4, 0.0, jax.numpy.zeros(()))
        run.log(1, 4, {"loss": 2.5})
        run.log_knn(2, 70.0)
        run.log_refresh(3, {"nmi_labels": 0.5})
        run.log_refresh(3, {"nmi_labels": 0.6})
    (_, *opening), first, knn, closing = given
    assert opening == ["first", False, "digits"] and closing == ("close", False)
    assert first[0] == 1 and first[1]["loss"] == 2.5 and "step" not in first[1]
    assert first[1]["epoch"] == run._config.epochs / 4  # a quarter of the run
    assert knn == (2, {"knn": 70.0})
    assert capsys.readouterr().out.count("WARNING --log wandb: no network; the run goes on") == 1
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 3]

    with pytest.raises(KeyError), opened(tmp_path, log=("wandb",)):
        raise KeyError
    assert given[-2:] == [("open", "first", True, "digits"), ("close", True)]


def test_only_the_first_host_has_loggers(tmp_path, given, monkeypatch):
    opened(tmp_path).close()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    opened(tmp_path, log=("wandb",)).close()
    assert given == []


def test_a_logger_that_refuses_the_run_ends_it_before_the_first_step(tmp_path, monkeypatch):
    def refuses(folder, config):
        raise RuntimeError("not logged in")

    monkeypatch.setitem(writers.WRITERS, "wandb", refuses)
    with pytest.raises(
        ValueError, match="--log wandb: not logged in. Without a connection: WANDB_MODE=offline"
    ):
        opened(tmp_path, log=("wandb",))
    opened(tmp_path).close()  # the folder is free again


def test_a_logger_that_is_unknown_or_not_installed_is_answered(monkeypatch):
    with pytest.raises(ValueError, match="--log: 'wanbd' is unknown, did you mean 'wandb'"):
        writers.asked("wanbd")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"--log mlflow: .*not installed: pip install 'ssljax\[mlflow\]'"):
        writers.asked("mlflow")
    assert writers.asked("") == ()


def test_the_name_of_a_run_is_the_end_of_its_path():
    assert writers.title("/home/me/runs/digits/") == "runs/digits"
    assert writers.title("gs://bucket/digits/pretrain") == "digits/pretrain"
