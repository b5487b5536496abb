"""Faster R-CNN against detectron2's (c4_tiny), and what padding, ties and empty images must not change."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from ssljax import config as configs
from ssljax import models
from ssljax.accumulate import make_gradient
from ssljax.data import views
from ssljax.methods.detection import (
    detection,
    detections,
    draw_regions,
    label_anchors,
    losses_of,
    outputs,
)
from ssljax.models import detector as nets
from ssljax.models.boxes import anchors
from ssljax.types import Facts, TrainState
from tests.models import golden_detector

CLASSES = 3
FACTS = Facts(num_examples=40, num_classes=CLASSES, num_ids=40)


def config_of(**changes) -> ConfigDict:
    """The tiny detector of c4_tiny, whose limits exceed all candidates. `__` stands for the dot."""
    c = configs.base().unlock()
    c.method = "detection"
    c.data.annotations = "boxes"
    c.augment.update(configs.IMAGENET)
    c.model.update(name="resnet50", width=1 / 16, shortcut="torchvision", dtype="float32")
    c = configs.resolve(c).unlock()
    c.detector.update(
        anchor_sizes=(16.0, 32.0, 64.0),
        anchors=2000,
        regions=2000,
        train_before=150,
        train_after=24,
        test_before=100,
        test_after=16,
        keep=10,
    )
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return c


class Tiny:
    """Detectron2's detector: our networks with its weights, and a batch as it pads it."""

    def __init__(self, golden):
        self.golden = golden("c4_tiny")
        self.config = config_of()
        self.net = models.two_stage_detector(self.config.model, self.config.detector, CLASSES)
        self.params, self.state = golden_detector.tree(self.golden.under("state"))
        self.batch = golden_detector.batch(self.golden)

        @jax.jit
        def normalised(image, size):
            x = views.for_network(image, self.config.augment)
            return jnp.where(models.valid_pixels(size, *x.shape[1:3]), x, 0.0)

        self.x = normalised(self.batch["image"], self.batch["size"])
        self.padded = np.full((2, 2), self.x.shape[1:3], np.int32)  # there the padding takes part

    def losses(self, params, batch):
        """(losses, statistics)."""
        key = jax.random.key(0)
        settings = self.config.detector
        given, after = outputs(self.net, settings, params, self.state, self.x, batch, key, valid=self.padded)
        return losses_of(given, settings), after


def apart(a, b) -> float:
    """The distance of two arrays, relative to the second's norm."""
    return float(np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def tiny(golden):
    return Tiny(golden)


@pytest.fixture(scope="module")
def trained(tiny):
    """((losses, statistics), gradients)."""

    def loss(params):
        losses, after = tiny.losses(params, tiny.batch)
        return sum(losses.values()), (losses, after)

    (_, found), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(tiny.params)
    return found, grads


@pytest.mark.slow
def test_the_tree_of_parameters_is_detectron2s(tiny):
    fresh = jax.eval_shape(lambda: nets.initialise_detector(tiny.net, jax.random.key(0), 3))
    for ours, theirs in zip(fresh, (tiny.params, tiny.state), strict=True):
        assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, theirs)


