"""Objects and masks over images: from the records of a data set to the fields of a `Source`.

Of N images with at most G objects each, `Source.targets` has

    size        int32 [N, 2], height and width of the image
    boxes       float32 [N, G, 4], x1, y1, x2, y2 in pixels of the image; its left upper corner is (0, 0)
    classes     int32 [N, G], positions in `class_names`; -1 where there are fewer than G objects
    difficult   bool [N, G], objects that count in no metric
    area        float32 [N, G], of the object in pixels, where the data know it; else of the box

Of images with masks there is `Source.mask_of`, which reads the mask of an id when it is called.
"""

from __future__ import annotations

import dataclasses
import difflib
import io
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ssljax.data import damage, decode, folder
from ssljax.data.source import Source, digest

log = logging.getLogger(__name__)

IGNORED = 255  # a pixel without a class
BACKGROUND = "background"
SLACK = 1.0  # pixels by which a box may exceed its image; it is cut where it is used
FIX = "correct it, or set --config.data.on_bad_image=skip to leave such objects out"


class Object(NamedTuple):
    """One object of an image.

    Attributes:
        name: its class.
        box: x1, y1, x2, y2 in pixels of the image.
        difficult: whether it counts in no metric.
        area: in pixels.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    area: float


class Picture(NamedTuple):
    """One image and what lies over it.

    Attributes:
        file: the image.
        record: the file that describes it, for messages.
        size: height and width; None if only the image knows.
        objects: what is in it.
        mask: the file of its mask; "" if there is none.
    """

    file: str
    record: str
    size: tuple[int, int] | None = None
    objects: tuple[Object, ...] = ()
    mask: str = ""


def first(stored: str) -> tuple[str, int | None]:
    """Split the name of a stored split: "train[:40]", its first 40 images, is ("train", 40)."""
    found = re.fullmatch(r"(.*)\[:(\d+)\]", stored)
    return (found[1], int(found[2])) if found else (stored, None)


def chosen(data: ConfigDict, known: Sequence[str], where: str) -> tuple[str, ...]:
    """The classes to use: `data.categories`, or all that are known.

    Raises:
        ValueError: one of them is not known, or occurs twice.
    """
    wanted = tuple(data.categories) or tuple(known)
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"data.categories: {where} has no class {name!r}{guess} (it has {', '.join(known)})"
            )
    if len(set(wanted)) < len(wanted):
        raise ValueError(f"data.categories={wanted} names a class twice: name each once")
    return wanted


def with_boxes(
    data: ConfigDict,
    split: str,
    root: Path,
    pictures: Sequence[Picture],
    classes: Sequence[str],
    *,
    train_on_difficult: bool,
    most: int,
) -> Source:
    """The source of images with boxes.

    For training, images without an object are left out.

    Args:
        data: the `data` section of a config.
        split: "train" or "test".
        root: the folder of the data.
        pictures: the images. Objects of other classes than `classes` are left out.
        classes: the names of the classes to use, in their order.
        train_on_difficult: whether difficult objects are for training too.
        most: how many objects an image may have.

    Raises:
        ValueError: a box is empty or outside of its image (with data.on_bad_image="error"), an image has too
            many objects, or none has any; the message names the file.
    """
    training = split == "train"
    kept: list[Picture] = []
    for picture in pictures:
        wanted = [one for one in picture.objects if one.name in classes]
        if training and not train_on_difficult:
            wanted = [one for one in wanted if not one.difficult]
        wanted = [one for one in wanted if _sound(one, picture, data.on_bad_image)]
        if len(wanted) > most:
            raise ValueError(
                f"{picture.record}: {picture.file} has {len(wanted)} objects, and {most} are the most that "
                "are allowed: this is not the data set that it should be"
            )
        if wanted or not training:
            kept.append(picture._replace(objects=tuple(wanted)))
    _require(kept, data, split, "an object of the classes in use")
    source, kept = _of_files(data, split, root, kept, classes)
    targets = packed([picture.objects for picture in kept], classes)
    targets["size"] = np.array([picture.size for picture in kept], np.int32)
    return _summed(dataclasses.replace(source, targets=targets), *targets.values())


def with_masks(
    data: ConfigDict,
    split: str,
    root: Path,
    pictures: Sequence[Picture],
    classes: Sequence[str],
    meaning: np.ndarray,
) -> Source:
    """The source of images with masks. Class 0 is the background.

    Args:
        data, split, root, pictures: as for `with_boxes`.
        classes: the names of the classes to use, without the background; they are 1, 2, ...
        meaning: int [256], the class of every stored value, IGNORED, or -1 for a value that must not occur.

    Raises:
        FileNotFoundError: there is no mask for an image.
    """
    _require(pictures, data, split, "a mask")
    for picture in pictures:
        if not os.path.isfile(picture.mask):
            raise FileNotFoundError(
                f"{picture.file} has no mask: there is no {picture.mask}. Put it there, or take the image "
                f"out of {picture.record}"
            )
    source, kept = _of_files(data, split, root, list(pictures), (BACKGROUND, *classes))
    files = [picture.mask for picture in kept]
    sizes = np.array([os.path.getsize(file) for file in files], np.int64)
    source = dataclasses.replace(source, mask_of=lambda i: read_mask(files[i], meaning))
    return _summed(source, sizes, meaning)


def packed(objects: Sequence[Sequence[Object]], classes: Sequence[str]) -> dict[str, np.ndarray]:
    """The objects of N images as arrays: `boxes`, `classes`, `difficult` and `area` of `Source.targets`."""
    shape = (len(objects), max(1, *(len(each) for each in objects)) if objects else 1)
    number = {name: i for i, name in enumerate(classes)}
    boxes = np.zeros((*shape, 4), np.float32)
    labels = np.full(shape, -1, np.int32)
    difficult = np.zeros(shape, bool)
    area = np.zeros(shape, np.float32)
    for i, each in enumerate(objects):
        for g, one in enumerate(each):
            boxes[i, g] = one.box
            labels[i, g] = number[one.name]
            difficult[i, g] = one.difficult
            area[i, g] = one.area
    return {"boxes": boxes, "classes": labels, "difficult": difficult, "area": area}


def read_mask(file: str, meaning: np.ndarray) -> np.ndarray:
    """Read a mask.

    Args:
        file: a PNG of one channel, or with a palette, whose colours mean nothing.
        meaning: as for `with_masks`.

    Returns:
        uint8 [H, W], the class of every pixel.

    Raises:
        ValueError: it cannot be read, is a picture in colours, or has a value that must not occur.
    """
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(damage.read(file)), formats=("PNG",))
        picture.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"the mask {file} cannot be read as a PNG ({error}): unpack it again") from error
    if picture.mode not in ("P", "L", "1"):
        raise ValueError(
            f"the mask {file} is a picture in colours ({picture.mode}), and a mask has a class per pixel: "
            "store it with a palette (mode P) or grey (mode L), as the data set distributes it"
        )
    stored = np.asarray(picture).astype(np.uint8)
    mask = meaning[stored]
    if mask.min() < 0:
        value = int(stored[mask < 0][0])
        raise ValueError(
            f"the mask {file} has the value {value}, which is no class: its pixels must be numbers of "
            f"classes, or {IGNORED} for none"
        )
    return mask.astype(np.uint8)


def _sound(one: Object, picture: Picture, on_bad: str) -> bool:
    """Whether a box is one. If it is not, say so, or raise a ValueError."""
    assert picture.size is not None, "boxes come with the size of their image"
    height, width = picture.size
    x1, y1, x2, y2 = one.box
    problem = ""
    if not np.isfinite(one.box).all() or x2 <= x1 or y2 <= y1:
        problem = "has no area"
    elif min(x1, y1) < -SLACK or x2 > width + SLACK or y2 > height + SLACK:
        problem = f"lies outside of the image, which is {width} wide and {height} high"
    if not problem:
        return True
    box = ", ".join(f"{edge:g}" for edge in one.box)
    said = f"{picture.record}: the box x1, y1, x2, y2 = {box} ({one.name}) of {picture.file} {problem}"
    if on_bad != "skip":
        raise ValueError(f"{said}: {FIX}")
    log.warning("%s: left out", said)
    return False


def _require(pictures: Sequence[Picture], data: ConfigDict, split: str, what: str) -> None:
    if not pictures:
        raise ValueError(
            f"no {split} image of {data.source} has {what}: check "
            f"data.{split}_split={data[f'{split}_split']!r} and data.categories"
        )


def _of_files(
    data: ConfigDict, split: str, root: Path, pictures: list[Picture], classes: Sequence[str]
) -> tuple[Source, list[Picture]]:
    """The source without targets, and the pictures that can be read."""
    files = [picture.file for picture in pictures]
    of_file = dict(zip(files, pictures, strict=True))
    skipped: tuple[str, ...] = ()
    if (
        data.on_bad_image == "skip"
    ):  # another image cannot take the place of one that turns out to be bad later
        found = decode.threaded(lambda i: _problem(files[i]), len(files), threads=os.cpu_count() or 1)
        good, skipped = decode.settle(found, files.__getitem__, "skip")
        files = [files[i] for i in good]
    none = np.full(len(files), -1, np.int32)
    source = folder.of_files(data, data.source, split, root, files, none, list(classes))
    source = dataclasses.replace(source, skipped=skipped + source.skipped)
    return source, [of_file[file] for file in files]  # `of_files` takes out what cannot be read


def _problem(file: str) -> str:
    """What is wrong with an image, which is decoded whole; "" if nothing is."""
    try:
        decode.opened(damage.read(file), 3)
    except Exception as error:  # as in `decode.decode_all`
        return decode.reason(error, file)
    return ""


def _summed(source: Source, *arrays: np.ndarray) -> Source:
    """The checksum of the source covers these arrays and the names of the classes too."""
    parts = (source.checksum.encode(), "\n".join(source.class_names).encode())
    return dataclasses.replace(source, checksum=digest(*parts, *(array.tobytes() for array in arrays)))
