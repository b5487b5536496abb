"""BYOL (Grill et al.: Bootstrap Your Own Latent, arXiv 2006.07733): predict the target network's projection of another view.

    online  p = q(g(f(v))),    target  t' = g_xi(f_xi(v'))
    L = mean_n [ |p/|p| - t'/|t'||^2  +  |p'/|p'| - t/|t||^2 ]                             (equation 2, both directions; between 0 and 8)
    xi <- tau xi + (1 - tau) theta,   tau = 1 - (1 - tau_base) (cos(pi k / K) + 1) / 2     (equation 1 and section 3.2)

The target moves after the optimizer, towards the parameters it has just made. Nothing but the predictor and the slow target keeps the
embeddings from collapsing: a loss that falls to 0 within a few epochs is a collapse, not a success (`embedding_std` tells).

Differences from the paper, after the released code (deepmind-research, byol, commit f5de0ed) unless marked [X]:
- A linear classifier reads stop-gradient features of view 1 and is trained beside the network, LARS's decay and adaptation included.
- Each view is a forward pass of its own, so that batch statistics are those of one view, and running statistics move twice a step, view 1
  then view 2, in the online network and in the target alike. They are never averaged or copied between the two.
- The target starts from its own draw of the initialisation (`target.init="independent"`).
- The released target carries a predictor and a classifier that nothing reads; this one does not. [X]
- Running statistics start from (0, 1) as in Flax; Haiku's average is corrected for its start, which fades within some twenty steps. [X]
- Both views are drawn by the recipe of `config.augment`; the paper's two differ in blur and solarisation, and score the same when made
  equal (appendix). [X]
- The schedule of the learning rate is one step longer than tau's, as everywhere in this project. [X]
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
    """The target network: `{"encoder", "projector"}` parameters, float32, and running statistics."""

    target_params: Pytree
    target_stats: Pytree


def byol(config: ConfigDict, facts: Facts) -> Method:
    """BYOL as pure functions. params: encoder, projector, predictor and, with `online_probe`, classifier; extra: ByolState."""
    size, channels, classes, dim = (
        config.data.image_size,
        config.data.channels,
        facts.num_classes,
        config.head.dim,
    )
    encoder = models.backbone(config.model)
    projector = models.mlp(config.head, config.model, dim)
    predictor = (
        models.mlp(config.predictor, config.model, dim) if config.predictor.layers else None
    )  # 0 layers: an ablation
    classifier = models.LinearClassifier(classes) if config.online_probe and classes else None

    def tau(step: jax.Array | int) -> jax.Array:
        """From `target.momentum` up to 1 on half a cosine, or constant (ablations)."""
        total = facts.num_examples * config.epochs // config.batch_size
        return ema.decay(step, schedule=config.target.schedule, base=config.target.momentum, total=total)

    tau(0)  # refuses a wrong setting now

    def network(keys: jax.Array) -> tuple[Pytree, Pytree, jax.Array, jax.Array]:
        """A fresh encoder and projector: parameters, running statistics, and zeros like features and projections."""
        f, f_state, h = models.initialise(encoder, keys[0], (size, size, channels))
        g, g_state, z = models.initialise_head(projector, keys[1], h)
        f = f if config.zero_init_residual else models.unit_gains(f)
        return {"encoder": f, "projector": g}, {"encoder": f_state, "projector": g_state}, h, z

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, ByolState]:
        del batch
        keys = jax.random.split(key, 6)
        params, model_state, h, z = network(keys[:2])
        if config.target.init not in ("independent", "copy"):
            raise ValueError(
                f"config.target.init={config.target.init!r} is unknown. Use 'independent' (released code) or 'copy'."
            )
        target_params, target_stats, _, _ = network(
            keys[2:4] if config.target.init == "independent" else keys[:2]
        )
        if predictor is not None:
            params["predictor"], model_state["predictor"], _ = models.initialise_head(predictor, keys[4], z)
        if classifier is not None:
            params["classifier"] = classifier.init(keys[5], h)["params"]
        return params, model_state, ByolState(target_params, target_stats)

    def project(params: Pytree, state: Pytree, x: jax.Array) -> tuple[jax.Array, jax.Array, Pytree]:
        """h = f(x) and z = g(h), normalised by the batch, and the state with the running statistics after it."""
        h, f_state = models.forward(encoder, params["encoder"], state["encoder"], x)
        z, g_state = models.forward(projector, params["projector"], state["projector"], h)
        return h, z, {**state, "encoder": f_state, "projector": g_state}

    def online(params: Pytree, state: Pytree, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, Pytree]:
        """h, z and the prediction p = q(z)."""
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
        # 2. Online: predictions of both views, view 1 first.
        h1, z1, p1, state = online(params, model_state, v[:, 0])
        _, z2, p2, state = online(params, state, v[:, 1])
        # 3. Target: projections of both views; by its batch statistics too, or it would stay what it was at the start.
        _, t1, stats = project(extra.target_params, extra.target_stats, v[:, 0])
        _, t2, stats = project(extra.target_params, stats, v[:, 1])
        # 4. Each prediction against the target's projection of the other view: a sum, not a mean, of the two directions.
        total = jnp.mean(regression(p1, t2) + regression(p2, t1))
        metrics = {
            "repr_loss": total,
            "tau": tau(step),
            **health(z1, z2, logged=(step + 1) % config.log_every == 0),
        }
        # 5. The online probe, fed by features that carry no gradient.
        if classifier is not None:
            logits = classifier.apply({"params": params["classifier"]}, jax.lax.stop_gradient(h1))
            total += mean_of_labelled(cross_entropy(logits, batch["label"]), batch["label"])
            metrics["probe_accuracy"] = mean_of_labelled(accuracy(logits, batch["label"]), batch["label"])
        return total, Out(state, stats, metrics)

    def update(extra: ByolState, params: Pytree, stats: Pytree, step: jax.Array) -> ByolState:
        # 6. xi <- tau xi + (1 - tau) theta, with the theta that the optimizer has just made.
        online_params = {name: params[name] for name in extra.target_params}
        return ByolState(ema.update(extra.target_params, online_params, tau(step)), stats)

    return Method(init=init, loss=loss, update=update, num_views=2)
