"""A network that was fine-tuned on a data set, by the metric of that data set, on its test split.

    ssljax evaluate --workdir RUN --protocols finetuned

The metric of one of the twelve transfer sets is the papers' (`data.transfer`), and the row is called
finetuned_NAME. Of other images with one label each it is top-1 and the mean per class; of images with several
labels the mean over the classes of the 11-point average precision, and `map_step`, scikit-learn's, which
DeepCluster reports. With `evaluate.random_crops` the logits of random crops are summed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ssljax.data.transfer import MEAN, SETS
from ssljax.protocols import transfer
from ssljax.protocols.bench import Bench
from ssljax.protocols.features import unlabelled
from ssljax.protocols.ranking import over_classes, step
from ssljax.types import Measurement, Protocol

TIE = 1e-5  # DeepCluster takes it from the scores of positives, so that ties count against them


def judge(bench: Bench) -> Iterator[Measurement]:
    """One measurement, of the head that counts."""
    assert bench.predictions is not None, "`refuse` is asked first"
    config = bench.config
    name = bench.test.name.partition(":")[2].rpartition("/")[2] or bench.test.name
    scores = next(iter(bench.predictions(bench.test).values()))
    if "labels" in bench.test.targets:
        labels = bench.test.targets["labels"]
        values = {**transfer.metrics_of(scores, labels), "map_step": step_map(scores, labels)}
    else:
        values = transfer.metrics_of(scores, bench.test.labels)
        wanted = SETS[name].metric if bench.test.name == f"transfer:{name}" and name in SETS else ""
        values = {metric: values[metric] for metric in ([wanted] if wanted else ["top1", MEAN])}
    settings = {
        "learning_rate": config.optim.learning_rate,
        "weight_decay": config.optim.weight_decay,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "train": len(bench.train),
        "random_crops": config.evaluate.random_crops,
    }
    yield {"protocol": f"finetuned_{name}", "settings": settings, **values, "n": len(bench.test)}


def step_map(scores: np.ndarray, labels: np.ndarray) -> float:
    """`ranking.over_classes` of the step average precision."""
    return over_classes(step, scores - TIE * (labels == 1), labels)


def refuse(bench: Bench) -> str:
    """The network needs a head of its own with the classes of the data, and the test images need labels."""
    if bench.predictions is None:
        return (
            f"finetuned judges a network that was trained on labels; {bench.name} has no heads of its own: "
            "fine-tune it first (`ssljax finetune`), or use transfer"
        )
    if "labels" in bench.test.targets:
        return ""
    return unlabelled(bench.test.labels, "finetuned", bench.test.split)


PROTOCOL = Protocol(
    reads="predictions", metrics=("top1", MEAN, "map", "map_step"), judge=judge, refuse=refuse
)
