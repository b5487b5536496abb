"""Which patches BEiT masks (arXiv 2106.08254, section 2.3). One key per image; all shapes are fixed.

    blockwise    the released code (microsoft/unilm at 768a3c8, beit/masking_generator.py): blocks that keep
                 the number of masked patches at or below the target
    algorithm_1  the paper's Algorithm 1: blocks until more than the target are masked, without a cap
    scattered    single patches, uniformly without replacement: the ablation without blocks

Algorithm 1 as printed masks 79 to 96 of 196 patches, although the paper says "at most 75". The numbers of the
paper are those of the released code.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

TRIES = 10
HEIGHT, WIDTH, TOP, LEFT = range(4)  # columns of a table of blocks


def blockwise(
    key: jax.Array,
    height: int,
    width: int,
    *,
    num_masked: int,
    min_block: int,
    max_block: int,
    min_aspect: float,
) -> jax.Array:
    """Mask blocks of patches, as BEiT's released code does.

    A block has an area from U(min_block, cap), where cap = min(missing patches, max_block), and a log-uniform
    aspect ratio; it is smaller than the grid along both axes. It is taken if it masks at least one new patch
    and at most cap. After ten blocks in a row that do not qualify, the mask stays as it is, so it may have
    fewer patches than asked for, and never more.

    Args:
        key: determines the mask.
        height, width: of the grid of patches.
        num_masked: how many patches to mask at most; 75 of 14 x 14.
        min_block: smallest area that is drawn; 16. When fewer patches are missing, areas lie between the two.
        max_block: largest area; 0: num_masked, the released default.
        min_aspect: smallest aspect ratio; the largest is its inverse. 0.3.

    Returns:
        bool [height, width], True where masked.
    """
    largest = max_block or num_masked

    def more(state: tuple) -> jax.Array:
        mask, stuck, _ = state
        return (mask.sum() < num_masked) & ~stuck

    def add(state: tuple) -> tuple:
        mask, _, key = state
        key, draw = jax.random.split(key)
        cap = jnp.minimum(num_masked - mask.sum(), largest)
        # The tries see the same mask, so all can be made at once; the first that qualifies counts.
        u = jax.random.uniform(draw, (TRIES, 4), jnp.float32)
        blocks = jax.vmap(lambda u: _block(u, height, width, min_block, cap, min_aspect))(u)
        inside = jax.vmap(lambda block: covered(block, height, width))(blocks)
        new = (inside & ~mask[None]).sum((1, 2))
        fits = (blocks[:, HEIGHT] < height) & (blocks[:, WIDTH] < width) & (new > 0) & (new <= cap)
        found = fits.any()
        return mask | (inside[jnp.argmax(fits)] & found), ~found, key

    empty = jnp.zeros((height, width), bool)
    mask, _, _ = jax.lax.while_loop(more, add, (empty, jnp.bool_(False), key))
    return mask


def _block(
    u: jax.Array, height: int, width: int, min_block: int, cap: jax.Array, min_aspect: float
) -> jax.Array:
    """Draw a block from `u [4]`, uniform in [0, 1): int32 [4], height, width, top, left."""
    area = min_block + u[0] * (cap.astype(jnp.float32) - min_block)
    bound = math.log(1.0 / min_aspect)
    aspect = jnp.exp(-bound + 2.0 * bound * u[1])
    rows = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    columns = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    return jnp.stack([rows, columns, _start(u[2], height - rows), _start(u[3], width - columns)])


def _start(u: jax.Array, room: jax.Array) -> jax.Array:
    """A whole number from 0 to `room`, inclusive."""
    room = jnp.maximum(room, 0)
    return jnp.minimum(jnp.floor(u * (room + 1).astype(jnp.float32)).astype(jnp.int32), room)


def covered(block: jax.Array, height: int, width: int) -> jax.Array:
    """The patches of a block (height, width, top, left): bool [height, width]."""
    rows = jnp.arange(height, dtype=jnp.int32)[:, None]
    columns = jnp.arange(width, dtype=jnp.int32)[None]
    down = (rows >= block[TOP]) & (rows < block[TOP] + block[HEIGHT])
    right = (columns >= block[LEFT]) & (columns < block[LEFT] + block[WIDTH])
    return down & right


def algorithm_1(
    key: jax.Array, height: int, width: int, *, num_masked: float, min_block: int, min_aspect: float
) -> jax.Array:
    """Mask blocks of patches by the paper's Algorithm 1, read literally.

        repeat  s ~ U(min_block, num_masked - |M|);   r ~ U(min_aspect, 1 / min_aspect)
                a = sqrt(s r), b = sqrt(s / r);   t ~ U(0, h - a), l ~ U(0, w - b);   add the block
        until   |M| > num_masked

    The paper does not say how a, b, t and l become whole numbers: sides are rounded and cut to the grid, and
    places are whole and uniform. [X]

    Args:
        key, height, width, min_block, min_aspect: as for `blockwise`.
        num_masked: 0.4 N, which need not be whole.

    Returns:
        bool [height, width], True where masked: always more than `num_masked`.
    """

    def add(state: tuple) -> tuple:
        mask, key = state
        key, draw = jax.random.split(key)
        u = jax.random.uniform(draw, (4,), jnp.float32)
        missing = num_masked - mask.sum().astype(jnp.float32)
        area = min_block + u[0] * (missing - min_block)
        aspect = min_aspect + u[1] * (1.0 / min_aspect - min_aspect)
        rows = jnp.clip(jnp.round(jnp.sqrt(area * aspect)), 1, height).astype(jnp.int32)
        columns = jnp.clip(jnp.round(jnp.sqrt(area / aspect)), 1, width).astype(jnp.int32)
        top = _start(u[2], height - rows)
        left = _start(u[3], width - columns)
        return mask | covered(jnp.stack([rows, columns, top, left]), height, width), key

    empty = jnp.zeros((height, width), bool)
    most = math.floor(num_masked)
    mask, _ = jax.lax.while_loop(lambda state: state[0].sum() <= most, add, (empty, key))
    return mask


def scattered(key: jax.Array, height: int, width: int, *, num_masked: int) -> jax.Array:
    """Mask exactly `num_masked` patches, uniformly without replacement: bool [height, width]."""
    order = jax.random.permutation(key, height * width)
    return (order < num_masked).reshape(height, width)
