"""A linear probe of the best layer, which held-out training images choose: BEiT's linear evaluation.

Every layer of `evaluate.layers` is probed on nine tenths of the training images and judged on the last tenth.
The best is then probed on all of them, and only it sees the test images. (The released code of BEiT probes
all blocks at once under random crops, and reports the best block and epoch on the test split.)
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import numpy as np

from ssljax.data import sampler
from ssljax.models.pooling import pooled
from ssljax.protocols import layers
from ssljax.protocols.bench import Bench
from ssljax.protocols.features import Features, labelled
from ssljax.protocols.linear import HELD_OUT, probe
from ssljax.types import Measurement, Protocol


def judge(bench: Bench) -> Iterator[Measurement]:
    """One measurement, of the best layer. Its settings name it, and the accuracy that it was chosen by."""
    assert bench.maps is not None, "pixels have no maps and are not judged by this protocol"
    config = bench.config
    reduce = jax.jit(functools.partial(pooled, dim=config.evaluate.layer_dim))
    found: dict[str, float] = {}
    best: Features | None = None
    for layer in config.evaluate.layers:
        train = labelled(bench.maps(bench.train, layer, reduce), "best_layer", "train")
        kept, held = split(train, config.seed)
        found[layer] = probe(kept, held, config, num_classes=bench.num_classes)["top1"]
        if found[layer] == max(found.values()):
            chosen = layer
            best = train
    assert best is not None, "`refuse` is asked first"
    test = labelled(bench.maps(bench.test, chosen, reduce), "best_layer", "test")
    measured = probe(best, test, config, num_classes=bench.num_classes)
    settings = {
        **measured["settings"],
        "dim": best.features.shape[1],
        "probe": measured["protocol"],
        "layer": chosen,
        "held_out_top1": found[chosen],
        "layers": list(found),
    }
    yield {**measured, "protocol": "best_layer", "settings": settings}


def split(train: Features, seed: int) -> tuple[Features, Features]:
    """The training images in two parts: those that probes learn from, and a tenth to choose a layer on."""
    rows = sampler.order(seed, 0, len(train.labels))
    count = max(1, round(HELD_OUT * len(rows)))

    def part(rows: np.ndarray) -> Features:
        return Features(train.features[rows], train.labels[rows], train.index[rows])

    return part(rows[count:]), part(rows[:count])


def refuse(bench: Bench) -> str:
    """The layers must be named, and both splits need labels."""
    return layers.refuse(bench).replace("layers needs", "best_layer needs")


PROTOCOL = Protocol(reads="maps", metrics=("top1", "top5"), judge=judge, refuse=refuse)
