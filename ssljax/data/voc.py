"""PASCAL VOC's labels: several classes per image, and objects marked as difficult.

`targets["labels"]` of such a source is int8 [N, classes]: 1 for a class in the image, 0 for one that is not,
-1 for one whose objects there are all difficult. `labels` are all -1: no image has one class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from ssljax.data import folder
from ssljax.data.source import Source


def is_devkit(path: str) -> bool:
    """Whether a folder is unpacked as PASCAL VOC: ImageSets/Main beside JPEGImages."""
    return (Path(path).expanduser() / "ImageSets" / "Main").is_dir()


def load(data: ConfigDict, path: str, split: str) -> Source:
    """Load the split of a devkit that `data.train_split` or `data.test_split` names: train, val or test.

    The files CLASS_SPLIT.txt in ImageSets/Main say of each image 1 (the class is in it), -1 (it is not) or 0
    (all its objects are difficult).

    Raises:
        FileNotFoundError: there is no such split.
    """
    root = Path(path).expanduser()
    stored = data.train_split if split == "train" else data.test_split
    lists = sorted((root / "ImageSets" / "Main").glob(f"*_{stored}.txt"))
    if not lists:
        raise FileNotFoundError(
            f"{root}/ImageSets/Main has no files CLASS_{stored}.txt: unpack VOCtrainval_06-Nov-2007.tar and "
            "VOCtest_06-Nov-2007.tar there"
        )
    rows = [[line.split() for line in file.read_text().splitlines() if line.strip()] for file in lists]
    names = [name for name, _ in rows[0]]
    marks = np.array([[int(mark) for _, mark in one] for one in rows]).T
    labels = np.select([marks == 1, marks == 0], [1, -1], 0).astype(np.int8)
    row_of = {name: row for name, row in zip(names, labels, strict=True)}

    classes = [file.name.removesuffix(f"_{stored}.txt") for file in lists]
    files = [str(root / "JPEGImages" / f"{name}.jpg") for name in names]
    none = np.full(len(files), -1, np.int32)
    source = folder.of_files(data, data.source, split, root, files, none, classes)
    kept = np.stack([row_of[Path(file).stem] for file in files])  # without those that cannot be read
    return dataclasses.replace(source, targets={"labels": kept})


def targets(present: Iterable[np.ndarray], clear: Iterable[np.ndarray], classes: int) -> np.ndarray:
    """The labels of a data set that lists the classes of each image.

    Args:
        present: of each image, the classes in it.
        clear: those that are not only difficult there.
        classes: how many there are.

    Returns:
        int8 [N, classes].
    """
    found = []
    for every, sure in zip(present, clear, strict=True):
        row = np.zeros(classes, np.int8)
        row[np.asarray(every, int)] = -1
        row[np.asarray(sure, int)] = 1
        found.append(row)
    return np.stack(found)
