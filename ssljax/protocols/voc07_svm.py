"""Linear SVMs on PASCAL VOC 2007 as VISSL trains them, and with few images per class (Goyal et al. 2019).

    ssljax evaluate --workdir RUN --protocols voc07_svm [--config.evaluate.low_shot="(1, 4, 16)"]

    x / (|x| + 1e-5), one LinearSVC a class: squared hinge, L2, dual, class weights 2 and 1, 2,000 iterations
    C of each class by 3-fold cross-validation on trainval (scikit-learn's average precision)
    mean over classes of the test average precision, the area under the envelope, not the 11 points

VISSL's quirk is kept: in training, an image where a class is only difficult is a negative. Low-shot takes k
positives and (classes - 1) k negatives of each class, and no difficult ones. The C of a k is the one with the
best mean over five draws on the TEST images, as VISSL reports it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ssljax.data.source import Source
from ssljax.protocols.bench import Bench
from ssljax.protocols.ranking import envelope, over_classes
from ssljax.protocols.transfer import WHOLE, features_of
from ssljax.types import Measurement, Protocol

DRAWS = 5


def judge(bench: Bench) -> Iterator[Measurement]:
    """One measurement with all images, and one for each draw of each `evaluate.low_shot`."""
    e = bench.config.evaluate
    train, labels, test, test_labels = features(bench)
    chosen = [cost_of(train, labels[:, k], e.svm_costs, bench.config.seed) for k in range(labels.shape[1])]
    fitted = [classifier(c, 0).fit(train, marks(labels[:, k])) for k, c in enumerate(chosen)]
    value = test_map(fitted, test, test_labels)
    settings = {"costs": chosen, "chosen_on": "3-fold cross-validation"}
    yield {"protocol": "voc07_svm", "settings": settings, "map": value, "n": len(test)}

    for k in e.low_shot:
        draws = [draw(labels, k, np.random.default_rng([bench.config.seed, k, i])) for i in range(DRAWS)]
        table = np.array([[low_shot(train, few, c, test, test_labels) for c in e.svm_costs] for few in draws])
        best = int(np.argmax(table.mean(axis=0)))
        settings = {"cost": e.svm_costs[best], "chosen_on": "the test images, as VISSL"}
        for i, value in enumerate(table[:, best].tolist()):
            found = {"labels_per_class": k, "draw": i, "map": value, "n": len(test)}
            yield {"protocol": "voc07_svm", "settings": settings, **found}


def features(bench: Bench) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Normalised features and labels of trainval, then of the test images."""
    arrays = [features_of(bench, split) for split in splits(bench)]
    train, labels = (np.concatenate([arrays[0][i], arrays[1][i]]) for i in (0, 1))
    return normalised(train), labels, normalised(arrays[2][0]), arrays[2][1]


def splits(bench: Bench) -> list[Source]:
    """The training, validation and test images."""
    where = bench.config.evaluate.voc07
    validation = "validation" if where.startswith("tfds:") else "val"
    asked = {**WHOLE, "labels": "none", "source": where}
    return [
        bench.load("test", **asked, train_split="train", test_split=split)
        for split in ("train", validation, "test")
    ]


def normalised(x: np.ndarray) -> np.ndarray:
    """x / (|x| + 1e-5), by rows."""
    return x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-5)


def marks(labels: np.ndarray) -> np.ndarray:
    """What an SVM is told of one class: 1 where it is, else -1, also where it is only difficult."""
    return np.where(labels == 1, 1, -1)


def classifier(cost: float, seed: int) -> Any:
    """VISSL's SVM of one class, not yet fitted."""
    from sklearn.svm import LinearSVC

    return LinearSVC(
        C=cost,
        class_weight={1: 2, -1: 1},
        penalty="l2",
        loss="squared_hinge",
        dual=True,
        tol=1e-4,
        max_iter=2000,
        intercept_scaling=1.0,
        random_state=seed,
    )


def cost_of(train: np.ndarray, labels: np.ndarray, costs: Sequence[float], seed: int) -> float:
    """The C with the best average precision of one class over three folds; of equals, the first."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import cross_val_score

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # C = 1000 never converges
        values = [
            cross_val_score(
                classifier(c, seed), train, marks(labels), cv=3, scoring="average_precision"
            ).mean()
            for c in costs
        ]
    return float(costs[int(np.argmax(values))])


def draw(labels: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Labels [N, classes] of k positives and (classes - 1) k negatives of each class; the others are -1.

    Raises:
        ValueError: a class has fewer images.
    """
    few = np.full_like(labels, -1)
    classes = labels.shape[1]
    for c in range(classes):
        for mark, count in ((1, k), (0, (classes - 1) * k)):
            rows = np.flatnonzero(labels[:, c] == mark)
            if len(rows) < count:
                raise ValueError(
                    f"config.evaluate.low_shot={k} needs {count} images with label {mark} of class {c}, and "
                    f"there are {len(rows)}: use a smaller number"
                )
            few[rng.choice(rows, count, replace=False), c] = mark
    return few


def low_shot(
    train: np.ndarray, few: np.ndarray, cost: float, test: np.ndarray, test_labels: np.ndarray
) -> float:
    """The test mAP in percent of SVMs that see the drawn images of their class only."""
    fitted = []
    for k in range(few.shape[1]):
        rows = few[:, k] >= 0
        fitted.append(classifier(cost, 0).fit(train[rows], marks(few[rows, k])))
    return test_map(fitted, test, test_labels)


def test_map(fitted: Sequence[Any], test: np.ndarray, labels: np.ndarray) -> float:
    """`ranking.over_classes` of the area under the envelope."""
    scores = np.stack([model.decision_function(test) for model in fitted], axis=1)
    return over_classes(envelope, scores, labels)


def refuse(bench: Bench) -> str:
    """The images must be there."""
    try:
        found = splits(bench)
    except FileNotFoundError as error:
        return (
            f"voc07_svm: {error}. Or set config.evaluate.voc07=folder:PATH to VOCdevkit/VOC2007, with "
            "ImageSets and JPEGImages"
        )
    if not all("labels" in split.targets for split in found):
        return f"voc07_svm: {found[0].name} has no labels of several classes per image, as VOC2007 has"
    return ""


PROTOCOL = Protocol(reads="images", metrics=("map",), judge=judge, refuse=refuse)
