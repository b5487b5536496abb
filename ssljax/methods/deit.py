"""DeiT: train a vision transformer on ImageNet alone, with or without a teacher.

Touvron et al.: Training data-efficient image transformers & distillation through attention,
arXiv 2012.12877.

    x, y    one view of each image, with a box of it erased, mixed with that of another image; and its
            smoothed label, mixed in the same proportion
    z, z'   logits of the class token and of the distillation token
    t       logits of a frozen teacher on the same x

    none    L = CE(z, y)
    soft    L = (1 - alpha) CE(z, y) + alpha tau^2 KL(softmax(t / tau) || softmax(z' / tau))     (equation 2)
    hard    L = CE(z, y) / 2 + CE(z', argmax t) / 2                                              (equation 3)

Without a distillation token (`model.distillation=False`) z' = z, which the paper calls usual distillation.
With one, the prediction is the mean of the two heads. The backbone can be any network: a RegNetY or ResNet
trained by the same recipe becomes the teacher.

Differences from the paper, after the released code (facebookresearch/deit at 7e160fe, timm 0.3.2) unless
marked [X]:
- The prediction averages the logits of the two heads (`inference="code"`); the paper adds their softmax
  ("paper").
- The soft loss divides the KL by the number of classes (`distill.normalization="code"`), which makes it a
  thousandth of the paper's on ImageNet.
- Mixing has one draw and one direction for the global batch (row i with row B-1-i); the released code has one
  per device. [X]
- Fine-tuning at another resolution distils too, as the paper says; the released code refuses that. It does
  so with the network in evaluation mode (`evaluation_mode=True`): without dropout and stochastic depth. With
  two heads and no teacher, the loss then is that of their mean.
- If a moving average of the weights is kept (`ema.decay`), it is what is evaluated, as in table 8 of the
  paper; the released code evaluates the raw weights. [X]
"""

from __future__ import annotations

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
from ssljax.types import Batch, Facts, LoadFn, Method, Out, Pytree, TrainState


class DeitState(NamedTuple):
    """What stands beside the student.

    Attributes:
        teacher: the frozen teacher; () without distillation.
        ema: the moving average of the student; () if none is kept.
    """

    teacher: Frozen | tuple[()]
    ema: Ema | tuple[()]


