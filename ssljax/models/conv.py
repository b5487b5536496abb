"""A convolution whose gradients are quick on a CPU.

Two of XLA's CPU gradients are slow: that of a narrow convolution (16 to 128 channels) with respect to its kernel, and that of a strided
one with respect to its input. Both have another form here, equal but for rounding, on CPUs only. The forward pass is XLA's own.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], ...]
IMAGES = 8                          # at a time: their patches stay in the cache


def conv2d(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding, **options: Any) -> jax.Array:
    """`[B, H, W, C]` with `kernel [h, w, C, D]` -> `[B, H', W', D]`; the `conv_general_dilated` of a `flax.linen.Conv`.

    The other `options` of that argument are the defaults (no dilation, one group). On other platforms the gradient is XLA's too; the
    choice falls when the program is lowered, so that compiling for a TPU on a CPU is right. Reverse-mode differentiation only.
    """
    del options
    return _conv2d(x, kernel, tuple(strides), tuple(map(tuple, padding)))


def _xla(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


_conv2d = jax.custom_vjp(_xla, nondiff_argnums=(2, 3))


def _forward(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding) -> tuple[jax.Array, tuple]:
    return _xla(x, kernel, strides, padding), (x, kernel)


def _backward(strides: tuple[int, int], padding: Padding, saved: tuple, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved

    def by_xla(x: jax.Array, kernel: jax.Array, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vjp(lambda x, kernel: _xla(x, kernel, strides, padding), x, kernel)[1](grad)

    def by_hand(x: jax.Array, kernel: jax.Array, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
        if strides == (1, 1):
            grad_x = jax.vjp(lambda x: _xla(x, kernel, strides, padding), x)[1](grad)[0]
        else:
            grad_x = _input_gradient(kernel, grad, x.shape[1:3], strides, padding)
        return grad_x, _kernel_gradient(x, grad, kernel.shape[:2], strides, padding)

    return lax.platform_dependent(x, kernel, grad, cpu=by_hand, default=by_xla)


_conv2d.defvjp(_forward, _backward)


def _input_gradient(kernel: jax.Array, grad: jax.Array, size: tuple[int, int], strides: tuple[int, int], padding: Padding) -> jax.Array:
    """The input gradient `[B, *size, C]` of a strided convolution as one convolution without strides.

    XLA spreads `grad` with zeros between its pixels and convolves those too. Pixel s q + r of the input meets tap t of output pixel
    q + a where s a = r + before - t: so the s x s phases r are channels of a small convolution over `grad`, laid out as pixels at the end.
    """
    taps, pads = [], []
    for length, out, extent, stride, (before, _) in zip(size, grad.shape[1:3], kernel.shape[:2], strides, padding, strict=True):
        shifts = range((before - extent) // stride + 1, (stride - 1 + before) // stride + 1)                # all a with a tap
        table = [[r + before - stride * a for r in range(stride)] for a in shifts]
        taps.append(jnp.array([[t if 0 <= t < extent else extent for t in row] for row in table]))          # `extent`: the zero tap
        pads.append((-shifts[0], -(-length // stride) - 1 + shifts[-1] - (out - 1)))
    padded = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
    phased = padded[taps[0][:, None, :, None], taps[1][None, :, None, :]]                                   # [a, b, r, s, C, D]
    phased = phased.transpose(0, 1, 5, 2, 3, 4).reshape(len(taps[0]), len(taps[1]), grad.shape[-1], -1)
    y = _xla(grad, phased, (1, 1), tuple(pads))
    y = y.reshape(*y.shape[:3], *strides, -1).transpose(0, 1, 3, 2, 4, 5)                                   # [B, q, r, q', r', C]
    y = y.reshape(y.shape[0], y.shape[1] * strides[0], -1, y.shape[-1])
    return y[:, :size[0], :size[1]]


def _kernel_gradient(x: jax.Array, grad: jax.Array, size: tuple[int, int], strides: tuple[int, int], padding: Padding) -> jax.Array:
    """Output gradient times patches, a few images at a time, summed in float32: `[h, w, C, D]`."""
    channels, features = x.shape[-1], grad.shape[-1]
    rows, columns = grad.shape[1:3]

    def add(total: jax.Array, images: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x, grad = images
        x = jnp.pad(x, ((0, 0), *padding, (0, 0)))       # here, not before: the chunk stays in the cache
        patches = jnp.concatenate([
            x[:, i:i + (rows - 1) * strides[0] + 1:strides[0], j:j + (columns - 1) * strides[1] + 1:strides[1]]
            for i in range(size[0]) for j in range(size[1])], axis=-1)                       # [n, H', W', h*w*C]
        product = jnp.matmul(grad.reshape(-1, features).T, patches.reshape(-1, patches.shape[-1]), preferred_element_type=jnp.float32)
        return total + product, None                     # the long side is the matrix product's columns: quicker than its transpose

    n = math.gcd(x.shape[0], IMAGES)
    chunks = (x.reshape(-1, n, *x.shape[1:]), grad.reshape(-1, n, *grad.shape[1:]))
    total, _ = lax.scan(add, jnp.zeros((features, math.prod(size) * channels), jnp.float32), chunks)
    return total.T.reshape(*size, channels, features).astype(x.dtype)
