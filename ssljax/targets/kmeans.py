"""k-means (Lloyd) and PCA whitening on the devices that hold the features, as DeepCluster uses them (arXiv 1807.05520, section 3).

    minimise over centroids C and assignments a   sum_n |x_n - C_{a(n)}|^2

Rows may be split over devices: each works on its own, a few hundred at a time, and what is exchanged are the K sums of an iteration. Empty
clusters are repaired as faiss does (`Clustering.cpp`, which the released code calls) or as the released DeeperCluster does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ssljax.losses.similarity import l2_normalize

HIGHEST = jax.lax.Precision.HIGHEST
BLOCK = 256  # rows whose distances to all centroids exist at a time: on a CPU they stay in the cache
REPAIRS = ("faiss", "additive", "none")
Axes = tuple[str, ...]


class Clusters(NamedTuple):
    """Pseudo-labels and what they came from.

    Attributes:
        assignment: int32 [N], the cluster of each row; -1 for a row that did not take part.
        centroids: float32 [K, D].
        counts: int32 [K], rows of each cluster.
    """

    assignment: jax.Array
    centroids: jax.Array
    counts: jax.Array


# ------------------------------------------------------------------------------------------------------------------------ k-means


def fit(
    features: jax.Array,
    k: int,
    key: jax.Array,
    *,
    iterations: int,
    present: jax.Array | None = None,
    repair: str = "faiss",
    spherical: bool = False,
    distinct: int = 0,
) -> Clusters:
    """k-means from k of the rows drawn at random, and a last assignment to what it found.

    Args:
        features: float32 [N, D], whole or split by rows over the devices of a mesh.
        k: clusters.
        key: of the first centroids and of the repairs.
        iterations: of Lloyd's algorithm; 20 in the paper's code.
        present: bool [N], False for padding; None: all rows are.
        repair: "faiss", "additive" or "none", see `lloyd`.
        spherical: see `lloyd`.
        distinct: only so many of the first centroids differ, the others are copies, which start empty; 0: all differ.

    Raises:
        ValueError: fewer rows than clusters.
    """
    present = jnp.ones(features.shape[:1], bool) if present is None else present
    rows = int(present.sum())
    if not 1 <= k <= rows:
        raise ValueError(
            f"{k} clusters of {rows} rows: config.clusters.k must be at least 1 and at most the number of training images"
        )
    first, later = jax.random.split(key)
    centroids = _some_rows(features, present, first, k)[jnp.arange(k) % (distinct or k)]
    centroids, _ = lloyd(
        features, centroids, later, iterations=iterations, present=present, repair=repair, spherical=spherical
    )
    return clusters(jnp.where(present, assign(features, centroids), -1), centroids)


def clusters(assignment: jax.Array, centroids: jax.Array) -> Clusters:
    """The three fields from the first two."""
    return Clusters(assignment, centroids, _counted(assignment, centroids.shape[0]))


@partial(jax.jit, static_argnums=1)
def _counted(assignment: jax.Array, k: int) -> jax.Array:
    return jnp.zeros(k, jnp.int32).at[jnp.where(assignment < 0, k, assignment)].add(1, mode="drop")


@partial(jax.jit, static_argnums=3)
def _some_rows(features: jax.Array, present: jax.Array, key: jax.Array, k: int) -> jax.Array:
    """k different rows, each present one equally likely."""
    lot = jnp.where(present, jax.random.uniform(key, present.shape), -1.0)
    return features[jax.lax.top_k(lot, k)[1]]


def lloyd(
    features: jax.Array,
    centroids: jax.Array,
    key: jax.Array,
    *,
    iterations: int,
    present: jax.Array | None = None,
    repair: str = "faiss",
    spherical: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Lloyd's iterations from given centroids: assign, take means, give empty clusters half of another.

    Args:
        features: float32 [N, D].
        centroids: float32 [K, D].
        key: of the repairs.
        iterations: how many.
        present: bool [N], False for padding; None: all rows are.
        repair: what becomes of an empty cluster. "faiss": it and a donor, drawn with a probability that grows with its size, stand around
            the donor's mean at 1 -+ 1/1024 of its coordinates, alternating. "additive": any donor, 1e-7 to either side (DeeperCluster).
            Both are lost in bfloat16. "none": it keeps its centroid (DeepCluster-v2).
        spherical: unit centroids; with unit rows the nearest is then the most similar one.

    Returns:
        centroids float32 [K, D], and the objective with the centroids before each iteration, float32 [iterations].

    Raises:
        ValueError: an unknown repair.
    """
    if repair not in REPAIRS:
        raise ValueError(f"config.clusters.repair={repair!r} is not one of {', '.join(REPAIRS)}")
    present = jnp.ones(features.shape[:1], bool) if present is None else present
    return _lloyd(*_split(features), iterations, repair, spherical)(features, present, centroids, key)


