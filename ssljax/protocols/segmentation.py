"""The protocol `segmentation`: one confusion matrix of all pixels of a split, and numbers from it.

    IoU_c = C[c, c] / (sum of row c + sum of column c - C[c, c])        mIoU = mean over classes that occur

The matrix is summed over the images first. A mean of the images' own IoU is another number. Long et al.,
2015, arXiv 1411.4038; shelhamer/fcn.berkeleyvision.org at 1305c73, score.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ssljax.protocols.bench import Bench
from ssljax.types import Measurement, Protocol

IGNORED = 255  # label of pixels that count nowhere: borders of VOC's objects, padding


def confusion(labels: np.ndarray, predictions: np.ndarray, *, classes: int) -> np.ndarray:
    """Count pixels. Add up the matrices of all images.

    Args:
        labels: int, any shape: the class of each pixel, or IGNORED.
        predictions: int, the same shape, below `classes`.
        classes: their number, background included.

    Returns:
        int64 [classes, classes], rows are the true classes.

    Raises:
        ValueError: a class is out of range.
    """
    counted = labels != IGNORED
    true, predicted = labels[counted].astype(np.int64), predictions[counted].astype(np.int64)
    for name, values in (("label", true), ("prediction", predicted)):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            worst = values.min() if values.min() < 0 else values.max()
            raise ValueError(
                f"a {name} is {worst}, but there are {classes} classes: "
                f"read masks as palette indices, not as colours, and name pixels without a class {IGNORED}"
            )
    return np.bincount(true * classes + predicted, minlength=classes**2).reshape(classes, classes)


def iou(matrix: np.ndarray) -> np.ndarray:
    """IoU of each class: float64 [classes], NaN for one that is neither in the labels nor predicted."""
    both = np.diagonal(matrix).astype(np.float64)
    either = matrix.sum(axis=0) + matrix.sum(axis=1) - both
    return np.divide(both, either, out=np.full_like(both, np.nan), where=either > 0)


def scores(matrix: np.ndarray) -> dict[str, float]:
    """The usual numbers in percent: mIoU, pixel accuracy, and accuracy averaged over the true classes.

    Args:
        matrix: from `confusion`, summed over the split.

    Returns:
        mIoU, pixel_accuracy and class_accuracy.

    Raises:
        ValueError: no pixel was counted.
    """
    total = matrix.sum()
    if total == 0:
        raise ValueError(f"no pixel has a label: all are {IGNORED}")
    right, of_class = np.diagonal(matrix), matrix.sum(axis=1)
    occurs = of_class > 0
    return {
        "mIoU": 100.0 * float(np.nanmean(iou(matrix))),
        "pixel_accuracy": 100.0 * float(right.sum() / total),
        "class_accuracy": 100.0 * float((right[occurs] / of_class[occurs]).mean()),
    }


def judge(bench: Bench) -> Iterator[Measurement]:
    """One measurement. Its settings have the IoU of every class that occurs, in percent."""
    assert bench.predicted is not None, "`refuse` is asked first"
    names = bench.test.class_names
    total = np.zeros((len(names), len(names)), np.int64)
    images = 0
    for batch, found in bench.predicted(bench.test):
        total += confusion(batch["mask"], found["mask"], classes=len(names))
        images += len(batch["index"])
    each = 100.0 * iou(total)
    settings = {
        "classes": len(names),
        "per_class": {name: round(float(v), 2) for name, v in zip(names, each, strict=True) if v == v},
    }
    yield {"protocol": "segmentation", "settings": settings, **scores(total), "n": images}


def refuse(bench: Bench) -> str:
    """The images need masks, and the method must find a class for every pixel."""
    return refused(bench, "segmentation", "masks")


def refused(bench: Bench, protocol: str, annotations: str) -> str:
    """Why a protocol cannot judge what a network finds in images; "" if it can.

    Args:
        bench: the network and the data.
        protocol: its name.
        annotations: what it compares with, as `data.annotations` says it.
    """
    if bench.predicted is None:
        return (
            f"{protocol} judges what a network finds in images, and the method {bench.name} finds nothing: "
            f"evaluate a run of the method {protocol}, which can start from this one (init_from)"
        )
    there = bench.config.data.annotations
    if there != annotations:
        return (
            f"{protocol} compares with {annotations}, and data.annotations is {there!r}: set "
            f"--config.data.annotations={annotations} and a --config.data.source that has them"
        )
    train, test = bench.train.class_names, bench.test.class_names
    if train != test:
        only = sorted(set(train) ^ set(test)) or ["the same in another order"]
        return (
            f"{protocol}: the training images have {len(train)} classes and the test images {len(test)} "
            f"({', '.join(only[:5])}), so their numbers mean different things: name the classes to use with "
            "--config.data.categories"
        )
    return ""


PROTOCOL = Protocol(
    reads="annotations", metrics=("mIoU", "pixel_accuracy", "class_accuracy"), judge=judge, refuse=refuse
)
