"""Load the source that `data.source` names.

    digits          scikit-learn's 8x8 digits: 1,500 train, 297 test, in memory (data.builtin)
    fashion_mnist   the four files of Debian's `dataset-fashion-mnist`, or the same four in data.data_dir, or
                    a prepared TFDS copy; in memory (data.builtin)
    folder:PATH     PATH/train and PATH/test (or val) with one sub-folder per class, or one such folder, or
                    images without labels (data.folder), or PASCAL VOC as it is unpacked (data.voc)
    views:PATH      the same with a folder per view of the images inside: depth, flow, ... (data.view_folders)
    tfds:NAME       a data set prepared by `ssljax prepare NAME` (data.records)
    transfer:NAME   one of twelve data sets, split as in the papers' transfer tables (data.transfer)
    hf:NAME         a folder of Hugging Face's `datasets`, or one prepared by `ssljax prepare hf:NAME`
                    (data.arrow)
    coco:PATH       images with boxes or masks as COCO is unpacked (data.coco)
    voc:PATH        the same of PASCAL VOC (data.voc_objects)

`load` never downloads. Sources held in memory (digits, Fashion-MNIST from its files, a folder with
data.crop_on="device") never import TensorFlow.

An example without a label has the label -1. `data.labels="none"` removes the labels of any source.
`data.unlabelled` appends the images of a second source, without labels, to the training split.
"""

from __future__ import annotations

import dataclasses
import difflib

import numpy as np
from ml_collections import ConfigDict

from ssljax.config import KEYS
from ssljax.data import (
    arrow,
    builtin,
    coco,
    folder,
    records,
    sampler,
    scenes,
    transfer,
    view_folders,
    voc,
    voc_objects,
)
from ssljax.data.source import Source
from ssljax.types import Facts

LABELS = ("folders", "none")
# The images that SimCLR and later papers label when they speak of 1 % and 10 % of ImageNet.
PAPERS_LISTS = {0.01: "tfds:imagenet2012_subset/1pct", 0.1: "tfds:imagenet2012_subset/10pct"}
SOURCES = (
    *("digits", "fashion_mnist", "folder:PATH", "views:PATH", "tfds:NAME", "transfer:NAME", "hf:NAME"),
    *("coco:PATH", "voc:PATH"),
)
ANNOTATED = {"coco": coco.load, "voc": voc_objects.load}


def load(data: ConfigDict, split: str) -> Source:
    """Load one split of the source named by `data.source`.

    `train_per_class`, `labels_per_class` and `label_fraction` apply to the train split only.

    Args:
        data: the `data` section of a config.
        split: "train" or "test".

    Raises:
        ValueError: the source, split or `data.labels` is unknown, a label is out of range, a class has too
            few examples, or a subset by label is asked for and an example has no label.
        FileNotFoundError: the data is not where it should be. The message says how to get it.
    """
    if split not in ("train", "test"):
        raise ValueError(
            f"split {split!r} is neither 'train' nor 'test'; the names of the stored splits belong in "
            "data.train_split and data.test_split"
        )
    if data.labels not in LABELS:
        raise ValueError(
            f"data.labels={data.labels!r} is unknown: use 'folders' (the sub-folders of a folder are its "
            "classes; other sources have their own labels) or 'none' (no image has a label)"
        )

    if split == "train" and labelled_source(data) != data.source:
        return _papers_list(data)
    kind, _, argument = data.source.partition(":")
    if data.annotations or (kind in ANNOTATED and argument):
        source = annotated(data, split)
    elif data.source == "digits":
        source = builtin.digits(data, split)
    elif data.source == "fashion_mnist":
        source = builtin.fashion_mnist(data, split)
    elif kind == "folder" and argument and voc.is_devkit(argument):
        source = voc.load(data, argument, split)
    elif kind == "folder" and argument:
        source = folder.load(data, argument, split)
    elif kind == "views" and argument:
        source = view_folders.load(data, argument, split)
    elif kind == "tfds" and argument:
        source = records.load(data, argument, split)
    elif kind == "transfer" and argument:
        source = transfer.load(data, argument, split)
    elif kind == "hf" and argument:
        source = arrow.load(data, argument, split)
    else:
        near = difflib.get_close_matches(data.source, SOURCES, 1, 0.4)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"data.source={data.source!r} is unknown{hint}: use one of {', '.join(SOURCES)}")

    if data.labels == "none":
        source = dataclasses.replace(source, labels=np.full(len(source), -1, np.int32), class_names=())
    check_labels(source)
    if split == "test":
        return source
    ids = source.num_ids
    source = subset(source, data)
    return source.followed_by(_second(data), first_id=ids) if data.unlabelled else source


