"""The operations on patches of CPC v2: pure functions of one image and of numbers drawn in `data.patches`.

- AutoAugment's sixteen operations on whole numbers 0..255, at a level in [0, 1] of their range (Cubuk et al.,
  arXiv 1805.09501). Ranges in pixels were made for images of 331 pixels and shrink with the patch.
- De Fauw's colour histograms and elastic deformations (deepmind/multidim-image-augmentation at bcb44ba): a
  random rising lookup table per channel, and a smooth random field of offsets with a shear.
- Inception's colours (tensorflow/models, slim/preprocessing/inception_preprocessing.py, `distort_color`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from ssljax.data import randaugment
from ssljax.data.augment import clip, contrast, hsv_shift, planes

# ---------------------------------------------------------------------------------- AutoAugment's operations

GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
NAMES = (
    *GEOMETRIC,
    "AutoContrast",
    "Invert",
    "Equalize",
    "Solarize",
    "Posterize",
    "Contrast",
    "Color",
    "Brightness",
    "Sharpness",
    "Cutout",
    "SamplePairing",
)
MADE_FOR = 331  # pixels of the images that AutoAugment's ranges were chosen for


def names(channels: int) -> tuple[str, ...]:
    """The operations for images of so many channels: a grey image has no colour to change."""
    return NAMES if channels == 3 else tuple(name for name in NAMES if name != "Color")


def matrices(level: jax.Array, sign: jax.Array, side: int) -> dict[str, jax.Array]:
    """For `randaugment.transform`: a shear of .3, 150 pixels of 331, 30 degrees, all times the level."""
    one = jnp.float32(1.0)
    none = jnp.float32(0.0)
    shear = sign * 0.3 * level
    pixels = sign * level * (150.0 * side / MADE_FOR)
    return {
        "ShearX": jnp.array([[one, shear, none], [none, one, none]]),
        "ShearY": jnp.array([[one, none, none], [shear, one, none]]),
        "TranslateX": jnp.array([[one, none, pixels], [none, one, none]]),
        "TranslateY": jnp.array([[one, none, none], [none, one, pixels]]),
        "Rotate": randaugment.rotation(sign * 30.0 * level, side, side),
    }


def operation(
    name: str, image: jax.Array, other: jax.Array, level: jax.Array, sign: jax.Array, centre: jax.Array
) -> jax.Array:
    """Apply one of AutoAugment's operations that is not geometric, or all geometric ones by their matrix.

    Args:
        name: one of NAMES.
        image: whole numbers 0..255, float32 [S, S, C].
        other: another image, for SamplePairing.
        level: in [0, 1], where in the operation's range.
        sign: 1 or -1, the direction of a geometric operation.
        centre: int32 [2], the centre of Cutout's box.

    Returns:
        As `image`.
    """
    side = image.shape[0]
    if name in GEOMETRIC:
        return randaugment.transform(image, matrices(level, sign, side)[name])
    factor = 0.1 + 1.8 * level
    operations = {
        "AutoContrast": lambda: randaugment.autocontrast(image),
        "Invert": lambda: 255.0 - image,
        "Equalize": lambda: randaugment.equalize(image),
        "Solarize": lambda: jnp.where(image < 256.0 * level, image, 255.0 - image),
        "Posterize": lambda: posterize(image, jnp.floor(4.0 + 5.0 * level)),
        "Contrast": lambda: randaugment.blend(jnp.rint(randaugment.grey(image).mean()), image, factor),
        "Color": lambda: randaugment.blend(randaugment.grey(image), image, factor),
        "Brightness": lambda: randaugment.blend(0.0, image, factor),
        "Sharpness": lambda: randaugment.sharpness(image, factor),
        "Cutout": lambda: cutout(image, centre, level * (30.0 * side / MADE_FOR)),
        "SamplePairing": lambda: randaugment.blend(image, other, 0.4 * level),
    }
    return operations[name]()


def posterize(image: jax.Array, bits: jax.Array) -> jax.Array:
    """Keep the highest 4 to 8 bits of every value."""
    unit = jnp.exp2(8.0 - jnp.minimum(bits, 8.0))
    return jnp.floor(image / unit) * unit


def cutout(image: jax.Array, centre: jax.Array, half: jax.Array) -> jax.Array:
    """Fill a box about a pixel with grey; `half` its side need not be whole."""
    pixel = jnp.arange(image.shape[0], dtype=jnp.float32)
    middle = centre.astype(jnp.float32)
    rows = (pixel >= middle[0] - half) & (pixel < middle[0] + half)
    columns = (pixel >= middle[1] - half) & (pixel < middle[1] + half)
    return jnp.where((rows[:, None] & columns[None])[..., None], randaugment.FILL, image)


def drawn_operation(
    which: jax.Array,
    image: jax.Array,
    other: jax.Array,
    level: jax.Array,
    sign: jax.Array,
    centre: jax.Array,
) -> jax.Array:
    """`operation` of a name that is drawn: number `which` of `names`.

    Under `vmap` every branch is computed for every image, so the geometric operations share one warp.
    """
    side = image.shape[0]
    known = names(image.shape[-1])
    of = matrices(level, sign, side)
    matrix = jnp.stack([of[name] for name in GEOMETRIC])[jnp.minimum(which, len(GEOMETRIC) - 1)]
    branches: list[Callable[[], jax.Array]] = [lambda: randaugment.transform(image, matrix)]
    for name in known[len(GEOMETRIC) :]:
        branches.append(partial(operation, name, image, other, level, sign, centre))
    return jax.lax.switch(jnp.maximum(which - len(GEOMETRIC) + 1, 0), branches)


# -------------------------------------------------------------------------------- histograms and deformations


def cubic(x: jax.Array) -> jax.Array:
    """The cubic B-spline at a distance in units of the spacing of its control points."""
    x = jnp.abs(x)
    near = 2.0 / 3.0 - x * x + 0.5 * x * x * x
    far = jnp.maximum(2.0 - x, 0.0) ** 3 / 6.0
    return jnp.where(x < 1.0, near, far)


def control_points(u: jax.Array, slopes: tuple[float, float], ends: float) -> jax.Array:
    """Draw the five control points of a rising lookup table on [0, 1].

    The ends come first, then the middle, then the quarters. Each lies so that the slopes to both neighbours
    stay within their bounds.

    Args:
        u: [5], uniform in [0, 1).
        slopes: smallest and largest slope.
        ends: the value at 0 is within `ends` of 0, and that at 1 within `ends` of 1.

    Returns:
        float32 [5], the values at 0, 1/4, ..., 1.
    """
    low, high = slopes

    def between(left: jax.Array, right: jax.Array, dx: float, u: jax.Array) -> jax.Array:
        bottom = jnp.maximum(left + low * dx, right - high * dx)
        top = jnp.minimum(left + high * dx, right - low * dx)
        return bottom + u * (top - bottom)

    black = ends * (2.0 * u[0] - 1.0)
    white = 1.0 + ends * (2.0 * u[1] - 1.0)
    middle = between(black, white, 0.5, u[2])
    first = between(black, middle, 0.25, u[3])
    third = between(middle, white, 0.25, u[4])
    return jnp.stack([black, first, middle, third, white])


def look_up(channel: jax.Array, points: jax.Array) -> jax.Array:
    """Read the smooth function of five control points at every value in [0, 1].

    It is the cubic B-spline of the points, which are continued in a straight line at both ends.
    """
    before = 2.0 * points[:1] - points[1:2]
    after = 2.0 * points[-1:] - points[-2:-1]
    points = jnp.concatenate([before, points, after])
    x = 4.0 * channel
    return sum((cubic(x - (k - 1.0)) * points[k] for k in range(7)), jnp.zeros_like(channel))


def histogram(image: jax.Array, points: jax.Array) -> jax.Array:
    """Change the colour histogram: every channel has a lookup table of its own, [C, 5]. Clipped."""
    channels = [look_up(image[..., c], points[c]) for c in range(image.shape[-1])]
    return clip(jnp.stack(channels, axis=-1))


def field_shape(side: int, spacing: float) -> int:
    """How many control points cover one axis; `spacing` is a share of the side."""
    return math.floor((side - 1) / (spacing * side)) + 4


def deform(image: jax.Array, offsets: jax.Array, shear: jax.Array, *, spacing: float) -> jax.Array:
    """Warp an image by a smooth field of offsets and a shear about its centre.

    Args:
        image: float32 [S, S, C].
        offsets: [2, K, K], down and right, in pixels, at control points; K = `field_shape(S, spacing)`.
        shear: [2]; the matrix is [[1, shear[0]], [shear[1], 1]].
        spacing: of the control points, as a share of the side.

    Returns:
        float32 [S, S, C], by bilinear interpolation; outside of the image the nearest pixel of its edge.
    """
    side = image.shape[0]
    pixel = jnp.arange(side, dtype=jnp.float32)
    point = jnp.arange(offsets.shape[1], dtype=jnp.float32) - 1.0
    basis = cubic(pixel[:, None] / (spacing * side) - point[None])
    field = jnp.einsum("ij,ajk,lk->ail", basis, offsets, basis, precision="highest")
    y = pixel[:, None] - (side - 1) / 2
    x = pixel[None, :] - (side - 1) / 2
    from_y = jnp.clip(y + shear[0] * x + field[0] + (side - 1) / 2, 0.0, side - 1.0)
    from_x = jnp.clip(shear[1] * y + x + field[1] + (side - 1) / 2, 0.0, side - 1.0)

    top = jnp.floor(from_y)
    left = jnp.floor(from_x)
    down = (from_y - top)[..., None]
    right = (from_x - left)[..., None]
    i = top.astype(jnp.int32)
    j = left.astype(jnp.int32)
    below = jnp.minimum(i + 1, side - 1)
    beside = jnp.minimum(j + 1, side - 1)
    upper = image[i, j] * (1.0 - right) + image[i, beside] * right
    lower = image[below, j] * (1.0 - right) + image[below, beside] * right
    return upper * (1.0 - down) + lower * down


# --------------------------------------------------------------------------------------- Inception's colours

# Brightness, saturation, hue and contrast, and the place of each of the four in each order.
ORDERS = ("BSHC", "SBCH", "CHBS", "HSCB")
RANKS = tuple(tuple(order.index(letter) for letter in "BSHC") for order in ORDERS)


def distort_color(
    image: jax.Array,
    order: jax.Array,
    *,
    brightness: jax.Array,
    saturation: jax.Array,
    hue: jax.Array,
    contrast_factor: jax.Array,
) -> jax.Array:
    """Change the colours as Inception's training does: one of four fixed orders, clipped once, at the end.

    A grey image has neither saturation nor hue.

    Args:
        image: float32 [H, W, C] in [0, 1].
        order: which of ORDERS.
        brightness: is added.
        saturation: a factor.
        hue: in turns.
        contrast_factor: of the distances to the mean of each channel.

    Returns:
        float32 [H, W, C] in [0, 1].
    """
    rank = jnp.asarray(RANKS, jnp.int32)[order]

    def at(place: jax.Array, image: jax.Array) -> jax.Array:
        turn = rank == place
        image = image + jnp.where(turn[0], brightness, 0.0)
        image = contrast(image, jnp.where(turn[3], contrast_factor, 1.0))
        if image.shape[-1] == 1:
            return image
        colours = planes(image)
        # `hsv_shift` takes the saturation of a colour to be at most 1. To turn the hue of one with a negative
        # component, a grey is added before and taken away after.
        grey = jnp.minimum(jnp.minimum(*colours[:2]), colours[2])
        grey = jnp.where(turn[1], 0.0, jnp.minimum(grey, 0.0))
        changed = hsv_shift(
            *(colour - grey for colour in colours),
            factor=jnp.where(turn[1], saturation, 1.0),
            delta=jnp.where(turn[2], hue, 0.0),
        )
        return jnp.stack([colour + grey for colour in changed], axis=-1)

    return clip(jax.lax.fori_loop(0, 4, at, image))
