"""Sobel filters, the fixed first layer of DeepCluster (arXiv 1807.05520, section 3.3).

Without it DeepCluster groups images by colour.
"""

import jax
import jax.numpy as jnp


def sobel(x: jax.Array) -> jax.Array:
    """Both Sobel gradients of the mean over the channels, with zero padding.

    The first gradient is positive where the image gets brighter to the left, the second where it gets
    brighter upwards: cross-correlations with [[1, 0, -1], [2, 0, -2], [1, 0, -1]] and with [[1, 2, 1],
    [0, 0, 0], [-1, -2, -1]] (facebookresearch/deepcluster). There are no parameters to learn or to decay.

    Args:
        x: normalised images `[B, H, W, C]`.

    Returns:
        float32 `[B, H, W, 2]`.
    """
    grey = x.astype(jnp.float32).mean(axis=-1)
    grey = jnp.pad(grey, ((0, 0), (1, 1), (1, 1)))
    down = smooth(grey, 1)
    across = smooth(grey, 2)
    leftward = down[:, :, :-2] - down[:, :, 2:]
    upward = across[:, :-2] - across[:, 2:]
    return jnp.stack([leftward, upward], axis=-1)


def smooth(x: jax.Array, axis: int) -> jax.Array:
    """Filter with [1, 2, 1] along an axis, which gets two elements shorter."""
    n = x.shape[axis]
    a, b, c = (jax.lax.slice_in_dim(x, i, n - 2 + i, axis=axis) for i in range(3))
    return a + 2.0 * b + c
