"""`digits` and `fashion_mnist`: small data sets that are held in memory.

digits          scikit-learn's 8x8 digits: 1,500 train, 297 test
fashion_mnist   the four files of Debian's `dataset-fashion-mnist`, or the same four in data.data_dir, or a
                prepared TFDS copy
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
import math
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from ssljax.data import records
from ssljax.data.decode import require_memory
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
    """Load scikit-learn's digits in their stored order: 1,500 to train on, 297 to test on.

    Grey levels 0..16 become 0..255.
    """
    table = _digits()
    rows = table[:1500] if split == "train" else table[1500:]
    images = np.rint(rows[:, :64].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    return in_memory(data, split, images, rows[:, 64], [str(i) for i in range(10)])


@functools.cache
def _digits() -> np.ndarray:
    """scikit-learn's file, 64 grey levels and the digit in each row. Its reader takes a second to import."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None and spec.submodule_search_locations is not None  # it is installed with ssljax
    return np.loadtxt(Path(spec.submodule_search_locations[0], "datasets/data/digits.csv.gz"), delimiter=",")


def fashion_mnist(data: ConfigDict, split: str) -> Source:
    """Load Fashion-MNIST from gzip IDX files, or else from a prepared TFDS copy.

    The files are looked for in `data.data_dir`, by default where Debian's package puts them.

    Raises:
        FileNotFoundError: there are neither files nor a prepared copy.
        ValueError: a file is damaged, or the two files hold different numbers of examples.
    """
    folder = Path(data.data_dir or FASHION_MNIST_DIR)
    stem = "train" if split == "train" else "t10k"
    image_path = folder / f"{stem}-images-idx3-ubyte.gz"
    label_path = folder / f"{stem}-labels-idx1-ubyte.gz"
    if image_path.is_file() and label_path.is_file():
        images = read_idx(image_path, 3)
        labels = read_idx(label_path, 1)
        if len(images) != len(labels):
            raise ValueError(
                f"{image_path} holds {len(images)} images and {label_path.name} {len(labels)} labels: "
                "they do not belong together. Copy both files again"
            )
        return in_memory(data, split, images[..., None], labels, FASHION_MNIST_CLASSES)
    try:
        return records.load(data, "fashion_mnist", split, decoded=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"Fashion-MNIST: no {image_path.name} in {folder} and no prepared TFDS copy. Run "
            "`apt-get install dataset-fashion-mnist`, or set data.data_dir to a folder with the four gzip "
            "IDX files, or run `ssljax prepare fashion_mnist`"
        ) from error


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Read a gzip IDX file of unsigned bytes.

    The format is: the bytes 0, 0, type (8 = uint8) and number of dimensions; each dimension as a big-endian
    uint32; the data; end of file.

    Args:
        path: the file.
        ndim: the number of dimensions it must have.

    Returns:
        uint8, in the shape that the header states.

    Raises:
        ValueError: not a gzip file, a wrong magic number, or fewer or more bytes than the header says.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} is not a complete gzip file ({error}): copy it again") from error
    header = 4 + 4 * ndim
    if content[:4] != bytes((0, 0, 8, ndim)) or len(content) < header:
        raise ValueError(
            f"{path} starts with {content[:4].hex()}, not with 000008{ndim:02x} (IDX, {ndim}-d bytes): "
            "it is probably the wrong file"
        )
    shape = struct.unpack(f">{ndim}I", content[4:header])
    promised = math.prod(shape)
    found = len(content) - header
    if found != promised:
        raise ValueError(f"{path} promises {shape} = {promised} bytes, but {found} follow: copy it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def in_memory(
    data: ConfigDict, split: str, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> Source:
    """Make a source of pixels held in memory.

    Args:
        data: the `data` section of a config. Images are resized (bilinear) to `image_size` and repeated to
            `channels`.
        split: "train" or "test".
        images: uint8 [N, H, W, 1].
        labels: int [N].
        class_names: one name per label.
    """

    def no_bytes(ids: np.ndarray) -> list[bytes]:
        raise ValueError(f"{data.source} is held in memory: read its `images`, there are no encoded bytes")

    labels = labels.astype(np.int32)
    checksum = digest(labels.tobytes(), images.tobytes())
    name = data.source
    return Source(
        name=name,
        split=split,
        labels=labels,
        index=np.arange(len(labels), dtype=np.int32),
        class_names=tuple(class_names),
        checksum=checksum,
        images=_fit(images, data.image_size, data.channels),
        encoded=no_bytes,
        name_of=lambda i: f"image {i} of {name}, {split}",
    )


def _fit(images: np.ndarray, size: int, channels: int) -> np.ndarray:
    """Resize uint8 [N, H, W, 1] to [N, size, size, channels].

    Raises:
        MemoryError: the result does not fit into memory.
    """
    from PIL import Image

    require_memory(
        len(images) * size * size * channels,
        f"{len(images)} images of {size}x{size}x{channels}",
        "set a smaller data.image_size",
    )
    if images.shape[1:3] != (size, size):
        pictures = [Image.fromarray(pixels[..., 0]) for pixels in images]
        resized = [picture.resize((size, size), Image.Resampling.BILINEAR) for picture in pictures]
        images = np.stack([np.asarray(picture) for picture in resized])[..., None]
    return np.ascontiguousarray(np.broadcast_to(images, (*images.shape[:3], channels)))
