"""CMC: contrast the views of an image, such as its luminance and its colours, with those of other images.

Tian, Krishnan, Isola: Contrastive Multiview Coding, arXiv 1906.05849.

    v_i = g_i(f_i(view i)) / |.|         a network and a linear embedding for every view (`model.split`)
    L(V_i -> V_j) = -log  h(v_i, v_j) / (h(v_i, v_j) + sum_k h(v_i, v_j^k)),    h(a, b) = exp(a.b / tau)

    core view    sum over j > 1 of  L(V_1 -> V_j) + L(V_j -> V_1)
    full graph   the same for all pairs of views                         (section 3.3)

Every view has a memory bank M_i [N, D] with a row for each training image y:

    L(V_i -> V_j) contrasts v_i with M_j[y] and with rows M_j[k] of m images k drawn at random;
    then  M_i[y] <- mu M_i[y] + (1 - mu) v_i, scaled to unit length.

The positive is the bank's row too, so L(V_i -> V_j) teaches the network of view i alone. `contrast.name`:

    nce       noise-contrastive estimation with a constant Z per direction, taken from the first batch (the
              released code's default, see `losses/bank.py`)
    softmax   L itself
    in_batch  L against the other images of the batch, without a bank; both sides learn

The views of an image come from one crop. What evaluation reads are the features f_i of all views side by
side, or with `evaluate.view` those of one. The log has log(m) - L for each pair, a lower bound of what the
two views' embeddings tell about each other, in nats.

Differences from the paper, after the released code (HobbitLong/CMC at 7b227be) unless marked [X]:
- NCE with banks stands for the paper's softmax over all images. The negatives of an image are drawn anew at
  every step, may be the image itself, and are the same in all directions.
- With more than two views there is a Z per direction. The code has two views only. [X]
- The last, incomplete batch of an epoch is dropped. [X]
- If the batch says in `present` which views an image has, a pair counts only the images that have both; the
  others still take part in batch statistics and in the estimate of Z. [X]
- `bank.draw="shared"` takes the same negatives for the whole batch: one product of matrices. [X]
- The bank has a few rows more than there are images, so that devices can share them evenly. [X]
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssljax import models
from ssljax.data import views
from ssljax.losses.contrastive import bank_info_nce, bank_scores, in_batch_info_nce, nce, nce_z
from ssljax.losses.health import health
from ssljax.losses.information import info_nce_bound
from ssljax.losses.similarity import l2_normalize
from ssljax.targets import bank
from ssljax.types import Batch, Facts, Method, Out, Pytree, TrainState

NEGATIVES = 2**32 - 4  # folded into the step's key; the index of an example is below 2^31
# The rows of a bank are a multiple of this, and split evenly over as many devices. `Facts.rows` would change
# the first, random rows of every bank, and with them the bits of the runs on record.
SHARES = 256
Z_DECAY = 0.99

Scored = tuple[jax.Array, jax.Array]  # the loss of each image [B], and its cross entropy for the bound [B]


class Banks(NamedTuple):
    """What is remembered of the training images.

    Attributes:
        rows: float32 [N, D] per view; row y is the embedding of the image with the id y.
        z: float32 [V, V], Z of the direction from view i to view j; -1 before the first batch.
        ids: int32 [images], the ids of the training images, which negatives are drawn from.
    """

    rows: tuple[jax.Array, ...]
    z: jax.Array
    ids: jax.Array


class Carry(NamedTuple):
    """What a step leaves for `update`.

    Attributes:
        v: float32 [V, B, D], embeddings of unit length.
        index: int32 [V, B], the rows they belong to; beyond the end for a view that an image does not have.
        z: the constants that the step used.
    """

    v: jax.Array
    index: jax.Array  # type: ignore[assignment]  # hides tuple.index
    z: jax.Array


def cmc(config: ConfigDict, facts: Facts) -> Method:
    """Build CMC as pure functions.

    `params` holds encoder and projector; `extra` is a Banks, or `()` with negatives from the batch.
    """
    models.check_views(config)
    size = config.data.image_size
    image_shape = (size, size, config.data.channels)
    split = tuple(config.model.split)
    pairs = models.pairs_of(len(split), config.contrast.graph)
    tau = config.loss.temperature
    in_batch = config.contrast.name == "in_batch"
    length = -(-facts.num_ids // SHARES) * SHARES

    encoder = models.backbone(config.model)
    projector = models.view_heads(config.head.dim, config.model)

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, Pytree]:
        del batch
        keys = jax.random.split(key, 2 + len(split))
        f, f_state, h = models.initialise(encoder, keys[0], image_shape)
        g, _, _ = models.initialise_head(projector, keys[1], h)
        if not config.zero_init_residual:
            f = models.unit_gains(f)
        params = {"encoder": f, "projector": g}
        if in_batch:
            return params, {"encoder": f_state}, ()
        rows = tuple(bank.init(each, length, config.head.dim) for each in keys[2:])
        z = jnp.full((len(split), len(split)), -1.0, jnp.float32)
        return params, {"encoder": f_state}, Banks(rows, z, jnp.arange(facts.num_examples, dtype=jnp.int32))

    def embed(params: Pytree, model_state: Pytree, batch: Batch, key: jax.Array) -> tuple[jax.Array, Pytree]:
        """Embeddings [V, B, D], and the running statistics after the pass."""
        # 1. One crop of each image; the encoder splits its channels into views, each with its own network.
        x = views.stacked(batch, key, config)[:, 0]
        h, f_state = models.forward(
            encoder, params["encoder"], model_state["encoder"], x, groups=config.bn.groups
        )
        v, _ = models.forward(projector, params["projector"], {}, h)
        return v.swapaxes(0, 1), {"encoder": f_state}

    def loss_with_banks(
        params: Pytree, model_state: Pytree, extra: Banks, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        v, model_state = embed(params, model_state, batch, key)
        index = batch["index"]
        present = presence(batch, len(split))

        # 2. m images for each image (or for the batch), the same in all directions.
        count = (config.bank.negatives,)
        shape = count if config.bank.draw == "shared" else (len(index), *count)
        draw_key = jax.random.fold_in(key, jnp.uint32(NEGATIVES))
        drawn = extra.ids[jax.random.randint(draw_key, shape, 0, facts.num_examples)]

        # 3. Both sides of every pair are scored against the other side's bank as it stood before this batch.
        z = extra.z
        found: dict[tuple[int, int], Scored] = {}
        hits = []
        for i, j in models.both_ways(pairs):
            rows = (bank.gather(extra.rows[j], index), bank.gather(extra.rows[j], drawn))
            cross_entropy = bank_info_nce(v[i], *rows, temperature=tau)
            loss_rows = cross_entropy
            if config.contrast.name == "nce":
                here = constant(z[i, j], nce_z(v[i], *rows, temperature=tau, n_data=facts.num_examples))
                z = z.at[i, j].set(here)
                loss_rows = nce(v[i], *rows, temperature=tau, n_data=facts.num_examples, z=here)
            found[i, j] = (loss_rows, cross_entropy)
            scores = jax.lax.stop_gradient(bank_scores(v[i], *rows))
            hits.append(jnp.mean((jnp.argmax(scores, axis=1) == 0).astype(jnp.float32)))

        # 4. The sum over pairs and directions. `update` then moves the rows of this batch.
        total, metrics = summed(found, present, config.bank.negatives)
        metrics = {
            **metrics,
            "pretext_accuracy": jnp.mean(jnp.stack(hits)),
            **health(v[0], v[1], logged=logged(step)),
        }
        if config.contrast.name == "nce":
            metrics["z_per_image"] = jnp.max(z) / facts.num_examples
        rows_of_views = jnp.where(present.T, index, length)
        return total, Out(model_state, Carry(l2_normalize(v), rows_of_views, z), metrics)

    def loss_in_batch(
        params: Pytree, model_state: Pytree, extra: tuple, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        v, model_state = embed(params, model_state, batch, key)
        found = {}
        for i, j in models.both_ways(pairs):
            rows = in_batch_info_nce(v[i], v[j], temperature=tau)
            found[i, j] = (rows, rows)
        present = jnp.ones((v.shape[1], len(split)), bool)
        total, metrics = summed(found, present, v.shape[1] - 1)
        metrics = {**metrics, **health(v[0], v[1], logged=logged(step))}
        return total, Out(model_state, (), metrics)

    def constant(known: jax.Array, estimate: jax.Array) -> jax.Array:
        """Z of this step: that of the first batch, or the moving average."""
        after = known
        if config.bank.z == "ema":
            after = Z_DECAY * known + (1.0 - Z_DECAY) * estimate
        return jnp.where(known < 0.0, estimate, after)

    def summed(
        found: dict[tuple[int, int], Scored], present: jax.Array, negatives: int
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss, and for each pair of views its loss and its bound, the mean of both directions."""
        total = jnp.float32(0.0)
        metrics = {}
        for i, j in pairs:
            both = present[:, i] & present[:, j]
            there, back = found[i, j], found[j, i]
            pair_loss = mean_of(there[0], both) + mean_of(back[0], both)
            cross_entropy = 0.5 * (mean_of(there[1], both) + mean_of(back[1], both))
            name = f"{models.view_name(split[i])}_{models.view_name(split[j])}"
            metrics[f"loss_{name}"] = pair_loss
            metrics[f"bound_{name}"] = info_nce_bound(cross_entropy, negatives)
            total += pair_loss
        return total, metrics

    def logged(step: jax.Array) -> jax.Array:
        return (step + 1) % config.log_every == 0

    def update(extra: Banks, params: Pytree, carry: Carry, step: jax.Array) -> Banks:
        rows = tuple(
            bank.scatter(old, carry.index[view], carry.v[view], config.bank.momentum)
            for view, old in enumerate(extra.rows)
        )
        return Banks(rows, carry.z, extra.ids)

    def refresh(state: TrainState, run: Any) -> TrainState:
        """Before the first step: which ids the training images have, if they are a part of the data."""
        if int(state.step):
            return state
        return run.place(state.replace(extra=state.extra._replace(ids=jnp.asarray(run.ids, jnp.int32))))

    def encode(params: Pytree, model_state: Pytree, extra: Pytree, image: jax.Array) -> jax.Array:
        x = views.for_network(image, config.augment)
        h = models.infer(encoder, params["encoder"], model_state["encoder"], x)
        return models.features_of(h, config)

    if in_batch:
        return Method(init=init, loss=loss_in_batch, encode=encode, num_views=1)
    return Method(
        init=init,
        loss=loss_with_banks,
        update=update,
        refresh=refresh,
        encode=encode,
        rows=("rows",),
        num_views=1,
    )


def presence(batch: Batch, count: int) -> jax.Array:
    """Which views each image has, bool [B, V]: `batch["present"]`, or all of them."""
    if "present" in batch:
        return batch["present"]
    return jnp.ones((len(batch["index"]), count), bool)


def mean_of(rows: jax.Array, counted: jax.Array) -> jax.Array:
    """The mean of the rows that count; 0 if none does."""
    counted = counted.astype(jnp.float32)
    return jnp.sum(rows * counted) / jnp.maximum(jnp.sum(counted), 1.0)
