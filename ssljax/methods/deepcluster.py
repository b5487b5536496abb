"""DeepCluster (Caron et al.: Deep Clustering for Unsupervised Learning of Visual Features, arXiv 1807.05520), and its second version.

    between epochs   x_n = features of every image, whitened to `clusters.dim` components, of length one
                     min over C, y of  mean_n |x_n - C y_n|^2          k-means; y_n in 1..K becomes the label of image n   (equation 2)
    in an epoch      L = mean_n CE(W f(view of n), y_n)                images drawn evenly over clusters                  (equation 1)

The clusters of one epoch have nothing to do with those of the next, so W starts anew every epoch, and its optimizer state with it; the
network's momentum goes on. Centroids are not used again.

DeepCluster-v2 (`clusters.version=2`; Caron et al., arXiv 2006.09882, facebookresearch/swav, main_deepclusterv2.py) has no W to learn:

    z = g(f(view)) / |g(f(view))|;  L = mean over views and over heads h of CE(z . C_h / tau, y_h)

The prototypes C_h are the centroids of spherical k-means on the z that the last epoch left behind, one bank a view: head h takes bank
h mod V. Nothing is encoded between epochs, except once before the first.

Differences from the papers, after the released code (facebookresearch/deepcluster, facebookresearch/swav) unless marked [X]:
- k-means repairs empty clusters as faiss does, with 1 -+ 1/1024; the paper speaks of a small perturbation.
- The features are those before the last ReLU; `W` reads them behind it. A ResNet's features are behind its ReLU already. [X]
- The released sampler draws image i of the data set sorted by cluster where it means image i of the data set, and so does not draw
  evenly; ours does. An image that is drawn several times in an epoch has another view each time. [X]
- `sampler="weights"` takes every image once and divides its loss by the size of its cluster: the paper's equivalent.
- v2 sees two views of one size; the released code's headline also has six small ones, which are not built. [X]
- v2's adaptation (LARS) leaves out biases and norms, and the warm-up starts from 0. [X]
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
from ssljax.types import Batch, Facts, Method, Out, Pytree, TrainState

Refresh = Callable[[TrainState, Any], TrainState]


class Clusters(NamedTuple):
    """Labels that the network gave: what k-means found, by id of the image.

    Attributes:
        assignment: int32 [ids]; -1 before the first clustering and for ids that no training image has.
        centroids: float32 [K, dim], of whitened features of length one.
        counts: int32 [K].
    """

    assignment: jax.Array
    centroids: jax.Array
    counts: jax.Array


class Prototypes(NamedTuple):
    """v2: labels, prototypes and the embeddings they come from.

    Attributes:
        assignment: int32 [ids, heads]; -1 for an image that was not seen in the last epoch: it does not count in the loss.
        centroids: float32 [heads, K, D], of length one.
        banks: float32 [ids, V, D], the embedding of each view when the image was last seen.
        seen: bool [ids], whether it was in this epoch.
    """

    assignment: jax.Array
    centroids: jax.Array
    banks: jax.Array
    seen: jax.Array


def deepcluster(config: ConfigDict, facts: Facts) -> Method:
    """DeepCluster as pure functions, of the version that `clusters.version` says."""
    _check(config)
    return _v1(config, facts) if config.clusters.version == 1 else _v2(config, facts)


# ---------------------------------------------------------------------------------------------------------------------- version 1


def _v1(config: ConfigDict, facts: Facts) -> Method:
    """params: encoder, head; extra: Clusters."""
    size, channels, c = config.data.image_size, config.data.channels, config.clusters
    encoder, head = models.backbone(config.model), models.LinearClassifier(c.k, std=0.01)

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, Clusters]:
        del batch
        keys = jax.random.split(key)
        f, f_state, h = models.initialise(encoder, keys[0], (size, size, channels))
        nothing = Clusters(
            jnp.full(facts.num_ids, -1, jnp.int32),
            jnp.zeros((c.k, c.dim), jnp.float32),
            jnp.zeros(c.k, jnp.int32),
        )
        return {"encoder": f, "head": head.init(keys[1], h)["params"]}, {"encoder": f_state}, nothing

    def loss(
        params: Pytree, model_state: Pytree, extra: Clusters, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        # 1. One view of each image, and the label its image was given.
        x = views.stacked(batch, key, config)[:, 0]
        y = extra.assignment[batch["index"]]
        # 2. The classifier reads the features behind their ReLU.
        h, f_state = models.forward(
            encoder, params["encoder"], model_state["encoder"], x, key=jax.random.fold_in(key, 1)
        )
        logits = head.apply({"params": params["head"]}, jax.nn.relu(h))
        # 3. Clusters count alike: by how images are drawn, or by a weight of one over the size of the cluster, 1 on average.
        rows = cross_entropy(logits, y)
        if c.sampler == "weights":
            counts = extra.counts.astype(jnp.float32)
            rows = (
                rows
                * counts.sum()
                / ((counts > 0).sum().astype(jnp.float32) * jnp.maximum(counts, 1.0)[jnp.maximum(y, 0)])
            )
        return jnp.mean(rows), Out({"encoder": f_state}, (), {"accuracy": jnp.mean(accuracy(logits, y))})

    @every(c.every)
    def refresh(state: TrainState, run: Any) -> TrainState:
        """Features -> whitening -> unit length -> k-means -> labels; a new head that has no past."""
        enough(c.k, run)
        keys = jax.random.split(run.key(state), 3)  # other centroids to start from every time
        found, objective = (_piecewise if c.algorithm == "minibatch" else _at_once)(
            state, run, keys[0], config
        )
        if c.shuffled:
            found = found._replace(assignment=jax.random.permutation(keys[2], found.assignment))
        labels = (found.assignment >= 0).sum().astype(jnp.float32)
        old, new = state.extra.assignment, found.assignment
        numbers = {
            "kmeans_objective": objective / labels,
            **with_labels(new, run),
            "largest_cluster": found.counts.max().astype(jnp.float32) / labels,
            "empty_clusters": (found.counts == 0).sum(),
        }
        if int(old.max()) >= 0:  # else these are the first
            numbers["nmi_previous"] = nmi(new[run.ids], old[run.ids])
        run.log({name: float(value) for name, value in numbers.items()})
        features = state.params["head"]["dense"]["kernel"].shape[:1]
        params = {
            **state.params,
            "head": head.init(keys[1], jnp.zeros((1, *features), jnp.float32))["params"],
        }
        return run.place(
            state.replace(params=params, opt_state=_forget(state.opt_state, "head"), extra=found)
        )

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


def every(epochs: int) -> Callable[[Refresh], Refresh]:
    """A refresh that leaves the state alone but in every n-th epoch."""

    def wrapped(refresh: Refresh) -> Refresh:
        return lambda state, run: state if run.epochs_done(state) % epochs else refresh(state, run)

    return wrapped


def enough(k: int, run: Any) -> None:
    """Refuses more clusters than there are training images: asked for before the first step, not of who only looks at the network."""
    if k > len(run.ids):
        raise ValueError(
            f"config.clusters.k={k} clusters of {len(run.ids)} images: choose fewer, about ten times the classes you expect"
        )


def with_labels(assignment: jax.Array, run: Any) -> dict[str, jax.Array]:
    """What the clusters know of the labels, over the training images that have one; nothing where none has.

    `assignment` is int32 [ids].
    """
    labelled = run.labels >= 0
    if not labelled.any():
        return {}
    return {"nmi_labels": nmi(assignment[run.ids[labelled]], run.labels[labelled])}


def _at_once(state: TrainState, run: Any, key: jax.Array, config: ConfigDict) -> tuple[Clusters, jax.Array]:
    """k-means on the features of all images, which stay where they were computed; and the sum of squared distances."""
    c = config.clusters
    rows = run.features(state)
    present = run.by_rows(rows.present)
    x = l2_normalize(kmeans.pca_whiten(rows.features, c.dim, present))
    found = kmeans.fit(
        x, c.k, key, iterations=c.iterations, present=present, repair=c.repair, distinct=c.distinct
    )
    return Clusters(run.by_id(found.assignment, rows), found.centroids, found.counts), kmeans.objective(
        x, found
    )


def _piecewise(state: TrainState, run: Any, key: jax.Array, config: ConfigDict) -> tuple[Clusters, jax.Array]:
    """The same for data whose features fit nowhere: the network sees it three times, for the moments, the centroids and the labels."""
    c, first = config.clusters, None
    for rows in run.encoded(state):
        moments = kmeans.moments(rows.features, run.by_rows(rows.present))
        first = moments if first is None else kmeans.merge(first, moments)
    w = kmeans.whitening(first, c.dim)

    def white(rows: Any) -> tuple[jax.Array, jax.Array]:
        return l2_normalize(kmeans.whiten(rows.features, w)), run.by_rows(rows.present)

    drawn = run.drawn(key, c.k)  # the first centroids: images at random
    centroids = jnp.concatenate([white(rows)[0] for rows in run.encoded(state, drawn)])[: c.k]
    counts = jnp.zeros(c.k, jnp.int32)
    for rows in run.encoded(state, run.drawn(key, len(run.source))):  # in a random order
        centroids, counts = kmeans.minibatch(centroids, counts, *white(rows))
    centroids, _ = (
        kmeans.split_empty(centroids, counts, key, c.repair) if c.repair != "none" else (centroids, counts)
    )
    labels, total = jnp.full(run.program.facts.num_ids, -1, jnp.int32), jnp.float32(0.0)
    for rows in run.encoded(state):
        x, present = white(rows)
        found = kmeans.clusters(jnp.where(present, kmeans.assign(x, centroids), -1), centroids)
        labels, total = run.by_id(found.assignment, rows, labels), total + kmeans.objective(x, found)
    return Clusters(*kmeans.clusters(labels, centroids)), total


def _forget(opt_state: Pytree, name: str) -> Pytree:
    """An optimizer's state without what it remembers of one branch of the parameters: zeros, as it started."""

    def rule(path: tuple, leaf: jax.Array) -> jax.Array:
        return jnp.zeros_like(leaf) if any(getattr(entry, "key", None) == name for entry in path) else leaf

    return jax.tree_util.tree_map_with_path(rule, opt_state)


