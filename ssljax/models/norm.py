"""Batch normalisation (Ioffe & Szegedy, 2015) with the running variance of either framework the papers were written in."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last; statistics in float32 over the whole (global) batch.

    Under jit the batch is one array, so the statistics are those of all devices together (SimCLR's "global BN").
    Running statistics live in the collection "batch_stats" as `mean` and `var`:
    `running = momentum * running + (1 - momentum) * batch`.

    Attributes:
        momentum: the decay of the running statistics; PyTorch's momentum 0.1 is 0.9 here.
        epsilon: added to the variance.
        unbiased: the running variance takes n/(n-1) times the batch variance (PyTorch, Keras' fused kernel) instead of the
            batch variance itself (google-research/simclr, plain Keras). The normalisation uses the biased one in all of them.
        use_bias: learn an offset; False in the last layer of a projection head.
        scale_init: initialiser of the gain; zeros in the last norm of a residual branch.
        dtype: of the output; parameters and statistics are float32.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased: bool = False
    use_bias: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises `[..., C]`: with the batch's statistics, which it also accumulates, if `train`, else with the running ones."""
        channels = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = (
            self.param("bias", nn.initializers.zeros, channels, jnp.float32)
            if self.use_bias
            else jnp.zeros(channels)
        )
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)

        if not train:
            x = x.astype(jnp.float32)
            y = (x - _rows(running_mean.value, x)) * _rows(
                jax.lax.rsqrt(running_var.value + self.epsilon) * scale, x
            ) + _rows(bias, x)
            return y.astype(self.dtype)
        y, mean, var = normalize_batch(x, scale, bias, running_mean.value, self.epsilon)
        if not self.is_initializing():
            n = x.size // x.shape[-1]
            correction = n / max(n - 1, 1) if self.unbiased else 1.0
            running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
            running_var.value = self.momentum * running_var.value + (1 - self.momentum) * correction * var
        return y.astype(self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def normalize_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array, near: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises `[..., C]` by its own statistics -> (y, mean [C], biased variance [C]), all float32.

    The gradient is the closed form of Ioffe & Szegedy (arXiv 1502.03167, section 3), one reduction and one pass where automatic
    differentiation makes several; no gradient flows through the returned statistics.

    Args:
        x: float32 or bfloat16.
        scale: [C].
        bias: [C].
        near: [C], a guess of the mean (the running one). It changes nothing but rounding, and that only in bfloat16.
        epsilon: added to the variance.
    """
    return _normalize_forward(x, scale, bias, near, epsilon)[0]


def _statistics(x: jax.Array, near: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance [C] in float32."""
    axes = tuple(range(x.ndim - 1))
    if x.dtype == jnp.bfloat16:
        # One pass: both sums are fused into the convolution that makes x, where two passes read all activations a second time, and two
        # reductions over the devices become one. Where E[d^2] - E[d]^2 loses its digits, |mean of d| > 256 deviations, bfloat16 has
        # lost them before.
        d = x.astype(jnp.float32) - _rows(near, x)
        off = d.mean(axes)
        return near + off, jnp.maximum(jnp.square(d).mean(axes) - jnp.square(off), 0.0)
    # Two passes: E[x^2] - E[x]^2 cancels where the mean is large or, as in SimCLRv2's gates, the batch nearly constant.
    x = x.astype(jnp.float32)
    mean = x.mean(axes)
    var = jnp.square(x - _rows(mean, x)).mean(axes)
    return mean, var


def _normalize_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, near: jax.Array, epsilon: float
) -> tuple[tuple[jax.Array, ...], tuple]:
    mean, var = _statistics(x, near)
    inverse = jax.lax.rsqrt(var + epsilon)
    y = (x.astype(jnp.float32) - _rows(mean, x)) * _rows(inverse * scale, x) + _rows(bias, x)
    return (y, mean, var), (x, mean, inverse, scale)


def _normalize_backward(
    epsilon: float, saved: tuple, cotangents: tuple
) -> tuple[jax.Array, jax.Array, jax.Array]:
    del epsilon
    x, mean, inverse, scale = saved
    dy, _, _ = cotangents
    axes, n, dtype = tuple(range(x.ndim - 1)), x.size // x.shape[-1], x.dtype
    x = x.astype(jnp.float32)
    dbias = dy.sum(axes)
    dscale = (dy * (x - _rows(mean, x))).sum(axes) * inverse
    # dx = scale / std * (dy - mean(dy) - x_hat * mean(dy * x_hat))
    gain = scale * inverse
    dx = (dy - _rows(dbias / n, x)) * _rows(gain, x) - (x - _rows(mean, x)) * _rows(
        gain * inverse * dscale / n, x
    )
    return dx.astype(dtype), dscale, dbias, jnp.zeros_like(mean)


normalize_batch.defvjp(_normalize_forward, _normalize_backward)


def _rows(v: jax.Array, x: jax.Array) -> jax.Array:
    """`[C]` as `[1, ..., 1, C]`, the rank of `x`."""
    return v.reshape((1,) * (x.ndim - 1) + v.shape)
