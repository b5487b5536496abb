"""`folder:PATH`: images on disk, in one sub-folder per class or without labels.

There are two layouts:

    PATH/train/<class>/*.jpg and PATH/test/<class>/*.jpg
        The folders may also have the names in data.train_split and data.test_split. The test folder may be
        called val or validation.
    PATH/<class>/*.jpg, or PATH/train without a test folder
        A share `data.holdout` of every class is held out for testing. It is always the same images.

Files are JPEG, PNG, WebP, GIF, BMP or TIFF by their endings (`formats.SUFFIXES`), at any depth below the
class folder. Other files are counted in a warning; hidden files are ignored.

With `data.labels="none"` every image at any depth below PATH (or PATH/train and PATH/test) is an example
without a label, and `data.holdout` is a share of all images. The same happens without that setting if the
images lie directly in a folder that has no class folders.
"""

from __future__ import annotations

import difflib
import functools
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from ssljax.data import damage, decode, formats, sampler
from ssljax.data.formats import SUFFIXES
from ssljax.data.source import Source, digest, require_labels

log = logging.getLogger(__name__)


def load(data: ConfigDict, path: str, split: str) -> Source:
    """Load one split of the folder. It is decoded into memory if `data.crop_on` is "device".

    Args:
        data: the `data` section of a config.
        path: PATH of `folder:PATH`.
        split: "train" or "test".

    Raises:
        FileNotFoundError: the folder does not exist, or holds no images.
        ValueError: a class is empty, train and test have different classes, some images lie loose beside
            class folders, there are too few images to hold some out, an image is unreadable, or
            `data.train_per_class` is set and images have no labels.
    """
    root = Path(path).expanduser()
    files, labels, classes = list_split(data, root, split)
    if split == "train" and data.train_per_class and data.on_bad_image == "error":
        # Select before decoding, so that unused images are not decoded.
        asked = f"data.train_per_class={data.train_per_class}"
        require_labels(labels, lambda i: files[i], asked, f"train images of {data.source}")
        files, labels = _only(sampler.first_per_class(labels, data.train_per_class), files, labels)
    return of_files(data, data.source, split, root, files, labels, classes)


