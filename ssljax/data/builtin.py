"""`digits` and `fashion_mnist`: small data sets that are held in memory.

digits          scikit-learn's 8x8 digits: 1,500 train, 297 test
fashion_mnist   Debian's `dataset-fashion-mnist`, the same four files in data.data_dir, or a prepared TFDS copy
"""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from ssljax.data import records
from ssljax.data.source import Source, digest

FASHION_MNIST_DIR = "/usr/share/datasets/fashion-mnist"  # where Debian's package puts the four IDX files
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def digits(data: ConfigDict, split: str) -> Source:
    """scikit-learn's digits in their order: 1,500 to train on, 297 to test on. Grey levels 0..16 become 0..255."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    rows = slice(0, 1500) if split == "train" else slice(1500, None)
    images = np.rint(raw.images[rows, :, :, None] * (255 / 16)).astype(np.uint8)
    return in_memory(data, split, images, raw.target[rows], [str(i) for i in range(10)])


def fashion_mnist(data: ConfigDict, split: str) -> Source:
    """Fashion-MNIST from gzip IDX files in `data.data_dir` (default: where Debian puts them), or a prepared TFDS copy."""
    folder = Path(data.data_dir or FASHION_MNIST_DIR)
    stem = "train" if split == "train" else "t10k"
    paths = [folder / f"{stem}-images-idx3-ubyte.gz", folder / f"{stem}-labels-idx1-ubyte.gz"]
    if all(p.is_file() for p in paths):
        images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
        if len(images) != len(labels):
            raise ValueError(
                f"{paths[0]} holds {len(images)} images, {paths[1].name} {len(labels)} labels: they do not belong together"
            )
        return in_memory(data, split, images[..., None], labels, FASHION_MNIST_CLASSES)
    try:
        return records.load(data, "fashion_mnist", split, decoded=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"Fashion-MNIST: no {paths[0].name} in {folder} and no prepared TFDS copy. Either `apt-get install dataset-fashion-mnist`, or "
            "name a folder with the four gzip IDX files as data.data_dir, or run `ssljax prepare fashion_mnist`"
        ) from error


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """A gzip IDX file of unsigned bytes.

    The format: bytes 0, 0, type (8 = uint8), number of dimensions; each dimension as a big-endian uint32; the data; end of file.

    Raises:
        ValueError: wrong magic number, or fewer or more bytes than the header says.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error}): copy it again") from error
    header = 4 + 4 * ndim
    if content[:4] != bytes((0, 0, 8, ndim)) or len(content) < header:
        raise ValueError(
            f"{path} starts with {content[:4].hex()}, not with 000008{ndim:02x} (IDX, {ndim}-d bytes): wrong file?"
        )
    shape = struct.unpack(f">{ndim}I", content[4:header])
    promised, found = math.prod(shape), len(content) - header
    if found != promised:
        raise ValueError(f"{path} promises {shape} = {promised} bytes, but {found} follow: copy it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def in_memory(
    data: ConfigDict, split: str, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> Source:
    """A source of stored pixels uint8 [N, H, W, 1], resized (bilinear) to `image_size` and repeated to `channels`."""

    def no_bytes(ids: np.ndarray) -> list[bytes]:
        raise ValueError(f"{data.source} is held in memory: read `images`, not encoded bytes")

    labels = labels.astype(np.int32)
    name = data.source
    return Source(
        name=name,
        split=split,
        labels=labels,
        index=np.arange(len(labels), dtype=np.int32),
        class_names=tuple(class_names),
        checksum=digest(labels.tobytes(), images.tobytes()),
        images=_fit(images, data.image_size, data.channels),
        encoded=no_bytes,
        name_of=lambda i: f"image {i} of {name}, {split}",
    )


def _fit(images: np.ndarray, size: int, channels: int) -> np.ndarray:
    from PIL import Image

    if images.shape[1:3] != (size, size):
        bilinear = Image.Resampling.BILINEAR
        images = np.stack(
            [np.asarray(Image.fromarray(x[..., 0]).resize((size, size), bilinear)) for x in images]
        )[..., None]
    return np.ascontiguousarray(np.broadcast_to(images, (*images.shape[:3], channels)))
