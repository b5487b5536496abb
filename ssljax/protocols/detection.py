"""Average precision of detections, by the rules of VOC and by those of COCO. Pure functions of arrays.

    AP = mean over classes (and over the IoU thresholds .50, .55, ..., .95) of an area under precision(recall)

                       VOC, as detectron2 and MoCo report it        COCO
    a detection        looks at the box it overlaps most            takes the best box that is still free
    counts             if IoU > threshold, with "+ 1" widths        if IoU >= threshold
    precision          largest to the right of 11 recalls           largest to the right of 101 recalls
    does not count     difficult boxes                              crowds, boxes of another size

VOC: Everingham et al., 2010; facebookresearch/detectron2 at 02b5c4e, evaluation/pascal_voc_evaluation.py.
COCO: Lin et al., 2014, arXiv 1405.0312; pycocotools 2.0.11, cocoeval.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)  # of COCO
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
MOST = (1, 10, 100)  # detections per class and image, of COCO


class Truth(NamedTuple):
    """All objects of a split.

    Attributes:
        image: int [G], which image.
        label: int [G], class.
        boxes: [G, 4], x1, y1, x2, y2 in continuous pixels of the original image.
        ignored: bool [G], "difficult" in VOC, "crowd" in COCO.
        area: [G], of the object's mask, in pixels. Only COCO's sizes read it.
    """

    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    ignored: np.ndarray
    area: np.ndarray


class Found(NamedTuple):
    """All detections of a split, in any order. Attributes as of Truth; score: [D]."""

    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    score: np.ndarray


def voc(truth: Truth, found: Found, *, classes: int, points: int = 11) -> dict[str, float]:
    """VOC's average precision over ten thresholds, as MoCo and its successors report it.

    Detectron2 writes detections to a file before it measures: scores with three decimals, boxes with one and
    1-based. This is done here too, because rounded scores have ties. Ties stay in the order of `found`;
    detectron2's order of ties is arbitrary.

    Args:
        truth: the objects; boxes 0-based, so VOC's xmin - 1, ymin - 1, xmax, ymax.
        found: the detections.
        classes: their number.
        points: 11 (VOC 2007), or 0 for the area under the curve (from 2010 on).

    Returns:
        AP, AP50 and AP75 in percent.

    Raises:
        ValueError: a class has no object that counts.
    """
    return summary(voc_table(truth, found, classes=classes, points=points))


def summary(table: np.ndarray) -> dict[str, float]:
    """AP, AP50 and AP75 in percent, of average precisions [ten thresholds, classes]."""
    means = {"AP": table, "AP50": table[0], "AP75": table[5]}
    return {name: 100.0 * float(values.mean()) for name, values in means.items()}


Curve = tuple[np.ndarray, np.ndarray]


def voc_table(truth: Truth, found: Found, *, classes: int, points: int = 11) -> np.ndarray:
    """The average precisions [ten thresholds, classes] behind `voc`, with its arguments and errors."""
    curves = voc_curves(truth, found, classes=classes)
    return np.array([[average_precision(*each, points=points) for each in row] for row in curves])


def voc_curves(truth: Truth, found: Found, *, classes: int) -> list[list[Curve]]:
    """What `curve` gives for ten thresholds and each class, with the arguments and errors of `voc`."""
    for label in range(classes):
        if not ((truth.label == label) & ~truth.ignored).any():
            raise ValueError(
                f"class {label} of {classes} has no object that counts, so it has no AP: measure the whole "
                "split, or give consecutive numbers to the classes that occur"
            )
    one_based = np.array([1.0, 1.0, 0.0, 0.0])
    truth = truth._replace(boxes=truth.boxes + one_based)
    found = found._replace(
        score=_decimals(found.score, 3),
        boxes=_decimals((found.boxes + one_based).ravel(), 1).reshape(-1, 4),
    )
    return [
        [curve(truth, found, label, above) for label in range(classes)]
        for above in np.arange(50, 100, 5) / 100.0
    ]


def _decimals(values: np.ndarray, digits: int) -> np.ndarray:
    return np.array([float(f"{value:.{digits}f}") for value in values], np.float64)


def curve(truth: Truth, found: Found, label: int, above: float) -> Curve:
    """Recall and precision of one class after each of its detections, by VOC's rules.

    Args:
        truth: the objects; boxes of whole pixels, of which the last belongs to the box.
        found: the detections.
        label: the class.
        above: a detection is right if its IoU with an object is larger.

    Returns:
        recall: [D'], by falling score.
        precision: [D'].
    """
    objects = {}
    of_class = truth.label == label
    for image in np.unique(truth.image[of_class]):
        objects[image] = np.flatnonzero(of_class & (truth.image == image))
    taken = np.zeros(len(truth.label), bool)
    mine = np.flatnonzero(found.label == label)
    mine = mine[np.argsort(-found.score[mine], kind="stable")]
    right = np.zeros(len(mine))
    wrong = np.zeros(len(mine))
    for place, index in enumerate(mine):
        candidates = objects.get(found.image[index])
        if candidates is None:
            wrong[place] = 1
            continue
        overlap = _iou(found.boxes[index][None], truth.boxes[candidates], pixel=1.0)[0]
        best = candidates[overlap.argmax()]
        if overlap.max() <= above or (taken[best] and not truth.ignored[best]):
            wrong[place] = 1
        elif not truth.ignored[best]:
            taken[best] = True
            right[place] = 1
    right, wrong = right.cumsum(), wrong.cumsum()
    return right / (of_class & ~truth.ignored).sum(), right / np.maximum(
        right + wrong, np.finfo(np.float64).eps
    )


def average_precision(recall: np.ndarray, precision: np.ndarray, *, points: int = 11) -> float:
    """The area under a curve: the mean over 11 recalls 0, .1, ..., 1, or exact with `points=0`.

    Args:
        recall: [D], rising.
        precision: [D]. Everywhere the largest precision of this or a higher recall is taken.
        points: 11 or 0.

    Returns:
        between 0 and 1.
    """
    if points:
        return float(sum(at_recalls(recall, precision)) / points)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


def at_recalls(recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """The precisions at the recalls 0, .1, ..., 1 of VOC 2007: float64 [11]."""
    recalls = np.arange(0.0, 1.1, 0.1)  # not linspace: the devkit's .3 is .30000000000000004
    return np.array([precision[recall >= r].max(initial=0.0) for r in recalls])


def _iou(a: np.ndarray, b: np.ndarray, *, pixel: float, of_a: np.ndarray | None = None) -> np.ndarray:
    """IoU [M, N]; `pixel` is added to all sides; columns in `of_a` are divided by the area of `a` instead."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    both = np.maximum(sides + pixel, 0.0).prod(axis=-1)
    area_a, area_b = ((x[:, 2:] - x[:, :2] + pixel).prod(axis=-1) for x in (a, b))
    either = area_a[:, None] + area_b - both
    if of_a is not None:
        either = np.where(of_a, area_a[:, None], either)
    return np.divide(both, either, out=np.zeros_like(both), where=both > 0)


def coco(truth: Truth, found: Found, *, labels: Iterable[int]) -> dict[str, float]:
    """The twelve numbers of COCO.

    Args:
        truth: the objects.
        found: the detections. Of each class, the best 100 of an image count.
        labels: the classes. One without objects counts in no mean.

    Returns:
        AP, AP50, AP75, AP_small, AP_medium, AP_large, AR_1, AR_10, AR_100, AR_small, AR_medium, AR_large in
        percent; NaN where there is nothing to measure (pycocotools: -1).
    """
    return coco_summary(*coco_curves(truth, found, labels=labels))


def coco_summary(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """The numbers of `coco`, from what `coco_curves` gives."""
    best = precision[..., -1]  # [T, R, K, A] for 100 detections
    sizes = list(AREAS)[1:]
    values = {"AP": best[..., 0], "AP50": best[0, ..., 0], "AP75": best[5, ..., 0]}
    values |= {f"AP_{name}": best[..., i] for i, name in enumerate(sizes, start=1)}
    values |= {f"AR_{most}": recall[..., 0, i] for i, most in enumerate(MOST)}
    values |= {f"AR_{name}": recall[..., i, -1] for i, name in enumerate(sizes, start=1)}
    return {
        name: 100.0 * float(np.nanmean(v)) if np.isfinite(v).any() else float("nan")
        for name, v in values.items()
    }


def coco_curves(truth: Truth, found: Found, *, labels: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall by COCO's rules, of T thresholds, R recalls, K classes, A sizes, M limits.

    Returns:
        precision: [T, R, K, A, M] at RECALLS.
        recall: [T, K, A, M], the highest that is reached. Both are NaN for a class without objects.
    """
    labels = list(labels)
    shape = (len(labels), len(AREAS), len(MOST))
    precision = np.full((len(THRESHOLDS), len(RECALLS), *shape), np.nan)
    recall = np.full((len(THRESHOLDS), *shape), np.nan)
    for k, label in enumerate(labels):
        of_class = truth.label == label
        objects_of, mine_of = np.flatnonzero(of_class), np.flatnonzero(found.label == label)
        images = np.unique(np.concatenate([truth.image[objects_of], found.image[mine_of]]))
        pairs = [_image(truth, found, objects_of, mine_of, image) for image in images]
        for a, area in enumerate(AREAS.values()):
            outside = (truth.area < area[0]) | (truth.area > area[1])
            objects = (of_class & ~truth.ignored & ~outside).sum()
            if not objects:
                continue
            results = [_matched(truth, found, *pair, outside, area) for pair in pairs]
            for m, most in enumerate(MOST):
                score = np.concatenate([found.score[pair[1][:most]] for pair in pairs])
                order = np.argsort(-score, kind="stable")
                right, counts = (
                    np.concatenate([result[i][:, :most] for result in results], axis=1)[:, order]
                    for i in (0, 1)
                )
                for t in range(len(THRESHOLDS)):
                    curve = _sampled(right[t] & counts[t], ~right[t] & counts[t], objects)
                    precision[t, :, k, a, m], recall[t, k, a, m] = curve
    return precision, recall


def _image(
    truth: Truth, found: Found, objects: np.ndarray, mine: np.ndarray, image: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Those of a class's objects and detections (the best, by falling score) in an image, and their IoU."""
    objects = objects[truth.image[objects] == image]
    mine = mine[found.image[mine] == image]
    mine = mine[np.argsort(-found.score[mine], kind="stable")][: MOST[-1]]
    overlap = _iou(found.boxes[mine], truth.boxes[objects], pixel=0.0, of_a=truth.ignored[objects])
    return objects, mine, overlap


def _matched(
    truth: Truth,
    found: Found,
    objects: np.ndarray,
    mine: np.ndarray,
    overlap: np.ndarray,
    outside: np.ndarray,
    area: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections [T, D] of an image have an object, and which of them count."""
    crowd = truth.ignored[objects]
    ignored = crowd | outside[objects]
    order = np.argsort(ignored, kind="stable")  # what counts is looked at first
    sides = found.boxes[mine, 2:] - found.boxes[mine, :2]
    own = sides.prod(axis=-1)
    other_size = (own < area[0]) | (own > area[1])
    right = np.zeros((len(THRESHOLDS), len(mine)), bool)
    counts = np.ones_like(right)
    for t, threshold in enumerate(THRESHOLDS):
        taken = np.zeros(len(objects), bool)
        for d in range(len(mine)):
            least, best = min(threshold, 1 - 1e-10), -1
            for g in order:
                if taken[g] and not crowd[g]:
                    continue
                if best >= 0 and not ignored[best] and ignored[g]:
                    break
                if overlap[d, g] >= least:
                    least, best = overlap[d, g], g
            right[t, d] = best >= 0
            if best >= 0:
                taken[best] = True
            counts[t, d] = not (ignored[best] if best >= 0 else other_size[d])
    return right, counts


def _sampled(right: np.ndarray, wrong: np.ndarray, objects: int) -> tuple[np.ndarray, float]:
    """Precision at RECALLS, 0 beyond the highest recall, and the highest recall."""
    tp, fp = right.cumsum().astype(np.float64), wrong.cumsum()
    recall = tp / objects
    envelope = np.maximum.accumulate((tp / (tp + fp + np.spacing(1)))[::-1])[::-1]
    place = np.searchsorted(recall, RECALLS, side="left")
    sampled = np.concatenate([envelope, [0.0]])[place]
    return sampled, float(recall[-1]) if len(recall) else 0.0