@pytest.mark.slow
def test_losses_and_statistics_equal_detectron2s(tiny, trained):
    g = tiny.golden
    (losses, after), _ = trained
    names = dict(class_loss="cls", box_loss="box_reg", objectness_loss="rpn_cls", proposal_loss="rpn_loc")
    for ours, theirs in names.items():
        np.testing.assert_allclose(losses[ours], g[f"loss/loss_{theirs}"], rtol=1e-4, err_msg=ours)
    flat = flatten_dict(after, sep="/")
    for name, value in g.under("after_train_forward").items():
        np.testing.assert_allclose(flat[golden_detector.ours(name)], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_gradients_equal_detectron2s(tiny, trained):
    """Noise of 1e-6 on the weights changes the norms of group 1 by up to 5 %, of the heads by 1e-4."""
    g = tiny.golden
    flat = flatten_dict(trained[1], sep="/")
    for name, value in g.under("grad").items():
        ours = golden_detector.ours(name)
        assert apart(flat[ours], golden_detector.reordered(value)) < (0.02 if "encoder" in ours else 1e-3), (
            name
        )
    names = sorted(name for name in g.under("state") if "running_" not in name)
    for name, norm in zip(names, g["grad_norms"], strict=True):
        ours = golden_detector.ours(name)
        early = ours.startswith(("encoder/stem", "encoder/group1", "encoder/group2"))
        found = np.linalg.norm(flat[ours])
        np.testing.assert_allclose(found, norm, rtol=0.05 if early else 0.01, err_msg=name)


@pytest.mark.slow
def test_proposals_and_detections_equal_detectron2s(tiny):
    g = tiny.golden

    @jax.jit
    def found(params):
        settings = tiny.config.detector
        size = tiny.batch["size"]
        return detections(tiny.net, settings, params, tiny.state, tiny.x, size, valid=tiny.padded)

    ours = found(tiny.params)
    for i in range(2):
        np.testing.assert_array_equal(ours["classes"][i], g[f"im{i}/det_classes"])
        np.testing.assert_allclose(ours["scores"][i], g[f"im{i}/det_scores"], rtol=1e-3)
        np.testing.assert_allclose(ours["boxes"][i], g[f"im{i}/det_boxes"], atol=2e-2)


def flat_of(tree) -> np.ndarray:
    """All numbers of a tree in a row."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


# --------------------------------------------------------------------------------------- by the method itself


@pytest.fixture(scope="module")
def method():
    """A ResNet-10 whose limits exceed all candidates, so that nothing is random."""
    return detection(config_of(model__name="resnet10", detector__score=0.0), FACTS)


def batch_of(height=64, width=96, places=3, seed=0):
    """Two images of 48 x 80 and 64 x 64 within `height` x `width`, with two boxes and one."""
    rng = np.random.default_rng(seed)
    image = np.zeros((2, height, width, 3), np.uint8)
    image[0, :48, :80] = rng.integers(0, 256, (48, 80, 3))
    image[1, :64, :64] = rng.integers(0, 256, (64, 64, 3))
    boxes = np.zeros((2, places, 4), np.float32)
    boxes[0, :2] = [[4, 6, 40, 38], [30, 10, 78, 47]]
    boxes[1, :1] = [[10, 20, 50, 60]]
    classes = np.full((2, places), -1, np.int32)
    classes[0, :2] = [2, 0]
    classes[1, 0] = 1
    return {
        "image": image,
        "size": np.array([[48, 80], [64, 64]], np.int32),
        "boxes": boxes,
        "classes": classes,
        "difficult": np.zeros((2, places), bool),
        "index": np.array([7, 3], np.int32),
    }


@pytest.fixture(scope="module")
def fresh(method):
    return jax.jit(lambda key: method.init(key, {}))(jax.random.key(0))


@pytest.fixture(scope="module")
def stepped(method):
    loss = jax.value_and_grad(method.loss, has_aux=True)
    return jax.jit(lambda params, state, batch, key: loss(params, state, (), batch, key, jnp.int32(0)))


@pytest.mark.slow
def test_a_fresh_detector_knows_nothing(fresh):
    """Objectness at ln 2, classes at the logarithm of their number with the background."""
    drawn = detection(config_of(model__name="resnet10", detector__anchors=64, detector__regions=20), FACTS)
    params, state, _ = fresh
    _, out = jax.jit(drawn.loss)(params, state, (), batch_of(), jax.random.key(0), jnp.int32(0))
    np.testing.assert_allclose(out.metrics["objectness_loss"], np.log(2), rtol=0.02)
    np.testing.assert_allclose(out.metrics["class_loss"], np.log(CLASSES + 1), rtol=0.1)
    assert 3 <= 2 * out.metrics["foreground_regions"] <= 10  # a quarter of twenty in both images


@pytest.mark.slow
def test_an_image_without_objects_has_finite_gradients_and_no_box_loss(stepped, fresh):
    params, state, _ = fresh
    batch = batch_of() | {"classes": np.full((2, 3), -1, np.int32)}
    (loss, out), grads = stepped(params, state, batch, jax.random.key(0))
    assert out.metrics["box_loss"] == out.metrics["proposal_loss"] == out.metrics["foreground_regions"] == 0
    assert loss > 0.5 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.slow
def test_the_padding_of_images_and_boxes_changes_no_loss_and_no_detection(method, stepped, fresh):
    params, state, _ = fresh
    params = models.unit_gains(params)  # fresh ones let the last group see every second cell of a region
    state = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.5), state)
    loud = {**params, "head": jax.tree.map(lambda leaf: 10 * np.asarray(leaf), params["head"])}
    predict = jax.jit(lambda batch: method.predict(loud, state, (), batch))
    small = batch_of()
    (expected, _), expected_grads = stepped(params, state, small, jax.random.key(0))
    one = predict(small)
    assert (one["classes"] >= 0).any(axis=1).all()
    large = batch_of(128, 160, places=40)
    (loss, _), grads = stepped(params, state, large, jax.random.key(0))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert apart(flat_of(grads), flat_of(expected_grads)) < 1e-3
    other = predict(large)
    np.testing.assert_array_equal(one["classes"], other["classes"])
    np.testing.assert_allclose(one["boxes"], other["boxes"], atol=1e-3)
    np.testing.assert_allclose(one["scores"], other["scores"], rtol=1e-4)


@pytest.mark.slow
def test_what_lies_in_the_padding_has_no_influence_on_the_map(fresh):
    """Black pixels are not zero once they are normalised."""
    params, state, _ = fresh
    params = models.unit_gains(params)  # otherwise only shortcuts are at work, which see every second pixel
    c = config_of(model__name="resnet10")
    net = models.two_stage_detector(c.model, c.detector, CLASSES)
    batch = batch_of()
    valid = batch["size"]
    inside = models.valid_pixels(valid, *batch["image"].shape[1:3])
    bright = np.where(inside, batch["image"], np.uint8(200))

    @jax.jit
    def maps(image, valid):
        x = views.for_network(image, c.augment)
        return nets.feature_map(net, params, state, x, valid, train=False)[0]

    black = maps(batch["image"], valid)
    np.testing.assert_allclose(maps(bright, valid), black, atol=1e-6)
    alone = maps(batch["image"][:1, :48, :80], valid[:1])
    np.testing.assert_allclose(black[:1, :3, :5], alone, atol=1e-5)
    assert np.abs(alone).max() > 0.1 and not np.asarray(black[0, 3:]).any()


@pytest.mark.slow
def test_micro_batches_divide_by_the_regions_of_the_whole_batch(method, fresh):
    """The two images have different numbers of regions."""
    params, state, _ = fresh
    batch = batch_of()
    key = jax.random.key(0)
    (halves, _), grads = jax.jit(make_gradient(method, 2))(params, state, (), batch, key, jnp.int32(0))
    embed = jax.jit(method.two_pass.embed)
    embeddings = [
        embed(params, state, (), jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], batch), key, jnp.int32(0))[0]
        for i in range(2)
    ]
    joined = jax.tree.map(lambda a, b: np.concatenate([a, b]), *embeddings)
    objective = jax.jit(method.two_pass.objective)
    together, _ = objective(params, joined, batch, jnp.int32(0))
    np.testing.assert_allclose(halves, together, rtol=1e-5)
    counts = [float(np.sum(each["head"]["weights"])) for each in embeddings]
    assert len(set(counts)) == 2
    apart_losses = [objective(params, one, batch, jnp.int32(0))[0] for one in embeddings]
    assert abs(np.mean(apart_losses) - halves) > 1e-3  # what a mean over micro-batches would give
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_anchors_outside_the_image_are_never_drawn_and_a_box_they_match_best_is_not_lost():
    """By hand: four cells of stride 16 in a row, of which the image has two."""
    grid = anchors(1, 4, stride=16, sizes=(16.0,), ratios=(1.0,))
    inside = np.array([True, True, False, False])
    boxes = np.array([[17, -8, 32, 8], [0, 0, 0, 0]], np.float32)
    targets, labels = jax.jit(label_anchors)(grid, inside, boxes, np.array([4, -1], np.int32))
    # Anchor 1 covers x from 8 to 24, an overlap of 7 in 24: too little, but the best. Anchor 2 has 8 in 23.
    np.testing.assert_array_equal(labels, [0, 1, -1, -1])
    np.testing.assert_allclose(targets[1], [8.5 / 16, 0, np.log(15 / 16), 0], atol=1e-6)


def test_what_the_box_head_should_say_of_a_proposal_by_hand():
    """Deltas are scaled by 10, 10, 5 and 5; true boxes are regions; the last class is the background."""
    proposals = np.array([[0, 0, 20, 20], [40, 40, 50, 50], [0, 0, 20, 20]], np.float32)
    exists = np.array([True, True, False])
    boxes = np.array([[2, 0, 18, 20], [0, 0, 0, 0]], np.float32)
    draw = partial(draw_regions, settings=config_of(detector__regions=16).detector, background=3)
    found = jax.jit(draw)(jax.random.key(0), proposals, exists, boxes, np.array([1, -1], np.int32))
    np.testing.assert_array_equal(found["weights"], [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(found["classes"][:3], [1, 1, 3])
    np.testing.assert_array_equal(found["boxes"][:3], [proposals[0], boxes[0], proposals[1]])
    expected = [[0, 0, 5 * np.log(16 / 20), 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(found["targets"][:2], expected, atol=1e-5)


def test_the_networks_of_the_paper_have_its_number_of_parameters():
    """Counted in detectron2's model: MoCo's R50-C4 on VOC."""
    c = config_of(model__width=1.0, detector__anchor_sizes=(32.0, 64.0, 128.0, 256.0, 512.0))
    net = models.two_stage_detector(c.model, c.detector, 20)
    params, _ = jax.eval_shape(lambda: nets.initialise_detector(net, jax.random.key(0), 3))
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    encoder = params["encoder"]
    last = {name: leaf for name, leaf in encoder.items() if name.startswith("group4")}
    predictor = {name: params["head"][name] for name in ("classes", "boxes")}
    found = [
        count(encoder) - count(last),
        *map(count, (last, params["rpn"], params["head"]["norm"], predictor)),
    ]
    assert found == [8_543_296, 14_964_736, 9_515_083, 4_096, 206_949]
    assert count(params) == 33_234_160 and net.stride == 16


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data__annotations": ""}, "annotations=boxes"),
        ({"model__name": "vit_s"}, "needs one residual network"),
        (
            {"model__split": ("luminance", "gradient"), "model__name": "resnet18"},
            "needs one residual network",
        ),
    ],
)
def test_what_it_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        detection(configs.resolve(config_of(**changes)), FACTS)


@pytest.mark.slow
def test_precise_statistics_are_means_over_batches(fresh):
    """Not running ones: those of each batch, in torch's form (unbiased), averaged."""
    c = config_of(model__name="resnet10", detector__precise_bn=2)
    method = detection(c, FACTS)
    params, state, _ = fresh
    batches = [batch_of(seed=seed) for seed in range(4)]

    class Run:
        def key(self, state):
            return jax.random.key(0)

        def batches(self):
            yield from batches

        def place(self, state):
            return state

    start = TrainState(jnp.int32(5), params, state, (), ())
    found = method.finish(start, Run())
    chex.assert_trees_all_equal(found.params, params)
    x = [(batch["image"] / 255 - c.augment.mean) / c.augment.std for batch in batches[:2]]
    kernel = params["encoder"]["stem_conv1"]["kernel"]
    rows = [conv_of(image, kernel, batch["size"]) for image, batch in zip(x, batches, strict=False)]
    ours = found.model_state["encoder"]["stem_norm1"]
    np.testing.assert_allclose(ours["mean"], np.mean([r.mean(0) for r in rows], 0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours["var"], np.mean([r.var(0, ddof=1) for r in rows], 0), rtol=1e-4)
    assert jax.tree.structure(found) == jax.tree.structure(start)


def conv_of(image, kernel, sizes):
    """Outputs of the first convolution within the images, each computed alone: [pixels, C]."""
    rows = []
    for one, (h, w) in zip(image, np.asarray(sizes), strict=True):
        y = jax.lax.conv_general_dilated(
            np.float32(one[None, :h, :w]),
            kernel,
            (2, 2),
            ((3, 3), (3, 3)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        rows.append(np.asarray(y, np.float64).reshape(-1, y.shape[-1]))
    return np.concatenate(rows)