def assign(features: jax.Array, centroids: jax.Array) -> jax.Array:
    """The nearest centroid of each row, of equally near ones the first: [N, D], [K, D] -> int32 [N], split as the rows are."""
    return _assign(*_split(features))(features, centroids)


@jax.jit
def objective(features: jax.Array, found: Clusters) -> jax.Array:
    """The sum of squared distances, float32; rows that did not take part do not count."""
    distance = jnp.square(features - found.centroids[jnp.maximum(found.assignment, 0)]).sum(axis=1)
    return jnp.where(found.assignment < 0, 0.0, distance).sum()


@jax.jit
def minibatch(
    centroids: jax.Array, counts: jax.Array, rows: jax.Array, present: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One step of mini-batch k-means (Sculley, WWW 2010), for data that is seen in pieces and never held.

    Every centroid is the mean of all rows that were ever given to it.

    Args:
        centroids: float32 [K, D].
        counts: int32 [K], rows given to each so far.
        rows: float32 [B, D].
        present: bool [B].
    """
    sums, new, _ = _pass(rows, present, centroids)
    total = counts + new
    step = (sums - new[:, None].astype(jnp.float32) * centroids) / jnp.maximum(total, 1)[:, None].astype(
        jnp.float32
    )
    return centroids + step, total


@partial(jax.jit, static_argnums=3)
def split_empty(
    centroids: jax.Array, counts: jax.Array, key: jax.Array, repair: str
) -> tuple[jax.Array, jax.Array]:
    """Every empty cluster takes half the rows of another, as long as one has two: see `lloyd`. Counts are those that are hoped for."""
    even = jnp.arange(centroids.shape[1]) % 2 == 0

    def apart(c: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Two points around c: the empty cluster's and the donor's."""
        if repair == "faiss":
            return c * jnp.where(even, 1 + 1 / 1024, 1 - 1 / 1024), c * jnp.where(
                even, 1 - 1 / 1024, 1 + 1 / 1024
            )
        return c + jnp.where(even, -1e-7, 1e-7), c - jnp.where(even, -1e-7, 1e-7)

    def one(state: tuple) -> tuple:
        centroids, counts, key = state
        key, draw = jax.random.split(key)
        chance = jnp.maximum(counts - 1, 0).astype(jnp.float32)
        donor = jax.random.categorical(
            draw, jnp.log(chance if repair == "faiss" else jnp.minimum(chance, 1.0))
        )
        empty, half = jnp.argmin(counts), counts[donor] // 2
        new, old = apart(centroids[donor])
        return (
            centroids.at[empty].set(new).at[donor].set(old),
            counts.at[empty].set(half).at[donor].add(-half),
            key,
        )

    def more(state: tuple) -> jax.Array:
        return (state[1].min() == 0) & (state[1].max() > 1)

    return jax.lax.while_loop(more, one, (centroids, counts, key))[:2]


# -------------------------------------------------------------------------------------------------------------------------- PCA


class Moments(NamedTuple):
    """Of the rows seen so far: their number, mean [D] and scatter [D, D] (sum of outer products around the mean), float32."""

    count: jax.Array
    mean: jax.Array
    scatter: jax.Array


class Whitening(NamedTuple):
    """x -> (x - mean) @ projection has mean 0 and covariance 1: mean float32 [D], projection float32 [D, dim]."""

    mean: jax.Array
    projection: jax.Array


def pca_whiten(features: jax.Array, dim: int, present: jax.Array | None = None) -> jax.Array:
    """The first `dim` principal components at unit variance: float32 [N, D] -> [N, dim], split as the rows are.

    Fitted on all (present) rows. DeepCluster's `preprocess_features` is this and then rows of length one. Signs of columns are arbitrary.

    Raises:
        ValueError: `dim` is more than D.
    """
    return whiten(features, whitening(moments(features, present), dim))


def moments(features: jax.Array, present: jax.Array | None = None) -> Moments:
    """The moments of all (present) rows, in one pass."""
    present = jnp.ones(features.shape[:1], bool) if present is None else present
    return _moments(*_split(features))(features, present)


@jax.jit
def merge(a: Moments, b: Moments) -> Moments:
    """The moments of two sets of rows together (Chan, Golub & LeVeque 1983)."""
    count = a.count + b.count
    share = b.count / jnp.maximum(count, 1.0)
    apart = b.mean - a.mean
    return Moments(
        count, a.mean + share * apart, a.scatter + b.scatter + a.count * share * jnp.outer(apart, apart)
    )


@partial(jax.jit, static_argnums=1)
def _eigen(m: Moments, dim: int) -> Whitening:
    variance, vectors = jnp.linalg.eigh(m.scatter / m.count)
    variance, vectors = variance[::-1][:dim], vectors[:, ::-1][:, :dim]
    return Whitening(m.mean, vectors * jax.lax.rsqrt(jnp.maximum(variance, 1e-8 * variance[0]))[None])


def whitening(m: Moments, dim: int) -> Whitening:
    """What makes rows of these moments white; variances below 1e-8 of the largest are rounding and not blown up further."""
    if not 1 <= dim <= m.mean.shape[0]:
        raise ValueError(
            f"config.clusters.dim={dim} components of {m.mean.shape[0]} features: choose from 1 to {m.mean.shape[0]}"
        )
    return _eigen(m, dim)


@jax.jit
def whiten(features: jax.Array, w: Whitening) -> jax.Array:
    """[N, D] -> [N, dim], float32."""
    return jnp.dot(features.astype(jnp.float32) - w.mean[None], w.projection, precision=HIGHEST)


# ------------------------------------------------------------------------------------------------------- rows on their devices


def _split(features: jax.Array) -> tuple[Mesh | None, Axes]:
    """The mesh and its axes over which the rows are split; (None, ()) for an array that is whole, or being traced."""
    place = None if isinstance(features, jax.core.Tracer) else features.sharding
    if not isinstance(place, NamedSharding) or not place.spec or place.spec[0] is None:
        return None, ()
    axes = place.spec[0]
    return place.mesh, (axes,) if isinstance(axes, str) else tuple(axes)


def _on(mesh: Mesh | None, local: Callable, arguments: tuple[P, ...], out: P) -> Callable:
    """jit of `local`, run by each device on its own part."""
    return jax.jit(
        local
        if mesh is None
        else jax.shard_map(local, mesh=mesh, in_specs=arguments, out_specs=out, check_vma=False)
    )


@lru_cache(maxsize=8)
def _lloyd(mesh: Mesh | None, axes: Axes, iterations: int, repair: str, spherical: bool) -> Callable:
    def local(
        x: jax.Array, present: jax.Array, centroids: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def iteration(centroids: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            sums, counts, total = jax.lax.psum(_pass(x, present, centroids), axes)
            means = sums / jnp.maximum(counts, 1)[:, None].astype(jnp.float32)
            means = l2_normalize(means) if spherical else means
            centroids = jnp.where(counts[:, None] > 0, means, centroids)
            return centroids if repair == "none" else split_empty(centroids, counts, key, repair)[0], total

        return jax.lax.scan(iteration, centroids, jax.random.split(key, iterations))

    return _on(mesh, local, (P(axes), P(axes), P(), P()), P())


@lru_cache(maxsize=8)
def _assign(mesh: Mesh | None, axes: Axes) -> Callable:
    def local(x: jax.Array, centroids: jax.Array) -> jax.Array:
        return jax.lax.map(lambda block: _nearest(block, centroids)[0], _blocks(x)).reshape(-1)[: x.shape[0]]

    return _on(mesh, local, (P(axes), P()), P(axes))


@lru_cache(maxsize=8)
def _moments(mesh: Mesh | None, axes: Axes) -> Callable:
    def block(total: Moments, rows: tuple[jax.Array, jax.Array]) -> tuple[Moments, None]:
        x, here = rows[0].astype(jnp.float32), rows[1][:, None].astype(jnp.float32)
        count = here.sum()
        mean = (x * here).sum(axis=0) / jnp.maximum(count, 1.0)
        x = (x - mean[None]) * here
        return merge(total, Moments(count, mean, jnp.dot(x.T, x, precision=HIGHEST))), None

    def local(x: jax.Array, present: jax.Array) -> Moments:
        nothing = Moments(
            jnp.float32(0.0), jnp.zeros(x.shape[1:], jnp.float32), jnp.zeros((x.shape[1],) * 2, jnp.float32)
        )
        m, _ = jax.lax.scan(block, nothing, (_blocks(x), _blocks(present)))
        if mesh is None:
            return m
        count = jax.lax.psum(m.count, axes)
        mean = jax.lax.psum(m.count * m.mean, axes) / count
        return Moments(
            count, mean, jax.lax.psum(m.scatter + m.count * jnp.outer(m.mean - mean, m.mean - mean), axes)
        )

    return _on(mesh, local, (P(axes), P(axes)), P())


# -------------------------------------------------------------------------------------------------------------- a block of rows


def _blocks(x: jax.Array) -> jax.Array:
    """[N, ...] -> [blocks, <= BLOCK, ...], zeros behind the last row."""
    size = min(BLOCK, x.shape[0])
    missing = -x.shape[0] % size
    return jnp.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1))).reshape(-1, size, *x.shape[1:])


