"""Crops and warps of one image on the device.

A crop is two small matmuls, out = Y @ image @ X^T: the interpolation matrices Y [S, H] and X [S, W] hold the kernel's weights of the
pixels inside the box. Gathers would be slow on a TPU. A warp reads four neighbours a pixel; it is meant for small images.

The boxes have the exact distributions of `tf.image.sample_distorted_bounding_box` (TensorFlow's kernel,
sample_distorted_bounding_box_op.cc) and of torchvision's `RandomResizedCrop.get_params`. A box is int32 [4]:
top, left, height, width.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

METHODS = ("bicubic", "bilinear")


def first_that_fits(fits: jax.Array, candidates: jax.Array, fallback: jax.Array) -> jax.Array:
    """The row of `candidates [T, D]` of the first True in `fits [T]`, or `fallback [D]`: a rejection loop unrolled sideways."""
    first = jax.nn.one_hot(
        jnp.argmax(fits), fits.shape[0], dtype=jnp.int32
    )  # a sum, not a gather: the same on every backend
    return jnp.where(fits.any(), (first[:, None] * candidates).sum(0, dtype=jnp.int32), fallback)


def uniform_integer(u: jax.Array, n: jax.Array) -> jax.Array:
    """Uniform int32 in [0, n) from `u` uniform in [0, 1); 0 where n < 1."""
    return jnp.clip(jnp.floor(u * n.astype(jnp.float32)).astype(jnp.int32), 0, jnp.maximum(n - 1, 0))


def crop_box_tf(
    key: jax.Array,
    height: int,
    width: int,
    *,
    min_area: float = 0.08,
    max_area: float = 1.0,
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    min_object_covered: float = 0.1,
    attempts: int = 100,
) -> jax.Array:
    """A box of the Inception crop as SimCLR's released code draws it, int32 [4] (top, left, height, width).

    The aspect is uniform, the INTEGER height is uniform between those of the smallest and the largest area, so small areas are
    more frequent than in torchvision's; a crop that covers less than `min_object_covered` of the image is drawn again.
    """
    u = jax.random.uniform(key, (attempts + 1, 2), jnp.float32)
    ratio = aspect[0] + u[:-1, 0] * (aspect[1] - aspect[0])
    low, high = min_area * height * width, max_area * height * width

    def side(length: jax.Array) -> jax.Array:
        return jnp.rint(length).astype(jnp.int32)

    def width_of(h: jax.Array) -> jax.Array:
        return side(h.astype(jnp.float32) * ratio)

    smallest, largest = side(jnp.sqrt(low / ratio)), side(jnp.sqrt(high / ratio))
    widest = jnp.floor((width + 0.5) / ratio).astype(jnp.int32)
    widest = widest - (width_of(widest) > width).astype(jnp.int32)
    largest = jnp.minimum(jnp.where(width_of(largest) > width, widest, largest), height)
    smallest = jnp.minimum(smallest, largest)
    h = smallest + uniform_integer(u[:-1, 1], largest - smallest + 1)

    # The op forgives one pixel of rounding in either direction before it rejects.
    h = h + ((h * width_of(h)).astype(jnp.float32) < low).astype(jnp.int32)
    h = h - ((h * width_of(h)).astype(jnp.float32) > high).astype(jnp.int32)
    w = width_of(h)
    area = (h * w).astype(jnp.float32)
    fits = (
        (area >= max(low, min_object_covered * height * width))
        & (area <= high)
        & (w <= width)
        & (h <= height)
        & (w > 0)
        & (h > 0)
    )

    h, w = first_that_fits(fits, jnp.stack([h, w], 1), jnp.array([height, width], jnp.int32))
    top, left = (
        uniform_integer(u[-1, 0], height - h),
        uniform_integer(u[-1, 1], width - w),
    )  # upper end excluded, as in the op
    return jnp.stack([top, left, h, w])


def crop_box_torchvision(
    key: jax.Array,
    height: int,
    width: int,
    *,
    min_area: float = 0.08,
    max_area: float = 1.0,
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    attempts: int = 10,
) -> jax.Array:
    """A box of torchvision's RandomResizedCrop, int32 [4]: uniform area, log-uniform aspect, else the largest central crop."""
    u = jax.random.uniform(key, (attempts + 1, 2), jnp.float32)
    area = (min_area + u[:-1, 0] * (max_area - min_area)) * (height * width)
    ratio = jnp.exp(math.log(aspect[0]) + u[:-1, 1] * (math.log(aspect[1]) - math.log(aspect[0])))
    h, w = (
        jnp.rint(jnp.sqrt(area / ratio)).astype(jnp.int32),
        jnp.rint(jnp.sqrt(area * ratio)).astype(jnp.int32),
    )
    fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)

    central = (min(height, round(width / aspect[0])), min(width, round(height * aspect[1])))
    h, w = first_that_fits(fits, jnp.stack([h, w], 1), jnp.array(central, jnp.int32))
    random = jnp.stack([uniform_integer(u[-1, 0], height - h + 1), uniform_integer(u[-1, 1], width - w + 1)])
    corner = jnp.where(fits.any(), random, jnp.stack([(height - h) // 2, (width - w) // 2]))
    return jnp.concatenate([corner, jnp.stack([h, w])])


def kernel(distance: jax.Array, method: str) -> jax.Array:
    """The interpolation kernel at `distance` in pixels: the tent, or Keys' cubic with a = -0.5 (TF2, Pillow, antialiased torch)."""
    x = jnp.abs(distance)
    if method == "bilinear":
        return jnp.maximum(0.0, 1.0 - x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return jnp.where(x <= 1.0, near, jnp.where(x < 2.0, far, 0.0))


def interpolation(
    start: jax.Array, length: jax.Array, side: int, size: int, *, method: str, antialias: bool
) -> jax.Array:
    """The matrix [size, side] that resizes pixels [start, start + length) of an axis of `side` pixels to `size` pixels.

    Half-pixel centres. Weights of pixels outside the box are dropped and the rest renormalised, as if the box had been cut out first.
    """
    start, length = jnp.asarray(start, jnp.float32), jnp.asarray(length, jnp.float32)
    scale = length / size
    centre = (start + (jnp.arange(size, dtype=jnp.float32) + 0.5) * scale)[:, None]
    pixel = (jnp.arange(side, dtype=jnp.float32) + 0.5)[None, :]
    stretch = jnp.maximum(scale, 1.0) if antialias else jnp.float32(1.0)
    weight = kernel((centre - pixel) / stretch, method)
    weight = jnp.where((pixel > start) & (pixel < start + length), weight, 0.0)
    return weight / weight.sum(1, keepdims=True)


def crop_resize(
    image: jax.Array,
    box: jax.Array,
    size: int | tuple[int, int],
    *,
    method: str = "bicubic",
    antialias: bool = False,
    flip: jax.Array | bool = False,
) -> jax.Array:
    """Cuts `box` out of `image [H, W, C]` and resizes it to [size, size, C], mirrored where `flip`.

    `method="bicubic"` is `tf.image.resize(method="bicubic")`; with `antialias` it is torchvision's and Pillow's.
    Bicubic weights overshoot [0, 1]; clipping is the caller's.
    """
    if method not in METHODS:
        raise ValueError(
            f"crop_resize: method={method!r} is not an interpolation known here. Choose one of {', '.join(METHODS)}."
        )
    rows, columns = (size, size) if isinstance(size, int) else size
    top, left, height, width = box
    y = interpolation(top, height, image.shape[0], rows, method=method, antialias=antialias)
    x = interpolation(left, width, image.shape[1], columns, method=method, antialias=antialias)
    x = jnp.where(flip, x[::-1], x)
    image = jnp.einsum("ij,jkc->ikc", y, image, precision="highest")
    return jnp.einsum("lk,ikc->ilc", x, image, precision="highest")


def affine_matrix(rotation: jax.Array, shift: jax.Array, zoom: jax.Array, shear: jax.Array) -> jax.Array:
    """The matrix [2, 3] of `affine`: rotation and shear in degrees, `shift [2]` (down, right) as a share of the side, zoom 1 = none."""
    angle, slope = jnp.deg2rad(rotation), jnp.tan(jnp.deg2rad(shear))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turn = jnp.stack([jnp.stack([cos, sin]), jnp.stack([-sin, cos])])
    lean = jnp.stack(
        [jnp.stack([jnp.ones_like(slope), jnp.zeros_like(slope)]), jnp.stack([slope, jnp.ones_like(slope)])]
    )
    linear = jnp.matmul(turn, lean, precision="highest") / zoom
    return jnp.concatenate([linear, -jnp.matmul(linear, shift[:, None], precision="highest")], axis=1)


def affine(image: jax.Array, matrix: jax.Array, size: int | tuple[int, int]) -> jax.Array:
    """Warps `image [H, W, C]` to [size, size, C]: bilinear, 0 outside.

    `matrix [2, 3]` maps an output point (y, x, 1) to the source point; coordinates run from the centre of the image in units of its sides.
    """
    height, width, _ = image.shape
    rows, columns = (size, size) if isinstance(size, int) else size
    y = ((jnp.arange(rows, dtype=jnp.float32) + 0.5) / rows - 0.5)[:, None]
    x = ((jnp.arange(columns, dtype=jnp.float32) + 0.5) / columns - 0.5)[None, :]
    source_y = (matrix[0, 0] * y + matrix[0, 1] * x + matrix[0, 2] + 0.5) * height - 0.5
    source_x = (matrix[1, 0] * y + matrix[1, 1] * x + matrix[1, 2] + 0.5) * width - 0.5
    top, left = jnp.floor(source_y), jnp.floor(source_x)
    out = jnp.zeros((rows, columns, image.shape[2]), jnp.float32)
    for j, k in ((top, left), (top, left + 1.0), (top + 1.0, left), (top + 1.0, left + 1.0)):
        weight = kernel(source_y - j, "bilinear") * kernel(source_x - k, "bilinear")
        weight = jnp.where((j >= 0.0) & (j < height) & (k >= 0.0) & (k < width), weight, 0.0)
        out = out + weight[..., None] * image.at[j.astype(jnp.int32), k.astype(jnp.int32)].get(mode="clip")
    return out
