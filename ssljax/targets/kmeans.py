"""k-means (Lloyd) and PCA whitening on the devices that hold the features, as DeepCluster uses them.

    minimise over centroids C and assignments a   sum_n |x_n - C_{a(n)}|^2      (arXiv 1807.05520, section 3)

The rows may be split over devices. Each device then works on its own rows, a few hundred at a time, and the
devices exchange only the K sums of an iteration. Empty clusters are repaired as faiss does it
(`Clustering.cpp`, which the released code calls) or as the released DeeperCluster does it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ssljax.losses.similarity import l2_normalize

HIGHEST = jax.lax.Precision.HIGHEST
BLOCK = 256  # rows whose distances to all centroids exist at a time; on a CPU they stay in the cache
REPAIRS = ("faiss", "additive", "none")
Axes = tuple[str, ...]
AnyMesh = Mesh | AbstractMesh


class Clusters(NamedTuple):
    """Pseudo-labels, and the clusters that they came from.

    Attributes:
        assignment: int32 [N], the cluster of each row; -1 for a row that did not take part.
        centroids: float32 [K, D].
        counts: int32 [K], rows per cluster.
    """

    assignment: jax.Array
    centroids: jax.Array
    counts: jax.Array


# --------------------------------------------------------------------------------------------------- k-means


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
    """Run k-means from k rows drawn at random, then assign every row to its nearest centroid.

    Args:
        features: float32 [N, D], whole, or split by rows over the devices of a mesh.
        k: number of clusters.
        key: for the first centroids and for the repairs.
        iterations: number of Lloyd iterations; 20 in the paper's code.
        present: bool [N], False for padding. None: all rows take part.
        repair: "faiss", "additive" or "none", see `lloyd`.
        spherical: see `lloyd`.
        distinct: number of different first centroids. The others are copies, whose clusters start empty.
            0: all differ.

    Raises:
        ValueError: fewer rows than clusters.
    """
    present = _or_all(present, features)
    rows = int(present.sum())
    if not 1 <= k <= rows:
        raise ValueError(
            f"{k} clusters of {rows} rows: config.clusters.k must be at least 1 and at most the number of "
            "training images"
        )
    draw_key, lloyd_key = jax.random.split(key)
    drawn = _some_rows(features, present, draw_key, k)
    centroids = drawn[jnp.arange(k) % (distinct or k)]
    centroids, _ = lloyd(
        features,
        centroids,
        lloyd_key,
        iterations=iterations,
        present=present,
        repair=repair,
        spherical=spherical,
    )
    assignment = jnp.where(present, assign(features, centroids), -1)
    return clusters(assignment, centroids)


def clusters(assignment: jax.Array, centroids: jax.Array) -> Clusters:
    """Build Clusters from its first two fields by counting."""
    return Clusters(assignment, centroids, _counted(assignment, centroids.shape[0]))


@partial(jax.jit, static_argnums=1)
def _counted(assignment: jax.Array, k: int) -> jax.Array:
    return jnp.zeros(k, jnp.int32).at[jnp.where(assignment < 0, k, assignment)].add(1, mode="drop")


@partial(jax.jit, static_argnums=3)
def _some_rows(features: jax.Array, present: jax.Array, key: jax.Array, k: int) -> jax.Array:
    """Draw k different rows; each row that is present is equally likely."""
    lot = jnp.where(present, jax.random.uniform(key, present.shape), -1.0)
    return features[jax.lax.top_k(lot, k)[1]]


def _or_all(present: jax.Array | None, features: jax.Array) -> jax.Array:
    """`present`, or True for every row."""
    return jnp.ones(features.shape[:1], bool) if present is None else present


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
        key: for the repairs.
        iterations: number of iterations.
        present: bool [N], False for padding. None: all rows take part.
        repair: what happens to an empty cluster.
            "faiss": a donor is drawn, see `scanned`. The empty cluster and the donor are placed around the
            donor's mean, at 1 -+ 1/1024 of its coordinates, with alternating signs.
            "additive": any donor, 1e-7 to either side (DeeperCluster).
            "none": the cluster keeps its centroid (DeepCluster-v2).
            bfloat16 would lose the offsets of the first two.
        spherical: normalise the centroids to unit length. For rows of unit length the nearest centroid is
            then the most similar one.

    Returns:
        Centroids float32 [K, D], and float32 [iterations], the objective with the centroids before each
        iteration.

    Raises:
        ValueError: an unknown repair.
    """
    if repair not in REPAIRS:
        raise ValueError(f"config.clusters.repair={repair!r} is not one of {', '.join(REPAIRS)}")
    present = _or_all(present, features)
    run = _lloyd(*_split(features), iterations, repair, spherical)
    return run(features, present, centroids, key)