def deit(config: ConfigDict, facts: Facts) -> Method:
    """Build DeiT as pure functions.

    `params` holds encoder, head and, with a distillation token, distillation_head; `extra` is a DeitState.
    """
    size = config.data.image_size
    image_shape = (size, size, config.data.channels)
    classes = facts.num_classes
    distill = config.distill

    encoder = models.backbone(config.model)
    head = models.LinearClassifier(classes, std=config.head.std)
    teacher = None if distill.name == "none" else models.backbone(config.teacher)
    averaged = config.ema.decay > 0
    two_tokens = isinstance(encoder, models.ViT) and encoder.distillation
    tokens = {"tokens": True} if two_tokens else {}
    _check(config, two_tokens)

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, DeitState]:
        del batch
        keys = jax.random.split(key, 5)
        f, f_state, h = models.initialise(encoder, keys[0], image_shape)
        params = {"encoder": f, "head": head.init(keys[1], h)["params"]}
        model_state = {"encoder": f_state}
        if two_tokens:
            params["distillation_head"] = head.init(keys[2], h)["params"]

        extra = DeitState(teacher=(), ema=())
        if teacher is not None:
            t, t_state, h = models.initialise(teacher, keys[3], image_shape)
            t_params = {"encoder": t, "head": head.init(keys[4], h)["params"]}
            extra = extra._replace(teacher=Frozen(t_params, {"encoder": t_state}))
        if averaged:
            extra = extra._replace(ema=ema.follow(params, model_state))
        return params, model_state, extra

    def logits(params: Pytree, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z and z', float32 [B, classes], from the class token [B, D] or from all tokens [B, N, D]."""
        if not two_tokens:
            z = models.logits(params["head"], h)
            return z, z
        z = models.logits(params["head"], h[:, 0])
        token = models.logits(params["distillation_head"], h[:, 1])
        return z, token

    def loss(
        params: Pytree, model_state: Pytree, extra: DeitState, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        # 1. One view of each image, a box of it replaced by noise, then mixed with another; labels follow.
        x = views.stacked(batch, key, config)[:, 0]
        y = mixing.smoothed_one_hot(batch["label"], classes, config.mix.label_smoothing)
        x, y = mixing.mix(x, y, key, mixup_alpha=config.mix.mixup_alpha, cutmix_alpha=config.mix.cutmix_alpha)

        # 2. One pass of the student: z from the class token, z' from the distillation token.
        network_key = jax.random.fold_in(key, 1)
        if config.evaluation_mode:
            f_state = model_state["encoder"]
            h = models.infer(encoder, params["encoder"], f_state, x, **tokens)
        else:
            h, f_state = models.forward(
                encoder, params["encoder"], model_state["encoder"], x, key=network_key, **tokens
            )
        z, token = logits(params, h)
        if config.evaluation_mode and teacher is None and two_tokens:
            z = joint(z, token, config.inference)
        metrics = {"accuracy": jnp.mean(accuracy(z, batch["label"]))}

        # 3. The teacher looks at the very same x.
        if teacher is None:
            rows = cross_entropy(z, y)
        else:
            assert isinstance(extra.teacher, Frozen)
            weights, statistics = extra.teacher
            t = models.infer(teacher, weights["encoder"], statistics["encoder"], x)
            t = models.logits(weights["head"], t)
            rows = distilled((z, token), t, y)
            metrics["teacher_accuracy"] = jnp.mean(accuracy(t, batch["label"]))
            metrics["agreement"] = jnp.mean(accuracy(token, jnp.argmax(t, axis=-1)))

        model_state = {"encoder": f_state}
        carry = model_state if averaged else ()
        return jnp.mean(rows), Out(model_state, carry, metrics)

    def distilled(z: tuple[jax.Array, jax.Array], t: jax.Array, y: jax.Array) -> jax.Array:
        if distill.name == "hard":
            return hard(z, t, y, alpha=distill.alpha)
        return soft(
            z, t, y, alpha=distill.alpha, temperature=distill.temperature, normalization=distill.normalization
        )

    def update(extra: DeitState, params: Pytree, carry: Pytree, step: jax.Array) -> DeitState:
        # 4. The moving average, towards the parameters that the optimizer has just made.
        if not averaged:
            return extra
        return extra._replace(ema=ema.update(extra.ema, Ema(params, carry), config.ema.decay))

    def evaluated(params: Pytree, model_state: Pytree, extra: DeitState) -> tuple[Pytree, Pytree]:
        """The moving average, if one is kept."""
        return ema.backbone(extra.ema, params, model_state)

    def encode(params: Pytree, model_state: Pytree, extra: DeitState, image: jax.Array) -> jax.Array:
        """The class token and the distillation token, concatenated: [B, 2 D]."""
        x = views.for_network(image, config.augment)
        weights, statistics = evaluated(params, model_state, extra)
        h = models.infer(encoder, weights, statistics, x, tokens=True)
        return h[:, :2].reshape(len(h), -1)

    def classify(params: Pytree, extra: DeitState, features: jax.Array) -> dict[str, jax.Array]:
        if isinstance(extra.ema, Ema):
            params = extra.ema.params
        if not two_tokens:
            z, _ = logits(params, features)
            return {"classifier": z}
        z, token = logits(params, features.reshape(len(features), 2, -1))
        return {
            "classifier": joint(z, token, config.inference),
            "classifier_class_token": z,
            "classifier_distillation_token": token,
        }

    def adopt(state: TrainState, load: LoadFn) -> TrainState:
        """Load the teacher's weights; the moving average begins at the weights that training starts from."""
        extra = state.extra
        if teacher is not None:
            trained = frozen.adopt(extra.teacher, distill.teacher, load, setting="distill.teacher")
            extra = extra._replace(teacher=trained)
        if averaged:
            extra = extra._replace(ema=ema.follow(state.params, state.model_state))
        return state.replace(extra=extra)

    mixes = config.mix.mixup_alpha or config.mix.cutmix_alpha
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
        separable=not (mixes or (models.draws(config.model) and not config.evaluation_mode)),
    )


def joint(z: jax.Array, token: jax.Array, inference: str) -> jax.Array:
    """Combine two heads into one score per class.

    Args:
        z: logits of the class token, [B, C].
        token: logits of the distillation token, [B, C].
        inference: "code" averages the logits; "paper" averages the probabilities and returns their logarithm.

    Returns:
        [B, C].
    """
    if inference == "code":
        return (z + token) / 2
    return jnp.logaddexp(jax.nn.log_softmax(z), jax.nn.log_softmax(token)) - jnp.log(jnp.float32(2.0))


def _check(config: ConfigDict, two_tokens: bool) -> None:
    """Refuse settings that the method does not know.

    Raises:
        ValueError: names the setting and its valid values.
    """
    if config.distill.name not in ("none", "soft", "hard"):
        raise ValueError(
            f"config.distill.name={config.distill.name!r} is unknown. Use 'none', 'soft', 'hard'."
        )
    if two_tokens and config.inference not in ("code", "paper"):
        raise ValueError(f"config.inference={config.inference!r} is unknown. Use 'code', 'paper'.")
