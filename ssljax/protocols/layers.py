"""Linear probes of single layers: the map of a layer, averaged down to about as many numbers for every layer, under a linear classifier.

    at most s = floor(sqrt(dim / C)) places a side;  windows of k = round(side / s), side by side, zeros around:  [B, H, W, C] -> [B, D]

With dim = 9600 these are the pools of facebookresearch/deepcluster, eval_linear.py, for all five convolutions of its AlexNet, the zeros of
the border counted in the average as there. The released protocol trains the classifier on random crops and judges ten crops of a test
image; ours sees the centre crop, as every protocol here.
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
    """An average pool of a square map: window and stride `size`, `padding` zeros on each side, `places` a side afterwards."""

    size: int
    padding: int
    places: int


def pool(side: int, channels: int, dim: int) -> Pool:
    """The pool that leaves at most `dim` numbers of a map [side, side, channels].

    Raises:
        ValueError: there are more channels than `dim`.
    """
    if dim < channels:
        raise ValueError(
            f"config.evaluate.layer_dim={dim}: the layer has {channels} channels, fewer numbers than that cannot be left"
        )
    most = min(side, math.isqrt(dim // channels))
    size = round(side / most)
    size += side // size > most
    places = min(most, -(-side // size))
    return Pool(size, max(0, -(-(places * size - side) // 2)), places)


def pooled(activation: jax.Array, dim: int) -> jax.Array:
    """A map `[B, H, W, C]`, H = W, as at most `dim` numbers an image: float32 `[B, D]`, rows then columns then channels."""
    batch, side, _, channels = activation.shape
    size, padding, places = pool(side, channels, dim)
    x = jnp.pad(activation.astype(jnp.float32), ((0, 0), (padding, padding), (padding, padding), (0, 0)))[
        :, : places * size, : places * size
    ]
    return x.reshape(batch, places, size, places, size, channels).mean((2, 4)).reshape(batch, -1)


def judge(bench: Bench) -> Iterator[Measurement]:
    """A probe of each layer in `config.evaluate.layers`, under the name `layer_NAME`; `dim` is how many numbers it reads."""
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
        "layers needs config.evaluate.layers, the names of the layers to probe, e.g. ('group1', 'group2') of a ResNet; "
        "a wrong name is answered with those that the network has"
    )


PROTOCOL = Protocol(reads="maps", metrics=("top1", "top5"), judge=judge, refuse=refuse)
