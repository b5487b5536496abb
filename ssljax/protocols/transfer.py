"""Transfer to the twelve data sets of Kornblith et al. (2019), SimCLR and BYOL: logistic regression.

    ssljax evaluate --workdir RUN --protocols transfer --config.evaluate.transfer=all \\
        --config.evaluate.transfer_root=DIR

Each data set is DIR/NAME, or comes from TFDS (`data.transfer` has the table). lambda is the best of 45 values
1e-6 ... 1e5 on the validation images, by the metric of the data set; the fit is repeated on training and
validation images, and only it sees the test images. Features are those of the central square, whatever
`data.eval_crop` is [P], standardised as in `linear`, which the papers do not say.

L-BFGS has at most 300 iterations for each lambda and 2,000 for the last fit, whose settings say whether it
converged [X].

A folder of another name is judged too, by both accuracies (top-1 chooses lambda), and the sizes of its splits
are its own affair.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ssljax.data import transfer
from ssljax.data.source import Source
from ssljax.data.transfer import MEAN, SETS
from ssljax.protocols.bench import Bench
from ssljax.protocols.features import top_k_percent
from ssljax.protocols.linear import MAX_ITERATIONS, ONE_THREAD, fit, scores, standardise
from ssljax.protocols.ranking import eleven_points, over_classes
from ssljax.types import Measurement, Protocol

log = logging.getLogger(__name__)

GRID = tuple(10.0**e for e in np.linspace(5, -6, 45))  # from strong to weak, each starts from the one before
PATIENCE = 6  # values in a row below the best that end the search: one and a half powers of ten

# The settings of the run's own data that a transfer set must not inherit.
WHOLE = {
    "labels": "folders",
    "train_per_class": 0,
    "labels_per_class": 0,
    "label_fraction": 1.0,
    "keep_unlabelled": False,
    "unlabelled": "",
}


Fitted = Callable[[np.ndarray], np.ndarray]
"""Features [N, D] -> scores [N, classes]."""


def judge(bench: Bench) -> Iterator[Measurement]:
    """One measurement for each data set that is there, under the name `transfer_NAME`."""
    absent = {name: missing(bench, name) for name in names(bench)}
    left_out = [f"{name} ({why})" for name, why in absent.items() if why]
    if left_out:
        log.warning("transfer leaves out %s", "; ".join(left_out))
    for name in (name for name, why in absent.items() if not why):
        splits = load(bench, name)
        sizes = [len(split) for split in splits]
        arrays = [features_of(bench, split) for split in splits]
        known = SETS[name].metric if name in SETS else ""
        with threadpool_limits(1 if arrays[0][0].size < ONE_THREAD else None):
            values, l2, converged = probe(arrays, splits[0].num_classes, bench.channels, known)
        metrics = [known] if known else [m for m in ("top1", MEAN, "map") if m in values]
        counts = {"train": sizes[0], "validation": sizes[1]}
        settings = {"l2": l2, "converged": converged, "standardised": True, **counts}
        found = {metric: values[metric] for metric in metrics}
        yield {"protocol": f"transfer_{name}", "settings": settings, **found, "n": sizes[2]}


def names(bench: Bench) -> list[str]:
    """The data sets that `evaluate.transfer` names."""
    asked = [name.strip() for name in bench.config.evaluate.transfer.split(",") if name.strip()]
    return list(SETS) if asked == ["all"] else asked


def missing(bench: Bench, name: str) -> str:
    """Why a data set is not there; "" if it is."""
    return transfer.missing(name, bench.config.evaluate.transfer_root, "evaluate.transfer_root")


def load(bench: Bench, name: str) -> list[Source]:
    """The training, validation and test images of a data set, whatever `data.eval_crop` is."""
    asked = {**WHOLE, "source": f"transfer:{name}", "data_dir": bench.config.evaluate.transfer_root}
    splits = [
        bench.load("train", **asked, train_split="train"),
        bench.load("test", **asked, test_split="validation"),
        bench.load("test", **asked, test_split="test"),
    ]
    return [dataclasses.replace(split, whole=True) for split in splits]


def features_of(bench: Bench, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, D], and labels: int [N], or int [N, classes] as `data.voc` gives them."""
    found = bench.features(source)
    if "labels" in source.targets:
        return found.features, source.targets["labels"][np.searchsorted(source.index, found.index)]
    return found.features, found.labels


