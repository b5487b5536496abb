"""One encoder of several views, and half an AlexNet: released counts, shapes, pools and views by hand."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.cmc import get_config
from ssljax import models
from ssljax.models.alexnet_half import HalfAlexNet
from ssljax.models.multiview import view_name, view_of
from ssljax.models.pooling import pooled
from tests.methods.small import shaken

pytestmark = pytest.mark.slow

COUNTS = json.loads((Path(__file__).parent.parent / "golden" / "param_counts.json").read_text())[
    "cmc_official"
]
IMAGE = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)


def shapes(net, image, **call):
    return jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=False, **call), image)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def model(preset, **changes):
    c = get_config(preset).copy_and_resolve_references().unlock()
    c.model.update(**changes)
    return c.model


@pytest.mark.parametrize("key", ["alexnet_half_in1", "alexnet_half_in2"])
def test_parameter_counts_of_the_released_half(key):
    channels = int(key[-1])
    found = shapes(HalfAlexNet(), jax.ShapeDtypeStruct((2, 224, 224, channels), jnp.float32))
    assert size(found["params"]) == COUNTS[key]["backbone_without_head"]
    assert size(found["batch_stats"]) == COUNTS[key]["float_buffers"]


def test_both_views_are_one_encoder_with_its_own_parameters_and_statistics_for_each():
    m = model("imagenet_alexnet")
    net = models.backbone(m)
    found = shapes(net, IMAGE)
    expected = COUNTS["alexnet_lab_both_views"]
    assert size(found["params"]) == expected["backbone_without_head"]
    assert size(found["batch_stats"]) == expected["float_buffers"]
    assert set(found["params"]) == {"luminance", "chrominance"}
    assert found["params"]["luminance"]["conv1"]["kernel"].shape[2] == 1
    assert found["params"]["chrominance"]["conv1"]["kernel"].shape[2] == 2
    head = shapes(models.view_heads(128, m), jax.ShapeDtypeStruct((2, 4096), jnp.float32))
    assert size(head["params"]) == expected["head"]


@pytest.mark.parametrize(
    "preset, width, millions",
    [
        ("imagenet_r50_v1", 0.5, 12),
        ("imagenet_r50_v2", 1, 47),
        ("imagenet_r50_v3", 2, 188),
        ("cmc_pycontrast", 0.5, 12),
    ],
)
def test_residual_networks_have_the_papers_sizes(preset, width, millions):
    m = model(preset)
    variables = shapes(models.backbone(m), IMAGE)
    found = variables["params"]
    assert round(size(found) / 1e6) in (millions, millions - 1)
    for view, channels in (("luminance", 1), ("chrominance", 2)):
        assert found[view]["stem_conv1"]["kernel"].shape == (7, 7, channels, 64)
        assert found[view]["group1_block1"]["conv1"]["kernel"].shape == (1, 1, 64, 64 * width)
    features = jax.eval_shape(
        lambda p, s, x: models.infer(models.backbone(m), p, s, x),
        found,
        variables["batch_stats"],
        IMAGE,
    )
    assert features.shape == (2, 2 * 2048 * width)


@pytest.mark.parametrize(
    "layer, side, channels, dim",
    [
        ("conv1", 27, 96, 9600),
        ("conv2", 13, 256, 9216),
        ("conv3", 13, 384, 9600),
        ("conv4", 13, 384, 9600),
        ("conv5", 6, 256, 9216),
    ],
)
def test_layers_of_both_halves_and_the_inputs_of_their_probes(layer, side, channels, dim):
    net = models.backbone(model("imagenet_alexnet"))
    variables = shapes(net, IMAGE)
    look = lambda v, x: models.activation(net, v["params"], v["batch_stats"], x, layer)
    found = jax.eval_shape(look, variables, IMAGE)
    assert found.shape == (2, side, side, channels)
    assert jax.eval_shape(lambda x: pooled(x, 9600, "adaptive_max"), found).shape == (2, dim)


def test_adaptive_maxima_are_those_of_overlapping_windows():
    x = np.random.default_rng(0).normal(size=(2, 7, 7, 3)).astype(np.float32)
    found = np.asarray(pooled(jnp.asarray(x), 30, "adaptive_max")).reshape(2, 3, 3, 3)
    windows = [(0, 3), (2, 5), (4, 7)]  # floor(7 i / 3) .. ceil(7 (i + 1) / 3)
    for i, (top, bottom) in enumerate(windows):
        for j, (left, right) in enumerate(windows):
            np.testing.assert_array_equal(found[:, i, j], x[:, top:bottom, left:right].max((1, 2)))
    whole = np.asarray(pooled(jnp.asarray(x), 1000, "adaptive_max"))
    np.testing.assert_array_equal(whole, x.reshape(2, -1))


def test_views_by_hand():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    np.testing.assert_array_equal(view_of(x, "luminance"), x[..., :1])
    np.testing.assert_array_equal(view_of(x, "chrominance"), x[..., 1:])
    np.testing.assert_array_equal(view_of(x, "1:3"), x[..., 1:])
    np.testing.assert_array_equal(view_of(x, "all"), x)
    more = jnp.concatenate([x, 2.0 * x], axis=-1)  # the views of two folders
    np.testing.assert_array_equal(view_of(more, "chrominance"), x[..., 1:])
    np.testing.assert_array_equal(view_of(more, "depth=4:6"), 2.0 * x[..., 1:])
    assert [view_name(view) for view in ("depth=4:6", "4:6", "low")] == ["depth", "channels_4_to_6", "low"]
    low = view_of(x, "low")
    assert low.shape == x.shape
    np.testing.assert_allclose(low[:, 0, 0], x[:, :4, :4].mean((1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(low[:, 3, 3], low[:, 0, 0])
    assert np.any(low[:, 4, 3] != low[:, 3, 3])
    ramp = jnp.broadcast_to(jnp.arange(8.0)[None, :, None, None], (1, 8, 8, 1))  # brighter downwards
    np.testing.assert_allclose(view_of(ramp, "gradient")[0, 3, 3], [0.0, -8.0])


@pytest.mark.parametrize(
    "view, images, message",
    [
        ("chrominance", (1, 8, 8, 1), "the images are grey"),
        ("low", (1, 6, 6, 3), "image_size=6 must be a multiple of 4"),
        ("2:5", (1, 8, 8, 3), "END <= 3"),
        ("depth", (1, 8, 8, 3), "'depth'"),
    ],
)
def test_views_that_images_do_not_have_are_refused(view, images, message):
    with pytest.raises(ValueError, match=message):
        view_of(jnp.zeros(images), view)
    with pytest.raises(ValueError, match="names a view twice"):
        models.backbone(model("imagenet_r50_v1", split=("low", "low")))


def test_a_view_does_not_see_the_others_and_is_normalised_by_itself():
    net = models.backbone(model("digits", name="resnet8", width=0.0625, split=("0:1", "1:3")))
    x = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)
    variables = shaken(shapes(net, x), 1)
    params, stats = variables["params"], variables["batch_stats"]
    run = jax.jit(partial(models.forward, net))
    forward = lambda *given: jax.device_get(run(*given))
    h, after = forward(params, stats, x)
    other, moved = forward(params, stats, x * np.float32([1, 5, 5]) + np.float32([0, 1, 1]))
    half = h.shape[1] // 2
    np.testing.assert_array_equal(other[:, :half], h[:, :half])
    assert np.abs(other[:, half:] - h[:, half:]).max() > 1e-3
    name = "channels_0_to_1"
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), moved[name], after[name]))
    single = models.backbone(model("digits", name="resnet8", width=0.0625, split=()))
    forward = jax.jit(partial(models.forward, single))
    alone, _ = forward(params["channels_1_to_3"], stats["channels_1_to_3"], x[..., 1:])
    np.testing.assert_allclose(h[:, half:], alone, rtol=1e-5, atol=1e-6)


def test_initialisation_is_pytorchs_default_and_hes():
    net = HalfAlexNet()
    x = jnp.zeros((2, 64, 64, 1))
    params = jax.jit(lambda key: net.init(key, x, train=False))(jax.random.key(0))["params"]
    for name, inputs in (("conv1", 121), ("conv2", 25 * 48), ("fc6", 128), ("fc7", 2048)):
        kernel = np.asarray(params[name]["kernel"])
        bound = inputs**-0.5
        assert 0.98 * bound < np.abs(kernel).max() <= bound * 1.00001, name
        np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.05)
    bias = np.asarray(params["fc7"]["bias"])
    assert 0.9 * 2048**-0.5 < np.abs(bias).max() <= 2048**-0.5
    assert "bias" not in params["conv1"]
    init = models.resnet.KERNELS["he_fan_out"]
    kernel = np.asarray(init(jax.random.key(0), (3, 3, 16, 128), jnp.float32))
    np.testing.assert_allclose(kernel.std(), (2 / (9 * 128)) ** 0.5, rtol=0.03)


def test_small_photographs_are_refused_with_what_to_type():
    with pytest.raises(ValueError, match="set config.data.image_size to 63 or more"):
        shapes(HalfAlexNet(), jax.ShapeDtypeStruct((2, 32, 32, 1), jnp.float32))
