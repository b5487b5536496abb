"""`tfds:NAME`: a data set prepared by `ssljax prepare NAME`, read by index.

array_record files can be read at any index, in any order, as fast as sequentially. A data set stored as
TFRecord has no index. Its encoded images are read into memory if they fit; otherwise the error says how to
convert it. Nothing here downloads.
"""

from __future__ import annotations

import difflib
import io
import itertools
import logging
import os
import urllib.parse
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssljax.data import crops, decode, voc
from ssljax.data.source import Source, digest

log = logging.getLogger(__name__)


def load(data: ConfigDict, name: str, split: str, *, decoded: bool = False) -> Source:
    """Load one split of a prepared TFDS data set.

    Args:
        data: the `data` section of a config. `train_split` and `test_split` name the stored splits; TFDS
            slices like train[:90%] work.
        name: name of the builder, followed by a slash and its config if it has several.
        split: "train" or "test".
        decoded: whether to decode into memory regardless of `data.crop_on`.

    Raises:
        FileNotFoundError: the data set is not prepared, or has no such split.
        ValueError: the data set has no `image`, or no class `label` (`data.labels="none"` works without); or
            an image is unreadable.
        MemoryError: the data set is too large to be held in memory, as TFRecord or as pixels.
    """
    builder = prepared(name, data.data_dir)
    stored = data.train_split if split == "train" else data.test_split
    labelled = data.labels != "none"
    classes = class_names(builder, labelled)
    count = _count(builder, stored)
    read, labels = _open(builder, stored, count, labelled)

    def name_of(i: int) -> str:
        return f"record {i} of tfds:{name}, {stored} ({builder.data_path})"

    images: np.ndarray | None = None
    good = np.arange(count)
    skipped: tuple[str, ...] = ()
    if decoded or data.crop_on == "device":
        images, good, skipped = decode.decode_all(
            lambda i: read(np.array([i]))[0],
            name_of,
            count,
            size=data.image_size,
            channels=data.channels,
            on_bad=data.on_bad_image,
        )
    labels = labels[good]
    facts = f"{builder.info.full_name} {stored} {count} {builder.info.dataset_size}"
    return Source(
        name=data.source,
        split=split,
        labels=labels,
        index=np.arange(len(good), dtype=np.int32),
        class_names=classes,
        checksum=digest(facts.encode(), labels.tobytes()),
        images=images,
        encoded=lambda ids: read(good[ids]),
        name_of=lambda i: name_of(int(good[i])),
        skipped=skipped,
        targets={} if labelled else {name: rows[good] for name, rows in _targets(builder, stored).items()},
    )


