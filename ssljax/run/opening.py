"""What a run says before its first step: the data that it found, the network, the number of steps."""

from __future__ import annotations

import math

import jax
import numpy as np
from ml_collections import ConfigDict

from ssljax.data import annotated, twins
from ssljax.data.source import Source
from ssljax.program import Program

NAMED = 3  # files that are named


def lines(program: Program, source: Source, test: Source | None) -> list[str]:
    """One line about the data, one about the network and one about the steps, and warnings about the data.

    Args:
        program: from `build`.
        source: the training split.
        test: the held-out split, if there is one.
    """
    config = program.config
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(program.shapes.params))
    epochs = f"{config.epochs} epoch{'s' if config.epochs != 1 else ''}"
    if config.steps:
        epochs = f"{config.steps * config.batch_size / program.facts.num_examples:.1f} epochs"
    return [
        f"data: {found(source, test)}",
        *warnings(source, test),
        f"network: {config.model.name} on {sides(config)} pixels, {parameters:,} parameters with its heads",
        f"steps: {program.total_steps:,} of {config.batch_size} images each, for {epochs}",
    ]


def sides(config: ConfigDict) -> str:
    """The heights and widths of the images of a batch."""
    side = config.data.image_size
    shapes: list[tuple[int, ...]] = [(side, side)]
    if config.data.annotations:
        shapes = [fields["image"][0] for fields in annotated.shapes(config, 1)]
    return " and ".join(f"{shape[0]} x {shape[1]}" for shape in shapes)


def found(source: Source, test: Source | None) -> str:
    """How many images there are, and in how many classes."""
    text = f"{len(source):,} training images"
    if "boxes" in source.targets:
        objects = int((source.targets["classes"] >= 0).sum())
        text += f" with {objects:,} objects of {source.num_classes:,} classes"
    elif source.mask_of is not None:
        text += f" with masks of {source.num_classes:,} classes, background included"
    elif source.labelled.any():
        counts = np.bincount(source.labels[source.labelled], minlength=source.num_classes)
        low, high = int(counts.min()), int(counts.max())
        each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        text += f", {each} in each of {source.num_classes:,} class{'es' if source.num_classes != 1 else ''}"
    without = int((~source.labelled).sum())
    if 0 < without < len(source):
        text += f", {without:,} of them without a label"
    elif without and not source.num_classes:
        text += ", without labels"
    if test is not None:
        text += f"; {len(test):,} held out"
    return f"{text} ({source.name})"


def warnings(source: Source, test: Source | None) -> list[str]:
    """What was left out, and what will make a measurement on these data mean little."""
    said = []
    skipped = source.skipped + (test.skipped if test is not None else ())
    if skipped:
        said.append(f"WARNING unreadable images left out: {_some(skipped)}")
    if source.labelled.any() and source.num_classes == 1:
        said.append(
            f"WARNING there is one class only, {source.class_names[0]!r}: whatever needs labels will find it "
            "every time. One sub-folder per class gives several; data.labels='none' ignores the folders"
        )
    pairs = twins.between(source, test) if test is not None else []
    if pairs:
        seen, trained = pairs[0]
        said.append(
            f"WARNING {len(pairs):,} of the held-out images are also training images, so accuracy on them "
            f"says too much; the first: {seen} has the content of {trained}"
        )
    return said


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
