"""ImageNet-P: how often the prediction flips between the frames of a short sequence (arXiv:1903.12261).

The published archives hold videos. Their frames are read from folders, TYPE/.../SEQUENCE/FRAME.png, which
`ffmpeg -i VIDEO.mp4 VIDEO/%03d.png` writes; see docs/robustness.md.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ssljax.data.source import Source
from ssljax.protocols.bench import Bench
from ssljax.protocols.robustness import (
    ALEXNET_FLIPS,
    ALEXNET_TOP5,
    CLASSES,
    answers,
    flip_probability,
    no_classifier,
    top5_distance,
)
from ssljax.types import Measurement, Protocol

AT_ONCE = 10_000  # frames whose logits are held in memory
AT_MOST = 6  # ranks are counted up to here, which is all that the distance of the first five looks at


def judge(bench: Bench) -> Iterator[Measurement]:
    """One measurement: mean flip probability, mFR and mT5D for ImageNet, and the ten values behind each."""
    flips = {}
    moves = {}
    frames = 0
    head = ""
    for name in ALEXNET_FLIPS:
        source = frames_of(bench, name)
        head, predicted, ranks = watched(bench, source)
        flips[name] = 100.0 * flip_probability(predicted, noise="noise" in name, difficulty=1)
        if bench.num_classes == CLASSES:
            moves[name] = top5_distance(ranks, noise="noise" in name, difficulty=1)
        frames += len(source)

    found = {"flip_probability": float(np.mean(list(flips.values())))}
    settings: dict[str, Any] = {"head": head, "difficulty": 1, "flips": rounded(flips)}
    if bench.num_classes == CLASSES:
        found["mfr"] = 100.0 * float(np.mean([flips[name] / ALEXNET_FLIPS[name] for name in flips]))
        found["mt5d"] = 100.0 * float(np.mean([moves[name] / ALEXNET_TOP5[name] for name in moves]))
        settings["top5_distances"] = rounded(moves)
    yield {"protocol": "perturbations", "settings": settings, **found, "n": frames}


def rounded(values: dict[str, float]) -> dict[str, float]:
    """The same with three decimals, for the record."""
    return {name: round(value, 3) for name, value in values.items()}


def frames_of(bench: Bench, name: str) -> Source:
    """All frames of one perturbation."""
    place = bench.config.evaluate.perturbations.partition(":")[2]
    source = bench.load("test", source=f"folder:{place}", train_split=name, test_split=name, labels="none")
    return dataclasses.replace(source, whole=True)


def watched(bench: Bench, source: Source) -> tuple[str, list[np.ndarray], list[np.ndarray]]:
    """What the network says of each sequence.

    Sequences are worked through some at a time, because the logits of a million frames fill the memory.

    Returns:
        The name of the head; the predicted class of each frame, [F] a sequence; and the rank of each class in
        each frame, uint8 [F, K] a sequence, 1 for the likeliest and AT_MOST for all from there on.
    """
    head = ""
    predicted: list[np.ndarray] = []
    ranks: list[np.ndarray] = []
    pending: list[np.ndarray] = []
    found = sequences(source)
    for number, rows in enumerate(found):
        pending.append(rows)
        if sum(map(len, pending)) < AT_ONCE and number + 1 < len(found):
            continue
        head, logits = answers(bench, source.select(np.concatenate(pending)), "perturbations")
        order = np.argsort(-logits, axis=1, kind="stable")
        rank = np.argsort(order, axis=1) + 1
        ends = np.cumsum([len(rows) for rows in pending])[:-1]
        predicted += np.split(order[:, 0], ends)
        ranks += np.split(np.minimum(rank, AT_MOST).astype(np.uint8), ends)
        pending = []
    return head, predicted, ranks


def sequences(source: Source) -> list[np.ndarray]:
    """The positions of the frames of each sequence, in the order of the numbers in their names."""
    assert source.file_of is not None, "a folder has files"
    found: dict[str, list[tuple[list[int], str, int]]] = defaultdict(list)
    for position, i in enumerate(source.index.tolist()):
        file, _ = source.file_of(i)
        folder, _, name = file.rpartition("/")
        found[folder].append(([int(number) for number in re.findall(r"\d+", name)], name, position))
    return [np.array([position for *_, position in sorted(frames)]) for _, frames in sorted(found.items())]


def refuse(bench: Bench) -> str:
    """The run needs a classifier, and the frames of all ten perturbations must be there."""
    refusal = no_classifier(bench, "perturbations")
    if refusal:
        return refusal
    kind, _, place = bench.config.evaluate.perturbations.partition(":")
    how = (
        "set config.evaluate.perturbations=folder:PATH, where PATH/TYPE/CLASS/SEQUENCE/ holds the frames of "
        "ImageNet-P's videos (docs/robustness.md has the command that writes them)"
    )
    if kind != "folder" or not place:
        return f"perturbations needs the frames of ImageNet-P: {how}"
    missing = [name for name in ALEXNET_FLIPS if not Path(place, name).expanduser().is_dir()]
    if missing:
        return f"perturbations: {place} has no folder {', '.join(missing)}: {how}"
    return ""


PROTOCOL = Protocol(
    reads="predictions", metrics=("flip_probability", "mfr", "mt5d"), judge=judge, refuse=refuse
)
