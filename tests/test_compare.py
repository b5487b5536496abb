"""`ssljax compare`: which runs count as one, what differs, and the numbers side by side."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image

from configs import byol, simclr
from ssljax import compare, results
from ssljax.config import hashed
from tests.test_report import line


def trained(folder, config=simclr, loss=2.0, **changes):
    """A run as `ssljax train` leaves it: its config, and a log of two epochs."""
    c = config.get_config("digits").unlock()
    for key, value in {"epochs": 2, **changes}.items():
        c[key] = value
    folder.mkdir()
    (folder / "config.json").write_text(c.to_json())
    log = [
        {"step": 10, "epoch": 1.0, "loss": loss + 1},
        {"step": 20, "epoch": 2.0, "loss": loss},
        {"step": 20, "knn": 70.0},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    return c.lock()


def judge(file, config, **row):
    """Adds a measurement of a run to a results.jsonl."""
    of = dict(experiment=config.name, preset=config.preset, seed=config.seed, epochs=config.epochs)
    row = line(**of, **{"config_hash": hashed(config), "features": config.method, **row})
    run = results.Run(**{name: row[name] for name in results.RUN})
    results.append(file, run, [{name: row[name] for name in results.MEASUREMENT}])


def cells(text):
    """The first table of a Markdown text: first cell -> (heading -> cell)."""
    rows = [re.split(r" *\| *", row)[1:-1] for row in text.split("\n\n")[0].splitlines()]
    head, _, *body = rows
    return {row[0]: dict(zip(head, row, strict=True)) for row in body}


def test_seeds_count_as_one_with_their_mean_and_deviation_and_what_differs_is_named(tmp_path):
    hot = dict(optim=simclr.get_config("digits").optim.copy_and_resolve_references())
    hot["optim"].learning_rate = 0.7
    for seed, loss, value in ((0, 2.0, 80.0), (1, 2.2, 82.0), (2, 2.4, 87.0)):
        run = trained(tmp_path / f"a{seed}", loss=loss, seed=seed, log_every=5 + seed)
        judge(tmp_path / f"a{seed}" / "results.jsonl", run, value=value)
    judge(tmp_path / "a0" / "results.jsonl", run, value=20.0, features="raw_pixels")
    judge(tmp_path / "all.jsonl", trained(tmp_path / "b", **hot), value=90.0)
    (tmp_path / "all.jsonl").rename(tmp_path / "results.jsonl")
    text = compare.compare([str(tmp_path)], tmp_path / "out")

    rate = simclr.get_config("digits").optim.learning_rate
    found = cells(text)
    assert list(found) == [f"learning_rate={rate}", "learning_rate=0.7", "raw pixels"]
    plain, warm, pixels = found.values()
    assert plain == {
        "": f"learning_rate={rate}",
        "seeds": "0, 1, 2",
        "epochs": "2 of 2",
        "kNN": "83.0 ± 3.6",
        "last loss": "2.2 ± 0.2",
        "last kNN in training": "70 ± 0",
    }
    assert (warm["seeds"], warm["kNN"], warm["last loss"]) == ("0", "90.0", "2")
    assert (pixels["kNN"], pixels["last loss"]) == ("20.0", "")

    settings = re.findall(r"^\| ([\w.]+) .*", text[text.index("Settings that differ") :], re.MULTILINE)
    assert settings == ["log_every", "optim.learning_rate", "seed"]
    assert "Mean ± standard deviation over the seeds." in text

    with (tmp_path / "out" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    knn = [row for row in rows if row["protocol"] == "knn" and row["features"] == "simclr"]
    assert [(row["seed"], row["optim.learning_rate"], float(row["value"])) for row in knn] == [
        ("0", str(rate), 80.0),
        ("1", str(rate), 82.0),
        ("2", str(rate), 87.0),
        ("0", "0.7", 90.0),
    ]
    picture = np.asarray(Image.open(tmp_path / "out" / "comparison.png").convert("RGB"))
    for colour in ((0, 114, 178), (230, 159, 0)):  # both groups are drawn
        assert (abs(picture.astype(int) - colour).sum(-1) < 12).sum() > 20
    assert cells((tmp_path / "out" / "comparison.md").read_text().partition("\n\n")[2]) == found


def test_two_methods_have_losses_of_their_own_and_a_run_that_was_not_judged_is_named(tmp_path):
    judge(tmp_path / "all.jsonl", trained(tmp_path / "s"), value=80.0)
    judge(tmp_path / "all.jsonl", simclr.get_config("digits"), value=10.0)  # of a run that is not here
    trained(tmp_path / "b", byol)
    folders = [str(tmp_path / "s"), str(tmp_path / "b")]
    text = compare.compare(folders, tmp_path / "out", file=str(tmp_path / "all.jsonl"))
    found = cells(text)
    nearest = {name: row["kNN"] for name, row in found.items()}
    assert nearest == {"simclr:digits": "80.0", "byol:digits": "–"}
    assert f"Not evaluated: {tmp_path / 'b'}." in text
    assert "Losses of different methods are different quantities." in text
    assert "target.schedule" in (tmp_path / "out" / "comparison.md").read_text()


def test_the_same_seed_twice_is_no_deviation_and_other_images_are_said(tmp_path):
    for name, data in (("a", "d1"), ("b", "d2")):
        judge(tmp_path / f"{name}.jsonl", trained(tmp_path / name), value=80.0, data_checksum=data)
        (tmp_path / f"{name}.jsonl").rename(tmp_path / name / "results.jsonl")
    text = compare.compare([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "out")
    assert {name: row["kNN"] for name, row in cells(text).items()} == {"a": "80.0", "b": "80.0"}
    assert "not all on the same images" in text


def test_what_is_not_there_is_answered(tmp_path, capsys):
    trained(tmp_path / "a")
    with pytest.raises(SystemExit, match="holds no run .no config.json.: name the --workdir"):
        compare.main([str(tmp_path / "b")])
    with pytest.raises(SystemExit, match="--stage=finetune: .*/a has no stages"):
        compare.main([str(tmp_path / "a"), "--stage=finetune", f"--out={tmp_path}/out"])
    with pytest.raises(SystemExit, match="no .*none.jsonl: run `ssljax evaluate"):
        compare.main([str(tmp_path / "a"), f"--results={tmp_path}/none.jsonl"])
