"""A digest of every leaf of a state: what is read from a checkpoint must be what was written.

The digest of a leaf is a sum over its elements, modulo 2^64: each element's bits, taken as an unsigned
integer, times a pseudo-random odd weight that belongs to its position. A changed element always changes the
sum, because an odd weight times a difference that is not zero is not zero. Several changes cancel by a chance
of about 2^-32 at worst. A sum can be added up from the shards of a leaf in any order, so the digest does not
depend on the number of devices or hosts.

It guards against accidents, not against someone who wants to deceive.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from ssljax.types import Pytree


def by_path(tree: Pytree) -> dict[str, jax.Array]:
    """The leaves of a tree by their paths, with `/` between the parts."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def shapes(tree: Pytree) -> dict[str, tuple[int, ...]]:
    """The shapes of the leaves by their paths."""
    return {path: tuple(leaf.shape) for path, leaf in by_path(tree).items()}


def digests(tree: Pytree) -> dict[str, str]:
    """The digest of every leaf. On many hosts all must call this; it returns the same on each.

    Args:
        tree: of arrays of any dtype, placed anyhow.

    Returns:
        path -> 16 hex digits.
    """
    leaves = by_path(tree)
    owned = {name: _owned(leaf) for name, leaf in leaves.items()}
    for shards in owned.values():
        for shard in shards:
            shard.data.copy_to_host_async()
    sums = np.array([_sum_of(shards) for shards in owned.values()], np.uint64)
    if jax.process_count() > 1:
        # As pairs of 32 bits, because JAX would cut 64 down to 32.
        halves = multihost_utils.process_allgather(sums.view(np.uint32))
        sums = np.ascontiguousarray(halves).view(np.uint64).sum(axis=0, dtype=np.uint64)
    return {name: f"{value:016x}" for name, value in zip(leaves, sums.tolist(), strict=True)}


def changed(tree: Pytree, written: Mapping[str, str]) -> list[str]:
    """The paths of the leaves whose digest is not the one that was written.

    Args:
        tree: the leaves that were read, all of a checkpoint or some.
        written: path -> digest, of all leaves.
    """
    return [name for name, found in digests(tree).items() if written[name] != found]


def _owned(leaf: jax.Array | np.ndarray) -> list:
    """The shards of a leaf that this process answers for: the first copy of each, over all processes."""
    if isinstance(leaf, np.ndarray):  # the same on every process
        return list(jnp.asarray(leaf).addressable_shards) if jax.process_index() == 0 else []
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return [shard for shard in leaf.addressable_shards if shard.replica_id == 0]


def _sum_of(shards: list) -> int:
    """The sum over some shards of a leaf, modulo 2^64."""
    parts = [_sum(np.asarray(shard.data), [part.start or 0 for part in shard.index]) for shard in shards]
    return sum(parts) % 2**64


def _sum(block: np.ndarray, starts: list[int]) -> int:
    """The weighted sum of one shard.

    The weight of a position is the product of one odd weight per axis, so the sum is taken axis by axis.

    Args:
        block: the elements of the shard.
        starts: its first position on each axis of the whole leaf.
    """
    total = np.ascontiguousarray(block)  # at least one axis
    total = total.view(f"u{total.dtype.itemsize}")
    starts = starts or [0]
    for axis in reversed(range(total.ndim)):
        weights = _weights(axis, starts[axis], total.shape[axis])
        total = np.einsum("...i,i->...", total, weights, dtype=np.uint64, casting="unsafe")
    return int(total)


def _weights(axis: int, start: int, count: int) -> np.ndarray:
    """Odd pseudo-random numbers, uint64 [count], for the positions from `start` on (SplitMix64)."""
    x = np.arange(start, start + count, dtype=np.uint64)
    x += np.uint64((axis + 1) << 48)
    x *= np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) | np.uint64(1)
