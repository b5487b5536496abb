"""A split of a data set, addressed by position: what every source in this room makes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ssljax.types import Facts

FIX = (
    "Give every image a label (a folder: one sub-folder per class, data.labels='folders'), or use what needs none: methods like simclr, "
    "moco, byol or deepcluster, without data.train_per_class, data.labels_per_class and data.label_fraction"
)


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a data set, addressed by position 0..N-1.

    Attributes:
        name: as in `data.source`.
        split: "train" or "test".
        labels: int32 [N], places in `class_names`; -1 for an example without a label.
        index: int32 [N], the stable id of every example in its split; a selection keeps the ids.
        class_names: one name per label.
        checksum: 16 hex digits of a sha256: of labels and stored pixels (digits, fashion_mnist), or of names, sizes and labels of the
            files (folder) or records (tfds). A selection has its own.
        images: uint8 [N, H, W, C] when the split is held in memory, else None.
        encoded: (ids [K]) -> list of K encoded images; only called when `images` is None.
        name_of: id -> the file or record, for messages.
        skipped: unreadable files left out (`data.on_bad_image="skip"`).
        targets: what else is known of the examples (several labels of one image, boxes), by name: arrays whose first axis is N.
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
    targets: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> np.ndarray:
        """bool [N], which examples have a label."""
        return self.labels >= 0

    @property
    def num_classes(self) -> int:
        """How many classes the labels tell apart; 0 where no example has a label."""
        return len(self.class_names) if self.labelled.any() else 0

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
            self,
            labels=self.labels[rows],
            index=self.index[rows],
            images=None if self.images is None else self.images[rows],
            targets={name: values[rows] for name, values in self.targets.items()},
            checksum=digest(self.checksum.encode(), self.index[rows].tobytes()),
        )

    def with_labels(self, needs: str) -> Source:
        """The labelled examples alone; the source itself where that is all of them.

        Args:
            needs: what needs labels, for the error.

        Raises:
            ValueError: no example has a label.
        """
        if self.labelled.all():
            return self
        if not self.labelled.any():
            self.require_labels(needs)
        return self.select(np.flatnonzero(self.labelled))

    def require_labels(self, needs: str) -> None:
        """Refuses a source some of whose examples have no label; see the function of the same name."""
        require_labels(self.labels, self.describe, needs, f"{self.split} images of {self.name}")


def require_labels(labels: np.ndarray, describe: Callable[[int], str], needs: str, what: str) -> None:
    """Refuses examples without a label.

    Args:
        labels: int [N].
        describe: position -> the name of an example.
        needs: what needs the labels, as the beginning of a sentence: "data.labels_per_class".
        what: the examples: "train images of folder:PATH".

    Raises:
        ValueError: a label is -1; says how many are, and names the first.
    """
    without = np.flatnonzero(labels < 0)
    if len(without):
        first = describe(int(without[0]))
        raise ValueError(
            f"{needs} needs labels, and {len(without)} of {len(labels)} {what} have none (first: {first}). {FIX}"
        )


def digest(*parts: bytes) -> str:
    """16 hex digits of the sha256 of the parts."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()[:16]
