"""How embeddings are spread over the sphere.

These numbers tell a healthy run from a collapsed one; `run/monitor.py` judges them.
"""

import jax
import jax.numpy as jnp

from ssljax.losses.similarity import dot, l2_normalize


def embedding_std(z: jax.Array) -> jax.Array:
    """Standard deviation of the normalised embeddings, averaged over dimensions, times sqrt(D).

    See Chen & He, arXiv 2011.10566, section 4.1.

    Args:
        z: [N, D].

    Returns:
        A scalar: 1 if the rows are spread evenly over the sphere, 0 if they are all the same vector.
    """
    z = l2_normalize(z)
    return jnp.mean(jnp.std(z, axis=0)) * jnp.sqrt(jnp.float32(z.shape[1]))


def alignment(z1: jax.Array, z2: jax.Array) -> jax.Array:
    """Mean squared distance of the normalised pairs (Wang & Isola, arXiv 2005.10242, alpha = 2).

    Args:
        z1: [N, D].
        z2: [N, D].

    Returns:
        A scalar.
    """
    return jnp.mean(jnp.sum((l2_normalize(z1) - l2_normalize(z2)) ** 2, axis=1))


def uniformity(z: jax.Array) -> jax.Array:
    """The log of the mean of exp(-2 |z_i - z_j|^2) over the pairs i != j (Wang & Isola, t = 2).

    Args:
        z: [N, D].

    Returns:
        A scalar: 0 if all rows are equal, -4 if they are evenly spread in many dimensions.
    """
    z = l2_normalize(z)
    n = z.shape[0]
    distance = 2.0 - 2.0 * dot(z, z)
    others = 1.0 - jnp.eye(n, dtype=jnp.float32)
    return jnp.log(jnp.sum(others * jnp.exp(-2.0 * distance)) / (n * (n - 1)))


def effective_rank(z: jax.Array) -> jax.Array:
    """RankMe (Garrido et al., arXiv 2210.02885): exp of the entropy of the normalised singular values.

    Args:
        z: [N, D]. The singular values come from the D x D Gram matrix, so the rows may stay sharded.

    Returns:
        A scalar between 1 and D.
    """
    z = z.astype(jnp.float32)
    gram = jnp.einsum("nd,ne->de", z, z, precision=jax.lax.Precision.HIGHEST)
    singular = jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(gram), 0.0))
    share = singular / (jnp.sum(singular) + 1e-7) + 1e-7
    return jnp.exp(-jnp.sum(share * jnp.log(share)))


def health(z1: jax.Array, z2: jax.Array, *, logged: jax.Array) -> dict[str, jax.Array]:
    """Spread, alignment, uniformity and rank of the embeddings of two views. No gradient flows through them.

    Args:
        z1: [B, D], embeddings of view 1.
        z2: [B, D], embeddings of view 2; row i shows the same image as row i of z1.
        logged: bool scalar, whether this step is logged. The rank needs an eigendecomposition, so it is 0
            (not measured) at all other steps.

    Returns:
        float32 scalars by name.
    """
    z1 = jax.lax.stop_gradient(z1)
    z2 = jax.lax.stop_gradient(z2)

    def not_measured(z: jax.Array) -> jax.Array:
        return jnp.zeros((), jnp.float32)

    rank = jax.lax.cond(logged, effective_rank, not_measured, jnp.concatenate([z1, z2]))
    return {
        "embedding_std": embedding_std(z1),
        "alignment": alignment(z1, z2),
        "uniformity": uniformity(z1),
        "effective_rank": rank,
    }
