"""The quantities that `monitor.py` judges a run by, from two views' embeddings."""

import jax
import jax.numpy as jnp

from ssljax.losses.geometry import alignment, effective_rank, embedding_std, uniformity


def health(z1: jax.Array, z2: jax.Array, *, logged: jax.Array) -> dict[str, jax.Array]:
    """Spread, alignment, uniformity and rank of embeddings [B, D] of two views, as float32 scalars; no gradient.

    Args:
        z1: of view 1.
        z2: of view 2, row i of the same image.
        logged: bool scalar, whether this step is logged: the rank needs an eigendecomposition and is 0 (not measured) elsewhere.
    """
    z1, z2 = jax.lax.stop_gradient(z1), jax.lax.stop_gradient(z2)
    rank = jax.lax.cond(logged, effective_rank, lambda z: jnp.zeros((), jnp.float32), jnp.concatenate([z1, z2]))
    return {"embedding_std": embedding_std(z1), "alignment": alignment(z1, z2), "uniformity": uniformity(z1), "effective_rank": rank}
