"""Supervised learning: the baseline of every table, and the fine-tuning of every pretrained encoder.

    L = mean cross entropy of head(f(view)) against the label

With `init_from` the encoder starts from an earlier stage (SimCLR's semi-supervised protocol: the whole
network is trained, and the head starts from zero). Without it, training starts from scratch. Each image has
one augmented view.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssljax import models
from ssljax.data import views
from ssljax.losses.classification import accuracy, cross_entropy
from ssljax.types import Batch, Facts, Method, Out, Pytree


def supervised(config: ConfigDict, facts: Facts) -> Method:
    """Build cross entropy on labels as pure functions.

    `params` holds encoder and head; there is no extra state.
    """
    size = config.data.image_size
    image_shape = (size, size, config.data.channels)

    encoder = models.backbone(config.model)
    head = models.LinearClassifier(facts.num_classes, std=0.0)

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, tuple]:
        del batch
        keys = jax.random.split(key)
        f, f_state, h = models.initialise(encoder, keys[0], image_shape)
        params = {"encoder": f, "head": head.init(keys[1], h)["params"]}
        return params, {"encoder": f_state}, ()

    def loss(
        params: Pytree, model_state: Pytree, extra: tuple, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        x = views.stacked(batch, key, config)[:, 0]
        network_key = jax.random.fold_in(key, 1)
        h, f_state = models.forward(encoder, params["encoder"], model_state["encoder"], x, key=network_key)
        logits = models.logits(params["head"], h)
        metrics = {"accuracy": jnp.mean(accuracy(logits, batch["label"]))}
        return jnp.mean(cross_entropy(logits, batch["label"])), Out({"encoder": f_state}, (), metrics)

    def classify(params: Pytree, extra: tuple, features: jax.Array) -> dict[str, jax.Array]:
        return {"classifier": models.logits(params["head"], features)}

    return Method(
        init=init,
        loss=loss,
        classify=classify,
        num_views=1,
        needs_labels=True,
        separable=not models.draws(config.model),
    )
