"""The CPU convolution computes what XLA's computes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ssljax.models import ResNet
from ssljax.models.conv import conv2d
from ssljax.models.resnet import Basic

xla = partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("images, side, size, stride", [(8, 8, 3, 1), (6, 7, 3, 2), (2, 8, 3, 2), (3, 5, 1, 1), (4, 8, 1, 2), (2, 9, 7, 2),
                                                        (2, 10, 3, 3)])
def test_value_and_both_gradients(images, side, size, stride):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (images, side, side, 3)), jax.random.normal(keys[1], (size, size, 3, 5))
    padding = (((size - 1) // 2, size // 2),) * 2
    grad = jax.random.normal(keys[2], (images, -(-side // stride), -(-side // stride), 5))

    @partial(jax.jit, static_argnums=0)
    def value_and_gradients(conv, x, kernel):
        y, vjp = jax.vjp(lambda x, kernel: conv(x, kernel, (stride, stride), padding), x, kernel)
        return y, *vjp(grad)

    for ours, theirs in zip(value_and_gradients(conv2d, x, kernel), value_and_gradients(xla, x, kernel), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


def test_bfloat16_sums_in_float32():
    x, grad = jnp.ones((512, 4, 4, 1), jnp.bfloat16), jnp.ones((512, 4, 4, 1), jnp.bfloat16)
    _, vjp = jax.vjp(lambda kernel: conv2d(x, kernel, (1, 1), ((0, 0), (0, 0))), jnp.ones((1, 1, 1, 1), jnp.bfloat16))
    assert float(vjp(grad)[0][0, 0, 0, 0]) == 512 * 16             # a sum in bfloat16 would stop at 256 times its step


def test_a_network_uses_it_on_one_device_only_and_its_gradients_agree(monkeypatch):
    image = jax.random.uniform(jax.random.key(0), (4, 6, 6, 1))
    net = ResNet(Basic, (1,), (4,), 4, stem="cifar")
    variables = jax.jit(partial(net.init, train=False))(jax.random.key(0), image)
    params = jax.tree.map(lambda p: p + 0.1, variables["params"])             # no silent branch

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
    x, kernel = jax.ShapeDtypeStruct((8, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((3, 3, 3, 4), jnp.float32)
    step = jax.jit(jax.grad(lambda kernel, x: conv2d(x, kernel, (1, 1), ((1, 1), (1, 1))).sum()))
    assert "while" in step.trace(kernel, x).lower(lowering_platforms=("cpu",)).as_text()
    assert "while" not in step.trace(kernel, x).lower(lowering_platforms=("tpu",)).as_text()
