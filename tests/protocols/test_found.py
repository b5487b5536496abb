"""What a network finds in annotated images is measured in pixels of the original images, each image once."""

import numpy as np
import pytest

from ssljax import config
from ssljax.data import annotated, sources
from ssljax.protocols import PROTOCOLS, boxes
from ssljax.protocols.bench import Bench
from tests import scenes


def bench_of(source, what, finds=None, **data):
    """A bench that is tested on its training images; `finds` makes predictions of a batch."""
    c = config.base()
    config.annotated(c, what)
    c.data.update(source=source, train_split="2007/trainval+2012/trainval", **data)
    c = config.resolve(c)
    if what == "boxes":
        c.annotated.update(short_sides=(32,), test_short_side=96, long_side=128)
    else:
        c.annotated.test_side = 64
    split = sources.load(c.data, "train")

    def predicted(test):
        for batch, count in annotated.eval_batches(test, c, batch_size=2):
            batch = {name: values[:count] for name, values in batch.items()}
            yield batch, finds(batch)

    return Bench(
        config=c,
        name="finder",
        channels=0,
        train=split,
        test=split,
        load=lambda split: None,
        features=lambda split: None,
        predicted=predicted if finds else None,
    )


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return f"voc:{scenes.voc(tmp_path_factory.mktemp('voc'))}"


def exact(batch):
    """What is there, last in the list, and before it a detection that does not count."""
    none = np.full((len(batch["index"]), 1), -1, np.int32)
    junk = np.full((len(batch["index"]), 1, 4), 7.0, np.float32)
    classes = np.concatenate([none, batch["classes"]], axis=1)
    return {
        "boxes": np.concatenate([junk, batch["boxes"]], axis=1),
        "scores": np.where(classes >= 0, 0.9, 1.0).astype(np.float32),
        "classes": classes,
    }


THREE = ("horse", "aeroplane", "tvmonitor")


def test_the_truth_has_full_marks_by_both_rules(voc):
    for rules in ("data", "coco"):
        bench = bench_of(voc, "boxes", exact, categories=THREE)
        bench.config.evaluate.detection_rules = rules
        assert PROTOCOLS["detection"].refuse(bench) == ""
        (found,) = PROTOCOLS["detection"].judge(bench)
        assert [found["AP"], found["AP75"]] == pytest.approx([100.0, 100.0]) and found["n"] == 3
        settings = found["settings"]
        assert settings["rules"] == {"data": "voc"}.get(rules, rules) and settings["found"] == 3
        assert settings["per_class"] == {name: [100.0, 100.0] for name in THREE}
        assert settings["precision"] == dict.fromkeys(("0.5", "0.75", "0.9"), [100.0] * 11)
    assert "AP_small" in found and "AP_large" not in found  # nothing here is large


def test_one_class_missed_and_one_misplaced(voc):
    def finds(batch):
        found = exact(batch)
        found["classes"][found["classes"] == 1] = -1  # no aeroplane
        horse = found["classes"] == 0
        found["boxes"][horse] += np.array([0.0, 0.0, 0.4, 0.0]) * found["boxes"][horse][:, [2]]
        return found

    (found,) = PROTOCOLS["detection"].judge(bench_of(voc, "boxes", finds, categories=THREE))
    # The horse from 10 to 40 is found from 10 to 56: IoU (30 + 1) / (46 + 1), +1 pixel as in VOC: 0.66
    per_class = found["settings"]["per_class"]
    assert per_class == {"horse": [40.0, 100.0], "aeroplane": [0.0, 0.0], "tvmonitor": [100.0, 100.0]}
    assert found["AP50"] == pytest.approx(200 / 3) and found["AP"] == pytest.approx(140 / 3)
    precision = found["settings"]["precision"]
    assert precision == {"0.5": [66.7] * 11, "0.75": [33.3] * 11, "0.9": [33.3] * 11}


def test_boxes_go_back_to_the_original_size_and_empty_ones_are_dropped():
    found = boxes.restored(
        np.array([[-4.0, 8, 16, 90], [30, 0, 40, 8]]), np.array([80, 24]), np.array([40, 48])
    )
    np.testing.assert_allclose(found, [[0, 4, 32, 40], [48, 0, 48, 4]])


def test_difficult_objects_count_neither_for_nor_against(voc):
    # A person is there once, and difficult; the other two are not there.
    bench = bench_of(voc, "boxes", exact, categories=("horse", "person"))
    reason = PROTOCOLS["detection"].refuse(bench)
    assert "no person" in reason and "detection_rules=coco" in reason
    for key, value in (("evaluate.detection_rules", "coco"), ("data.source", "digits")):
        bench = bench_of(voc, "boxes", exact, categories=("horse", "person"))
        bench.config.update_from_flattened_dict({key: value, "annotated.test_long_side": 100})
        assert PROTOCOLS["detection"].refuse(bench) == ""
        (found,) = PROTOCOLS["detection"].judge(bench)
        assert found["AP"] == pytest.approx(100.0) and list(found["settings"]["per_class"]) == ["horse"]
        assert found["settings"]["rules"] == "coco" and found["settings"]["long_side"] == 100


def test_masks_are_pooled_over_the_split(voc):
    def finds(batch):
        shifted = np.where(batch["mask"] == 255, 1, batch["mask"])  # borders and padding count nowhere
        shifted[shifted == 2] = 0  # no aeroplane
        return {"mask": shifted}

    bench = bench_of(voc, "masks", finds, categories=THREE)
    assert PROTOCOLS["segmentation"].refuse(bench) == ""
    with pytest.raises(ValueError, match="a prediction is 9, but there are 4 classes"):
        finds_nine = bench_of(voc, "masks", lambda b: {"mask": np.full_like(b["mask"], 9)}, categories=THREE)
        next(PROTOCOLS["segmentation"].judge(finds_nine))
    (found,) = PROTOCOLS["segmentation"].judge(bench)
    missed = (40 - 2 - 2) * (50 - 9 - 2)  # an aeroplane without its border
    ground = sum((mask == 0).sum() for mask in (bench.test.mask_of(i) for i in range(3)))
    assert found["settings"]["per_class"] == {
        "background": round(100 * ground / (ground + missed), 2), "horse": 100.0, "aeroplane": 0.0,
        "tvmonitor": 100.0,
    }  # fmt: skip
    assert found["mIoU"] == pytest.approx((200 + 100 * ground / (ground + missed)) / 4) and found["n"] == 3


def test_what_cannot_be_judged_is_refused(voc):
    refuse = {name: PROTOCOLS[name].refuse for name in ("detection", "segmentation")}
    assert "finds nothing" in refuse["detection"](bench_of(voc, "boxes"))
    assert "data.annotations is 'masks'" in refuse["detection"](bench_of(voc, "masks", exact))
    bench = bench_of(voc, "masks", exact)
    other = bench_of(voc, "masks", exact, categories=THREE).test
    assert "21 classes and the test images 4" in refuse["segmentation"](bench._replace(test=other))
    later = lambda batch: exact(batch) | {"classes": exact(batch)["classes"] + 1}
    with pytest.raises(ValueError, match="found class 3, and .* has 3 classes"):
        next(PROTOCOLS["detection"].judge(bench_of(voc, "boxes", later, categories=THREE)))
