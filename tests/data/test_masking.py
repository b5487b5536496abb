"""BEiT's masks against 1,000 draws of the released generator, and what every mask promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.data.masking import _block, algorithm_1, blockwise, covered, scattered

DRAWS = 10_000


def many(make, count=DRAWS, seed=0, **settings):
    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(jax.jit(jax.vmap(functools.partial(make, **settings)))(keys))


def golden_settings(g):
    largest = int(g["max_num_patches"])
    return dict(
        height=int(g["height"]),
        width=int(g["width"]),
        num_masked=int(g["num_masking_patches"]),
        min_block=int(g["min_num_patches"]),
        max_block=0 if largest < 0 else largest,
        min_aspect=float(g["min_aspect"]),
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", ["mask0", "mask1", "mask2"])
def test_the_statistics_of_the_released_generator(golden, case):
    g = golden("beit").under(case)
    settings = golden_settings(g)
    masks = many(blockwise, **settings)
    count = masks.sum((1, 2))
    assert count.max() == int(g["count_max"]) == settings["num_masked"]
    assert count.min() >= int(g["count_min"]) - 6
    assert abs(count.mean() - float(g["count_mean"])) < 0.1
    assert abs(count.std() - float(g["count_std"])) < 0.15
    assert abs((count == settings["num_masked"]).mean() - float(g["frac_full"])) < 0.05
    frequency = masks.mean(0)
    assert np.abs(frequency - g["position_frequency"]).max() < 0.06  # 1,000 draws: 4 standard deviations
    np.testing.assert_allclose(frequency, frequency[::-1, ::-1], atol=0.03)


def test_blocks_have_the_aspect_of_the_released_code():
    """Log-uniform: as many wide blocks as tall ones; rounded to even sides up to 1 : 5."""
    u = jax.random.uniform(jax.random.key(0), (DRAWS, 4))
    blocks = np.asarray(jax.vmap(lambda u: _block(u, 14, 14, 16, jnp.int32(75), 0.3))(u))
    tall = (blocks[:, 0] > blocks[:, 1]).mean()
    wide = (blocks[:, 0] < blocks[:, 1]).mean()
    assert abs(tall - wide) < 0.03
    area = blocks[:, 0] * blocks[:, 1]
    assert 44 < area.mean() < 47 and area.min() >= 12 and area.max() <= 84
    fits = (blocks[:, :2] < 14).all(1)
    assert (blocks[fits, 2] + blocks[fits, 0] <= 14).all() and (blocks[fits, 3] + blocks[fits, 1] <= 14).all()


def test_a_block_as_wide_as_the_grid_is_not_taken():
    """Every block that is drawn here has 14 x 14 patches: none qualifies, and the loop gives up."""
    masks = many(
        blockwise, 20, height=14, width=14, num_masked=196, min_block=196, max_block=0, min_aspect=0.99
    )
    assert not masks.any()


def test_a_mask_follows_from_its_key_alone():
    make = functools.partial(
        blockwise, height=14, width=14, num_masked=75, min_block=16, max_block=0, min_aspect=0.3
    )
    together = many(make, 50)
    keys = jax.random.split(jax.random.key(0), 50)
    np.testing.assert_array_equal(together[17], jax.jit(make)(keys[17]))
    assert len({mask.tobytes() for mask in together}) == 50


@pytest.mark.slow
def test_small_grids_can_be_masked():
    masks = many(blockwise, height=5, width=5, num_masked=10, min_block=2, max_block=0, min_aspect=0.3)
    count = masks.sum((1, 2))
    assert count.min() > 0 and count.max() == 10 and count.mean() > 9.5


@pytest.mark.slow
def test_algorithm_1_read_literally_masks_more_than_the_paper_says():
    masks = many(algorithm_1, height=14, width=14, num_masked=0.4 * 196, min_block=16, min_aspect=0.3)
    count = masks.sum((1, 2))
    assert count.min() == 79 and 92 <= count.max() <= 110
    assert abs(count.mean() - 82.5) < 0.3
    rows = masks.any(axis=2).sum(1).mean()
    columns = masks.any(axis=1).sum(1).mean()
    assert rows > columns  # r is uniform in (0.3, 3.3), so most blocks are tall


def test_scattered_masks_exactly_that_many_anywhere():
    masks = many(scattered, height=14, width=14, num_masked=75)
    assert (masks.sum((1, 2)) == 75).all()
    assert np.abs(masks.mean(0) - 75 / 196).max() < 0.03


def test_covered_by_hand():
    found = covered(jnp.array([1, 2, 0, 1]), 2, 4)
    np.testing.assert_array_equal(found, [[False, True, True, False], [False] * 4])
