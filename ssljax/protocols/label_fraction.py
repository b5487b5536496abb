"""Few labels: a linear probe on k labelled images per class, for several k and several draws of the images.

With one label per class nothing can be held out to choose lambda, and test images must not be used for it. So
lambda is one fixed number for every k, draw and kind of feature. On standardised features (linear.py),
measured on held-out TRAINING digits, the accuracies of raw pixels and of random convolutions are within a
point or two of their best for lambda from 0.001 to 0.1. The mean and the standard deviations come from ALL
training images, because they need no labels.
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
    """Accuracy with k labels per class, for each k in `counts` and each draw.

    Draw d labels the images `sampler.subset(labels, per_class=k, seed=d)`. They are the same images for
    every kind of feature and every run, and the images of a smaller k are among those of a larger one.

    Args:
        train_features, test_features: [N, D]; standardised here.
        train_labels, test_labels: int [N].
        num_classes: labels are 0..num_classes-1.
        counts: the values of k.
        draws: how many draws of each k.
        channels: C for raw pixels [H*W*C], 0 for the features of a network; see `linear.standardise`.

    Yields:
        `labels_per_class`, `draw`, `top1` and, with more than five classes, `top5` in percent; `n`, the
        number of test images.

    Raises:
        ValueError: a class has fewer than k images.
    """
    check(train_features, train_labels, test_features, test_labels, num_classes)
    train = linear.standardise(train_features, train_features, channels)
    test = linear.standardise(test_features, train_features, channels)
    for k in counts:
        for draw in range(draws):
            rows = sampler.subset(train_labels, per_class=k, seed=draw)
            model, _ = linear.fit(train[rows], train_labels[rows], L2)
            found = linear.accuracies(linear.scores(model, test, num_classes), test_labels)
            yield {"labels_per_class": k, "draw": draw, **found}


def judge(bench: Bench) -> Iterator[Measurement]:
    """One measurement per number in `config.evaluate.label_counts` and draw of `label_draws`."""
    e = bench.config.evaluate
    settings = {"l2": L2, "standardised": True}
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
