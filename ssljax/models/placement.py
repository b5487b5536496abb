"""How activations are sharded over the devices, and laid out on an NVIDIA GPU."""

from typing import Any

import jax
from jax.extend import backend
from jax.sharding import PartitionSpec


def along_batch(x: jax.Array) -> jax.Array:
    """Shard the rows of `x [B, ...]` over all devices of the current mesh (see `sharding.on_mesh`).

    Without a mesh this returns `x` itself.

    Without this constraint, parameters sharded over `fsdp` make XLA's partitioner split the channels of the
    activations instead. It then gathers the whole batch on every device, which shows only in the bytes of the
    collectives.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names))


def on_cuda() -> bool:
    """Whether this process computes on NVIDIA GPUs."""
    return "cuda" in backend.get_backend().platform_version.lower()


def rows_times(x: jax.Array, kernel: jax.Array, dimensions: Any, **settings: Any) -> jax.Array:
    """`lax.dot_general` for a Dense layer on tokens, `[B, N, D] x [D, E] -> [B, N, E]`.

    On an NVIDIA GPU the tokens of all images become the rows of one matrix. Otherwise XLA puts the batch
    innermost for the sake of the kernels' gradients, and transposes the activations between the layers. On a
    TPU, which lays out an image's tokens in tiles, the detour would cost copies.
    """
    if not on_cuda():
        return jax.lax.dot_general(x, kernel, dimensions, **settings)
    rows = x.reshape(-1, x.shape[-1])
    product = jax.lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), **settings)
    return product.reshape(*x.shape[:-1], kernel.shape[-1])
