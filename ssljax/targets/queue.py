"""MoCo's dictionary (arXiv 1911.05722, section 3.2): the keys of the last batches, the oldest overwritten first."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssljax.losses.similarity import l2_normalize


class Queue(NamedTuple):
    """A ring of keys.

    Attributes:
        keys: float32 [K, D].
        pointer: int32 scalar, the row that the next batch's first key will take.
    """

    keys: jax.Array
    pointer: jax.Array


def init(key: jax.Array, size: int, dim: int) -> Queue:
    """`size` random directions in `dim` dimensions, as the released code starts; all are gone after size / batch steps."""
    return Queue(l2_normalize(jax.random.normal(key, (size, dim), jnp.float32)), jnp.zeros((), jnp.int32))


def check(size: int, batch: int) -> None:
    """Refuses a batch that would leave a gap, or overlap itself, at the end of the ring.

    Args:
        size: K.
        batch: keys enqueued at a time.

    Raises:
        ValueError: names K and the batches that divide it.
    """
    if batch < 1 or size % batch:
        divisors = [n for n in range(1, size + 1) if size % n == 0]
        near = sorted(sorted(divisors, key=lambda n: abs(n - batch))[:6])
        raise ValueError(
            f"a queue of K={size} keys is not filled by whole batches of {batch}: K must be a multiple of the keys a step "
            f"adds (the global batch, twice that with a symmetric loss). Of the sizes that divide K, the nearest are "
            f"{', '.join(map(str, near))}; or choose another K"
        )


def enqueue(queue: Queue, keys: jax.Array) -> Queue:
    """Writes a batch over the oldest rows and moves the pointer, which wraps round.

    Args:
        queue: K rows.
        keys: [B, D], stored as they are; B divides K, so that a batch never straddles the end.

    Raises:
        ValueError: B does not divide K.
    """
    size, batch = queue.keys.shape[0], keys.shape[0]
    check(size, batch)
    rows = jax.lax.dynamic_update_slice_in_dim(
        queue.keys, keys.astype(queue.keys.dtype), queue.pointer, axis=0
    )
    return Queue(rows, (queue.pointer + batch) % size)
