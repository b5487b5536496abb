"""`ssljax finetune`: the grid, the network of the run, the best pair, and a whole search."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import simclr, transfer
from ssljax import finetune, program, results, series
from ssljax.__main__ import VERBS
from ssljax.config import flat
from ssljax.types import Facts
from tests.test_results import RUN


def test_the_grid_is_the_papers_with_decays_divided_by_the_rate():
    assert "finetune" in VERBS
    assert len(finetune.RATES) == 7 and len(finetune.DECAYS) == 8 and finetune.DECAYS[0] == 0
    np.testing.assert_allclose(np.log10(finetune.RATES), np.arange(-4, -0.9, 0.5))
    np.testing.assert_allclose(np.log10(finetune.DECAYS[1:]), np.arange(-6, -2.9, 0.5))
    pair = finetune.Pair(0.01, 1e-4)
    assert pair.name == "rate=0.01,decay=0.0001"
    assert pair.words() == ["--config.optim.learning_rate=0.01", "--config.optim.weight_decay=0.01"]


def test_presets_take_20000_steps_and_know_their_images():
    """SimCLR's B.8: batches of 256, and the memory of the norms by the steps of an epoch."""
    sets = finetune.transfer.SETS
    assert set(transfer.PRESETS) == {*sets, "own"}
    for name, data in sets.items():
        images = transfer.IMAGES[name]
        assert images == sum(data.sizes[:2]), name
        c = transfer.get_config(name)
        assert c.model.bn_momentum == max(1 - 10 / (images // 256), 0.9)
        assert abs(c.epochs * images / 256 - 20_000) <= images / 512 and c.steps == 20_000
        assert c.method == ("multilabel" if data.metric == "map" else "supervised")
    assert transfer.get_config("food101").model.bn_momentum == pytest.approx(0.966, abs=1e-3)
    flowers = transfer.get_config("flowers").unlock()
    flowers.model.update(name="resnet8", width=0.125)
    assert program.build(flowers, Facts(2_040, 102, 2_040)).total_steps == 20_000


def test_the_network_and_the_pixels_are_those_of_the_run(tmp_path):
    run = simclr.get_config("digits")
    (tmp_path / "config.json").write_text(run.to_json())
    preset = transfer.get_config("pets")
    words = finetune.shared(str(tmp_path), preset)
    given = dict(word.removeprefix("--config.").split("=", 1) for word in words)
    assert given["model.name"] == "resnet8" and given["data.image_size"] == "16"
    assert given["augment.mean"] == "(0.0,)" and given["data.crop_on"] == "device"
    assert not {"model.bn_momentum", "augment.crop", "optim.name"} & set(given)
    unchanged = {key for key in flat(run) if key.startswith("model.")} - set(given) - {"model.bn_momentum"}
    assert all(flat(run)[key] == flat(preset)[key] for key in unchanged)

    staged = {"stages": ["pretrain", "linear"], "pretrain": json.loads(run.to_json())}
    (tmp_path / "config.json").write_text(json.dumps({**staged, "linear": staged["pretrain"]}))
    with pytest.raises(ValueError, match="has stages: name the folder of one, .*/pretrain, .*/linear"):
        finetune.shared(str(tmp_path), preset)
    with pytest.raises(ValueError, match="there is no run in this folder"):
        finetune.shared(str(tmp_path / "none"), preset)


def test_the_best_pair_counts_on_the_metric_of_the_data_set(tmp_path):
    file = tmp_path / "pets" / "results.jsonl"
    grid = [finetune.Pair(rate, decay) for rate in (0.1, 0.01) for decay in (0.0, 1e-3)]
    elsewhere = finetune.Pair(0.5, 0.0)
    values = {grid[0]: 50.0, grid[1]: 70.0, grid[2]: 70.0, elsewhere: 99.0}
    for i, (pair, value) in enumerate(values.items()):
        settings = {"learning_rate": pair.rate, "weight_decay": pair.decay / pair.rate}
        found = {
            **{"features": "supervised", "protocol": "finetuned_pets", "settings": settings},
            **{"labels_per_class": 0, "draw": 0, "n": 740, "seconds": 1.0, "time": "t"},
            **{"mean_per_class": value, "top1": 100.0 - value},
        }
        run = {**RUN, "config_hash": f"c{i}"}
        results.append(file, run, results.lines(found, ("top1", "mean_per_class")))
    pair, row = finetune.best(file, grid, "pets")
    assert pair == grid[1] and (row["metric"], row["value"]) == (
        "mean_per_class",
        70.0,
    )  # the first of equals
    with pytest.raises(ValueError, match="no run of flowers was measured"):
        finetune.best(file, grid, "flowers")


def test_random_networks_have_a_search_of_their_own(tmp_path, monkeypatch):
    """SimCLR's B.8."""
    asked = []
    monkeypatch.setattr(finetune.transfer, "missing", lambda name, root: "")
    monkeypatch.setattr(
        finetune, "one", lambda name, flags, words, grid: asked.append((flags.steps, grid)) or []
    )
    for run in ("x", ""):
        finetune.main([f"--run={run}", "--sets=pets", f"--workdir={tmp_path}"])
    (steps, pairs), (more, random) = asked
    assert (steps, more) == (20_000, 40_000)
    assert pairs == [(rate, decay) for rate in finetune.RATES for decay in finetune.DECAYS]
    rates, decays = np.logspace(-3, 0, 7), np.logspace(-5, -1.5, 8)
    np.testing.assert_allclose(random, [(rate, decay) for rate in rates for decay in decays])


def test_absent_data_sets_are_named_and_one_must_be_there(tmp_path, capsys):
    words = ["--run=x", f"--data-root={tmp_path}", f"--workdir={tmp_path}/w"]
    with pytest.raises(SystemExit, match="none of these data sets is there"):
        finetune.main([*words, "--sets=birdsnap,petz"])
    said = capsys.readouterr().out
    assert "leaves out birdsnap: TFDS does not have it" in said and f"no folder {tmp_path}/petz" in said
    with pytest.raises(SystemExit, match="--rates 0.1;0.2: write numbers with commas"):
        finetune.main([*words, "--sets=pets", "--rates=0.1;0.2"])


class Series:
    """`series.command` without processes: what was asked, and a number for each pair."""

    def __init__(self):
        self.trained = []

    def __call__(self, words, label, log):
        if words[0] == "train":
            flags = dict(word.removeprefix("--config.").split("=", 1) for word in words if "=" in word)
            self.trained.append({**flags, "workdir": words[words.index("--workdir") + 1]})
            return 0, "done: "
        run = self.trained[-1]
        rate = float(run["optim.learning_rate"])
        settings = {"learning_rate": rate, "weight_decay": float(run["optim.weight_decay"])}
        row = {"features": "supervised", "protocol": "finetuned_mine", "settings": settings}
        row |= {"labels_per_class": 0, "draw": 0, "n": 4, "seconds": 1.0, "time": "t"}
        value = 90.0 if rate == 0.03 else 60.0
        where = words[words.index("--results") + 1]
        run = {**RUN, "config_hash": run["workdir"]}
        results.append(Path(where), run, results.lines({**row, "top1": value}, ("top1",)))
        return 0, ""


def test_a_search_is_judged_on_validation_images_and_its_best_pair_on_the_test_images(
    tmp_path, monkeypatch, capsys
):
    """The same command again asks for all runs, which `ssljax train` leaves alone, and judges none."""
    asked = Series()
    monkeypatch.setattr(series, "command", asked)
    for split, count in (("train", 10), ("test", 2)):
        for name in "ab":
            (tmp_path / "data" / "mine" / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (9 * i, 0, 0)).save(
                    tmp_path / "data/mine" / split / name / f"{i}.png"
                )
    (tmp_path / "config.json").write_text(simclr.get_config("digits").to_json())
    words = [
        *(f"--run={tmp_path}", "--sets=mine", f"--data-root={tmp_path}/data", f"--workdir={tmp_path}/w"),
        *("--rates=0.1,0.03", "--decays=0,0.003", "--steps=50", "--config.batch_size=8", "--config.seed=3"),
    ]
    finetune.main(words)
    said = capsys.readouterr().out
    assert "mine: best on 4 validation images: rate=0.03,decay=0, top1 90.0 %" in said
    assert "mine: top1 90.0 % of 4 test images" in said
    *search, last = asked.trained
    assert [(run["optim.learning_rate"], run["optim.weight_decay"]) for run in asked.trained] == [
        ("0.1", "0.0"),
        ("0.1", "0.03"),
        ("0.03", "0.0"),
        ("0.03", "0.1"),
        ("0.03", "0.0"),
    ]
    for run in search:  # 18 training images
        assert (run["data.train_split"], run["data.test_split"]) == ("train", "validation")
        assert (run["steps"], run["epochs"]) == ("50", "22")
    assert (last["data.train_split"], last["data.test_split"]) == ("train+validation", "test")
    assert (last["steps"], last["epochs"]) == ("50", "20")
    assert last["workdir"] == f"{tmp_path}/w/mine/best" and last["seed"] == "3"
    assert all(run["init_from"] == str(tmp_path) and run["model.name"] == "resnet8" for run in asked.trained)
    assert len(results.read(tmp_path / "w" / "mine" / "results.jsonl")) == 4

    finetune.main(words)
    assert len(results.read(tmp_path / "w" / "mine" / "results.jsonl")) == 4
    assert len(results.read(tmp_path / "w" / "results.jsonl")) == 1