# ---------------------------------------------------------------------------------------------------------------------- version 2


def _v2(config: ConfigDict, facts: Facts) -> Method:
    """params: encoder, projector; extra: Prototypes."""
    size, channels, c, dim, count = (
        config.data.image_size,
        config.data.channels,
        config.clusters,
        config.head.dim,
        views.total(config),
    )
    encoder, projector = models.backbone(config.model), models.mlp(config.head, config.model, dim)

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, Prototypes]:
        del batch
        keys, ids = jax.random.split(key), facts.num_ids
        f, f_state, h = models.initialise(encoder, keys[0], (size, size, channels))
        g, g_state, _ = models.initialise_head(projector, keys[1], h)
        nothing = Prototypes(
            jnp.full((ids, c.heads), -1, jnp.int32),
            jnp.zeros((c.heads, c.k, dim), jnp.float32),
            jnp.zeros((ids, count, dim), jnp.float32),
            jnp.zeros(ids, bool),
        )
        return {"encoder": f, "projector": g}, {"encoder": f_state, "projector": g_state}, nothing

    def loss(
        params: Pytree, model_state: Pytree, extra: Prototypes, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        # 1. V views of each image; an image has one label a head, for all its views.
        x = views.stacked(batch, key, config)
        y = jnp.repeat(extra.assignment[batch["index"]], count, axis=0)  # [B V, heads]
        # 2. All views in one pass, so that batch statistics are theirs together; an image's stay on its device.
        x = x.reshape(-1, *x.shape[2:])
        h, f_state = models.forward(encoder, params["encoder"], model_state["encoder"], x)
        z, g_state = models.forward(projector, params["projector"], model_state["projector"], h)
        z = l2_normalize(z)
        # 3. Similarities to fixed prototypes; images without a label count nowhere.
        logits = (
            jnp.einsum("nd,hkd->nhk", z, extra.centroids, precision=jax.lax.Precision.HIGHEST) / c.temperature
        )
        rows, labelled = (
            cross_entropy(logits.reshape(-1, c.k), y.reshape(-1)),
            jnp.maximum((y >= 0).sum(), 1).astype(jnp.float32),
        )
        metrics = {"accuracy": accuracy(logits.reshape(-1, c.k), y.reshape(-1)).sum() / labelled}
        carry = {"z": jax.lax.stop_gradient(z).reshape(-1, count, dim), "index": batch["index"]}
        return rows.sum() / labelled, Out({"encoder": f_state, "projector": g_state}, carry, metrics)

    def update(extra: Prototypes, params: Pytree, carry: Pytree, step: jax.Array) -> Prototypes:
        # 4. What the next clustering will see of these images.
        return extra._replace(
            banks=extra.banks.at[carry["index"]].set(carry["z"]), seen=extra.seen.at[carry["index"]].set(True)
        )

    def fill(extra: Prototypes, state: TrainState, batch: Batch, key: jax.Array) -> Prototypes:
        """The banks of one batch without learning, views and batch statistics as in training."""
        _, out = loss(state.params, state.model_state, extra, batch, key, state.step)
        return update(extra, state.params, out.carry, state.step)

    @every(c.every)
    def refresh(state: TrainState, run: Any) -> TrainState:
        """Spherical k-means on the last epoch's embeddings, a head at a time; an empty cluster keeps its prototype."""
        enough(c.k, run)
        extra, first = state.extra, int(state.step) == 0
        if first:
            write = jax.jit(fill)
            for batch, key in run.epoch(state):
                extra = write(extra, state, batch, key)
        seen, keys = extra.seen, jax.random.split(run.key(state), c.heads)
        found = [
            kmeans.fit(
                extra.banks[:, head % count],
                c.k,
                keys[head],
                iterations=c.iterations,
                present=seen,
                repair="none",
                spherical=True,
            )
            for head in range(c.heads)
        ]
        new = jnp.stack([f.assignment for f in found], axis=1)
        ids, old = run.ids, extra.assignment
        numbers = {
            **with_labels(new[:, 0], run),
            "nmi_heads": nmi(new[ids, 0], new[ids, c.heads - 1]),
            "unseen": (~seen[ids]).sum(),
            "empty_clusters": sum((f.counts == 0).sum() for f in found),
        }
        if not first:
            numbers["nmi_previous"] = nmi(new[ids, 0], old[ids, 0])
        run.log({name: float(value) for name, value in numbers.items()})
        centroids = jnp.stack([f.centroids for f in found])
        return run.place(state.replace(extra=Prototypes(new, centroids, extra.banks, jnp.zeros_like(seen))))

    return Method(
        init=init,
        loss=loss,
        update=update,
        refresh=refresh,
        assignment=_assignment,
        rows=("assignment", "banks"),
    )


def _check(config: ConfigDict) -> None:
    """Refuses what the method cannot do.

    Raises:
        ValueError: names the setting and what it may be.
    """
    c = config.clusters
    valid = {"version": (1, 2)}
    if c.version == 1:
        valid |= {
            "sampler": ("uniform", "weights", "none"),
            "algorithm": ("lloyd", "minibatch"),
            "repair": kmeans.REPAIRS,
        }
    for name, values in valid.items():
        if c[name] not in values:
            raise ValueError(
                f"config.clusters.{name}={c[name]!r} is unknown. Use {', '.join(map(repr, values))}."
            )