def unlabelled(data: ConfigDict, path: str) -> Source:
    """Load every image at any depth below a folder, without labels, for `data.unlabelled`.

    The arguments and errors are those of `load`.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"data.unlabelled=folder:{root}: there is no folder {root}{_nearest(root)}")
    return of_files(data, data.unlabelled, "train", root, *list_loose(root))


def of_files(
    data: ConfigDict,
    name: str,
    split: str,
    root: Path,
    files: list[str],
    labels: np.ndarray,
    classes: list[str],
) -> Source:
    """The source of these files below `root`; the other arguments are fields of `Source`."""

    def read_file(i: int) -> bytes:
        return formats.plain(damage.read(files[i]), data.background)

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

    files[:], labels = _only(good, files, labels)  # in place, because read_file and name_of read this list
    sizes = np.array([os.path.getsize(f) for f in files], np.int64)
    relative = "\n".join(os.path.relpath(f, root) for f in files)
    above = f"{root}{os.sep}"
    checksum = digest(relative.encode(), sizes.tobytes(), labels.tobytes())
    return Source(
        name=name,
        split=split,
        labels=labels,
        index=np.arange(len(files), dtype=np.int32),
        class_names=tuple(classes),
        checksum=checksum,
        images=images,
        encoded=lambda ids: [read_file(i) for i in ids],
        name_of=name_of,
        skipped=skipped,
        file_of=lambda i: (files[i].removeprefix(above), int(sizes[i])),
    )


def list_split(
    data: ConfigDict, root: Path, split: str, view: str = ""
) -> tuple[list[str], np.ndarray, list[str]]:
    """List the files of a split in a fixed order, with their labels and the class names.

    Args:
        data: the `data` section of a config.
        root: the folder.
        split: "train" or "test".
        view: a folder inside those of the splits, whose files alone are listed, see `data.view_folders`.

    Returns:
        The files; their labels, int32 [N], as positions in the class names, or -1 if there are no classes;
        and the class names, sorted.

    Raises:
        FileNotFoundError: the folder does not exist or holds no images, or it has a test folder but no train
            folder.
        ValueError: the layout of the folder is inconsistent.
    """
    train, test = split_folders(data, root)
    here = train / view
    by_class = data.labels == "folders" and has_classes(here)
    if data.labels == "folders" and not by_class and split == "train":
        _warn(
            f"{here} has images but no class folders: the images have no labels, as with data.labels='none'"
        )
    list_images = list_classes if by_class else list_loose
    if test:
        test = test / view
        if data.labels == "folders":
            _same_classes(here, test, by_class)
        return list_images(here if split == "train" else test)

    files, labels, classes = list_images(here)
    if by_class:
        held = held_out(labels, [f"class {name}" for name in classes], data.holdout)
    else:
        held = held_out(np.zeros_like(labels), [str(here)], data.holdout)
    rows = np.flatnonzero(held if split == "test" else ~held)
    files, labels = _only(rows, files, labels)
    return files, labels, classes


def split_folders(data: ConfigDict, root: Path) -> tuple[Path, Path | None]:
    """The folder to train on and the folder to test on; None if a share of the first is held out.

    Raises:
        FileNotFoundError: the folder does not exist, or it has a test folder but no train folder.
    """
    if not root.is_dir():
        kind, _, _ = data.source.partition(":")
        raise FileNotFoundError(f"data.source={kind}:{root}: there is no folder {root}{_nearest(root)}")
    train = _stored(root, data.train_split, "train")
    test = _stored(root, data.test_split, "test", "val", "validation")
    if test and not train:
        raise FileNotFoundError(
            f"{root} has a folder {test.name}, but no folder {data.train_split} to train on"
        )
    return train or root, test


def has_classes(folder: Path) -> bool:
    """Tell whether the images are in class folders. False if they all lie loose in `folder`.

    Raises:
        ValueError: some images are in class folders and some lie loose.
    """
    loose = sorted(name for name in os.listdir(folder) if _is_image(name) and not (folder / name).is_dir())
    if not loose:
        return True  # or there are no images at all, which `list_classes` reports
    filled = next((name for name in class_folders(folder) if any(_images(folder / name))), None)
    if filled is None:
        return False
    raise ValueError(
        f"{folder / loose[0]} lies loose beside class folders such as {folder / filled} (loose "
        f"images: {len(loose)}): move it into the folder of its class, or set "
        "data.labels='none' to use every image below the folder without a label"
    )


def class_folders(folder: Path) -> list[str]:
    """List the names of the visible sub-folders, sorted."""
    return sorted(
        name for name in os.listdir(folder) if (folder / name).is_dir() and not name.startswith(".")
    )


def _same_classes(train: Path, test: Path, by_class: bool) -> None:
    """Check that train and test are labelled alike.

    Args:
        train, test: the two folders.
        by_class: whether the train folder has class folders.

    Raises:
        ValueError: only one of them has class folders, or their classes differ.
    """
    if by_class != has_classes(test):
        with_classes, without = (train, test) if by_class else (test, train)
        raise ValueError(
            f"{with_classes} has class folders ({', '.join(class_folders(with_classes)[:10])}), "
            f"but the images in {without} lie loose: sort them into the same class folders, or "
            "set data.labels='none' to use all images without labels"
        )
    if not by_class:
        return
    here = class_folders(train)
    there = class_folders(test)
    if here != there:
        only_one = sorted(set(here) ^ set(there))
        raise ValueError(
            f"{train} has {len(here)} classes, {test} has {len(there)}; only one of them has "
            f"{', '.join(only_one[:10])}. Labels are positions in the sorted list of class folders, "
            "so both splits need the same folders"
        )


def list_classes(folder: Path) -> tuple[list[str], np.ndarray, list[str]]:
    """List all images in the class folders of `folder`.

    Returns:
        The files, sorted; their labels, int32 [N]; and the class names, sorted.

    Raises:
        FileNotFoundError: there are no images.
        ValueError: a class folder has no images.
    """
    classes = class_folders(folder)
    others: Counter[str] = Counter()
    found = [sorted(_images(folder / name, others)) for name in classes]
    _say(others, folder)
    empty = [name for name, files in zip(classes, found, strict=True) if not files]
    wanted = ", ".join(SUFFIXES)
    if len(empty) == len(classes):
        raise FileNotFoundError(
            f"{folder} holds no images ({wanted}), neither directly nor in one sub-folder per class; "
            f"its sub-folders: {', '.join(empty[:10]) or 'none'}"
        )
    if empty:
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise ValueError(
            f"class folder {folder / empty[0]} has no images ({wanted}): fill or delete it{more}"
        )
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(files) for files in found])
    return [f for files in found for f in files], labels, classes


def list_loose(folder: Path) -> tuple[list[str], np.ndarray, list[str]]:
    """List all images below `folder`, at any depth, without labels.

    Returns:
        The files, sorted; a label of -1 for each, int32 [N]; and an empty list of class names.

    Raises:
        FileNotFoundError: there are no images.
    """
    others: Counter[str] = Counter()
    files = sorted(_images(folder, others, hidden_folders=False))
    _say(others, folder)
    if not files:
        raise FileNotFoundError(f"{folder} and its sub-folders hold no images ({', '.join(SUFFIXES)})")
    return files, np.full(len(files), -1, np.int32), []


def _images(folder: Path, others: Counter[str] | None = None, hidden_folders: bool = True) -> Iterator[str]:
    """Yield the paths of the images below a folder, in no particular order, without hidden files.

    Whatever has the name of an image is one, also a pipe or a link to nothing. Checking says what it is. The
    endings of all other files are counted in `others`.
    """
    for at, folders, names in os.walk(folder):
        if not hidden_folders:
            folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if _is_image(name):
                yield os.path.join(at, name)
            elif others is not None and not name.startswith("."):
                others[os.path.splitext(name)[1].lower() or "without an ending"] += 1
        for name in folders:
            if _is_image(name) and not any(_images(Path(at, name))):
                yield os.path.join(at, name)  # a folder where an image should be: it is unreadable


def _say(others: Counter[str], folder: Path) -> None:
    """Say which files are left out because their names are not those of images."""
    if others:
        most = sorted(others.items(), key=lambda item: (-item[1], item[0]))[:10]
        listed = ", ".join(f"{count:,} {ending}" for ending, count in most)
        _warn(f"{folder}: files left out, whose names are not those of images: {listed}")


@functools.cache
def _warn(text: str) -> None:
    """Log a warning about a folder, once in a process: both splits and all stages may list the folder."""
    log.warning("%s", text)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def held_out(labels: np.ndarray, groups: list[str], share: float) -> np.ndarray:
    """Choose the images to hold out for testing. The choice is always the same.

    Of a group of n images, round(share * n) are held out, but at least 1 and at most n - 1.

    Args:
        labels: int [N], the group of each image.
        groups: the name of each group in error messages, e.g. "class cat".
        share: which share of each group to hold out.

    Returns:
        bool [N], True for a held-out image.

    Raises:
        ValueError: the share is not between 0 and 1, or a group has fewer than two images.
    """
    if not 0 < share < 1:
        raise ValueError(
            f"data.holdout={share}: there is no test folder, so it must lie between 0 and 1 (exclusive)"
        )
    held = np.zeros(len(labels), bool)
    for label, name in enumerate(groups):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise ValueError(
                f"{name} has {len(rows)} image: there is no test folder, so at least 2 are needed"
            )
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        chosen = sampler.order(0, label, len(rows))[:count]
        held[rows[chosen]] = True
    return held


def _only(rows: np.ndarray, files: list[str], labels: np.ndarray) -> tuple[list[str], np.ndarray]:
    return [files[i] for i in rows], labels[rows]


def _stored(root: Path, *names: str) -> Path | None:
    """Return the first of these sub-folders that exists."""
    return next((root / name for name in names if name and (root / name).is_dir()), None)


def _nearest(path: Path) -> str:
    """Make a hint for an error message: the folder with the closest name, or which parent exists."""
    parent = path.parent
    if not parent.is_dir():
        return f" (nor {parent})"
    folders = [name for name in os.listdir(parent) if (parent / name).is_dir()]
    near = difflib.get_close_matches(path.name, folders, n=1, cutoff=0.5)
    return f"; did you mean {parent / near[0]}?" if near else f"; {parent} exists"
