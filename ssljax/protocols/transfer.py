"""Transfer to the twelve data sets of Kornblith et al. (2019), SimCLR and BYOL: logistic regression.

    ssljax evaluate --workdir RUN --protocols transfer --config.evaluate.transfer=all \\
        --config.evaluate.transfer_root=DIR

Each data set is DIR/NAME, or comes from TFDS (`ssljax prepare tfds:...`). lambda is the best of 45 values
1e-6 ... 1e5 on the validation images; the fit is repeated on training and validation images, and only it sees
the test images. Where no validation split is stored, it is drawn from the training images. Features are
standardised as in `linear`, which the papers do not say.

A folder of another name is judged too, by both accuracies, and the sizes of its splits are its own affair.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from ssljax.data import records, sampler, voc
from ssljax.data.source import Source
from ssljax.protocols.bench import Bench
from ssljax.protocols.features import top_k_percent
from ssljax.protocols.linear import ONE_THREAD, fit, scores, standardise
from ssljax.protocols.ranking import eleven_points
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


class DataSet(NamedTuple):
    """One of the twelve.

    Attributes:
        sizes: of the training, validation and test images.
        metric: "top1", "mean_per_class" or "map" (11-point).
        tfds: the TFDS data set; "" where there is none.
        train, validation, test: the stored splits; no `validation` if it is drawn from `train`.
        missing: what to do where TFDS cannot help.
    """

    sizes: tuple[int, int, int]
    metric: str = "top1"
    tfds: str = ""
    train: str = "train"
    validation: str = ""
    test: str = "test"
    missing: str = ""


MEAN = "mean_per_class"
SETS = {
    "food101": DataSet((68_175, 7_575, 25_250), tfds="food101", test="validation"),
    "cifar10": DataSet((45_000, 5_000, 10_000), tfds="cifar10"),
    "cifar100": DataSet((44_933, 5_067, 10_000), tfds="cifar100"),
    "birdsnap": DataSet(
        (42_405, 4_981, 2_443),
        missing="TFDS does not have it, and many of its URLs are dead: make class folders in train/ and "
        "test/ with the toolkit's test_images.txt",
    ),
    "sun397": DataSet((15_880, 3_970, 19_850), tfds="sun397/standard-part1-120k"),
    "cars": DataSet(
        (6_494, 1_650, 8_041),
        tfds="cars196",
        missing="its download has been gone since 2023: put the archives where TFDS looks for manual files, "
        "or make class folders in train/ and test/",
    ),
    "aircraft": DataSet(
        (3_334, 3_333, 3_333),
        MEAN,
        missing="TFDS does not have it: make class folders in train/, val/ and test/ by "
        "images_variant_{train,val,test}.txt, without the 20 lowest rows of each image",
    ),
    "voc2007": DataSet((2_501, 2_510, 4_952), "map", "voc/2007", validation="validation"),
    "dtd": DataSet((1_880, 1_880, 1_880), tfds="dtd", validation="validation"),
    "pets": DataSet((2_940, 740, 3_669), MEAN, "oxford_iiit_pet"),
    "caltech101": DataSet((2_550, 510, 6_084), MEAN, "caltech101"),
    "flowers": DataSet((1_020, 1_020, 6_149), MEAN, "oxford_flowers102", validation="validation"),
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
        splits, sizes = load(bench, name)
        arrays = [features_of(bench, split) for split in splits]
        with threadpool_limits(1 if arrays[0][0].size < ONE_THREAD else None):
            values, l2 = probe(arrays, len(splits[0].class_names), bench.channels)
        metrics = [SETS[name].metric] if name in SETS else [m for m in ("top1", MEAN, "map") if m in values]
        settings = {"l2": l2, "standardised": True, "train": sizes[0], "validation": sizes[1]}
        found = {metric: values[metric] for metric in metrics}
        yield {"protocol": f"transfer_{name}", "settings": settings, **found, "n": sizes[2]}


def names(bench: Bench) -> list[str]:
    """The data sets that `evaluate.transfer` names."""
    asked = [name.strip() for name in bench.config.evaluate.transfer.split(",") if name.strip()]
    return list(SETS) if asked == ["all"] else asked


def folder_of(bench: Bench, name: str) -> Path | None:
    """The folder of a data set below `evaluate.transfer_root`, if there is one."""
    root = bench.config.evaluate.transfer_root
    folder = Path(root).expanduser() / name
    return folder if root and folder.is_dir() else None


def missing(bench: Bench, name: str) -> str:
    """Why a data set is not there; "" if it is."""
    if folder_of(bench, name):
        return ""
    known = SETS.get(name)
    root = bench.config.evaluate.transfer_root or "config.evaluate.transfer_root"
    if known is None:
        return f"there is no folder {root}/{name}, and it is none of {', '.join(SETS)}"
    hint = f"{known.missing}; its place is {root}/{name}" if known.missing else ""
    if not known.tfds:
        return hint
    try:
        records.prepared(known.tfds, bench.config.data.data_dir)
    except (FileNotFoundError, ImportError) as error:
        return f"{error}. {hint}".strip() if hint else str(error)
    return ""


def load(bench: Bench, name: str) -> tuple[tuple[Source, Source, Source], tuple[int, int, int]]:
    """The training, validation and test images of a data set, and how many there are.

    Raises:
        ValueError: one of the twelve has other numbers of images than the papers state.
    """
    folder = folder_of(bench, name)
    known = SETS.get(name, DataSet((0, 0, 0)))
    if folder:
        source = f"folder:{folder}"
        devkit = voc.is_devkit(str(folder))
        stored = "val" if devkit or (folder / "val").is_dir() else ""
        train, validation, test = "train", stored, "test"
    else:
        source = f"tfds:{known.tfds}"
        train, validation, test = known.train, known.validation, known.test
    whole = {**WHOLE, "source": source}
    if known.metric == "map":
        whole["labels"] = "none"

    first = bench.load("train", **whole, train_split=train, test_split=test)
    last = bench.load("test", **whole, train_split=train, test_split=test)
    if validation:
        middle = bench.load("test", **whole, train_split=train, test_split=validation)
    else:
        share = known.sizes[1] / (known.sizes[0] + known.sizes[1]) if name in SETS else 0.1
        order = sampler.order(0, 0, len(first))
        count = max(1, round(share * len(first)))
        first, middle = first.select(np.sort(order[count:])), first.select(np.sort(order[:count]))
    sizes = (len(first), len(middle), len(last))
    if name in SETS and sizes != known.sizes:
        raise ValueError(
            f"transfer: {name} in {source} has {sizes} training, validation and test images, and the papers' "
            f"has {known.sizes}: complete it, or rename its folder to judge it as a data set of your own"
        )
    return (first, middle, last), sizes


def features_of(bench: Bench, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, D], and labels: int [N], or int [N, classes] as `data.voc` gives them."""
    found = bench.features(source)
    if "labels" in source.targets:
        return found.features, source.targets["labels"][np.searchsorted(source.index, found.index)]
    return found.features, found.labels


