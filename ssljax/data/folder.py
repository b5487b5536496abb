"""`folder:PATH`: images on disk, one sub-folder a class.

    PATH/train/<class>/*.jpg and PATH/test/<class>/*.jpg (or the names in data.train_split and data.test_split, or val, validation);
    or PATH/<class>/*.jpg, or PATH/train alone: `data.holdout` of every class is then kept for testing, always the same images.

Files are .jpg, .jpeg or .png at any depth below the class; others and hidden ones are ignored.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from ssljax.data import decode, sampler
from ssljax.data.source import Source, digest

SUFFIXES = (".jpg", ".jpeg", ".png")


def load(data: ConfigDict, path: str, split: str) -> Source:
    """One split of the folder; decoded into memory when `data.crop_on` is "device".

    Raises:
        FileNotFoundError: the folder does not exist, or holds no images.
        ValueError: an empty class, different classes in train and test, nothing to hold out, an unreadable image.
    """
    root = Path(path).expanduser()
    files, labels, classes = list_split(data, root, split)
    if split == "train" and data.train_per_class and data.on_bad_image == "error":
        files, labels = _only(sampler.first_per_class(labels, data.train_per_class), files, labels)   # before decoding what is not used

    def read_file(i: int) -> bytes:
        return Path(files[i]).read_bytes()

    def name_of(i: int) -> str:
        return files[i]

    images = None
    if data.crop_on == "device":
        images, good, skipped = decode.decode_all(read_file, name_of, len(files), size=data.image_size, channels=data.channels,
                                                  on_bad=data.on_bad_image)
    else:
        look = decode.threaded(lambda i: decode.problem_with(files[i]), len(files), threads=16)
        good, skipped = decode.settle(look, name_of, data.on_bad_image)
    files[:], labels = _only(good, files, labels)                  # read_file and name_of see the good ones
    sizes = np.array([os.path.getsize(f) for f in files], np.int64)
    relative = "\n".join(os.path.relpath(f, root) for f in files)
    return Source(name=data.source, split=split, labels=labels, index=np.arange(len(files), dtype=np.int32), class_names=tuple(classes),
                  checksum=digest(relative.encode(), sizes.tobytes(), labels.tobytes()), images=images,
                  encoded=lambda ids: [read_file(i) for i in ids], name_of=name_of, skipped=skipped)


def list_split(data: ConfigDict, root: Path, split: str) -> tuple[list[str], np.ndarray, list[str]]:
    """The files of a split in a fixed order, their labels int32 [N], and the class names (sorted; a label is a place in them)."""
    if not root.is_dir():
        raise FileNotFoundError(f"data.source=folder:{root}: there is no folder {root}{_nearest(root)}")
    train, test = _stored(root, data.train_split, "train"), _stored(root, data.test_split, "test", "val", "validation")
    if test and not train:
        raise FileNotFoundError(f"{root} has a folder {test.name}, but no folder {data.train_split} to train on")
    if test:
        _same_classes(train, test)
        return list_classes(train if split == "train" else test)
    files, labels, classes = list_classes(train or root)
    held = held_out(labels, classes, data.holdout)
    rows = np.flatnonzero(held if split == "test" else ~held)
    return *_only(rows, files, labels), classes


def class_folders(folder: Path) -> list[str]:
    """The names of the visible sub-folders, sorted."""
    return sorted(name for name in os.listdir(folder) if (folder / name).is_dir() and not name.startswith("."))


def _same_classes(train: Path, test: Path) -> None:
    here, there = class_folders(train), class_folders(test)
    if here != there:
        raise ValueError(f"{train} has {len(here)} classes, {test} {len(there)}; only one of them has "
                         f"{', '.join(sorted(set(here) ^ set(there))[:10])}. Labels are places in the sorted list of class folders: "
                         "both splits need the same")


def list_classes(folder: Path) -> tuple[list[str], np.ndarray, list[str]]:
    """All images below `folder`: sorted files, labels int32 [N], sorted class names."""
    classes = class_folders(folder)
    found = [sorted(os.path.join(at, f) for at, _, names in os.walk(folder / name) for f in names
                    if f.lower().endswith(SUFFIXES) and not f.startswith(".")) for name in classes]
    empty = [name for name, files in zip(classes, found, strict=True) if not files]
    wanted = ", ".join(SUFFIXES)
    if len(empty) == len(classes):
        loose = any(name.lower().endswith(SUFFIXES) for name in os.listdir(folder))
        raise FileNotFoundError(f"{folder} holds no images ({wanted}) in sub-folders, one a class" + (
            f": its images lie loose; move them to {folder / 'all'}" if loose else f"; its sub-folders: {', '.join(empty[:10]) or 'none'}"))
    if empty:
        raise ValueError(f"class folder {folder / empty[0]} has no images ({wanted}): fill or delete it"
                         + (f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""))
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(files) for files in found])
    return [f for files in found for f in files], labels, classes


def held_out(labels: np.ndarray, classes: list[str], share: float) -> np.ndarray:
    """bool [N]: round(share n) of the n images of every class, at least one, leaving at least one; drawn with a fixed seed."""
    if not 0 < share < 1:
        raise ValueError(f"data.holdout={share}: without a test folder it must lie between 0 and 1 (exclusive)")
    held = np.zeros(len(labels), bool)
    for label, name in enumerate(classes):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise ValueError(f"class {name} has {len(rows)} image: with no test folder, each class needs 2 (one is held out)")
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        held[rows[sampler.order(0, label, len(rows))[:count]]] = True
    return held


def _only(rows: np.ndarray, files: list[str], labels: np.ndarray) -> tuple[list[str], np.ndarray]:
    return [files[i] for i in rows], labels[rows]


def _stored(root: Path, *names: str) -> Path | None:
    """The first of these sub-folders that exists."""
    return next((root / name for name in names if name and (root / name).is_dir()), None)


def _nearest(path: Path) -> str:
    """A hint: the part of the path that exists, and the name there that is closest."""
    parent = path.parent
    if not parent.is_dir():
        return f" (nor {parent})"
    near = difflib.get_close_matches(path.name, [name for name in os.listdir(parent) if (parent / name).is_dir()], 1, 0.5)
    return f"; did you mean {parent / near[0]}?" if near else f"; {parent} exists"
