"""Operations on ONE float32 image [H, W, C] in [0, 1]: pure functions that draw nothing (`data.views` does).

Operations by the plain name are TensorFlow's, which SimCLR's released code calls (google-research/simclr, tf2/data_util.py);
`*_torchvision` are torchvision's where the formula differs. They do not clip: that is the caller's part.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

LUMA = (0.2989, 0.5870, 0.1140)  # tf.image.rgb_to_grayscale; they add up to 0.9999


# ---------------------------------------------------------------------------------------------------------------- operations


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies: the released code's `simclrv2` form, and torchvision's."""
    return image * factor


def brightness_add(image: jax.Array, delta: jax.Array) -> jax.Array:
    """Adds: the paper's form (`tf.image.adjust_brightness`)."""
    return image + delta


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Moves away from the mean of each channel (`tf.image.adjust_contrast`)."""
    return image * factor + image.mean((0, 1), keepdims=True) * (1.0 - factor)


def contrast_torchvision(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Moves away from one mean, that of the grey image."""
    return image * factor + grayscale(image).mean() * (1.0 - factor)


def saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales S of HSV (`tf.image.adjust_saturation`). `image [H, W, 3]`."""
    return jnp.stack(hsv_shift(*planes(image), factor=factor, delta=0.0), axis=-1)


def saturation_torchvision(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the grey image."""
    return image * factor + grayscale(image) * (1.0 - factor)


def hue(image: jax.Array, delta: jax.Array) -> jax.Array:
    """Turns H of HSV by `delta` of a full turn (`tf.image.adjust_hue`, torchvision's `adjust_hue`). `image [H, W, 3]`."""
    return jnp.stack(hsv_shift(*planes(image), factor=1.0, delta=delta), axis=-1)


def grayscale(image: jax.Array) -> jax.Array:
    """Luma in all channels; an image of one channel is grey already."""
    if image.shape[-1] == 1:
        return image
    r, g, b = planes(image)
    return jnp.broadcast_to(luma(r, g, b)[..., None], image.shape)


def gaussian_blur(
    image: jax.Array, sigma: jax.Array, *, kernel_size: int, padding: str = "zero"
) -> jax.Array:
    """Separable Gaussian blur with 2*(kernel_size//2)+1 taps, `sigma` in pixels.

    `padding="zero"` is SimCLR's: the kernel keeps its sum and borders darken. `padding="reflect"` is torchvision's.
    """
    rows = blur_matrix(image.shape[0], sigma, kernel_size, padding)
    columns = blur_matrix(image.shape[1], sigma, kernel_size, padding)
    image = jnp.einsum("ij,jkc->ikc", rows, image, precision="highest")
    return jnp.einsum("lk,ikc->ilc", columns, image, precision="highest")


def solarize(image: jax.Array, threshold: jax.Array) -> jax.Array:
    """Inverts what is not below the threshold."""
    return jnp.where(image < threshold, image, 1.0 - image)


