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

import numpy as np

from ssljax.data.source import Source
from ssljax.protocols.bench import Bench
from ssljax.protocols.robustness import ALEXNET_FLIPS, answers, flip_probability, no_classifier
from ssljax.types import Measurement, Protocol


def judge(bench: Bench) -> Iterator[Measurement]:
    """One measurement: the mean flip probability, mFR for ImageNet, and all ten probabilities in percent."""
    place = bench.config.evaluate.perturbations.partition(":")[2]
    flips = {}
    frames = 0
    head = ""
    for name in ALEXNET_FLIPS:
        loaded = bench.load(
            "test", source=f"folder:{place}", train_split=name, test_split=name, labels="none"
        )
        source = dataclasses.replace(loaded, cropped=True)
        head, logits = answers(bench, source, "perturbations")
        predicted = logits.argmax(axis=1)
        shown = [predicted[rows] for rows in sequences(source)]
        flips[name] = 100.0 * flip_probability(shown, noise="noise" in name, difficulty=1)
        frames += len(source)

    found = {"flip_probability": float(np.mean(list(flips.values())))}
    if bench.num_classes == 1000:
        found["mfr"] = 100.0 * float(np.mean([flips[name] / ALEXNET_FLIPS[name] for name in flips]))
    table = {name: round(value, 3) for name, value in flips.items()}
    settings = {"head": head, "difficulty": 1, "flips": table}
    yield {"protocol": "perturbations", "settings": settings, **found, "n": frames}


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


PROTOCOL = Protocol(reads="predictions", metrics=("flip_probability", "mfr"), judge=judge, refuse=refuse)
