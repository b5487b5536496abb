"""Detectors on AlexNet and VGG-16: Fast R-CNN's map, what stands still, dropout, padding, and a run."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssljax
from ssljax import evaluate, models, results, train
from ssljax.config import resolve
from ssljax.methods.detection import detection, draw_regions
from ssljax.models import detector as nets
from ssljax.models.boxes import iou
from ssljax.program import build
from ssljax.sharding import make_mesh
from ssljax.types import Facts
from tests.methods.test_detection import CLASSES, apart, batch_of, flat_of

FACTS = Facts(num_examples=40, num_classes=CLASSES, num_ids=40)


def config_of(preset="voc_alexnet_all", **changes):
    """A preset with a narrow network and limits that exceed all candidates. `__` stands for the dot."""
    c = importlib.import_module("configs.detection").get_config(preset).unlock()
    c.model.update(width=1 / 32, dtype="float32")
    c.detector.update(
        side=96,
        anchor_sizes=(16.0, 32.0, 64.0),
        anchors=2000,
        regions=2000,
        train_before=150,
        train_after=24,
        test_before=100,
        test_after=16,
        keep=10,
        score=0.0,
        overlap=0.0,
    )
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return resolve(c).lock()


def body_of(name):
    c = config_of(f"voc_{name}_all")
    return models.two_stage_detector(c.model, c.detector, CLASSES).body


@pytest.mark.slow
@pytest.mark.parametrize("name, shift, border", [("alexnet", 15, 6), ("vgg16", 0, 0)])
def test_the_map_is_the_pretrained_networks_on_a_grid_that_starts_at_pixel_0(name, shift, border):
    """AlexNet's own first cell lies on pixel 15. Its cells see up to 81 pixels to each side."""
    body = body_of(name)
    assert body.stride == 16
    params, state, _ = jax.jit(lambda key: models.initialise(body.encoder, key, (96, 96, 3)))(
        jax.random.key(0)
    )
    state = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.1), state)
    x = np.random.default_rng(1).normal(size=(1, 240, 208, 3)).astype(np.float32)
    ours, _ = jax.jit(lambda x: body.map_of(params, state, x, jnp.array([[240, 208]]), train=True))(x)
    ours = np.asarray(ours)
    assert ours.shape[1:] == (15, 13, body.channels)
    x = np.pad(x, ((0, 0), (shift, 32), (shift, 32), (0, 0)))
    own = np.asarray(jax.jit(lambda x: models.last_map(body.encoder, params, state, x))(x))
    rows, columns = slice(border, 15 - border), slice(border, 13 - border)
    found = ours[:, rows, columns]
    if name == "vgg16":  # the zeros after the image are normalised there
        rows, columns, found = slice(0, 9), slice(0, 7), ours[:, :9, :7]
    np.testing.assert_allclose(found, own[:, rows, columns], atol=1e-4)
    assert float(found.max()) > 0.1


@pytest.fixture(scope="module")
def method():
    return detection(config_of(), FACTS)


@pytest.fixture(scope="module")
def fresh(method):
    """Parameters of a head with opinions, and statistics that are not those of a fresh network."""
    params, state, _ = jax.jit(lambda key: method.init(key, {}))(jax.random.key(0))
    params["head"] = jax.tree.map(lambda leaf: 10 * np.asarray(leaf), params["head"])
    return params, jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.1), state)


@pytest.fixture(scope="module")
def stepped(method):
    loss = jax.value_and_grad(method.loss, has_aux=True)
    return jax.jit(lambda params, state, batch, key: loss(params, state, (), batch, key, jnp.int32(0)))


@pytest.mark.slow
def test_padding_changes_no_loss_and_no_detection(method, fresh, stepped):
    params, state = fresh
    (expected, out), expected_grads = stepped(params, state, batch_of(), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, out.model_state, state)
    assert method.still is None  # ALL
    for name, layer in expected_grads["encoder"].items():
        assert any(np.any(leaf) for leaf in jax.tree.leaves(layer)), name
    (loss, _), grads = stepped(params, state, batch_of(96, 128), jax.random.key(0))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert apart(flat_of(grads), flat_of(expected_grads)) < 1e-3

    predict = jax.jit(lambda batch: method.predict(params, state, (), batch))
    one, other = predict(batch_of()), predict(batch_of(96, 128))
    assert (one["classes"] >= 0).any(axis=1).all()
    np.testing.assert_array_equal(one["classes"], other["classes"])
    np.testing.assert_allclose(one["boxes"], other["boxes"], atol=1e-3)
    one = jax.tree.map(np.asarray, one)
    for boxes, classes in zip(one["boxes"], one["classes"], strict=True):  # detector.overlap=0
        same = (classes[:, None] == classes[None]) & (classes >= 0)[:, None] & ~np.eye(10, dtype=bool)
        assert not (np.asarray(jax.jit(iou)(boxes, boxes)) > 0)[same].any()


@pytest.mark.slow
def test_what_is_dropped_follows_the_image_and_the_step(fresh, stepped):
    params, state = fresh
    batch = batch_of()
    (loss, _), _ = stepped(params, state, batch, jax.random.key(0))
    turned = jax.tree.map(lambda leaf: leaf[::-1], batch)
    np.testing.assert_allclose(stepped(params, state, turned, jax.random.key(0))[0][0], loss, rtol=1e-5)
    renamed = batch | {"index": np.array([8, 3], np.int32)}
    assert abs(stepped(params, state, renamed, jax.random.key(0))[0][0] - loss) > 1e-4
    assert abs(stepped(params, state, batch, jax.random.key(1))[0][0] - loss) > 1e-4


