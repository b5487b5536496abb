"""Stochastic depth and dropout: what a network drops at random while it trains."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn


def rates(last: float, blocks: int) -> list[float]:
    """Rates of stochastic depth, growing linearly from 0 in the first block to `last` in the last."""
    return [last * block / max(blocks - 1, 1) for block in range(blocks)]


def drop_path(x: jax.Array, rate: jax.typing.ArrayLike, key: jax.Array) -> jax.Array:
    """Stochastic depth (Huang et al., arXiv 1603.09382).

    Args:
        x: a residual branch [B, ...].
        rate: probability of dropping the branch of an example.
        key: of the draw.

    Returns:
        `x`, where each example is either zero or scaled up by 1 / (1 - rate).
    """
    keep = 1.0 - rate
    kept = jax.random.bernoulli(key, keep, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(kept, x / jnp.asarray(keep, x.dtype), jnp.zeros((), x.dtype))


def dropout(module: nn.Module, x: jax.Array) -> jax.Array:
    """Dropout at the rate `module.dropout`; at 0 the identity, which draws nothing."""
    if not module.dropout:
        return x
    kept = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - module.dropout, x.shape)
    return jnp.where(kept, x / (1.0 - module.dropout), jnp.zeros((), x.dtype))
