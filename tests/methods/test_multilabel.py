"""Several labels per image: the released loss, what stands still, what begins anew, and the crops at test."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from configs import multilabel as presets
from ssljax import benches, evaluate, optim, sharding, train
from ssljax.config import resolve
from ssljax.data import sources
from ssljax.losses.classification import binary_cross_entropy
from ssljax.methods import METHODS
from ssljax.program import build, untrained
from ssljax.protocols import finetuned
from ssljax.results import read
from ssljax.types import Facts, TrainState

FACTS = Facts(16, 20, 16)


def voc(preset="voc_alexnet_fc6_8", **changes):
    """A preset with a narrow network and images of 64 pixels, cropped in memory."""
    c = presets.get_config(preset).unlock()
    c.model.update(width=0.04, dtype="float32")
    c.batch_size = 8
    c.data.update(image_size=64, crop_on="device")
    c.update_from_flattened_dict(changes)
    return resolve(c).lock()


def batch(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (8, 80, 80, 3), dtype=np.uint8),
        "label": np.full(8, -1, np.int32),
        "index": np.arange(8, dtype=np.int32),
        "labels": rng.integers(-1, 2, (8, 20)).astype(np.int8),
    }


def test_the_loss_is_deepclusters(golden):
    """BCEWithLogitsLoss summed over the classes, with 255 left out, divided by the number of images."""
    g = golden("voc")
    labels = g["loss/labels"].astype(np.int32)

    def mean(logits):
        return jnp.mean(binary_cross_entropy(logits, labels))

    value, grad = jax.jit(jax.value_and_grad(mean))(g["loss/logits"])
    np.testing.assert_allclose(value, g["loss/value"], rtol=1e-6)
    np.testing.assert_allclose(grad, g["loss/grad"], atol=1e-7)
    labels = np.where(labels == 255, -1, labels)
    np.testing.assert_array_equal(value, jax.jit(jax.value_and_grad(mean))(g["loss/logits"])[0])


@pytest.mark.slow
@pytest.mark.parametrize("gains", [False, True])
def test_fc6_8_moves_the_full_layers_and_no_statistics(gains):
    """Not by weight decay either; and what stands still has no part in the norm that is clipped."""
    program = build(
        voc(**{"tune.gains": gains, "optim.weight_decay": 0.1, "optim.clip": 1e-3}),
        FACTS,
        sharding.make_mesh(1),
    )
    fresh = lambda: some(program.shapes).replace(opt_state=jax.tree.map(zeros, program.shapes.opt_state))
    before = fresh()
    state = jax.device_put(fresh(), sharding.whole(program.mesh))  # whose memory the step takes
    after, metrics = program.step(state, batch(), jax.random.key(0))
    moved = {
        name: any(np.any(a != np.asarray(b)) for a, b in zip(*map(jax.tree.leaves, pair), strict=True))
        for name, pair in {
            **{
                k: (before.params["encoder"][k], after.params["encoder"][k]) for k in before.params["encoder"]
            },
            "head": (before.params["head"], after.params["head"]),
        }.items()
    }
    trained = {"fc6", "fc7", "head", *(f"norm{i}" for i in range(1, 6) if gains)}
    assert {name for name, changed in moved.items() if changed} == trained
    jax.tree.map(
        np.testing.assert_array_equal, before.model_state, jax.tree.map(np.asarray, after.model_state)
    )
    if not gains:
        step = jax.tree.map(
            lambda a, b: (np.asarray(b) - a) / -0.003 - 0.1 * a,
            [before.params["encoder"]["fc6"], before.params["encoder"]["fc7"], before.params["head"]],
            [after.params["encoder"]["fc6"], after.params["encoder"]["fc7"], after.params["head"]],
        )
        np.testing.assert_allclose(optax.global_norm(step), 1e-3, rtol=0.02)


def zeros(leaf):
    return np.zeros(leaf.shape, leaf.dtype)


def some(shapes):
    """Small positive values."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: np.abs(rng.normal(0.0, 0.01, s.shape)).astype(s.dtype), shapes)


def gradient(preset):
    """Of some parameters, the running statistics, and those after the step."""
    method = METHODS["multilabel"](voc(preset), FACTS)
    params, state, _ = some(jax.eval_shape(method.init, jax.random.key(1), {}))
    one = jax.jit(jax.grad(lambda p: method.loss(p, state, (), batch(), jax.random.key(0), 0), has_aux=True))
    grad, out = one(params)
    return grad, state, out.model_state


@pytest.mark.slow
def test_what_stands_still_has_no_gradient_that_clipping_would_count():
    grad, _, _ = gradient("voc_alexnet_fc6_8")
    kernels = {
        name: np.any(layer["kernel"] != 0) for name, layer in grad["encoder"].items() if "kernel" in layer
    }
    assert {name for name, moves in kernels.items() if moves} == {"fc6", "fc7"}


@pytest.mark.slow
def test_all_trains_everything_but_the_statistics():
    assert METHODS["multilabel"](voc("voc_alexnet_all"), FACTS).still is None
    grad, before, after = gradient("voc_alexnet_all")
    assert np.any(grad["encoder"]["conv1"]["kernel"] != 0) and np.any(grad["encoder"]["norm2"]["scale"] != 0)
    jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.slow
