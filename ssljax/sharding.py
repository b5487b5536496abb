"""Sharding: a mesh `data` x `fsdp` over all devices, batches sharded along both, a rule for the train state.

With `fsdp` = 1 the parameters are replicated on each device (data parallelism). With `fsdp` = F, groups of F
devices share one copy of the large leaves (ZeRO; Rajbhandari et al., arXiv 1910.02054): the compiler
gathers a layer where it is used and scatters its gradient. That works only while the activations stay
sharded along the batch, which `models.placement.along_batch` ensures inside the networks.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ssljax.types import Pytree

AXES = ("data", "fsdp")
BIG = 2**14  # elements; smaller leaves (norms, biases) cost more to gather than to replicate


def make_mesh(devices: int = 0, fsdp: int = 1) -> Mesh:
    """Make a mesh [`data`, `fsdp`] of the first `devices` devices.

    Args:
        devices: how many; 0 means all devices of all processes.
        fsdp: size of the `fsdp` axis.

    Raises:
        ValueError: `fsdp` does not divide the number of devices.
    """
    return mesh_of(jax.devices()[: devices or None], fsdp)


def mesh_of(devices: list[jax.Device], fsdp: int = 1) -> Mesh:
    """Make a mesh [`data`, `fsdp`] of the given devices, for example those of an absent TPU slice.

    Raises:
        ValueError: `fsdp` does not divide the number of devices.
    """
    count = len(devices)
    if fsdp < 1 or count % fsdp:
        fitting = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise ValueError(f"sharding.fsdp={fsdp} does not divide {count} devices: use one of {fitting}")
    return jax.make_mesh((count // fsdp, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its rows over all devices, all other axes whole."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def whole(mesh: Mesh) -> NamedSharding:
    """The sharding of a replicated array."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, state: Pytree, rows: tuple[str, ...] = ()) -> Pytree:
    """Choose a NamedSharding for every leaf of a TrainState (or of its shapes).

    - The fields of `extra` that `rows` names (queues, banks) are sharded by rows over all devices.
    - With fsdp > 1, leaves of at least BIG elements are sharded over `fsdp`, along the longest dimension
      that it divides (the last of equals).
    - Everything else is replicated.

    Momenta and target networks have the shapes of their parameters and so the same shardings.

    Args:
        mesh: from `make_mesh`.
        state: a tree of arrays or ShapeDtypeStructs.
        rows: `Method.rows`.
    """
    devices = mesh.devices.size
    fsdp = mesh.shape["fsdp"]

    def rule(path: tuple, leaf: jax.Array) -> NamedSharding:
        names = [getattr(entry, "name", getattr(entry, "key", "")) for entry in path]
        has_rows = "extra" in names and any(name in rows for name in names)
        if has_rows and leaf.ndim and leaf.shape[0] % devices == 0:
            return batch_sharding(mesh)

        divisible = [size if size % fsdp == 0 else 0 for size in leaf.shape]
        if fsdp == 1 or leaf.size < BIG or not any(divisible):
            return whole(mesh)

        longest = leaf.ndim - 1 - int(np.argmax(divisible[::-1]))
        axes = ["fsdp" if axis == longest else None for axis in range(leaf.ndim)]
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(rule, state)


def on_mesh(mesh: Mesh, function: Callable) -> Callable:
    """Trace the function under the mesh, so that `models.placement.along_batch` finds it."""

    def traced(*arguments: Pytree) -> Pytree:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return traced


def check_batch(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Check that a global batch splits evenly over the devices and the micro-batches.

    Args:
        mesh: from `make_mesh`.
        batch_size: of the global batch.
        accumulate: number of micro-batches.

    Raises:
        ValueError: it does not; the message names the batch size and the nearest sizes that fit.
    """
    devices = mesh.devices.size
    pieces = devices * accumulate
    if accumulate < 1 or batch_size % pieces:
        below = batch_size // max(pieces, 1) * pieces
        micro = f" in {accumulate} micro-batches (accumulate={accumulate})" if accumulate != 1 else ""
        raise ValueError(
            f"batch_size={batch_size} does not split over {devices} devices{micro}: "
            f"use {below or pieces} or {below + pieces}"
        )


def put_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> Pytree:
    """Make global arrays from the rows that this process read."""
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
