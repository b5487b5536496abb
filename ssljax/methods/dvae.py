"""dVAE: DALL-E's tokenizer of images, which BEiT predicts the tokens of.

Ramesh et al.: Zero-Shot Text-to-Image Generation, arXiv 2102.12092, section 2.1 and appendix A.

    x       one view of each image, its pixels mapped to [0.1, 0.9]
    l       logits [h, w, K] of the encoder; p = softmax(l)
    y       softmax((l + g) / tau), g standard Gumbel noise: a relaxed one-hot code at every place
    mu, b   what the decoder makes of y, per pixel and channel

    L = (sum -ln f(x | mu, b)  +  beta sum KL(p || uniform)) / (H W C)

f is the logit-Laplace density. The first sum runs over pixels and channels, the second over the places of the
code grid. tau and beta follow half a cosine of the step: tau from 1 to 1/16 over the first twentieth of the
run, beta from 0 to 6.6 over its first 600th (150,000 and 5,000 of 3 million updates in the paper).

The decoder reads the relaxed y; nothing is straight-through. The KL is that of the plain logits: it knows
neither tau nor the noise. The moving average of the weights is what evaluation and BEiT use.

Differences from the paper, whose training code is not released:
- The formula of the cosines is not printed; it is v_T + (v_0 - v_T) (1 + cos(pi t / T)) / 2 here. [X]
- Weight decay applies to kernels only. [X]
- The last convolution of the decoder computes in float32. [X]
- `dvae.loss="l2"` with `model.pixels="customized"` is the objective of lucidrains/DALLE-pytorch, whose kind
  of tokenizer BEiT's code calls customized: squared error of pixels in [-1, 1]. The network is DALL-E's. [X]
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssljax import models
from ssljax.data import views
from ssljax.losses.reconstruction import kl_to_uniform, logit_laplace
from ssljax.models import dvae as nets
from ssljax.targets import ema
from ssljax.targets.ema import Ema
from ssljax.types import Batch, Facts, LoadFn, Method, Out, Pytree, TrainState


class DvaeState(NamedTuple):
    """What stands beside the network.

    Attributes:
        ema: the moving average of encoder and decoder; () if none is kept.
        input: `pixels`, the map of pixels that the encoder was trained on (`models.dvae.pixel_map`). It is
            saved with the weights, and BEiT compares it with its own.
    """

    ema: Ema | tuple[()]
    input: dict[str, jax.Array]


def dvae(config: ConfigDict, facts: Facts) -> Method:
    """Build the dVAE as pure functions.

    `params` holds encoder and decoder; `extra` is a DvaeState.
    """
    size = config.data.image_size
    channels = config.data.channels
    settings = config.dvae
    _check(config)

    encoder = models.backbone(config.model)
    decoder = models.token_decoder(config.model, channels)
    averaged = config.ema.decay > 0
    total = config.steps or max(facts.num_examples * config.epochs // config.batch_size, 1)
    last_group = f"group{config.model.groups}"

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, DvaeState]:
        del batch
        keys = jax.random.split(key)
        f, f_state, logits = models.initialise(encoder, keys[0], (size, size, channels))
        params = {"encoder": f, "decoder": decoder.init(keys[1], logits)["params"]}
        pixels = nets.pixel_map(config.model.pixels)
        average = ema.follow(params, {}) if averaged else ()
        return params, {"encoder": f_state}, DvaeState(average, {"pixels": pixels})

    def loss(
        params: Pytree, model_state: Pytree, extra: DvaeState, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        # 1. One view of each image; its pixels are the encoder's input and what the density is of.
        image = views.stacked(batch, key, config)[:, 0]
        x = nets.mapped(image, extra.input["pixels"])

        # 2. Logits over the codes, and relaxed codes at this step's temperature.
        logits, _ = models.forward(encoder, params["encoder"], {}, x)
        noise = gumbel(key, batch["index"], logits.shape[1:])
        tau = cosine(step, 1.0, settings.temperature, settings.temperature_share * total)
        y = nets.gumbel_softmax(logits, noise, tau)

        # 3. The decoder's distribution of every pixel.
        stats, _ = models.forward(decoder, params["decoder"], {}, y)
        mu, ln_b = jnp.split(stats, 2, axis=-1)
        dense = settings.loss == "logit_laplace"
        error = logit_laplace(x, mu, ln_b) if dense else jnp.square(x - mu)

        # 4. Both sums over the number of pixels and channels.
        beta = cosine(step, 0.0, settings.kl_weight, settings.kl_share * total)
        places = math.prod(logits.shape[1:3]) / math.prod(x.shape[1:])
        kl = kl_to_uniform(logits)
        value = jnp.mean(error) + beta * places * jnp.mean(kl)

        codes = jnp.argmax(logits, axis=-1)
        spread, usage = nets.perplexity(codes, config.model.vocabulary)
        difference = pictured(mu, extra.input["pixels"], settings.loss) - image
        metrics = {
            "reconstruction": jnp.mean(error),
            "kl": jnp.mean(kl),
            "pixel_error": jnp.mean(jnp.abs(difference)),
            "codebook_usage": usage,
            "codebook_perplexity": spread,
            "temperature": tau,
            "kl_weight": beta,
        }
        return value, Out(model_state, (), metrics)

    def update(extra: DvaeState, params: Pytree, carry: Pytree, step: jax.Array) -> DvaeState:
        # 5. The moving average, towards the parameters that the optimizer has just made.
        if not averaged:
            return extra
        return extra._replace(ema=ema.update(extra.ema, Ema(params, {}), config.ema.decay))

    def exported(params: Pytree, extra: DvaeState) -> Pytree:
        return extra.ema.params if isinstance(extra.ema, Ema) else params

    def evaluated(params: Pytree, model_state: Pytree, extra: DvaeState) -> tuple[Pytree, Pytree]:
        """The moving average, if one is kept."""
        return exported(params, extra)["encoder"], model_state["encoder"]

    def encode(params: Pytree, model_state: Pytree, extra: DvaeState, image: jax.Array) -> jax.Array:
        """The last group's channels averaged over the image: the dVAE has no features of its own. [X]"""
        weights, statistics = evaluated(params, model_state, extra)
        x = nets.mapped(views.for_network(image, config.augment), extra.input["pixels"])
        return jnp.mean(models.activation(encoder, weights, statistics, x, last_group), axis=(1, 2))

    def reconstruct(
        params: Pytree, model_state: Pytree, extra: DvaeState, image: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The codes of images, without noise, and the images that the decoder makes of them."""
        weights = exported(params, extra)
        x = nets.mapped(views.for_network(image, config.augment), extra.input["pixels"])
        codes = jnp.argmax(models.infer(encoder, weights["encoder"], {}, x), axis=-1)
        stats = models.infer(decoder, weights["decoder"], {}, codes)
        mu, _ = jnp.split(stats, 2, axis=-1)
        return codes, pictured(mu, extra.input["pixels"], settings.loss)

    def adopt(state: TrainState, load: LoadFn) -> TrainState:
        """The moving average begins at the weights that training starts from."""
        del load
        if not averaged:
            return state
        return state.replace(extra=state.extra._replace(ema=ema.follow(state.params, {})))

    return Method(
        init=init,
        loss=loss,
        update=update,
        evaluated=evaluated,
        encode=encode,
        reconstruct=reconstruct,
        adopt=adopt,
        num_views=1,
        separable=True,
    )


def cosine(step: jax.Array, start: float, end: float, steps: float) -> jax.Array:
    """Half a cosine from `start` at step 0 to `end` at step `steps` and later; `end` if there are no steps.

    Args:
        step: int scalar.
        start, end: the two values.
        steps: the length of the change; it need not be whole.

    Returns:
        float32 scalar.
    """
    if steps < 1:
        return jnp.float32(end)
    progress = jnp.clip(jnp.asarray(step).astype(jnp.float32) / jnp.float32(steps), 0.0, 1.0)
    return jnp.float32(end) + 0.5 * jnp.float32(start - end) * (
        1.0 + jnp.cos(jnp.float32(math.pi) * progress)
    )


def gumbel(key: jax.Array, index: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard Gumbel noise of every image, float32 [B, *shape], from the step and the image's id."""

    def one(index: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(views.view_key(key, index, jnp.int32(0)), 3), shape)

    return jax.vmap(one)(index)


def pictured(mu: jax.Array, pixels: jax.Array, loss: str) -> jax.Array:
    """The image that the decoder's location stands for, in [0, 1]."""
    return nets.unmapped(jax.nn.sigmoid(mu) if loss == "logit_laplace" else mu, pixels)


def _check(config: ConfigDict) -> None:
    """Refuse settings that do not go together.

    Raises:
        ValueError: names the setting and what to type.
    """
    if config.model.name != "dvae":
        raise ValueError(
            f"config.model.name={config.model.name!r} is no tokenizer: the method dvae trains model.name=dvae"
        )
    if config.dvae.loss == "logit_laplace" and config.model.pixels != "dall-e":
        raise ValueError(
            f"config.dvae.loss='logit_laplace' is a density of pixels in (0, 1), and model.pixels="
            f"{config.model.pixels!r} maps them to [-1, 1]: set model.pixels=dall-e, or dvae.loss=l2"
        )
    nets.check_recipe(config.augment, "config.augment")
