"""results.jsonl: one line per run, joined with its measurements; what tells runs apart; provenance."""

import json
import subprocess

import jax
import pytest

from ssljax import results
from ssljax.config import public

RUN = results.Run(
    experiment="simclr",
    preset="digits",
    stage="",
    seed=0,
    epochs=2,
    step=10,
    data="digits",
    train_images=1500,
    parameters=77,
    data_checksum="d1",
    config_hash="c1",
    changed={"loss.temperature": 0.5},
    commit="abc",
    versions={"jax": "1"},
    command="ssljax evaluate",
)
RESULT = dict(
    features="simclr",
    protocol="knn",
    settings={"k": 5},
    labels_per_class=0,
    draw=0,
    top1=51.23456,
    top5=80.0,
    n=297,
    seconds=0.12345,
    time="t",
)
METRICS = ("top1", "top5", "nmi")


def test_a_result_becomes_one_line_per_metric():
    top1, top5 = results.lines(RESULT, METRICS)
    assert (top1["metric"], top1["value"], top1["seconds"]) == ("top1", 51.2346, 0.123)
    assert (top5["metric"], top5["value"]) == ("top5", 80.0)
    assert set(top1) == set(results.MEASUREMENT)
    with pytest.raises(ValueError, match="protocol 'knn' has shots, for which results.jsonl has no field"):
        results.lines({**RESULT, "shots": 5}, METRICS)


def test_appended_measurements_are_read_back_and_a_run_is_written_once(tmp_path):
    file = tmp_path / "out" / "results.jsonl"
    found = results.lines(RESULT, METRICS)
    results.append(file, RUN, found[:1])
    results.append(file, {**RUN, "seed": 1}, found[:1])
    results.append(file, RUN, found[1:])  # evaluated again, at the same commit
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [("commit" in record, record["run"]) for record in records] == [
        (True, results.identity(RUN)),
        (False, results.identity(RUN)),
        (True, results.identity({**RUN, "seed": 1})),
        (False, results.identity({**RUN, "seed": 1})),
        (False, results.identity(RUN)),
    ]
    rows = results.read(file)
    assert [(row["seed"], row["metric"], row["value"]) for row in rows] == [
        (0, "top1", 51.2346),
        (1, "top1", 51.2346),
        (0, "top5", 80.0),
    ]
    assert rows[0] == {"run": results.identity(RUN), **RUN, **found[0]}
    results.append(file, {**RUN, "commit": "def"}, found)  # another commit is another run
    assert sum("commit" in line for line in file.read_text().splitlines()) == 3


def test_an_id_depends_on_everything_but_the_order_of_the_fields():
    assert results.identity(RUN) == results.identity(dict(reversed(RUN.items())))
    other = {"changed": {}, "versions": {"jax": "2"}, "step": 11, "command": "ssljax evaluate "}
    ids = {results.identity({**RUN, key: value}) for key, value in other.items()}
    assert len(ids | {results.identity(RUN)}) == 5
    assert len(results.identity(RUN)) == 10


def test_the_last_of_equal_measurements_counts_and_raw_pixels_have_no_seed(tmp_path):
    file = tmp_path / "results.jsonl"
    for value, changes, features in (
        (1.0, {}, "simclr"),
        (2.0, {"seed": 1}, "simclr"),
        (3.0, {"commit": "later"}, "simclr"),
        (4.0, {}, "raw_pixels"),
        (4.0, {"seed": 1}, "raw_pixels"),
        (5.0, {"config_hash": "c2"}, "simclr"),
    ):
        found = results.lines({**RESULT, "top1": value, "features": features}, METRICS)
        results.append(file, {**RUN, **changes}, found[:1])
    kept, replaced = results.latest(results.read(file))
    assert [(row["features"], row["seed"], row["value"]) for row in kept] == [
        ("simclr", 1, 2.0),
        ("simclr", 0, 3.0),
        ("raw_pixels", 1, 4.0),
        ("simclr", 0, 5.0),
    ]
    assert [(row["features"], row["value"]) for row in replaced] == [("simclr", 1.0), ("raw_pixels", 4.0)]


def test_lines_without_a_later_field_are_still_read(tmp_path):
    """Files from before results.jsonl held the number of parameters."""
    file = tmp_path / "results.jsonl"
    results.append(file, RUN, results.lines(RESULT, METRICS))
    (row, _) = results.read(file)
    assert row["parameters"] == 77
    old = file.read_text().replace('"parameters": 77, ', "")
    assert "parameters" not in old
    file.write_text(old)
    assert results.read(file)[0] == {**row, "parameters": 0}


def test_neighbours_share_a_line_and_are_read_as_before(tmp_path):
    file = tmp_path / "results.jsonl"
    found = results.lines(RESULT, METRICS)
    later = results.lines({**RESULT, "draw": 1}, METRICS)
    results.append(file, RUN, [*found, *later])
    results.append(file, {**RUN, "seed": 1}, found)
    results.append(file, {**RUN, "seed": 1}, found)  # measured twice: the second must not fall on the first
    before = results.read(file)
    results.fold(file)
    assert results.read(file) == before
    lines = file.read_text().splitlines()
    assert [line.count("top") for line in lines] == [0, 2, 2, 0, 2, 2]
    assert [number for number, line in enumerate(lines) if "versions" in line] == [0]
    results.fold(file)
    assert file.read_text().splitlines() == lines


