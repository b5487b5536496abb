"""mCE and mFR against the authors' code and by hand; the protocols on images whose errors are set."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from configs.supervised import get_config
from ssljax import evaluate, report
from ssljax.benches import further
from ssljax.config import resolve
from ssljax.data import corruptions, loader, records, sources
from ssljax.pictures import robustness as pictures
from ssljax.pictures.tables import groups
from ssljax.protocols import PROTOCOLS, perturbations, robustness
from ssljax.protocols.bench import Bench
from ssljax.protocols.corruptions import in_tfds
from ssljax.protocols.perturbations import sequences
from ssljax.results import read
from tests.one_block import shrink


@pytest.fixture(scope="module")
def g(golden):
    return golden("metrics")


# ------------------------------------------------------------------------------------------------ the metrics


@pytest.mark.parametrize("seed", range(3))
def test_mce_is_augmixs_in_any_order_of_the_corruptions(g, seed):
    order = np.random.default_rng(seed).permutation(15)
    names = g["mce/corruptions"][order].tolist()
    error = 1.0 - g["mce/accuracy_per_corruption_severity"][order]
    assert robustness.mce(error, robustness.alexnet(names)) == pytest.approx(
        float(g["mce/mce_percent"]), 1e-9
    )
    for row, name, expected in zip(error, names, g["mce/ce_percent"][order], strict=True):
        assert robustness.mce(row[None], robustness.alexnet([name])) == pytest.approx(expected, rel=1e-9)


def test_alexnet_is_100_and_its_errors_are_known_by_name(g):
    names = g["mce/corruptions"].tolist()
    np.testing.assert_array_equal(robustness.alexnet(names), g["mce/alexnet_err"])
    assert set(names) == set(corruptions.CORRUPTIONS) == set(robustness.ALEXNET)
    assert robustness.mce(g["mce/alexnet_err_per_severity"], robustness.alexnet(names)) == pytest.approx(100)


def test_relative_mce_by_hand():
    """Two corruptions: (30 + 50) / 2 - 10 = 30 against 60, and 20 - 10 = 10 against 40."""
    error = np.array([[0.3, 0.5], [0.2, 0.2]])
    found = robustness.relative_mce(error, 0.1, np.array([0.7, 0.5]), 0.1)
    assert found == pytest.approx(100 * (30 / 60 + 10 / 40) / 2)


def test_flip_probability_is_the_authors(g):
    predictions = g["imagenet_p/predictions"]
    for kind, noise, difficulty in (("noise", True, 1), ("temporal", False, 1), ("temporal", False, 2)):
        expected = float(g[f"imagenet_p/{kind}_difficulty{difficulty}/flip_prob"])
        found = robustness.flip_probability(predictions, noise=noise, difficulty=difficulty)
        assert found == pytest.approx(expected, rel=1e-12)


def test_top5_distance_is_the_authors(g):
    ranks = g["imagenet_p/ranks_up_to_6"]
    for kind, noise, difficulty in (("noise", True, 1), ("temporal", False, 1), ("temporal", False, 2)):
        expected = float(g[f"imagenet_p/{kind}_difficulty{difficulty}/top5_distance"])
        found = robustness.top5_distance(ranks, noise=noise, difficulty=difficulty)
        assert found == pytest.approx(expected, rel=1e-12)


def test_top5_distance_by_hand():
    """The first two change places: 1 + 1. The likeliest becomes the eighth and four move up: 5 + 4."""
    still = np.arange(1, 11)
    swapped = np.array([2, 1, *range(3, 11)])
    fallen = np.array([8, *range(1, 8), 9, 10])
    distance = robustness.top5_distance
    assert distance([np.stack([still, swapped])], noise=False, difficulty=1) == 2
    assert distance([np.stack([still, fallen])], noise=False, difficulty=1) == 9
    assert distance([np.stack([still, swapped, still])], noise=True, difficulty=1) == 1


def test_flip_probability_by_hand():
    flips = robustness.flip_probability
    assert flips([np.array([1, 1, 2, 1])], noise=False, difficulty=1) == pytest.approx(2 / 3)
    assert flips([np.array([1, 1, 2, 1])], noise=True, difficulty=1) == pytest.approx(1 / 3)
    assert flips([np.array([1, 1, 2, 1])], noise=False, difficulty=2) == pytest.approx(1 / 2)
    assert flips([np.array([1, 1, 2, 1])], noise=True, difficulty=3) == pytest.approx(1 / 3)
    # The mean over sequences, not over frames.
    assert flips([np.array([1, 2]), np.array([3, 3, 3, 3, 3])], noise=False, difficulty=1) == 0.5
    assert flips(np.full((3, 9), 7), noise=False, difficulty=1) == 0.0
    with pytest.raises(ValueError, match="a sequence has 2 frames"):
        flips([np.array([1, 1])], noise=False, difficulty=2)


def test_the_classes_of_imagenet_a():
    a = robustness.IMAGENET_A
    assert len(a) == 200 and list(a) == sorted(set(a)) and (a[0], a[-1]) == (6, 988)
    assert {306, 311, 640, 643} <= set(a) and not {0, 312, 644, 999} & set(a)


# ---------------------------------------------------------------------------------------------- the protocols


def digits(**evaluation):
    config = get_config("digits").unlock()
    config.evaluate.update(evaluation)
    return config.lock()


def brightness(images, classes=10):
    """A classifier that can be computed by hand: the class is the tenth of the range the mean lies in."""
    mean = images.reshape(len(images), -1).mean(axis=1)
    return np.eye(classes, dtype=np.float32)[(mean * classes / 256).astype(int)]


def bench(config, test, classify=brightness, asked=None):
    """A bench whose classifier sees what evaluation sees."""

    def predictions(source):
        batches = list(loader.eval_batches(source, config, batch_size=50))
        images = np.concatenate([batch["image"][batch["mask"]] for batch in batches])
        if asked is not None:
            asked.append(images)
        return {"head": classify(images), "other": classify(255 - images)}

    return Bench(
        config=config,
        name="supervised",
        channels=0,
        train=test,
        test=test,
        load=further(config),
        features=lambda source: None,
        predictions=predictions,
    )


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 40])
def test_generated_corruptions_are_judged_by_name_and_severity(count):
    """Against a loop of its own over the images in memory."""
    config = digits(corruption_images=count)
    test = sources.load(config.data, "test")
    (found,) = PROTOCOLS["corruptions"].judge(bench(config, test))
    kept = np.arange(len(test))
    if count:
        kept = np.sort(np.random.default_rng(0).permutation(len(test))[:count])  # not the draw; its length
        assert found["n"] == count
        asked = []
        list(PROTOCOLS["corruptions"].judge(bench(config, test, asked=asked)))
        clean = asked[0]
        kept = np.array(
            [int(np.flatnonzero((test.images == image).all(axis=(1, 2, 3)))[0]) for image in clean]
        )
        assert len(set(kept.tolist())) == count and (np.diff(kept) > 0).all()

    def error(images):
        return 100.0 * (brightness(images).argmax(axis=1) != test.labels[kept]).mean()

    table = found["settings"]["errors"]
    for name in ("gaussian_noise", "snow", "brightness", "contrast", "jpeg_compression"):
        for severity in (1, 2, 5):
            images = corruptions.corrupt(test.images[kept], test.index[kept], name, severity)
            assert table[name][severity - 1] == pytest.approx(error(images), abs=1e-3)
    assert list(table) == list(corruptions.CORRUPTIONS) and {len(row) for row in table.values()} == {5}
    assert found["clean_error"] == pytest.approx(error(test.images[kept]))
    assert found["mean_error"] == pytest.approx(np.mean(list(table.values())), abs=1e-3)
    assert found["settings"]["images"] == "regenerated" and found["settings"]["constants"] == "CIFAR-10-C"
    assert "texture" in found["settings"]["frost"] and found["settings"]["head"] == "head"
    assert "mce" not in found  # AlexNet has no errors on digits


def photographs(tmp_path, layout):
    """Writes grey PNGs of 8 pixels: {path below tmp_path: grey level}."""
    for name, level in layout.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), level, np.uint8)).save(file)


def of_folder(tmp_path, **evaluation):
    """A config and a test split of two classes, dark and light, in folders."""
    photographs(tmp_path / "own", {f"{s}/{c}/0.png": 0 for s in ("train", "test") for c in ("dark", "light")})
    config = digits(**evaluation).unlock()
    config.data.update(source=f"folder:{tmp_path}/own", image_size=8, eval_crop=0.5)
    config = resolve(config)
    return config, sources.load(config.data, "test")


def halves(images):
    return brightness(images, 2)


def test_corruptions_from_folders_are_whole_and_judged_by_the_names_of_their_classes(tmp_path):
    """The light class is called `dark` nowhere: in the folders it sorts first, as `a_light` would not."""
    layout = {}
    wrong = {}
    for i, name in enumerate(corruptions.CORRUPTIONS):
        for severity in range(1, 6):
            wrong[name, severity] = (5 * i + severity) % 5  # of four light images, this many look dark
            for n in range(4):
                level = 10 if n < wrong[name, severity] else 250
                layout[f"{name}/{severity}/light/{n}.png"] = level
    photographs(tmp_path / "c", layout)
    config, test = of_folder(tmp_path, corruptions=f"folder:{tmp_path}/c")
    one = bench(config, test, halves)
    assert PROTOCOLS["corruptions"].refuse(one) == ""
    (found,) = PROTOCOLS["corruptions"].judge(one)
    for name in corruptions.CORRUPTIONS:
        expected = [25.0 * min(4, wrong[name, severity]) for severity in range(1, 6)]
        assert found["settings"]["errors"][name] == expected
    assert found["settings"]["images"] == "as published"

    (tmp_path / "c" / "fog" / "3").rename(tmp_path / "c" / "fog" / "drei")
    refusal = PROTOCOLS["corruptions"].refuse(one)
    assert "needs 75 folders TYPE/SEVERITY" in refusal and "fog/3" in refusal and "weather.tar" in refusal


def test_published_images_are_not_cropped_again(tmp_path):
    """A frame of another brightness: a crop of half the image would not see it."""
    config, test = of_folder(tmp_path)
    config.data.image_size = 64
    images = np.zeros((1, 64, 64, 1), np.uint8)
    images[0, 16:48, 16:48] = 255
    source = dataclasses.replace(test.select([0]), images=images)
    seen = [
        next(loader.eval_batches(s, config, batch_size=1))["image"]
        for s in (source, dataclasses.replace(source, whole=True))
    ]
    assert seen[0].mean() > 250 and seen[1].mean() == 255 / 4
    assert config.data.eval_crop == 0.5


def test_corruptions_that_are_not_prepared_are_refused(monkeypatch, tmp_path):
    def prepared(name, data_dir):
        raise FileNotFoundError(f"data.source=tfds:{name} is not prepared: run `ssljax prepare tfds:{name}`")

    monkeypatch.setattr(records, "prepared", prepared)
    config = digits(corruptions="tfds:cifar10_corrupted")
    one = bench(config, sources.load(config.data, "test"))
    assert "has no corrupted digits: set config.evaluate.corruptions=gen" in PROTOCOLS["corruptions"].refuse(
        one
    )
    config, test = of_folder(tmp_path, corruptions="tfds:cifar10_corrupted")
    one = bench(config, test)
    assert "ssljax prepare tfds:cifar10_corrupted/gaussian_noise_1" in PROTOCOLS["corruptions"].refuse(one)
    config = digits(corruptions="imagenet-c")
    one = bench(config, sources.load(config.data, "test"))
    assert "'imagenet-c' is unknown: use generated, tfds:" in PROTOCOLS["corruptions"].refuse(one)


@pytest.mark.slow
def test_tfds_has_the_names_that_are_asked_for():
    import tensorflow_datasets as tfds

    for name in ("cifar10_corrupted", "imagenet2012_corrupted"):
        known = {config.name for config in tfds.builder_cls(name).BUILDER_CONFIGS}
        asked = {in_tfds(name, c, s).split("/")[1] for c in corruptions.CORRUPTIONS for s in range(1, 6)}
        assert len(asked) == 75 and asked <= known


@pytest.mark.parametrize("protocol", ["corruptions", "imagenet_a", "perturbations"])
def test_a_run_without_classes_or_labels_is_refused(protocol):
    config = digits()
    test = sources.load(config.data, "test")
    one = bench(config, test)
    refuse = PROTOCOLS[protocol].refuse
    assert "has no heads of its own" in refuse(one._replace(predictions=None))
    bare = dataclasses.replace(test, labels=np.full(len(test), -1, np.int32))
    assert f"{protocol} judges by labels, and none of 297" in refuse(one._replace(test=bare))


def test_a_head_for_other_classes_is_an_error():
    config = digits()
    one = bench(config, sources.load(config.data, "test"), halves)
    with pytest.raises(ValueError, match="head tells 2 classes apart, digits has 10"):
        list(PROTOCOLS["corruptions"].judge(one))


def test_imagenet_a_leaves_out_the_other_800_classes(tmp_path):
    """Every image looks most like class 0, which is not in ImageNet-A."""
    names = tuple(f"n{i:08}" for i in range(1000))
    photographs(
        tmp_path / "imagenet-a", {f"{names[c]}/{i}.png": 20 * i + 5 for c in (6, 988) for i in range(3)}
    )
    config, test = of_folder(tmp_path, imagenet_a=f"folder:{tmp_path}/imagenet-a")
    config.evaluate.imagenet_a = f"folder:{tmp_path}/imagenet-a"
    config.data.eval_crop = 1.0
    test = dataclasses.replace(test, class_names=names)

    def classify(images):
        level = images.reshape(len(images), -1).mean(axis=1)
        logits = np.zeros((len(images), 1000), np.float32)
        logits[:, 0] = 9.0
        logits[:, 6] = 5.0
        logits[:, 988] = np.where(level > 40, 6.0, 1.0)
        return logits

    one = bench(config, test, classify)
    assert PROTOCOLS["imagenet_a"].refuse(one) == ""
    (found,) = PROTOCOLS["imagenet_a"].judge(one)
    # Two of three images of class 6 are dark, and one of three of class 988 is light.
    assert found["top1"] == pytest.approx(100 * (2 + 1) / 6) and found["top5"] == 100.0 and found["n"] == 6

    (tmp_path / "imagenet-a" / names[988]).rename(tmp_path / "imagenet-a" / names[987])
    assert 987 in robustness.IMAGENET_A
    (tmp_path / "imagenet-a" / names[987]).rename(tmp_path / "imagenet-a" / names[5])
    with pytest.raises(ValueError, match="images of class 5 .* which is not in ImageNet-A"):
        list(PROTOCOLS["imagenet_a"].judge(one))


def test_imagenet_a_needs_imagenets_classes_and_the_images(tmp_path):
    config, test = of_folder(tmp_path, imagenet_a=f"folder:{tmp_path}/imagenet-a")
    one = bench(config, test, halves)
    assert "tells ImageNet's 1000 classes apart" in PROTOCOLS["imagenet_a"].refuse(one)
    config.evaluate.imagenet_a = f"folder:{tmp_path}/nowhere/imagenet-a"
    one = bench(config, dataclasses.replace(test, class_names=tuple(map(str, range(1000)))))
    assert "unpacked imagenet-a.tar" in PROTOCOLS["imagenet_a"].refuse(one)


def frames(tmp_path):
    """Twelve frames of two sequences for each perturbation; the tenth frame of the first is light."""
    layout = {}
    for name in robustness.ALEXNET_FLIPS:
        for n in range(1, 13):
            layout[f"{name}/n01/first/{n}.png"] = 250 if n == 10 else 10
            layout[f"{name}/n01/second/{n}.png"] = 250 if n == 1 else 10
    photographs(tmp_path / "p", layout)


@pytest.mark.parametrize("at_once", [1, 13, 100])
def test_perturbations_follow_the_numbers_of_the_frames(tmp_path, monkeypatch, at_once):
    """First: two flips of eleven in time, one from the first frame. Second: one, and all eleven."""
    frames(tmp_path)
    monkeypatch.setattr(perturbations, "AT_ONCE", at_once)
    config, test = of_folder(tmp_path, perturbations=f"folder:{tmp_path}/p")
    config.data.eval_crop = 1.0
    one = bench(config, test, halves)
    assert PROTOCOLS["perturbations"].refuse(one) == ""
    (found,) = PROTOCOLS["perturbations"].judge(one)
    noise = 100 * (1 / 11 + 11 / 11) / 2
    temporal = 100 * (2 / 11 + 1 / 11) / 2
    for name, value in found["settings"]["flips"].items():
        assert value == pytest.approx(noise if "noise" in name else temporal, abs=1e-3)
    assert found["flip_probability"] == pytest.approx((2 * noise + 8 * temporal) / 10)
    assert found["n"] == 240 and "mfr" not in found
    loaded = one.load(
        "test", source=f"folder:{tmp_path}/p", train_split="snow", test_split="snow", labels="none"
    )
    assert [len(rows) for rows in sequences(loaded)] == [12, 12]

    names = tuple(map(str, range(1000)))

    def wide(images):
        return np.pad(halves(images), ((0, 0), (0, 998)))

    (found,) = PROTOCOLS["perturbations"].judge(
        bench(config, dataclasses.replace(test, class_names=names), wide)
    )
    flips = found["settings"]["flips"]
    table = dict(gaussian_noise=23.65, shot_noise=30.06, motion_blur=9.3, zoom_blur=5.94, snow=11.93)
    table |= dict(brightness=4.89, translate=11.01, rotate=13.1, tilt=7.05, scale=23.53)
    # Logits of two classes: the one that wins moves from the first to the second place, and back.
    assert {*found["settings"]["top5_distances"].values()} == {round(noise / 50, 3), round(temporal / 50, 3)}
    assert found["mt5d"] > 0
    assert found["mfr"] == pytest.approx(
        np.mean([100 * flips[name] / table[name] for name in table]), rel=1e-4
    )


def test_perturbations_that_are_not_there_are_refused(tmp_path):
    config, test = of_folder(tmp_path)
    assert "needs the frames of ImageNet-P: set" in PROTOCOLS["perturbations"].refuse(
        bench(config, test, halves)
    )
    photographs(tmp_path / "p", {"snow/a/b/1.png": 1})
    config.evaluate.perturbations = f"folder:{tmp_path}/p"
    refusal = PROTOCOLS["perturbations"].refuse(bench(config, test, halves))
    assert "has no folder gaussian_noise, shot_noise" in refusal


# ------------------------------------------------------------------------------------------------- the report


def line(features, errors, clean, **fields):
    settings = {
        "images": "regenerated",
        "size": 8,
        "constants": "CIFAR-10-C",
        "frost": "a texture",
        "head": "h",
    }
    common = {
        "run": "r", "experiment": "e", "preset": "p", "stage": "", "seed": 0, "epochs": 1, "step": 1,
        "data": "digits", "train_images": 5, "data_checksum": "d", "config_hash": "c",
        "changed": {}, "commit": "x",
        "versions": {}, "command": "", "features": features, "protocol": "corruptions",
        "settings": {**settings, "errors": errors}, "labels_per_class": 0, "draw": 0, "n": 9, "seconds": 0.0,
        "time": "1", **fields,
    }  # fmt: skip
    mean = float(np.mean(list(errors.values())))
    return [
        {**common, "metric": "mean_error", "value": mean},
        {**common, "metric": "clean_error", "value": clean},
    ]


def errors(level):
    return {name: [level + s + i for s in range(5)] for i, name in enumerate(corruptions.CORRUPTIONS)}


@pytest.mark.slow
def test_the_report_sets_a_student_beside_its_teacher(tmp_path):
    rows = line("supervised", errors(20.0), 10.0) + line("supervised", errors(22.0), 12.0, seed=1)
    rows += line("noisy", errors(11.0), 8.0, config_hash="c2", time="2")
    (head, table, note, picture) = pictures.robustness_blocks(groups(rows), tmp_path)
    assert "digits, 9 images" in head.content
    found = {row[0]: row[1:] for row in table.content}
    assert len(found["error, %"]) == 2 and found["error, %"][1].startswith("noisy")
    assert found["clean"] == ["11.0 ± 1.4", "8.0"]
    assert found["mean over corruptions"] == ["30.0 ± 1.4", "20.0"]
    ratio = 100 * np.mean([(13 + i) / (23 + i) for i in range(15)])
    assert found[[name for name in found if "is 100" in name][0]] == ["100.0", f"{ratio:.1f}"]
    assert found["gaussian noise"] == ["23.0", "13.0"] and found["jpeg compression"] == ["37.0", "27.0"]
    assert "not a result on the published files" in note.content and "Seeds 0, 1" in note.content
    assert (tmp_path / picture.content[0]).stat().st_size > 5000
    assert (
        pictures.robustness_blocks(groups([{**rows[0], "protocol": "knn", "metric": "top1"}]), tmp_path) == []
    )


@pytest.mark.slow
def test_runs_on_other_images_are_not_compared(tmp_path):
    rows = line("supervised", errors(20.0), 10.0) + line("noisy", errors(11.0), 8.0, n=8, time="2")
    blocks = pictures.robustness_blocks(groups(rows), tmp_path)
    tables = [block.content for block in blocks if block.kind == "table"]
    assert [len(table[0]) for table in tables] == [2, 2]
    assert len({block.content[0] for block in blocks if block.kind == "img"}) == 2


@pytest.mark.slow
def test_evaluate_and_report_a_trained_run(tmp_path, capsys, monkeypatch, one_device):
    from ssljax import train

    shrink(monkeypatch.setitem)
    overrides = ["--config.epochs=1", "--config.model.width=0.125", "--config.eval_every_epochs=0"]
    overrides.append("--config.optim.warmup_epochs=0")
    run = ["--config", "configs/supervised.py:digits", f"--workdir={tmp_path}/run", *overrides]
    train.main(run)
    evaluate.main([*run, "--protocols=corruptions", "--config.evaluate.corruption_images=30"])
    assert "corruptions: mean error" in capsys.readouterr().out
    rows = read(tmp_path / "run" / "results.jsonl")
    assert {row["metric"] for row in rows} == {"mean_error", "clean_error"} and {
        row["n"] for row in rows
    } == {30}
    assert json.loads(json.dumps(rows[0]["settings"]))["errors"].keys() == set(corruptions.CORRUPTIONS)
    report.main([str(tmp_path / "run")])
    text = (tmp_path / "run" / "report.md").read_text()
    assert "## Robustness to corruptions (digits, 30 images)" in text and "(corrupted-digits.png)" in text
    with pytest.raises(SystemExit, match="imagenet_a judges a network that tells ImageNet's 1000 classes"):
        evaluate.main([*run, "--protocols=imagenet_a"])
