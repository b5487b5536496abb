"""Evaluation protocols: `PROTOCOLS[name]` says what a protocol reads and measures, and when it refuses."""

from ssljax.protocols import (
    classifier,
    clusters,
    corruptions,
    imagenet_a,
    knn,
    label_fraction,
    layers,
    linear,
    perturbations,
)
from ssljax.types import Protocol

PROTOCOLS: dict[str, Protocol] = {
    "knn": knn.PROTOCOL,
    "linear": linear.PROTOCOL,
    "label_fraction": label_fraction.PROTOCOL,
    "layers": layers.PROTOCOL,
    "classifier": classifier.PROTOCOL,
    "clusters": clusters.PROTOCOL,
    "imagenet_a": imagenet_a.PROTOCOL,
    "corruptions": corruptions.PROTOCOL,
    "perturbations": perturbations.PROTOCOL,
}
