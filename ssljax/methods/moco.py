"""MoCo: contrast with keys from a slowly moving encoder.

    v1  He, Fan, Wu, Xie, Girshick: Momentum Contrast for Unsupervised Visual Representation Learning,
        arXiv 1911.05722
    v2  Chen, Fan, Girshick, He: Improved Baselines with Momentum Contrastive Learning, arXiv 2003.04297
    v3  Chen, Xie, He: An Empirical Study of Training Self-Supervised Vision Transformers, arXiv 2104.02057

    q = f_q(x_q),   k = f_k(x_k)
    theta_k <- m theta_k + (1 - m) theta_q                                                  (v1, equation 2)

    v1, v2   L = -log  exp(q.k / tau) / (exp(q.k / tau) + sum over the queue exp(q.k_j / tau))
                                                                                            (v1, equation 1)
    v3       L = ctr(q_1, k_2) + ctr(q_2, k_1)
             ctr(q, k) = -2 tau log  exp(q_i.k_i / tau) / sum_j exp(q_i.k_j / tau)

`queue.size` chooses the algorithm. K > 0 is Algorithm 1 of v1 and v2, which differ in the head, the views and
the schedule. K = 0 is Algorithm 1 of v3, whose queries pass through a predictor that the keys do not have.

The papers move f_k before they encode the keys. Here `update` moves it after the optimizer step, which gives
the same sequence: the papers' first move finds two equal networks, and every later one finds the parameters
of the step before. This is why `update` uses the m of the coming step.

At a high temperature the loss hardly moves, and that is normal. `loss_floor` and `loss_at_collapse`, logged
beside it, bound the values it can take. With v3 on a ResNet-50 (tau = 1, batch size 4096) they are 25.3 and
33.3, and a good run stands near 27.

Differences from the papers, after the released code (facebookresearch/moco, moco-v3) unless marked [X]:
- Batch statistics (v1, v2) are those of `bn.groups` groups of the global batch, as on that many
  unsynchronised devices, whatever the number of real devices. One permutation of the global batch shuffles
  the keys. With one group, shuffling does nothing.
- The running statistics of f_k are its own. Momentum moves only its parameters.
- The patch projection of v3 is frozen by keeping it out of `params` (`model.frozen_patch`), so no optimizer
  sees it.
- Nothing checks that K is below a quarter of the training images, as the presets have it: the released 65,536
  keys are those of more than an epoch on CIFAR, and stale. [X]
- Convolutions start from a truncated normal scaled by the fan-in; PyTorch's start from a normal scaled by the
  fan-out. [X]
- Colours and blur are computed in float32. The released code calls Pillow, which rounds to whole grey levels
  after each operation; a blur differs by 0.3 of 255 on average for that. [X]
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

SHUFFLE = 2**32 - 2  # folded into the step's key; the index of an example is below 2^31


class MocoState(NamedTuple):
    """What follows the query encoder.

    Attributes:
        key_params: {"encoder", "projector"} of f_k, float32.
        key_stats: the running statistics of f_k.
        queue: the K keys of the last steps; () without a queue.
    """

    key_params: Pytree
    key_stats: Pytree
    queue: Queue | tuple[()]


class Carry(NamedTuple):
    """What a step leaves for `update`.

    Attributes:
        keys: the normalised keys to enqueue, [B, D] or [2B, D] with a symmetric loss; () without a queue.
        key_stats: the running statistics of f_k after the step.
    """

    keys: Pytree
    key_stats: Pytree


def moco(config: ConfigDict, facts: Facts) -> Method:
    """Build MoCo as pure functions.

    `params` holds encoder, projector and, in v3, predictor; `extra` is a MocoState.
    """
    check(config)
    size = config.data.image_size
    image_shape = (size, size, config.data.channels)
    dim = config.head.dim
    groups = config.bn.groups
    tau = config.loss.temperature
    in_batch = config.queue.size == 0

    encoder = models.backbone(config.model)
    projector = models.mlp(config.head, config.model, dim)
    predictor = None
    if config.predictor.layers:
        predictor = models.mlp(config.predictor, config.model, dim)

    def m(step: jax.Array | int) -> jax.Array:
        """Constant in v1 and v2; in v3 from `target.momentum` to 1 along half a cosine."""
        total = config.steps or facts.num_examples * config.epochs // config.batch_size
        return ema.decay(step, schedule=config.target.schedule, base=config.target.momentum, total=total)

    m(0)  # reports a wrong setting before training starts

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, MocoState]:
        del batch
        keys = jax.random.split(key, 4)
        f, f_state, h = models.initialise(encoder, keys[0], image_shape)
        g, g_state, z = models.initialise_head(projector, keys[1], h)
        if not config.zero_init_residual:
            f = models.unit_gains(f)
        params = {"encoder": f, "projector": g}
        model_state = {"encoder": f_state, "projector": g_state}

        # f_k starts as a copy of f_q.
        queue = () if in_batch else queues.init(keys[3], config.queue.size, dim)
        extra = MocoState(dict(params), dict(model_state), queue)

        if predictor is not None:
            params["predictor"], model_state["predictor"], _ = models.initialise_head(predictor, keys[2], z)
        return params, model_state, extra

    def f(params: Pytree, state: Pytree, x: jax.Array) -> tuple[jax.Array, Pytree]:
        """Backbone and projector in training mode: embeddings [B, D], and the running statistics after it."""
        h, f_state = models.forward(encoder, params["encoder"], state["encoder"], x, groups=groups)
        z, g_state = models.forward(projector, params["projector"], state["projector"], h, groups=groups)
        return z, {**state, "encoder": f_state, "projector": g_state}

    def f_k(params: Pytree, state: Pytree, x: jax.Array, key: jax.Array) -> tuple[jax.Array, Pytree]:
        """Normalised keys [B, D], and the running statistics after the pass.

        The batch is shuffled over the groups and back, so that no query shares the statistics of its key.
        """
        if not config.bn.shuffle:
            k, state = f(params, state, x)
            return l2_normalize(k), state
        order = jax.random.permutation(key, x.shape[0])
        k, state = f(params, state, x[order])
        return l2_normalize(k[jnp.argsort(order)]), state

    def loss_with_queue(
        params: Pytree, model_state: Pytree, extra: MocoState, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        """Algorithm 1 of v1; with `loss.symmetric`, in both directions, the keys of view 1 enqueued first."""
        # 1. x_q = aug(x), x_k = aug(x)
        x = views.stacked(batch, key, config)

        assert isinstance(extra.queue, Queue)
        queue = extra.queue.keys
        state = model_state
        key_stats = extra.key_stats
        rows: list[jax.Array] = []
        keys: list[jax.Array] = []
        directions = ((0, 1), (1, 0)) if config.loss.symmetric else ((0, 1),)
        for number, (query_view, key_view) in enumerate(directions):
            # 2. q = f_q.forward(x_q), k = f_k.forward(x_k), no gradient to keys
            q, state = f(params, state, x[:, query_view])
            x_k = x[:, key_view]
            shuffle_key = jax.random.fold_in(key, jnp.uint32(SHUFFLE - number))
            k, key_stats = f_k(extra.key_params, key_stats, x_k, shuffle_key)

            # 3. The positive against the queue as it stands: the keys of this batch are not in it yet.
            rows.append(info_nce(q, k, queue, temperature=tau))
            keys.insert(0, k)

        total = jnp.mean(sum(rows))
        metrics = {
            "pretext_accuracy": jnp.mean(queue_accuracy(q, k, queue)),
            **bounds(len(rows)),
            **health(q, k, logged=logged(step)),
        }
        # 4. What `update` needs: running statistics of f_k, and the keys for the queue.
        return total, Out(state, Carry(jnp.concatenate(keys), key_stats), metrics)

    def loss_in_batch(
        params: Pytree, model_state: Pytree, extra: MocoState, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        """Algorithm 1 of v3. Each view has its own pass and its own batch statistics."""
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
        """f_q of v3: the predictor on top of f."""
        z, state = f(params, state, x)
        if predictor is None:
            return z, state
        q, p_state = models.forward(predictor, params["predictor"], state["predictor"], z, groups=groups)
        return q, {**state, "predictor": p_state}

    def ctr(q: jax.Array, k: jax.Array) -> jax.Array:
        return 2.0 * tau * jnp.mean(in_batch_info_nce(q, jax.lax.stop_gradient(k), temperature=tau))

    def bounds(directions: int) -> dict[str, jax.Array]:
        """The loss with perfect positives and opposite negatives, and the loss with equal embeddings."""
        if in_batch:
            negatives = config.batch_size - 1
            scale = 2.0 * tau * directions
        else:
            negatives = config.queue.size
            scale = 1.0 * directions
        return {
            "loss_floor": jnp.float32(scale * math.log1p(negatives * math.exp(-2.0 / tau))),
            "loss_at_collapse": jnp.float32(scale * math.log1p(negatives)),
        }

    def logged(step: jax.Array) -> jax.Array:
        return (step + 1) % config.log_every == 0

    def update(extra: MocoState, params: Pytree, carry: Carry, step: jax.Array) -> MocoState:
        # Momentum update of the key network, with the m of the step that will use it.
        online = {name: params[name] for name in extra.key_params}
        key_params = ema.update(extra.key_params, online, m(step + 1))

        # enqueue(queue, k), dequeue(queue)
        queue = extra.queue
        if isinstance(queue, Queue):
            queue = queues.enqueue(queue, carry.keys)
        return MocoState(key_params, carry.key_stats, queue)

    return Method(
        init=init,
        loss=loss_in_batch if in_batch else loss_with_queue,
        update=update,
        rows=("queue",),
        num_views=2,
    )


def check(config: ConfigDict) -> None:
    """Refuse settings that cannot be trained with.

    Raises:
        ValueError: names the setting and the values that fit.
    """
    if config.batch_size % config.bn.groups:
        raise ValueError(
            f"config.bn.groups={config.bn.groups} does not divide batch_size={config.batch_size}. Each group "
            "normalises batch_size / groups images: choose a divisor, or 1 for statistics of the whole batch."
        )
    if config.queue.size:
        keys_per_step = config.batch_size * (2 if config.loss.symmetric else 1)
        queues.check(config.queue.size, keys_per_step)
        if config.predictor.layers:
            raise ValueError(
                f"config.predictor.layers={config.predictor.layers} with a queue of K={config.queue.size}: "
                "only v3 has a predictor, and v3 has no queue. Set predictor.layers or queue.size to 0."
            )
