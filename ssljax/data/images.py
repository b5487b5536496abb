"""Images that belong to no data set: files, Pillow images and arrays, for a trained network to look at."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from ssljax.data import damage, decode, formats
from ssljax.data.source import Source, digest

Picture = str | os.PathLike | Image.Image | np.ndarray
"""A path to an image file, a Pillow image, or an array uint8 [H, W] or [H, W, C] with C = 1, 3 or 4."""

SKIP = "use `encode_readable` (in the shell: --on_bad_image skip)"
SCALE = "scale its values to 0..255 and give np.uint8, e.g. np.uint8(np.rint(255 * image)) if they end at 1"
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # the modes of Pillow that a PNG file can hold


def source(pictures: Sequence[Picture], data: ConfigDict) -> Source:
    """A source without labels, which the evaluation path crops and resizes as it does a test split.

    Args:
        pictures: one or more, of any size each.
        data: the `data` section of a config; reads `crop_on`, `image_size`, `channels` and `on_bad_image`.

    Returns:
        the pictures in their order; `index` is the position of each in `pictures`. With
        `on_bad_image="skip"` files that cannot be read are left out and named in `skipped`.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: the network sees several views of an image, there are no pictures, an array has another
            shape or dtype, or a file cannot be read.
    """
    if data.get("view_folders"):
        raise ValueError(
            f"this network sees several views of an image (data.view_folders={','.join(data.view_folders)}), "
            "and these are single pictures: evaluate it on a folder of views, --config.data.source=views:PATH"
        )
    if not len(pictures):
        raise ValueError("there are no images to look at: give at least one path, Pillow image or array")
    for i in range(len(pictures)):
        _check(pictures[i], i)

    def name_of(i: int) -> str:
        picture = pictures[i]
        return os.fspath(picture) if isinstance(picture, str | os.PathLike) else f"image {i}"

    def read(i: int) -> bytes:
        return formats.plain(_file(pictures[i]), data.background)

    images, good, skipped = _readable(pictures, data, read, name_of)
    return Source(
        name="images",
        split="test",
        labels=np.full(len(good), -1, np.int32),
        index=good.astype(np.int32),
        class_names=(),
        checksum=digest("\n".join(name_of(int(i)) for i in good).encode()),
        images=images,
        encoded=lambda ids: [read(int(i)) for i in ids],
        name_of=name_of,
        skipped=skipped,
        how_to_skip=SKIP,
    )


def _readable(
    pictures: Sequence[Picture],
    data: ConfigDict,
    read: Callable[[int], bytes],
    name_of: Callable[[int], str],
) -> tuple[np.ndarray | None, np.ndarray, tuple[str, ...]]:
    """Pixels, if they are held in memory; positions of the readable pictures; names of the others."""
    if all(_is_stored(picture, data) for picture in pictures):
        shape = (len(pictures), data.image_size, data.image_size, data.channels)
        images = np.stack([np.asarray(picture) for picture in pictures]).reshape(shape)
        return images, np.arange(len(pictures)), ()

    if data.crop_on == "device":
        return decode.decode_all(
            read,
            name_of,
            len(pictures),
            size=data.image_size,
            channels=data.channels,
            on_bad=data.on_bad_image,
            how_to_skip=SKIP,
        )

    def problem_with(i: int) -> str:
        picture = pictures[i]
        return decode.problem_with(os.fspath(picture)) if isinstance(picture, str | os.PathLike) else ""

    problems = decode.threaded(problem_with, len(pictures), threads=16)
    good, skipped = decode.settle(problems, name_of, data.on_bad_image, SKIP)
    return None, good, skipped


def _is_stored(picture: Picture, data: ConfigDict) -> bool:
    """Whether this is an array that a data set in memory would hold as it is."""
    if data.crop_on != "device" or not isinstance(picture, np.ndarray):
        return False
    size, channels = data.image_size, data.channels
    return picture.shape == (size, size, channels) or (channels == 1 and picture.shape == (size, size))


def _check(picture: Picture, i: int) -> None:
    """Refuses what is no picture."""
    if isinstance(picture, Image.Image):
        if values := damage.unscaled(picture):
            raise ValueError(f"image {i} is a Pillow image of {values}, whose range is not known: {SCALE}")
        return
    if isinstance(picture, str | os.PathLike):
        if not os.path.lexists(picture):
            raise FileNotFoundError(f"image {i}: there is no file {os.fspath(picture)}")
        return
    shape = np.shape(picture)
    right = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or not right:
        kind = getattr(picture, "dtype", type(picture).__name__)
        values = ""
        if isinstance(picture, np.ndarray) and picture.size and picture.dtype.kind in "fiu" and right:
            values = f" with values from {picture.min():.4g} to {picture.max():.4g}"
        raise ValueError(
            f"image {i} is {kind} of shape {list(shape)}{values}: expected a path, a Pillow image, or an "
            "array uint8 [H, W] or [H, W, C] with 1, 3 or 4 channels and values from 0 to 255"
            + (f"; {SCALE}" if values else "")
        )


def _file(picture: Picture) -> bytes:
    """The bytes of a file with this picture: its own, or those of a PNG that holds the same pixels."""
    if isinstance(picture, str | os.PathLike):
        return damage.read(os.fspath(picture))
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture[:, :, 0] if picture.shape[2:] == (1,) else picture)
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I", "I;16B"):  # Pillow would clip 16 bits, not scale them
        picture = formats.grey_of_16_bits(picture)
    if picture.mode not in PNG_MODES:
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()
