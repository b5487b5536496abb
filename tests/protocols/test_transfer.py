"""Logistic regression on other data sets, VOC's labels, and VISSL's SVMs, on small made-up features."""

import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, balanced_accuracy_score
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from configs import simclr
from ssljax import benches
from ssljax.data import sampler, sources, voc
from ssljax.data import transfer as transfer_sets
from ssljax.protocols import PROTOCOLS, finetuned, ranking, transfer, voc07_svm
from ssljax.protocols.bench import Bench


@pytest.fixture(autouse=True)
def one_thread():
    """Threads of such small fits wait for each other."""
    with threadpool_limits(1):
        yield


def blobs(n, classes, seed, spread=1.0, dim=6):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(classes, dim))
    labels = rng.integers(classes, size=n)
    return (centres[labels] + spread * rng.normal(size=(n, dim))).astype(np.float32), labels


def several(n, seed, classes=4, dim=8):
    """Features with several labels each, of which some are only difficult."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dim)).astype(np.float32)
    direction = np.random.default_rng(9).normal(size=(dim, classes))
    labels = (x @ direction + rng.normal(size=(n, classes)) > 0.8).astype(np.int8)
    labels[rng.uniform(size=labels.shape) < 0.05] = -1
    return x, labels


def test_the_grid_has_the_papers_45_values():
    assert len(transfer.GRID) == 45 and transfer.GRID[0] == 1e5 and transfer.GRID[-1] == pytest.approx(1e-6)
    assert len(transfer.SETS) == 12
    assert {name for name, one in transfer.SETS.items() if one.metric == "mean_per_class"} == {
        "aircraft",
        "pets",
        "caltech101",
        "flowers",
    }


def test_lambda_comes_from_the_validation_images_and_the_fit_sees_both():
    parts = [blobs(n, 3, seed) for seed, n in enumerate((60, 30, 200))]
    found, l2, _ = transfer.probe(parts, 3)

    both = np.concatenate([parts[0][0], parts[1][0]])
    labels = np.concatenate([parts[0][1], parts[1][1]])
    mean, std = both.mean(axis=0), both.std(axis=0)
    model = LogisticRegression(C=1 / (len(both) * l2), max_iter=2000).fit((both - mean) / std, labels)
    predicted = model.predict((parts[2][0] - mean) / std)
    assert found["top1"] == pytest.approx(100 * (predicted == parts[2][1]).mean(), abs=0.6)
    assert found["mean_per_class"] == pytest.approx(
        100 * balanced_accuracy_score(parts[2][1], predicted), abs=0.6
    )
    wrong = (parts[0], (parts[1][0], (parts[1][1] + 1) % 3), parts[2])
    assert transfer.probe(list(wrong), 3)[1] != l2


def test_mean_per_class_of_a_constant_answer():
    labels = np.array([0] * 9 + [1])
    always = np.tile([1.0, 0.0, 0.0], (10, 1))
    assert transfer.metrics_of(always, labels) == {"top1": 90.0, "mean_per_class": 50.0}


def test_several_labels_are_judged_without_the_difficult_ones():
    parts = [several(n, seed) for seed, n in enumerate((80, 40, 150))]
    found, l2, _ = transfer.probe(parts, 4)
    assert 50 < found["map"] < 100 and l2 in transfer.GRID
    assert not transfer.many(*parts[0], 4, l2, {}, 2)[1]
    scores = np.array([[3.0], [2.0], [1.0], [0.5]])
    labels = np.array([[1], [-1], [0], [1]])
    assert transfer.metrics_of(scores, labels)["map"] == pytest.approx(84.8485, abs=1e-4)


def test_average_precisions_are_scikit_learns_and_the_devkits(golden):
    """Ties: DeepCluster takes 1e-5 from the scores of positives."""
    g = golden("voc")
    scores, labels = g["voccls/scores"], g["voccls/labels"] > 0
    for name, function in (
        ("sklearn_ap", ranking.step),
        ("voc07_11point_ap_stable_sort", ranking.eleven_points),
        ("voc_allpoint_ap_stable_sort", ranking.envelope),
    ):
        found = [function(scores[:, c], labels[:, c]) for c in range(5)]
        np.testing.assert_allclose(found, g[f"voccls/{name}"], rtol=1e-7)
    scores, labels = g["scores"], g["labels_255_is_ignore"]
    found = []
    for c in range(20):
        sure = labels[:, c] != 255
        lowered = scores[sure, c] - float(g["top_tie_epsilon"]) * labels[sure, c]
        found.append(ranking.step(lowered, labels[sure, c] == 1))
    np.testing.assert_allclose(found, g["ap"], atol=1e-6)


def test_classes_without_a_positive_have_no_average_precision():
    """By hand: class 0 ranks its positives 1 and 3, class 1 its only one second; 2 and 3 have none."""
    scores = np.array([[3.0, 1.0, 9.0, 1.0], [2.0, 2.0, 1.0, 2.0], [1.0, 0.5, 2.0, 3.0]])
    labels = np.array([[1, 1, 0, -1], [0, 0, -1, -1], [1, 0, 0, -1]])
    eleven = 100 * ((6 + 5 * 2 / 3) / 11 + 1 / 2) / 2
    assert transfer.metrics_of(scores, labels)["map"] == pytest.approx(eleven)
    assert finetuned.step_map(scores, labels) == pytest.approx(100 * (5 / 6 + 1 / 2) / 2)
    with pytest.raises(ValueError, match="none of 3 has"):
        finetuned.step_map(scores[:, 2:], labels[:, 2:])


def test_the_svm_is_vissls(monkeypatch):
    """Against the same thing written out, with difficult images as negatives in training."""
    parts = [several(n, seed) for seed, n in enumerate((60, 60, 100))]
    monkeypatch.setattr(voc07_svm, "splits", lambda bench: parts)
    monkeypatch.setattr(voc07_svm, "features_of", lambda bench, part: part)
    costs = (0.01, 1.0, 10.0)
    config = ConfigDict({"seed": 0, "evaluate": {"svm_costs": costs, "low_shot": (2,)}})
    whole, *few = PROTOCOLS["voc07_svm"].judge(Bench(config, "m", 0, None, None, None, None))

    x = np.concatenate([parts[0][0], parts[1][0]])
    labels = np.concatenate([parts[0][1], parts[1][1]])
    x, test = (v / (np.linalg.norm(v, axis=1)[:, None] + 1e-5) for v in (x, parts[2][0]))
    expected = []
    for k, cost in enumerate(whole["settings"]["costs"]):
        assert cost in costs
        model = LinearSVC(C=cost, class_weight={1: 2, -1: 1}, max_iter=2000, random_state=0)
        model.fit(x, np.where(labels[:, k] == 1, 1, -1))
        sure = parts[2][1][:, k] != -1
        arguments = model.decision_function(test[sure]), parts[2][1][sure, k] == 1
        expected.append(ranking.envelope(*arguments))
        assert ranking.step(*arguments) == pytest.approx(average_precision_score(arguments[1], arguments[0]))
    assert whole["map"] == pytest.approx(100 * np.mean(expected)) and whole["n"] == 100

    assert [(one["labels_per_class"], one["draw"]) for one in few] == [(2, i) for i in range(5)]
    assert len({one["settings"]["cost"] for one in few}) == 1 and np.std([one["map"] for one in few]) > 0
    drawn = voc07_svm.draw(labels, 2, np.random.default_rng(0))
    assert ((drawn == 1).sum(axis=0) == 2).all() and ((drawn == 0).sum(axis=0) == 6).all()
    assert (labels[drawn >= 0] == drawn[drawn >= 0]).all()
    with pytest.raises(ValueError, match="low_shot=99 needs 99 images with label 1 of class 0"):
        voc07_svm.draw(labels, 99, np.random.default_rng(0))


def data(**changed):
    return ConfigDict(
        {
            "source": "folder:x",
            "train_split": "train",
            "test_split": "test",
            "labels": "folders",
            "annotations": "",
            "holdout": 0.1,
            "crop_on": "device",
            "image_size": 8,
            "channels": 3,
            "on_bad_image": "error",
            "background": "white",
            "data_dir": "",
            "train_per_class": 0,
            "labels_per_class": 0,
            "label_fraction": 1.0,
            "keep_unlabelled": False,
            "unlabelled": "",
            **changed,
        }
    )


def test_an_unpacked_devkit_has_several_labels_per_image(tmp_path):
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "JPEGImages").mkdir()
    for i in range(3):
        Image.new("RGB", (9, 12), "red").save(tmp_path / "JPEGImages" / f"00000{i}.jpg")
    for name, marks in {"cat": (1, -1, 0), "dog": (-1, 1, 1)}.items():
        text = "".join(f"00000{i} {mark:2}\n" for i, mark in enumerate(marks))
        (tmp_path / "ImageSets" / "Main" / f"{name}_train.txt").write_text(text)
    found = sources.load(data(source=f"folder:{tmp_path}"), "train")
    assert found.class_names == ("cat", "dog") and found.targets["labels"].tolist() == [
        [1, 0],
        [0, 1],
        [-1, 1],
    ]
    with pytest.raises(FileNotFoundError, match="has no files CLASS_test.txt"):
        sources.load(data(source=f"folder:{tmp_path}"), "test")
    assert voc.targets([[0, 2], [1]], [[2], [1]], 3).tolist() == [[-1, 0, 1], [0, 1, 0]]


def test_folders_are_judged_and_absent_data_sets_named(tmp_path, caplog, monkeypatch):
    """The classes differ in two rows at the border, which the run's own crop leaves out."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name, red in (("a", 40), ("b", 200)):
            folder = tmp_path / "mine" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 40, (40, 40, 3), dtype=np.uint8)
                pixels[:2, :, 0] += np.uint8(red)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    config = simclr.get_config("digits").unlock()
    config.data.update(image_size=40, channels=3, eval_crop=0.875)
    config.evaluate.update(transfer="mine,birdsnap", transfer_root=str(tmp_path))
    one = benches.of_pixels(config, None, None)
    assert PROTOCOLS["transfer"].refuse(one) == ""
    (found,) = PROTOCOLS["transfer"].judge(one)
    assert found["protocol"] == "transfer_mine" and found["top1"] == found["mean_per_class"] == 100.0
    assert (found["settings"]["train"], found["settings"]["validation"], found["n"]) == (22, 2, 8)
    assert found["settings"]["converged"]
    assert "leaves out birdsnap (TFDS does not have it" in caplog.text

    # lambda is chosen by the metric of the data set.
    values = ({"top1": 50.0, "mean_per_class": min(i, 2.0)} for i in range(99))
    monkeypatch.setattr(transfer, "metrics_of", lambda *_: next(values))
    monkeypatch.setitem(transfer.SETS, "mine", transfer_sets.DataSet((22, 2, 8), "mean_per_class"))
    (found,) = PROTOCOLS["transfer"].judge(one)
    assert found["settings"]["l2"] == transfer.GRID[2] and "top1" not in found

    config.evaluate.transfer = "birdsnap,petz"
    refusal = PROTOCOLS["transfer"].refuse(one)
    assert "none of these data sets is there" in refusal and f"no folder {tmp_path}/petz" in refusal
    (tmp_path / "mine").rename(tmp_path / "aircraft")
    config.evaluate.transfer = "aircraft"
    with pytest.raises(ValueError, match=r"aircraft has 24 images .* has 6,667 \(3,334, 3,333, 3,333 for"):
        list(PROTOCOLS["transfer"].judge(one))


