"""Encoded images into memory: a whole split decoded once at `image_size` (Pillow, threads; no TensorFlow)."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

log = logging.getLogger(__name__)

MEMORY_LIMIT = 8 * 2**30  # bytes of pixels (or of encoded records) held in memory


def decode(encoded: bytes, size: int, channels: int) -> np.ndarray:
    """The central square of an image at [size, size, channels], bicubic with antialiasing, uint8.

    Grey, palette, alpha (dropped), 16-bit and CMYK images all become RGB, or one grey channel (ITU-R 601 weights).

    Raises:
        OSError, ValueError, SyntaxError: the bytes are no image, or a truncated one.
    """
    from PIL import Image

    image = Image.open(io.BytesIO(encoded))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip instead of scale
        image = Image.fromarray((np.asarray(image, np.int64) >> 8).astype(np.uint8))
    image = image.convert("RGB")
    if channels == 1:
        image = image.convert("L")
    side = min(image.size)
    left, top = (image.width - side + 1) // 2, (image.height - side + 1) // 2
    if image.size != (size, size):
        image = image.crop((left, top, left + side, top + side)).resize(
            (size, size), Image.Resampling.BICUBIC
        )
    return np.asarray(image).reshape(size, size, channels)


def require_memory(wanted: int, what: str, fix: str) -> None:
    """Raises MemoryError when `wanted` bytes pass MEMORY_LIMIT."""
    if wanted > MEMORY_LIMIT:
        raise MemoryError(
            f"{what} would take {wanted / 2**30:.1f} GiB of memory, the limit is {MEMORY_LIMIT / 2**30:.0f} GiB: {fix}"
        )


def decode_all(
    read: Callable[[int], bytes],
    name_of: Callable[[int], str],
    n: int,
    *,
    size: int,
    channels: int,
    on_bad: str,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Decodes images 0..n-1.

    Args:
        read: i -> encoded bytes.
        name_of: i -> its name in messages.
        n: how many.
        size: side of the square.
        channels: 3 or 1.
        on_bad: "error" raises at the first unreadable image, "skip" leaves it out.

    Returns:
        uint8 [K, size, size, channels], the int64 [K] numbers of the readable images, and the names of the others.

    Raises:
        MemoryError: more than MEMORY_LIMIT bytes.
        ValueError: an unreadable image with on_bad="error".
    """
    require_memory(
        n * size * size * channels,
        f"{n} decoded images of {size}x{size}x{channels}",
        "set data.crop_on='host' (images are then decoded as they come), or a smaller data.image_size",
    )
    images = np.empty((n, size, size, channels), np.uint8)

    def one(i: int) -> str:
        try:
            images[i] = decode(read(i), size, channels)
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
            return str(error) or type(error).__name__
        return ""

    good, skipped = settle(threaded(one, n, os.cpu_count() or 1), name_of, on_bad)
    return (images if len(good) == n else images[good]), good, skipped


def threaded(problem: Callable[[int], str], n: int, threads: int) -> Iterator[tuple[int, str]]:
    """(i, problem(i)) for 0..n-1 in order, worked on in chunks by several threads."""
    chunks = [range(first, min(first + 64, n)) for first in range(0, n, 64)]
    with ThreadPoolExecutor(threads) as pool:
        for chunk, found in zip(chunks, pool.map(lambda c: [problem(i) for i in c], chunks), strict=True):
            yield from zip(chunk, found, strict=True)


def settle(
    problems: Iterable[tuple[int, str]], name_of: Callable[[int], str], on_bad: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Splits images into good ones (int64 numbers) and the names of the unreadable, or raises at the first of these.

    Args:
        problems: (number, what is wrong with it or "").
        name_of: number -> name.
        on_bad: "error" or "skip".

    Raises:
        ValueError: an unreadable image with on_bad="error", or another value of on_bad.
    """
    if on_bad not in ("error", "skip"):
        raise ValueError(f"data.on_bad_image={on_bad!r} is neither 'error' nor 'skip'")
    good, skipped = [], []
    for i, problem in problems:
        if not problem:
            good.append(i)
        elif on_bad == "error":
            raise ValueError(
                f"{name_of(i)} cannot be read as an image ({problem}): replace or delete it, or set "
                "data.on_bad_image='skip' to leave out such images"
            )
        else:
            skipped.append(name_of(i))
    if skipped:
        log.warning(
            "%d unreadable image%s left out: %s",
            len(skipped),
            "s" * (len(skipped) > 1),
            ", ".join(skipped[:20]),
        )
    return np.array(good, np.int64), tuple(skipped)


def problem_with(path: str) -> str:
    """What is wrong with an image file, "" when nothing shows; cheap, for a look at every file before training.

    Reads the first and last bytes. Only a file without the signature or the end marker of its format is decoded in full.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            file.seek(max(0, os.fstat(file.fileno()).st_size - 64))
            tail = file.read()
        whole = (head[:3] == b"\xff\xd8\xff" and b"\xff\xd9" in tail) or (
            head == b"\x89PNG\r\n\x1a\n" and b"IEND" in tail
        )
        if not whole:
            with open(path, "rb") as file:
                decode(file.read(), 8, 3)
    except Exception as error:  # as in decode_all
        return str(error) or type(error).__name__
    return ""
