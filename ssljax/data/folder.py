"""`folder:PATH`: images on disk, one sub-folder per class, or without labels.

    PATH/train/<class>/*.jpg and PATH/test/<class>/*.jpg (or the names in data.train_split and
    data.test_split, or val, validation);
    or PATH/<class>/*.jpg, or PATH/train alone: `data.holdout` of every class is then kept for testing, always
    the same images.

Files are .jpg, .jpeg or .png at any depth below the class; others and hidden ones are ignored.

With `data.labels="none"` every image at any depth below PATH (or PATH/train and PATH/test) is an example
without a label, and `data.holdout` is a share of all images. The same holds, without the setting, for images
that lie loose in a folder without class folders.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from ssljax.data import decode, sampler
from ssljax.data.source import Source, digest, require_labels

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png")


def load(data: ConfigDict, path: str, split: str) -> Source:
    """One split of the folder; decoded into memory when `data.crop_on` is "device".

    Raises:
        FileNotFoundError: the folder does not exist, or holds no images.
        ValueError: an empty class, different classes in train and test, loose images beside class folders,
            nothing to hold out, an unreadable image, or `data.train_per_class` of images without labels.
    """
    root = Path(path).expanduser()
    files, labels, classes = list_split(data, root, split)
    if split == "train" and data.train_per_class and data.on_bad_image == "error":
        # Before decoding what is not used.
        asked = f"data.train_per_class={data.train_per_class}"
        require_labels(labels, lambda i: files[i], asked, f"train images of {data.source}")
        files, labels = _only(sampler.first_per_class(labels, data.train_per_class), files, labels)

    def read_file(i: int) -> bytes:
        return Path(files[i]).read_bytes()

    def name_of(i: int) -> str:
        return files[i]

    images = None
    if data.crop_on == "device":
        images, good, skipped = decode.decode_all(
            read_file,
            name_of,
            len(files),
            size=data.image_size,
            channels=data.channels,
            on_bad=data.on_bad_image,
        )
    else:
        look = decode.threaded(lambda i: decode.problem_with(files[i]), len(files), threads=16)
        good, skipped = decode.settle(look, name_of, data.on_bad_image)
    files[:], labels = _only(good, files, labels)  # read_file and name_of see the good ones
    sizes = np.array([os.path.getsize(f) for f in files], np.int64)
    relative = "\n".join(os.path.relpath(f, root) for f in files)
    return Source(
        name=data.source,
        split=split,
        labels=labels,
        index=np.arange(len(files), dtype=np.int32),
        class_names=tuple(classes),
        checksum=digest(relative.encode(), sizes.tobytes(), labels.tobytes()),
        images=images,
        encoded=lambda ids: [read_file(i) for i in ids],
        name_of=name_of,
        skipped=skipped,
    )


def list_split(data: ConfigDict, root: Path, split: str) -> tuple[list[str], np.ndarray, list[str]]:
    """The files of a split in a fixed order, their labels int32 [N], and the class names (sorted).

    A label is a place in the class names, or -1 where there are none.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"data.source=folder:{root}: there is no folder {root}{_nearest(root)}")
    train, test = (
        _stored(root, data.train_split, "train"),
        _stored(root, data.test_split, "test", "val", "validation"),
    )
    if test and not train:
        raise FileNotFoundError(
            f"{root} has a folder {test.name}, but no folder {data.train_split} to train on"
        )
    here = train or root
    by_class = data.labels == "folders" and has_classes(here)
    if data.labels == "folders" and not by_class and split == "train":
        log.warning(
            "%s has images but no class folders: they are taken without labels, as with data.labels='none'",
            here,
        )
    listed = list_classes if by_class else list_loose
    if test:
        if data.labels == "folders":
            _same_classes(here, test, by_class)
        return listed(here if split == "train" else test)
    files, labels, classes = listed(here)
    whose = [f"class {name}" for name in classes] if by_class else [str(here)]
    held = held_out(labels if by_class else np.zeros_like(labels), whose, data.holdout)
    rows = np.flatnonzero(held if split == "test" else ~held)
    return *_only(rows, files, labels), classes


