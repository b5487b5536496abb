"""Edges instead of colours: the fixed first layer of DeepCluster (arXiv 1807.05520, section 3.3), without which it clusters by colour."""

import jax
import jax.numpy as jnp


def sobel(x: jax.Array) -> jax.Array:
    """Sobel's two gradients of the mean of the channels, borders padded with zeros: `[B, H, W, C]` -> float32 `[B, H, W, 2]`.

    The first grows to the left, the second upwards: a cross-correlation with [[1, 0, -1], [2, 0, -2], [1, 0, -1]] and with [[1, 2, 1],
    [0, 0, 0], [-1, -2, -1]] (facebookresearch/deepcluster). On a normalised image; nothing to learn, nothing to decay.
    """
    x = jnp.pad(x.astype(jnp.float32).mean(axis=-1), ((0, 0), (1, 1), (1, 1)))
    down, across = smooth(x, 1), smooth(x, 2)
    return jnp.stack([down[:, :, :-2] - down[:, :, 2:], across[:, :-2] - across[:, 2:]], axis=-1)


def smooth(x: jax.Array, axis: int) -> jax.Array:
    """[1, 2, 1] along an axis, which loses its ends."""
    n = x.shape[axis]
    a, b, c = (jax.lax.slice_in_dim(x, i, n - 2 + i, axis=axis) for i in range(3))
    return a + 2.0 * b + c