def test_wrong_lines_are_named(tmp_path):
    file = tmp_path / "results.jsonl"
    with pytest.raises(FileNotFoundError, match="no .*results.jsonl: run `ssljax evaluate .* first"):
        results.read(file)
    file.write_text("\n")
    with pytest.raises(ValueError, match="is empty: run `ssljax evaluate` first"):
        results.read(file)
    results.append(file, RUN, results.lines(RESULT, METRICS))
    good = file.read_text()
    _, run, measurement, *_ = good.splitlines()
    for wrong in (
        '{"run": "x"',
        '{"preset": "digits"}',
        "[]",
        "null",
        measurement.replace(results.identity(RUN), "y"),
        measurement.replace('"value"', '"valu"'),
        run.replace('"changed"', '"change"'),
    ):
        file.write_text(good + wrong + "\n")
        with pytest.raises(ValueError, match="line 5 is neither a run nor a measurement of an earlier run"):
            results.read(file)
    file.write_text("\n".join([measurement, run]))  # the measurement comes before its run
    with pytest.raises(ValueError, match="line 1 is neither a run"):
        results.read(file)


def test_changed_holds_the_overrides_that_tell_two_runs_apart():
    overrides = {
        "seed": 3,
        "loss.temperature": 0.5,
        "data.source": "folder:/home/me/photos",
        "log_every": 5,
        "checkpoint.keep": 3,
        "data.train_per_class": 2000,
        "distill.teacher": "runs/t",
        "evaluate.protocols": ("knn",),
        "evaluate.label_counts": (1, 2),
        "epochs": 18,
        "init_from": "/home/me/runs/x",
        "preset": "mine",
        "seeds": 1,
    }
    assert results.changed(overrides) == {
        "data.train_per_class": 2000,
        "epochs": 18,
        "evaluate.label_counts": [1, 2],
        "init_from": "PATH/x",
        "loss.temperature": 0.5,
        "seeds": 1,
    }
    staged = {"teacher.seed": 1, "teacher.optim.learning_rate": 0.1, "student.seed": 1, "student.epochs": 3}
    found = results.changed(staged, ["teacher", "student"])
    assert found == {"epochs": 3, "teacher.optim.learning_rate": 0.1}
    assert results.changed({}) == {}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("digits", "digits"),
        ("folder:/home/me/photos", "folder:PATH/photos"),
        ("folder:/home/me/photos/", "folder:PATH/photos"),
        (
            "ssljax evaluate --workdir /tmp/a/b --results=~/r.jsonl",
            "ssljax evaluate --workdir PATH/b --results=PATH/r.jsonl",
        ),
        (
            "--config configs/simclr.py:digits --results experiments/simclr/results.jsonl",
            "--config configs/simclr.py:digits --results experiments/simclr/results.jsonl",
        ),
    ],
)
def test_folders_of_this_machine_are_hidden(text, expected):
    assert public(text) == expected


def test_a_commit_is_dirty_if_the_source_was_changed(tmp_path):
    def git(*words):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert results.commit(tmp_path) == "unknown"
    (tmp_path / "ssljax" / "run").mkdir(parents=True)
    (tmp_path / "README.md").write_text("a")
    (tmp_path / "ssljax" / "run" / "x.py").write_text("a")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    clean = git("rev-parse", "HEAD")[:12]
    (tmp_path / "README.md").write_text("b")  # changes no result
    assert results.commit(tmp_path / "ssljax") == clean
    (tmp_path / "ssljax" / "run" / "x.py").write_text("b")
    assert results.commit(tmp_path / "ssljax") == clean + "-dirty"


def test_versions_are_those_of_the_installed_packages():
    found = results.versions()
    assert found["jax"] == jax.__version__ and set(found) <= set(results.PACKAGES)


def test_a_line_leaves_out_what_is_usual_and_what_its_run_says(tmp_path, monkeypatch):
    file = tmp_path / "results.jsonl"
    monkeypatch.setattr(results, "now", lambda: "2026-11-27T10:00:00Z")
    first, _ = results.lines({**RESULT, "time": "2026-11-27T23:00:00Z"}, METRICS)
    results.append(file, RUN, [first, {**first, "draw": 2, "time": "2026-11-28T00:00:01Z"}])
    _, same_day, later = (json.loads(line) for line in file.read_text().splitlines())
    assert not {"time", "draw", "labels_per_class"} & set(same_day)
    assert (later["time"], later["draw"]) == ("2026-11-28T00:00:01Z", 2)
    rows = results.read(file)
    assert [row["time"] for row in rows] == ["2026-11-27T10:00:00Z", "2026-11-28T00:00:01Z"]
    assert [row["draw"] for row in rows] == [0, 2]


class InABucket:
    """A file that is read and written whole, as on a bucket."""

    text = ""

    def __init__(self, parent):
        self.parent = parent

    def __str__(self):
        return "gs://bucket/results.jsonl"

    def exists(self):
        return bool(self.text)

    def read_text(self):
        return self.text

    def write_text(self, text):
        self.text = text


def test_in_a_bucket_whose_files_cannot_grow_the_whole_file_is_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "now", lambda: "2026-01-01T00:00:00Z")
    local, remote = tmp_path / "results.jsonl", InABucket(tmp_path)
    for run in (RUN, {**RUN, "seed": 1}, RUN):
        for file in (local, remote):
            results.append(file, run, results.lines(RESULT, METRICS))
    assert remote.text == local.read_text() and len(remote.text.splitlines()) == 8
