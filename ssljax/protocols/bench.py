"""What a protocol is given to judge with: two splits, and callables that look at them through one network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ssljax.data.source import Source
from ssljax.protocols.features import Features, labelled, unlabelled

Reduce = Callable[[jax.Array], jax.Array]


class Bench(NamedTuple):
    """One way to turn images into numbers, the run's network or a baseline, and the images.

    Attributes:
        config: of the run, with the data and settings of this evaluation; protocols read `config.evaluate` and `config.seed`.
        name: the run's method, "raw_pixels" or "random_init".
        channels: C of raw pixels, whose features are images [H, W, C]; 0 for a network. See `linear.standardise`.
        train: what may be learned from.
        test: what is judged on.
        load: ("train" or "test", settings of `config.data` that are others) -> a further source, e.g.
            load("test", source="tfds:imagenet2012_corrupted/fog_3"); its `targets` hold what is more than one label per image.
        features: a source -> its features, in its order; `train` and `test` are encoded once.
        maps: (source, layer, reduce) -> what a layer gives for each image, map [B, h, w, C] -> [B, D] by `reduce`, as features.
        predictions: a source -> {name: logits float32 [N, classes]} of the run's own heads, in its order. None: it has none.
        assignment: int32 [ids], the cluster of every training image, -1 for none. None: the method has no clusters, or `train` is not
            what the run was trained on.
    """

    config: ConfigDict
    name: str
    channels: int
    train: Source
    test: Source
    load: Callable[..., Source]
    features: Callable[[Source], Features]
    maps: Callable[[Source, str, Reduce], Features] | None = None
    predictions: Callable[[Source], Mapping[str, np.ndarray]] | None = None
    assignment: np.ndarray | None = None

    @property
    def num_classes(self) -> int:
        """Of the data; labels are 0..num_classes-1."""
        return self.test.num_classes

    def unlabelled(self, protocol: str) -> str:
        """Why a protocol that judges by labels cannot judge these splits; "" where it can."""
        return unlabelled(self.train.labels, protocol, self.train.split) or unlabelled(
            self.test.labels, protocol, self.test.split
        )

    def labelled(self, protocol: str) -> tuple[Features, Features]:
        """Features of the labelled images of the training and of the test split.

        Raises:
            ValueError: a split has no labelled image; names `protocol`.
        """
        return (
            labelled(self.features(self.train), protocol, "train"),
            labelled(self.features(self.test), protocol, "test"),
        )
