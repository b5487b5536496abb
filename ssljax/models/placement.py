"""How activations are sharded over the devices."""

import jax
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
