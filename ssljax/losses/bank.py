"""Contrast with rows of a memory bank (CMC, arXiv 1906.05849): noise-contrastive estimation and softmax.

    s_k = v / |v| . M_k,   k = 0 the positive, k = 1..m the negatives;   tau divides s

They follow NCE/NCEAverage.py and NCE/NCECriterion.py of HobbitLong/CMC at 7b227be. The rows of the bank are
used as they are: a row that no image has touched yet does not have unit length. No gradient flows to them.
"""

import jax
import jax.numpy as jnp

from ssljax.losses.similarity import l2_normalize

EPSILON = 1e-7  # added to every denominator by the released code


def bank_scores(v: jax.Array, positives: jax.Array, negatives: jax.Array) -> jax.Array:
    """The scores s, the positive first.

    Args:
        v: [B, D] embeddings of one view, unnormalised.
        positives: [B, D], the row of the other view's bank for the same image.
        negatives: [B, M, D], other rows of that bank; or [M, D], the same for all images.

    Returns:
        float32 [B, 1 + M].

    Raises:
        ValueError: the shapes do not fit each other.
    """
    per_image = negatives.ndim == 3
    wanted = (*v.shape[:1], negatives.shape[-2], v.shape[-1]) if per_image else (len(negatives), v.shape[-1])
    if v.ndim != 2 or positives.shape != v.shape or negatives.shape != wanted:
        raise ValueError(
            "v and positives must be [B, D], and negatives [B, M, D] (or [M, D], shared by the batch), got "
            f"{v.shape}, {positives.shape} and {negatives.shape}"
        )
    v = l2_normalize(v)
    positives = jax.lax.stop_gradient(positives.astype(jnp.float32))
    negatives = jax.lax.stop_gradient(negatives.astype(jnp.float32))
    precision = jax.lax.Precision.HIGHEST
    positive = jnp.einsum("bd,bd->b", v, positives, precision=precision)
    others = jnp.einsum("bd,bmd->bm" if per_image else "bd,md->bm", v, negatives, precision=precision)
    return jnp.concatenate([positive[:, None], others], axis=1)


def nce_z(
    v: jax.Array, positives: jax.Array, negatives: jax.Array, *, temperature: float, n_data: int
) -> jax.Array:
    """CMC's constant Z, estimated from one batch: the mean of exp(s / tau) over all its scores, times n.

    Args:
        v, positives, negatives: as for `bank_scores`.
        temperature: tau.
        n_data: n, the number of images in the bank.

    Returns:
        A float32 scalar without gradient. With a fresh bank Z / n is about exp(1 / (2 tau^2 D)), and never
        more than exp(1 / tau) once all rows have unit length.
    """
    scores = jax.lax.stop_gradient(bank_scores(v, positives, negatives))
    return jnp.mean(jnp.exp(scores / temperature)) * jnp.float32(n_data)


def nce(
    v: jax.Array,
    positives: jax.Array,
    negatives: jax.Array,
    *,
    temperature: float,
    n_data: int,
    z: jax.Array | float,
) -> jax.Array:
    """Noise-contrastive estimation: is a row the positive, or one of m drawn from the noise 1 / n?

        P_k  = exp(s_k / tau) / Z
        l(v) = -log P_0 / (P_0 + m/n + eps)  -  sum_{k=1..m} log (m/n) / (P_k + m/n + eps)

    The negatives are summed, not averaged.

    Args:
        v, positives, negatives: as for `bank_scores`.
        temperature: tau.
        n_data: n, the number of images in the bank.
        z: Z, see `nce_z`.

    Returns:
        float32 [B]. If all scores are 0 and Z = n, it is log(m + 1) + m log(1 + 1/m).
    """
    scores = bank_scores(v, positives, negatives)
    probability = jnp.exp(scores / temperature) / jnp.asarray(z, jnp.float32)
    noise = jnp.float32((scores.shape[1] - 1) / n_data)
    # log1p keeps the digits of a P_k that is far below the noise.
    is_positive = -jnp.log1p((noise + EPSILON) / probability[:, 0])
    is_noise = -jnp.log1p((probability[:, 1:] + EPSILON) / noise)
    return -(is_positive + jnp.sum(is_noise, axis=1))


def bank_info_nce(
    v: jax.Array, positives: jax.Array, negatives: jax.Array, *, temperature: float
) -> jax.Array:
    """The softmax variant: cross entropy of the positive among the 1 + m rows, at s / tau.

    Args:
        v, positives, negatives: as for `bank_scores`.
        temperature: tau.

    Returns:
        float32 [B]; log(m + 1) if all scores are equal.
    """
    logits = bank_scores(v, positives, negatives) / temperature
    return jax.nn.logsumexp(logits, axis=1) - logits[:, 0]