def has_classes(folder: Path) -> bool:
    """Whether the folder's images are in class folders; False where they all lie loose in it.

    Raises:
        ValueError: some are, and some lie loose.
    """
    loose = sorted(name for name in os.listdir(folder) if _is_image(name) and (folder / name).is_file())
    if not loose:
        return True  # or there are no images at all, which is said elsewhere
    filled = next((name for name in class_folders(folder) if any(_images(folder / name))), None)
    if filled is None:
        return False
    raise ValueError(
        f"{folder / loose[0]} lies loose beside class folders such as {folder / filled} (loose "
        f"images: {len(loose)}): move it into the folder of its class, or set "
        "data.labels='none' to take every image below the folder without a label"
    )


def class_folders(folder: Path) -> list[str]:
    """The names of the visible sub-folders, sorted."""
    return sorted(
        name for name in os.listdir(folder) if (folder / name).is_dir() and not name.startswith(".")
    )


def _same_classes(train: Path, test: Path, by_class: bool) -> None:
    """Raises ValueError where train and test are not labelled alike; `by_class`: train has class folders."""
    if by_class != has_classes(test):
        with_classes, without = (train, test) if by_class else (test, train)
        raise ValueError(
            f"{with_classes} has class folders ({', '.join(class_folders(with_classes)[:10])}), "
            f"but the images in {without} lie loose: sort them into the same class folders, or "
            "set data.labels='none' to take all images without labels"
        )
    if not by_class:
        return
    here, there = class_folders(train), class_folders(test)
    if here != there:
        raise ValueError(
            f"{train} has {len(here)} classes, {test} {len(there)}; only one of them has "
            f"{', '.join(sorted(set(here) ^ set(there))[:10])}. Labels are places in the sorted "
            "list of class folders: both splits need the same"
        )


def list_classes(folder: Path) -> tuple[list[str], np.ndarray, list[str]]:
    """All images in the class folders of `folder`: sorted files, labels int32 [N], sorted class names."""
    classes = class_folders(folder)
    found = [sorted(_images(folder / name)) for name in classes]
    empty = [name for name, files in zip(classes, found, strict=True) if not files]
    wanted = ", ".join(SUFFIXES)
    if len(empty) == len(classes):
        raise FileNotFoundError(
            f"{folder} holds no images ({wanted}), neither loose nor in sub-folders, one "
            f"per class; its sub-folders: {', '.join(empty[:10]) or 'none'}"
        )
    if empty:
        raise ValueError(
            f"class folder {folder / empty[0]} has no images ({wanted}): fill or delete it"
            + (f" (and {len(empty) - 1} more)" if len(empty) > 1 else "")
        )
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(files) for files in found])
    return [f for files in found for f in files], labels, classes


def list_loose(folder: Path) -> tuple[list[str], np.ndarray, list[str]]:
    """All images below `folder`, at any depth: sorted files, a label of -1 for each, and no class names.

    Raises:
        FileNotFoundError: there are none.
    """
    files = sorted(_images(folder, hidden_folders=False))
    if not files:
        raise FileNotFoundError(f"{folder} and its sub-folders hold no images ({', '.join(SUFFIXES)})")
    return files, np.full(len(files), -1, np.int32), []


def _images(folder: Path, hidden_folders: bool = True) -> Iterator[str]:
    """The paths of the images below a folder, in no particular order; hidden files are left out."""
    for at, folders, names in os.walk(folder):
        if not hidden_folders:
            folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(at, name) for name in names if _is_image(name))


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def held_out(labels: np.ndarray, groups: list[str], share: float) -> np.ndarray:
    """bool [N]: round(share n) of the n images of each group, at least 1, leaving 1 or more; always the same.

    Args:
        labels: int [N], the group of each image.
        groups: what the groups are called in an error: "class cat".
        share: of each group's images.

    Raises:
        ValueError: the share is not between 0 and 1, or a group has fewer than two images.
    """
    if not 0 < share < 1:
        raise ValueError(
            f"data.holdout={share}: without a test folder it must lie between 0 and 1 (exclusive)"
        )
    held = np.zeros(len(labels), bool)
    for label, name in enumerate(groups):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise ValueError(f"{name} has {len(rows)} image: without a test folder 2 are needed")
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
    near = difflib.get_close_matches(
        path.name, [name for name in os.listdir(parent) if (parent / name).is_dir()], 1, 0.5
    )
    return f"; did you mean {parent / near[0]}?" if near else f"; {parent} exists"
