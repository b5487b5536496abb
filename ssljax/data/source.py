"""A split of a data set, addressed by position: what every source in this room makes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from ssljax.types import Facts


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

    @property
    def facts(self) -> Facts:
        """What a method is told of its training split."""
        return Facts(num_examples=len(self), num_classes=self.num_classes, num_ids=self.num_ids)

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


def digest(*parts: bytes) -> str:
    """16 hex digits of the sha256 of the parts."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()[:16]
