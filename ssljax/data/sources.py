"""Which source `data.source` names.

    digits          scikit-learn's 8x8 digits: 1,500 train, 297 test, in memory (data.builtin)
    fashion_mnist   Debian's `dataset-fashion-mnist`, the same four files in data.data_dir, or a prepared TFDS copy; in memory
    folder:PATH     PATH/train and PATH/test (or val) with one sub-folder per class, or one such folder, or
                    images without labels (data.folder)
    tfds:NAME       a data set prepared by `ssljax prepare NAME` (data.records)

`load` never downloads. What is held in memory (digits, Fashion-MNIST, a folder with data.crop_on="device")
never imports TensorFlow.

An example without a label has -1. `data.labels="none"` takes the labels of any source away.
"""

from __future__ import annotations

import dataclasses
import difflib

import numpy as np
from ml_collections import ConfigDict

from ssljax.data import builtin, folder, records, sampler
from ssljax.data.source import Source
from ssljax.types import Facts

LABELS = ("folders", "none")
SOURCES = ("digits", "fashion_mnist", "folder:PATH", "tfds:NAME")


def load(data: ConfigDict, split: str) -> Source:
    """The source named by `data.source`.

    `train_per_class`, `labels_per_class` and `label_fraction` apply to the train split only.

    Args:
        data: the `data` section of a config.
        split: "train" or "test".

    Raises:
        ValueError: unknown source, split or `data.labels`, labels outside the range, a class with too few
            examples, or examples without a label where a subset is asked for by label.
        FileNotFoundError: the data is not where it should be; the message says how to get it.
    """
    if split not in ("train", "test"):
        raise ValueError(
            f"split {split!r} is neither 'train' nor 'test'; data.train_split and data.test_split name the stored splits"
        )
    if data.labels not in LABELS:
        raise ValueError(
            f"data.labels={data.labels!r} is unknown: 'folders' (a folder's sub-folders are its "
            "classes, other sources have their own labels) or 'none' (no image has a label)"
        )
    kind, _, argument = data.source.partition(":")
    if data.source == "digits":
        source = builtin.digits(data, split)
    elif data.source == "fashion_mnist":
        source = builtin.fashion_mnist(data, split)
    elif kind == "folder" and argument:
        source = folder.load(data, argument, split)
    elif kind == "tfds" and argument:
        source = records.load(data, argument, split)
    else:
        near = difflib.get_close_matches(data.source, SOURCES, 1, 0.4)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"data.source={data.source!r} is unknown{hint}: one of {', '.join(SOURCES)}")
    if data.labels == "none":
        source = dataclasses.replace(source, labels=np.full(len(source), -1, np.int32), class_names=())
    check_labels(source)
    return subset(source, data) if split == "train" else source


def subset(source: Source, data: ConfigDict) -> Source:
    """What `train_per_class`, `labels_per_class` and `label_fraction` leave of a training split.

    Raises:
        ValueError: a class with too few examples, or examples without a label.
    """
    if data.train_per_class:
        source.require_labels(f"data.train_per_class={data.train_per_class}")
        rows = sampler.first_per_class(source.labels, data.train_per_class)
        source = source if len(rows) == len(source) else source.select(rows)
    if data.labels_per_class or data.label_fraction < 1:
        asked = "labels_per_class" if data.labels_per_class else "label_fraction"
        source.require_labels(f"data.{asked}={data[asked]}")
        source = source.select(
            sampler.subset(
                source.labels,
                fraction=data.label_fraction,
                per_class=data.labels_per_class,
                seed=data.subset_seed,
            )
        )
    return source


def facts(data: ConfigDict, source: Source) -> Facts:
    """What a method is told of its training split, after a look whether the config says otherwise.

    Raises:
        ValueError: the config states another number of examples or of classes than the data have.
    """
    found = source.facts
    for key in ("num_examples", "num_classes"):
        stated, there = data[key], getattr(found, key)
        if stated and stated != there:
            what = key.removeprefix("num_")
            raise ValueError(
                f"data.{key}={stated}, but {data.source} has {there} {what}: leave it at 0, which reads it from the data, or "
                "look whether these are the data you meant"
            )
    return found


def check_labels(source: Source) -> None:
    """Raises ValueError when a label is neither in 0..classes-1 nor -1, which is no label."""
    classes = len(source.class_names)
    bad = np.flatnonzero((source.labels < -1) | (source.labels >= classes))
    if len(bad):
        raise ValueError(
            f"{source.name}, {source.split}: {source.describe(bad[0])} has label "
            f"{source.labels[bad[0]]}, outside 0..{classes - 1} ({len(bad)} such); only -1, for "
            "no label, may be. The data are damaged, or belong to other class names: prepare or "
            "copy them again, or set data.labels='none' to use the images alone"
        )
