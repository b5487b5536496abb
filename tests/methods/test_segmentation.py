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


def batch_of(side: int, seed: int = 0) -> dict:
    """Two images of noise, the second smaller than its square, and masks with ignored pixels."""
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, CLASSES, (2, side, side))
    mask[0, 0] = 255
    mask[1, side - 3 :] = 255
    return {
        "image": rng.integers(0, 256, (2, side, side, 3)).astype(np.uint8),
        "mask": mask.astype(np.uint8),
        "size": np.int32([[side, side], [side - 3, side]]),
        "index": np.arange(2, dtype=np.int32),
    }


class Case:
    """A method with its first weights, and its functions compiled."""

    def __init__(self, config):
        self.method = segmentation(config, FACTS)
        self.params, self.state, _ = jax.jit(self.method.init)(jax.random.key(0), {})
        self.predict = jax.jit(self.method.predict)
        loss = lambda params, batch: self.method.loss(
            params, self.state, (), batch, jax.random.key(1), jnp.int32(0)
        )
        self.gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))


def norm(tree) -> float:
    return sum(float(np.square(leaf).sum()) for leaf in jax.tree.leaves(tree)) ** 0.5


@pytest.fixture(scope="module")
def resnet():
    return Case(config_of("segmentation", fcn__channels=8, zero_init_residual=False))


@pytest.mark.slow
def test_the_whole_network_learns_and_its_statistics_move(resnet):
    (value, out), grads = resnet.gradient(resnet.params, batch_of(12))
    assert value > 0.5 * np.log(CLASSES)
    assert norm(grads["encoder"]["stem_conv1"]) > 0
    assert norm(grads["head"]) > 0
    moved = jax.tree.map(lambda a, b: (np.asarray(a) != b).any(), resnet.state, out.model_state)
    assert all(jax.tree.leaves(moved)) and len(jax.tree.leaves(moved)) >= 8


@pytest.mark.slow
def test_ignored_pixels_and_what_lies_outside_of_an_image_have_no_influence(resnet):
    batch = batch_of(12)
    noise = batch["image"].copy()
    noise[1, 9:] = 7
    (value, out), _ = resnet.gradient(resnet.params, batch)
    (other, same), _ = resnet.gradient(resnet.params, batch | {"image": noise})
    np.testing.assert_array_equal(value, other)
    np.testing.assert_array_equal(out.metrics["pixel_accuracy"], same.metrics["pixel_accuracy"])

    mask = np.asarray(resnet.predict(resnet.params, resnet.state, (), batch)["mask"])
    assert mask.dtype == jnp.uint8 and mask.shape == (2, 12, 12)
    alone = {name: values[1:, :9] if values.ndim > 2 else values[1:] for name, values in batch.items()}
    np.testing.assert_array_equal(
        resnet.predict(resnet.params, resnet.state, (), alone)["mask"][0], mask[1, :9]
    )


@pytest.mark.slow
def test_constant_masks_are_learned_to_a_miou_of_100(resnet):
    batch = batch_of(12)
    batch["mask"] = np.where(batch["mask"] == 255, 255, 3).astype(np.uint8)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes its integer count with floats
        tx = optax.adam(1e-2)
        start = jax.jit(tx.init)(resnet.params)
        run = TrainState(jnp.int32(0), resnet.params, resnet.state, start, ())
        step = jax.jit(make_train_step(resnet.method, tx))
        for _ in range(40):
            run, _ = step(run, batch, jax.random.key(0))
    found = np.asarray(resnet.predict(run.params, run.model_state, (), batch)["mask"])
    matrix = confusion(batch["mask"], found, classes=CLASSES)
    assert scores(matrix)["mIoU"] == 100.0 and matrix[3, 3] == matrix.sum() > 0


@pytest.fixture(scope="module")
def alexnet():
    """FC6-8 of a narrow AlexNet that was trained at 64 pixels."""
    model = dict(name="alexnet_bn", width=1 / 32, dropout=0.5, sobel=True, dtype="float32")
    return Case(config_of("segmentation", "voc_alexnet_fc6_8", fcn__side=64, model=model))


@pytest.mark.slow
def test_fc6_8_leaves_convolutions_and_all_statistics_as_they_are(alexnet):
    method = alexnet.method
    params = alexnet.params
    (value, out), grads = alexnet.gradient(params, batch_of(40))
    np.testing.assert_allclose(value, np.log(CLASSES), rtol=1e-5)  # scores start from 0
    for name, layer in method.still(params)["encoder"].items():
        fixed = name not in ("fc6", "fc7")
        assert set(jax.tree.leaves(layer)) == {fixed}, name
    assert not any(jax.tree.leaves(method.still(params)["head"]))
    assert norm(grads["encoder"]["conv5"]) == 0 < norm(grads["head"])
    jax.tree.map(np.testing.assert_array_equal, alexnet.state, out.model_state)


@pytest.mark.slow
def test_the_loss_of_fcn_32s_is_a_mean_over_images(alexnet):
    params = alexnet.params
    tilted = {
        "kernel": params["head"]["dense"]["kernel"],
        "bias": np.float32(0.1) * np.arange(5, dtype=np.float32),
    }
    params = params | {"head": {"dense": tilted}}
    batch = batch_of(40)
    few = batch["mask"].copy()
    few[0, 4:] = 255
    image = np.arange(2)[:, None, None]
    value = lambda mask: alexnet.gradient(params, batch | {"mask": mask})[0][0]
    first, second = (value(np.where(image == i, few, np.uint8(255))) for i in range(2))
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
        "--config.steps=4",
        "--config.batch_size=8",
        "--config.model.name=one_block",
        "--config.fcn.channels=8",
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