def _nearest(x: jax.Array, centroids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The nearest centroid int32 [B] of rows [B, D], and the squared distance to it.

    The first of the largest c.x - |c|^2 / 2. On a CPU, a maximum over the leading axis and a look where it stands cost a third of XLA's
    argmax over the last.
    """
    x = x.astype(jnp.float32)
    score = jnp.dot(centroids, x.T, precision=HIGHEST) - 0.5 * jnp.square(centroids).sum(axis=1)[:, None]
    best, last = score.max(axis=0), centroids.shape[0] - 1
    nearest = jnp.where(score == best[None], jnp.arange(last + 1, dtype=jnp.int32)[:, None], last).min(axis=0)
    return nearest, jnp.square(x).sum(axis=1) - 2.0 * best


def _pass(x: jax.Array, present: jax.Array, centroids: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of the rows nearest to each centroid: their sum [K, D] and number int32 [K]; and the sum of all squared distances."""

    def block(total: Any, rows: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        x, here = rows
        nearest, distance = _nearest(x, centroids)
        sums, counts = _grouped(x.astype(jnp.float32), nearest, here, centroids.shape[0])
        return (total[0] + sums, total[1] + counts, total[2] + jnp.where(here, distance, 0.0).sum()), None

    k = centroids.shape[0]
    nothing = (jnp.zeros_like(centroids), jnp.zeros(k, jnp.int32), jnp.float32(0.0))
    return jax.lax.scan(block, nothing, (_blocks(x), _blocks(present)))[0]


def _grouped(x: jax.Array, cluster: jax.Array, here: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Sums [K, D] and numbers int32 [K] of the rows of each cluster: scattered on a CPU, a matrix product elsewhere."""

    def scattered(x: jax.Array, cluster: jax.Array, here: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = jnp.where(here[:, None], x, 0.0)
        return jax.ops.segment_sum(x, cluster, k), jax.ops.segment_sum(here.astype(jnp.int32), cluster, k)

    def product(x: jax.Array, cluster: jax.Array, here: jax.Array) -> tuple[jax.Array, jax.Array]:
        member = ((cluster[None] == jnp.arange(k, dtype=jnp.int32)[:, None]) & here[None]).astype(jnp.float32)
        return jnp.dot(member, x, precision=HIGHEST), member.sum(axis=1).astype(jnp.int32)

    return jax.lax.platform_dependent(x, cluster, here, cpu=scattered, default=product)
