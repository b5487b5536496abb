"""Few labels: a linear probe on k labelled images a class, for several k and several draws of the images.

With one label a class nothing can be held out to choose a lambda on, and test images are not for choosing. So lambda is one fixed number
for every k, draw and kind of feature: on standardised features (linear.py) the accuracies of raw pixels and of random convolutions,
measured on held-out TRAINING digits, are within a point or two of their best from 0.001 to 0.1. Mean and deviations come from ALL
training images: they need no labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ssljax.data import sampler
from ssljax.protocols import linear
from ssljax.protocols.bench import Bench
from ssljax.protocols.features import check
from ssljax.types import Measurement, Protocol

L2 = 0.01  # lambda of mean loss + lambda/2 |W|^2


def label_fraction(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    num_classes: int,
    counts: Sequence[int],
    draws: int,
    channels: int = 0,
) -> Iterator[dict[str, Any]]:
    """Accuracy with k labels a class, for each k of `counts` and each draw.

    Draw d labels the images `sampler.subset(labels, per_class=k, seed=d)`: the same images for every kind of feature and every run, and
    the images of a smaller k are among those of a larger one.

    `channels` is C for raw pixels [H*W*C] and 0 for the features of a network, as in `linear.standardise`.

    Yields:
        `labels_per_class`, `draw`, `top1` and, with more than five classes, `top5` in percent; `n` test images.

    Raises:
        ValueError: a class has fewer than k images.
    """
    check(train_features, train_labels, test_features, test_labels, num_classes)
    train, test = (linear.standardise(x, train_features, channels) for x in (train_features, test_features))
    for k in counts:
        for draw in range(draws):
            rows = sampler.subset(train_labels, per_class=k, seed=draw)
            model, _ = linear.fit(train[rows], train_labels[rows], L2)
            yield {
                "labels_per_class": k,
                "draw": draw,
                **linear.accuracies(linear.scores(model, test, num_classes), test_labels),
            }


def judge(bench: Bench) -> Iterator[Measurement]:
    """`config.evaluate.label_draws` draws of each number in `label_counts`."""
    e, settings = bench.config.evaluate, {"l2": L2, "standardised": True}
    train, test = bench.labelled("label_fraction")
    for found in label_fraction(
        train.features,
        train.labels,
        test.features,
        test.labels,
        num_classes=bench.num_classes,
        counts=e.label_counts,
        draws=e.label_draws,
        channels=bench.channels,
    ):
        yield {"protocol": "label_fraction", "settings": settings, **found}


def refuse(bench: Bench) -> str:
    """Both splits need labels."""
    return bench.unlabelled("label_fraction")


PROTOCOL = Protocol(reads="features", metrics=("top1", "top5"), judge=judge, refuse=refuse)
