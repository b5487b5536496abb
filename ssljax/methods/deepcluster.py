"""DeepCluster, version 1 and version 2: learn to predict clusters of the network's own features.

    v1  Caron et al.: Deep Clustering for Unsupervised Learning of Visual Features, arXiv 1807.05520
    v2  Caron et al., arXiv 2006.09882 (facebookresearch/swav, main_deepclusterv2.py)

Version 1 (`clusters.version=1`)

    between epochs   x_n = features of every image, whitened to `clusters.dim` components, of unit length
                     min over C, y of  mean_n |x_n - C y_n|^2                        (k-means, equation 2)
                     y_n in 1..K becomes the label of image n
    in an epoch      L = mean_n CE(W f(view of n), y_n)                              (equation 1)
                     images are drawn evenly over the clusters

The clusters of one epoch have nothing to do with those of the next. So W is initialised anew at every
clustering, and so is its optimizer state; the momentum of the network goes on. The centroids are not used
again.

Version 2 (`clusters.version=2`) has no W to learn:

    z = g(f(view)) / |g(f(view))|
    L = mean over views and over heads h of CE(z . C_h / tau, y_h)

The prototypes C_h are the centroids of spherical k-means on the embeddings z of the last epoch. There is one
bank of embeddings per view of the largest size; of these V banks, head h clusters bank h mod V. Smaller views
(multi-crop) only learn. Each size has its own pass through f, with its own batch statistics. Nothing is
encoded between epochs, except once before the first.

Differences from the papers, after the released code (facebookresearch/deepcluster, facebookresearch/swav)
unless marked [X]:
- k-means repairs empty clusters as faiss does, with factors 1 -+ 1/1024; the paper speaks of a small
  perturbation.
- The features are those before the last ReLU; W reads them after it. The features of a ResNet come after its
  last ReLU already. [X]
- The released sampler draws image i of the data set sorted by cluster where it means image i of the data set,
  so it does not draw evenly. Ours does. An image that is drawn several times in an epoch has a different view
  each time. [X]
- `sampler="weights"` takes every image once and divides its loss by the size of its cluster, which the paper
  calls equivalent.
- In v2, LARS leaves biases and norms out of decay and adaptation; the released code's LARC decays and adapts
  every parameter, with |g| + wd |w| where this has |g + wd w|. Batch statistics are those of the whole batch
  instead of eight devices'. [X]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssljax import models
from ssljax.data import views
from ssljax.losses.classification import accuracy, cross_entropy
from ssljax.losses.information import nmi
from ssljax.losses.similarity import l2_normalize
from ssljax.targets import kmeans
from ssljax.types import Batch, Facts, Method, Out, Pytree, RefreshFn, TrainState


class Clusters(NamedTuple):
    """v1: the labels that the last clustering gave, by image id, and the clusters.

    Attributes:
        assignment: int32 [ids]; -1 before the first clustering, and for ids of no training image.
        centroids: float32 [K, dim], of whitened features of unit length.
        counts: int32 [K], images per cluster.
    """

    assignment: jax.Array
    centroids: jax.Array
    counts: jax.Array


class Prototypes(NamedTuple):
    """v2: labels, prototypes, and the embeddings that they come from.

    Attributes:
        assignment: int32 [ids, heads]; -1 for an image that was not seen in the last epoch, which then does
            not count in the loss.
        centroids: float32 [heads, K, D], of unit length.
        banks: float32 [ids, V, D], the embedding of each view of the largest size when the image was last
            seen.
        seen: bool [ids], whether the image was seen in this epoch.
    """

    assignment: jax.Array
    centroids: jax.Array
    banks: jax.Array
    seen: jax.Array


def deepcluster(config: ConfigDict, facts: Facts) -> Method:
    """Build the version of DeepCluster that `clusters.version` names, as pure functions."""
    _check(config)
    if config.clusters.version == 1:
        return _v1(config, facts)
    return _v2(config, facts)


# ------------------------------------------------------------------------------------------------- version 1


def _v1(config: ConfigDict, facts: Facts) -> Method:
    """Version 1. `params` holds encoder and head; `extra` is a Clusters."""
    size = config.data.image_size
    image_shape = (size, size, config.data.channels)
    c = config.clusters

    encoder = models.backbone(config.model)
    head = models.LinearClassifier(c.k, std=0.01)

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, Clusters]:
        del batch
        keys = jax.random.split(key)
        f, f_state, h = models.initialise(encoder, keys[0], image_shape)
        no_clusters = Clusters(
            assignment=jnp.full(facts.num_ids, -1, jnp.int32),
            centroids=jnp.zeros((c.k, c.dim), jnp.float32),
            counts=jnp.zeros(c.k, jnp.int32),
        )
        params = {"encoder": f, "head": head.init(keys[1], h)["params"]}
        return params, {"encoder": f_state}, no_clusters

    def loss(
        params: Pytree, model_state: Pytree, extra: Clusters, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        # 1. One view of each image, and the label y_n that the clustering gave the image.
        x = views.stacked(batch, key, config)[:, 0]
        y = extra.assignment[batch["index"]]

        # 2. W reads the features after their ReLU.
        network_key = jax.random.fold_in(key, 1)
        h, f_state = models.forward(encoder, params["encoder"], model_state["encoder"], x, key=network_key)
        logits = models.logits(params["head"], jax.nn.relu(h))

        # 3. All clusters count alike: because images are drawn evenly over them, or by a weight in the loss.
        rows = cross_entropy(logits, y)
        if c.sampler == "weights":
            rows = by_cluster_size(rows, y, extra.counts)
        total = jnp.mean(rows)
        metrics = {"accuracy": jnp.mean(accuracy(logits, y))}
        return total, Out({"encoder": f_state}, (), metrics)

    def by_cluster_size(rows: jax.Array, y: jax.Array, counts: jax.Array) -> jax.Array:
        """Divide the loss of each image by the size of its cluster; over all images the weights average 1."""
        counts = counts.astype(jnp.float32)
        scaled = rows * counts.sum()
        used_clusters = (counts > 0).sum().astype(jnp.float32)
        cluster_size = jnp.maximum(counts, 1.0)[jnp.maximum(y, 0)]
        return scaled / (used_clusters * cluster_size)

    @every(c.every)
    def refresh(state: TrainState, run: Any) -> TrainState:
        """Cluster the features of all images, take the clusters as labels, and start a new head."""
        enough(c.k, run)
        # The key differs from one clustering to the next, so each starts from other centroids.
        kmeans_key, head_key, shuffle_key = jax.random.split(run.key(state), 3)

        # 1. Features -> whitening -> unit length -> k-means -> labels.
        cluster = _piecewise if c.algorithm == "minibatch" else _at_once
        found, objective = cluster(state, run, kmeans_key, config)
        if c.shuffled:  # the control: each image learns the cluster of another
            shuffled = jax.random.permutation(shuffle_key, found.assignment)
            found = found._replace(assignment=shuffled)
        log(found, objective, state.extra, run)

        # 2. A new W, whose optimizer state starts from zero.
        width = state.params["head"]["dense"]["kernel"].shape[0]
        new_head = head.init(head_key, jnp.zeros((1, width), jnp.float32))["params"]
        params = {**state.params, "head": new_head}
        opt_state = _forget(state.opt_state, "head")
        return run.place(state.replace(params=params, opt_state=opt_state, extra=found))

    def log(found: Clusters, objective: jax.Array, previous: Clusters, run: Any) -> None:
        """Log the size of the clusters, and how much they tell about the labels and the last clusters."""
        labels = (found.assignment >= 0).sum().astype(jnp.float32)
        numbers = {
            "kmeans_objective": objective / labels,
            **with_labels(found.assignment, run),
            "largest_cluster": found.counts.max().astype(jnp.float32) / labels,
            "empty_clusters": (found.counts == 0).sum(),
        }
        if int(previous.assignment.max()) >= 0:  # not at the first clustering
            numbers["nmi_previous"] = nmi(found.assignment[run.ids], previous.assignment[run.ids])
        run.log({name: float(value) for name, value in numbers.items()})

    return Method(
        init=init,
        loss=loss,
        refresh=refresh,
        assignment=_assignment,
        balance=_assignment if c.sampler == "uniform" else None,
        rows=("assignment",),
        restarted=("head",),
        num_views=1,
        separable=not models.draws(config.model),
    )


def _assignment(extra: Clusters | Prototypes) -> jax.Array:
    """The labels that the last clustering gave."""
    return extra.assignment


def every(epochs: int) -> Callable[[RefreshFn], RefreshFn]:
    """Run a refresh every n-th epoch only; in the others it leaves the state alone."""

    def decorate(refresh: RefreshFn) -> RefreshFn:
        def refresh_if_due(state: TrainState, run: Any) -> TrainState:
            if run.epochs_done(state) % epochs:
                return state
            return refresh(state, run)

        return refresh_if_due

    return decorate


def enough(k: int, run: Any) -> None:
    """Refuse more clusters than there are training images.

    This is checked at a refresh, before the first step, so that a run can still be opened for evaluation on
    other data.

    Raises:
        ValueError: names k and the number of images.
    """
    if k > len(run.ids):
        raise ValueError(
            f"config.clusters.k={k} clusters of {len(run.ids)} images: "
            "choose fewer, about ten times the number of classes you expect"
        )


def with_labels(assignment: jax.Array, run: Any) -> dict[str, jax.Array]:
    """How much the clusters tell about the labels: NMI over the training images that have a label.

    Args:
        assignment: int32 [ids].
        run: what `refresh` was given.

    Returns:
        {"nmi_labels": scalar}, or {} if no image has a label.
    """
    labelled = run.labels >= 0
    if not labelled.any():
        return {}
    return {"nmi_labels": nmi(assignment[run.ids[labelled]], run.labels[labelled])}


def _at_once(state: TrainState, run: Any, key: jax.Array, config: ConfigDict) -> tuple[Clusters, jax.Array]:
    """k-means on the features of all images, which stay on the devices where they were computed.

    Returns:
        The clusters, and the sum of squared distances.
    """
    c = config.clusters
    rows = run.features(state)
    present = run.by_rows(rows.present)
    x = l2_normalize(kmeans.pca_whiten(rows.features, c.dim, present))
    found = kmeans.fit(
        x, c.k, key, iterations=c.iterations, present=present, repair=c.repair, distinct=c.distinct
    )
    assignment = run.by_id(found.assignment, rows)
    return Clusters(assignment, found.centroids, found.counts), kmeans.objective(x, found)


def _piecewise(state: TrainState, run: Any, key: jax.Array, config: ConfigDict) -> tuple[Clusters, jax.Array]:
    """`_at_once` for data whose features do not fit in memory, by mini-batch k-means.

    The network sees the data three times: for the moments, the centroids and the labels.
    """
    c = config.clusters

    # 1. The whitening, from the moments of all features.
    moments: kmeans.Moments | None = None
    for rows in run.encoded(state):
        part = kmeans.moments(rows.features, run.by_rows(rows.present))
        moments = part if moments is None else kmeans.merge(moments, part)
    assert moments is not None, "a training split has at least one batch"
    whitening = kmeans.whitening(moments, c.dim)

    def white(rows: Any) -> tuple[jax.Array, jax.Array]:
        """Whitened features of unit length, and which rows are present."""
        return l2_normalize(kmeans.whiten(rows.features, whitening)), run.by_rows(rows.present)

    # 2. The first centroids: K images drawn at random.
    drawn = run.drawn(key, c.k)
    first = [white(rows)[0] for rows in run.encoded(state, drawn)]
    centroids = jnp.concatenate(first)[: c.k]

    # 3. Mini-batch k-means, over all images in random order.
    counts = jnp.zeros(c.k, jnp.int32)
    for rows in run.encoded(state, run.drawn(key, len(run.source))):
        x, present = white(rows)
        centroids, counts = kmeans.minibatch(centroids, counts, x, present)
    if c.repair != "none":
        centroids, _ = kmeans.split_empty(centroids, counts, key, c.repair)

    # 4. The label of every image: its nearest centroid.
    labels = jnp.full(run.program.facts.num_ids, -1, jnp.int32)
    total = jnp.float32(0.0)
    for rows in run.encoded(state):
        x, present = white(rows)
        assignment = jnp.where(present, kmeans.assign(x, centroids), -1)
        found = kmeans.clusters(assignment, centroids)
        labels = run.by_id(found.assignment, rows, labels)
        total = total + kmeans.objective(x, found)
    return Clusters(*kmeans.clusters(labels, centroids)), total


def _forget(opt_state: Pytree, name: str) -> Pytree:
    """Reset what an optimizer remembers of one branch of the parameters to zeros, as it started."""

    def rule(path: tuple, leaf: jax.Array) -> jax.Array:
        inside = any(getattr(entry, "key", None) == name for entry in path)
        return jnp.zeros_like(leaf) if inside else leaf

    return jax.tree_util.tree_map_with_path(rule, opt_state)


# ------------------------------------------------------------------------------------------------- version 2


def _v2(config: ConfigDict, facts: Facts) -> Method:
    """Version 2. `params` holds encoder and projector; `extra` is a Prototypes."""
    size = config.data.image_size
    image_shape = (size, size, config.data.channels)
    c = config.clusters
    dim = config.head.dim
    view_sizes = [view.size for view in views.resolved(config) for _ in range(view.count)]
    num_views = len(view_sizes)
    banked = [number for number, side in enumerate(view_sizes) if side == max(view_sizes)]
    num_banks = len(banked)

    encoder = models.backbone(config.model)
    projector = models.mlp(config.head, config.model, dim)

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, Prototypes]:
        del batch
        keys = jax.random.split(key)
        f, f_state, h = models.initialise(encoder, keys[0], image_shape)
        g, g_state, _ = models.initialise_head(projector, keys[1], h)
        if not config.zero_init_residual:
            f = models.unit_gains(f)
        no_clusters = Prototypes(
            assignment=jnp.full((facts.num_ids, c.heads), -1, jnp.int32),
            centroids=jnp.zeros((c.heads, c.k, dim), jnp.float32),
            banks=jnp.zeros((facts.num_ids, num_banks, dim), jnp.float32),
            seen=jnp.zeros(facts.num_ids, bool),
        )
        return {"encoder": f, "projector": g}, {"encoder": f_state, "projector": g_state}, no_clusters

    def loss(
        params: Pytree, model_state: Pytree, extra: Prototypes, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        # 1. V views of each image. An image has one label per head, the same for all its views.
        sizes = views.by_size(batch, key, config)
        y = jnp.repeat(extra.assignment[batch["index"]], num_views, axis=0)  # [B V, heads]

        # 2. All views of one size in one pass, so that they share batch statistics. The views of an image are
        #    neighbouring rows, so that no row changes its device.
        f_state = model_state["encoder"]
        parts = []
        for x in sizes:
            h, f_state = models.forward(encoder, params["encoder"], f_state, x.reshape(-1, *x.shape[2:]))
            parts.append(h)
        h = parts[0] if len(parts) == 1 else by_image(parts, len(sizes[0]))
        z, g_state = models.forward(projector, params["projector"], model_state["projector"], h)
        z = l2_normalize(z)

        # 3. Cross entropy over similarities to the fixed prototypes. Images without a label do not count.
        similarity = jnp.einsum("nd,hkd->nhk", z, extra.centroids, precision=jax.lax.Precision.HIGHEST)
        logits = similarity / c.temperature
        rows = cross_entropy(logits.reshape(-1, c.k), y.reshape(-1))
        labelled = jnp.maximum((y >= 0).sum(), 1).astype(jnp.float32)
        hits = accuracy(logits.reshape(-1, c.k), y.reshape(-1))
        metrics = {"accuracy": hits.sum() / labelled}

        z = jax.lax.stop_gradient(z).reshape(-1, num_views, dim)
        if num_banks < num_views:
            z = z[:, jnp.asarray(banked)]
        carry = {"z": z, "index": batch["index"]}
        return rows.sum() / labelled, Out({"encoder": f_state, "projector": g_state}, carry, metrics)

    def by_image(parts: list[jax.Array], images: int) -> jax.Array:
        """Join features of several sizes, each [B views, D], so that all views of an image are neighbours."""
        apart = [part.reshape(images, -1, part.shape[-1]) for part in parts]
        joined = jnp.concatenate(apart, axis=1)
        return joined.reshape(-1, joined.shape[-1])

    def update(extra: Prototypes, params: Pytree, carry: Pytree, step: jax.Array) -> Prototypes:
        # 4. Store what the next clustering will see of these images.
        banks = extra.banks.at[carry["index"]].set(carry["z"])
        seen = extra.seen.at[carry["index"]].set(True)
        return extra._replace(banks=banks, seen=seen)

    def fill(extra: Prototypes, state: TrainState, batch: Batch, key: jax.Array) -> Prototypes:
        """Fill the banks from one batch without learning; views and batch statistics are as in training."""
        _, out = loss(state.params, state.model_state, extra, batch, key, state.step)
        return update(extra, state.params, out.carry, state.step)

    def cluster(extra: Prototypes, key: jax.Array) -> list[kmeans.Clusters]:
        """Spherical k-means, once per head. An empty cluster keeps its prototype."""
        keys = jax.random.split(key, c.heads)
        return [
            kmeans.fit(
                extra.banks[:, head % num_banks],
                c.k,
                keys[head],
                iterations=c.iterations,
                present=extra.seen,
                repair="none",
                spherical=True,
            )
            for head in range(c.heads)
        ]

    @every(c.every)
    def refresh(state: TrainState, run: Any) -> TrainState:
        """Cluster the embeddings that the last epoch left behind."""
        enough(c.k, run)
        extra = state.extra
        first = int(state.step) == 0
        if first:  # no epoch has filled the banks yet
            write = jax.jit(fill)
            for batch, key in run.epoch(state):
                extra = write(extra, state, batch, key)

        found = cluster(extra, run.key(state))
        assignment = jnp.stack([clusters.assignment for clusters in found], axis=1)
        centroids = jnp.stack([clusters.centroids for clusters in found])
        log(found, assignment, extra, run, first)

        seen = jnp.zeros_like(extra.seen)
        return run.place(state.replace(extra=Prototypes(assignment, centroids, extra.banks, seen)))

    def log(
        found: list[kmeans.Clusters], assignment: jax.Array, previous: Prototypes, run: Any, first: bool
    ) -> None:
        """Log how much the first head's clusters tell about labels, other heads and the last clusters."""
        ids = run.ids
        numbers = {
            **with_labels(assignment[:, 0], run),
            "nmi_heads": nmi(assignment[ids, 0], assignment[ids, c.heads - 1]),
            "unseen": (~previous.seen[ids]).sum(),
            "empty_clusters": sum((clusters.counts == 0).sum() for clusters in found),
        }
        if not first:
            numbers["nmi_previous"] = nmi(assignment[ids, 0], previous.assignment[ids, 0])
        run.log({name: float(value) for name, value in numbers.items()})

    return Method(
        init=init,
        loss=loss,
        update=update,
        refresh=refresh,
        assignment=_assignment,
        rows=("assignment", "banks"),
    )


def _check(config: ConfigDict) -> None:
    """Refuse settings that the method does not know.

    Raises:
        ValueError: names the setting and its valid values.
    """
    c = config.clusters
    valid: dict[str, tuple] = {"version": (1, 2)}
    if c.version == 1:
        valid["sampler"] = ("uniform", "weights", "none")
        valid["algorithm"] = ("lloyd", "minibatch")
        valid["repair"] = kmeans.REPAIRS
    for name, values in valid.items():
        if c[name] not in values:
            known = ", ".join(map(repr, values))
            raise ValueError(f"config.clusters.{name}={c[name]!r} is unknown. Use {known}.")
