"""Crops and warps of one image on the device.

A crop is two small matmuls, out = Y @ image @ X^T. The interpolation matrices Y [S, H] and X [S, W] hold the
kernel's weights for the pixels inside the box. Gathers would be slow on a TPU. A warp does gather four
neighbours per pixel; it is meant for small images.

The boxes have the exact distributions of `tf.image.sample_distorted_bounding_box` (TensorFlow's kernel,
sample_distorted_bounding_box_op.cc), of torchvision's `RandomResizedCrop.get_params` and of BYOL's released
code (dataset.py, `_decode_and_random_crop`). A box is int32 [4]: top, left, height, width.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

METHODS = ("bicubic", "bilinear", "lanczos3", "area")

# Where an evaluation crop lies, down and right: -1 at the start of the axis, 0 in its middle, 1 at its end.
Place = tuple[int, int]
CENTRE: Place = (0, 0)
FIVE: tuple[Place, ...] = ((-1, -1), (-1, 1), (1, -1), (1, 1), CENTRE)  # of torchvision's FiveCrop


def first_that_fits(fits: jax.Array, candidates: jax.Array, fallback: jax.Array) -> jax.Array:
    """Select the first candidate that fits: a rejection loop with all its attempts made at once.

    Args:
        fits: bool [T].
        candidates: int32 [T, D].
        fallback: int32 [D].

    Returns:
        int32 [D], the row of `candidates` at the first True in `fits`, or `fallback` if there is none.
    """
    # A sum instead of a gather gives the same result on every backend.
    first = jax.nn.one_hot(jnp.argmax(fits), fits.shape[0], dtype=jnp.int32)
    chosen = (first[:, None] * candidates).sum(0, dtype=jnp.int32)
    return jnp.where(fits.any(), chosen, fallback)


def offset(room: Any, at: int) -> Any:
    """Return where a crop begins on an axis that has `room` pixels more than it, an int or int32 tensor.

    Args:
        room: pixels of the axis that the crop leaves out.
        at: -1, 0 or 1, see `Place`. Of an odd number of pixels, the middle leaves one more before the crop.
    """
    if at:
        return room if at > 0 else room * 0
    return (room + 1) // 2


def uniform_integer(u: jax.Array, n: jax.Array) -> jax.Array:
    """Turn `u`, uniform in [0, 1), into a uniform int32 in [0, n), or 0 if n < 1."""
    drawn = jnp.floor(u * n.astype(jnp.float32)).astype(jnp.int32)
    return jnp.clip(drawn, 0, jnp.maximum(n - 1, 0))


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
    """Draw a box of the Inception crop as in SimCLR's released code.

    The aspect ratio is uniform. The integer height is uniform between the heights of the smallest and the
    largest area, so small areas are more frequent than in torchvision's crop. A crop that covers less than
    `min_object_covered` of the image is drawn again. If all attempts fail, the box is the whole image.

    Args:
        key: a random key.
        height, width: size of the image in pixels.
        min_area, max_area: smallest and largest area, as a share of the image's area.
        aspect: smallest and largest aspect ratio, width over height.
        min_object_covered: smallest share of the image that a crop may cover.
        attempts: number of draws.

    Returns:
        int32 [4]: top, left, height, width.
    """
    u = jax.random.uniform(key, (attempts + 1, 2), jnp.float32)
    ratio = aspect[0] + u[:-1, 0] * (aspect[1] - aspect[0])
    low = min_area * height * width
    high = max_area * height * width

    def side(length: jax.Array) -> jax.Array:
        return jnp.rint(length).astype(jnp.int32)

    def width_of(h: jax.Array) -> jax.Array:
        return side(h.astype(jnp.float32) * ratio)

    smallest = side(jnp.sqrt(low / ratio))
    largest = side(jnp.sqrt(high / ratio))
    widest = jnp.floor((width + 0.5) / ratio).astype(jnp.int32)
    widest = widest - (width_of(widest) > width).astype(jnp.int32)
    largest = jnp.minimum(jnp.where(width_of(largest) > width, widest, largest), height)
    smallest = jnp.minimum(smallest, largest)
    h = smallest + uniform_integer(u[:-1, 1], largest - smallest + 1)

    # TensorFlow's op forgives one pixel of rounding in either direction before it rejects.
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
    top = uniform_integer(u[-1, 0], height - h)  # the upper end is excluded, as in the op
    left = uniform_integer(u[-1, 1], width - w)
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
    """Draw a box of torchvision's RandomResizedCrop.

    The area is uniform and the aspect ratio log-uniform. If all attempts fail, the box is the largest central
    crop with an allowed aspect ratio.

    Args:
        key: a random key.
        height, width: size of the image in pixels.
        min_area, max_area: smallest and largest area, as a share of the image's area.
        aspect: smallest and largest aspect ratio, width over height.
        attempts: number of draws.

    Returns:
        int32 [4]: top, left, height, width.
    """
    u = jax.random.uniform(key, (attempts + 1, 2), jnp.float32)
    area = (min_area + u[:-1, 0] * (max_area - min_area)) * (height * width)
    low = math.log(aspect[0])
    high = math.log(aspect[1])
    ratio = jnp.exp(low + u[:-1, 1] * (high - low))
    h = jnp.rint(jnp.sqrt(area / ratio)).astype(jnp.int32)
    w = jnp.rint(jnp.sqrt(area * ratio)).astype(jnp.int32)
    fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)

    central = (min(height, round(width / aspect[0])), min(width, round(height * aspect[1])))
    h, w = first_that_fits(fits, jnp.stack([h, w], 1), jnp.array(central, jnp.int32))
    top = uniform_integer(u[-1, 0], height - h + 1)
    left = uniform_integer(u[-1, 1], width - w + 1)
    middle = jnp.stack([(height - h) // 2, (width - w) // 2])
    corner = jnp.where(fits.any(), jnp.stack([top, left]), middle)
    return jnp.concatenate([corner, jnp.stack([h, w])])


def crop_box_byol(
    key: jax.Array,
    height: int,
    width: int,
    *,
    min_area: float = 0.08,
    max_area: float = 1.0,
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> jax.Array:
    """Draw a box of BYOL's released code: torchvision's, but cut down to the image where it does not fit.

    There is one attempt, so a large box on an image that is not square may have any aspect ratio.

    Args:
        key: a random key.
        height, width: size of the image in pixels.
        min_area, max_area: smallest and largest area, as a share of the image's area.
        aspect: smallest and largest aspect ratio before the cut, width over height.

    Returns:
        int32 [4]: top, left, height, width.
    """
    u = jax.random.uniform(key, (4,), jnp.float32)
    area = (min_area + u[0] * (max_area - min_area)) * (height * width)
    low = math.log(aspect[0])
    high = math.log(aspect[1])
    ratio = jnp.exp(low + u[1] * (high - low))
    h = jnp.minimum(jnp.rint(jnp.sqrt(area / ratio)).astype(jnp.int32), height)
    w = jnp.minimum(jnp.rint(jnp.sqrt(area * ratio)).astype(jnp.int32), width)
    h = jnp.maximum(h, 1)
    w = jnp.maximum(w, 1)
    top = uniform_integer(u[2], height - h + 1)
    left = uniform_integer(u[3], width - w + 1)
    return jnp.stack([top, left, h, w])


BOXES = {"tf": crop_box_tf, "torchvision": crop_box_torchvision, "byol": crop_box_byol}


def crop_box_square(key: jax.Array, height: int, width: int, *, area: float) -> jax.Array:
    """Draw a square of fixed size within the central square of an image.

    With area = (224 / 256)^2 this is torchvision's Resize(256), CenterCrop(256), RandomCrop(224), but for
    where the pixels of the resized image lie.

    Args:
        key: a random key.
        height, width: size of the image in pixels.
        area: of the box, as a share of the central square's area.

    Returns:
        int32 [4]: top, left, height, width.
    """
    central = min(height, width)
    side = round(math.sqrt(area) * central)
    u = jax.random.uniform(key, (2,), jnp.float32)
    offset = uniform_integer(u, jnp.int32(central - side + 1))
    corner = jnp.array([(height - central) // 2, (width - central) // 2], jnp.int32) + offset
    return jnp.concatenate([corner, jnp.array([side, side], jnp.int32)])


def crop_box_dalle(
    key: jax.Array, height: int, width: int, *, size: int, min_area: float, max_area: float
) -> jax.Array:
    """Draw a box of DALL-E's tokenizer (arXiv 2102.12092, listing 1), a square within any largest square.

    The listing resizes a largest square from s to t <= s pixels, and then cuts out `size` of them; here that
    comes first [X]. t is uniform, and areas are shares of s^2. The rest is as for `crop_box_byol`.
    """
    short = min(height, width)
    low, high = (min(short, squashed_side(size, area)) for area in (max_area, min_area))
    u = jax.random.uniform(key, (5,), jnp.float32)
    resized = low + uniform_integer(u[0], jnp.int32(high - low + 1))
    side = jnp.minimum(jnp.rint(short * size / resized).astype(jnp.int32), short)
    corner = uniform_integer(u[1:3], jnp.array([height, width], jnp.int32) - short + 1)
    corner = corner + uniform_integer(u[3:], short - side + 1)
    return jnp.stack([*corner, side, side])


def squashed_side(size: int, area: float) -> int:
    """The side that an image is resized to, before a square is cut out of it.

    Args:
        size: side of the square.
        area: of the square, as a share of the resized image: 260 of 300 pixels are (260 / 300)^2.
    """
    return round(size / math.sqrt(area))


def kernel(distance: jax.Array, method: str) -> jax.Array:
    """Evaluate the interpolation kernel at `distance` in pixels.

    "bilinear" is the tent, "bicubic" is Keys' cubic with a = -0.5 (TF2, Pillow, antialiased torch), and
    "lanczos3" is the sinc windowed by another that is three times as wide (TF2, Pillow's LANCZOS).
    """
    x = jnp.abs(distance)
    if method == "bilinear":
        return jnp.maximum(0.0, 1.0 - x)
    if method == "lanczos3":
        return jnp.where(x < 3.0, jnp.sinc(x) * jnp.sinc(x / 3.0), 0.0)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return jnp.where(x <= 1.0, near, jnp.where(x < 2.0, far, 0.0))


def interpolation(
    start: jax.Array, length: jax.Array, side: int, size: int, *, method: str, antialias: bool
) -> jax.Array:
    """Build the matrix that resizes a part of an axis, pixels [start, start + length), to `size` pixels.

    Pixels have half-pixel centres. Weights of pixels outside the part are dropped and the rest renormalised,
    as if the part had been cut out first.

    Args:
        start, length: the part of the axis, in pixels.
        side: length of the axis.
        size: length of the result.
        method: one of METHODS. "area" is the mean over the pixel of the result (TensorFlow's AREA).
        antialias: whether to stretch the kernel when the axis shrinks; the mean needs none.

    Returns:
        float32 [size, side].
    """
    start = jnp.asarray(start, jnp.float32)
    length = jnp.asarray(length, jnp.float32)
    scale = length / size
    centre = (start + (jnp.arange(size, dtype=jnp.float32) + 0.5) * scale)[:, None]
    pixel = (jnp.arange(side, dtype=jnp.float32) + 0.5)[None, :]
    if method == "area":  # how far the two pixels overlap
        weight = jnp.clip((scale + 1.0) / 2 - jnp.abs(centre - pixel), 0.0, jnp.minimum(scale, 1.0))
    else:
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
    """Cut a box out of an image and resize it.

    `method="bicubic"` matches `tf.image.resize(method="bicubic")`. With `antialias` it matches torchvision
    and Pillow. Bicubic results overshoot [0, 1]; the caller clips them.

    Args:
        image: float32 [H, W, C].
        box: int32 [4]: top, left, height, width.
        size: side of the result, or (height, width).
        method: one of METHODS.
        antialias: whether to antialias when the box shrinks.
        flip: whether to mirror the result left to right.

    Returns:
        float32 [size, size, C].

    Raises:
        ValueError: the method is unknown.
    """
    if method not in METHODS:
        raise ValueError(f"crop_resize: method={method!r} is unknown. Use one of {', '.join(METHODS)}.")
    rows, columns = (size, size) if isinstance(size, int) else size
    top, left, height, width = box
    y = interpolation(top, height, image.shape[0], rows, method=method, antialias=antialias)
    x = interpolation(left, width, image.shape[1], columns, method=method, antialias=antialias)
    x = jnp.where(flip, x[::-1], x)
    image = jnp.einsum("ij,jkc->ikc", y, image, precision="highest")
    return jnp.einsum("lk,ikc->ilc", x, image, precision="highest")


def affine_matrix(rotation: jax.Array, shift: jax.Array, zoom: jax.Array, shear: jax.Array) -> jax.Array:
    """Build the matrix that `affine` takes.

    Args:
        rotation: degrees, scalar.
        shift: [2], down and right, as a share of the side.
        zoom: scalar; 1 leaves the size as it is.
        shear: degrees, scalar.

    Returns:
        float32 [2, 3].
    """
    angle = jnp.deg2rad(rotation)
    slope = jnp.tan(jnp.deg2rad(shear))
    cos = jnp.cos(angle)
    sin = jnp.sin(angle)
    one = jnp.ones_like(slope)
    zero = jnp.zeros_like(slope)

    turn = jnp.stack([jnp.stack([cos, sin]), jnp.stack([-sin, cos])])
    lean = jnp.stack([jnp.stack([one, zero]), jnp.stack([slope, one])])
    linear = jnp.matmul(turn, lean, precision="highest") / zoom
    offset = -jnp.matmul(linear, shift[:, None], precision="highest")
    return jnp.concatenate([linear, offset], axis=1)


def affine(image: jax.Array, matrix: jax.Array, size: int | tuple[int, int]) -> jax.Array:
    """Warp an image by bilinear interpolation, with 0 outside the image.

    Args:
        image: float32 [H, W, C].
        matrix: float32 [2, 3], maps an output point (y, x, 1) to a source point. Coordinates are measured
            from the centre of the image, in units of its sides.
        size: side of the result, or (height, width).

    Returns:
        float32 [size, size, C].
    """
    height, width, _ = image.shape
    rows, columns = (size, size) if isinstance(size, int) else size
    y = ((jnp.arange(rows, dtype=jnp.float32) + 0.5) / rows - 0.5)[:, None]
    x = ((jnp.arange(columns, dtype=jnp.float32) + 0.5) / columns - 0.5)[None, :]

    source_y = (matrix[0, 0] * y + matrix[0, 1] * x + matrix[0, 2] + 0.5) * height - 0.5
    source_x = (matrix[1, 0] * y + matrix[1, 1] * x + matrix[1, 2] + 0.5) * width - 0.5
    top = jnp.floor(source_y)
    left = jnp.floor(source_x)

    out = jnp.zeros((rows, columns, image.shape[2]), jnp.float32)
    for j, k in ((top, left), (top, left + 1.0), (top + 1.0, left), (top + 1.0, left + 1.0)):
        weight = kernel(source_y - j, "bilinear") * kernel(source_x - k, "bilinear")
        within = (j >= 0.0) & (j < height) & (k >= 0.0) & (k < width)
        weight = jnp.where(within, weight, 0.0)
        neighbour = image.at[j.astype(jnp.int32), k.astype(jnp.int32)].get(mode="clip")
        out = out + weight[..., None] * neighbour
    return out