def prepared(name: str, data_dir: str) -> Any:
    """Return the TFDS builder of a data set that is ready to be read.

    Args:
        name: name of the builder.
        data_dir: where prepared data sets are; "" = TFDS's default.

    Raises:
        FileNotFoundError: the data set is not prepared in `data_dir`, or TFDS has none of that name.
    """
    crops.tensorflow()
    import tensorflow_datasets as tfds

    where = data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(name.split("/")[0], tfds.list_builders(), 3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise FileNotFoundError(
            f"data.source=tfds:{name}: TFDS knows no data set of that name and {where} holds none{hint}"
        ) from error
    if not builder.info.splits:
        flag = f" --data_dir {data_dir}" if data_dir else ""
        raise FileNotFoundError(
            f"data.source=tfds:{name} is not prepared in {where}: run `ssljax prepare tfds:{name}{flag}` "
            "once, or set data.data_dir to the folder that holds it. Training never downloads"
        )
    return builder


def class_names(builder: Any, labelled: bool) -> tuple[str, ...]:
    """Return the names of the labels, or none if no labels are asked for.

    Args:
        builder: the TFDS builder.
        labelled: whether labels are asked for.

    Raises:
        ValueError: the data set has no images, or its images have no labels.
    """
    features = builder.info.features
    if "image" not in features:
        raise ValueError(
            f"tfds:{builder.name} has features {', '.join(features)}, but no `image`: write the data set as "
            "a folder of images and use folder:PATH"
        )
    if not labelled:
        return ()
    if "label" not in features or not hasattr(features["label"], "names"):
        raise ValueError(
            f"tfds:{builder.name} has features {', '.join(features)}; an `image` and a class `label` are "
            "needed. Set data.labels='none' to use the images alone, or write the data set as a folder of "
            "images, one sub-folder per class, and use folder:PATH"
        )
    return tuple(features["label"].names)


def _count(builder: Any, stored: str) -> int:
    """Count the examples of a stored split."""
    try:
        return builder.info.splits[stored].num_examples
    except (ValueError, KeyError) as error:
        raise FileNotFoundError(
            f"tfds:{builder.name} has no split {stored!r}; it has {', '.join(builder.info.splits)}: set "
            "data.train_split and data.test_split (a part of one split works too: 'train[:90%]', "
            "'train[90%:]')"
        ) from error


def _open(
    builder: Any, stored: str, count: int, labelled: bool
) -> tuple[Callable[[np.ndarray], list[bytes]], np.ndarray]:
    """Open a stored split.

    Returns:
        A function from record numbers to encoded images, and all labels, int32 [count]. Without `labelled`
        the labels are not read and all are -1.
    """
    import tensorflow_datasets as tfds

    skip = {"image": tfds.decode.SkipDecoding()}
    if tfds.core.FileFormat.ARRAY_RECORD not in builder.info.available_file_formats():
        return _into_memory(builder, stored, skip, labelled)
    records = builder.as_data_source(stored, decoders=skip).data_source  # serialised examples, by index

    def read(ids: np.ndarray) -> list[bytes]:
        found = records.__getitems__(np.asarray(ids).tolist())
        return [_features(record)["image"].bytes_list.value[0] for record in found]

    if not labelled:
        return read, np.full(count, -1, np.int32)
    return read, _labels(builder, stored, records, count)


def _features(record: bytes) -> Any:
    """Parse one serialised example."""
    return crops.tensorflow().train.Example.FromString(record).features.feature


def _labels(builder: Any, stored: str, records: Any, count: int) -> np.ndarray:
    """Read the labels of all records in one pass, and store them beside the data for the next run."""
    part = urllib.parse.quote(stored, safe="")  # train[:50%] and train[50%:] have files of their own
    path = builder.data_path / f"ssljax-labels-{part}-{count}.npy"
    if path.exists():
        return np.load(io.BytesIO(path.read_bytes()))

    log.info("reading the labels of %d records once", count)
    labels = np.empty(count, np.int32)
    for first in range(0, count, 1024):
        rows = list(range(first, min(first + 1024, count)))
        found = records.__getitems__(rows)
        labels[rows] = [_features(record)["label"].int64_list.value[0] for record in found]

    content = io.BytesIO()
    np.save(content, labels)
    try:
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        unfinished.write_bytes(content.getvalue())
        unfinished.replace(path)
    except OSError as error:  # the data may be read-only: the labels are then read again next time
        log.info("cannot store the labels in %s (%s)", path, error)
    return labels


def _targets(builder: Any, stored: str) -> dict[str, np.ndarray]:
    """The labels of images with several, see `data.voc`; {} for other data sets."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    if "labels" not in features or "labels_no_difficult" not in features:
        return {}
    keys = ("labels", "labels_no_difficult")
    skip = {"image": tfds.decode.SkipDecoding()}
    if tfds.core.FileFormat.ARRAY_RECORD in builder.info.available_file_formats():
        records = builder.as_data_source(stored, decoders=skip).data_source
        parsed = [_features(records[i]) for i in range(len(records))]
        lists = [[np.array(one[key].int64_list.value) for one in parsed] for key in keys]
    else:
        config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        dataset = builder.as_dataset(split=stored, decoders=skip, shuffle_files=False, read_config=config)
        pairs = dataset.map(lambda e: tuple(e[key] for key in keys))
        lists = [list(each) for each in zip(*pairs.as_numpy_iterator(), strict=True)]
    classes = features["labels"].feature.num_classes
    return {"labels": voc.targets(lists[0], lists[1], classes)}


def _into_memory(
    builder: Any, stored: str, skip: dict, labelled: bool
) -> tuple[Callable[[np.ndarray], list[bytes]], np.ndarray]:
    """Read a split stored as TFRecord into memory. Arguments and result are those of `_open`."""
    import tensorflow_datasets as tfds

    whole = builder.info.splits.get(stored)  # None for a slice, whose size is not known beforehand
    fix = f"convert it to random access with `ssljax prepare tfds:{builder.name} --file_format array_record`"
    what = f"tfds:{builder.name}, {stored}, stored as {builder.info.file_format.value},"
    decode.require_memory(int(whole.num_bytes) if whole else 0, what, fix)

    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    dataset = builder.as_dataset(split=stored, decoders=skip, shuffle_files=False, read_config=config)
    pairs = dataset.map(lambda e: (e["image"], e["label"] if labelled else -1))

    total = 0
    images = []
    labels = []
    for image, label in pairs.as_numpy_iterator():
        images.append(image)
        labels.append(label)
        total += len(image)
        if len(images) % 1024 == 0:
            decode.require_memory(total, what, fix)

    def read(ids: np.ndarray) -> list[bytes]:
        return [images[i] for i in ids]

    return read, np.array(labels, np.int32)


def convert(builder: Any) -> None:
    """Write array_record files beside the TFRecord files of a prepared data set and register the format."""
    tf = crops.tensorflow()
    from array_record.python.array_record_module import ArrayRecordWriter

    for path in itertools.chain.from_iterable(info.filepaths for info in builder.info.splits.values()):
        writer = ArrayRecordWriter(str(path).replace(".tfrecord-", ".array_record-"), "group_size:1")
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            writer.write(record)
        writer.close()
    builder.info.add_alternative_file_format("array_record")
    builder.info.write_to_directory(builder.data_path)
