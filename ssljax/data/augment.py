"""Pure operations on one float32 image [H, W, C] in [0, 1]; random numbers are drawn in `data.views`.

Operations with a plain name follow TensorFlow, which SimCLR's released code calls (google-research/simclr,
tf2/data_util.py). Those named `*_torchvision` follow torchvision, where its formula differs. Operations do
not clip their result; the caller does.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssljax.data.colours import rgb_to_lab as rgb_to_lab  # an operation like those below

LUMA = (0.2989, 0.5870, 0.1140)  # tf.image.rgb_to_grayscale; the sum is 0.9999


# ----------------------------------------------------------------------------------------------- operations


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiply by a factor, as in torchvision and in the `simclrv2` form of SimCLR's released code."""
    return image * factor


def brightness_add(image: jax.Array, delta: jax.Array) -> jax.Array:
    """Add a constant, as in the SimCLR paper (`tf.image.adjust_brightness`)."""
    return image + delta


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Scale the distance from the mean of each channel (`tf.image.adjust_contrast`)."""
    return image * factor + image.mean((0, 1), keepdims=True) * (1.0 - factor)


def contrast_torchvision(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Scale the distance from one mean for all channels, that of the grey image."""
    return image * factor + grayscale(image).mean() * (1.0 - factor)


def saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Scale the S of HSV (`tf.image.adjust_saturation`). `image` has shape [H, W, 3]."""
    return jnp.stack(hsv_shift(*planes(image), factor=factor, delta=0.0), axis=-1)


def saturation_torchvision(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with the grey image."""
    return image * factor + grayscale(image) * (1.0 - factor)


def hue(image: jax.Array, delta: jax.Array) -> jax.Array:
    """Rotate the H of HSV by `delta` full turns (`adjust_hue` of tf.image and of torchvision).

    `image` has shape [H, W, 3].
    """
    return jnp.stack(hsv_shift(*planes(image), factor=1.0, delta=delta), axis=-1)


def grayscale(image: jax.Array) -> jax.Array:
    """Set every channel to the luma. A one-channel image is returned as it is."""
    if image.shape[-1] == 1:
        return image
    r, g, b = planes(image)
    return jnp.broadcast_to(luma(r, g, b)[..., None], image.shape)


def gaussian_blur(
    image: jax.Array, sigma: jax.Array, *, kernel_size: int, padding: str = "zero"
) -> jax.Array:
    """Blur with a separable Gaussian of 2*(kernel_size//2)+1 taps.

    Args:
        image: float32 [H, W, C].
        sigma: standard deviation in pixels.
        kernel_size: number of taps; an even number counts as the next odd one.
        padding: "zero" as in SimCLR, where the kernel is not renormalised and borders darken, or "reflect" as
            in torchvision.

    Returns:
        float32 [H, W, C].

    Raises:
        ValueError: the padding is unknown, or the kernel is too large to reflect.
    """
    rows = blur_matrix(image.shape[0], sigma, kernel_size, padding)
    columns = blur_matrix(image.shape[1], sigma, kernel_size, padding)
    image = jnp.einsum("ij,jkc->ikc", rows, image, precision="highest")
    return jnp.einsum("lk,ikc->ilc", columns, image, precision="highest")


def pillow_blur(image: jax.Array, sigma: jax.Array) -> jax.Array:
    """Blur as Pillow's `ImageFilter.GaussianBlur`: three box blurs, each of which repeats the border.

    Pillow also rounds to whole grey levels after each of them, which this does not.

    Args:
        image: float32 [H, W, C].
        sigma: standard deviation in pixels, Pillow's `radius`.

    Returns:
        float32 [H, W, C].
    """
    rows = pillow_blur_matrix(image.shape[0], sigma)
    columns = pillow_blur_matrix(image.shape[1], sigma)
    image = jnp.einsum("ij,jkc->ikc", rows, image, precision="highest")
    return jnp.einsum("lk,ikc->ilc", columns, image, precision="highest")


def solarize(image: jax.Array, threshold: jax.Array) -> jax.Array:
    """Invert the pixels at or above the threshold."""
    return jnp.where(image < threshold, image, 1.0 - image)


