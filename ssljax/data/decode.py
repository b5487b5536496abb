"""Decode a whole split into memory once, at `image_size`, with Pillow in threads and without TensorFlow."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from ssljax.data import damage, formats
from ssljax.data.source import SKIP

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

READ = "read as an image"
MEMORY_LIMIT = 8 * 2**30  # bytes of pixels, or of encoded records, held in memory
SMALL = 4096  # bytes of an encoded image that is decoded faster than threads hand Python's lock over


def decode(encoded: bytes, size: int, channels: int) -> np.ndarray:
    """Decode the central square of an image, resized by bicubic interpolation with antialiasing.

    Grey, palette, alpha (dropped), 16-bit and CMYK images all become RGB, or one grey channel with ITU-R 601
    weights.

    Returns:
        uint8 [size, size, channels].

    Raises:
        OSError, ValueError, SyntaxError: the bytes are not an image, or one that is truncated or too large.
    """
    from PIL import Image

    image = opened(encoded, channels)
    if image.size != (size, size):
        side = min(image.size)
        left = (image.width - side + 1) // 2
        top = (image.height - side + 1) // 2
        square = image.crop((left, top, left + side, top + side))
        image = square.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels)


def opened(encoded: bytes, channels: int) -> Image.Image:
    """Decode an image as `decode` does, at its own size: an image of Pillow in RGB or grey."""
    from PIL import Image, UnidentifiedImageError

    file = io.BytesIO(encoded)
    kind = damage.check_header(file)
    try:
        image: Image.Image = Image.open(file, formats=damage.FORMATS)
    except UnidentifiedImageError as error:  # its text names an object in memory
        raise ValueError(f"its beginning is damaged, no {kind} can be read from it") from error
    image.load()
    if kind == "JPEG":
        last = image.getpixel((image.width - 1, image.height - 1))
        if np.isin(np.array(last), damage.GREY).all() and damage.ends_too_early(encoded):
            raise ValueError(damage.TOO_EARLY)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode.startswith("I"):
        image = formats.grey_of_16_bits(image)
    image = image.convert("RGB")
    return image.convert("L") if channels == 1 else image


def require_memory(wanted: int, what: str, fix: str) -> None:
    """Check that `wanted` bytes fit into MEMORY_LIMIT.

    Args:
        wanted: number of bytes.
        what: what needs them, as the subject of the error message.
        fix: what the user can do about it.

    Raises:
        MemoryError: they do not fit.
    """
    if wanted > MEMORY_LIMIT:
        raise MemoryError(
            f"{what} would take {wanted / 2**30:.1f} GiB of memory. The limit is "
            f"{MEMORY_LIMIT / 2**30:.0f} GiB: {fix}"
        )


def decode_all(
    read: Callable[[int], bytes],
    name_of: Callable[[int], str],
    n: int,
    *,
    size: int,
    channels: int,
    on_bad: str,
    how_to_skip: str = SKIP,
    what: str = READ,
    by: Callable[[bytes, int, int], np.ndarray] = decode,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Decode images 0..n-1.

    Args:
        read: returns the encoded bytes of image i.
        name_of: returns the name of image i, for messages.
        n: number of images.
        size: side of the square.
        channels: 3 or 1.
        on_bad: "error" raises at the first unreadable image, "skip" leaves such images out.
        how_to_skip: how to get "skip", for the error.
        what: as for `settle`.
        by: what decodes; its arguments and result are those of `decode`.

    Returns:
        The pixels, uint8 [K, size, size, channels]; the numbers of the readable images, int64 [K]; and the
        names of the unreadable ones.

    Raises:
        MemoryError: the pixels take more than MEMORY_LIMIT bytes.
        ValueError: an image is unreadable and on_bad="error".
    """
    require_memory(
        n * size * size * channels,
        f"{n} decoded images of {size}x{size}x{channels}",
        "set data.crop_on='host' (images are then decoded one by one during training), or a smaller "
        "data.image_size",
    )
    images = np.empty((n, size, size, channels), np.uint8)

    def one(i: int) -> str:
        try:
            images[i] = by(read(i), size, channels)
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
            return reason(error, name_of(i))
        return ""

    good, skipped = settle(threaded(one, n, threads_for(read, n)), name_of, on_bad, how_to_skip, what)
    if skipped:
        images = images[good]
    return images, good, skipped


