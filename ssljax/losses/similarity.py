"""Cosine similarities in float32."""

import jax
import jax.numpy as jnp


def l2_normalize(x: jax.Array, epsilon: float = 1e-12) -> jax.Array:
    """Scale rows to unit length, as tf.math.l2_normalize does.

    Args:
        x: [..., D], any floating dtype.
        epsilon: lower bound of the squared norm; a row of zeros stays zero.

    Returns:
        float32 [..., D].
    """
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), jnp.float32(epsilon)))


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a @ b.T` in full float32.

    bfloat16 would put 0.04 of noise on a logit at temperature 0.1.

    Args:
        a: [N, D].
        b: [M, D].

    Returns:
        [N, M].
    """
    return jnp.einsum("nd,md->nm", a, b, precision=jax.lax.Precision.HIGHEST)