def normalize(image: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Subtract the mean of each channel and divide by its standard deviation. One number counts for all."""
    shape = (1, 1, -1)
    centred = image - jnp.asarray(mean, jnp.float32).reshape(shape)
    return centred / jnp.asarray(std, jnp.float32).reshape(shape)


def clip(image: jax.Array) -> jax.Array:
    """Clip to [0, 1]."""
    return jnp.clip(image, 0.0, 1.0)


# ------------------------------------------------------------------------------------------ building blocks


def planes(image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Split into red, green and blue [H, W].

    Arithmetic on planes fills the vector registers; on interleaved channels it does not.
    """
    return image[..., 0], image[..., 1], image[..., 2]


def luma(r: jax.Array, g: jax.Array, b: jax.Array) -> jax.Array:
    """Return the grey level of each pixel."""
    return LUMA[0] * r + LUMA[1] * g + LUMA[2] * b


def hsv_shift(
    r: jax.Array, g: jax.Array, b: jax.Array, *, factor: jax.Array | float, delta: jax.Array | float
) -> tuple[jax.Array, ...]:
    """Change hue and saturation: RGB -> HSV -> (H + delta mod 1, S * factor clipped to [0, 1]) -> RGB.

    S = C / V is never computed. The chroma C = max - min takes its place: S * factor clipped at 1 becomes
    C' = min(C * factor, V).
    """
    value = jnp.maximum(jnp.maximum(r, g), b)
    chroma = value - jnp.minimum(jnp.minimum(r, g), b)
    over = 1.0 / jnp.where(chroma > 0.0, chroma, 1.0)

    # The hue in sixths of a turn: 0 at red, 2 at green, 4 at blue.
    from_red = (g - b) * over
    from_green = 2.0 + (b - r) * over
    from_blue = 4.0 + (r - g) * over
    sixth = jnp.where(r == value, from_red, jnp.where(g == value, from_green, from_blue))
    sixth = sixth + 6.0 * delta
    sixth = sixth - 6.0 * jnp.floor(sixth / 6.0)

    chroma = jnp.clip(chroma * factor, 0.0, value)
    low = value - chroma
    red = low + chroma * clip(jnp.abs(sixth - 3.0) - 1.0)
    green = low + chroma * clip(2.0 - jnp.abs(sixth - 2.0))
    blue = low + chroma * clip(2.0 - jnp.abs(sixth - 4.0))
    return red, green, blue


def blur_matrix(side: int, sigma: jax.Array, kernel_size: int, padding: str) -> jax.Array:
    """Build the banded matrix [side, side] that blurs along one axis.

    A matmul is used because grouped convolutions are slow on CPU and TPU alike.
    """
    radius = kernel_size // 2
    taps = gaussian(jnp.arange(-radius, radius + 1), sigma)
    target = jnp.arange(side)[:, None]
    origin = jnp.arange(side)[None, :]

    def band(distance: jax.Array) -> jax.Array:
        return jnp.where(jnp.abs(distance) <= radius, gaussian(distance, sigma) / taps.sum(), 0.0)

    if padding == "zero":
        return band(target - origin)
    if padding != "reflect":
        raise ValueError(
            f"gaussian_blur: padding={padding!r} is unknown. Use 'zero' (SimCLR) or 'reflect' (torchvision)."
        )
    if radius >= side:
        raise ValueError(
            f"gaussian_blur: kernel_size={kernel_size} reaches {radius} pixels beyond the border, and an "
            f"image of side {side} is too small to reflect that far. Use a smaller kernel or padding='zero'."
        )
    # A border pixel is its own mirror image and must not count twice.
    first = origin == 0
    last = origin == side - 1
    direct = band(target - origin)
    before = jnp.where(first, 0.0, band(target + origin))
    after = jnp.where(last, 0.0, band(target - (2 * (side - 1) - origin)))
    return direct + before + after


def pillow_blur_matrix(side: int, sigma: jax.Array) -> jax.Array:
    """Build the matrix [side, side] of Pillow's blur along one axis (BoxBlur.c, `ImagingGaussianBlur`).

    A box reaches `whole` pixels to each side with one weight, and one pixel further with a part of it. Both
    follow from the variance of a box, a third of the blur's.
    """
    variance = sigma**2 / 3.0
    whole = jnp.floor((jnp.sqrt(12.0 * variance + 1.0) - 1.0) / 2.0)
    part = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance)
    part = part / (6.0 * (variance - (whole + 1.0) ** 2))
    weight = 1.0 / (2.0 * (whole + part) + 1.0)

    target = jnp.arange(side, dtype=jnp.float32)[:, None]
    origin = jnp.arange(side, dtype=jnp.float32)[None, :]
    distance = jnp.abs(target - origin)
    inner = jnp.where(distance <= whole, weight, 0.0)
    outer = jnp.where(distance == whole + 1.0, weight * part, 0.0)
    # A border pixel also has the weights of its repetitions, all that lie as far as it or further.
    repeated = weight * jnp.maximum(whole - distance + 1.0, 0.0)
    repeated = repeated + jnp.where(distance <= whole + 1.0, weight * part, 0.0)
    border = (origin == 0.0) | (origin == side - 1.0)
    box = jnp.where(border, repeated, inner + outer)
    twice = jnp.matmul(box, box, precision="highest")
    return jnp.matmul(twice, box, precision="highest")