def test_a_transfer_source_has_the_papers_four_splits(tmp_path, monkeypatch):
    """The drawn validation images are the probe's, so fine-tuning chooses on the same ones."""
    for split, count in (("train", 10), ("test", 3)):
        for name in "ab":
            (tmp_path / "mine" / split / name).mkdir(parents=True)
            for i in range(count):
                grey = 20 * i + 7 * (name == "b")
                Image.new("RGB", (8, 8), (grey, grey, grey)).save(
                    tmp_path / "mine" / split / name / f"{i}.png"
                )

    def load(stored, name="mine"):
        settings = {"source": f"transfer:{name}", "data_dir": str(tmp_path), "test_split": stored}
        return sources.load(data(**settings), "test")

    names = {
        stored: {load(stored).describe(i) for i in range(len(load(stored)))}
        for stored in transfer_sets.SPLITS
    }
    assert {stored: len(each) for stored, each in names.items()} == {
        "train": 18,
        "validation": 2,
        "train+validation": 20,
        "test": 6,
    }
    assert names["train"] | names["validation"] == names["train+validation"]
    assert not names["train"] & names["validation"]
    assert load("test").name == "transfer:mine" and load("validation").num_classes == 2
    with pytest.raises(ValueError, match=r"data.test_split='val': data.source=transfer:mine has the splits"):
        load("val")

    (tmp_path / "mine").rename(tmp_path / "pets")
    plain = sampler.order(0, 0, 20)
    for held in (6, 5):
        monkeypatch.setitem(transfer_sets.SETS, "pets", transfer_sets.DataSet((20 - held, held, 6)))
        train, drawn = (load(stored, "pets").index for stored in transfer_sets.SPLITS[:2])
        assert sorted([*train, *drawn]) == list(range(20))
        assert (sum(drawn < 10) == 3 != sum(plain[:6] < 10)) if held == 6 else set(drawn) == set(plain[:5])
    (tmp_path / "pets").rename(tmp_path / "mine")

    def sizes():
        """Of the four splits. No test image is among the others."""
        found = {stored: load(stored) for stored in transfer_sets.SPLITS}
        seen = {stored: {source.describe(i) for i in range(len(source))} for stored, source in found.items()}
        assert not seen["test"] & (seen["train+validation"] | seen["validation"])
        return [len(source) for source in found.values()]

    mine = tmp_path / "mine"
    for i in range(2):
        (mine / "val" / "ab"[i]).mkdir(parents=True)
        Image.new("RGB", (8, 8), (9, 9, 9)).save(mine / "val" / "ab"[i] / "0.png")
    assert sizes() == [20, 2, 22, 6]
    shutil.rmtree(mine / "test")  # so those in val are the test images
    assert sizes() == [18, 2, 20, 2]
    shutil.rmtree(mine / "val")  # a part of the only images is held out
    (mine / "train").rename(tmp_path / "all")
    mine.rmdir()
    (tmp_path / "all").rename(mine)
    held = round(20 * data().holdout)
    assert sizes() == [20 - held - 2, 2, 20 - held, held]
