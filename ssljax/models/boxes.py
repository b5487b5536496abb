"""Boxes as arrays of fixed size: anchors, deltas, overlap, matching and non-maximum suppression.

    encode    dx = w_x (cx' - cx) / width        dw = w_w log(width' / width)
    IoU       area of the intersection / area of the union
    NMS       take the best score, drop what overlaps it by more than the threshold, repeat

A box is x1, y1, x2, y2 in continuous pixels, so that its width is x2 - x1 without a "+ 1". What does not
exist (a padded box, a proposal that was dropped) stays in the array and is named by a mask. All functions
work under `jit` and `vmap`. The conventions are those of facebookresearch/detectron2 at 02b5c4e (Faster
R-CNN: Ren et al., 2015, arXiv 1506.01497).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

Weights = tuple[float, float, float, float]

RPN_WEIGHTS: Weights = (1.0, 1.0, 1.0, 1.0)
HEAD_WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)
SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
RATIOS = (0.5, 1.0, 2.0)
MOST_GROWTH = math.log(1000.0 / 16.0)  # of the logarithm of a side, in `decode`
TIE = 1e-6  # overlaps that differ relatively by less are equal: compilers round them differently


def cell_anchors(sizes: Sequence[float] = SIZES, ratios: Sequence[float] = RATIOS) -> jax.Array:
    """The anchors of one cell, around its centre (0, 0).

    Args:
        sizes: square roots of the areas, in pixels.
        ratios: height over width.

    Returns:
        float32 [len(sizes) * len(ratios), 4]: all ratios of the first size, then of the second, ...
    """
    rows = []
    for size in sizes:
        for ratio in ratios:
            width = size / math.sqrt(ratio)
            height = ratio * width
            rows.append((-width / 2, -height / 2, width / 2, height / 2))
    return jnp.array(rows, jnp.float32)


def anchors(
    height: int,
    width: int,
    *,
    stride: int,
    sizes: Sequence[float] = SIZES,
    ratios: Sequence[float] = RATIOS,
    offset: float = 0.0,
) -> jax.Array:
    """The anchors of a feature map.

    Args:
        height: of the map, in cells.
        width: of the map, in cells.
        stride: pixels of the image per cell.
        sizes: see `cell_anchors`.
        ratios: see `cell_anchors`.
        offset: cell (i, j) has its centre at ((j + offset) * stride, (i + offset) * stride). Not rounded.

    Returns:
        float32 [height * width * A, 4], ordered by row, column and anchor of the cell.
    """
    y = (jnp.arange(height, dtype=jnp.float32) + offset) * stride
    x = (jnp.arange(width, dtype=jnp.float32) + offset) * stride
    y, x = jnp.meshgrid(y, x, indexing="ij")
    centres = jnp.stack([x, y, x, y], axis=-1)[:, :, None]
    return (centres + cell_anchors(sizes, ratios)[None, None]).reshape(-1, 4)


def area(boxes: jax.Array) -> jax.Array:
    """Area in pixels: `[..., 4] -> [...]`."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def encode(boxes: jax.Array, anchors: jax.Array, *, weights: Weights) -> jax.Array:
    """What a network must predict to turn anchors into boxes.

    Args:
        boxes: float32 [..., 4] with positive sides. Of others the result is not finite.
        anchors: float32 [..., 4] with positive sides.
        weights: factors of dx, dy, dw and dh.

    Returns:
        float32 [..., 4]: dx, dy, dw, dh.
    """
    centre, sides = _centre_and_sides(anchors)
    target, target_sides = _centre_and_sides(boxes)
    shift = (target - centre) / sides
    growth = jnp.log(target_sides / sides)
    return jnp.concatenate([shift, growth], axis=-1) * _row(weights, boxes)


def decode(deltas: jax.Array, anchors: jax.Array, *, weights: Weights) -> jax.Array:
    """The boxes that a network predicts. The inverse of `encode`, but that a side grows at most 62.5 times.

    Args:
        deltas: [..., 4]: dx, dy, dw, dh, any floating dtype.
        anchors: float32 [..., 4]; broadcast against `deltas`, as for one delta per class.
        weights: as given to `encode`.

    Returns:
        float32 [..., 4]
    """
    deltas = deltas.astype(jnp.float32) / _row(weights, deltas)
    centre, sides = _centre_and_sides(anchors)
    centre = centre + deltas[..., :2] * sides
    half = 0.5 * sides * jnp.exp(jnp.minimum(deltas[..., 2:], MOST_GROWTH))
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def _centre_and_sides(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * sides, sides


def _row(weights: Weights, like: jax.Array) -> jax.Array:
    return jnp.array(weights, jnp.float32).reshape((1,) * (like.ndim - 1) + (4,))


def clip(boxes: jax.Array, size: jax.Array) -> jax.Array:
    """Boxes cut at the border of the image: of the image itself, not of what it is padded to.

    Args:
        boxes: float32 [..., 4].
        size: height and width in pixels, [2].

    Returns:
        float32 [..., 4]
    """
    height, width = size[0].astype(jnp.float32), size[1].astype(jnp.float32)
    x = jnp.clip(boxes[..., 0::2], 0.0, width)
    y = jnp.clip(boxes[..., 1::2], 0.0, height)
    return jnp.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], axis=-1)


