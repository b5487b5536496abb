"""Evaluation protocols: `PROTOCOLS[name]` says what a protocol reads and measures, and when it refuses."""

from ssljax.protocols import (
    best_layer,
    boxes,
    classifier,
    clusters,
    corruptions,
    finetuned,
    imagenet_a,
    knn,
    label_fraction,
    layers,
    linear,
    perturbations,
    reconstruction,
    retrieval,
    segmentation,
    transfer,
    voc07_svm,
)
from ssljax.types import Protocol

PROTOCOLS: dict[str, Protocol] = {
    "knn": knn.PROTOCOL,
    "linear": linear.PROTOCOL,
    "label_fraction": label_fraction.PROTOCOL,
    "layers": layers.PROTOCOL,
    "best_layer": best_layer.PROTOCOL,
    "classifier": classifier.PROTOCOL,
    "clusters": clusters.PROTOCOL,
    "reconstruction": reconstruction.PROTOCOL,
    "imagenet_a": imagenet_a.PROTOCOL,
    "corruptions": corruptions.PROTOCOL,
    "perturbations": perturbations.PROTOCOL,
    "retrieval": retrieval.PROTOCOL,
    "transfer": transfer.PROTOCOL,
    "voc07_svm": voc07_svm.PROTOCOL,
    "finetuned": finetuned.PROTOCOL,
    "detection": boxes.PROTOCOL,
    "segmentation": segmentation.PROTOCOL,
}
