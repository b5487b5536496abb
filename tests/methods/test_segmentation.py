"""Segmentation: what is trained, what is ignored, what padding must not change, and a run on the digits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssljax import evaluate, report, results, train
from ssljax.methods.segmentation import segmentation
from ssljax.protocols.segmentation import confusion, scores
from ssljax.step import make_train_step
from ssljax.types import Facts, TrainState
from tests.methods.small import config_of, one_block

CLASSES = 5
FACTS = Facts(num_examples=40, num_classes=CLASSES, num_ids=40)


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    with one_block():
        yield


def method_of(**changes):
    return segmentation(config_of("segmentation", fcn__channels=8, **changes), FACTS)


def batch_of(side: int, seed: int = 0) -> dict:
    """Two images of noise, the second smaller than its square, and masks with ignored pixels."""
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, CLASSES, (2, side, side))
    mask[0, 0] = 255
    mask[1, side - 3 :] = 255
    return {
        "image": jnp.asarray(rng.integers(0, 256, (2, side, side, 3)), jnp.uint8),
        "mask": jnp.asarray(mask, jnp.uint8),
        "size": jnp.array([[side, side], [side - 3, side]], jnp.int32),
        "index": jnp.arange(2, dtype=jnp.int32),
    }


def gradient(method, batch, seed=0):
    params, state, _ = jax.jit(method.init)(jax.random.key(seed), {})
    loss = lambda params: method.loss(params, state, (), batch, jax.random.key(1), jnp.int32(0))
    (value, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return params, state, value, out, grads


@pytest.mark.slow
def test_the_whole_network_learns_and_its_statistics_move():
    _, state, value, out, grads = gradient(method_of(zero_init_residual=False), batch_of(12))
    assert value > 0.5 * np.log(CLASSES)
    assert float(optax.tree.norm(grads["encoder"]["stem_conv1"])) > 0
    assert float(optax.tree.norm(grads["head"])) > 0
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state, out.model_state)
    assert all(jax.tree.leaves(moved)) and len(jax.tree.leaves(moved)) >= 8


@pytest.mark.slow
def test_ignored_pixels_and_what_lies_outside_of_an_image_have_no_influence():
    method = method_of()
    batch = batch_of(12)
    noise = batch["image"].at[1, 9:].set(7)
    _, _, value, out, _ = gradient(method, batch)
    _, _, other, same, _ = gradient(method, batch | {"image": noise})
    np.testing.assert_array_equal(value, other)
    np.testing.assert_array_equal(out.metrics["pixel_accuracy"], same.metrics["pixel_accuracy"])

    params, state, _ = jax.jit(method.init)(jax.random.key(0), {})
    predict = jax.jit(method.predict)
    mask = predict(params, state, (), batch)["mask"]
    assert mask.dtype == jnp.uint8 and mask.shape == (2, 12, 12)
    alone = {name: values[1:, :9] if values.ndim > 2 else values[1:] for name, values in batch.items()}
    np.testing.assert_array_equal(predict(params, state, (), alone)["mask"][0], mask[1, :9])


@pytest.mark.slow
def test_constant_masks_are_learned_to_a_miou_of_100():
    method = method_of()
    batch = batch_of(12)
    batch["mask"] = jnp.where(batch["mask"] == 255, 255, 3).astype(jnp.uint8)
    params, state, _ = jax.jit(method.init)(jax.random.key(0), {})
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes its integer count with floats
        tx = optax.adam(1e-2)
        run = TrainState(jnp.zeros((), jnp.int32), params, state, tx.init(params), ())
        step = jax.jit(make_train_step(method, tx))
        for _ in range(40):
            run, _ = step(run, batch, jax.random.key(0))
    found = np.asarray(method.predict(run.params, run.model_state, (), batch)["mask"])
    matrix = confusion(np.asarray(batch["mask"]), found, classes=CLASSES)
    assert scores(matrix)["mIoU"] == 100.0 and matrix[3, 3] == matrix.sum() > 0


@pytest.fixture(scope="module")
def alexnet():
    """FC6-8 of a narrow AlexNet that was trained at 64 pixels: a method and its gradient."""
    model = dict(name="alexnet_bn", width=1 / 32, dropout=0.5, sobel=True, dtype="float32")
    config = config_of("segmentation", "voc_alexnet_fc6_8", fcn__side=64, model=model)
    method = segmentation(config, FACTS)
    return method, gradient(method, batch_of(40))


@pytest.mark.slow
def test_fc6_8_leaves_convolutions_and_all_statistics_as_they_are(alexnet):
    method, (params, state, value, out, grads) = alexnet
    np.testing.assert_allclose(value, np.log(CLASSES), rtol=1e-5)  # scores start from 0
    for name, layer in method.still(params)["encoder"].items():
        fixed = name not in ("fc6", "fc7")
        assert set(jax.tree.leaves(layer)) == {fixed}, name
    assert not any(jax.tree.leaves(method.still(params)["head"]))
    assert float(optax.tree.norm(grads["encoder"]["conv5"])) == 0 < float(optax.tree.norm(grads["head"]))
    jax.tree.map(np.testing.assert_array_equal, state, out.model_state)


@pytest.mark.slow
def test_the_loss_of_fcn_32s_is_a_mean_over_images(alexnet):
    method, (params, state, *_) = alexnet
    tilted = {"kernel": params["head"]["dense"]["kernel"], "bias": 0.1 * jnp.arange(5.0)}
    params = params | {"head": {"dense": tilted}}
    batch = batch_of(40)
    few = batch["mask"].at[0, 4:].set(255)
    value = jax.jit(
        lambda mask: method.loss(params, state, (), batch | {"mask": mask}, jax.random.key(1), 0)[0]
    )
    nothing = jnp.full_like(few, 255)
    first, second = (value(nothing.at[i].set(few[i])) for i in range(2))
    np.testing.assert_allclose(value(few), first + second, rtol=1e-5)


def test_images_without_masks_are_refused():
    config = config_of("segmentation").unlock()
    config.data.annotations = "boxes"
    with pytest.raises(ValueError, match="config.data.annotations is 'boxes': set --config.data.annotations"):
        segmentation(config, FACTS)


@pytest.mark.slow
def test_a_run_on_the_digits_is_measured_and_shown(tmp_path, capsys):
    """A few steps from the command line, the numbers they are measured by, and masks over images."""
    run = tmp_path / "run"
    flags = [
        "--config",
        "configs/segmentation.py:digits",
        "--workdir",
        str(run),
        "--config.steps=10",
        "--config.optim.warmup_epochs=0",
    ]
    train.main(flags)
    evaluate.main(flags)
    rows = {row["metric"]: row for row in results.read(run / "results.jsonl")}
    assert set(rows) == {"mIoU", "pixel_accuracy", "class_accuracy"} and rows["mIoU"]["n"] == 99
    assert rows["mIoU"]["settings"]["classes"] == 11
    assert f"mIoU {rows['mIoU']['value']:.1f} % of 99" in capsys.readouterr().out

    gallery = np.load(run / "gallery-digits.npz")
    assert int(gallery["found"]) == 8 and str(gallery["class_names"][0]) == "background"
    for i in range(8):
        image, true, mask = (gallery[f"found/{i}/{name}"] for name in ("image", "true_mask", "mask"))
        assert image.shape[:2] == true.shape == mask.shape and sorted(mask.shape) == [32, 48]
        assert (image[true > 0] >= 120).all()  # ink
    report.main([str(run)])
    assert (run / "found-digits.png").stat().st_size > 10_000
    assert "found-digits.png" in (run / "report.md").read_text()
