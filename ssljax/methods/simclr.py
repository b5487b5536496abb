"""SimCLR: contrast the two views of an image with the views of all other images in the batch.

Chen, Kornblith, Norouzi, Hinton: A Simple Framework for Contrastive Learning of Visual Representations,
arXiv 2002.05709.

    h = f(view),   z = g(h);   for a positive pair (i, j) among the 2B embeddings of a batch

    l(i, j) = -log  exp(sim(z_i, z_j) / tau) / sum_{k != i} exp(sim(z_i, z_k) / tau)        (equation 1)
    L = mean over the B rows of view 1 + mean over the B rows of view 2

Differences from the paper, all after the released code (google-research/simclr, commit 383d414):
- L is the sum of the two directions, twice the paper's average. Kernels that LARS adapts do not notice;
  the parameters of normalisation layers do.
- Batch normalisation follows every layer of the projection head. The last one has a scale, no offset, and no
  ReLU behind it.
- A linear classifier reads stop-gradient features during pretraining (`online_probe`). It cannot affect the
  encoder. With LARS the loss itself carries the weight decay of its kernel, because the optimizer leaves that
  kernel out.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssljax import models
from ssljax.data import views
from ssljax.losses.classification import accuracy, cross_entropy, mean_of_labelled
from ssljax.losses.contrastive import contrast_accuracy, nt_xent
from ssljax.losses.health import health
from ssljax.types import Batch, Facts, Method, Out, Pytree, TwoPass


def simclr(config: ConfigDict, facts: Facts) -> Method:
    """Build SimCLR as pure functions.

    `params` holds encoder, projector and, with `online_probe`, probe; there is no extra state.
    """
    size = config.data.image_size
    image_shape = (size, size, config.data.channels)

    encoder = models.backbone(config.model)
    projector = models.projection_head(config.head, config.model)
    probe = None
    if config.online_probe and facts.num_classes:
        probe = models.LinearClassifier(facts.num_classes)

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, tuple]:
        del batch
        keys = jax.random.split(key, 3)
        f, f_state, h = models.initialise(encoder, keys[0], image_shape)
        g = projector.init(keys[1], h, train=False)
        params = {"encoder": f, "projector": g["params"]}
        if probe is not None:
            params["probe"] = probe.init(keys[2], h)["params"]
        return params, {"encoder": f_state, "projector": g["batch_stats"]}, ()

    def embed(
        params: Pytree, model_state: Pytree, extra: tuple, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Pytree, Pytree]:
        # 1. Two views of each image: [B, 2, S, S, C]. A view's draw follows from (key, image index, view).
        x = views.stacked(batch, key, config)

        # 2. One pass over the 2B views, so that both views share batch statistics. The two views of an image
        #    are neighbouring rows, so that no row changes its device.
        x = x.reshape(-1, *x.shape[2:])
        h, f_state = models.forward(encoder, params["encoder"], model_state["encoder"], x)
        z, g_state = models.forward(projector, params["projector"], model_state["projector"], h)

        embeddings = {"h": h.reshape(-1, 2, h.shape[1]), "z": z.reshape(-1, 2, z.shape[1])}
        return embeddings, {"encoder": f_state, "projector": g_state}

    def objective(
        params: Pytree, embeddings: Pytree, batch: Batch, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        h = embeddings["h"]
        z1 = embeddings["z"][:, 0]
        z2 = embeddings["z"][:, 1]

        # 3. Equation 1 for every row, in both directions.
        rows = nt_xent(z1, z2, temperature=config.loss.temperature)
        total = 2.0 * jnp.mean(rows)
        metrics = {
            "loss_per_view": jnp.mean(rows),
            "contrast_accuracy": jnp.mean(contrast_accuracy(z1, z2)),
            **health(z1, z2, logged=(step + 1) % config.log_every == 0),
        }

        # 4. The online probe reads features that carry no gradient.
        if probe is not None:
            features = jax.lax.stop_gradient(h.reshape(-1, h.shape[2]))
            label = jnp.repeat(batch["label"], 2)
            probe_loss, metrics["probe_accuracy"] = probing(params["probe"], features, label)
            total += probe_loss
        return total, metrics

    def loss(
        params: Pytree, model_state: Pytree, extra: tuple, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        embeddings, model_state = embed(params, model_state, extra, batch, key, step)
        total, metrics = objective(params, embeddings, batch, step)
        return total, Out(model_state, (), metrics)

    def probing(params: Pytree, h: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The loss of the probe, its weight decay included, and its accuracy."""
        logits = models.logits(params, h)
        decay = config.optim.weight_decay if config.optim.name == "lars" else 0.0
        penalty = 0.5 * decay * jnp.sum(params["dense"]["kernel"] ** 2)
        fit = mean_of_labelled(cross_entropy(logits, label), label)
        return fit + penalty, mean_of_labelled(accuracy(logits, label), label)

    return Method(init=init, loss=loss, probes=("probe",), num_views=2, two_pass=TwoPass(embed, objective))
