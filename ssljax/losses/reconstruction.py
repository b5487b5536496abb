"""The two terms of DALL-E's evidence lower bound (arXiv 2102.12092, section 2.1 and appendix A.3).

Unlike the other losses these return one value per pixel and channel, or per place of the code grid: the two
terms are summed over different grids.
"""

import math

import jax
import jax.numpy as jnp


def logit_laplace(x: jax.Array, mu: jax.Array, ln_b: jax.Array) -> jax.Array:
    """The negative log-density of pixels whose logit is Laplace-distributed.

        f(x) = exp(-|logit x - mu| / b) / (2 b x (1 - x))       on (0, 1), so it may be above 1

    The constant ln 2 is included.

    Args:
        x: pixels strictly inside (0, 1), see `models.dvae.map_pixels`.
        mu: location, of the same shape.
        ln_b: the logarithm of the scale b, of the same shape.

    Returns:
        float32, of the same shape.
    """
    x, mu, ln_b = (value.astype(jnp.float32) for value in (x, mu, ln_b))
    logit = jnp.log(x) - jnp.log1p(-x)
    distance = jnp.abs(logit - mu) * jnp.exp(-ln_b)
    return math.log(2.0) + ln_b + jnp.log(x) + jnp.log1p(-x) + distance


def kl_to_uniform(logits: jax.Array) -> jax.Array:
    """KL(softmax(logits) || uniform) = ln K - entropy, in nats.

    The logits are those of the encoder: without Gumbel noise, and not divided by the temperature.

    Args:
        logits: [..., K].

    Returns:
        float32 [...], one value per place: 0 for equal logits, ln K for a certain code.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return jnp.sum(jnp.exp(log_p) * (log_p + math.log(logits.shape[-1])), axis=-1)
