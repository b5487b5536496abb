"""Losses over the masked patches of a batch, as in BEiT (arXiv 2106.08254, equation 2).

Images have different numbers of masked patches. Rows are scaled so that their mean over the batch is the mean
over all masked patches of the batch, as in the released code, on however many devices the batch lies.
"""

import jax
import jax.numpy as jnp


def masked_token_cross_entropy(logits: jax.Array, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Cross entropy of the tokens of masked patches.

    Args:
        logits: [B, N, V], any floating dtype; the softmax is taken in float32.
        tokens: int [B, N], the visual tokens.
        mask: bool [B, N], True where a patch counts.

    Returns:
        float32 [B]; its mean is the mean over all masked patches of the batch. 0 if there are none.

    Raises:
        ValueError: the shapes do not fit.
    """
    if logits.shape[:-1] != tokens.shape or tokens.shape != mask.shape:
        raise ValueError(
            "masked_token_cross_entropy takes logits [B, N, V], tokens [B, N] and mask [B, N], got "
            f"{logits.shape}, {tokens.shape} and {mask.shape}: the tokens view must have one token a patch"
        )
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    nll = -jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
    return over_masked(nll, mask)


def masked_regression(prediction: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
    """Squared error of masked patches, averaged over the numbers of a patch (BEiT's ablation on pixels).

    Args:
        prediction: [B, N, D].
        target: [B, N, D].
        mask: bool [B, N].

    Returns:
        float32 [B], scaled as in `masked_token_cross_entropy`.
    """
    error = jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32)).mean(axis=-1)
    return over_masked(error, mask)


def over_masked(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Sum `values [B, N]` over masked patches -> [B], scaled: the mean of the rows is that of all patches."""
    weight = mask.astype(jnp.float32)
    per_image = jnp.maximum(weight.sum(), 1.0) / values.shape[0]
    return (jnp.where(mask, values, 0.0) * weight).sum(axis=1) / per_image
