"""How much two labellings of the same examples tell about each other."""

import jax
import jax.numpy as jnp


@jax.jit
def nmi(a: jax.Array, b: jax.Array) -> jax.Array:
    """Normalised mutual information I(a; b) / sqrt(H(a) H(b)) (DeepCluster, arXiv 1807.05520, equation 3), float32 in [0, 1].

    No labelling need know the names of the other, nor how many there are. Two labellings of one class each agree (1).

    Args:
        a, b: int [N].
    """
    ha, hb, hab = _entropy(a, a), _entropy(b, b), _entropy(a, b)
    scale = jnp.sqrt(ha * hb)
    return jnp.where(
        scale > 0,
        jnp.clip((ha + hb - hab) / jnp.where(scale > 0, scale, 1.0), 0.0, 1.0),
        jnp.float32(ha == hb),
    )


def _entropy(a: jax.Array, b: jax.Array) -> jax.Array:
    """The entropy of the pairs (a, b) in nats. Equal pairs are counted where they stand together, so that no table of all pairs is made."""
    order = jnp.lexsort((b, a))
    a, b = a[order], b[order]
    new = jnp.concatenate([jnp.zeros(1, bool), (a[1:] != a[:-1]) | (b[1:] != b[:-1])])
    share = jax.ops.segment_sum(jnp.ones(a.shape, jnp.float32), jnp.cumsum(new), a.shape[0]) / a.shape[0]
    return jnp.maximum(-(share * jnp.log(jnp.where(share > 0, share, 1.0))).sum(), 0.0)
