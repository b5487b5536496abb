"""RandAugment as Noisy Student's code has it (google-research/noisystudent, randaugment.py), on the device.

    crop -> flip -> whole numbers 0..255 -> `policy_ops` operations -> normalise

Sixteen operations, drawn evenly and with replacement; each is always applied. One magnitude M for all of
them, which is not capped at 10. An image is a float32 array of whole numbers 0..255, the uint8 of TensorFlow.

The operations are TensorFlow 1's, and at large M those differ from Pillow's:
- Contrast blends towards H W / 256, at most 255, because the code averages the counts of the histogram.
- Solarize's threshold is 25.6 M modulo 256, because uint8 wraps: at M = 27 it is 179 and not "never".
- Posterize keeps one bit from M = 22.5 on, because a negative shift wraps and the kernel clamps it to 7.
- Geometric operations take the nearest pixel and fill with 128; translations are in pixels at every size.

Histograms and tables of 256 entries are matrix products of 16 x 16, which suit a TPU better than scatter and
gather; a CPU takes those. Every operation is computed for every image, and the drawn one is kept.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

NAMES = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "SolarizeAdd",
    "Cutout",
)
FILL = 128.0  # grey, of pixels that a geometric operation or Cutout leaves empty
GREY = (0.2989, 0.5870, 0.1140)  # TensorFlow's weights of red, green and blue


class Arguments(NamedTuple):
    """What the operations take at one magnitude, without the random signs.

    Attributes:
        rotate: degrees.
        shear: share of the side.
        translate: pixels.
        enhance: factor of Color, Contrast, Brightness and Sharpness; 1 changes nothing.
        bits: that Posterize keeps.
        solarize: from this value on pixels are inverted.
        add: what SolarizeAdd adds to pixels below 128.
        cutout: half the side of the box.
    """

    rotate: float
    shear: float
    translate: float
    enhance: float
    bits: int
    solarize: int
    add: int
    cutout: int


def arguments(magnitude: float, *, translate: int = 100, cutout: int = 40) -> Arguments:
    """The arguments at a magnitude, as TensorFlow's uint8 arithmetic uses them.

    Args:
        magnitude: M; 10 is the strongest of the paper's operations, and larger ones go on.
        translate: pixels of a translation at magnitude 10.
        cutout: half the side of Cutout's box at magnitude 10.
    """
    level = magnitude / 10.0
    shift = 8 - int(level * 4)
    wrapped = shift % 256  # a uint8
    return Arguments(
        rotate=level * 30.0,
        shear=level * 0.3,
        translate=level * translate,
        enhance=level * 1.8 + 0.1,
        bits=8 - min(wrapped, 7),
        solarize=int(level * 256) % 256,
        add=int(level * 110),
        cutout=int(level * cutout),
    )


# ----------------------------------------------------------------------------------------------- operations


def truncated(image: jax.Array) -> jax.Array:
    """Clip to [0, 255] and cut to whole numbers, as a cast to uint8 does."""
    return jnp.floor(jnp.clip(image, 0.0, 255.0))


def blend(degenerate: jax.typing.ArrayLike, image: jax.Array, factor: float | jax.Array) -> jax.Array:
    """`degenerate` at factor 0, `image` at factor 1, and on beyond."""
    start = jnp.asarray(degenerate, jnp.float32)
    return truncated(start + factor * (image - start))


def autocontrast(image: jax.Array) -> jax.Array:
    """Stretch every channel to 0..255."""
    low = image.min((0, 1), keepdims=True)
    high = image.max((0, 1), keepdims=True)
    scale = 255.0 / jnp.maximum(high - low, 1.0)
    return jnp.where(high > low, truncated(image * scale - low * scale), image)


def equalize(image: jax.Array) -> jax.Array:
    """Equalise the histogram of every channel, as Pillow does."""
    return jax.vmap(_equalized, in_axes=2, out_axes=2)(image)


def _equalized(channel: jax.Array) -> jax.Array:
    """`equalize` for one channel [H, W]."""
    value = channel.astype(jnp.int32).ravel()
    counts = jax.lax.platform_dependent(value, cpu=_counts_by_scatter, default=_counts_by_product)
    brightest = 255 - jnp.argmax(counts[::-1] > 0)
    step = (counts.sum(dtype=jnp.int32) - counts[brightest]) // 255
    below = jnp.cumsum(counts, dtype=jnp.int32) - counts  # pixels darker than each value
    table = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255)
    table = jnp.where(jnp.arange(256) == 0, 0, table).astype(jnp.float32)
    found = jax.lax.platform_dependent(value, table, cpu=_read_by_gather, default=_read_by_product)
    return jnp.where(step > 0, found.reshape(channel.shape), channel)


def _digits(value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The higher and the lower four bits of every value, one-hot: two [N, 16]."""
    high = jax.nn.one_hot(value // 16, 16, dtype=jnp.float32)
    return high, jax.nn.one_hot(value % 16, 16, dtype=jnp.float32)


def _counts_by_product(value: jax.Array) -> jax.Array:
    """How often each of the 256 values occurs, int32 [256]."""
    high, low = _digits(value)
    return jnp.matmul(high.T, low, precision="highest").ravel().astype(jnp.int32)


def _counts_by_scatter(value: jax.Array) -> jax.Array:
    return jnp.zeros(256, jnp.int32).at[value].add(1)


def _read_by_product(value: jax.Array, table: jax.Array) -> jax.Array:
    """The entry of a table [256] at every value, [N]."""
    high, low = _digits(value)
    return (jnp.matmul(high, table.reshape(16, 16), precision="highest") * low).sum(1)


def _read_by_gather(value: jax.Array, table: jax.Array) -> jax.Array:
    return table[value]


def grey(image: jax.Array) -> jax.Array:
    """TensorFlow's grey level of a uint8 image, [H, W, 1]."""
    if image.shape[2] == 1:
        return image
    weights = jnp.array(GREY, jnp.float32)[None, None]
    mixed = (image * (1.0 / 255.0) * weights).sum(2, keepdims=True)
    return jnp.floor(mixed * 255.5)


def contrast(image: jax.Array, factor: float) -> jax.Array:
    """Blend with a constant that is the number of pixels by 256: the mean count of the histogram."""
    height, width, _ = image.shape
    return blend(float(min(height * width // 256, 255)), image, factor)


def posterize(image: jax.Array, bits: int) -> jax.Array:
    """Keep the highest bits of every value."""
    unit = float(2 ** (8 - bits))
    return jnp.floor(image / unit) * unit


def solarize(image: jax.Array, threshold: int) -> jax.Array:
    """Invert the values from the threshold on."""
    return jnp.where(image < threshold, image, 255.0 - image)


def solarize_add(image: jax.Array, addition: int) -> jax.Array:
    """Brighten the values below 128."""
    return jnp.where(image < 128.0, jnp.clip(image + addition, 0.0, 255.0), image)


def sharpness(image: jax.Array, factor: float | jax.Array) -> jax.Array:
    """Blend with a smoothed image; the border is kept."""
    height, width, _ = image.shape
    around = sum(
        image[i : height - 2 + i, j : width - 2 + j] * (5.0 if i == j == 1 else 1.0)
        for i in range(3)
        for j in range(3)
    )
    smooth = truncated(jnp.asarray(around) / 13.0)
    return blend(image.at[1:-1, 1:-1].set(smooth), image, factor)


def transform(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """Warp by the nearest pixel, as `tf.contrib.image.transform` does, and fill with grey.

    Args:
        image: [H, W, C].
        matrix: [2, 3], from an output point (x, y, 1) in pixels to a point of the image.
    """
    height, width, _ = image.shape
    y, x = jnp.meshgrid(
        jnp.arange(height, dtype=jnp.float32), jnp.arange(width, dtype=jnp.float32), indexing="ij"
    )
    from_x = _rounded(matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2])
    from_y = _rounded(matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2])
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    found = image.at[from_y.astype(jnp.int32), from_x.astype(jnp.int32)].get(mode="clip")
    return jnp.where(inside[..., None], found, FILL)


def _rounded(x: jax.Array) -> jax.Array:
    """Round to the nearest whole number, halves away from 0, as C++ does."""
    return jnp.sign(x) * jnp.floor(jnp.abs(x) + 0.5)


def rotation(degrees: jax.Array, height: int, width: int) -> jax.Array:
    """The matrix of a rotation about the centre, for `transform`."""
    angle = jnp.deg2rad(degrees)
    cos = jnp.cos(angle)
    sin = jnp.sin(angle)
    right = width - 1.0
    bottom = height - 1.0
    offset_x = (right - (cos * right - sin * bottom)) / 2.0
    offset_y = (bottom - (sin * right + cos * bottom)) / 2.0
    return jnp.stack([jnp.stack([cos, -sin, offset_x]), jnp.stack([sin, cos, offset_y])])


def cutout(image: jax.Array, centre: jax.Array, half: int) -> jax.Array:
    """Fill a box with grey: [centre - half, centre + half) on both axes, cut at the border.

    Args:
        image: [H, W, C].
        centre: int32 [2], row and column.
        half: half the side of the box.
    """
    rows = jnp.arange(image.shape[0])
    columns = jnp.arange(image.shape[1])
    in_rows = (rows >= centre[0] - half) & (rows < centre[0] + half)
    in_columns = (columns >= centre[1] - half) & (columns < centre[1] + half)
    return jnp.where((in_rows[:, None] & in_columns[None])[..., None], FILL, image)


# ---------------------------------------------------------------------------------------------------- policy


def apply(name: str, image: jax.Array, a: Arguments, sign: jax.Array, centre: jax.Array) -> jax.Array:
    """Apply one operation to one image.

    Args:
        name: one of NAMES.
        image: whole numbers 0..255, float32 [H, W, C].
        a: the arguments of all operations.
        sign: 1 or -1, the direction of a geometric operation.
        centre: int32 [2], the centre of Cutout's box.

    Returns:
        As `image`.
    """
    height, width, _ = image.shape
    one = jnp.float32(1.0)
    none = jnp.float32(0.0)
    if name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"):
        shear = sign * a.shear
        pixels = sign * a.translate
        matrices = {
            "Rotate": rotation(sign * a.rotate, height, width),
            "ShearX": jnp.array([[one, shear, none], [none, one, none]]),
            "ShearY": jnp.array([[one, none, none], [shear, one, none]]),
            "TranslateX": jnp.array([[one, none, pixels], [none, one, none]]),
            "TranslateY": jnp.array([[one, none, none], [none, one, pixels]]),
        }
        return transform(image, matrices[name])
    operations = {
        "AutoContrast": lambda: autocontrast(image),
        "Equalize": lambda: equalize(image),
        "Invert": lambda: 255.0 - image,
        "Posterize": lambda: posterize(image, a.bits),
        "Solarize": lambda: solarize(image, a.solarize),
        "Color": lambda: blend(grey(image), image, a.enhance),
        "Contrast": lambda: contrast(image, a.enhance),
        "Brightness": lambda: blend(0.0, image, a.enhance),
        "Sharpness": lambda: sharpness(image, a.enhance),
        "SolarizeAdd": lambda: solarize_add(image, a.add),
        "Cutout": lambda: cutout(image, centre, a.cutout),
    }
    return operations[name]()


def randaugment(image: jax.Array, key: jax.Array, a: Arguments, *, ops: int) -> jax.Array:
    """Apply `ops` operations, drawn evenly and with replacement.

    Args:
        image: float32 [H, W, C] in [0, 1].
        key: determines the operations, their directions and Cutout's place.
        a: the arguments at the policy's magnitude.
        ops: how many operations.

    Returns:
        float32 [H, W, C] in [0, 1].
    """
    image = jnp.floor(image * 255.0 + 1e-3)  # of a uint8 crop the whole number itself
    for number in range(ops):
        image = _one(image, jax.random.fold_in(key, number), a)
    return image / 255.0


def _one(image: jax.Array, key: jax.Array, a: Arguments) -> jax.Array:
    """One drawn operation, on whole numbers 0..255."""
    which, turn, place = jax.random.split(key, 3)
    sign = jnp.where(jax.random.bernoulli(turn), 1.0, -1.0)
    centre = jax.random.randint(place, (2,), 0, jnp.array(image.shape[:2]))
    branches = [lambda image, name=name: apply(name, image, a, sign, centre) for name in NAMES]
    return jax.lax.switch(jax.random.randint(which, (), 0, len(NAMES)), branches, image)
