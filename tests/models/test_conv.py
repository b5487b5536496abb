"""The CPU convolution computes what XLA's convolution computes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from ssljax.models import ResNet
from ssljax.models.conv import WIDE, conv2d
from ssljax.models.resnet import Basic

xla = partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def agree(x_shape, kernel_shape, strides, padding, groups=1):
    """The value and both gradients agree up to float32's rounding, relative to the largest element."""
    rng = np.random.default_rng(0)
    normal = lambda shape: rng.normal(size=shape).astype(np.float32)
    x, kernel = normal(x_shape), normal(kernel_shape)
    settings = dict(window_strides=strides, padding=padding, feature_group_count=groups)
    grad = normal(jax.eval_shape(lambda: xla(x, kernel, **settings)).shape)

    @partial(jax.jit, static_argnums=0)
    def value_and_gradients(conv, x, kernel):
        y, vjp = jax.vjp(conv, x, kernel)
        return y, *vjp(grad)

    our_conv = lambda x, kernel: conv2d(x, kernel, strides, padding, feature_group_count=groups)
    their_conv = lambda x, kernel: xla(x, kernel, **settings)
    ours, theirs = (jax.device_get(value_and_gradients(f, x, kernel)) for f in (our_conv, their_conv))
    for name, a, b in zip(("value", "input gradient", "kernel gradient"), ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-6 * np.abs(b).max(), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "images, side, size, stride",
    [(8, 8, 3, 1), (6, 7, 3, 2), (2, 8, 3, 2), (3, 5, 1, 1), (4, 8, 1, 2), (2, 9, 7, 2), (2, 10, 3, 3)],
)
def test_value_and_both_gradients(images, side, size, stride):
    agree((images, side, side, 3), (size, size, 3, 5), (stride, stride), (((size - 1) // 2, size // 2),) * 2)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("features", [4, 40])
def test_more_padding_than_kernel(features, stride):
    agree((4, 6, 5, 2), (3, 3, 2, features), (stride, stride), ((4, 0), (0, 5)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape, padding",
    [
        ((2, 4, 4), ((1, 1), (1, 1))),
        ((3, 5, 6), ((1, 1), (1, 1))),
        ((2, 1, 2), ((1, 1), (1, 1))),
        ((2, 6, 5), ((0, 0), (2, 1))),
        ((6, 24, 24), ((1, 1), (1, 1))),
    ],
)
def test_winograd(shape, padding):
    """Even and odd sides, images smaller than a tile, other paddings, several chunks of images."""
    agree((*shape, WIDE), (3, 3, WIDE, WIDE + 8), (1, 1), padding)


def test_winograd_is_for_float32_and_many_channels():
    def products(channels, dtype):
        x = jax.ShapeDtypeStruct((2, 4, 4, channels), dtype)
        kernel = jax.ShapeDtypeStruct((3, 3, channels, channels), dtype)
        program = jax.jit(lambda x, kernel: conv2d(x, kernel, (1, 1), ((1, 1), (1, 1))))
        return program.lower(x, kernel).as_text().count("dot_general")

    assert products(WIDE, jnp.float32) == 16
    assert products(WIDE // 2, jnp.float32) < 16
    assert products(WIDE, jnp.bfloat16) < 16


@pytest.mark.slow
@pytest.mark.parametrize(
    "channels, features, groups, size, stride",
    [
        # Depthwise.
        (6, 6, 6, 3, 1),
        (6, 12, 6, 3, 2),
        (4, 4, 4, 5, 1),
        (3, 3, 3, 1, 2),
        # Grouped: in one part, in several, and with Winograd's form.
        (6, 9, 3, 3, 1),
        (12, 8, 4, 3, 2),
        (80, 40, 20, 3, 1),
        (64, 128, 2, 3, 1),
        (8, 4, 2, 1, 1),
    ],
)
def test_grouped_and_depthwise(channels, features, groups, size, stride):
    agree(
        (2, 7, 6, channels),
        (size, size, channels // groups, features),
        (stride, stride),
        (((size - 1) // 2, size // 2),) * 2,
        groups,
    )


@pytest.mark.slow
@pytest.mark.parametrize("images, side, channels, size, stride", [(6, 24, 96, 3, 1), (4, 9, 8, 5, 2)])
def test_depthwise_in_several_pieces_and_with_tensorflows_padding(images, side, channels, size, stride):
    """More numbers than are worked on at a time; one pixel more after than before."""
    padding = ((1, 2), (1, 2)) if size == 5 else ((0, 1), (0, 1))
    agree((images, side, side, channels), (size, size, 1, channels), (stride, stride), padding, channels)


def test_a_grouped_layer_of_flax_passes_its_groups():
    layer = partial(nn.Conv, 8, (3, 3), padding=((1, 1), (1, 1)), feature_group_count=4, use_bias=False)
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))
    variables = layer().init(jax.random.key(1), x)
    found = layer(conv_general_dilated=conv2d).apply(variables, x)
    np.testing.assert_allclose(found, layer().apply(variables, x), rtol=1e-5, atol=1e-6)


def test_bfloat16_sums_in_float32():
    x = jnp.ones((512, 4, 4, 1), jnp.bfloat16)
    grad = jnp.ones((512, 4, 4, 1), jnp.bfloat16)
    kernel = jnp.ones((1, 1, 1, 1), jnp.bfloat16)
    _, vjp = jax.vjp(lambda kernel: conv2d(x, kernel, (1, 1), ((0, 0), (0, 0))), kernel)
    (found,) = vjp(grad)
    assert float(found[0, 0, 0, 0]) == 512 * 16  # a sum in bfloat16 would stop at 256 times its step


@pytest.mark.slow
def test_a_network_uses_it_on_one_device_only_and_its_gradients_agree(monkeypatch):
    image = jax.random.uniform(jax.random.key(0), (4, 6, 6, 1))
    net = ResNet(Basic, (1,), (4,), 4, stem="cifar")
    variables = jax.jit(partial(net.init, train=False))(jax.random.key(0), image)
    params = jax.tree.map(lambda p: p + 0.1, variables["params"])  # no branch is zero

    def gradients():
        def loss(params):
            h, _ = net.apply(variables | {"params": params}, image, train=True, mutable=["batch_stats"])
            return jnp.square(h).mean()

        program = jax.jit(jax.grad(loss)).lower(params)
        return program.compile()(params), "while" in program.as_text()

    several, scans = gradients()
    assert not scans
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    one, scans = gradients()
    assert scans
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), one, several)


def test_compiling_for_a_tpu_takes_its_own_gradient():
    x = jax.ShapeDtypeStruct((8, 8, 8, 3), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 3, 4), jnp.float32)
    step = jax.jit(jax.grad(lambda kernel, x: conv2d(x, kernel, (1, 1), ((1, 1), (1, 1))).sum()))
    assert "while" in step.trace(kernel, x).lower(lowering_platforms=("cpu",)).as_text()
    assert "while" not in step.trace(kernel, x).lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize("groups", [1, 2, WIDE])
def test_compiling_for_a_tpu_takes_its_own_operation(groups):
    def loss(x, kernel):
        return jnp.square(conv2d(x, kernel, (1, 1), ((1, 1), (1, 1)), feature_group_count=groups)).sum()

    x = jax.ShapeDtypeStruct((8, 8, 8, WIDE), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, WIDE // groups, WIDE), jnp.float32)
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(x, kernel)
    text = gradients.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("stablehlo.convolution") == 3
    assert "dot_general" not in text and "while" not in text