def gaussian(distance: jax.Array, sigma: jax.Array) -> jax.Array:
    """Return exp(-d^2 / (2 sigma^2)) for an integer distance d."""
    return jnp.exp(-(distance.astype(jnp.float32) ** 2) / (2.0 * sigma**2))


def blur_kernel_size(side: int) -> int:
    """SimCLR's kernel size, a tenth of the image: 23 at 224, 9 at 96 (tf2/data_util.py, `random_blur`)."""
    return 2 * int((side // 10) / 2) + 1


def to_float(image: jax.Array) -> jax.Array:
    """Convert uint8 in [0, 255] or float in [0, 1] to float32 in [0, 1]."""
    if image.dtype == jnp.uint8:
        return image.astype(jnp.float32) / 255.0
    return image.astype(jnp.float32)


# -------------------------------------------------------------------------------------------- colour jitter


class Jitter(NamedTuple):
    """Parameters of the colour jitter.

    Attributes:
        brightness, contrast, saturation, hue: float32 scalars.
        rank: int32 [4], the place in the order of each of the four operations, as listed here.
    """

    brightness: jax.Array
    contrast: jax.Array
    saturation: jax.Array
    hue: jax.Array
    rank: jax.Array


def color_jitter(image: jax.Array, jitter: Jitter, *, additive: bool = False) -> jax.Array:
    """Apply brightness, contrast, saturation and hue in the order of `jitter.rank`, clipping after each.

    All four operations run at each place of the order, with neutral parameters unless it is their turn.
    Brightness and contrast are both x * a + b; saturation and hue share one pass through HSV. One-channel
    images have no saturation and no hue.

    Args:
        image: float32 [H, W, C] in [0, 1].
        jitter: the parameters.
        additive: whether brightness adds (`brightness_add`) instead of multiplying.

    Returns:
        float32 [H, W, C] in [0, 1].
    """
    neutral = 0.0 if additive else 1.0
    x: tuple[jax.Array, ...] = planes(image) if image.shape[-1] == 3 else (image[..., 0],)
    for place in range(4):
        turn = jitter.rank == place
        light = jnp.where(turn[0], jitter.brightness, neutral)
        scale = jnp.where(turn[1], jitter.contrast, 1.0)
        multiply = scale if additive else light * scale
        add = light if additive else 0.0
        x = tuple(clip(c * multiply + (c.mean() * (1.0 - scale) + add)) for c in x)
        if len(x) == 3:
            factor = jnp.where(turn[2], jitter.saturation, 1.0)
            delta = jnp.where(turn[3], jitter.hue, 0.0)
            x = hsv_shift(*x, factor=factor, delta=delta)
    return jnp.stack(x, axis=-1)


def color_jitter_torchvision(image: jax.Array, jitter: Jitter) -> jax.Array:
    """Apply torchvision's `ColorJitter`, whose contrast and saturation blend with grey.

    As in `color_jitter`, all four operations run at each place of the order. Brightness multiplies.
    Brightness, contrast and saturation together are one blend of the pixel, its grey level and the mean grey
    level of the image.

    Args:
        image: float32 [H, W, C] in [0, 1].
        jitter: the parameters.

    Returns:
        float32 [H, W, C] in [0, 1].
    """
    x: tuple[jax.Array, ...] = planes(image) if image.shape[-1] == 3 else (image[..., 0],)
    colour = len(x) == 3

    def at(place: jax.Array, x: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        turn = jitter.rank == place
        light = jnp.where(turn[0], jitter.brightness, 1.0)
        scale = jnp.where(turn[1], jitter.contrast, 1.0)
        keep = jnp.where(turn[2], jitter.saturation, 1.0) if colour else 1.0
        grey = luma(*x) if colour else x[0]
        add = grey.mean() * (1.0 - scale) + grey * (1.0 - keep)
        x = tuple(clip(c * (light * scale * keep) + add) for c in x)
        if not colour:
            return x
        return hsv_shift(*x, factor=1.0, delta=jnp.where(turn[3], jitter.hue, 0.0))

    # A loop, because XLA would otherwise compute earlier places anew for every use of later ones: 13 s
    # instead of 9 ms for two views of 64 images of 32 pixels on a CPU.
    return jnp.stack(jax.lax.fori_loop(0, 4, at, x), axis=-1)
