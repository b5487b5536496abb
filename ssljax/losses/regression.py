"""Losses that predict one embedding or one view of an image from another, without negatives."""

import jax
import jax.numpy as jnp

from ssljax.losses.similarity import l2_normalize


def byol(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """BYOL's loss, |p/|p| - t/|t||^2 = 2 - 2 cos(p, t), one value per example (arXiv 2006.07733, equation 2).

    The paper's loss is the sum over the two directions.

    Args:
        prediction: [B, D], unnormalised.
        target: [B, D], unnormalised; no gradient flows to it.

    Returns:
        float32 [B], between 0 (the same direction) and 4 (opposite directions). Squared norms are bounded
        below by 1e-12, as in the released code (deepmind-research, byol/utils/helpers.py: regression_loss).

    Raises:
        ValueError: the two shapes differ.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            "byol compares row i of the prediction with row i of the target: "
            f"both must be [B, D], got {prediction.shape} and {target.shape}"
        )
    p = l2_normalize(prediction)
    t = l2_normalize(jax.lax.stop_gradient(target))
    return jnp.sum((p - t) ** 2, axis=-1)


def l1(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """The mean absolute error of the numbers of each example: [B, ...], [B, ...] -> float32 [B]."""
    return _per_example(jnp.abs(_difference(prediction, target)))


def l2(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """The mean squared error of the numbers of each example: [B, ...], [B, ...] -> float32 [B]."""
    return _per_example(jnp.square(_difference(prediction, target)))


def _per_example(error: jax.Array) -> jax.Array:
    return jnp.mean(error.reshape(len(error), -1), axis=1)


def _difference(prediction: jax.Array, target: jax.Array) -> jax.Array:
    if prediction.shape != target.shape:
        raise ValueError(
            f"a prediction has the shape of what it predicts, got {prediction.shape} and {target.shape}"
        )
    return prediction.astype(jnp.float32) - target.astype(jnp.float32)