def annotated(data: ConfigDict, split: str) -> Source:
    """Load images with what `data.annotations` says. The arguments are those of `load`.

    Raises:
        ValueError: the data have no such annotations, or a setting is about labels.
    """
    kind, _, argument = data.source.partition(":")
    drawn = data.source == "digits"
    if not drawn and (kind not in ANNOTATED or not argument):
        raise ValueError(
            f"data.annotations={data.annotations!r} needs images with {data.annotations}, and data.source="
            f"{data.source!r} has none: use coco:PATH, voc:PATH or digits"
        )
    if not data.annotations:
        raise ValueError(
            f"data.source={data.source} is for images with boxes or masks: set data.annotations='boxes' or "
            "'masks' (folder:PATH reads the images of any folder alone, and the classes of one year of VOC)"
        )
    for key in ("labels", "unlabelled", *(["categories"] if drawn else [])):
        if data[key] != KEYS[f"data.{key}"].default:
            what = (
                f"data.source={data.source}"
                if key == "categories"
                else f"data.annotations={data.annotations}"
            )
            raise ValueError(f"data.{key}={data[key]!r} does not go with {what}: leave it out")
    if data.crop_on != "host":
        raise ValueError(
            f"data.crop_on={data.crop_on!r}, but with data.annotations={data.annotations} images "
            "have no common size and are not kept in memory, so set data.crop_on='host'"
        )
    if drawn:
        return scenes.load(data, split)
    return ANNOTATED[kind](data, argument, split)


def _second(data: ConfigDict) -> Source:
    """Load the images that `data.unlabelled` names, without labels: all of them."""
    kind, _, argument = data.unlabelled.partition(":")
    if data.source.startswith("views:"):
        raise ValueError(
            f"data.unlabelled={data.unlabelled!r} does not go with data.source={data.source}: put the images "
            "into its folders, or set data.labels='none'"
        )
    if kind == "folder" and argument:
        return folder.unlabelled(data, argument)
    if kind in ("tfds", "hf") and argument:
        other = data.copy_and_resolve_references().unlock()
        split = data.unlabelled_split  # as the test split too, so that nothing is held out of it
        other.update(source=data.unlabelled, train_split=split, test_split=split, labels="none")
        second = (records if kind == "tfds" else arrow).load(other, argument, "train")
        return dataclasses.replace(second, labels=np.full(len(second), -1, np.int32), class_names=())
    raise ValueError(f"data.unlabelled={data.unlabelled!r} is unknown: use folder:PATH, tfds:NAME or hf:NAME")


def labelled_source(data: ConfigDict) -> str:
    """Name the data set that the training images come from.

    This is `data.source`, or TFDS's list of the papers' 1 % or 10 % of ImageNet if `data.label_list` asks for
    it. Other data and fractions have no list, so a balanced draw stands for it. So it does where the images
    outside the list are kept (`data.keep_unlabelled`), because the list is a data set of its own.
    """
    part = data.label_fraction < 1 and not data.labels_per_class
    if part and data.keep_unlabelled:
        return data.source
    if data.source != "tfds:imagenet2012" or not part or data.label_list == "balanced":
        return data.source
    return PAPERS_LISTS.get(data.label_fraction, data.source)


def _papers_list(data: ConfigDict) -> Source:
    """Load the images of one of PAPERS_LISTS, all of them.

    Raises:
        FileNotFoundError: the list is not prepared.
    """
    listed = data.copy_and_resolve_references().unlock()
    listed.source = labelled_source(data)
    listed.label_fraction = 1.0
    try:
        return load(listed, "train")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}. It holds the images that the papers label; data.label_list=balanced draws "
            f"{data.label_fraction:g} of {data.source} instead"
        ) from error


def subset(source: Source, data: ConfigDict) -> Source:
    """Reduce a training split by `train_per_class`, `labels_per_class` and `label_fraction`.

    With `keep_unlabelled` the images outside the labelled subset stay, with the label -1.

    Raises:
        ValueError: a class has too few examples, or an example has no label.
    """
    if data.train_per_class:
        source.require_labels(f"data.train_per_class={data.train_per_class}")
        rows = sampler.first_per_class(source.labels, data.train_per_class)
        if len(rows) < len(source):
            source = source.select(rows)
    if data.labels_per_class or data.label_fraction < 1:
        asked = "labels_per_class" if data.labels_per_class else "label_fraction"
        source.require_labels(f"data.{asked}={data[asked]}")
        rows = sampler.subset(
            source.labels,
            fraction=data.label_fraction,
            per_class=data.labels_per_class,
            seed=data.subset_seed,
        )
        source = source.unlabelled_but(rows) if data.keep_unlabelled else source.select(rows)
    return source


def facts(data: ConfigDict, source: Source) -> Facts:
    """Return what a method is told about its training split, and check it against the config.

    Raises:
        ValueError: the config states another number of examples or classes than the data has.
    """
    found = source.facts
    for key in ("num_examples", "num_classes"):
        stated = data[key]
        there = getattr(found, key)
        if stated and stated != there:
            what = key.removeprefix("num_")
            raise ValueError(
                f"data.{key}={stated}, but {data.source} has {there} {what}: leave it at 0, which reads the "
                "number from the data, or check that this is the data you meant"
            )
    return found


def check_labels(source: Source) -> None:
    """Raise a ValueError if a label is neither in 0..classes-1 nor -1, which means no label."""
    classes = len(source.class_names)
    bad = np.flatnonzero((source.labels < -1) | (source.labels >= classes))
    if len(bad):
        raise ValueError(
            f"{source.name}, {source.split}: {source.describe(bad[0])} has label {source.labels[bad[0]]}, "
            f"which is outside 0..{classes - 1} and not -1 for no label ({len(bad)} such). The data is "
            "damaged or belongs to other class names: prepare or copy it again, or set data.labels='none' "
            "to use the images alone"
        )
