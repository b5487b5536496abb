"""Where arrays live: a mesh `data` x `fsdp` over all devices, batches split along both, and a rule for every leaf of the train state.

With `fsdp` = 1 the parameters are whole on each device (data parallelism). With `fsdp` = F, groups of F devices share one copy of the
big leaves (ZeRO; Rajbhandari et al., arXiv 1910.02054): the compiler gathers a layer where it is used and scatters its gradient. That
works only while activations stay split by the batch, which `models.placement.along_batch` says inside the networks.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ssljax.types import Pytree

AXES = ("data", "fsdp")
BIG = 2**14  # elements; smaller leaves (norms, biases) cost more to gather than to keep


def make_mesh(devices: int = 0, fsdp: int = 1) -> Mesh:
    """A mesh [`data`, `fsdp`] over the first `devices` devices; 0 = every device of every process.

    Raises:
        ValueError: `fsdp` does not divide the number of devices.
    """
    return mesh_of(jax.devices()[: devices or None], fsdp)


def mesh_of(devices: list[jax.Device], fsdp: int = 1) -> Mesh:
    """A mesh [`data`, `fsdp`] over given devices, those of a TPU slice that is not there for example.

    Raises:
        ValueError: `fsdp` does not divide the number of devices.
    """
    count = len(devices)
    if fsdp < 1 or count % fsdp:
        fitting = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise ValueError(f"sharding.fsdp={fsdp} does not divide {count} devices: use one of {fitting}")
    return jax.make_mesh((count // fsdp, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch are split over all devices; everything behind them is whole."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def whole(mesh: Mesh) -> NamedSharding:
    """The same array on each device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, state: Pytree, rows: tuple[str, ...] = ()) -> Pytree:
    """A NamedSharding for every leaf of a TrainState (or of its shapes).

    The fields of `extra` that `rows` names (queues, banks) are split by rows over all devices; with fsdp > 1 leaves of BIG elements
    or more are split over `fsdp` along their longest dimension that it divides (the last of equals). The rest is whole. Momenta and
    target networks have the shapes of the parameters they belong to and so their shardings.

    Args:
        mesh: from `make_mesh`.
        state: a tree of arrays or ShapeDtypeStructs.
        rows: `Method.rows`.
    """
    devices, fsdp = mesh.devices.size, mesh.shape["fsdp"]

    def rule(path: tuple, leaf: jax.Array) -> NamedSharding:
        names = [getattr(entry, "name", getattr(entry, "key", "")) for entry in path]
        if (
            "extra" in names
            and any(name in rows for name in names)
            and leaf.ndim
            and leaf.shape[0] % devices == 0
        ):
            return NamedSharding(mesh, PartitionSpec(AXES))
        divisible = [size if size % fsdp == 0 else 0 for size in leaf.shape]
        if fsdp == 1 or leaf.size < BIG or not any(divisible):
            return whole(mesh)
        axis = leaf.ndim - 1 - int(np.argmax(divisible[::-1]))
        return NamedSharding(mesh, PartitionSpec(*("fsdp" if i == axis else None for i in range(leaf.ndim))))

    return jax.tree_util.tree_map_with_path(rule, state)


def on_mesh(mesh: Mesh, function: Callable) -> Callable:
    """The function, traced with the mesh in sight, so that `models.placement.along_batch` can name its axes."""

    def traced(*arguments: Pytree) -> Pytree:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return traced


def check_batch(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Refuses a global batch that does not split evenly over the devices and, if asked for, the micro-batches.

    Raises:
        ValueError: names the batch size and the next sizes that fit.
    """
    devices = mesh.devices.size
    pieces = devices * accumulate
    if accumulate < 1 or batch_size % pieces:
        below = batch_size // max(pieces, 1) * pieces
        micro = f" in {accumulate} micro-batches" if accumulate != 1 else ""
        raise ValueError(
            f"batch_size={batch_size} does not split over {devices} devices{micro}: use {below or pieces} or {below + pieces}"
        )


def put_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> Pytree:
    """Global arrays from the rows that this process read."""
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
