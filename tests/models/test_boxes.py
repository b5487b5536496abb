"""Boxes against detectron2 and torchvision, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.models import boxes
from ssljax.models.boxes import HEAD_WEIGHTS, RPN_WEIGHTS

encode = jax.jit(boxes.encode, static_argnames="weights")
decode = jax.jit(boxes.decode, static_argnames="weights")
clip = jax.jit(boxes.clip)
iou = jax.jit(boxes.iou)
match = jax.jit(boxes.match, static_argnames=("below", "above", "low_quality", "tie"))
nms = jax.jit(boxes.nms, static_argnames=("threshold", "keep"))


@pytest.fixture(scope="module")
def of(golden):
    file = golden("boxes")
    return lambda case: {name: jnp.asarray(file[case][name]) for name in file[case].dtype.names}


def random_boxes(seed, n, side=200.0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, side, (n, 2))
    return jnp.asarray(np.concatenate([corner, corner + rng.uniform(5, 60, (n, 2))], 1), jnp.float32)


def test_an_anchor_by_hand():
    cell = boxes.cell_anchors()
    assert cell.shape == (15, 4)
    half = [22.6274, 11.3137]  # width 32 sqrt(2), height 32 / sqrt(2)
    np.testing.assert_allclose(cell[0], [-half[0], -half[1], *half], rtol=1e-5)
    np.testing.assert_allclose(cell[4], [-32, -32, 32, 32], rtol=1e-6)  # size-major: 64, ratio 1
    grid = boxes.anchors(50, 84, stride=16)
    assert grid.shape == (63_000, 4)  # of an image of 800 x 1333
    np.testing.assert_array_equal(grid[:15], cell)  # offset 0, not rounded
    np.testing.assert_allclose(grid[15 * 85] - cell[0], [16, 16, 16, 16], rtol=1e-5)  # row 1, column 1


@pytest.mark.slow
def test_anchors_equal_detectron2(of):
    for case in ("anchors_c1", "anchors_c2"):
        g = of(case)
        height, width = (int(n) for n in g["grid_hw"])
        found = boxes.anchors(
            height,
            width,
            stride=int(g["stride"]),
            sizes=g["sizes"].tolist(),
            ratios=g["aspect_ratios"].tolist(),
            offset=float(g["offset"]),
        )
        last = len(g["anchors"])  # of the second case only the last row of cells is stored
        np.testing.assert_allclose(found[-last:], g["anchors"], atol=1e-3)


def test_deltas_equal_detectron2(of):
    g = of("deltas")
    encoded = encode(g["target"], g["src"], weights=HEAD_WEIGHTS)
    np.testing.assert_allclose(encoded, g["encoded"], rtol=1e-5, atol=1e-4)
    decoded = decode(g["deltas"], g["src"], weights=HEAD_WEIGHTS)
    np.testing.assert_allclose(decoded, g["decoded"], rtol=1e-4, atol=1e-4)
    per_class = decode(g["w1_deltas"].reshape(-1, 3, 4), g["src"][:, None], weights=RPN_WEIGHTS)
    np.testing.assert_allclose(per_class.reshape(-1, 12), g["w1_decoded"], rtol=1e-4, atol=1e-4)


def test_encode_and_decode_are_inverse_and_growth_is_limited():
    a, b = random_boxes(0, 30), random_boxes(1, 30)
    for weights in (RPN_WEIGHTS, HEAD_WEIGHTS):
        np.testing.assert_array_equal(encode(a, a, weights=weights), np.zeros((30, 4)))
        deltas = encode(b, a, weights=weights)
        np.testing.assert_allclose(decode(deltas, a, weights=weights), b, rtol=1e-4, atol=1e-3)
    box = jnp.array([[10.0, 20.0, 26.0, 36.0]])
    grown = decode(jnp.array([[0.0, 0.0, 50.0, 50.0]]), box, weights=RPN_WEIGHTS)
    np.testing.assert_allclose(grown, [[-482.0, -472.0, 518.0, 528.0]], rtol=1e-5)  # 16 * 62.5 = 1000


def test_overlap_and_clip_equal_detectron2(of):
    g = of("iou")
    np.testing.assert_allclose(iou(g["boxes1"], g["boxes2"]), g["iou"], rtol=1e-5)
    g = of("clip")
    np.testing.assert_array_equal(clip(g["boxes"], g["image_hw"]), g["clipped"])
    np.testing.assert_array_equal(boxes.nonempty(g["clipped"]), g["nonempty"])
    np.testing.assert_array_equal(boxes.nonempty(g["clipped"], above=8.0), g["nonempty_threshold8"])


def labels(overlap, valid, low_quality=True, **tie):
    below, above = (0.3, 0.7) if low_quality else (0.5, 0.5)
    which, label = match(overlap, valid, below=below, above=above, low_quality=low_quality, **tie)
    return np.asarray(which), np.asarray(label)


def test_matches_equal_detectron2_but_for_a_box_that_touches_nothing(of):
    g = of("matcher")
    real = g["iou"].max(1) > 0
    assert not real.all() and (g["rpn_label"] == 1).all()  # detectron2's own result
    expected = np.asarray(g["rpn_label_without_the_untouched_gt"])
    for valid in (real, jnp.ones_like(real)):
        which, label = labels(g["iou"], valid, tie=0.0)
        np.testing.assert_array_equal(label, expected)
        np.testing.assert_array_equal(which, g["rpn_match"])
    nearly = np.flatnonzero(labels(g["iou"], real)[1] != expected)  # equal but for their last bits
    assert len(nearly) == 4
    np.testing.assert_allclose(g["iou"][1, nearly], g["iou"][1].max(), rtol=2e-7)
    which, label = labels(g["iou"], real, low_quality=False)
    np.testing.assert_array_equal(label, g["roi_label"])
    np.testing.assert_array_equal(which, g["roi_match"])


def test_padded_boxes_change_no_match(of):
    overlap = of("matcher")["iou"]
    real = overlap.max(1) > 0
    rubbish = jnp.full((58, overlap.shape[1]), 0.9, jnp.float32)
    for extra in (rubbish, 0 * rubbish):
        padded = jnp.concatenate([overlap, extra])
        valid = jnp.concatenate([real, jnp.zeros(58, bool)])
        for low_quality in (True, False):
            for a, b in zip(
                labels(padded, valid, low_quality), labels(overlap, real, low_quality), strict=True
            ):
                np.testing.assert_array_equal(a, b)
    which, label = labels(rubbish, jnp.zeros(58, bool))  # an image without objects
    assert not which.any() and not label.any()


def test_candidates_as_good_as_the_best_are_positive_within_rounding():
    overlap = jnp.array([[0.4, 0.4 * (1 - 5e-7), 0.4 * (1 - 1e-5), 0.1], [0.5, 0.0, 0.0, 0.2]])
    which, label = labels(overlap, jnp.array([True, True]))
    np.testing.assert_array_equal(label, [1, 1, -1, 0])
    np.testing.assert_array_equal(which, [1, 0, 0, 1])  # 0 is the best of both, and keeps its own


@pytest.mark.slow
def test_nms_equals_torchvision_also_in_ties(of):
    g = of("nms_c0")
    for names, expected in ((None, g["keep"]), (g["classes"], g["keep_per_class"])):
        found, kept = nms(g["boxes"], g["scores"], threshold=float(g["threshold"]), keep=70, classes=names)
        assert kept.sum() == len(expected) and kept[: len(expected)].all()
        np.testing.assert_array_equal(found[: len(expected)], expected)
    g = of("nms_edge")
    found, kept = nms(g["boxes"], g["scores"], threshold=float(g["threshold"]), keep=9)
    np.testing.assert_array_equal(found[kept], g["keep"])
    assert not found[~kept].any()


def test_nms_keeps_the_first_of_equal_boxes_and_nothing_that_does_not_exist():
    same = jnp.tile(jnp.array([[0.0, 0.0, 10.0, 10.0]]), (4, 1))
    found, kept = nms(same, jnp.ones(4), threshold=0.5, keep=3)
    np.testing.assert_array_equal(found, [0, 0, 0])
    np.testing.assert_array_equal(kept, [True, False, False])
    scores = jnp.array([-jnp.inf, 0.2, 0.3, -jnp.inf])
    found, kept = nms(same + 100 * jnp.arange(4.0)[:, None], scores, threshold=0.5, keep=3)
    np.testing.assert_array_equal(found[kept], [2, 1])


def test_nms_of_a_batch_is_that_of_every_image():
    many, scores = (
        random_boxes(2, 60).reshape(2, 30, 4),
        jnp.asarray(np.random.default_rng(3).random((2, 30))),
    )
    one = lambda b, s: nms(b, s.astype(jnp.float32), threshold=0.3, keep=20)
    found, kept = jax.vmap(one)(many, scores)
    for i in range(2):
        np.testing.assert_array_equal(found[i], one(many[i], scores[i])[0])
        np.testing.assert_array_equal(kept[i], one(many[i], scores[i])[1])
