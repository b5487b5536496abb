"""Evaluation protocols: `PROTOCOLS[name]` says what a protocol reads and measures, and when it refuses."""

from ssljax.protocols import classifier, clusters, knn, label_fraction, layers, linear, reconstruction
from ssljax.types import Protocol

PROTOCOLS: dict[str, Protocol] = {
    "knn": knn.PROTOCOL,
    "linear": linear.PROTOCOL,
    "label_fraction": label_fraction.PROTOCOL,
    "layers": layers.PROTOCOL,
    "classifier": classifier.PROTOCOL,
    "clusters": clusters.PROTOCOL,
    "reconstruction": reconstruction.PROTOCOL,
}
