"""Images that are in both splits, so that accuracy on the held-out ones says too much."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Iterable, Sequence

from ssljax.data.source import Source

MOST_FILES = 200_000  # of both splits; larger folders are not compared
READ = 2**20  # bytes of a file that are compared, from each end


def between(train: Source, test: Source) -> list[tuple[str, str]]:
    """Held-out images that are also training images: the same file, a copy of it, or the same pixels.

    Images in memory are compared as they are there. Of files, those of equal size are read, and links are
    followed. Records, and folders of more than MOST_FILES images, are not compared.

    Returns:
        The names of a held-out image and of the training image that equals it, in the order of `test`.
    """
    pairs: Iterable[tuple[int, int | None]]
    if train.images is not None and test.images is not None:
        pixels = [[_short(image.tobytes()) for image in split] for split in (train.images, test.images)]
        known = _first(pixels[0])
        pairs = [(i, known.get(content)) for i, content in enumerate(pixels[1])]
    elif train.file_of is not None and test.file_of is not None and len(train) + len(test) <= MOST_FILES:
        pairs = _equal_files(train, test)
    else:
        return []
    return [(test.describe(i), train.describe(j)) for i, j in pairs if j is not None]


def _equal_files(train: Source, test: Source) -> list[tuple[int, int | None]]:
    """(held-out position, position of the training image with the same content or None)."""
    sizes = [
        [split.file_of(int(i))[1] for i in split.index] if split.file_of is not None else []
        for split in (train, test)
    ]
    both = set(sizes[0]) & set(sizes[1])
    contents = [
        [(size, _content(split.describe(i)) if size in both else b"") for i, size in enumerate(own)]
        for split, own in zip((train, test), sizes, strict=True)
    ]
    known = _first(contents[0])
    return [(i, known.get(content)) for i, content in enumerate(contents[1])]


def _first(values: Sequence[Hashable]) -> dict[Hashable, int]:
    """The first position of every value."""
    found: dict[Hashable, int] = {}
    for i, value in enumerate(values):
        found.setdefault(value, i)
    return found


def _content(file: str) -> bytes:
    """A digest of the beginning and the end of a file; of the whole, up to 2 MiB."""
    with open(file, "rb") as opened:
        first = opened.read(READ)
        opened.seek(max(os.fstat(opened.fileno()).st_size - READ, 0))
        return _short(first + opened.read(READ))


def _short(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
