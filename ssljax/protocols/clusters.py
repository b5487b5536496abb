"""Agreement of the labels that a network gave its training images with the true ones (DeepCluster, 4.1)."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from ssljax.losses.information import nmi
from ssljax.protocols.bench import Bench
from ssljax.types import Measurement, Protocol


def judge(bench: Bench) -> Iterator[Measurement]:
    """Normalised mutual information of the last clustering and the labels, in percent."""
    assert bench.assignment is not None, "`refuse` is asked first"
    source = bench.train.with_labels("--protocols: clusters")
    assignment = bench.assignment[source.index]
    known = assignment >= 0
    information = nmi(jnp.asarray(assignment[known]), jnp.asarray(source.labels[known]))
    value = 100.0 * float(information)
    settings = {"clusters": len(np.unique(assignment[known]))}
    yield {"protocol": "clusters", "settings": settings, "nmi": value, "n": int(known.sum())}


def refuse(bench: Bench) -> str:
    """The method must cluster, and the images must be those that it was trained on."""
    if bench.assignment is not None:
        return ""
    return (
        f"clusters judges the labels that a network gave to its own training images: {bench.name} gives "
        f"none, or {bench.train.name} is not what it was trained on. Use knn or linear"
    )


PROTOCOL = Protocol(reads="state", metrics=("nmi",), judge=judge, refuse=refuse)