def probe(
    splits: list[tuple[np.ndarray, np.ndarray]], num_classes: int, channels: int = 0, metric: str = ""
) -> tuple[dict[str, float], float, bool]:
    """Choose lambda on the validation images, fit on these and the training images, and judge.

    Args:
        splits: (features, labels) of the training, validation and test images.
        num_classes: labels are 0..num_classes-1, or have so many columns.
        channels: see `linear.standardise`.
        metric: the one that lambda is chosen by; "" for top1, or for several labels map.

    Returns:
        The metrics in percent, lambda, and whether the last fit converged.
    """
    train, validation, test = splits
    regress = many if train[1].ndim == 2 else single
    kept = standardise(train[0], train[0], channels)
    held = standardise(validation[0], train[0], channels)
    best = -1.0
    chosen = GRID[0]
    worse = 0
    warm: dict[int, Any] = {}
    for l2 in GRID:
        fitted, _ = regress(kept, train[1], num_classes, l2, warm, 300)
        values = metrics_of(fitted(held), validation[1])
        value = values[metric or next(iter(values))]
        worse = worse + 1 if value < best else 0
        if value > best:
            best = value
            chosen = l2
        if worse == PATIENCE:
            break

    both = np.concatenate([train[0], validation[0]])
    labels = np.concatenate([train[1], validation[1]])
    standard = standardise(both, both, channels)
    fitted, converged = regress(standard, labels, num_classes, chosen, {}, MAX_ITERATIONS)
    return metrics_of(fitted(standardise(test[0], both, channels)), test[1]), chosen, converged


def single(
    features: np.ndarray, labels: np.ndarray, classes: int, l2: float, warm: dict[int, Any], iterations: int
) -> tuple[Fitted, bool]:
    """Multinomial regression, and whether it converged.

    `warm` holds the model to start from, and afterwards this one.
    """
    warm[0], converged = fit(features, labels, l2, warm=warm.get(0), iterations=iterations)
    model = warm[0]
    return lambda x: scores(model, x, classes), converged


def many(
    features: np.ndarray, labels: np.ndarray, classes: int, l2: float, warm: dict[int, Any], iterations: int
) -> tuple[Fitted, bool]:
    """A regression for each class, without images where it is only difficult; and whether all converged."""
    all_converged = True
    for k in range(classes):
        sure = labels[:, k] >= 0
        warm[k], converged = fit(features[sure], labels[sure, k], l2, warm=warm.get(k), iterations=iterations)
        all_converged &= converged
    models = [warm[k] for k in range(classes)]
    return lambda x: np.stack([model.decision_function(x) for model in models], axis=1), all_converged


def metrics_of(class_scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`top1` and `mean_per_class`, or for several labels per image `map`, in percent."""
    if labels.ndim == 2:
        return {"map": over_classes(eleven_points, class_scores, labels)}
    return {"top1": top_k_percent(class_scores, labels, 1), MEAN: mean_per_class(class_scores, labels)}


def mean_per_class(class_scores: np.ndarray, labels: np.ndarray) -> float:
    """The mean over the classes with an image of the share of their images that is right, in percent."""
    right = np.argmax(class_scores, axis=1) == labels
    return 100.0 * float(np.mean([right[labels == k].mean() for k in np.unique(labels)]))


def refuse(bench: Bench) -> str:
    """The data sets must be named, and one of them must be there."""
    asked = names(bench)
    if not asked:
        return (
            f"transfer needs config.evaluate.transfer: all, or some of {', '.join(SETS)}, or folders below "
            "config.evaluate.transfer_root"
        )
    absent = {name: missing(bench, name) for name in asked}
    if all(absent.values()):
        listed = "; ".join(f"{name}: {why}" for name, why in list(absent.items())[:3])
        more = f"; and {len(absent) - 3} more" if len(absent) > 3 else ""
        return f"transfer: none of these data sets is there. {listed}{more}"
    return ""


PROTOCOL = Protocol(reads="images", metrics=("top1", MEAN, "map"), judge=judge, refuse=refuse)
