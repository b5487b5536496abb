"""Regions of a feature map, sampled to a fixed size. Pure functions, differentiable in the map.

    RoIAlign   out[p, q] = sum_h sum_w  rows[p, h] columns[q, w] map[h, w]
    RoI pool   out[p, q] = max of map[h, w] over the cells h, w of bin p, q

Bilinear samples are separable: the mean of the samples of a bin is a weighted mean along each axis. So
RoIAlign is two matrix products, and needs no gather. Both follow torchvision. RoIAlign: He et al., 2017,
arXiv 1703.06870; RoI pool: Girshick, 2015, arXiv 1504.08083.
"""

from __future__ import annotations

import math
from ctypes import c_float

import jax
import jax.numpy as jnp

# Samples with `sampling=0`, and bins, are at most those of a box of this many times the map's side.
WIDEST = 2


def roi_align(
    maps: jax.Array,
    boxes: jax.Array,
    extent: jax.Array | None = None,
    *,
    size: int,
    scale: float,
    sampling: int,
    aligned: bool,
) -> jax.Array:
    """RoIAlign of the boxes of one image. `vmap` it over a batch.

    Args:
        maps: [H, W, C], any floating dtype.
        boxes: float32 [T, 4], x1, y1, x2, y2 in pixels of the image. They get no gradient, as in torchvision.
        extent: int32 [2], height and width in cells of the image in a padded map: nothing else is read.
        size: bins along each side of the result.
        scale: cells of the map per pixel, 1 / stride.
        sampling: samples per bin along each axis; 0 takes ceil(side of the box in cells / size). A box that
            is more than twice as long as the map gets as many as one that is exactly so.
        aligned: move the box by half a cell, so that a cell's value stands at its centre. False is the first
            RoIAlign of the literature, in which boxes also have at least one cell.

    Returns:
        [T, size, size, C] in the dtype of `maps`; 0 for an empty box.
    """
    corners = jax.lax.stop_gradient(boxes.astype(jnp.float32)) * scale
    if aligned:
        corners = corners - 0.5
    height, width, _ = maps.shape
    tall, wide = (height, width) if extent is None else extent.astype(jnp.float32)
    rows = _weights(corners[:, 1], corners[:, 3], height, tall, size, sampling, aligned).astype(maps.dtype)
    columns = _weights(corners[:, 0], corners[:, 2], width, wide, size, sampling, aligned).astype(maps.dtype)
    # einsum contracts the longer side first, which costs less
    return jnp.einsum("tph,tqw,hwc->tpqc", rows, columns, maps, precision=jax.lax.Precision.HIGHEST)


def _weights(
    start: jax.Array,
    end: jax.Array,
    length: int,
    extent: jax.Array | int,
    size: int,
    sampling: int,
    aligned: bool,
) -> jax.Array:
    """How much each of the `length` cells of an axis counts in each of the `size` bins: [T, size, length]."""
    side = end - start
    if not aligned:
        side = jnp.maximum(side, 1.0)
    side = side[:, None, None]  # [T, bin, sample]
    if sampling > 0:
        most = sampling
        samples = jnp.full_like(side, sampling)
    else:
        most = -(-WIDEST * length // size)
        samples = jnp.ceil(side / size)
        extra = (samples - 1.0) * size >= side  # compilers divide by multiplying: 42 / 14 is more than 3
        samples = jnp.clip(samples - extra.astype(jnp.float32), 0, most)

    bins = jnp.arange(size, dtype=jnp.float32)[None, :, None]
    sample = jnp.arange(most, dtype=jnp.float32)[None, None]
    width = side / size
    position = start[:, None, None] + bins * width + (sample + 0.5) * width / jnp.maximum(samples, 1.0)
    counts = (sample < samples) & (position >= -1.0) & (position <= extent)  # farther outside a sample is 0
    position = jnp.clip(position, 0.0, extent - 1)

    cells = jnp.arange(length, dtype=jnp.float32)
    near = jnp.maximum(1.0 - jnp.abs(position[..., None] - cells[None, None, None]), 0.0)
    return jnp.where(counts[..., None], near, 0.0).sum(2) / jnp.maximum(samples, 1.0)


def roi_pool(maps: jax.Array, boxes: jax.Array, *, size: int, scale: float) -> jax.Array:
    """Maximum over the cells of each bin (Fast R-CNN). Box and bins are rounded to whole cells.

    Args:
        maps: [H, W, C].
        boxes: float32 [T, 4], x1, y1, x2, y2 in pixels of the image.
        size: bins along each side of the result.
        scale: cells of the map per pixel, 1 / stride.

    Returns:
        [T, size, size, C]; 0 for a bin without cells. One box is computed after the other, because the
        intermediate result of one has size * W * C numbers.
    """
    height, width, _ = maps.shape
    corners = boxes.astype(jnp.float32) * scale
    corners = jnp.sign(corners) * jnp.floor(jnp.abs(corners) + 0.5)  # C's round: halves away from zero
    rows = _bins(corners[:, 1], corners[:, 3], height, size)
    columns = _bins(corners[:, 0], corners[:, 2], width, size)

    def one(masks: tuple[jax.Array, jax.Array]) -> jax.Array:
        row, column = masks
        tall = jnp.where(row[:, :, None, None], maps[None], -jnp.inf).max(1)  # [size, W, C]
        bins = jnp.where(column[None, :, :, None], tall[:, None], -jnp.inf).max(2)
        exists = row.any(1)[:, None] & column.any(1)[None]
        return jnp.where(exists[..., None], bins, 0.0)

    # A backward pass computes the intermediate results again: those of all boxes would be gigabytes.
    return jax.lax.map(jax.checkpoint(one), (rows, columns))


def _bins(start: jax.Array, end: jax.Array, length: int, size: int) -> jax.Array:
    """Which of the `length` cells of an axis belong to which bin: bool [T, size, length].

    Edges are rounded as float32: of 57 cells in 7 bins the last one ends after cell 58. Python computes them
    for every side of a box, because compiled programs divide otherwise.
    """
    most = WIDEST * length
    single = lambda number: c_float(number).value
    widths = [single(side / size) for side in range(most + 1)]
    first = jnp.array([[math.floor(single(p * width)) for p in range(size)] for width in widths])
    last = jnp.array([[math.ceil(single((p + 1) * width)) for p in range(size)] for width in widths])
    start, end = start.astype(jnp.int32), end.astype(jnp.int32)
    side = jnp.clip(end - start + 1, 1, most)
    place = (jnp.arange(length)[None] - start[:, None])[:, None]
    return (place >= first[side][..., None]) & (place < last[side][..., None])
