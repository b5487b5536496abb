"""The protocol `detection`: what a network finds in the test images, by the rules of VOC or COCO.

Boxes go back to the size of the original images, are cut at their borders, and empty ones are dropped, as in
detectron2. The objects are those of the data at full precision. The rules are in `detection`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ssljax.data.annotated import longest
from ssljax.data.source import Source
from ssljax.protocols import detection
from ssljax.protocols.bench import Arrays, Bench
from ssljax.protocols.detection import Found, Truth
from ssljax.protocols.segmentation import refused
from ssljax.types import Measurement, Protocol

METRICS = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)
SHOWN = (0.5, 0.75, 0.9)  # IoUs whose precision is kept


def judge(bench: Bench) -> Iterator[Measurement]:
    """One measurement. Its settings have AP and AP50 of every class with objects, in percent.

    They also have the precision, averaged over these classes, at eleven recalls and the IoUs of SHOWN.
    """
    assert bench.predicted is not None, "`refuse` is asked first"
    names = bench.test.class_names
    truth = truth_of(bench.test)
    found = gathered(bench.test, bench.predicted(bench.test))
    settings = {
        "rules": rules_of(bench),
        "short_side": bench.config.annotated.test_short_side,
        "long_side": longest(bench.config, training=False),
        "classes": len(names),
        "found": len(found.label),
    }
    if settings["rules"] == "voc":
        curves = detection.voc_curves(truth, found, classes=len(names))
        table = np.array([[detection.average_precision(*each) for each in row] for row in curves])
        levels = np.array([[detection.at_recalls(*each) for each in row] for row in curves])
        numbers = detection.summary(table)
    else:
        precision, recall = detection.coco_curves(truth, found, labels=range(len(names)))
        table = precision[:, :, :, 0, -1].mean(axis=1)
        levels = precision[:, ::10, :, 0, -1].transpose(0, 2, 1)
        numbers = detection.coco_summary(precision, recall)
    settings["per_class"] = {
        name: [round(100.0 * float(value), 2) for value in (aps.mean(), aps[0])]
        for name, aps in zip(names, table.T, strict=True)
        if np.isfinite(aps).all()
    }
    counted = levels[:, np.isfinite(levels).all(axis=(0, 2))]
    if counted.size:
        means = (100.0 * counted.mean(axis=1)).round(1).tolist()
        settings["precision"] = {f"{iou:g}": means[round(20 * iou) - 10] for iou in SHOWN}
    measured = {name: value for name, value in numbers.items() if np.isfinite(value)}
    yield {"protocol": "detection", "settings": settings, **measured, "n": len(bench.test)}


def truth_of(source: Source) -> Truth:
    """All objects of a split; an image is its position."""
    targets = source.targets
    image, place = np.nonzero(targets["classes"] >= 0)
    return Truth(
        image=image,
        label=targets["classes"][image, place],
        boxes=targets["boxes"][image, place].astype(np.float64),
        ignored=targets["difficult"][image, place],
        area=targets["area"][image, place].astype(np.float64),
    )


def gathered(source: Source, batches: Iterator[tuple[Arrays, Arrays]]) -> Found:
    """All that was found, by the position of the image.

    Raises:
        ValueError: a class is not one of the data.
    """
    position = {int(index): i for i, index in enumerate(source.index)}
    parts: dict[int, Found] = {}
    for batch, found in batches:
        for row, index in enumerate(batch["index"]):
            there = found["classes"][row] >= 0
            boxes = restored(found["boxes"][row][there], batch["size"][row], batch["original"][row])
            full = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
            label, score = (found[name][row][there][full] for name in ("classes", "scores"))
            i = position[int(index)]
            parts[i] = Found(np.full(len(label), i), label, boxes[full], score.astype(np.float64))
    whole = Found(*(np.concatenate(each) for each in zip(*(parts[i] for i in sorted(parts)), strict=True)))
    if len(whole.label) and whole.label.max() >= len(source.class_names):
        raise ValueError(
            f"--protocols: detection: the network found class {whole.label.max()}, and {source.name} has "
            f"{len(source.class_names)} classes: evaluate it on the classes that it was trained on "
            "(--config.data.categories)"
        )
    return whole


def restored(boxes: np.ndarray, size: np.ndarray, original: np.ndarray) -> np.ndarray:
    """Boxes [K, 4] of a resized image in pixels of the original one, cut at its border: float64.

    Args:
        boxes: in pixels of the resized image.
        size: its height and width.
        original: those of the original image.
    """
    factor = np.tile((original / size)[::-1], 2)
    return np.clip(boxes.astype(np.float64) * factor, 0.0, np.tile(original[::-1], 2))


def rules_of(bench: Bench) -> str:
    """The rules to measure by, "voc" or "coco"."""
    stated = bench.config.evaluate.detection_rules
    if stated != "data":
        return stated
    return "voc" if bench.config.data.source.startswith("voc:") else "coco"


def refuse(bench: Bench) -> str:
    """The images need boxes, the method must find some, and by VOC's rules every class needs an object."""
    reason = refused(bench, "detection", "boxes")
    if reason or rules_of(bench) == "coco":
        return reason
    targets = bench.test.targets
    counted = set(targets["classes"][~targets["difficult"]].tolist())
    without = [name for i, name in enumerate(bench.test.class_names) if i not in counted]
    if not without:
        return ""
    return (
        f"detection: by VOC's rules every class needs an object, and the {len(bench.test)} test images have "
        f"no {', '.join(without[:5])}: measure the whole split, or leave such classes out with "
        "--config.evaluate.detection_rules=coco"
    )


PROTOCOL = Protocol(reads="annotations", metrics=METRICS, judge=judge, refuse=refuse)
