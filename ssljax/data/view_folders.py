"""`views:PATH`: several views of every example, each in a folder of its own.

    PATH/image/a.jpg    PATH/depth/a.png    PATH/normal/a.png         one example
    PATH/image/b.jpg    PATH/depth/b.png    PATH/normal/b.png         another one

Files belong together if their paths below the folders of their views are the same but for the ending.
`data.view_folders` names the folders, and says how many channels are read:

    ("image:3", "depth:1", "normal:3")

The pixels of an example are stacked in this order, here to [H, W, 7], so that all views are cropped and
flipped alike. `model.split` says which channels each network sees. The views of an example have one size.

Training and test images are found as in `folder:PATH` (data.folder), with the folders of the views inside:

    PATH/train/VIEW/... and PATH/test/VIEW/...
    PATH/VIEW/...                       a share `data.holdout` is held out for testing

and VIEW/ has one sub-folder per class, or images without labels. An example that lacks a view is an error, or
is left out and named with `data.on_bad_image="skip"`.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from ssljax.data import damage, decode, folder, formats, pillow
from ssljax.data.source import SKIP, Source, digest

log = logging.getLogger(__name__)

USED = "used"  # completes "a.jpg cannot be ..."


def load(data: ConfigDict, path: str, split: str) -> Source:
    """Load one split. It is decoded into memory if `data.crop_on` is "device".

    Args:
        data: the `data` section of a config.
        path: PATH of `views:PATH`.
        split: "train" or "test".

    Raises:
        FileNotFoundError: a folder does not exist, or holds no images.
        ValueError: `data.view_folders` has fewer than two folders, files have no partner, the views of an
            example differ in size, a file is unreadable, or the classes are as `folder.load` refuses them.
    """
    root = Path(path).expanduser()
    train, test = folder.split_folders(data, root)
    here = test if split == "test" and test else train
    names, channels = named(data, here)
    leading, labels, classes = folder.list_split(data, root, split, view=names[0])
    examples, rows, alone = joined(here, names, leading, data.on_bad_image)
    labels = labels[rows]

    def read(i: int) -> bytes:
        return packed([formats.plain(damage.read(file), data.background) for file in examples[i]])

    def pixels(encoded: bytes) -> np.ndarray:
        return stacked(encoded, names, channels)

    def small(encoded: bytes, size: int, _: int) -> np.ndarray:
        return square(stacked(encoded, names, channels), size)

    def name_of(i: int) -> str:
        return examples[i][0]

    images = None
    if data.crop_on == "device":
        images, good, skipped = decode.decode_all(
            read,
            name_of,
            len(examples),
            size=data.image_size,
            channels=data.channels,
            on_bad=data.on_bad_image,
            what=USED,
            by=small,
        )
    else:
        look = decode.threaded(lambda i: problem_with(examples[i], names), len(examples), threads=16)
        good, skipped = decode.settle(look, name_of, data.on_bad_image, SKIP, USED)

    examples[:] = [examples[i] for i in good]  # in place, because read and name_of read this list
    labels = labels[good]
    sizes = np.array([sum(os.path.getsize(file) for file in files) for files in examples], np.int64)
    relative = "\n".join(os.path.relpath(file, root) for files in examples for file in files)
    above = f"{root}{os.sep}"
    return Source(
        name=data.source,
        split=split,
        labels=labels,
        index=np.arange(len(examples), dtype=np.int32),
        class_names=tuple(classes),
        checksum=digest(relative.encode(), sizes.tobytes(), labels.tobytes()),
        images=images,
        encoded=lambda ids: [read(i) for i in ids],
        name_of=name_of,
        skipped=alone + skipped,
        file_of=lambda i: (examples[i][0].removeprefix(above), int(sizes[i])),
        decode=pixels,
    )


def named(data: ConfigDict, here: Path) -> tuple[list[str], list[int]]:
    """The names and the numbers of channels in `data.view_folders`.

    Args:
        data: the `data` section of a config.
        here: the folder in which those of the views lie.

    Raises:
        ValueError: there are fewer than two, or one is named twice.
        FileNotFoundError: one of them does not exist.
    """
    stated = [text.rpartition(":") for text in data.view_folders]
    names = [name for name, _, _ in stated]
    there = folder.class_folders(here)
    if len(names) < 2 or len(set(names)) < len(names):
        what = ",".join(data.view_folders) or "empty"
        example = ",".join(f"{name}:3" for name in there[:9]) or "image:3,depth:1"
        raise ValueError(
            f"data.view_folders is {what}, and at least two different folders of views are needed. {here} "
            f"has {', '.join(there[:9]) or 'none'}: set e.g. --config.data.view_folders={example}, with the "
            "number of channels of each (3: colour; 2: red and green; 1: grey)"
        )
    missing = [name for name in names if name not in there]
    if missing:
        raise FileNotFoundError(
            f"data.view_folders names {', '.join(missing)}, and {here} has no such folder (its folders: "
            f"{', '.join(there[:9]) or 'none'})"
        )
    return names, [int(count) for _, _, count in stated]


def joined(
    here: Path, names: Sequence[str], leading: Sequence[str], on_bad: str
) -> tuple[list[tuple[str, ...]], np.ndarray, tuple[str, ...]]:
    """Find the files that belong together.

    Args:
        here: the folder in which those of the views lie.
        names: the folders of the views.
        leading: files of the first view.
        on_bad: "error" or "skip", what to do where a view lacks a file.

    Returns:
        The files of each example that has all views; their positions in `leading`; and the files of `leading`
        that lack a partner.

    Raises:
        ValueError: a view has two files of one name, no example has all views, or some lack one and on_bad is
            "error".
    """
    views = [_by_stem(here / name) for name in names]
    complete = set(views[0]).intersection(*views)
    lacking = sorted(set(views[0]).union(*views) - complete)
    if not complete:
        firsts = ", ".join(os.path.relpath(min(view.values()), here) for view in views)
        raise ValueError(
            f"no file of {here / names[0]} has a partner in every view: the names must be the same but for "
            f"the ending, and the first ones are {firsts}"
        )
    if lacking:
        found, gone = _sides(here, names, views, lacking[0])
        told = f"{len(lacking)} of {len(lacking) + len(complete)} examples of {here} lack a view"
        first = f"{found} has no partner in {gone}"
        if on_bad == "error":
            raise ValueError(f"{told} (first: {first}): add the files or delete the others, or {SKIP}")
        log.warning("%s and are left out: %s", told, ", ".join(lacking[:20]))
    stems = [_stem(file, here / names[0]) for file in leading]
    rows = np.array([i for i, stem in enumerate(stems) if stem in complete], np.int64)
    examples = [tuple(view[stems[i]] for view in views) for i in rows]
    alone = tuple(file for file, stem in zip(leading, stems, strict=True) if stem not in complete)
    return examples, rows, alone


def _by_stem(view: Path) -> dict[str, str]:
    """The images below the folder of a view, by their paths below it without the ending."""
    files, _, _ = folder.list_loose(view)
    found: dict[str, str] = {}
    for file in files:
        other = found.setdefault(_stem(file, view), file)
        if other != file:
            raise ValueError(f"{other} and {file} are the same view of one example: delete or rename one")
    return found


def _stem(file: str, view: Path) -> str:
    return os.path.splitext(os.path.relpath(file, view))[0]


def _sides(here: Path, names: Sequence[str], views: Sequence[dict[str, str]], stem: str) -> tuple[str, str]:
    """A file of an incomplete example, and a view that it lacks."""
    found = next(view[stem] for view in views if stem in view)
    gone = next(name for name, view in zip(names, views, strict=True) if stem not in view)
    return found, str(here / gone)


def problem_with(files: Sequence[str], names: Sequence[str]) -> str:
    """Check the files of an example cheaply and return what is wrong with one, "" if nothing is."""
    from PIL import Image

    for file, name in zip(files, names, strict=True):
        problem = decode.problem_with(file)
        if problem:
            return f"view {name}: {problem}"
    sizes = []
    for file in files:
        with Image.open(file, formats=damage.FORMATS + formats.CONVERTED) as image:
            turned = image.getexif().get(formats.ORIENTATION, 1) >= 5
            sizes.append(image.size[::-1] if turned else image.size)
    return _differ(sizes, names)


def _differ(sizes: Sequence[tuple[int, int]], names: Sequence[str]) -> str:
    """Say which view has another width or height than the first one; "" if none has."""
    for (width, height), name in zip(sizes, names, strict=True):
        if (width, height) != sizes[0]:
            w, h = sizes[0]
            return f"view {name} has {width}x{height} pixels, view {names[0]} {w}x{h}; they must be alike"
    return ""


def packed(parts: Sequence[bytes]) -> bytes:
    """Several files as one string of bytes: how long each is, then all of them."""
    return struct.pack(f">{len(parts)}Q", *(len(part) for part in parts)) + b"".join(parts)


def stacked(encoded: bytes, names: Sequence[str], channels: Sequence[int]) -> np.ndarray:
    """Decode what `packed` returns.

    Args:
        encoded: image files.
        names: the views, for messages.
        channels: how many channels are taken from each.

    Returns:
        uint8 [H, W, sum(channels)].

    Raises:
        ValueError: a file is unreadable, or their sizes differ.
    """
    lengths = struct.unpack_from(f">{len(channels)}Q", encoded)
    ends = np.cumsum([8 * len(channels), *lengths])
    images = []
    for i, (name, count) in enumerate(zip(names, channels, strict=True)):
        try:
            images.append(decode.opened(encoded[ends[i] : ends[i + 1]], 1 if count == 1 else 3))
        except Exception as error:  # as in decode.decode_all
            if isinstance(error, MemoryError):
                raise
            raise ValueError(f"view {name}: {error}") from error
    problem = _differ([image.size for image in images], names)
    if problem:
        raise ValueError(problem)
    width, height = images[0].size
    planes = [np.asarray(image).reshape(height, width, -1) for image in images]
    return np.concatenate([p[..., :count] for p, count in zip(planes, channels, strict=True)], axis=2)


def square(image: np.ndarray, size: int) -> np.ndarray:
    """The central square of uint8 [H, W, C] at `size` pixels, resized as in `decode.decode`."""
    height, width, _ = image.shape
    if (height, width) == (size, size):
        return image
    side = min(height, width)
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    return pillow.resize(image[top : top + side, left : left + side], size, size, "bicubic")


def pictures(images: np.ndarray, view_folders: Sequence[str]) -> list[np.ndarray]:
    """The views of images as colour pictures, for figures.

    Args:
        images: [..., C], stacked.
        view_folders: `data.view_folders`.

    Returns:
        An array [..., 3] for each view. Of two channels the third, blue, is zero.
    """
    found = []
    first = 0
    for text in view_folders:
        count = int(text.rpartition(":")[2])
        view = images[..., first : first + count]
        first += count
        if count == 2:
            view = np.concatenate([view, np.zeros_like(view[..., :1])], axis=-1)
        found.append(np.repeat(view, 3, axis=-1) if count == 1 else view)
    return found