def nonempty(boxes: jax.Array, *, above: float = 0.0) -> jax.Array:
    """Whether both sides are longer than `above` pixels: `[..., 4] -> bool [...]`."""
    return jnp.all(boxes[..., 2:] - boxes[..., :2] > above, axis=-1)


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Intersection over union of every box of `a` with every box of `b`.

    Args:
        a: float32 [M, 4].
        b: float32 [N, 4].

    Returns:
        float32 [M, N]; 0 where two boxes do not meet, empty ones included.
    """
    a, b = a[:, None], b[None]
    sides = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    both = jnp.prod(jnp.maximum(sides, 0.0), axis=-1)
    either = area(a) + area(b) - both
    return jnp.where(both > 0, both / jnp.where(both > 0, either, 1.0), 0.0)


def match(
    overlap: jax.Array,
    valid: jax.Array,
    *,
    below: float,
    above: float,
    low_quality: bool,
    tie: float = TIE,
) -> tuple[jax.Array, jax.Array]:
    """Give every candidate (an anchor, a proposal) the true box that it overlaps most, and a label.

    A true box that touches no candidate claims none. Detectron2 makes *all* candidates positive then, because
    all of them equal its best overlap, 0. With padded boxes this would happen in every image.

    Args:
        overlap: float32 [G, N], IoU of the true boxes with the candidates. Set the columns of candidates that
            are outside the image to 0, and their labels to -1 afterwards.
        valid: bool [G], False for padding.
        below: a candidate whose best IoU is below this is background.
        above: a candidate whose best IoU is at least this is positive.
        low_quality: make also positive what overlaps a true box as much as any other candidate does. It keeps
            the true box that it overlaps most itself.
        tie: overlaps count as equal within a factor of 1 - tie. Detectron2's labels of a given `overlap` need
            0, but two compilers then label the same boxes differently.

    Returns:
        which: int32 [N], index of the true box; of equal ones the first.
        label: int32 [N], 1 positive, 0 background, -1 neither.
    """
    overlap = jnp.where(valid[:, None], overlap, -1.0)
    which = jnp.argmax(overlap, axis=0).astype(jnp.int32)
    most = jnp.max(overlap, axis=0)
    label = jnp.where(most >= above, 1, jnp.where(most < below, 0, -1))
    if low_quality:
        best = jnp.max(overlap, axis=1, keepdims=True)
        claimed = (overlap >= best * (1.0 - tie)) & (best > 0)
        label = jnp.where(claimed.any(axis=0), 1, label)
    return which, label.astype(jnp.int32)


def nms(
    boxes: jax.Array,
    scores: jax.Array,
    *,
    threshold: float,
    keep: int,
    classes: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Non-maximum suppression: the best boxes, none of which overlaps a better one too much.

    Args:
        boxes: float32 [N, 4].
        scores: float32 [N]; -inf for a box that does not exist.
        threshold: a box is dropped if its IoU with a kept box is larger, not if it is equal.
        keep: how many boxes are returned at most.
        classes: int [N]. If given, a box drops only boxes of its own class.

    Returns:
        index: int32 [keep], by falling score; of equal scores the lower index comes first.
        kept: bool [keep], False for places that are left over. Their index is 0.
    """

    def take(place: jax.Array, state: tuple) -> tuple:
        remaining, index, kept = state
        best = jnp.argmax(remaining)
        exists = remaining[best] > -jnp.inf
        drop = iou(boxes[best][None], boxes)[0] > threshold
        if classes is not None:
            drop &= classes == classes[best]
        remaining = jnp.where(drop, -jnp.inf, remaining).at[best].set(-jnp.inf)
        index = index.at[place].set(jnp.where(exists, best, 0).astype(jnp.int32))
        return remaining, index, kept.at[place].set(exists)

    start = (scores, jnp.zeros(keep, jnp.int32), jnp.zeros(keep, bool))
    _, index, kept = jax.lax.fori_loop(0, keep, take, start)
    return index, kept
