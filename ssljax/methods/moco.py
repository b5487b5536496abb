"""MoCo: contrast with keys from a slowly moving encoder.

    v1  He, Fan, Wu, Xie, Girshick: Momentum Contrast for Unsupervised Visual Representation Learning, arXiv 1911.05722
    v2  Chen, Fan, Girshick, He: Improved Baselines with Momentum Contrastive Learning, arXiv 2003.04297
    v3  Chen, Xie, He: An Empirical Study of Training Self-Supervised Vision Transformers, arXiv 2104.02057

    q = f_q(x_q),   k = f_k(x_k),   theta_k <- m theta_k + (1 - m) theta_q                                  (v1, equation 2)
    v1, v2   L = -log  exp(q.k / tau) / (exp(q.k / tau) + sum over the queue exp(q.k_j / tau))              (v1, equation 1)
    v3       L = ctr(q_1, k_2) + ctr(q_2, k_1),   ctr(q, k) = -2 tau log  exp(q_i.k_i / tau) / sum_j exp(q_i.k_j / tau)

`queue.size` chooses: K > 0 is Algorithm 1 of v1 and v2, which differ in the head, the views and the schedule; K = 0 is Algorithm 1 of
v3, whose queries pass a predictor that the keys do not have.

The papers move f_k before they encode keys; here `update` moves it after the optimizer, which is the same sequence: their first move
finds two equal networks, and every later one the parameters of the step before. v3's m is therefore that of the coming step.

A loss that hardly moves is normal where the temperature is high: `loss_floor` and `loss_at_collapse`, logged beside it, say between which
numbers it can lie. With v3 on a ResNet-50 (tau = 1, batch 4096) they are 25.3 and 33.3, and a good run stands near 27.

Differences from the papers, after the released code (facebookresearch/moco, moco-v3) unless marked [X]:
- Batch statistics (v1, v2) are those of `bn.groups` groups of the global batch, as of so many unsynchronised devices, whatever the number
  of real ones; keys are shuffled by one permutation of the global batch. With one group shuffling does nothing.
- Running statistics of f_k are its own; momentum moves only its parameters.
- v3's patch projection is frozen by keeping it out of `params` (`model.frozen_patch`); no optimizer sees it.
- Convolutions start from a truncated normal over the fan-in, PyTorch's from a normal over the fan-out. [X]
- Both views are drawn by the recipe of `config.augment`; v3's two recipes differ in blur and solarisation. [X]
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssljax import models
from ssljax.data import views
from ssljax.losses.contrastive import contrast_accuracy, in_batch_info_nce, info_nce, queue_accuracy
from ssljax.losses.health import health
from ssljax.losses.similarity import l2_normalize
from ssljax.targets import ema
from ssljax.targets import queue as queues
from ssljax.targets.queue import Queue
from ssljax.types import Batch, Facts, Method, Out, Pytree

SHUFFLE = 2**32 - 2  # folded into the step's key; an example's own number is below 2^31


class MocoState(NamedTuple):
    """What follows the query encoder.

    Attributes:
        key_params: {"encoder", "projector"} of f_k, float32.
        key_stats: its running statistics.
        queue: K keys of the last steps, () without a queue.
    """

    key_params: Pytree
    key_stats: Pytree
    queue: Queue | tuple[()]


class Carry(NamedTuple):
    """What a step leaves for `update`: the keys to enqueue [B or 2B, D], normalised (() without a queue), f_k's running statistics."""

    keys: jax.Array | tuple[()]
    key_stats: Pytree


