"""Feature maps averaged down to about the same size, for linear probes of single layers.

    [B, H, W, C] -> [B, D]:  at most s = floor(sqrt(dim / C)) places per side,
                             adjacent windows of k = round(side / s), with zeros around the map

With dim = 9600 these are the pools of facebookresearch/deepcluster, eval_linear.py, for all five convolutions
of its AlexNet. As there, the zeros of the border count in the average.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Pool(NamedTuple):
    """An average pool of a square map.

    Attributes:
        size: the side of a window, and the stride.
        padding: how many zeros are added on each side of the map.
        places: the side of the result.
    """

    size: int
    padding: int
    places: int


def pool(side: int, channels: int, dim: int) -> Pool:
    """The pool that reduces a map [side, side, channels] to at most `dim` numbers.

    Raises:
        ValueError: there are more channels than `dim`.
    """
    if dim < channels:
        raise ValueError(
            f"layer_dim={dim}: the layer has {channels} channels, and its map cannot be reduced to fewer "
            f"numbers than that: set config.evaluate.layer_dim (a cached probe) or config.probe.layer_dim "
            f"(method linear) to {channels} or more"
        )
    most = min(side, math.isqrt(dim // channels))
    size = round(side / most)
    size += side // size > most
    places = min(most, -(-side // size))
    return Pool(size, max(0, -(-(places * size - side) // 2)), places)


POOLS = ("average", "adaptive_max")


def pooled(activation: jax.Array, dim: int, kind: str = "average") -> jax.Array:
    """Reduce a square map to at most `dim` numbers per image.

    Args:
        activation: [B, H, W, C] with H = W.
        dim: the most numbers per image.
        kind: "average", see the top of this file; or "adaptive_max", PyTorch's `AdaptiveMaxPool2d` to the
            largest side s that fits: window i reaches from floor(i side / s) to ceil((i + 1) side / s). With
            dim = 9600 these are the pools of HobbitLong/CMC, models/LinearModel.py.

    Returns:
        float32 [B, D], ordered by rows, then columns, then channels.
    """
    if kind == "adaptive_max":
        return _adaptive_max(activation.astype(jnp.float32), dim)
    batch, side, _, channels = activation.shape
    size, padding, places = pool(side, channels, dim)
    border = (padding, padding)
    x = jnp.pad(activation.astype(jnp.float32), ((0, 0), border, border, (0, 0)))
    x = x[:, : places * size, : places * size]
    return x.reshape(batch, places, size, places, size, channels).mean((2, 4)).reshape(batch, -1)


def _adaptive_max(x: jax.Array, dim: int) -> jax.Array:
    side, channels = x.shape[2:]
    pool(side, channels, dim)  # refuses fewer numbers than channels
    places = min(side, math.isqrt(dim // channels))
    windows = [(i * side // places, -(-(i + 1) * side // places)) for i in range(places)]
    rows = jnp.stack([x[:, first:end].max(1) for first, end in windows], axis=1)
    columns = jnp.stack([rows[:, :, first:end].max(2) for first, end in windows], axis=2)
    return columns.reshape(x.shape[0], -1)