def assign(features: jax.Array, centroids: jax.Array) -> jax.Array:
    """The nearest centroid of each row; of equally near ones, the first.

    Args:
        features: float32 [N, D].
        centroids: float32 [K, D].

    Returns:
        int32 [N], split over devices as the rows are.
    """
    return _assign(*_split(features))(features, centroids)


@jax.jit
def objective(features: jax.Array, found: Clusters) -> jax.Array:
    """The sum of squared distances, float32, over the rows that took part."""
    distance = jnp.square(features - found.centroids[jnp.maximum(found.assignment, 0)]).sum(axis=1)
    return jnp.where(found.assignment < 0, 0.0, distance).sum()


@jax.jit
def minibatch(
    centroids: jax.Array, counts: jax.Array, rows: jax.Array, present: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One step of mini-batch k-means (Sculley, WWW 2010), for data that does not fit in memory.

    Every centroid is the mean of all rows that were ever assigned to it.

    Args:
        centroids: float32 [K, D].
        counts: int32 [K], the number of rows assigned to each centroid so far.
        rows: float32 [B, D].
        present: bool [B], False for padding.

    Returns:
        The new centroids and counts.
    """
    sums, new, _ = _pass(rows, present, centroids)
    total = counts + new
    shift = sums - new[:, None].astype(jnp.float32) * centroids
    share = shift / jnp.maximum(total, 1)[:, None].astype(jnp.float32)
    return centroids + share, total


def scanned(counts: jax.Array) -> jax.Array:
    """How likely each cluster is to give half its rows in faiss, as logarithms up to a constant, float32 [K].

    faiss goes over the clusters in turn, again and again, and takes cluster j of n_j of all N rows with
    probability p_j = (n_j - 1) / (N - K), so of two equal clusters the first gives more often:

        P(j) ~ p_j prod_{i<j} (1 - p_i)
    """
    spare = jnp.maximum(counts - 1, 0).astype(jnp.float32)
    rest = jnp.maximum(counts.sum() - counts.shape[0], 1).astype(jnp.float32)
    chance = jnp.minimum(spare / rest, 1.0)
    passed = jnp.log1p(-chance)
    return jnp.log(chance) + jnp.concatenate([jnp.zeros(1), jnp.cumsum(passed[:-1])])


@partial(jax.jit, static_argnums=3)
def split_empty(
    centroids: jax.Array, counts: jax.Array, key: jax.Array, repair: str
) -> tuple[jax.Array, jax.Array]:
    """Give every empty cluster half the rows of another, as long as one has two; see `lloyd`.

    Args:
        centroids: float32 [K, D].
        counts: int32 [K], rows per cluster.
        key: for the donors.
        repair: "faiss" or "additive".

    Returns:
        The new centroids, and the counts that the next assignment is expected to give.
    """
    even = jnp.arange(centroids.shape[1]) % 2 == 0

    def apart(c: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Two points around c: for the empty cluster and for the donor."""
        if repair == "faiss":
            new = c * jnp.where(even, 1 + 1 / 1024, 1 - 1 / 1024)
            old = c * jnp.where(even, 1 - 1 / 1024, 1 + 1 / 1024)
            return new, old
        new = c + jnp.where(even, -1e-7, 1e-7)
        old = c - jnp.where(even, -1e-7, 1e-7)
        return new, old

    def repair_one(state: tuple) -> tuple:
        centroids, counts, key = state
        key, draw = jax.random.split(key)
        odds = scanned(counts) if repair == "faiss" else jnp.log((counts > 1).astype(jnp.float32))
        donor = jax.random.categorical(draw, odds)

        empty = jnp.argmin(counts)
        half = counts[donor] // 2
        new, old = apart(centroids[donor])
        centroids = centroids.at[empty].set(new).at[donor].set(old)
        counts = counts.at[empty].set(half).at[donor].add(-half)
        return centroids, counts, key

    def any_to_repair(state: tuple) -> jax.Array:
        _, counts, _ = state
        return (counts.min() == 0) & (counts.max() > 1)

    centroids, counts, _ = jax.lax.while_loop(any_to_repair, repair_one, (centroids, counts, key))
    return centroids, counts


# ------------------------------------------------------------------------------------------------------- PCA


class Moments(NamedTuple):
    """The moments of the rows seen so far, float32.

    Attributes:
        count: scalar, the number of rows.
        mean: [D].
        scatter: [D, D], the sum of outer products around the mean.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, which nothing here calls
    mean: jax.Array
    scatter: jax.Array


class Whitening(NamedTuple):
    """A linear map: x -> (x - mean) @ projection has mean 0 and covariance 1.

    Attributes:
        mean: float32 [D].
        projection: float32 [D, dim].
    """

    mean: jax.Array
    projection: jax.Array


def pca_whiten(features: jax.Array, dim: int, present: jax.Array | None = None) -> jax.Array:
    """The first `dim` principal components, scaled to unit variance.

    DeepCluster's `preprocess_features` is this, followed by scaling the rows to unit length. The signs of the
    columns are arbitrary.

    Args:
        features: float32 [N, D].
        dim: number of components.
        present: bool [N], the rows to fit on. None: all.

    Returns:
        [N, dim], split over devices as the rows are.

    Raises:
        ValueError: `dim` is more than D.
    """
    return whiten(features, whitening(moments(features, present), dim))


def moments(features: jax.Array, present: jax.Array | None = None) -> Moments:
    """The moments of all rows that are present, in one pass."""
    present = _or_all(present, features)
    return _moments(*_split(features))(features, present)


@jax.jit
def merge(a: Moments, b: Moments) -> Moments:
    """The moments of two sets of rows together (Chan, Golub & LeVeque 1983)."""
    count = a.count + b.count
    share = b.count / jnp.maximum(count, 1.0)
    apart = b.mean - a.mean
    mean = a.mean + share * apart
    scatter = a.scatter + b.scatter + a.count * share * jnp.outer(apart, apart)
    return Moments(count, mean, scatter)


@partial(jax.jit, static_argnums=1)
def _eigen(m: Moments, dim: int) -> Whitening:
    variance, vectors = jnp.linalg.eigh(m.scatter / m.count)
    variance = variance[::-1][:dim]  # the largest first
    vectors = vectors[:, ::-1][:, :dim]
    scale = jax.lax.rsqrt(jnp.maximum(variance, 1e-8 * variance[0]))
    return Whitening(m.mean, vectors * scale[None])


def whitening(m: Moments, dim: int) -> Whitening:
    """The map that whitens rows with these moments.

    A variance below 1e-8 of the largest is rounding error and is not amplified further.

    Raises:
        ValueError: `dim` is less than 1 or more than D.
    """
    features = m.mean.shape[0]
    if not 1 <= dim <= features:
        raise ValueError(
            f"config.clusters.dim={dim} components of {features} features: choose from 1 to {features}"
        )
    return _eigen(m, dim)


@jax.jit
def whiten(features: jax.Array, w: Whitening) -> jax.Array:
    """Apply a whitening: [N, D] -> float32 [N, dim]."""
    return jnp.dot(features.astype(jnp.float32) - w.mean[None], w.projection, precision=HIGHEST)


# ------------------------------------------------------------------------------------- rows on their devices


def _split(features: jax.Array) -> tuple[AnyMesh | None, Axes]:
    """The mesh and the axes that the rows are split over; (None, ()) for a whole or a traced array."""
    if isinstance(features, jax.core.Tracer):
        return None, ()
    place = features.sharding
    if not isinstance(place, NamedSharding) or not place.spec or place.spec[0] is None:
        return None, ()
    axes = place.spec[0]
    return place.mesh, (axes,) if isinstance(axes, str) else tuple(axes)


def _on(mesh: AnyMesh | None, local: Callable, arguments: tuple[P, ...], out: P) -> Callable:
    """Jit `local`; with a mesh, each device runs it on its own part."""
    if mesh is None:
        return jax.jit(local)
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=arguments, out_specs=out, check_vma=False))


@lru_cache(maxsize=8)
def _lloyd(mesh: AnyMesh | None, axes: Axes, iterations: int, repair: str, spherical: bool) -> Callable:
    def local(
        x: jax.Array, present: jax.Array, centroids: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def iteration(centroids: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            sums, counts, total = jax.lax.psum(_pass(x, present, centroids), axes)
            means = sums / jnp.maximum(counts, 1)[:, None].astype(jnp.float32)
            if spherical:
                means = l2_normalize(means)
            centroids = jnp.where(counts[:, None] > 0, means, centroids)
            if repair != "none":
                centroids, _ = split_empty(centroids, counts, key, repair)
            return centroids, total

        return jax.lax.scan(iteration, centroids, jax.random.split(key, iterations))

    return _on(mesh, local, (P(axes), P(axes), P(), P()), P())


@lru_cache(maxsize=8)
def _assign(mesh: AnyMesh | None, axes: Axes) -> Callable:
    def local(x: jax.Array, centroids: jax.Array) -> jax.Array:
        nearest = jax.lax.map(lambda block: _nearest(block, centroids)[0], _blocks(x))
        return nearest.reshape(-1)[: x.shape[0]]

    return _on(mesh, local, (P(axes), P()), P(axes))


@lru_cache(maxsize=8)
def _moments(mesh: AnyMesh | None, axes: Axes) -> Callable:
    def add(total: Moments, rows: tuple[jax.Array, jax.Array]) -> tuple[Moments, None]:
        x = rows[0].astype(jnp.float32)
        here = rows[1][:, None].astype(jnp.float32)
        count = here.sum()
        mean = (x * here).sum(axis=0) / jnp.maximum(count, 1.0)
        x = (x - mean[None]) * here
        scatter = jnp.dot(x.T, x, precision=HIGHEST)
        return merge(total, Moments(count, mean, scatter)), None

    def local(x: jax.Array, present: jax.Array) -> Moments:
        dim = x.shape[1]
        nothing = Moments(
            count=jnp.float32(0.0),
            mean=jnp.zeros((dim,), jnp.float32),
            scatter=jnp.zeros((dim, dim), jnp.float32),
        )
        m, _ = jax.lax.scan(add, nothing, (_blocks(x), _blocks(present)))
        if mesh is None:
            return m

        # Merge the moments of all devices.
        count = jax.lax.psum(m.count, axes)
        mean = jax.lax.psum(m.count * m.mean, axes) / count
        scatter = m.scatter + m.count * jnp.outer(m.mean - mean, m.mean - mean)
        return Moments(count, mean, jax.lax.psum(scatter, axes))

    return _on(mesh, local, (P(axes), P(axes)), P())


# -------------------------------------------------------------------------------------------- blocks of rows


def _blocks(x: jax.Array) -> jax.Array:
    """[N, ...] -> [blocks, <= BLOCK, ...], padded with zeros after the last row."""
    size = min(BLOCK, x.shape[0])
    missing = -x.shape[0] % size
    padding = ((0, missing), *((0, 0),) * (x.ndim - 1))
    return jnp.pad(x, padding).reshape(-1, size, *x.shape[1:])


def _nearest(x: jax.Array, centroids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The nearest centroid int32 [B] of rows [B, D], and the squared distance to it.

    It is the first of the largest c.x - |c|^2 / 2. On a CPU, a maximum over the leading axis and a search for
    its position cost a third of XLA's argmax over the last axis.
    """
    x = x.astype(jnp.float32)
    score = jnp.dot(centroids, x.T, precision=HIGHEST) - 0.5 * jnp.square(centroids).sum(axis=1)[:, None]
    best = score.max(axis=0)
    last = centroids.shape[0] - 1
    is_best = score == best[None]
    number = jnp.arange(last + 1, dtype=jnp.int32)[:, None]
    nearest = jnp.where(is_best, number, last).min(axis=0)
    return nearest, jnp.square(x).sum(axis=1) - 2.0 * best


def _pass(x: jax.Array, present: jax.Array, centroids: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Assign rows to centroids, block by block.

    Returns:
        Per centroid, the sum [K, D] and the number int32 [K] of its rows; and the sum of all squared
        distances.
    """
    k = centroids.shape[0]

    def add(total: Any, rows: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        x, here = rows
        nearest, distance = _nearest(x, centroids)
        block_sums, block_counts = _grouped(x.astype(jnp.float32), nearest, here, k)

        sums, counts, objective = total
        sums = sums + block_sums
        counts = counts + block_counts
        objective = objective + jnp.where(here, distance, 0.0).sum()
        return (sums, counts, objective), None

    nothing = (jnp.zeros_like(centroids), jnp.zeros(k, jnp.int32), jnp.float32(0.0))
    total, _ = jax.lax.scan(add, nothing, (_blocks(x), _blocks(present)))
    return total


def _grouped(x: jax.Array, cluster: jax.Array, here: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Sums [K, D] and counts int32 [K] of the rows per cluster.

    They come from a scatter on a CPU and from a matrix product elsewhere.
    """

    def scattered(x: jax.Array, cluster: jax.Array, here: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = jnp.where(here[:, None], x, 0.0)
        sums = jax.ops.segment_sum(x, cluster, k)
        return sums, jax.ops.segment_sum(here.astype(jnp.int32), cluster, k)

    def product(x: jax.Array, cluster: jax.Array, here: jax.Array) -> tuple[jax.Array, jax.Array]:
        own = cluster[None] == jnp.arange(k, dtype=jnp.int32)[:, None]
        member = (own & here[None]).astype(jnp.float32)
        return jnp.dot(member, x, precision=HIGHEST), member.sum(axis=1).astype(jnp.int32)

    return jax.lax.platform_dependent(x, cluster, here, cpu=scattered, default=product)
