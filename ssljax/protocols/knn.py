"""Weighted k-nearest-neighbour classification (Wu et al. 2018; DINO's eval_knn.py).

    s = cos(test, train);    vote_c = sum over the k nearest with label c of exp(s / T)
    prediction = argmax_c vote_c

The default T = 0.1 is that of MoCo's kNN monitor; DINO's is 0.07, --config.evaluate.knn_temperature=0.07 [X].

Ties: of equally similar images, the one with the lowest train index is the neighbour. Of equal votes, the
lowest class wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ssljax.protocols.bench import Bench
from ssljax.protocols.features import check
from ssljax.types import Measurement, Protocol

SIMILARITIES = 2**26  # the most similarities (256 MB) that a device computes at once
COUNTS = (1, 20, 200)  # of neighbours, each of which is reported


def knn(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    k: int,
    temperature: float,
    num_classes: int,
) -> dict[str, float]:
    """Accuracy of the weighted vote of the k nearest training images.

    Args:
        train_features, test_features: [N, D]; L2-normalised here.
        train_labels, test_labels: int [N].
        k: the number of neighbours that vote; all training images if there are fewer.
        temperature: T above; infinity gives every neighbour the same weight.
        num_classes: labels are 0..num_classes-1.

    Returns:
        `top1` and, with more than five classes, `top5` in percent; `n`, the number of test images. Like
        DINO's, `top5` looks at the first min(5, k) classes.

    Raises:
        ValueError: k or the temperature is not positive, or features and labels do not fit together.
    """
    check(train_features, train_labels, test_features, test_labels, num_classes)
    if k < 1 or not temperature > 0:
        raise ValueError(
            f"knn: k={k}, temperature={temperature}; both must be positive "
            "(config.evaluate.knn_k, config.evaluate.knn_temperature)."
        )
    similarity, neighbours = nearest(train_features, test_features, k)
    return voted(similarity, neighbours, train_labels, test_labels, temperature, num_classes)


def neighbours_of(k: int, labels: np.ndarray) -> int:
    """How many neighbours vote: k, or for k = 0 the most of COUNTS that half of a class of median size fills.

    Args:
        k: `evaluate.knn_k`.
        labels: int [N], of the labelled training images.
    """
    if k:
        return k
    half = np.median(np.unique(labels, return_counts=True)[1]) / 2
    return max(count for count in COUNTS if count <= max(half, 1))


def voted(
    similarity: np.ndarray,
    neighbours: np.ndarray,
    train_labels: np.ndarray,
    test_labels: np.ndarray,
    temperature: float,
    num_classes: int,
) -> dict[str, float]:
    """Accuracy of the weighted vote of these neighbours, as `knn` returns it.

    Args:
        similarity: float32 [N, k], from `nearest`.
        neighbours: int32 [N, k], from `nearest`.
        train_labels, test_labels, temperature, num_classes: as for `knn`.
    """
    k = neighbours.shape[1]
    n = len(test_labels)
    hits1 = 0
    hits5 = 0
    chunk = 2048
    for start in range(0, n, chunk):
        rows = slice(start, min(start + chunk, n))
        ranked = np.asarray(_vote(similarity[rows], train_labels[neighbours[rows]], temperature, num_classes))
        hit = ranked == test_labels[rows, None]
        hits1 += int(hit[:, 0].sum())
        hits5 += int(hit[:, : min(5, k)].any(axis=1).sum())

    top5 = {"top5": 100.0 * hits5 / n} if num_classes > 5 else {}
    return {"top1": 100.0 * hits1 / n, **top5, "n": n}


def nearest(train_features: np.ndarray, test_features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar training images of each test image, found exactly, the most similar first.

    The training features are split over the devices. Each device finds its own k nearest, and the nearest of
    these are the answer.

    Returns:
        Cosine similarities float32 [N, k] and train indices int32 [N, k], with k at most the number of
        training images.
    """
    n = len(train_features)
    k = min(k, n)
    devices = jax.local_devices()
    mesh = Mesh(np.array(devices), ("bank",))
    rows = -(-n // len(devices))
    padded = np.pad(_normalise(train_features), ((0, rows * len(devices) - n), (0, 0)))
    bank = jax.device_put(padded, NamedSharding(mesh, P("bank")))

    queries = _normalise(test_features)
    chunk = max(1, min(1024, len(queries), SIMILARITIES // rows))
    search = _search(mesh, n, k)
    scores = []
    indices = []
    for start in range(0, len(queries), chunk):
        part = queries[start : start + chunk]
        filled = np.pad(part, ((0, chunk - len(part)), (0, 0)))  # one shape, so one compilation
        score, index = search(bank, filled)
        scores.append(np.asarray(score)[: len(part)])
        indices.append(np.asarray(index)[: len(part)])
    return np.concatenate(scores), np.concatenate(indices)


def _normalise(x: np.ndarray) -> np.ndarray:
    """L2-normalise each row; a row of zeros stays zero."""
    x = np.asarray(x, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


@lru_cache(maxsize=8)
def _search(mesh: Mesh, n: int, k: int) -> Callable[[jax.Array, np.ndarray], tuple[jax.Array, jax.Array]]:
    """The jitted search for neighbours.

    Returns:
        (bank [n + padding, D] over the mesh, queries [Q, D]) -> (similarities [Q, k], train indices [Q, k]).
    """

    @partial(jax.shard_map, mesh=mesh, in_specs=(P("bank"), P()), out_specs=P(), check_vma=False)
    def search(bank: jax.Array, queries: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = bank.shape[0]
        index = jax.lax.axis_index("bank") * rows + jnp.arange(rows, dtype=jnp.int32)
        scores = jnp.matmul(queries, bank.T, precision=jax.lax.Precision.HIGHEST)
        scores = jnp.where((index < n)[None, :], scores, -jnp.inf)  # padding is never a neighbour
        best, where = jax.lax.top_k(scores, min(k, rows))  # of equals, the lowest index

        # Devices are gathered in the order of their rows, so ties still go to the lowest index.
        best = jax.lax.all_gather(best, "bank", axis=1, tiled=True)
        where = jax.lax.all_gather(index[where], "bank", axis=1, tiled=True)
        best, column = jax.lax.top_k(best, k)
        return best, jnp.take_along_axis(where, column, axis=1)

    return jax.jit(search)


@partial(jax.jit, static_argnames="num_classes")
def _vote(similarity: jax.Array, labels: jax.Array, temperature: float, num_classes: int) -> jax.Array:
    """Classes from most to fewest votes, int32 [Q, min(5, num_classes)].

    Weights are relative to that of the nearest neighbour. This changes no order and cannot overflow at a
    small temperature.
    """
    weight = jnp.exp((similarity - similarity[:, :1]) / temperature)
    row = jnp.arange(labels.shape[0])[:, None]
    votes = jnp.zeros((labels.shape[0], num_classes), jnp.float32).at[row, labels].add(weight)
    return jax.lax.top_k(votes, min(5, num_classes))[1]


def judge(bench: Bench) -> Iterator[Measurement]:
    """Vote with `config.evaluate.knn_k` neighbours and `knn_temperature`, and with each of COUNTS."""
    e = bench.config.evaluate
    train, test = bench.labelled("knn")
    check(train.features, train.labels, test.features, test.labels, bench.num_classes)
    k = min(neighbours_of(e.knn_k, train.labels), len(train.labels))
    similarity, neighbours = nearest(train.features, test.features, max(k, *COUNTS))

    def top(count: int) -> dict[str, float]:
        return voted(
            similarity[:, :count],
            neighbours[:, :count],
            train.labels,
            test.labels,
            e.knn_temperature,
            bench.num_classes,
        )

    settings = {"k": k, "temperature": e.knn_temperature}
    others = {f"top1_k{count}": top(count)["top1"] for count in COUNTS if count <= len(train.labels)}
    yield {"protocol": "knn", "settings": settings, **top(k), **others}


def refuse(bench: Bench) -> str:
    """Both splits need labels, and the images to evaluate must not be among those to learn from."""
    first = bench.train.describe(0)
    if first in map(bench.test.describe, range(len(bench.test))):
        return (
            f"knn: config.data.train_split and config.data.test_split both have {first}, so images would be "
            "their own nearest neighbours: set config.data.test_split to another split"
        )
    return bench.unlabelled("knn")


METRICS = ("top1", "top5", *(f"top1_k{count}" for count in COUNTS))

PROTOCOL = Protocol(reads="features", metrics=METRICS, judge=judge, refuse=refuse)
