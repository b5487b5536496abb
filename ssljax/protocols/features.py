"""Features of a whole split: one pass over its images, each exactly once, in the order of the source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Encode = Callable[[np.ndarray], jax.Array]
"""image uint8 [B, H, W, C] -> features [B, D]; already jitted and bound to its parameters."""


class Features(NamedTuple):
    """The features of a split.

    Attributes:
        features: float32 [N, D].
        labels: int32 [N]; -1 for an image without a label.
        index: int32 [N], the stable id of each image in its split.
    """

    features: np.ndarray
    labels: np.ndarray
    index: np.ndarray  # type: ignore[assignment]  # hides tuple.index, which nothing here calls


def extract(encode: Encode, batches: Iterable[Mapping[str, np.ndarray]]) -> Features:
    """Encode every image of a split.

    Args:
        encode: image uint8 [B, H, W, C] -> [B, D]; frozen, with the statistics of inference and no state
            returned.
        batches: dicts of `image`, `label`, `index` and `mask` bool [B], which is False for the padding of the
            last batch.

    Returns:
        The features of all rows whose mask is True: one per image of the split, whatever the batch size.

    Raises:
        ValueError: there are no images, or a feature is NaN or infinite (names the index of the first such
            image).
    """
    found: list[Features] = []
    pending = None
    for batch in batches:
        current = (encode(batch["image"]), batch)
        if pending is not None:  # fetched while the device works on the next batch
            found.append(_rows(*pending))
        pending = current
    if pending is None:
        raise ValueError(
            "no images to encode: the split is empty. Check config.data (source, splits, labels_per_class)."
        )
    found.append(_rows(*pending))
    return Features(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def labelled(found: Features, protocol: str, split: str) -> Features:
    """The rows of the images that have a label; `found` itself if all have one.

    Args:
        found: the features of one split.
        protocol: the name of the protocol that needs labels, for the error.
        split: "train" or "test", for the error.

    Raises:
        ValueError: no image of the split has a label.
    """
    refusal = unlabelled(found.labels, protocol, split)
    if refusal:
        raise ValueError(refusal)
    has = found.labels >= 0
    return found if has.all() else Features(*(values[has] for values in found))


def unlabelled(labels: np.ndarray, protocol: str, split: str) -> str:
    """Why a protocol cannot judge a split because all labels, int [N], are -1; "" if it can.

    The other arguments are those of `labelled`.
    """
    if (labels >= 0).any():
        return ""
    return (
        f"{protocol} judges by labels, and none of {len(labels)} {split} images has one: evaluate on "
        "labelled images (--config.data.source=folder:PATH with one sub-folder per class, or another source)"
    )


def _rows(encoded: jax.Array, batch: Mapping[str, np.ndarray]) -> Features:
    """The rows of one batch that are images, not padding."""
    mask = np.asarray(batch["mask"], bool)
    rows = np.asarray(encoded, np.float32)[mask]
    index = np.asarray(batch["index"], np.int32)[mask]
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise ValueError(
            f"the features of image {index[bad][0]} are not finite ({int(bad.sum())} such images in this "
            "batch). The run has diverged or its checkpoint is damaged: look at its loss, or evaluate an "
            "earlier checkpoint."
        )
    return Features(rows, np.asarray(batch["label"], np.int32)[mask], index)


@jax.jit
def raw_pixels(image: jax.Array) -> jax.Array:
    """Features without a network: uint8 [B, H, W, C] -> pixels / 255, float32 [B, H*W*C]."""
    return image.reshape(image.shape[0], -1).astype(jnp.float32) / 255.0


def check(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, num_classes: int
) -> None:
    """Check that the features and labels of two splits fit together.

    Args:
        train, test: [N, D].
        train_labels, test_labels: int [N].
        num_classes: labels must be in 0..num_classes-1.

    Raises:
        ValueError: they do not fit; says how.
    """
    for name, features, labels in (("train", train, train_labels), ("test", test, test_labels)):
        if features.ndim != 2 or labels.shape != features.shape[:1]:
            raise ValueError(
                f"{name}: features {features.shape} and labels {labels.shape}; expected [N, D] and [N], "
                "one label per row."
            )
        if not len(labels):
            raise ValueError(f"{name}: no images. Check config.data (source, splits, labels_per_class).")
        if labels.min() < 0 or labels.max() >= num_classes:
            wrong = labels[(labels < 0) | (labels >= num_classes)][0]
            raise ValueError(
                f"{name}: label {wrong} is outside 0..{num_classes - 1}. "
                "Do train and test have the same classes?"
            )
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"train features have {train.shape[1]} dimensions, test features {test.shape[1]}: "
            "both must come from the same encoder and image size."
        )


def top_k_percent(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Top-k accuracy in percent. Of equal scores, the lowest class ranks first.

    Args:
        scores: [N, classes].
        labels: int [N].
        k: how many of the highest scores count.
    """
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return 100.0 * float((order == labels[:, None]).any(axis=1).mean(dtype=np.float64))
