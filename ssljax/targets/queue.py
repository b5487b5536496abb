"""MoCo's dictionary (arXiv 1911.05722, section 3.2): the keys of the last batches.

A new batch overwrites the oldest keys first.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssljax.losses.similarity import l2_normalize


class Queue(NamedTuple):
    """A ring buffer of keys.

    Attributes:
        keys: float32 [K, D].
        pointer: int32 scalar, the row that the first key of the next batch will take.
    """

    keys: jax.Array
    pointer: jax.Array


def init(key: jax.Array, size: int, dim: int) -> Queue:
    """Start from random directions, as the released code does; all are overwritten after size / batch steps.

    Args:
        key: for the draw.
        size: K, the number of keys.
        dim: D, their dimension.
    """
    keys = l2_normalize(jax.random.normal(key, (size, dim), jnp.float32))
    return Queue(keys, jnp.zeros((), jnp.int32))


def check(size: int, batch: int) -> None:
    """Refuse a batch that would leave a gap, or overlap itself, at the end of the ring.

    Args:
        size: K.
        batch: the number of keys enqueued at a time.

    Raises:
        ValueError: names K and the batch sizes that divide it.
    """
    if batch < 1 or size % batch:
        divisors = [n for n in range(1, size + 1) if size % n == 0]
        nearest = sorted(divisors, key=lambda n: abs(n - batch))[:6]
        listed = ", ".join(str(n) for n in sorted(nearest))
        raise ValueError(
            f"a queue of K={size} keys is not filled by whole batches of {batch}: K must be a multiple of "
            "the number of keys per step (the global batch size, or twice that with a symmetric loss). Of "
            f"the sizes that divide K, the nearest are {listed}; or choose another K"
        )


def enqueue(queue: Queue, keys: jax.Array) -> Queue:
    """Overwrite the oldest rows with a batch, and move the pointer, which wraps around.

    Args:
        queue: K rows.
        keys: [B, D], stored as they are; B divides K, so that a batch never straddles the end.

    Raises:
        ValueError: B does not divide K.
    """
    size = queue.keys.shape[0]
    batch = keys.shape[0]
    check(size, batch)
    rows = jax.lax.dynamic_update_slice_in_dim(
        queue.keys, keys.astype(queue.keys.dtype), queue.pointer, axis=0
    )
    return Queue(rows, (queue.pointer + batch) % size)
