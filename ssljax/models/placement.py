"""How activations lie on the devices."""

import jax
from jax.sharding import PartitionSpec


def along_batch(x: jax.Array) -> jax.Array:
    """`x [B, ...]`, split by rows over every device of the mesh in sight (`sharding.on_mesh`); x itself where there is none.

    Without it, parameters sharded over `fsdp` lead XLA's partitioner to split the channels of activations instead: it gathers the whole
    batch to every device, which shows in the bytes of the collectives and nowhere else.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names))
