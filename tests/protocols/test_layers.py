"""The pools of single layers: the released sizes, bounds for any size, and averages by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.models.pooling import pool, pooled


@pytest.mark.parametrize(
    "side, channels, size, padding, dim",
    [(55, 96, 6, 3, 9600), (27, 256, 4, 0, 9216), (13, 384, 3, 1, 9600), (13, 256, 2, 0, 9216)],
)
def test_the_released_pools_of_alexnet(side, channels, size, padding, dim):
    found = pool(side, channels, 9600)
    assert (found.size, found.padding, found.places**2 * channels) == (size, padding, dim)


def test_every_pool_leaves_at_most_dim_numbers_and_not_far_fewer():
    for side in range(1, 65):
        for channels in (3, 16, 64, 100, 512):
            for dim in (512, 1024, 9600):
                size, padding, places = pool(side, channels, dim)
                assert places**2 * channels <= dim and padding < size
                assert side - size < places * size <= side + 2 * padding
                most = min(side, int(np.sqrt(dim / channels)))
                assert places >= most / 2
    with pytest.raises(ValueError, match="layer_dim=10: the layer has 16 channels"):
        pool(4, 16, 10)


def test_averages_count_the_zeros_of_the_border():
    channel = jnp.arange(1, 26, dtype=jnp.float32).reshape(1, 5, 5, 1)
    x = jnp.concatenate([channel, -channel], axis=3)
    assert pool(5, 2, 8) == (2, 0, 2) and pool(5, 2, 18) == (2, 1, 3)
    grid = np.arange(1, 26).reshape(5, 5)
    means = [grid[r : r + 2, c : c + 2].mean() for r in (0, 2) for c in (0, 2)]
    np.testing.assert_allclose(pooled(x, 8)[0], np.ravel([[m, -m] for m in means]))
    corner = pooled(x, 18)[0].reshape(3, 3, 2)
    found = [corner[0, 0, 0], corner[0, 1, 0], corner[1, 1, 1]]
    np.testing.assert_allclose(found, [1 / 4, (2 + 3) / 4, -(7 + 8 + 12 + 13) / 4])
