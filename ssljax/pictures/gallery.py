"""Saves what the figures of `ssljax report` need from a run, in one npz.

These are some features and nearest neighbours and, if the run has them, clusters and attention maps; of a
tokenizer, only what its codes keep of some images.
"""

from __future__ import annotations

import io
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from ssljax import models
from ssljax.data import loader, view_folders
from ssljax.data.source import Source
from ssljax.pictures import kept
from ssljax.program import Evaluated
from ssljax.protocols.bench import Bench
from ssljax.protocols.knn import nearest

POINTS = 300  # test images whose features are kept
DIM = 16  # principal components of these features
QUERIES = 8  # test images whose neighbours are shown, if none has a label
CLASSES = 20  # classes of which one test image is shown
NEIGHBOURS = 7  # neighbours of each of them
THUMBNAIL = 96  # largest side of an image, in pixels
LEVELS = 8  # steps between the values of its pixels, which is invisible and takes a third off the file
POOL = 5000  # training images among which neighbours are sought, where no protocol encoded them all
CLUSTERS = 10  # clusters shown, of a method that has clusters
MEMBERS = 12  # training images shown of each cluster


def save(
    path: epath.Path,
    benches: Sequence[Bench],
    run: Evaluated,
    *,
    pool: int = 0,
    config_hash: str = "",
    shown: Mapping[str, np.ndarray] = types.MappingProxyType({}),
) -> None:
    """Saves principal components of some test features of every kind, and nearest neighbours.

    The file has the fields `kinds`, `points/KIND` float16 [P, <= 16], `labels` int32 [P], `class_names`,
    `query` uint8 [Q, S, S, C], `query_labels`, `neighbour` uint8 [Q, K, S, S, C], `neighbour_labels` [Q, K],
    `preset`, `config_hash` and `seed`. A vision transformer adds `attention`, BEiT's pretraining `masked`; a
    method with clusters adds `cluster`, `cluster_labels` and `cluster_size`, see below. A tokenizer, which
    has no features of its own, has `reconstruction` in place of points and neighbours. An image without a
    label has the label -1.

    Args:
        path: the npz to write.
        benches: one per kind of features. The neighbours and clusters are those of the first.
        run: the run that the first bench evaluates.
        pool: the number of training images, evenly spaced, among which neighbours are sought; 0 takes all.
        shown: arrays that protocols add, as PROTOCOL/KIND/NAME: those of `retrieval.examples`.
        config_hash: of the run, by which `ssljax report` finds the gallery of a group.
    """
    config = run.config
    first = benches[0]
    test = first.test
    queries = queries_of(test.labels)
    fields: dict[str, Any] = dict(shown)
    if run.method.reconstruct is not None:
        fields["reconstruction"] = reconstruction(run, test, queries)
    else:
        fields |= neighbourhood(benches, queries, config, pool)
    if isinstance(models.backbone(config.model), (models.ViT, models.BeitViT)):
        fields["attention"] = attention(run, test, queries)
    if run.method.masks is not None:
        fields["masked"] = masked(run, test, queries)
    if first.assignment is not None:
        fields |= contact_sheet(first.assignment[first.train.index], first.train, config)

    if "kinds" in fields:
        fields |= baselines_of_before(path, fields, config_hash, config.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = io.BytesIO()
    np.savez_compressed(
        packed,
        **fields,
        class_names=np.array(test.class_names),
        query=thumbnails(test, queries, config),
        query_labels=test.labels[queries],
        preset=config.preset,
        config_hash=config_hash,
        seed=config.seed,
    )
    path.write_bytes(packed.getvalue())


def neighbourhood(
    benches: Sequence[Bench], queries: np.ndarray, config: ConfigDict, pool: int
) -> dict[str, np.ndarray]:
    """The fields `kinds`, `points/KIND`, `labels`, `neighbour` and `neighbour_labels` of `save`."""
    first = benches[0]
    source, test = first.train, first.test
    if 0 < pool < len(source):
        source = source.select(np.linspace(0, len(source) - 1, pool).astype(np.int64))
    _, near = nearest(first.features(source).features, first.features(test).features[queries], NEIGHBOURS)
    neighbours = thumbnails(source, near.ravel(), config)

    rows = np.unique(np.linspace(0, len(test) - 1, min(len(test), POINTS)).astype(np.int64))
    points = {
        f"points/{bench.name}": principal(bench.features(test).features[rows]).astype(np.float16)
        for bench in benches
    }
    return points | {
        "kinds": np.array([bench.name for bench in benches]),
        "labels": test.labels[rows],
        "neighbour": neighbours.reshape(*near.shape, *neighbours.shape[1:]),
        "neighbour_labels": source.labels[near],
    }


def baselines_of_before(
    path: epath.Path, fields: Mapping[str, np.ndarray], config_hash: str, seed: int
) -> dict[str, np.ndarray]:
    """Points of baselines that an earlier evaluation of the same run has measured and this one has not.

    Args:
        path: of the gallery that is about to be replaced.
        fields: the new ones, with `kinds` and `labels`.
        config_hash: of the run.
        seed: of the run.

    Returns:
        `points/KIND` of each, and `kinds` of all; {} if there are none.
    """
    if kept.config_of(path) != config_hash:
        return {}
    with path.open("rb") as file, np.load(file) as before:
        if int(before["seed"]) != seed or not np.array_equal(before.get("labels"), fields["labels"]):
            return {}
        names = [str(name) for name in before["kinds"] if name not in fields["kinds"]]
        points = {f"points/{name}": before[f"points/{name}"] for name in names}
    return points | {"kinds": np.array([*fields["kinds"], *names])} if points else {}


def queries_of(labels: np.ndarray) -> np.ndarray:
    """Positions of the test images whose neighbours are shown: the first of each class.

    Of more than CLASSES classes, as many evenly spaced ones. If no image has a label, QUERIES images are.
    """
    classes, first = np.unique(labels, return_index=True)
    if not (classes >= 0).any():
        return np.unique(np.linspace(0, len(labels) - 1, QUERIES).astype(np.int64))
    first = first[classes >= 0]
    return first[np.unique(np.linspace(0, len(first) - 1, CLASSES).astype(np.int64))]


def contact_sheet(assignment: np.ndarray, source: Source, config: ConfigDict) -> dict[str, np.ndarray]:
    """Training images of CLUSTERS clusters.

    The clusters are evenly spaced by size, from the largest to the smallest that fills a row. Their images
    have no influence on the choice.

    Args:
        assignment: int [N], the cluster of each training image; -1 for none.
        source: the training images.
        config: the run's config.

    Returns:
        `cluster` uint8 [K, M, S, S, C] with at most MEMBERS images per cluster, evenly spaced in the data
        set; their `cluster_labels` int [K, M]; the `cluster_size` int [K].
    """
    ids, sizes = np.unique(assignment[assignment >= 0], return_counts=True)
    members = min(MEMBERS, int(sizes.max()))

    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] >= members]
    order = order[np.unique(np.linspace(0, len(order) - 1, CLUSTERS).astype(np.int64))]

    rows_of = []
    for k in order:
        inside = np.flatnonzero(assignment == ids[k])
        rows_of.append(inside[np.linspace(0, sizes[k] - 1, members).astype(np.int64)])
    rows = np.stack(rows_of)
    images = thumbnails(source, rows.ravel(), config)
    return {
        "cluster": images.reshape(*rows.shape, *images.shape[1:]),
        "cluster_labels": source.labels[rows],
        "cluster_size": sizes[order],
    }


