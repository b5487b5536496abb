"""Batch normalisation (Ioffe & Szegedy, 2015), with the running variance of PyTorch or that of TensorFlow.

The papers were written in both frameworks.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with float32 statistics of the whole (global) batch.

    Under jit the batch is one array, so the statistics are those of all devices together (SimCLR's "global
    BN"). Running statistics live in the collection "batch_stats" as `mean` and `var`:
    `running = momentum * running + (1 - momentum) * batch`.

    Attributes:
        momentum: the decay of the running statistics; PyTorch's momentum 0.1 is 0.9 here.
        epsilon: added to the variance.
        unbiased: the running variance accumulates n/(n-1) times the batch variance (PyTorch, Keras' fused
            kernel) instead of the batch variance itself (google-research/simclr, plain Keras). All of them
            normalise with the biased one.
        use_bias: learn an offset; False in the last layer of a projection head.
        use_scale: learn a gain; False in CPC's linear classifier.
        scale_init: initialiser of the gain; zeros for the last norm of a residual branch.
        dtype: of the output; parameters and statistics are float32.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased: bool = False
    use_bias: bool = True
    use_scale: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Normalise `[..., C]`, and if `train` update the running statistics.

        Args:
            x: `[..., C]`.
            train: use the statistics of the batch; otherwise the running ones.
            mask: bool `[..., 1]` with the rank of `x`, False for padding. What it leaves out counts in no
                statistics and is 0 in the result: normalisation turns the zeros of padding into other
                numbers. None: all of `x` is valid.
        """
        channels = (x.shape[-1],)
        if self.use_scale:
            scale = self.param("scale", self.scale_init, channels, jnp.float32)
        else:
            scale = jnp.ones(channels)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        else:
            bias = jnp.zeros(channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)

        if not train:
            x = x.astype(jnp.float32)
            centred = x - _rows(running_mean.value, x)
            gain = jax.lax.rsqrt(running_var.value + self.epsilon) * scale
            y = centred * _rows(gain, x) + _rows(bias, x)
            return _valid(y, mask).astype(self.dtype)

        if mask is not None:
            mask = jnp.broadcast_to(mask, (*x.shape[:-1], 1))
        y, mean, var = normalize_batch(x, scale, bias, running_mean.value, self.epsilon, mask)
        if not self.is_initializing():
            n = _count(x, mask)
            correction = n / _at_least_one(n - 1) if self.unbiased else 1.0
            running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
            running_var.value = self.momentum * running_var.value + (1 - self.momentum) * correction * var
        return y.astype(self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def normalize_batch(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    near: jax.Array,
    epsilon: float,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalise `[..., C]` by its own statistics.

    The gradient is the closed form of Ioffe & Szegedy (arXiv 1502.03167, section 3). It takes one reduction
    and one pass; automatic differentiation makes several. No gradient flows through the returned statistics.

    Args:
        x: float32 or bfloat16 [..., C].
        scale: [C].
        bias: [C].
        near: [C], a guess of the mean (the running one). It only affects rounding, and only in bfloat16.
        epsilon: added to the variance.
        mask: bool [..., 1], the places that count; y is 0 at all others. None: all.

    Returns:
        y [..., C], mean [C] and biased variance [C], all float32.
    """
    return _normalize_forward(x, scale, bias, near, epsilon, mask)[0]


def _statistics(x: jax.Array, near: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance [C] in float32."""
    if x.dtype == jnp.bfloat16:
        # One pass: both sums are fused into the convolution that makes x, and the devices exchange one
        # reduction instead of two. Two passes would read all activations a second time. E[d^2] - E[d]^2
        # loses its digits where |mean of d| > 256 deviations, but there bfloat16 has already lost them.
        d = x.astype(jnp.float32) - _rows(near, x)
        off = _mean(d, mask)
        return near + off, jnp.maximum(_mean(jnp.square(d), mask) - jnp.square(off), 0.0)
    # Two passes: E[x^2] - E[x]^2 cancels where the mean is large, or where the batch is nearly constant, as
    # in SimCLRv2's gates.
    x = x.astype(jnp.float32)
    mean = _mean(x, mask)
    var = _mean(jnp.square(x - _rows(mean, x)), mask)
    return mean, var


def _normalize_forward(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    near: jax.Array,
    epsilon: float,
    mask: jax.Array | None,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple]:
    mean, var = _statistics(x, near, mask)
    inverse = jax.lax.rsqrt(var + epsilon)
    centred = x.astype(jnp.float32) - _rows(mean, x)
    y = centred * _rows(inverse * scale, x) + _rows(bias, x)
    return (_valid(y, mask), mean, var), (x, mean, inverse, scale, mask)


def _normalize_backward(
    epsilon: float, saved: tuple, cotangents: tuple
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, None]:
    del epsilon
    x, mean, inverse, scale, mask = saved
    dy = _valid(cotangents[0], mask)
    axes = tuple(range(x.ndim - 1))
    n = _at_least_one(_count(x, mask))
    dtype = x.dtype

    x = x.astype(jnp.float32)
    dbias = dy.sum(axes)
    dscale = (dy * (x - _rows(mean, x))).sum(axes) * inverse
    # dx = scale / std * (dy - mean(dy) - x_hat * mean(dy * x_hat))
    gain = scale * inverse
    through_y = (dy - _rows(dbias / n, x)) * _rows(gain, x)
    through_variance = (x - _rows(mean, x)) * _rows(gain * inverse * dscale / n, x)
    dx = _valid(through_y - through_variance, mask)
    return dx.astype(dtype), dscale, dbias, jnp.zeros_like(mean), None


normalize_batch.defvjp(_normalize_forward, _normalize_backward)


def _rows(v: jax.Array, x: jax.Array) -> jax.Array:
    """`[C]` as `[1, ..., 1, C]` with the rank of `x`."""
    return v.reshape((1,) * (x.ndim - 1) + v.shape)


def _count(x: jax.Array, mask: jax.Array | None) -> int | jax.Array:
    """How many places of `x [..., C]` count: a number, or float32 [] with a mask."""
    return x.size // x.shape[-1] if mask is None else mask.sum(dtype=jnp.float32)


def _at_least_one(count: int | jax.Array) -> int | jax.Array:
    return max(count, 1) if isinstance(count, int) else jnp.maximum(count, 1.0)


def _mean(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Mean over the places that count: float32 `[..., C] -> [C]`; 0 if there are none."""
    axes = tuple(range(x.ndim - 1))
    if mask is None:
        return x.mean(axes)
    return _valid(x, mask).sum(axes) / _at_least_one(_count(x, mask))


def _valid(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`x`, but 0 where the mask is False."""
    return x if mask is None else jnp.where(mask, x, jnp.zeros((), x.dtype))