def normalize(image: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Subtracts the mean and divides by the standard deviation of each channel."""
    shape = (1, 1, image.shape[-1])
    return (image - jnp.asarray(mean, jnp.float32).reshape(shape)) / jnp.asarray(std, jnp.float32).reshape(
        shape
    )


def clip(image: jax.Array) -> jax.Array:
    """To [0, 1]."""
    return jnp.clip(image, 0.0, 1.0)


# --------------------------------------------------------------------------------------------------- what they are made of


def planes(image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Red, green and blue [H, W]: arithmetic on planes fills vector registers, on interleaved channels it does not."""
    return image[..., 0], image[..., 1], image[..., 2]


def luma(r: jax.Array, g: jax.Array, b: jax.Array) -> jax.Array:
    """The grey level of each pixel."""
    return LUMA[0] * r + LUMA[1] * g + LUMA[2] * b


def hsv_shift(
    r: jax.Array, g: jax.Array, b: jax.Array, *, factor: jax.Array | float, delta: jax.Array | float
) -> tuple[jax.Array, ...]:
    """RGB -> HSV -> (H + delta mod 1, S * factor clipped to [0, 1]) -> RGB, without the division of S by V.

    With the chroma C = V S = max - min, S f clipped at 1 is C' = min(C f, V).
    """
    value = jnp.maximum(jnp.maximum(r, g), b)
    chroma = value - jnp.minimum(jnp.minimum(r, g), b)
    over = 1.0 / jnp.where(chroma > 0.0, chroma, 1.0)
    sixth = jnp.where(
        r == value, (g - b) * over, jnp.where(g == value, 2.0 + (b - r) * over, 4.0 + (r - g) * over)
    )
    sixth = sixth + 6.0 * delta
    sixth = sixth - 6.0 * jnp.floor(sixth / 6.0)
    chroma = jnp.clip(chroma * factor, 0.0, value)
    low = value - chroma
    return (
        low + chroma * clip(jnp.abs(sixth - 3.0) - 1.0),
        low + chroma * clip(2.0 - jnp.abs(sixth - 2.0)),
        low + chroma * clip(2.0 - jnp.abs(sixth - 4.0)),
    )


def blur_matrix(side: int, sigma: jax.Array, kernel_size: int, padding: str) -> jax.Array:
    """The banded matrix [side, side] of a Gaussian blur along one axis. A matmul: grouped convolutions are slow on CPU and TPU alike."""
    radius = kernel_size // 2
    taps = gaussian(jnp.arange(-radius, radius + 1), sigma)
    to, of = jnp.arange(side)[:, None], jnp.arange(side)[None, :]

    def band(distance: jax.Array) -> jax.Array:
        return jnp.where(jnp.abs(distance) <= radius, gaussian(distance, sigma) / taps.sum(), 0.0)

    if padding == "zero":
        return band(to - of)
    if padding != "reflect":
        raise ValueError(
            f"gaussian_blur: padding={padding!r} is unknown. Use 'zero' (SimCLR) or 'reflect' (torchvision)."
        )
    if radius >= side:
        raise ValueError(
            f"gaussian_blur: kernel_size={kernel_size} reaches {radius} pixels, too far to reflect at a side of {side}. "
            "Use a smaller kernel or padding='zero'."
        )
    first, last = of == 0, of == side - 1  # a border pixel is its own mirror image: not counted twice
    return (
        band(to - of)
        + jnp.where(first, 0.0, band(to + of))
        + jnp.where(last, 0.0, band(to - (2 * (side - 1) - of)))
    )


def gaussian(distance: jax.Array, sigma: jax.Array) -> jax.Array:
    """exp(-d^2 / 2 sigma^2) of an integer distance."""
    return jnp.exp(-(distance.astype(jnp.float32) ** 2) / (2.0 * sigma**2))


def blur_kernel_size(side: int) -> int:
    """SimCLR's kernel: a tenth of the image, 23 taps at 224 and 9 at 96 (tf2/data_util.py: `random_blur`)."""
    return 2 * int((side // 10) / 2) + 1


def to_float(image: jax.Array) -> jax.Array:
    """uint8 [0, 255] or float [0, 1] to float32 [0, 1]."""
    return image.astype(jnp.float32) / 255.0 if image.dtype == jnp.uint8 else image.astype(jnp.float32)


# ------------------------------------------------------------------------------------------------------------- the colour jitter


class Jitter(NamedTuple):
    """The colour jitter's parameters, float32 scalars; `rank int32 [4]` is each operation's place in the order, as listed here."""

    brightness: jax.Array
    contrast: jax.Array
    saturation: jax.Array
    hue: jax.Array
    rank: jax.Array


def color_jitter(image: jax.Array, jitter: Jitter, *, additive: bool = False) -> jax.Array:
    """Brightness, contrast, saturation and hue in the order of `jitter.rank`, clipped to [0, 1] after each.

    At each place of the order every operation runs, with neutral parameters unless its turn has come: brightness and contrast are
    both x * a + b, saturation and hue share one turn through HSV. An image of one channel has no saturation and no hue.
    """
    x = planes(image) if image.shape[-1] == 3 else (image[..., 0],)
    for place in range(4):
        turn = jitter.rank == place
        light = jnp.where(turn[0], jitter.brightness, 0.0 if additive else 1.0)
        scale = jnp.where(turn[1], jitter.contrast, 1.0)
        add, multiply = (light, scale) if additive else (0.0, light * scale)
        x = tuple(clip(c * multiply + (c.mean() * (1.0 - scale) + add)) for c in x)
        if len(x) == 3:
            x = hsv_shift(
                *x,
                factor=jnp.where(turn[2], jitter.saturation, 1.0),
                delta=jnp.where(turn[3], jitter.hue, 0.0),
            )
    return jnp.stack(x, axis=-1)


def color_jitter_torchvision(image: jax.Array, jitter: Jitter) -> jax.Array:
    """torchvision's `ColorJitter`: the same for its contrast and saturation, which blend with grey; brightness multiplies.

    Brightness, contrast and saturation are one blend of the pixel, its grey level and the mean of all grey levels.
    """
    x = planes(image) if image.shape[-1] == 3 else (image[..., 0],)
    for place in range(4):
        turn = jitter.rank == place
        light = jnp.where(turn[0], jitter.brightness, 1.0)
        scale = jnp.where(turn[1], jitter.contrast, 1.0)
        keep = jnp.where(turn[2], jitter.saturation, 1.0) if len(x) == 3 else 1.0
        grey = luma(*x) if len(x) == 3 else x[0]
        add = grey.mean() * (1.0 - scale) + grey * (1.0 - keep)
        x = tuple(clip(c * (light * scale * keep) + add) for c in x)
        if len(x) == 3:
            x = hsv_shift(*x, factor=1.0, delta=jnp.where(turn[3], jitter.hue, 0.0))
    return jnp.stack(x, axis=-1)
