"""Predictive learning: each view of an image predicts the pixels of another. The baseline of CMC.

Tian, Krishnan, Isola: Contrastive Multiview Coding, arXiv 1906.05849, which contrasts the views instead.

    z = f_i(view i)                  a network for every view (`model.split`), as in CMC
    prediction of view j = g_ij(z)   a decoder for every direction

    L(V_i -> V_j) = mean |view j - prediction|  (l1), or mean (view j - prediction)^2  (l2)

    core view    sum over j > 1 of  L(V_1 -> V_j) + L(V_j -> V_1)
    full graph   the same for all pairs of views

A loss of single pixels takes them as independent given view i: p(v_j | v_i) is a product over pixels.

Views, networks, graph and evaluation are those of CMC, so that a run of each with the same network and
budget compares the objectives. Decoders take the place of embeddings and banks. Pixels are predicted as the
networks see them, in their colour space and scale.

Differences from the paper:
- The released code has no predictive learning: decoder (`models/decoder.py`) and training are ours. [X]
- L is the mean over pixels, where a density of the whole view would have the sum. [X]
- With more than two views: all directions of the graph, as CMC sums them. [X]
- The last, incomplete batch of an epoch is dropped. [X]
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssljax import models
from ssljax.data import views
from ssljax.losses.regression import l1, l2
from ssljax.types import Batch, Facts, Method, Out, Pytree

LOSSES = {"l1": l1, "l2": l2}


def predictive(config: ConfigDict, facts: Facts) -> Method:
    """Build the baseline as pure functions.

    `params` holds encoder and decoders; `extra` is `()`.
    """
    del facts
    models.check_views(config)
    size = config.data.image_size
    image_shape = (size, size, config.data.channels)
    split = tuple(config.model.split)
    names = [models.view_name(view) for view in split]
    directions = models.both_ways(models.pairs_of(len(split), config.predict.graph))
    distance = LOSSES[config.predict.loss]

    encoder = models.backbone(config.model)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    channels = [jax.eval_shape(lambda x, v=view: models.view_of(x, v), image).shape[-1] for view in split]
    decoders = models.view_decoders(config.model, directions, channels, size=size, width=config.predict.width)

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, Pytree]:
        del batch
        keys = jax.random.split(key)
        f, f_state, h = models.initialise(encoder, keys[0], image_shape)
        g, g_state, _ = models.initialise_head(decoders, keys[1], h)
        if not config.zero_init_residual:
            f = models.unit_gains(f)
        return {"encoder": f, "decoder": g}, {"encoder": f_state, "decoder": g_state}, ()

    def loss(
        params: Pytree, model_state: Pytree, extra: Pytree, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        del extra, step
        # 1. One crop of each image; the encoder splits its channels into views, each with its own network.
        x = views.stacked(batch, key, config)[:, 0]
        groups = config.bn.groups
        h, f_state = models.forward(encoder, params["encoder"], model_state["encoder"], x, groups=groups)

        # 2. Each view's features become the pixels of other views.
        predicted, g_state = models.forward(
            decoders, params["decoder"], model_state["decoder"], h, groups=groups
        )
        ends = [sum(channels[j] for _, j in directions[: k + 1]) for k in range(len(directions))]

        # 3. The sum over directions of the mean error of all pixels.
        total = jnp.float32(0.0)
        metrics = {}
        for (i, j), prediction in zip(directions, jnp.split(predicted, ends[:-1], axis=-1), strict=True):
            view = models.view_of(x, split[j])
            error = jnp.mean(distance(prediction, view))
            total += error
            metrics[f"loss_{names[i]}_to_{names[j]}"] = error
            metrics[f"explained_{names[i]}_to_{names[j]}"] = explained(prediction, view)
        return total, Out({"encoder": f_state, "decoder": g_state}, (), metrics)

    def encode(params: Pytree, model_state: Pytree, extra: Pytree, image: jax.Array) -> jax.Array:
        x = views.for_network(image, config.augment)
        h = models.infer(encoder, params["encoder"], model_state["encoder"], x)
        return models.features_of(h, config)

    return Method(init=init, loss=loss, encode=encode, num_views=1, separable=True)


def explained(prediction: jax.Array, view: jax.Array) -> jax.Array:
    """The share of a view's variance that is predicted, for the log: 1 is all, 0 is no more than the mean.

    Args:
        prediction, view: float32 [B, H, W, C].

    Returns:
        float32 scalar. The variance is that of each channel around its mean over the batch.
    """
    error = jnp.mean(jnp.square(prediction - view))
    variance = jnp.mean(jnp.var(view, axis=(0, 1, 2)))
    return jax.lax.stop_gradient(1.0 - error / jnp.maximum(variance, 1e-12))
