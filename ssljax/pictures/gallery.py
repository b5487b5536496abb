"""What the figures of `ssljax report` need of a run: some features, nearest neighbours, clusters and attention maps, in one npz."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssljax import models
from ssljax.data import loader
from ssljax.data.source import Source
from ssljax.program import Evaluated
from ssljax.protocols.bench import Bench
from ssljax.protocols.knn import nearest

POINTS, DIM = 600, 32  # test features kept for the figures, and their principal components
QUERIES, NEIGHBOURS, THUMBNAIL = 8, 7, 48
CLUSTERS, MEMBERS = 10, 12  # of a method that clusters: so many clusters, and so many training images of each


def save(path: Path, benches: Sequence[Bench], run: Evaluated) -> None:
    """What the figures need: principal components of some test features of every kind, and nearest neighbours in the run's features.

    Fields: `kinds`, `points/KIND` float16 [P, <= 32], `labels` int32 [P], `class_names`, `query` uint8 [Q, S, S, C], `query_labels`,
    `neighbour` uint8 [Q, K, S, S, C], `neighbour_labels` [Q, K], `preset`, `seed`; of a vision transformer `attention`, of a method that
    clusters `cluster`, `cluster_labels` and `cluster_size`, see below. A label is -1 where an image has none.
    """
    config, source, test = run.config, benches[0].train, benches[0].test
    rows = np.unique(np.linspace(0, len(test) - 1, min(len(test), POINTS)).astype(np.int64))
    queries = queries_of(test.labels)
    _, near = nearest(
        benches[0].features(source).features, benches[0].features(test).features[queries], NEIGHBOURS
    )
    neighbours = thumbnails(source, near.ravel(), config)
    fields = {
        f"points/{bench.name}": principal(bench.features(test).features[rows]).astype(np.float16)
        for bench in benches
    }
    if isinstance(models.backbone(config.model), models.ViT):
        fields["attention"] = attention(run, test, queries)
    if benches[0].assignment is not None:
        fields |= contact_sheet(benches[0].assignment[source.index], source, config)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        **fields,
        kinds=np.array([bench.name for bench in benches]),
        labels=test.labels[rows],
        class_names=np.array(test.class_names),
        query=thumbnails(test, queries, config),
        query_labels=test.labels[queries],
        neighbour=neighbours.reshape(*near.shape, *neighbours.shape[1:]),
        neighbour_labels=source.labels[near],
        preset=config.preset,
        seed=config.seed,
    )


def queries_of(labels: np.ndarray) -> np.ndarray:
    """Positions of the test images whose neighbours are shown: the first of each class, at most QUERIES.

    Where no image has a label: evenly spaced ones.
    """
    classes, first = np.unique(labels, return_index=True)
    if not (classes >= 0).any():
        return np.unique(np.linspace(0, len(labels) - 1, QUERIES).astype(np.int64))
    return first[classes >= 0][:QUERIES]


def contact_sheet(assignment: np.ndarray, source: Source, config: ConfigDict) -> dict[str, np.ndarray]:
    """Training images of CLUSTERS clusters, from the largest to the smallest that fills a row, none of them chosen by its images.

    Returns:
        `cluster` uint8 [K, M, S, S, C] with at most MEMBERS members, evenly spaced in the data set; their `cluster_labels` int [K, M]; the
        `cluster_size` int [K].
    """
    ids, sizes = np.unique(assignment[assignment >= 0], return_counts=True)
    members = min(MEMBERS, int(sizes.max()))
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] >= members]
    order = order[np.unique(np.linspace(0, len(order) - 1, CLUSTERS).astype(np.int64))]
    rows = np.stack(
        [
            np.flatnonzero(assignment == ids[k])[np.linspace(0, sizes[k] - 1, members).astype(np.int64)]
            for k in order
        ]
    )
    images = thumbnails(source, rows.ravel(), config)
    return {
        "cluster": images.reshape(*rows.shape, *images.shape[1:]),
        "cluster_labels": source.labels[rows],
        "cluster_size": sizes[order],
    }


def attention(run: Evaluated, test: Source, queries: np.ndarray) -> np.ndarray:
    """Where the class token (and the distillation token) look in the last block, the mean over heads: float16 [Q, 1 or 2, r, c]."""
    images = next(iter(loader.eval_batches(test.select(queries), run.config, batch_size=len(queries))))[
        "image"
    ]
    weights = run.attention(jnp.asarray(images))
    tokens, side = weights.shape[2], images.shape[1] // run.config.model.patch
    return np.asarray(weights[..., tokens:].mean(1).reshape(len(queries), tokens, side, side), np.float16)


def principal(features: np.ndarray) -> np.ndarray:
    """The first DIM principal components, scaled together to unit deviation of the first."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    return (u * s)[:, :DIM] * np.sqrt(len(u)) / max(s[0], 1e-12)


def thumbnails(source: Source, rows: np.ndarray, config: ConfigDict) -> np.ndarray:
    """Images as the network sees them at evaluation, no larger than THUMBNAIL pixels: uint8 [K, S, S, C]."""
    images = next(iter(loader.eval_batches(source.select(rows), config, batch_size=len(rows))))["image"]
    stride = -(-images.shape[1] // THUMBNAIL)
    size = images.shape[1] // stride * stride
    blocks = images[:, :size, :size].reshape(len(images), size // stride, stride, size // stride, stride, -1)
    return np.rint(blocks.mean(axis=(2, 4))).astype(np.uint8)
