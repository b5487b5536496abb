"""Scenes of digits: boxes around the ink, masks of it, and the same scenes always."""

import pytest

from configs.detection import get_config
from ssljax import config
from ssljax.data import annotated, sources


def data_of(what):
    c = get_config("digits").unlock()
    c.data.annotations = what
    return config.resolve(c)


def test_boxes_reach_around_the_ink_that_the_masks_name():
    boxes, masks = (sources.load(data_of(what).data, "train") for what in ("boxes", "masks"))
    assert len(boxes) == len(masks) == 500 and len(sources.load(data_of("boxes").data, "test")) == 99
    assert boxes.num_classes == 10 and masks.num_classes == 11
    counts = (boxes.targets["classes"] >= 0).sum(1)
    assert set(counts.tolist()) == {1, 2, 3}
    for i in range(20):
        pixels = annotated.pixels(boxes, i)
        mask = masks.mask_of(i)
        assert pixels.shape[:2] == mask.shape == tuple(boxes.targets["size"][i])
        assert mask.shape == ((32, 48) if i % 2 == 0 else (48, 32))
        assert (pixels[mask > 0] >= 128).all()
        for box, label in zip(boxes.targets["boxes"][i], boxes.targets["classes"][i], strict=True):
            if label < 0:
                continue
            x1, y1, x2, y2 = box.astype(int)
            ink = mask[y1:y2, x1:x2] == 1 + label
            edges = ink[0], ink[-1], ink[:, 0], ink[:, -1]
            assert all(edge.any() for edge in edges), "each side of the box touches the ink"


@pytest.mark.parametrize("split, checksum", [("train", "5056e509de08e80d"), ("test", "482e5216c0916631")])
def test_the_scenes_are_always_the_same(split, checksum):
    assert sources.load(data_of("boxes").data, split).checksum == checksum