@pytest.mark.slow
def test_fc6_8_moves_the_full_layers_and_no_convolution_nor_statistics():
    """Not by weight decay either."""
    config = config_of("voc_alexnet_fc6_8", optim__weight_decay=0.1, batch_size=2)
    config.unlock().annotated.update(short_sides=(64,), long_side=96)
    program = build(config.lock(), FACTS, make_mesh(1))
    begun = program.init(0)
    before = jax.tree.map(np.array, begun)
    after, _ = program.step(begun, batch_of(), jax.random.key(0))
    after = jax.tree.map(np.asarray, after)
    layers = [before.params["encoder"] | before.params, after.params["encoder"] | after.params]
    for name in layers[0].keys() - {"encoder"}:
        pairs = zip(*(jax.tree.leaves(each[name]) for each in layers), strict=True)
        moved = [bool(np.any(a != b)) for a, b in pairs]
        assert set(moved) == {name in ("fc6", "fc7", "rpn", "head")}, name
    jax.tree.map(np.testing.assert_array_equal, before.model_state, after.model_state)


def test_a_region_that_overlaps_no_true_box_enough_is_not_learned_from():
    """By hand: IoU of 0.6, 0.15, 0.05 and 0 with the one true box."""
    boxes = jnp.array([[0.0, 0.0, 20.0, 20.0], [0.0, 0.0, 0.0, 0.0]])
    proposals = jnp.array([[0.0, 0, 20, 12], [0, 0, 20, 3], [0, 0, 20, 1], [50, 50, 60, 60]])
    settings = config_of(detector__regions=8).detector
    drawn = jax.jit(
        lambda: draw_regions(
            jax.random.key(0),
            proposals,
            jnp.ones(4, bool),
            boxes,
            jnp.array([1, -1]),
            settings=settings,
            background=3,
        )
    )()
    assert settings.background == 0.1
    np.testing.assert_array_equal(drawn["weights"], [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(drawn["classes"][:3], [1, 1, 3])
    np.testing.assert_array_equal(drawn["boxes"][2], proposals[1])


@pytest.mark.parametrize("name, cells, channels", [("alexnet", 6, 256), ("vgg16", 7, 512)])
def test_the_papers_networks_have_the_layers_of_fast_r_cnn(name, cells, channels):
    c = importlib.import_module("configs.detection").get_config(f"voc_{name}_fc6_8")
    net = models.two_stage_detector(c.model, c.detector, 20)
    params, state = jax.eval_shape(lambda: nets.initialise_detector(net, jax.random.key(0), 3))
    assert params["encoder"]["fc6"]["kernel"].shape == (cells * cells * channels, 4096)
    assert params["rpn"]["conv"]["kernel"].shape == (3, 3, channels, channels)
    assert {k: v["kernel"].shape for k, v in params["head"].items()} == {
        "classes": (4096, 21),
        "boxes": (4096, 80),
    }
    assert state["rpn"] == state["head"] == {}
    bf16 = jax.ShapeDtypeStruct((2, 75, 125, channels), jnp.bfloat16)
    boxes, exists, extent = jnp.zeros((2, 9, 4)), jnp.ones((2, 9), bool), jnp.full((2, 2), 75)
    found = jax.eval_shape(
        lambda params, maps: net.body.features_of(params, {}, maps, extent, boxes, exists, None)[0],
        params["encoder"],
        bf16,
    )
    assert (found.shape, found.dtype) == ((18, 4096), jnp.float32)


@pytest.mark.slow
def test_a_run_from_pretrained_layers_is_measured(tmp_path, one_device):
    """FC6-8 for a few steps: the convolutions are those of the first run, fc6 starts from its own."""
    model = ["alexnet_bn", "0.0625", "torchvision", "True"]
    names = ("name", "width", "shortcut", "sobel")
    shared = [f"--config.model.{name}={value}" for name, value in zip(names, model, strict=True)]
    before = [*("--config", "configs/supervised.py:digits", "--workdir", str(tmp_path / "first")), *shared]
    before += ["--config.data.image_size=96", "--config.steps=2", "--config.optim.warmup_epochs=0"]
    small = ["--config.batch_size=8", "--config.eval_every_epochs=0", "--config.checkpoint.best="]
    train.main([*before, *small])
    settings = {
        "annotated.short_sides": "(96,)",
        "annotated.test_short_side": 96,
        "annotated.long_side": 144,
        "detector.anchor_sizes": "(24., 36., 48.)",
        "detector.side": 96,
        "detector.trained": "fc",
        "init_from": tmp_path / "first",
        "model.dropout": 0.5,
        "optim.warmup_epochs": 0,
        "steps": 4,
    }
    flags = ["--config", "configs/detection.py:digits", "--workdir", str(tmp_path / "run"), *shared]
    flags += small
    flags += [f"--config.{name}={value}" for name, value in settings.items()]
    train.main(flags)
    evaluate.main(flags)
    rows = {row["metric"]: row for row in results.read(tmp_path / "run" / "results.jsonl")}
    assert rows["AP50"]["n"] == 99
    first, second = (ssljax.load(str(tmp_path / name)).evaluated for name in ("first", "run"))
    before, after = first.params["encoder"], second.params["encoder"]
    for name in before:
        distance = apart(flat_of(after[name]), flat_of(before[name]))
        assert (0 < distance < 0.3) if name in ("fc6", "fc7") else distance == 0, name
    states = (each.model_state["encoder"] for each in (first, second))
    jax.tree.map(np.testing.assert_array_equal, *states)