def moco(config: ConfigDict, facts: Facts) -> Method:
    """MoCo as pure functions. params: encoder, projector and, in v3, predictor; extra: MocoState."""
    check(config)
    size, channels, dim = config.data.image_size, config.data.channels, config.head.dim
    groups, tau, in_batch = config.bn.groups, config.loss.temperature, config.queue.size == 0
    encoder = models.backbone(config.model)
    projector = models.mlp(config.head, config.model, dim)
    predictor = models.mlp(config.predictor, config.model, dim) if config.predictor.layers else None

    def m(step: jax.Array | int) -> jax.Array:
        """Constant in v1 and v2; in v3 from `target.momentum` up to 1 on half a cosine."""
        total = facts.num_examples * config.epochs // config.batch_size
        return ema.decay(step, schedule=config.target.schedule, base=config.target.momentum, total=total)

    m(0)  # refuses a wrong setting now

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, MocoState]:
        del batch
        keys = jax.random.split(key, 4)
        f, f_state, h = models.initialise(encoder, keys[0], (size, size, channels))
        g, g_state, z = models.initialise_head(projector, keys[1], h)
        params, model_state = {"encoder": f, "projector": g}, {"encoder": f_state, "projector": g_state}
        if not config.zero_init_residual:
            params["encoder"] = models.unit_gains(params["encoder"])
        # f_k starts as a copy of f_q.
        extra = MocoState(
            dict(params), dict(model_state), () if in_batch else queues.init(keys[3], config.queue.size, dim)
        )
        if predictor is not None:
            params["predictor"], model_state["predictor"], _ = models.initialise_head(predictor, keys[2], z)
        return params, model_state, extra

    def f(params: Pytree, state: Pytree, x: jax.Array) -> tuple[jax.Array, Pytree]:
        """Backbone and projector, in training mode: embeddings [B, D], and the state with their running statistics."""
        h, f_state = models.forward(encoder, params["encoder"], state["encoder"], x, groups=groups)
        z, g_state = models.forward(projector, params["projector"], state["projector"], h, groups=groups)
        return z, {**state, "encoder": f_state, "projector": g_state}

    def f_k(params: Pytree, state: Pytree, x: jax.Array, key: jax.Array) -> tuple[jax.Array, Pytree]:
        """Normalised keys [B, D]. The batch is shuffled over the groups and back, so that no query shares its key's statistics."""
        if not config.bn.shuffle:
            k, state = f(params, state, x)
            return l2_normalize(k), state
        order = jax.random.permutation(key, x.shape[0])
        k, state = f(params, state, x[order])
        return l2_normalize(k[jnp.argsort(order)]), state

    def loss_with_queue(
        params: Pytree, model_state: Pytree, extra: MocoState, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        """Algorithm 1 of v1; with `loss.symmetric` in both directions, the first view's keys enqueued first."""
        # 1. x_q = aug(x), x_k = aug(x)
        x = views.stacked(batch, key, config)
        state, key_stats, queue, keys, rows = model_state, extra.key_stats, extra.queue.keys, [], []
        for number, (one, other) in enumerate(((0, 1), (1, 0)) if config.loss.symmetric else ((0, 1),)):
            # 2. q = f_q.forward(x_q), k = f_k.forward(x_k), no gradient to keys
            q, state = f(params, state, x[:, one])
            k, key_stats = f_k(
                extra.key_params,
                key_stats,
                x[:, other],
                jax.random.fold_in(key, jnp.uint32(SHUFFLE - number)),
            )
            # 3. the positive against the queue as it stands: this batch's keys are not in it yet
            rows.append(info_nce(q, k, queue, temperature=tau))
            keys.insert(0, k)
        total = jnp.mean(sum(rows))
        metrics = {
            "pretext_accuracy": jnp.mean(queue_accuracy(q, k, queue)),
            **bounds(len(rows)),
            **health(q, k, logged=logged(step)),
        }
        # 4. what the update needs: momentum for f_k, the keys for the queue
        return total, Out(state, Carry(jnp.concatenate(keys), key_stats), metrics)

    def loss_in_batch(
        params: Pytree, model_state: Pytree, extra: MocoState, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        """Algorithm 1 of v3: each view is a pass of its own, with statistics of its own."""
        # 1. x1, x2 = aug(x), aug(x)
        x = views.stacked(batch, key, config)
        # 2. q1, q2 = f_q(x1), f_q(x2): backbone, projector, predictor
        q1, state = query(params, model_state, x[:, 0])
        q2, state = query(params, state, x[:, 1])
        # 3. k1, k2 = f_k(x1), f_k(x2): no predictor, no gradient
        k1, key_stats = f(extra.key_params, extra.key_stats, x[:, 0])
        k2, key_stats = f(extra.key_params, key_stats, x[:, 1])
        # 4. loss = ctr(q1, k2) + ctr(q2, k1)
        total = ctr(q1, k2) + ctr(q2, k1)
        metrics = {
            "contrast_accuracy": jnp.mean(contrast_accuracy(q1, k2)),
            **bounds(2),
            **health(q1, k2, logged=logged(step)),
        }
        return total, Out(state, Carry((), key_stats), metrics)

    def query(params: Pytree, state: Pytree, x: jax.Array) -> tuple[jax.Array, Pytree]:
        z, state = f(params, state, x)
        if predictor is None:
            return z, state
        q, p_state = models.forward(predictor, params["predictor"], state["predictor"], z, groups=groups)
        return q, {**state, "predictor": p_state}

    def ctr(q: jax.Array, k: jax.Array) -> jax.Array:
        return 2.0 * tau * jnp.mean(in_batch_info_nce(q, jax.lax.stop_gradient(k), temperature=tau))

    def bounds(directions: int) -> dict[str, jax.Array]:
        """The loss of opposite negatives and perfect positives, and the loss of equal embeddings."""
        negatives, scale = (
            (config.batch_size - 1, 2.0 * tau * directions)
            if in_batch
            else (config.queue.size, 1.0 * directions)
        )
        return {
            "loss_floor": jnp.float32(scale * math.log1p(negatives * math.exp(-2.0 / tau))),
            "loss_at_collapse": jnp.float32(scale * math.log1p(negatives)),
        }

    def logged(step: jax.Array) -> jax.Array:
        return (step + 1) % config.log_every == 0

    def update(extra: MocoState, params: Pytree, carry: Carry, step: jax.Array) -> MocoState:
        # momentum update: key network, with the m of the step that will use it
        online = {name: params[name] for name in extra.key_params}
        key_params = ema.update(extra.key_params, online, m(step + 1))
        # enqueue(queue, k), dequeue(queue)
        queue = () if in_batch else queues.enqueue(extra.queue, carry.keys)
        return MocoState(key_params, carry.key_stats, queue)

    return Method(
        init=init,
        loss=loss_in_batch if in_batch else loss_with_queue,
        update=update,
        rows=("queue",),
        num_views=2,
    )


def check(config: ConfigDict) -> None:
    """Refuses settings that cannot be trained with.

    Raises:
        ValueError: names the setting, and what fits.
    """
    if config.batch_size % config.bn.groups:
        raise ValueError(
            f"config.bn.groups={config.bn.groups} does not divide batch_size={config.batch_size}: every group normalises "
            "batch_size / groups images; choose a divisor, or 1 for statistics over the whole batch"
        )
    if config.queue.size:
        queues.check(config.queue.size, config.batch_size * (2 if config.loss.symmetric else 1))
        if config.predictor.layers:
            raise ValueError(
                f"config.predictor.layers={config.predictor.layers} with a queue of K={config.queue.size}: only v3, without a "
                "queue, has a predictor; set predictor.layers or queue.size to 0"
            )
