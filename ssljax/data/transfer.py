"""`transfer:NAME`: one of the twelve data sets of Kornblith et al. (2019), SimCLR and BYOL, split as they do.

`data.data_dir` is DIR. The data set is the folder DIR/NAME with train/CLASS/..., test/CLASS/... and, where
there is one, val/CLASS/... (VOC2007 as its devkit is unpacked); without such a folder it is TFDS's, prepared
in DIR or in TFDS's own place. The splits are train, validation, train+validation and test. Where no
validation split is stored, it is drawn from the training images, always the same: equally many of each class
where that makes the papers' number (BYOL: 20 for Pets, 5 for Caltech-101, 10 for SUN397).

A folder of another name is a data set of the user's own: a tenth of its training images are validation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ssljax.data import folder, records, sampler, voc
from ssljax.data.source import Source

SPLITS = ("train", "validation", "train+validation", "test")
OWN_SHARE = 0.1  # of the training images of a data set of the user's own, for validation
MEAN = "mean_per_class"


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


def folder_of(root: str, name: str) -> Path | None:
    """The folder of a data set below `root`, if there is one that TFDS has not prepared."""
    place = Path(root).expanduser() / name
    if not root or not place.is_dir():
        return None
    versions = itertools.chain(place.glob("*/dataset_info.json"), place.glob("*/*/dataset_info.json"))
    return None if any(versions) else place


def tfds_place(name: str, root: str) -> str:
    """Where TFDS has prepared a data set: `root`, or "", its own place.

    Raises:
        FileNotFoundError: in neither; the message is about its own place.
    """
    if root:
        with contextlib.suppress(FileNotFoundError):
            records.prepared(name, root)
            return root
    records.prepared(name, "")
    return ""


def missing(name: str, root: str, key: str = "data.data_dir") -> str:
    """Why a data set is not there; "" if it is.

    Args:
        name: of the data set.
        root: the folder that may hold it.
        key: the setting that names `root`, for the message.
    """
    if folder_of(root, name):
        return ""
    known = SETS.get(name)
    where = root or f"config.{key}"
    if known is None:
        return f"there is no folder {where}/{name}, and it is none of {', '.join(SETS)}"
    hint = f"{known.missing}; its place is {where}/{name}" if known.missing else ""
    if not known.tfds:
        return hint
    try:
        tfds_place(known.tfds, root)
    except (FileNotFoundError, ImportError) as error:
        return f"{error}. {hint}".strip() if hint else str(error)
    return ""


def load(data: ConfigDict, name: str, split: str) -> Source:
    """Load the split that `data.train_split` or `data.test_split` names, one of SPLITS.

    Raises:
        FileNotFoundError: the data set is not there.
        ValueError: there is no such split, or one of the twelve has other numbers of images than the papers
            state.
    """
    wanted = data.train_split if split == "train" else data.test_split
    if wanted not in SPLITS:
        raise ValueError(
            f"data.{split}_split={wanted!r}: data.source=transfer:{name} has the splits {', '.join(SPLITS)}"
        )
    absent = missing(name, data.data_dir)
    if absent:
        raise FileNotFoundError(f"data.source=transfer:{name}: {absent}")

    place = folder_of(data.data_dir, name)
    known = SETS.get(name, DataSet((0, 0, 0)))
    validation = known.validation
    if place:
        validation = "val" if voc.is_devkit(str(place)) else _validation_folder(place)
    if wanted == "test":
        return _complete(name, 2, _stored(data, name, "test" if place else known.test, split))
    first = _stored(data, name, "train" if place else known.train, split)
    if validation:
        _complete(name, 0, first)
        if wanted == "train":
            return first
        second = _complete(name, 1, _stored(data, name, validation, split))
        return second if wanted == "validation" else first.followed_by(second, first.num_ids)

    _complete(name, slice(2), first)
    share = known.sizes[1] / sum(known.sizes[:2]) if name in SETS else OWN_SHARE
    count = max(1, round(share * len(first)))
    each, rest = divmod(count, max(first.num_classes, 1))
    if name in SETS and first.num_classes and not rest:
        held = sampler.subset(first.labels, per_class=each, seed=0)
    else:
        held = np.sort(sampler.order(0, 0, len(first))[:count])
    every = np.arange(len(first))
    rows = {"train": np.delete(every, held), "validation": held, "train+validation": every}
    return first.select(rows[wanted])


def _validation_folder(place: Path) -> str:
    """The folder of validation images; "" without one, or without test/, whose place it then takes."""
    there = [name for name in ("val", "validation") if (place / name).is_dir()]
    return there[0] if there and (place / "test").is_dir() else ""


def _stored(data: ConfigDict, name: str, stored: str, split: str) -> Source:
    """A stored split of the folder or of TFDS, under the name `transfer:NAME`.

    The training images of a folder without train/ are those that `data.holdout` leaves.
    """
    place = folder_of(data.data_dir, name)
    other = data.copy_and_resolve_references().unlock()
    if place is None:
        known = SETS[name]
        where = tfds_place(known.tfds, data.data_dir)
        labels = "none" if known.metric == "map" else data.labels
        other.update(
            source=f"tfds:{known.tfds}", data_dir=where, train_split=stored, test_split=stored, labels=labels
        )
        found = records.load(other, known.tfds, split)
    elif voc.is_devkit(str(place)):
        other.update(source=f"folder:{place}", train_split=stored, test_split=stored)
        found = voc.load(other, str(place), split)
    else:
        part = "train" if stored == "train" else "test"
        other.update({"source": f"folder:{place}", "train_split": "train", "test_split": "test"})
        other[f"{part}_split"] = stored
        found = folder.load(other, str(place), part)
    return dataclasses.replace(found, name=f"transfer:{name}")


def _complete(name: str, part: int | slice, source: Source) -> Source:
    """The source, or for one of the twelve a ValueError if the part of its sizes differs."""
    sizes = SETS[name].sizes[part] if name in SETS else len(source)
    wanted = sizes if isinstance(sizes, int) else sum(sizes)
    if len(source) != wanted:
        stated = ", ".join(f"{size:,}" for size in SETS[name].sizes)
        raise ValueError(
            f"transfer: {name} has {len(source):,} images where the papers' has {wanted:,} ({stated} for "
            "training, validation and test): complete it, or rename its folder to judge it as a data set of "
            "your own"
        )
    return source
