"""How much two labellings of the same examples tell about each other."""

import jax
import jax.numpy as jnp


@jax.jit
def nmi(a: jax.Array, b: jax.Array) -> jax.Array:
    """Normalised mutual information I(a; b) / sqrt(H(a) H(b)) (DeepCluster, arXiv 1807.05520, equation 3).

    The two labellings may use different names and different numbers of classes.

    Args:
        a: int [N].
        b: int [N].

    Returns:
        float32 scalar in [0, 1]; 1 if both labellings have a single class.
    """
    ha = _entropy(a, a)
    hb = _entropy(b, b)
    hab = _entropy(a, b)
    scale = jnp.sqrt(ha * hb)
    defined = scale > 0
    information = ha + hb - hab
    ratio = jnp.clip(information / jnp.where(defined, scale, 1.0), 0.0, 1.0)
    return jnp.where(defined, ratio, jnp.float32(ha == hb))


def _entropy(a: jax.Array, b: jax.Array) -> jax.Array:
    """The entropy of the pairs (a, b), in nats.

    The pairs are sorted and equal neighbours are counted, so no table of all possible pairs is needed.
    """
    order = jnp.lexsort((b, a))
    a = a[order]
    b = b[order]
    new = jnp.concatenate([jnp.zeros(1, bool), (a[1:] != a[:-1]) | (b[1:] != b[:-1])])
    ones = jnp.ones(a.shape, jnp.float32)
    counts = jax.ops.segment_sum(ones, jnp.cumsum(new), a.shape[0])
    share = counts / a.shape[0]
    log_share = jnp.log(jnp.where(share > 0, share, 1.0))
    return jnp.maximum(-(share * log_share).sum(), 0.0)


def info_nce_bound(loss: jax.Array, negatives: int) -> jax.Array:
    """The lower bound of the mutual information that a contrast with k negatives gives: log(k) - L, in nats.

    It is never above log(k), however much the two sides tell about each other (CMC, arXiv 1906.05849,
    section 3.2; CPC, arXiv 1807.03748).

    Args:
        loss: L, the mean cross entropy of the positive among 1 + k candidates.
        negatives: k.

    Returns:
        float32, of the shape of `loss`. It is negative where the contrast is no better than chance.
    """
    return jnp.log(jnp.float32(negatives)) - loss
