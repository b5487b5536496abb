"""SimCLRv2: pretrain a big network without labels, fine-tune it on a few, distil it on all images.

Chen, Kornblith, Swersky, Norouzi, Hinton: Big Self-Supervised Models are Strong Semi-Supervised Learners,
arXiv 2006.10029. `config.task` says which of the paper's three stages a run is:

    pretrain   SimCLR with a head of three layers.  With a memory (`queue.size`) the keys of the contrast come
               from a moving average of the network, and K of earlier batches are further negatives.

    finetune   a_j = the j-th hidden layer of the projection head, after its ReLU; a_0 = f(view)
               L = mean cross entropy of (W a_j + b) against the label

    distill    P(y | x) = softmax(logits / tau)
               L = - (1 - alpha) sum over labelled x of log P_S(y | x)
                   - alpha sum over all x of sum_y P_T(y | x) log P_S(y | x),   divided by the batch size
                                                                                          (equations 2 and 3)

Fine-tuning keeps the layers of the head up to the j-th (`head.finetune_from`), and trains them with the whole
network; j = 1 is the paper's choice for 1 % and 10 % of the labels, and j = 0 that for all of them. In
distillation the teacher is frozen, in inference mode, and sees the same crop as the student, which has no
layers of a head: the paper's self-distillation is a student of the teacher's size.

Differences from the paper, after the released code (google-research/simclr, commit 383d414) unless marked
[X]:
- The losses of pretraining are sums of two directions, as in SimCLR's code (see methods/simclr.py).
- Layers of the head that fine-tuning keeps are trained, as the released TF2 code does. The TF1 code, with
  which the paper's numbers were made, leaves their weights out of its list of variables: only their running
  statistics move.
- The memory is not in the released code. Here both views of a batch are keys, keys of the same view count as
  negatives, the moving average has running statistics of its own, and it moves after the optimizer. [X]
- The released notebook multiplies the teacher's part of the loss by tau^2 (`distill.tau_squared`), the paper
  does not. Kernels that LARS adapts hardly notice.
- A student starts from random weights. [X]
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssljax import models
from ssljax.data import views
from ssljax.losses.classification import accuracy, cross_entropy, mean_of_labelled
from ssljax.losses.contrastive import contrast_accuracy, nt_xent_with_memory
from ssljax.losses.distillation import probabilities
from ssljax.losses.health import health
from ssljax.losses.similarity import l2_normalize
from ssljax.methods.simclr import simclr
from ssljax.targets import ema, frozen
from ssljax.targets import queue as queues
from ssljax.targets.frozen import Frozen
from ssljax.targets.queue import Queue
from ssljax.types import Batch, Facts, LoadFn, Method, Out, Pytree, TrainState


class Memory(NamedTuple):
    """What follows the network in pretraining with a memory.

    Attributes:
        params: {"encoder", "projector"} of the moving average, float32.
        stats: its running statistics.
        queue: K of its embeddings, of the last batches.
    """

    params: Pytree
    stats: Pytree
    queue: Queue


class Carry(NamedTuple):
    """What a step of pretraining leaves for `update`.

    Attributes:
        keys: the normalised embeddings to enqueue, [2B, D]: those of view 1, then those of view 2.
        stats: the running statistics of the moving average after the step.
    """

    keys: jax.Array
    stats: Pytree


def simclr_v2(config: ConfigDict, facts: Facts) -> Method:
    """Build the stage of SimCLRv2 that `config.task` names.

    Raises:
        ValueError: the task is unknown, or a setting of its does not fit.
    """
    if config.task == "pretrain":
        return pretrain_with_memory(config) if config.queue.size else simclr(config, facts)
    if config.task == "finetune":
        return finetune(config, facts)
    if config.task == "distill":
        return distill(config, facts)
    raise ValueError(f"config.task={config.task!r} is unknown. Use 'pretrain', 'finetune' or 'distill'.")


# ------------------------------------------------------------------------------------------------ pretraining


def pretrain_with_memory(config: ConfigDict) -> Method:
    """Build SimCLR's pretraining with a moving average and its memory.

    `params` holds encoder and projector; `extra` is a Memory.
    """
    queues.check(config.queue.size, 2 * config.batch_size)
    size = config.data.image_size
    image_shape = (size, size, config.data.channels)

    encoder = models.backbone(config.model)
    projector = models.projection_head(config.head, config.model)

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, Memory]:
        del batch
        keys = jax.random.split(key, 3)
        f, f_state, h = models.initialise(encoder, keys[0], image_shape)
        g, g_state, _ = models.initialise_head(projector, keys[1], h)
        params = {"encoder": f, "projector": g}
        model_state = {"encoder": f_state, "projector": g_state}
        queue = queues.init(keys[2], config.queue.size, config.head.dim)
        average = ema.follow(params, model_state)
        return params, model_state, Memory(average.params, average.model_state, queue)

    def embed(params: Pytree, model_state: Pytree, x: jax.Array) -> tuple[jax.Array, Pytree]:
        """z [B, 2, D] of views [B, 2, S, S, C], normalised by the statistics of all 2B of them."""
        rows = x.reshape(-1, *x.shape[2:])
        h, f_state = models.forward(encoder, params["encoder"], model_state["encoder"], rows)
        z, g_state = models.forward(projector, params["projector"], model_state["projector"], h)
        return z.reshape(-1, 2, z.shape[1]), {"encoder": f_state, "projector": g_state}

    def loss(
        params: Pytree, model_state: Pytree, extra: Memory, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        # 1. Two views of each image: [B, 2, S, S, C].
        x = views.stacked(batch, key, config)

        # 2. Queries by the network, keys of the same views by its moving average, which gets no gradient.
        q, model_state = embed(params, model_state, x)
        k, stats = jax.lax.stop_gradient(embed(extra.params, extra.stats, x))

        # 3. Equation 1 with the keys in the place of the other view, and the memory as further negatives.
        rows = nt_xent_with_memory(
            q[:, 0], q[:, 1], k[:, 0], k[:, 1], extra.queue.keys, temperature=config.loss.temperature
        )
        metrics = {
            "loss_per_view": jnp.mean(rows),
            "contrast_accuracy": jnp.mean(contrast_accuracy(q[:, 0], k[:, 1])),
            **health(q[:, 0], q[:, 1], logged=(step + 1) % config.log_every == 0),
        }
        keys = l2_normalize(jnp.concatenate([k[:, 0], k[:, 1]]))
        return 2.0 * jnp.mean(rows), Out(model_state, Carry(keys, stats), metrics)

    def update(extra: Memory, params: Pytree, carry: Carry, step: jax.Array) -> Memory:
        # 4. The moving average, towards the parameters that the optimizer has just made; then the queue.
        average = ema.update(extra.params, params, config.target.momentum)
        return Memory(average, carry.stats, queues.enqueue(extra.queue, carry.keys))

    return Method(init=init, loss=loss, update=update, rows=("queue",), num_views=2)


# ------------------------------------------------------------------------------------------------ fine-tuning


def finetune(config: ConfigDict, facts: Facts) -> Method:
    """Build the training of the whole network, from a layer of the projection head, on labels.

    `params` holds encoder, head and, with `head.finetune_from` above 0, projector: only the layers that are
    kept. There is no extra state. `encode` gives what the classifier reads, a_j.
    """
    size = config.data.image_size
    image_shape = (size, size, config.data.channels)

    encoder = models.backbone(config.model)
    projector = kept_layers(config.head, config.model, config.head.finetune_from)
    head = models.LinearClassifier(facts.num_classes, scheme="zeros")

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, tuple]:
        del batch
        keys = jax.random.split(key, 3)
        f, f_state, a = models.initialise(encoder, keys[0], image_shape)
        params = {"encoder": f}
        model_state = {"encoder": f_state}
        if projector is not None:
            params["projector"], model_state["projector"], a = models.initialise_head(projector, keys[1], a)
        params["head"] = head.init(keys[2], a)["params"]
        return params, model_state, ()

    def loss(
        params: Pytree, model_state: Pytree, extra: tuple, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        # 1. a_j of one crop of each image, normalised by the statistics of the batch.
        x = views.stacked(batch, key, config)[:, 0]
        a, f_state = models.forward(encoder, params["encoder"], model_state["encoder"], x)
        after = {"encoder": f_state}
        if projector is not None:
            a, g_state = models.forward(projector, params["projector"], model_state["projector"], a)
            after["projector"] = g_state

        # 2. Cross entropy. The classifier starts at zero, so the first loss is the log of the classes.
        logits = models.logits(params["head"], a)
        metrics = {"accuracy": jnp.mean(accuracy(logits, batch["label"]))}
        return jnp.mean(cross_entropy(logits, batch["label"])), Out(after, (), metrics)

    def encode(params: Pytree, model_state: Pytree, extra: tuple, image: jax.Array) -> jax.Array:
        x = views.for_network(image, config.augment)
        return inferred(encoder, projector, Frozen(params, model_state), x)

    def classify(params: Pytree, extra: tuple, features: jax.Array) -> dict[str, jax.Array]:
        return {"classifier": models.logits(params["head"], features)}

    return Method(
        init=init,
        loss=loss,
        encode=encode,
        classify=classify,
        probes=("head",),
        num_views=1,
        needs_labels=True,
        separable=True,
    )


def kept_layers(head: ConfigDict, model: ConfigDict, layers: int) -> models.MLP | None:
    """The first layers of a projection head; None for none.

    Raises:
        ValueError: the head has fewer layers.
    """
    if layers > head.layers:
        raise ValueError(
            f"finetune_from={layers}: the projection head has {head.layers} layers (config.head.layers). Use "
            f"0 for the features, 1 for the first layer, up to {head.layers}."
        )
    return models.projection_head(head, model, built=layers) if layers else None


def inferred(encoder: Any, projector: models.MLP | None, network: Frozen, x: jax.Array) -> jax.Array:
    """What a classifier reads, a_j [B, D], of images x, by the running statistics of a network."""
    params, model_state = network
    a = models.infer(encoder, params["encoder"], model_state["encoder"], x)
    if projector is None:
        return a
    return models.infer(projector, params["projector"], model_state["projector"], a)


# --------------------------------------------------------------------------------------------- distillation


def distill(config: ConfigDict, facts: Facts) -> Method:
    """Build distillation: a student learns what a fine-tuned or distilled network says of all images.

    `params` holds encoder and head of the student; `extra` is the Frozen teacher. Labels (-1 for none) are
    read only with `distill.alpha` below 1.
    """
    size = config.data.image_size
    image_shape = (size, size, config.data.channels)
    tau = config.distill.temperature
    alpha = config.distill.alpha
    weight = alpha * tau**2 if config.distill.tau_squared else alpha

    encoder = models.backbone(config.model)
    head = models.LinearClassifier(facts.num_classes)
    teacher = models.backbone(config.teacher)
    teacher_layers = None
    if config.distill.finetune_from:
        teacher_layers = kept_layers(config.head, config.teacher, config.distill.finetune_from)

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, Frozen]:
        del batch
        keys = jax.random.split(key, 5)
        f, f_state, h = models.initialise(encoder, keys[0], image_shape)
        params = {"encoder": f, "head": head.init(keys[1], h)["params"]}

        t, t_state, a = models.initialise(teacher, keys[2], image_shape)
        weights = {"encoder": t}
        statistics = {"encoder": t_state}
        if teacher_layers is not None:
            kept, kept_state, a = models.initialise_head(teacher_layers, keys[3], a)
            weights["projector"] = kept
            statistics["projector"] = kept_state
        weights["head"] = head.init(keys[4], a)["params"]
        return params, {"encoder": f_state}, Frozen(weights, statistics)

    def loss(
        params: Pytree, model_state: Pytree, extra: Frozen, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        # 1. One crop of each image; teacher and student see the same.
        x = views.stacked(batch, key, config)[:, 0]
        t = models.logits(extra.params["head"], inferred(teacher, teacher_layers, extra, x))
        h, f_state = models.forward(encoder, params["encoder"], model_state["encoder"], x)
        s = models.logits(params["head"], h)

        # 2. The teacher's word on every image, the label's where there is one.
        rows = weight * probabilities(s, t, temperature=tau)
        if alpha < 1:
            rows += (1.0 - alpha) * cross_entropy(s, batch["label"])
        metrics = {
            "loss_floor": weight * jnp.mean(probabilities(t, t, temperature=tau)),
            "agreement": jnp.mean(accuracy(s, jnp.argmax(t, axis=-1))),
            "accuracy": mean_of_labelled(accuracy(s, batch["label"]), batch["label"]),
            "teacher_accuracy": mean_of_labelled(accuracy(t, batch["label"]), batch["label"]),
        }
        return jnp.mean(rows), Out({"encoder": f_state}, (), metrics)

    def classify(params: Pytree, extra: Frozen, features: jax.Array) -> dict[str, jax.Array]:
        return {"classifier": models.logits(params["head"], features)}

    def adopt(state: TrainState, load: LoadFn) -> TrainState:
        """Load the teacher's weights."""
        trained = frozen.adopt(state.extra, config.distill.teacher, load, setting="distill.teacher")
        return state.replace(extra=trained)

    return Method(init=init, loss=loss, classify=classify, adopt=adopt, num_views=1, separable=True)
