"""Index-addressed sources of labelled images.

    digits          scikit-learn's 8x8 digits: 1,500 train, 297 test, in memory
    fashion_mnist   Debian's `dataset-fashion-mnist`, the same four files in data.data_dir, or a prepared TFDS copy; in memory
    folder:PATH     PATH/train and PATH/test (or val) with one sub-folder a class, or one such folder (data.folder)
    tfds:NAME       a data set prepared by `ssljax prepare NAME` (data.records)

`load` never downloads. In-memory sources never import TensorFlow.
"""

from __future__ import annotations

import dataclasses
import difflib
import gzip
import hashlib
import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from ssljax.data import sampler

SOURCES = ("digits", "fashion_mnist", "folder:PATH", "tfds:NAME")
FASHION_MNIST_DIR = "/usr/share/datasets/fashion-mnist"      # where Debian's package puts the four IDX files
FASHION_MNIST_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a data set, addressed by position 0..N-1.

    Attributes:
        name: as in `data.source`.
        split: "train" or "test".
        labels: int32 [N].
        index: int32 [N], the stable id of every example in its split; a selection keeps the ids.
        class_names: one name a label.
        checksum: 16 hex digits of a sha256: of labels and stored pixels (digits, fashion_mnist), or of names, sizes and labels of the
            files (folder) or records (tfds). A selection has its own.
        images: uint8 [N, H, W, C] when the split is held in memory, else None.
        encoded: (ids [K]) -> list of K encoded images; only called when `images` is None.
        name_of: id -> the file or record, for messages.
        skipped: unreadable files left out (`data.on_bad_image="skip"`).
    """

    name: str
    split: str
    labels: np.ndarray
    index: np.ndarray
    class_names: tuple[str, ...]
    checksum: str
    images: np.ndarray | None
    encoded: Callable[[np.ndarray], list[bytes]]
    name_of: Callable[[int], str]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def num_ids(self) -> int:
        """Ids lie in 0..num_ids-1; a selection may have fewer images than that."""
        return int(self.index.max(initial=-1)) + 1

    def read(self, indices: Sequence[int] | np.ndarray) -> list[bytes]:
        """The encoded images (JPEG or PNG bytes) at these positions."""
        return self.encoded(self.index[np.asarray(indices, np.int64)])

    def describe(self, i: int) -> str:
        """What stands at position i: a file or record name."""
        return self.name_of(int(self.index[i]))

    def select(self, indices: Sequence[int] | np.ndarray) -> Source:
        """The examples at these positions (repeats allowed), with their stable ids."""
        rows = np.asarray(indices, np.int64)
        return dataclasses.replace(
            self, labels=self.labels[rows], index=self.index[rows], images=None if self.images is None else self.images[rows],
            checksum=digest(self.checksum.encode(), self.index[rows].tobytes()))


def load(data: ConfigDict, split: str) -> Source:
    """The source named by `data.source`.

    `train_per_class`, `labels_per_class` and `label_fraction` apply to the train split only.

    Args:
        data: the `data` section of a config.
        split: "train" or "test".

    Raises:
        ValueError: unknown source or split, labels outside the range, or a class with too few examples.
        FileNotFoundError: the data is not where it should be; the message says how to get it.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split {split!r} is neither 'train' nor 'test'; data.train_split and data.test_split name the stored splits")
    kind, _, argument = data.source.partition(":")
    if data.source == "digits":
        source = digits(data, split)
    elif data.source == "fashion_mnist":
        source = fashion_mnist(data, split)
    elif kind == "folder" and argument:
        from ssljax.data import folder
        source = folder.load(data, argument, split)
    elif kind == "tfds" and argument:
        from ssljax.data import records
        source = records.load(data, argument, split)
    else:
        near = difflib.get_close_matches(data.source, SOURCES, 1, 0.4)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"data.source={data.source!r} is unknown{hint}: one of {', '.join(SOURCES)}")
    check_labels(source)
    if split == "train" and data.train_per_class:
        rows = sampler.first_per_class(source.labels, data.train_per_class)
        source = source if len(rows) == len(source) else source.select(rows)
    if split == "train" and (data.labels_per_class or data.label_fraction < 1):
        source = source.select(sampler.subset(source.labels, fraction=data.label_fraction, per_class=data.labels_per_class,
                                              seed=data.subset_seed))
    return source


def check_labels(source: Source) -> None:
    """Raises ValueError when a label is outside 0..num_classes-1."""
    bad = np.flatnonzero((source.labels < 0) | (source.labels >= source.num_classes))
    if len(bad):
        raise ValueError(f"{source.name}, {source.split}: {source.describe(bad[0])} has label {source.labels[bad[0]]}, outside "
                         f"0..{source.num_classes - 1} ({len(bad)} such). -1 marks an unlabelled split: choose another with "
                         "data.train_split or data.test_split")


def digest(*parts: bytes) -> str:
    """16 hex digits of the sha256 of the parts."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()[:16]


def in_memory(data: ConfigDict, split: str, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Source:
    """A source of stored pixels uint8 [N, H, W, 1], resized (bilinear) to `image_size` and repeated to `channels`."""
    def no_bytes(ids: np.ndarray) -> list[bytes]:
        raise ValueError(f"{data.source} is held in memory: read `images`, not encoded bytes")

    labels = labels.astype(np.int32)
    name = data.source
    return Source(name=name, split=split, labels=labels, index=np.arange(len(labels), dtype=np.int32), class_names=tuple(class_names),
                  checksum=digest(labels.tobytes(), images.tobytes()), images=_fit(images, data.image_size, data.channels),
                  encoded=no_bytes, name_of=lambda i: f"image {i} of {name}, {split}")


def _fit(images: np.ndarray, size: int, channels: int) -> np.ndarray:
    from PIL import Image

    if images.shape[1:3] != (size, size):
        bilinear = Image.Resampling.BILINEAR
        images = np.stack([np.asarray(Image.fromarray(x[..., 0]).resize((size, size), bilinear)) for x in images])[..., None]
    return np.ascontiguousarray(np.broadcast_to(images, (*images.shape[:3], channels)))


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
            raise ValueError(f"{paths[0]} holds {len(images)} images, {paths[1].name} {len(labels)} labels: they do not belong together")
        return in_memory(data, split, images[..., None], labels, FASHION_MNIST_CLASSES)
    from ssljax.data import records
    try:
        return records.load(data, "fashion_mnist", split, decoded=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"Fashion-MNIST: no {paths[0].name} in {folder} and no prepared TFDS copy. Either `apt-get install dataset-fashion-mnist`, or "
            "name a folder with the four gzip IDX files as data.data_dir, or run `ssljax prepare fashion_mnist`") from error


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
        raise ValueError(f"{path} starts with {content[:4].hex()}, not with 000008{ndim:02x} (IDX, {ndim}-d bytes): wrong file?")
    shape = struct.unpack(f">{ndim}I", content[4:header])
    promised, found = math.prod(shape), len(content) - header
    if found != promised:
        raise ValueError(f"{path} promises {shape} = {promised} bytes, but {found} follow: copy it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
