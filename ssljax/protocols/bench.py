"""What a protocol is given: two splits, and functions that compute features of them with one network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ssljax.data.source import Source
from ssljax.protocols.features import Features, labelled, unlabelled

Reduce = Callable[[jax.Array], jax.Array]
Arrays = Mapping[str, np.ndarray]


class Bench(NamedTuple):
    """One way to turn images into features (the run's network or a baseline), and the images.

    Attributes:
        config: the config of the run, with the data and the settings of this evaluation; protocols read
            `config.evaluate` and `config.seed`.
        name: the run's method, "raw_pixels" or "random_init".
        channels: C for raw pixels, whose features are images [H, W, C]; 0 for a network. See
            `linear.standardise`.
        train: the images to learn from.
        test: the images to evaluate on.
        load: ("train" or "test", changed settings of `config.data`) -> a further source, e.g.
            load("test", source="tfds:imagenet2012_corrupted/fog_3"); its `targets` hold anything beyond one
            label per image.
        features: source -> its features, in its order; `train` and `test` are encoded once.
        encode: images uint8 [B, S, S, C] of the size that the network was trained on, any B -> features
            float32 [B, D].
        last_map: images uint8 [B, H, W, C] of any size, and `reduce` -> what `reduce` makes of their last
            feature map [B, h, w, C]. None for pixels and for a vision transformer.
        maps: (source, layer, reduce) -> features of a layer: `reduce` turns its map [B, h, w, C] into [B, D].
            None for pixels.
        predictions: source -> {name: logits float32 [N, classes]} of the run's own heads, in its order. None
            if it has no heads.
        reconstructions: source -> the rows of `reconstruction.errors_and_codes`, in its order. None for a
            method without a decoder.
        predicted: source -> batches of annotated images and what the run's network finds in them, as NumPy
            arrays, every image once; see `types.PredictFn`. None if the method finds nothing in images.
        assignment: int32 [ids], the cluster of every training image, -1 for none. None if the method has no
            clusters, or if the run was not trained on `train`.
    """

    config: ConfigDict
    name: str
    channels: int
    train: Source
    test: Source
    load: Callable[..., Source]
    features: Callable[[Source], Features]
    encode: Callable[[np.ndarray], np.ndarray] | None = None
    last_map: Callable[[np.ndarray, Reduce], np.ndarray] | None = None
    maps: Callable[[Source, str, Reduce], Features] | None = None
    predictions: Callable[[Source], Mapping[str, np.ndarray]] | None = None
    reconstructions: Callable[[Source], Features] | None = None
    predicted: Callable[[Source], Iterator[tuple[Arrays, Arrays]]] | None = None
    assignment: np.ndarray | None = None

    @property
    def num_classes(self) -> int:
        """The number of classes in the data; labels are 0..num_classes-1."""
        return self.test.num_classes

    def unlabelled(self, protocol: str) -> str:
        """Why a protocol that needs labels cannot judge these splits; "" if it can."""
        reasons = [unlabelled(split.labels, protocol, split.split) for split in (self.train, self.test)]
        return reasons[0] or reasons[1]

    def labelled(self, protocol: str) -> tuple[Features, Features]:
        """Features of the labelled images of the training split and of the test split.

        Raises:
            ValueError: a split has no labelled image; names `protocol`.
        """
        train = labelled(self.features(self.train), protocol, "train")
        test = labelled(self.features(self.test), protocol, "test")
        return train, test
