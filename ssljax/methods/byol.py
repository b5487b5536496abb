"""BYOL (Grill et al.: Bootstrap Your Own Latent, arXiv 2006.07733).

The online network predicts the target network's projection of another view of the same image.

    online   p  = q(g(f(v)))
    target   t' = g_xi(f_xi(v'))

    L = mean_n [ |p/|p| - t'/|t'||^2 + |p'/|p'| - t/|t||^2 ]             (equation 2, both directions)
    xi <- tau xi + (1 - tau) theta                                       (equation 1)
    tau = 1 - (1 - tau_base) (cos(pi k / K) + 1) / 2                     (section 3.2)

L lies between 0 and 8. The target moves after the optimizer, towards the parameters that the optimizer has
just made. Only the predictor and the slowly moving target keep the embeddings from collapsing. A loss that
falls to 0 within a few epochs is a collapse, not a success; `embedding_std` tells the two apart.

Differences from the paper, after the released code (deepmind-research, byol, commit f5de0ed) unless
marked [X]:
- A linear classifier reads stop-gradient features of view 1 and is trained beside the network. LARS decays
  and adapts its kernel too.
- Each view has its own forward pass, so batch statistics are those of one view. Running statistics move
  twice per step, for view 1 and then for view 2, in the online network and in the target. They are never
  averaged or copied between the two networks.
- The target starts from its own draw of the initialisation (`target.init="independent"`).
- The released target carries a predictor and a classifier that nothing reads; this one does not. [X]
- In micro-batches (`accumulate`) there is one update of the network and one of the target per step, as in the
  paper's table of batch sizes. Running statistics then move by the mean over the micro-batches. [X]
- Running statistics start from (0, 1) as in Flax. Haiku corrects its average for the start, a difference
  that fades within some twenty steps. [X]
- The schedule of the learning rate is one step longer than that of tau, as everywhere in this project. [X]
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssljax import models
from ssljax.data import views
from ssljax.losses.classification import accuracy, cross_entropy, mean_of_labelled
from ssljax.losses.health import health
from ssljax.losses.regression import byol as regression
from ssljax.targets import ema
from ssljax.types import Batch, Facts, Method, Out, Pytree


class ByolState(NamedTuple):
    """The target network.

    Attributes:
        target_params: {"encoder", "projector"}, float32.
        target_stats: the running statistics of both.
    """

    target_params: Pytree
    target_stats: Pytree


def byol(config: ConfigDict, facts: Facts) -> Method:
    """Build BYOL as pure functions.

    `params` holds encoder, projector, predictor and, with `online_probe`, classifier; `extra` is a ByolState.
    """
    size = config.data.image_size
    image_shape = (size, size, config.data.channels)
    dim = config.head.dim

    encoder = models.backbone(config.model)
    projector = models.mlp(config.head, config.model, dim)
    predictor = None  # an ablation
    if config.predictor.layers:
        predictor = models.mlp(config.predictor, config.model, dim)
    classifier = None
    if config.online_probe and facts.num_classes:
        classifier = models.LinearClassifier(facts.num_classes, scheme="truncated_normal")

    def tau(step: jax.Array | int) -> jax.Array:
        """Rise from `target.momentum` to 1 along half a cosine, or stay constant (ablations)."""
        total = config.steps or facts.num_examples * config.epochs // config.batch_size
        return ema.decay(step, schedule=config.target.schedule, base=config.target.momentum, total=total)

    tau(0)  # reports a wrong setting before training starts

    def network(keys: jax.Array) -> tuple[Pytree, Pytree, jax.Array, jax.Array]:
        """A fresh encoder and projector.

        Returns:
            Their parameters, their running statistics, and zeros shaped like features and projections.
        """
        f, f_state, h = models.initialise(encoder, keys[0], image_shape)
        g, g_state, z = models.initialise_head(projector, keys[1], h)
        if not config.zero_init_residual:
            f = models.unit_gains(f)
        return {"encoder": f, "projector": g}, {"encoder": f_state, "projector": g_state}, h, z

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, ByolState]:
        del batch
        if config.target.init not in ("independent", "copy"):
            raise ValueError(
                f"config.target.init={config.target.init!r} is unknown. "
                "Use 'independent' (released code) or 'copy'."
            )
        keys = jax.random.split(key, 6)
        params, model_state, h, z = network(keys[:2])

        target_keys = keys[2:4] if config.target.init == "independent" else keys[:2]
        target_params, target_stats, _, _ = network(target_keys)

        if predictor is not None:
            params["predictor"], model_state["predictor"], _ = models.initialise_head(predictor, keys[4], z)
        if classifier is not None:
            params["classifier"] = classifier.init(keys[5], h)["params"]
        return params, model_state, ByolState(target_params, target_stats)

    def project(params: Pytree, state: Pytree, x: jax.Array) -> tuple[jax.Array, jax.Array, Pytree]:
        """h = f(x) and z = g(h), normalised by the batch, and the running statistics after the pass."""
        h, f_state = models.forward(encoder, params["encoder"], state["encoder"], x)
        z, g_state = models.forward(projector, params["projector"], state["projector"], h)
        return h, z, {**state, "encoder": f_state, "projector": g_state}

    def online(params: Pytree, state: Pytree, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, Pytree]:
        """h, z and the prediction p = q(z), and the running statistics after the pass."""
        h, z, state = project(params, state, x)
        if predictor is None:
            return h, z, z, state
        p, q_state = models.forward(predictor, params["predictor"], state["predictor"], z)
        return h, z, p, {**state, "predictor": q_state}

    def loss(
        params: Pytree, model_state: Pytree, extra: ByolState, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        # 1. v ~ t(x), v' ~ t'(x)
        v = views.stacked(batch, key, config)

        # 2. Online network: predictions of both views, view 1 first.
        h1, z1, p1, state = online(params, model_state, v[:, 0])
        _, z2, p2, state = online(params, state, v[:, 1])

        # 3. Target network: projections of both views. It normalises by the batch too, or it would stay
        #    what it was at the start.
        _, t1, stats = project(extra.target_params, extra.target_stats, v[:, 0])
        _, t2, stats = project(extra.target_params, stats, v[:, 1])

        # 4. Each prediction against the target's projection of the other view: the sum, not the mean, of
        #    the two directions.
        total = jnp.mean(regression(p1, t2) + regression(p2, t1))
        metrics = {
            "repr_loss": total,
            "tau": tau(step),
            **health(z1, z2, logged=(step + 1) % config.log_every == 0),
        }

        # 5. The online probe reads features that carry no gradient.
        if classifier is not None:
            label = batch["label"]
            logits = models.logits(params["classifier"], jax.lax.stop_gradient(h1))
            total += mean_of_labelled(cross_entropy(logits, label), label)
            metrics["probe_accuracy"] = mean_of_labelled(accuracy(logits, label), label)
        return total, Out(state, stats, metrics)

    def update(extra: ByolState, params: Pytree, stats: Pytree, step: jax.Array) -> ByolState:
        # 6. xi <- tau xi + (1 - tau) theta, with the theta that the optimizer has just made.
        online_params = {name: params[name] for name in extra.target_params}
        return ByolState(ema.update(extra.target_params, online_params, tau(step)), stats)

    return Method(init=init, loss=loss, update=update, num_views=2, separable=True)
