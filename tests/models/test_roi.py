"""Regions of a map against torchvision, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.models.roi import roi_align, roi_pool

SIXTEENTH = 1 / 16
align = jax.jit(roi_align, static_argnames=("size", "scale", "sampling", "aligned"))


@pytest.fixture(scope="module")
def g(golden):
    case = golden("boxes")["roi"]
    return {name: jnp.asarray(case[name]) for name in case.dtype.names}


@pytest.mark.slow
def test_adaptive_samples_and_their_gradient_equal_torchvision(g):
    how = {"size": 14, "scale": SIXTEENTH, "sampling": 0, "aligned": True}
    out = align(g["map"][..., None], g["rois"], **how)[..., 0]
    np.testing.assert_allclose(out[jnp.array([2, 6])], g["aligned1_ratio0_size14"], atol=2e-5)
    # The golden cotangent is the cosine of the index in [10 RoIs, 6 channels, 14, 14].
    cotangent = jnp.cos(jnp.arange(10 * 6 * 196, dtype=jnp.float32)).reshape(10, 6, 14, 14)
    cotangent = cotangent[g["index_of_rois_1"], 0]
    total = lambda m: (align(m[..., None], g["rois_of_image_1"], **how)[..., 0] * cotangent).sum()
    np.testing.assert_allclose(jax.grad(total)(g["map"]), g["grad_of_image_1"], atol=2e-5)


def test_two_samples_without_the_half_cell_equal_torchvision(g):
    out = align(g["map"][..., None], g["rois"][:5], size=7, scale=SIXTEENTH, sampling=2, aligned=False)
    np.testing.assert_allclose(out[..., 0], g["aligned0_ratio2_size7"], atol=2e-5)


def test_the_maximum_equals_torchvision(g):
    out = jax.jit(lambda m: roi_pool(m, g["rois"], size=7, scale=SIXTEENTH))(g["map"][..., None])
    np.testing.assert_array_equal(out[..., 0], g["pool_size7"])
    assert (g["pool_size7"] == 0.0).any()  # bins beyond the border


@pytest.mark.slow
def test_a_ramp_by_hand():
    """On a map whose value is x, aligned bins have the value of their centre."""
    ramp = jnp.tile(jnp.arange(8.0)[None, :, None], (6, 1, 2))
    box = jnp.array([[32.0, 16.0, 96.0, 80.0]])
    out = align(ramp, box, size=2, scale=SIXTEENTH, sampling=0, aligned=True)
    assert out.shape == (1, 2, 2, 2)
    np.testing.assert_allclose(out[0, :, :, 0], [[2.5, 4.5]] * 2)  # cells 2 to 6, less half a cell
    out = align(ramp, box, size=2, scale=SIXTEENTH, sampling=0, aligned=False)
    np.testing.assert_allclose(out[0, :, :, 0], [[3.0, 5.0]] * 2)
    np.testing.assert_array_equal(roi_pool(ramp, box, size=1, scale=SIXTEENTH)[0, 0, 0], [6.0, 6.0])
    low = align(ramp.astype(jnp.bfloat16), box, size=2, scale=SIXTEENTH, sampling=0, aligned=True)
    assert low.dtype == jnp.bfloat16


def test_zeros_that_pad_a_map_change_no_region():
    maps = np.ones((5, 7, 1), np.float32)
    boxes = jnp.array([[0.0, 0, 112, 80], [90, 60, 112, 80]])
    how = {"size": 6, "scale": SIXTEENTH, "sampling": 0, "aligned": True}
    padded = np.pad(maps, ((0, 4), (0, 9), (0, 0)))
    np.testing.assert_allclose(align(padded, boxes, jnp.array([5, 7]), **how), 1.0, atol=1e-6)


def test_a_box_of_42_cells_has_three_samples_a_bin_also_when_compiled():
    """XLA divides by 14 by multiplying with its reciprocal, and 42 / 14 becomes more than 3."""
    impulse = jnp.zeros((42, 42, 1)).at[:, 1].set(1.0)
    box = jnp.array([[8.0, 8.0, 680.0, 680.0]])  # from 0 to 42 once half a cell is taken off
    out = align(impulse, box, size=14, scale=SIXTEENTH, sampling=0, aligned=True)
    # Samples at 0.5, 1.5 and 2.5 have the weights 1/2, 1/2 and 0; four would give 11/32.
    np.testing.assert_allclose(out[0, 3, 0, 0], 1 / 3, rtol=1e-5)


def edges(p, side, size):
    """First cell of a bin and the one after its last, as torchvision's roi_pool_kernel.cpp."""
    width = np.float32(side) / np.float32(size)
    return int(np.floor(np.float32(p) * width)), int(np.ceil(np.float32(p + 1) * width))


