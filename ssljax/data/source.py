"""`Source`: one split of a data set, addressed by position. Every kind of data is loaded into one."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ssljax.types import Facts

FIX = (
    "Give every image a label (in a folder: one sub-folder per class, with data.labels='folders'), or use a "
    "method that needs none, such as simclr, moco, byol or deepcluster, without data.train_per_class, "
    "data.labels_per_class and data.label_fraction"
)

SKIP = "set --config.data.on_bad_image=skip"


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a data set, addressed by position 0..N-1.

    Attributes:
        name: as in `data.source`.
        split: "train" or "test".
        labels: int32 [N], positions in `class_names`; -1 for an example without a label.
        index: int32 [N], the stable id of every example in its split. A selection keeps the ids.
        class_names: one name per label.
        checksum: 16 hex digits of a sha256. It covers the labels and stored pixels (digits, fashion_mnist),
            or the names, sizes and labels of the files (folder) or records (tfds). A selection has its own.
        images: uint8 [N, H, W, C] if the split is held in memory, else None.
        encoded: returns the K encoded images of ids [K]; only called if `images` is None.
        name_of: returns the name of the file or record of an id, for messages.
        skipped: names of unreadable files that were left out (`data.on_bad_image="skip"`).
        how_to_skip: what the user does to leave out unreadable images, for messages.
        targets: other annotations by name (several labels per image, boxes), as arrays whose first axis is N.
        whole: evaluation takes the whole of each image, as if `data.eval_crop` were 1.
        alter: changes images as evaluation sees them: (uint8 [B, S, S, C], their ids [B]) -> uint8 of the
            same shape. None leaves them as they are; training never calls it.
        file_of: returns the file of an id, below the folder of the data, and its size in bytes; None for a
            source without files.
        decode: what turns the bytes of `encoded` into uint8 [H, W, C], if they are no image file but several.
            It raises a ValueError if one is unreadable.
        mask_of: reads the mask of an id, uint8 [H, W], the class of every pixel and 255 for none; None for a
            source without masks. It raises a ValueError if the mask is unreadable.
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
    how_to_skip: str = SKIP
    targets: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    file_of: Callable[[int], tuple[str, int]] | None = None
    whole: bool = False
    alter: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    decode: Callable[[bytes], np.ndarray] | None = None
    mask_of: Callable[[int], np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> np.ndarray:
        """Which examples have a label, bool [N]."""
        return self.labels >= 0

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 if no example has a label, several of them, boxes or a mask."""
        if "labels" in self.targets:
            return self.targets["labels"].shape[1]
        annotated = "boxes" in self.targets or self.mask_of is not None
        return len(self.class_names) if annotated or self.labelled.any() else 0

    @property
    def num_ids(self) -> int:
        """Ids lie in 0..num_ids-1. A selection may have fewer images than that."""
        return int(self.index.max(initial=-1)) + 1

    @property
    def facts(self) -> Facts:
        """What a method is told about its training split."""
        without = int((~self.labelled).sum()) if self.labelled.any() else 0
        return Facts(len(self), self.num_classes, self.num_ids, num_unlabelled=without)

    def read(self, indices: Sequence[int] | np.ndarray) -> list[bytes]:
        """Read the encoded images (JPEG or PNG bytes) at these positions."""
        return self.encoded(self.index[np.asarray(indices, np.int64)])

    def describe(self, i: int) -> str:
        """Return the name of the file or record at position i."""
        return self.name_of(int(self.index[i]))

    def select(self, indices: Sequence[int] | np.ndarray) -> Source:
        """Select the examples at these positions. Positions may repeat; the examples keep their ids."""
        rows = np.asarray(indices, np.int64)
        index = self.index[rows]
        return dataclasses.replace(
            self,
            labels=self.labels[rows],
            index=index,
            images=None if self.images is None else self.images[rows],
            targets={name: values[rows] for name, values in self.targets.items()},
            checksum=digest(self.checksum.encode(), index.tobytes()),
        )

    def unlabelled_but(self, indices: np.ndarray) -> Source:
        """Keep all examples, but only the labels at these positions. The others become -1.

        Class names stay, and so does the number of classes.
        """
        kept = np.zeros(len(self), bool)
        kept[indices] = True
        labels = np.where(kept, self.labels, -1).astype(np.int32)
        checksum = digest(self.checksum.encode(), labels.tobytes())
        return dataclasses.replace(self, labels=labels, checksum=checksum)

    def followed_by(self, other: Source, first_id: int) -> Source:
        """Append the examples of another source. Of the targets, those stay that both have.

        Args:
            other: the further examples.
            first_id: the id of the first of them. Larger than all ids of this source's split, so that they
                do not depend on which of its examples are selected.

        Raises:
            ValueError: the images of one of them are in memory and those of the other are not, or have
                another shape.
        """
        for wrong, problem in (
            ((self.images is None) != (other.images is None), "only one of them is in memory"),
            (
                _shape(self) != _shape(other),
                f"their images have the shapes {_shape(self)} and {_shape(other)}",
            ),
        ):
            if wrong:
                raise ValueError(
                    f"data.unlabelled={other.name} does not go with data.source={self.name}: {problem}. Set "
                    "data.crop_on='device', which decodes small images into memory at data.image_size, or "
                    "keep both as files"
                )

        def encoded(ids: np.ndarray) -> list[bytes]:
            own = ids < first_id
            first = iter(self.encoded(ids[own]))
            second = iter(other.encoded(ids[~own] - first_id))
            return [next(first) if here else next(second) for here in own]

        def name_of(i: int) -> str:
            return self.name_of(i) if i < first_id else other.name_of(i - first_id)

        def file_of(i: int) -> tuple[str, int]:
            assert self.file_of is not None and other.file_of is not None
            return self.file_of(i) if i < first_id else other.file_of(i - first_id)

        images = None
        if self.images is not None and other.images is not None:
            images = np.concatenate([self.images, other.images])
        return dataclasses.replace(
            self,
            labels=np.concatenate([self.labels, other.labels]),
            index=np.concatenate([self.index, other.index + np.int32(first_id)]),
            checksum=digest(self.checksum.encode(), other.checksum.encode()),
            images=images,
            targets={
                name: np.concatenate([values, other.targets[name]])
                for name, values in self.targets.items()
                if name in other.targets
            },
            encoded=encoded,
            name_of=name_of,
            skipped=self.skipped + other.skipped,
            file_of=None if self.file_of is None or other.file_of is None else file_of,
        )

    def with_labels(self, needs: str) -> Source:
        """Select the labelled examples. If all examples are labelled, this is the source itself.

        Args:
            needs: what needs labels, for the error message.

        Raises:
            ValueError: no example has a label.
        """
        if self.labelled.all():
            return self
        if not self.labelled.any():
            self.require_labels(needs)
        return self.select(np.flatnonzero(self.labelled))

    def require_labels(self, needs: str, *, several: bool = False) -> None:
        """Refuse this source if an example has no label. See the function of the same name.

        Args:
            needs: what needs the labels, as there.
            several: examples with several labels each (`targets["labels"]`) will do as well.

        Raises:
            ValueError: an example has no label, or has several, and one is needed.
        """
        if "labels" in self.targets:
            if several:
                return
            raise ValueError(
                f"{needs} needs one label per image, and the {self.split} images of {self.name} have several "
                "each: use the method multilabel (configs/multilabel.py) or the protocols transfer and "
                "voc07_svm, which learn from several"
            )
        require_labels(self.labels, self.describe, needs, f"{self.split} images of {self.name}")


def require_labels(labels: np.ndarray, describe: Callable[[int], str], needs: str, what: str) -> None:
    """Refuse examples without a label.

    Args:
        labels: int [N].
        describe: returns the name of the example at a position.
        needs: what needs the labels, as the subject of a sentence, e.g. "data.labels_per_class".
        what: what the examples are, e.g. "train images of folder:PATH".

    Raises:
        ValueError: a label is -1. The message says how many are, and names the first.
    """
    without = np.flatnonzero(labels < 0)
    if len(without):
        first = describe(int(without[0]))
        raise ValueError(
            f"{needs} needs labels, and {len(without)} of {len(labels)} {what} have none (first: {first}). "
            f"{FIX}"
        )


def _shape(source: Source) -> tuple[int, ...]:
    """The shape of an image that is held in memory; () otherwise."""
    return () if source.images is None else source.images.shape[1:]


def digest(*parts: bytes) -> str:
    """Return 16 hex digits of the sha256 of the parts."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()[:16]
