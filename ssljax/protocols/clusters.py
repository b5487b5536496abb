"""How much the labels that a network gave itself know of the true ones, on the training images (DeepCluster, section 4.1)."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from ssljax.losses.information import nmi
from ssljax.protocols.bench import Bench
from ssljax.types import Measurement, Protocol


def judge(bench: Bench) -> Iterator[Measurement]:
    """Normalised mutual information of the last clustering with the labels, in percent."""
    source = bench.train.with_labels("--protocols: clusters")
    assignment = bench.assignment[source.index]
    known = assignment >= 0
    value = 100.0 * float(nmi(jnp.asarray(assignment[known]), jnp.asarray(source.labels[known])))
    settings = {"clusters": len(np.unique(assignment[known]))}
    yield {"protocol": "clusters", "settings": settings, "nmi": value, "n": int(known.sum())}


def refuse(bench: Bench) -> str:
    """Only for a method that clusters, and on the images that it was trained on."""
    if bench.assignment is not None:
        return ""
    return (
        f"clusters judges the labels that a network gave to its own training images: {bench.name} gives none, or "
        f"{bench.train.name} is not what it was trained on"
    )


PROTOCOL = Protocol(reads="state", metrics=("nmi",), judge=judge, refuse=refuse)
