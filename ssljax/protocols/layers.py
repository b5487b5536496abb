"""Linear probes of single layers, whose feature maps are averaged down to about the same size.

    [B, H, W, C] -> [B, D]:  at most s = floor(sqrt(dim / C)) places per side,
                             adjacent windows of k = round(side / s), with zeros around the map

With dim = 9600 these are the pools of facebookresearch/deepcluster, eval_linear.py, for all five convolutions
of its AlexNet. As there, the zeros of the border count in the average. The released protocol trains the
classifier on random crops and evaluates ten crops of a test image; ours sees the centre crop, like every
protocol here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssljax.protocols.bench import Bench
from ssljax.protocols.features import labelled
from ssljax.protocols.linear import probe
from ssljax.types import Measurement, Protocol


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
            f"config.evaluate.layer_dim={dim}: the layer has {channels} channels, and its map cannot be "
            f"reduced to fewer numbers than that: set layer_dim to {channels} or more"
        )
    most = min(side, math.isqrt(dim // channels))
    size = round(side / most)
    size += side // size > most
    places = min(most, -(-side // size))
    return Pool(size, max(0, -(-(places * size - side) // 2)), places)


def pooled(activation: jax.Array, dim: int) -> jax.Array:
    """Average a square map down to at most `dim` numbers per image.

    Args:
        activation: [B, H, W, C] with H = W.
        dim: the most numbers per image.

    Returns:
        float32 [B, D], ordered by rows, then columns, then channels.
    """
    batch, side, _, channels = activation.shape
    size, padding, places = pool(side, channels, dim)
    border = (padding, padding)
    x = jnp.pad(activation.astype(jnp.float32), ((0, 0), border, border, (0, 0)))
    x = x[:, : places * size, : places * size]
    return x.reshape(batch, places, size, places, size, channels).mean((2, 4)).reshape(batch, -1)


def judge(bench: Bench) -> Iterator[Measurement]:
    """A probe of each layer in `config.evaluate.layers`, under the name `layer_NAME`.

    `dim` in the settings is the number of inputs of the probe.
    """
    assert bench.maps is not None, "pixels have no maps and are not judged by this protocol"
    reduce = jax.jit(functools.partial(pooled, dim=bench.config.evaluate.layer_dim))
    for layer in bench.config.evaluate.layers:
        train = labelled(bench.maps(bench.train, layer, reduce), "layers", "train")
        test = labelled(bench.maps(bench.test, layer, reduce), "layers", "test")
        found = probe(train, test, bench.config, num_classes=bench.num_classes)
        settings = {**found["settings"], "dim": train.features.shape[1], "probe": found["protocol"]}
        yield {**found, "protocol": f"layer_{layer}", "settings": settings}


def refuse(bench: Bench) -> str:
    """The layers must be named, and both splits need labels."""
    if bench.config.evaluate.layers:
        return bench.unlabelled("layers")
    return (
        "layers needs config.evaluate.layers, the names of the layers to probe, e.g. ('group1', 'group2') "
        "for a ResNet; a wrong name is answered with a list of those that the network has"
    )


PROTOCOL = Protocol(reads="maps", metrics=("top1", "top5"), judge=judge, refuse=refuse)
