"""ImageNet-A: 7,500 photographs of 200 of ImageNet's classes that a ResNet-50 gets wrong (arXiv:1907.07174).

Only the logits of the 200 classes compete: the other 800 are left out before the argmax.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ssljax.protocols.bench import Bench
from ssljax.protocols.linear import accuracies
from ssljax.protocols.robustness import CLASSES, IMAGENET_A, answers, by_name, no_classifier
from ssljax.types import Measurement, Protocol


def judge(bench: Bench) -> Iterator[Measurement]:
    """Top-1 and top-5 of the head that counts, among the 200 classes."""
    source = bench.load("test", **settings(bench)).with_labels("--protocols: imagenet_a")
    labels = by_name(source, bench.test.class_names)
    place = {label: i for i, label in enumerate(IMAGENET_A)}
    strange = sorted(set(labels.tolist()) - set(IMAGENET_A))
    if strange:
        raise ValueError(
            f"{source.name} has images of class {strange[0]} ({bench.test.class_names[strange[0]]}), which "
            "is not in ImageNet-A: the classes must be in the order of ImageNet's sorted WordNet ids"
        )
    head, logits = answers(bench, source, "imagenet_a")
    among = np.array([place[label] for label in labels.tolist()])
    found = accuracies(logits[:, list(IMAGENET_A)], among)
    yield {"protocol": "imagenet_a", "settings": {"head": head, "classes": len(IMAGENET_A)}, **found}


def settings(bench: Bench) -> dict[str, str]:
    """What `bench.load` needs to find the images: a TFDS data set, or a folder of class folders."""
    kind, _, path = bench.config.evaluate.imagenet_a.partition(":")
    if kind == "tfds":
        return {"source": bench.config.evaluate.imagenet_a, "test_split": "test"}
    parent, _, name = path.rstrip("/").rpartition("/")
    return {"source": f"folder:{parent or '.'}", "train_split": name, "test_split": name}


def refuse(bench: Bench) -> str:
    """The run needs a head for ImageNet's 1,000 classes, and the images must be there."""
    refusal = no_classifier(bench, "imagenet_a")
    if refusal:
        return refusal
    if bench.num_classes != CLASSES:
        return (
            f"imagenet_a judges a network that tells ImageNet's {CLASSES} classes apart; {bench.test.name} "
            f"has {bench.num_classes}. For other data use corruptions"
        )
    try:
        bench.load("test", **settings(bench))
    except FileNotFoundError as error:
        return (
            f"imagenet_a: {error}. Prepare it with `ssljax prepare tfds:imagenet_a`, or set "
            "config.evaluate.imagenet_a=folder:PATH to the unpacked imagenet-a.tar"
        )
    return ""


PROTOCOL = Protocol(reads="predictions", metrics=("top1", "top5"), judge=judge, refuse=refuse)