def threads_for(read: Callable[[int], bytes], n: int) -> int:
    """How many threads decode n images, by the size of the middle one: one per core, or two for small images.

    50,000 JPEG files of 0.9 KB took 11.4 s with two threads and 16.8 s with sixteen, on two busy cores.
    """
    cores = os.cpu_count() or 1
    try:
        small = n > 0 and len(read(n // 2)) < SMALL
    except Exception:  # as in decode_all, which names the file when its turn comes
        small = False
    return min(cores, 2) if small else cores


def threaded(problem: Callable[[int], str], n: int, threads: int) -> Iterator[tuple[int, str]]:
    """Yield (i, problem(i)) for i in 0..n-1 in order. Several threads work on chunks of images."""
    chunks = [range(first, min(first + 64, n)) for first in range(0, n, 64)]

    def problems_of(chunk: range) -> list[str]:
        return [problem(i) for i in chunk]

    with ThreadPoolExecutor(threads) as pool:
        for chunk, found in zip(chunks, pool.map(problems_of, chunks), strict=True):
            yield from zip(chunk, found, strict=True)


def settle(
    problems: Iterable[tuple[int, str]],
    name_of: Callable[[int], str],
    on_bad: str,
    how_to_skip: str = SKIP,
    what: str = READ,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Separate the readable images from the unreadable ones, or raise at the first unreadable one.

    Args:
        problems: pairs of an image's number and what is wrong with it; "" if nothing is.
        name_of: returns the name of image i, for messages.
        on_bad: "error" or "skip".
        how_to_skip: how to get "skip", for the error.
        what: what an image with a problem cannot be, for the error.

    Returns:
        The numbers of the readable images, int64 [K], and the names of the unreadable ones.

    Raises:
        ValueError: an image is unreadable and on_bad="error", or on_bad has another value.
    """
    if on_bad not in ("error", "skip"):
        raise ValueError(f"data.on_bad_image={on_bad!r} is unknown: use 'error' or 'skip'")
    good: list[int] = []
    skipped: list[str] = []
    for i, problem in problems:
        if not problem:
            good.append(i)
        elif on_bad == "error":
            raise ValueError(
                f"{name_of(i)} cannot be {what} ({problem}): replace or delete it, or "
                f"{how_to_skip} to leave such images out"
            )
        else:
            skipped.append(name_of(i))
    if skipped:
        plural = "s" if len(skipped) > 1 else ""
        log.warning("%d unreadable image%s left out: %s", len(skipped), plural, ", ".join(skipped[:20]))
    return np.array(good, np.int64), tuple(skipped)


def reason(error: Exception, name: str) -> str:
    """What is wrong with an image, given the error of reading or decoding it.

    Raises:
        ValueError: the disk or the network failed, which says nothing about the image.
        MemoryError: so does this.
    """
    if isinstance(error, MemoryError):
        raise error
    if not isinstance(error, OSError) or error.errno is None:  # Pillow's own have no number
        return str(error) or type(error).__name__
    found = damage.lasting(name, error)
    if not found:
        raise ValueError(
            f"{name} could not be read ({error.strerror}). This is a failure of the disk or the network, not "
            "an unreadable image, so it is not left out: start the same command again"
        ) from error
    return found


def problem_with(path: str) -> str:
    """Check an image file cheaply and return what is wrong with it, "" if nothing is.

    This is cheap enough to check every file before training: of a JPEG or PNG only the header and the last
    bytes are read. A file without the end marker of its format is decoded in full, and so are other formats.

    Raises:
        ValueError: the disk or the network failed.
    """
    try:
        size = damage.require_file(path)
        with open(path, "rb") as file:
            kind = formats.check(file)
            file.seek(max(0, size - 64))
            tail = file.read()
            whole = (kind == "JPEG" and b"\xff\xd9" in tail) or (kind == "PNG" and b"IEND" in tail)
            if not whole:
                file.seek(0)
                decode(formats.plain(file.read(), "white"), 8, 3)
    except Exception as error:  # as in decode_all
        return reason(error, path)
    return ""