def pooled_by_loops(maps, boxes, size, scale):
    """Fast R-CNN's layer: whole cells, halves rounded up, a side of at least one cell, bins of `edges`.

    Returns:
        the maxima [T, size, size, C], and for each its place in the map, -1 for a bin without cells.
    """
    height, width, channels = maps.shape
    out = np.zeros((len(boxes), size, size, channels), np.float32)
    where = np.full(out.shape, -1)
    for t, p, q, c in np.ndindex(out.shape):
        x1, y1, x2, y2 = (int(np.floor(float(side) * scale + 0.5)) for side in boxes[t])
        tall, wide = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        for y in range(*(y1 + edge for edge in edges(p, tall, size))):
            for x in range(*(x1 + edge for edge in edges(q, wide, size))):
                inside = 0 <= y < height and 0 <= x < width
                if inside and (where[t, p, q, c] < 0 or maps[y, x, c] > out[t, p, q, c]):
                    out[t, p, q, c] = maps[y, x, c]
                    where[t, p, q, c] = (y * width + x) * channels + c
    return out, where


@pytest.mark.slow
def test_the_maximum_and_its_gradient_equal_loops():
    """Boxes on halves of cells, of less than a cell, beyond the border, and maxima below 0."""
    rng = np.random.default_rng(0)
    maps = rng.normal(-1.0, 1.0, (9, 12, 2)).astype(np.float32)
    boxes = np.array(
        [[3, 5, 100, 90], [8, 24, 40, 56], [50, 50, 51, 51], [100, 80, 300, 200], [0, 0, 192, 144]],
        np.float32,
    )
    expected, where = pooled_by_loops(maps, boxes, 6, SIXTEENTH)
    assert (where < 0).any() and (expected[where >= 0] < 0).any()
    cotangent = rng.normal(size=expected.shape).astype(np.float32)
    found, pull = jax.vjp(lambda m: roi_pool(m, jnp.asarray(boxes), size=6, scale=SIXTEENTH), maps)
    np.testing.assert_array_equal(found, expected)
    gradient = np.zeros(maps.size)
    np.add.at(gradient, where[where >= 0], cotangent[where >= 0])
    np.testing.assert_allclose(pull(jnp.asarray(cotangent))[0].ravel(), gradient, atol=1e-5)


def test_bins_of_every_side_are_those_of_float32():
    """Columns hold their number, so that a bin shows its last one."""
    maps = np.arange(130, dtype=np.float32)[None, :, None]
    sides = np.arange(1, 126)
    boxes = np.stack([0 * sides + 16, 0 * sides, 16 * sides, 0 * sides], axis=1).astype(np.float32)
    found = jax.jit(lambda m: roi_pool(m, boxes, size=7, scale=SIXTEENTH))(maps)[:, 0, :, 0]
    np.testing.assert_array_equal(found, [[edges(p, side, 7)[1] for p in range(7)] for side in sides])
    assert found[55:57, 6].tolist() == [56, 58]


def test_a_gradient_keeps_no_map_per_box():
    maps = jax.ShapeDtypeStruct((38, 50, 64), jnp.float32)
    boxes = jax.ShapeDtypeStruct((64, 4), jnp.float32)
    total = lambda maps, boxes: (roi_pool(maps, boxes, size=6, scale=SIXTEENTH) ** 2).sum()
    compiled = jax.jit(jax.grad(total)).lower(maps, boxes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 30 * 38 * 50 * 64 * 4