def test_the_full_layers_begin_anew_and_the_others_stay():
    method = METHODS["multilabel"](voc(), FACTS)
    params, state, _ = jax.jit(method.init)(jax.random.key(1), {})
    for layer in ("fc6", "fc7"):
        found = params["encoder"][layer]
        assert np.all(np.asarray(found["bias"]) == np.float32(0.1))
        assert np.std(found["kernel"]) == pytest.approx(0.01, rel=0.05)
    assert np.all(np.asarray(params["head"]["dense"]["bias"]) == np.float32(0.1))

    more = jax.device_put(jax.tree.map(lambda leaf: np.asarray(leaf) + 1, params))
    loaded = TrainState(jnp.int32(0), more, state, (), ())
    adopted = method.adopt(loaded, None).params["encoder"]
    np.testing.assert_array_equal(adopted["conv3"]["kernel"], more["encoder"]["conv3"]["kernel"])
    assert abs(np.mean(adopted["fc6"]["kernel"])) < 0.01
    with pytest.raises(ValueError, match="tune.anew names 'fc8', and alexnet_bn has conv1, .*: name some"):
        jax.eval_shape(
            METHODS["multilabel"](voc(**{"tune.anew": ("fc8",)}), FACTS).init, jax.random.key(0), {}
        )


def test_the_rate_halves_every_so_many_steps():
    _, rate = optim.make_optimizer(voc().optim, batch_size=16, steps_per_epoch=313.0, total_steps=80_000)
    found = [float(rate(step)) for step in (0, 4_999, 5_000, 15_000)]
    np.testing.assert_allclose(found, [0.003, 0.003, 0.0015, 0.000375], rtol=1e-6)


def test_ties_count_against_positives():
    scores = np.array([[0.5], [0.5], [0.1], [0.9]])
    labels = np.array([[1], [0], [0], [-1]])
    assert finetuned.step_map(scores, labels) == pytest.approx(50.0)


@pytest.mark.slow
def test_a_devkit_is_trained_on_and_judged_by_random_crops(tmp_path):
    """FC6-8 from files: red images have one class, bright ones the other; some are difficult."""
    root = tmp_path / "colours"
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4), ("test", 10)):
        marks = rng.permutation(np.arange(2 * count) % 2).reshape(2, count)
        for i, (red, bright) in enumerate(marks.T):
            pixels = np.full((80, 80, 3), 60 + 120 * bright, np.uint8)
            pixels[:, : 40 * red] = (255, 0, 0)
            Image.fromarray(pixels).save(root / "JPEGImages" / f"{split}{i}.jpg")
        for name, row in zip(("bright", "red"), marks[::-1], strict=True):
            lines = [f"{split}{i} {0 if i == 3 else 2 * mark - 1}\n" for i, mark in enumerate(row)]
            (root / "ImageSets" / "Main" / f"{name}_{split}.txt").write_text("".join(lines))
    words = [
        "--config=configs/multilabel.py:voc_alexnet_fc6_8",
        *("--config.data.source=transfer:colours", f"--config.data.data_dir={tmp_path}"),
        *("--config.model.width=0.04", "--config.model.dtype=float32", "--config.data.image_size=64"),
        *("--config.epochs=2", "--config.batch_size=8", "--config.evaluate.random_crops=2"),
        f"--workdir={tmp_path}/run",
    ]
    train.main(words)
    evaluate.main(words)
    rows = read(tmp_path / "run" / "results.jsonl")
    assert [(row["protocol"], row["metric"], row["n"]) for row in rows] == [
        ("finetuned_colours", "map", 10),
        ("finetuned_colours", "map_step", 10),
    ]
    assert rows[0]["settings"]["train"] == 16 and rows[0]["settings"]["random_crops"] == 2
    assert all(0 < row["value"] <= 100 for row in rows)


@pytest.mark.slow
def test_random_crops_are_summed_by_image():
    """Where nothing is random, three crops are three times the logits; 19 images fill no whole batch."""
    c = presets.get_config("digits").unlock()
    c.augment.update(crop="none")
    c.model.update(width=0.125)
    c.head.scheme = "normal_0.01"
    c.evaluate.update(random_crops=3, batch_size=8)
    c = resolve(c)
    split = sources.load(c.data, "test").select(np.arange(19))
    network = untrained(c, split.facts)
    features = network.encode(split.images[:8]), network.encode(split.images[8:16])
    found = benches.over_random_crops(network, split)["classifier"]
    once = [network.method.classify(network.params, (), h)["classifier"] for h in features]
    assert found.shape == (19, 10)
    np.testing.assert_allclose(found[:16], 3 * np.concatenate(once), rtol=1e-4, atol=1e-6)

    c.augment.update(crop="affine", rotate=20.0, shift=0.0, zoom=0.0, shear=0.0)
    one, other = (benches.over_random_crops(untrained(resolve(c), split.facts), split) for _ in range(2))
    np.testing.assert_array_equal(one["classifier"], other["classifier"])
    assert np.abs(one["classifier"] - found).max() > 1e-3
