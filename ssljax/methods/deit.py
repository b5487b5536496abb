"""DeiT (Touvron et al.: Training data-efficient image transformers & distillation through attention, arXiv 2012.12877).

    x, y    one view of each image, part of it erased, mixed with that of another image; its smoothed label, mixed alike
    z, z'   class logits from the class token and from the distillation token, t those of a frozen teacher, all of the same x
    none    L = CE(z, y)
    soft    L = (1 - alpha) CE(z, y) + alpha tau^2 KL(softmax(t / tau) || softmax(z' / tau))        equation 2
    hard    L = CE(z, y) / 2 + CE(z', argmax t) / 2                                                 equation 3

Without a distillation token (`model.distillation=False`) z' = z: the paper's usual distillation. With one, the prediction is the mean of
the two heads. The backbone may be any: a RegNetY or ResNet trained by the same recipe becomes the teacher.

Differences from the paper, after the released code (facebookresearch/deit at 7e160fe, timm 0.3.2) unless marked [X]:
- The prediction averages the two heads' logits (`inference="code"`); the paper adds their softmax ("paper").
- The soft loss divides the KL by the classes too (`distill.normalization="code"`), which makes it a thousandth of the paper's on ImageNet.
- Mixing has one draw and one direction for the global batch (row i with row B-1-i); there it is one for each device. [X]
- Fine-tuning at another resolution distils too, as the paper says; the released code refuses that.
- The moving average of the weights (`ema.decay`), if kept, is what is evaluated, as in the paper's table 8; the code evaluates the raw
  weights. [X]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssljax import models
from ssljax.data import mixing, views
from ssljax.losses.classification import accuracy, cross_entropy
from ssljax.losses.distillation import hard, soft
from ssljax.targets import ema, frozen
from ssljax.targets.ema import Ema
from ssljax.targets.frozen import Frozen
from ssljax.types import Batch, Facts, Method, Out, Pytree, TrainState


class DeitState(NamedTuple):
    """Either is () where the config has none."""

    teacher: Frozen | tuple[()]
    ema: Ema | tuple[()]


def deit(config: ConfigDict, facts: Facts) -> Method:
    """DeiT as pure functions. params: encoder, head and, with a distillation token, distillation_head; extra: DeitState."""
    size, channels, classes, distill = (
        config.data.image_size,
        config.data.channels,
        facts.num_classes,
        config.distill,
    )
    encoder, head = models.backbone(config.model), models.LinearClassifier(classes, std=0.02)
    teacher, averaged = (
        models.backbone(config.teacher) if distill.name != "none" else None,
        config.ema.decay > 0,
    )
    two_tokens = isinstance(encoder, models.ViT) and encoder.distillation
    tokens = {"tokens": True} if two_tokens else {}
    _check(config, two_tokens)

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, DeitState]:
        del batch
        keys = jax.random.split(key, 5)
        f, f_state, h = models.initialise(encoder, keys[0], (size, size, channels))
        params, model_state = {"encoder": f, "head": head.init(keys[1], h)["params"]}, {"encoder": f_state}
        if two_tokens:
            params["distillation_head"] = head.init(keys[2], h)["params"]
        teacher_of = ()
        if teacher is not None:
            t, t_state, h = models.initialise(teacher, keys[3], (size, size, channels))
            teacher_of = Frozen({"encoder": t, "head": head.init(keys[4], h)["params"]}, {"encoder": t_state})
        return params, model_state, DeitState(teacher_of, ema.follow(params, model_state) if averaged else ())

    def logits(params: Pytree, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z and z', float32 [B, classes], of the class token [B, D] or of all tokens [B, N, D]."""
        if not two_tokens:
            z = models.logits(params["head"], h)
            return z, z
        return models.logits(params["head"], h[:, 0]), models.logits(params["distillation_head"], h[:, 1])

    def loss(
        params: Pytree, model_state: Pytree, extra: DeitState, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        # 1. One view of each image, a box of it replaced by noise, then mixed with another's; the labels follow.
        x = views.stacked(batch, key, config)[:, 0]
        y = mixing.smoothed_one_hot(batch["label"], classes, config.mix.label_smoothing)
        x, y = mixing.mix(x, y, key, mixup_alpha=config.mix.mixup_alpha, cutmix_alpha=config.mix.cutmix_alpha)
        # 2. One pass of the student: z from the class token, z' from the distillation token.
        h, f_state = models.forward(
            encoder, params["encoder"], model_state["encoder"], x, key=jax.random.fold_in(key, 1), **tokens
        )
        z, token = logits(params, h)
        metrics = {"accuracy": jnp.mean(accuracy(z, batch["label"]))}
        # 3. The teacher looks at the very same x.
        if teacher is None:
            rows = cross_entropy(z, y)
        else:
            t = models.infer(
                teacher, extra.teacher.params["encoder"], extra.teacher.model_state["encoder"], x
            )
            t = head.apply({"params": extra.teacher.params["head"]}, t)
            rows = distilled((z, token), t, y)
            metrics["teacher_accuracy"] = jnp.mean(accuracy(t, batch["label"]))
            metrics["agreement"] = jnp.mean(accuracy(token, jnp.argmax(t, axis=-1)))
        model_state = {"encoder": f_state}
        return jnp.mean(rows), Out(model_state, model_state if averaged else (), metrics)

    def distilled(z: tuple[jax.Array, jax.Array], t: jax.Array, y: jax.Array) -> jax.Array:
        if distill.name == "hard":
            return hard(z, t, y, alpha=distill.alpha)
        return soft(
            z, t, y, alpha=distill.alpha, temperature=distill.temperature, normalization=distill.normalization
        )

    def update(extra: DeitState, params: Pytree, carry: Pytree, step: jax.Array) -> DeitState:
        # 4. The moving average, towards what the optimizer has just made.
        return (
            extra._replace(ema=ema.update(extra.ema, Ema(params, carry), config.ema.decay))
            if averaged
            else extra
        )

    def evaluated(params: Pytree, model_state: Pytree, extra: DeitState) -> tuple[Pytree, Pytree]:
        """The average, if one is kept."""
        if averaged:
            params, model_state = extra.ema
        return params["encoder"], model_state["encoder"]

    def encode(params: Pytree, model_state: Pytree, extra: DeitState, image: jax.Array) -> jax.Array:
        """The class token with the distillation token behind it: [B, 2 D]."""
        x = views.for_network(image, config.augment)
        h = models.infer(encoder, *evaluated(params, model_state, extra), x, tokens=True)
        return h[:, :2].reshape(len(h), -1)

    def classify(params: Pytree, extra: DeitState, features: jax.Array) -> dict[str, jax.Array]:
        params = extra.ema.params if averaged else params
        if not two_tokens:
            return {"classifier": logits(params, features)[0]}
        z, token = logits(params, features.reshape(len(features), 2, -1))
        return {
            "classifier": joint(z, token, config.inference),
            "classifier_class_token": z,
            "classifier_distillation_token": token,
        }

    def adopt(state: TrainState, load: Callable[..., Pytree]) -> TrainState:
        """The teacher's weights; an average begins at what the network starts from."""
        teacher_of = state.extra.teacher
        if teacher is not None:
            teacher_of = frozen.adopt(teacher_of, distill.teacher, load, setting="distill.teacher")
        follower = ema.follow(state.params, state.model_state) if averaged else ()
        return state.replace(extra=DeitState(teacher_of, follower))

    repeatable = not (config.mix.mixup_alpha or config.mix.cutmix_alpha or models.draws(config.model))
    return Method(
        init=init,
        loss=loss,
        update=update,
        evaluated=evaluated,
        encode=encode if two_tokens else None,
        classify=classify,
        adopt=adopt,
        num_views=1,
        needs_labels=True,
        separable=repeatable,
    )


def joint(z: jax.Array, token: jax.Array, inference: str) -> jax.Array:
    """One score a class from two heads [B, C]: "code" averages logits; "paper" averages probabilities, returned as their logarithm."""
    if inference == "code":
        return (z + token) / 2
    return jnp.logaddexp(jax.nn.log_softmax(z), jax.nn.log_softmax(token)) - jnp.log(jnp.float32(2.0))


def _check(config: ConfigDict, two_tokens: bool) -> None:
    """Refuses what the method cannot do.

    Raises:
        ValueError: names the setting and what it may be.
    """
    if config.distill.name not in ("none", "soft", "hard"):
        raise ValueError(
            f"config.distill.name={config.distill.name!r} is unknown. Use 'none', 'soft', 'hard'."
        )
    if two_tokens and config.inference not in ("code", "paper"):
        raise ValueError(f"config.inference={config.inference!r} is unknown. Use 'code', 'paper'.")
