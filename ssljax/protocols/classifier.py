"""The run's own heads on the held-out images, for a supervised, distilled or fine-tuned network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from ssljax.protocols.bench import Bench
from ssljax.protocols.features import unlabelled
from ssljax.protocols.linear import accuracies
from ssljax.types import Measurement, Protocol


def judge(bench: Bench) -> Iterator[Measurement]:
    """One measurement per head, under the head's name. The first is the one that counts."""
    assert bench.predictions is not None, "`refuse` is asked first"
    test = bench.test.with_labels("--protocols: classifier")
    for name, logits in bench.predictions(test).items():
        if logits.shape[1] != bench.num_classes:
            raise ValueError(
                f"--protocols: classifier: the run's head {name} tells {logits.shape[1]} classes apart, "
                f"{bench.test.name} has {bench.num_classes}: use knn or linear, which learn the classes of "
                "these data"
            )
        yield {"protocol": name, "settings": recipe(bench.config), **accuracies(logits, test.labels)}


def recipe(config: ConfigDict) -> dict[str, Any]:
    """How the head of a frozen network (method `linear`) was trained; nothing for any other method."""
    if config.method != "linear":
        return {}
    return {
        "recipe": config.name,
        "layer": config.probe.layer,
        "crop": config.augment.crop,
        "optimizer": config.optim.name,
        "learning_rate": config.optim.learning_rate,
        "scaling": config.optim.scaling,
        "batch_size": config.batch_size,
        "epochs": config.epochs,
        "test_crops": 10 if config.evaluate.ten_crops else 1,
    }


def refuse(bench: Bench) -> str:
    """The network needs a head that was trained on labels, and the test images need labels."""
    if bench.predictions is not None:
        return unlabelled(bench.test.labels, "classifier", bench.test.split)
    return (
        f"classifier judges a network that was trained on labels; {bench.name} has no heads of its own. "
        "Use knn, linear or label_fraction, or evaluate a fine-tuned stage"
    )


PROTOCOL = Protocol(reads="predictions", metrics=("top1", "top5"), judge=judge, refuse=refuse)