def probe(
    splits: list[tuple[np.ndarray, np.ndarray]], num_classes: int, channels: int = 0
) -> tuple[dict[str, float], float]:
    """Choose lambda on the validation images, fit on these and the training images, and judge.

    Args:
        splits: (features, labels) of the training, validation and test images.
        num_classes: labels are 0..num_classes-1, or have so many columns.
        channels: see `linear.standardise`.

    Returns:
        The metrics in percent, and lambda.
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
        fitted = regress(kept, train[1], num_classes, l2, warm, 300)
        value = next(iter(metrics_of(fitted(held), validation[1]).values()))
        worse = worse + 1 if value < best else 0
        if value > best:
            best = value
            chosen = l2
        if worse == PATIENCE:
            break

    both = np.concatenate([train[0], validation[0]])
    labels = np.concatenate([train[1], validation[1]])
    fitted = regress(standardise(both, both, channels), labels, num_classes, chosen, {}, 2000)
    return metrics_of(fitted(standardise(test[0], both, channels)), test[1]), chosen


def single(
    features: np.ndarray, labels: np.ndarray, classes: int, l2: float, warm: dict[int, Any], iterations: int
) -> Fitted:
    """Multinomial regression. `warm` holds the model to start from, and afterwards this one."""
    warm[0], _ = fit(features, labels, l2, warm=warm.get(0), iterations=iterations)
    model = warm[0]
    return lambda x: scores(model, x, classes)


def many(
    features: np.ndarray, labels: np.ndarray, classes: int, l2: float, warm: dict[int, Any], iterations: int
) -> Fitted:
    """A regression for each class; images where it is only difficult are left out of its own."""
    for k in range(classes):
        sure = labels[:, k] >= 0
        warm[k], _ = fit(features[sure], labels[sure, k], l2, warm=warm.get(k), iterations=iterations)
    models = [warm[k] for k in range(classes)]
    return lambda x: np.stack([model.decision_function(x) for model in models], axis=1)


def metrics_of(class_scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`top1` and `mean_per_class`, or for several labels per image `map`, in percent."""
    if labels.ndim == 2:
        each = [
            eleven_points(class_scores[sure, k], labels[sure, k] == 1)
            for k, sure in enumerate((labels >= 0).T)
        ]
        return {"map": 100.0 * float(np.mean(each))}
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
