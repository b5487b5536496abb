"""Memory banks (CMC, arXiv 1906.05849): one embedding per training image, averaged over the epochs.

    M_y <- (mu M_y + (1 - mu) v) / |mu M_y + (1 - mu) v|

as in NCE/NCEAverage.py of HobbitLong/CMC at 7b227be.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ssljax.losses.similarity import l2_normalize


def init(key: jax.Array, size: int, dim: int) -> jax.Array:
    """A bank of noise: entries of U(-s, s) with s = 1 / sqrt(D / 3), so that rows have a length of about 1.

    Args:
        key: for the draw.
        size: N, the number of rows.
        dim: D.

    Returns:
        float32 [N, D].
    """
    bound = (3.0 / dim) ** 0.5
    return jax.random.uniform(key, (size, dim), jnp.float32, -bound, bound)


def gather(bank: jax.Array, index: jax.Array) -> jax.Array:
    """Rows of a bank, without gradient.

    Args:
        bank: [N, D].
        index: int, any shape.

    Returns:
        [..., D], with the shape of `index` before the last axis.
    """
    return jax.lax.stop_gradient(bank)[index]


def scatter(bank: jax.Array, index: jax.Array, rows: jax.Array, momentum: float) -> jax.Array:
    """The bank after one step: the rows of a batch move towards its embeddings and get unit length again.

    Args:
        bank: [N, D].
        index: int [B], the rows. Of two that are equal the later one counts; N or more changes nothing.
        rows: [B, D], the embeddings, of unit length.
        momentum: mu, how much of the old row stays.

    Returns:
        [N, D]; all other rows are as they were.
    """
    rows = jax.lax.stop_gradient(rows).astype(bank.dtype)
    moved = l2_normalize(momentum * bank[index] + (1.0 - momentum) * rows).astype(bank.dtype)
    # Which of several writes to a row wins is not defined, so only the last of them is left.
    later = jnp.triu(index[:, None] == index[None, :], k=1).any(axis=1)
    index = jnp.where(later, bank.shape[0], index)
    return bank.at[index].set(moved, mode="drop")
