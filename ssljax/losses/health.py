"""How embeddings lie on the sphere: what tells a healthy run from a collapsed one, for `run/monitor.py` to judge."""

import jax
import jax.numpy as jnp

from ssljax.losses.similarity import dot, l2_normalize


def embedding_std(z: jax.Array) -> jax.Array:
    """Standard deviation of the normalised embeddings, averaged over dimensions, times sqrt(D) -> scalar.

    1 when the rows [N, D] are spread evenly over the sphere, 0 when they are all the same vector (Chen & He, arXiv 2011.10566, 4.1).
    """
    z = l2_normalize(z)
    return jnp.mean(jnp.std(z, axis=0)) * jnp.sqrt(jnp.float32(z.shape[1]))


def alignment(z1: jax.Array, z2: jax.Array) -> jax.Array:
    """Mean squared distance of the normalised pairs [N, D], [N, D] -> scalar (Wang & Isola, arXiv 2005.10242, alpha = 2)."""
    return jnp.mean(jnp.sum((l2_normalize(z1) - l2_normalize(z2)) ** 2, axis=1))


def uniformity(z: jax.Array) -> jax.Array:
    """log of the mean of exp(-2 |z_i - z_j|^2) over the pairs i != j of rows [N, D] -> scalar (Wang & Isola, t = 2).

    0 when all rows are equal, -4 when they are evenly spread in many dimensions.
    """
    z = l2_normalize(z)
    n = z.shape[0]
    distance = 2.0 - 2.0 * dot(z, z)
    others = 1.0 - jnp.eye(n, dtype=jnp.float32)
    return jnp.log(jnp.sum(others * jnp.exp(-2.0 * distance)) / (n * (n - 1)))


def effective_rank(z: jax.Array) -> jax.Array:
    """RankMe (Garrido et al., arXiv 2210.02885): exp of the entropy of the singular values' shares, between 1 and D -> scalar.

    Args:
        z: [N, D]. The singular values come from the D x D Gram matrix, so the rows may stay sharded.
    """
    z = z.astype(jnp.float32)
    gram = jnp.einsum("nd,ne->de", z, z, precision=jax.lax.Precision.HIGHEST)
    singular = jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(gram), 0.0))
    share = singular / (jnp.sum(singular) + 1e-7) + 1e-7
    return jnp.exp(-jnp.sum(share * jnp.log(share)))


def health(z1: jax.Array, z2: jax.Array, *, logged: jax.Array) -> dict[str, jax.Array]:
    """Spread, alignment, uniformity and rank of embeddings [B, D] of two views, as float32 scalars; no gradient.

    Args:
        z1: of view 1.
        z2: of view 2, row i of the same image.
        logged: bool scalar, whether this step is logged: the rank needs an eigendecomposition and is 0 (not measured) elsewhere.
    """
    z1, z2 = jax.lax.stop_gradient(z1), jax.lax.stop_gradient(z2)
    rank = jax.lax.cond(
        logged, effective_rank, lambda z: jnp.zeros((), jnp.float32), jnp.concatenate([z1, z2])
    )
    return {
        "embedding_std": embedding_std(z1),
        "alignment": alignment(z1, z2),
        "uniformity": uniformity(z1),
        "effective_rank": rank,
    }
