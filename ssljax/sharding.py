"""Where arrays live: a mesh over all devices, batches split along it, the train state whole on each."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ssljax.types import Pytree


def make_mesh(devices: int = 0) -> Mesh:
    """A one-dimensional mesh `data` over the first `devices` devices; 0 = every device of every process."""
    count = devices or jax.device_count()
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch are split over `data`; everything behind them is whole."""
    return NamedSharding(mesh, PartitionSpec("data"))


def state_sharding(mesh: Mesh) -> NamedSharding:
    """The train state is whole on each device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: Mesh, batch_size: int) -> None:
    """Refuses a global batch that does not split evenly over the devices.

    Raises:
        ValueError: names the batch size and the next sizes that fit.
    """
    devices = mesh.devices.size
    if batch_size % devices:
        below = batch_size // devices * devices
        raise ValueError(f"batch_size={batch_size} does not split over {devices} devices: use {below or devices} or {below + devices}")


def put_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> Pytree:
    """Global arrays from the rows that this process read."""
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