def attention(run: Evaluated, test: Source, queries: np.ndarray) -> np.ndarray:
    """The attention of the class token, and of the distillation token if there is one, to the patches.

    Args:
        run: a run with a vision transformer.
        test: the test images.
        queries: int [Q], positions in `test`.

    Returns:
        float16 [Q, 1 or 2, rows, columns], of the last block; mean over its heads.
    """
    images = evaluation_images(test, queries, run.config)
    weights = run.attention(jnp.asarray(images))
    tokens = weights.shape[2]
    side = images.shape[1] // run.config.model.patch
    mean = weights[..., tokens:].mean(1)
    return np.asarray(mean.reshape(len(queries), tokens, side, side), np.float16)


def reconstruction(run: Evaluated, test: Source, queries: np.ndarray) -> np.ndarray:
    """What a tokenizer makes of the codes of test images: uint8 [Q, S, S, C], as small as thumbnails."""
    assert run.method.reconstruct is not None
    images = jnp.asarray(evaluation_images(test, queries, run.config))
    _, made = jax.jit(run.method.reconstruct)(run.params, run.model_state, run.extra, images)
    return shrunk(np.asarray(made) * 255.0)


def masked(run: Evaluated, test: Source, queries: np.ndarray) -> np.ndarray:
    """Test images with patches masked as in training, in grey: uint8 [Q, S, S, C], as small as thumbnails."""
    assert run.method.masks is not None
    images = evaluation_images(test, queries, run.config)
    index = jnp.asarray(test.index[queries], jnp.int32)
    mask = run.method.masks(jax.random.key(run.config.seed), index)
    return shrunk(greyed(images, np.asarray(mask), 128))


def greyed(images: np.ndarray, mask: np.ndarray, grey: float) -> np.ndarray:
    """Images [B, S, S, C] whose masked patches are grey. `mask` is bool [B, h, w]."""
    side = images.shape[1] // mask.shape[1]
    over = mask.repeat(side, axis=1).repeat(side, axis=2)
    return np.where(over[..., None], np.asarray(grey, images.dtype), images)


def evaluation_images(source: Source, rows: np.ndarray, config: ConfigDict) -> np.ndarray:
    """Images as the network sees them at evaluation: uint8 [K, S, S, C]."""
    batches = loader.eval_batches(source.select(rows), config, batch_size=len(rows))
    return next(iter(batches))["image"]


def principal(features: np.ndarray) -> np.ndarray:
    """The first DIM principal components, all scaled so that the first has unit standard deviation."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    return (u * s)[:, :DIM] * np.sqrt(len(u)) / max(s[0], 1e-12)


def thumbnails(source: Source, rows: np.ndarray, config: ConfigDict) -> np.ndarray:
    """The images of evaluation, shrunk to at most THUMBNAIL pixels: uint8 [K, S, S, C].

    Of several views they show the first.
    """
    images = evaluation_images(source, rows, config)
    if config.data.get("view_folders"):
        images = view_folders.pictures(images, config.data.view_folders)[0]
    return shrunk(images)


def shrunk(images: np.ndarray) -> np.ndarray:
    """Images [K, S, S, C] of values in 0..255 at no more than THUMBNAIL pixels: uint8."""
    stride = -(-images.shape[1] // THUMBNAIL)
    places = images.shape[1] // stride
    size = places * stride
    blocks = images[:, :size, :size].reshape(len(images), places, stride, places, stride, -1)
    mean = blocks.mean(axis=(2, 4))
    return np.clip(np.rint(mean / LEVELS) * LEVELS, 0, 255).astype(np.uint8)
