"""Linear probes of single layers on cached features of centre crops.

A feature map is averaged down to at most `evaluate.layer_dim` numbers (see `models.pooling`). The released
protocol of DeepCluster trains the classifier on random crops and evaluates ten crops of a test image: that is
the method `linear` with `probe.layer`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax

from ssljax.models.pooling import pooled
from ssljax.protocols.bench import Bench
from ssljax.protocols.features import labelled
from ssljax.protocols.linear import probe
from ssljax.types import Measurement, Protocol


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
