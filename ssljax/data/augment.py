"""SimCLR's augmentation (arXiv 2002.05709, appendix A) on the device: pure functions of ONE float32 image [H, W, C] in [0, 1].

    crop (if the host has not) -> flip -> colour jitter (p) -> grayscale (p) -> blur (p) -> normalise -> random erasing (p; DeiT's)

The jitter applies brightness, contrast, saturation and hue in a random order and clips to [0, 1] after each. Operations by the
plain name are TensorFlow's, which the released code calls (google-research/simclr, tf2/data_util.py); `*_torchvision` are
torchvision's where the formula differs. They do not clip: that is the caller's part. Randomness is drawn in `draw` and `random_crop` only.

`views` maps the recipe over a batch. A view depends only on (key, index, copy, view), so it is the same whatever its place in the batch,
the batch's size or the number of devices. What mixes a batch is in `data.mixing`, by these names too.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssljax.data import geometry
from ssljax.data.mixing import cutmix, mix, mixup, random_erasing, smoothed_one_hot  # noqa: F401 - methods see this file alone

LUMA = (0.2989, 0.5870, 0.1140)   # tf.image.rgb_to_grayscale; they add up to 0.9999


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


def gaussian_blur(image: jax.Array, sigma: jax.Array, *, kernel_size: int, padding: str = "zero") -> jax.Array:
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
    return (image - jnp.asarray(mean, jnp.float32).reshape(shape)) / jnp.asarray(std, jnp.float32).reshape(shape)


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


def hsv_shift(r: jax.Array, g: jax.Array, b: jax.Array, *, factor: jax.Array | float, delta: jax.Array | float) -> tuple[jax.Array, ...]:
    """RGB -> HSV -> (H + delta mod 1, S * factor clipped to [0, 1]) -> RGB, without the division of S by V.

    With the chroma C = V S = max - min, S f clipped at 1 is C' = min(C f, V).
    """
    value = jnp.maximum(jnp.maximum(r, g), b)
    chroma = value - jnp.minimum(jnp.minimum(r, g), b)
    over = 1.0 / jnp.where(chroma > 0.0, chroma, 1.0)
    sixth = jnp.where(r == value, (g - b) * over, jnp.where(g == value, 2.0 + (b - r) * over, 4.0 + (r - g) * over))
    sixth = sixth + 6.0 * delta
    sixth = sixth - 6.0 * jnp.floor(sixth / 6.0)
    chroma = jnp.clip(chroma * factor, 0.0, value)
    low = value - chroma
    return (low + chroma * clip(jnp.abs(sixth - 3.0) - 1.0),
            low + chroma * clip(2.0 - jnp.abs(sixth - 2.0)),
            low + chroma * clip(2.0 - jnp.abs(sixth - 4.0)))


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
        raise ValueError(f"gaussian_blur: padding={padding!r} is unknown. Use 'zero' (SimCLR) or 'reflect' (torchvision).")
    if radius >= side:
        raise ValueError(f"gaussian_blur: kernel_size={kernel_size} reaches {radius} pixels, too far to reflect at a side of {side}. "
                         "Use a smaller kernel or padding='zero'.")
    first, last = of == 0, of == side - 1                 # a border pixel is its own mirror image: not counted twice
    return band(to - of) + jnp.where(first, 0.0, band(to + of)) + jnp.where(last, 0.0, band(to - (2 * (side - 1) - of)))


def gaussian(distance: jax.Array, sigma: jax.Array) -> jax.Array:
    """exp(-d^2 / 2 sigma^2) of an integer distance."""
    return jnp.exp(-(distance.astype(jnp.float32) ** 2) / (2.0 * sigma**2))


def blur_kernel_size(side: int) -> int:
    """SimCLR's kernel: a tenth of the image, 23 taps at 224 and 9 at 96 (tf2/data_util.py: `random_blur`)."""
    return 2 * int((side // 10) / 2) + 1


# ------------------------------------------------------------------------------------------------------------------ the recipe

class Jitter(NamedTuple):
    """The colour jitter's parameters, float32 scalars; `rank int32 [4]` is each operation's place in the order, as listed here."""

    brightness: jax.Array
    contrast: jax.Array
    saturation: jax.Array
    hue: jax.Array
    rank: jax.Array


class Draw(NamedTuple):
    """All that is random in a view after the crop. `apply_*` are bool scalars, `sigma` is in pixels."""

    jitter: Jitter
    apply_jitter: jax.Array
    apply_grayscale: jax.Array
    apply_blur: jax.Array
    sigma: jax.Array


def draw(key: jax.Array, augment: ConfigDict) -> Draw:
    """Draws a view's parameters; `augment` is `config.augment`."""
    u = jax.random.uniform(key, (12,), jnp.float32)
    s, hue, brightness, sigma = 0.0, 0.0, "multiply", (0.0, 0.0)         # what is off has no settings, and what is drawn for it no effect
    if augment.jitter_probability > 0.0:
        s, hue, brightness = augment.jitter_strength, augment.jitter_hue * augment.jitter_strength, augment.brightness
    if augment.blur_probability > 0.0:
        sigma = augment.blur_sigma
    low, high = 1.0 - 0.8 * s, 1.0 + 0.8 * s
    if brightness == "multiply":
        light = between(u[0], max(low, 0.0), high)
    elif brightness == "add":
        light = between(u[0], -0.8 * s, 0.8 * s)
    else:
        raise ValueError(f"config.augment.brightness={brightness!r} is unknown. Use 'multiply' (released code) or 'add' (paper).")
    rank = (u[8:, None] > u[None, 8:]).sum(1, dtype=jnp.int32)       # the order of four uniforms: every permutation equally likely
    jitter = Jitter(light, between(u[1], low, high), between(u[2], low, high), between(u[3], -hue, hue), rank)
    return Draw(jitter, u[4] < augment.jitter_probability, u[5] < augment.grayscale_probability, u[6] < augment.blur_probability,
                between(u[7], *sigma))


def between(u: jax.Array, low: float, high: float) -> jax.Array:
    """`u` in [0, 1) stretched to [low, high)."""
    return low + u * (high - low)


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
            x = hsv_shift(*x, factor=jnp.where(turn[2], jitter.saturation, 1.0), delta=jnp.where(turn[3], jitter.hue, 0.0))
    return jnp.stack(x, axis=-1)


def random_crop(image: jax.Array, key: jax.Array, augment: ConfigDict, *, size: int) -> jax.Array:
    """A random crop (or warp) of `image [H, W, C]`, resized to `size` and mirrored at random, clipped as the host's uint8 crops are."""
    box_key, flip_key = jax.random.split(key)
    height, width, _ = image.shape
    flip = jax.random.bernoulli(flip_key) if augment.flip else False
    if augment.crop == "tf":
        box = geometry.crop_box_tf(box_key, height, width, min_area=augment.min_area)
        return clip(geometry.crop_resize(image, box, size, flip=flip))
    if augment.crop == "torchvision":
        box = geometry.crop_box_torchvision(box_key, height, width, min_area=augment.min_area)
        return clip(geometry.crop_resize(image, box, size, antialias=True, flip=flip))
    if augment.crop == "affine":
        u = jax.random.uniform(box_key, (5,), jnp.float32, -1.0, 1.0)
        image = geometry.affine(image, geometry.affine_matrix(
            u[0] * augment.rotate, u[1:3] * augment.shift, 1.0 + u[3] * augment.zoom, u[4] * augment.shear), size)
    elif augment.crop != "none":
        raise ValueError(f"config.augment.crop={augment.crop!r} is unknown. Use 'tf', 'torchvision', 'affine' or 'none'.")
    return jnp.where(flip, image[:, ::-1], image)


def to_float(image: jax.Array) -> jax.Array:
    """uint8 [0, 255] or float [0, 1] to float32 [0, 1]."""
    return image.astype(jnp.float32) / 255.0 if image.dtype == jnp.uint8 else image.astype(jnp.float32)


def view(image: jax.Array, key: jax.Array, augment: ConfigDict, *, size: int, crop: bool, sigma: jax.Array | None = None) -> jax.Array:
    """One random view of one image.

    Args:
        image: uint8 or float in [0, 1], [H, W, C] with C = 3 or 1.
        key: all that is random follows from it.
        augment: `config.augment`.
        size: side of the view.
        crop: whether to crop and flip here; False when the host has done both.
        sigma: a blur width to use instead of drawing one.

    Returns:
        float32 [size, size, C], in [0, 1] before the normalisation and the erasing.
    """
    crop_key, color_key = jax.random.split(key)              # `draws` reads the second in the same way
    image = to_float(image)
    if crop:
        image = random_crop(image, crop_key, augment, size=size)
    if image.shape[:2] != (size, size):
        raise ValueError(f"view: the image is {image.shape[0]}x{image.shape[1]} and config.data.image_size={size}. Host crops must have "
                         "that size; on the device augment.crop='none' does not resize, the other crops do.")
    image = color(image, draw(color_key, augment), augment, sigma=sigma)
    if augment.erasing_probability > 0.0:                    # fold_in(key, 0) and (key, 1) are the two keys of the split
        image = random_erasing(image, jax.random.fold_in(key, 2), probability=augment.erasing_probability)
    return image


def color(image: jax.Array, drawn: Draw, augment: ConfigDict, *, sigma: jax.Array | None = None) -> jax.Array:
    """All that follows the crop: jitter, grayscale, blur, normalisation. `image` float32 [S, S, C] in [0, 1]."""
    if augment.jitter_probability > 0.0:
        jittered = color_jitter(image, drawn.jitter, additive=augment.brightness == "add")
        image = jnp.where(drawn.apply_jitter, jittered, image)
    if augment.grayscale_probability > 0.0:
        image = jnp.where(drawn.apply_grayscale, grayscale(image), image)
    if augment.blur_probability > 0.0:
        width = drawn.sigma if sigma is None else sigma
        blurred = gaussian_blur(image, width, kernel_size=blur_kernel_size(image.shape[0]))
        image = jnp.where(drawn.apply_blur, blurred, image)
    return normalize(clip(image), augment.mean, augment.std)


def views(batch_image: jax.Array, index: jax.Array, key: jax.Array, augment: ConfigDict, *, size: int, num_views: int,
          copy: jax.Array | None = None) -> jax.Array:
    """`num_views` random views of every image of a batch.

    Args:
        batch_image: uint8 [B, V, H, W, C], views the host has cropped and flipped, or [B, H, W, C], images to crop here.
        index: int32 [B], the stable ids of the examples.
        key: the step's key; a view's own key is fold_in(fold_in(key, index), copy * V + view).
        augment: `config.augment`.
        size: side of the views.
        num_views: V.
        copy: int32 [B], the batch's `copy` where config.data.repeats > 1: copies of an example need views of their own.

    Returns:
        float32 [B, V, size, size, C].
    """
    if batch_image.ndim == 5 and batch_image.shape[1] != num_views:
        raise ValueError(f"views: the batch holds {batch_image.shape[1]} views of each image and the config names {num_views}. "
                         "The loader and the method must read the same config.")
    crop = batch_image.ndim == 4
    numbers = jnp.arange(num_views, dtype=jnp.int32)
    if augment.blur_probability > 0.0 and augment.blur_sigma_per not in ("image", "batch"):
        raise ValueError(f"config.augment.blur_sigma_per={augment.blur_sigma_per!r} is unknown. Use 'image' (paper) or "
                         "'batch' (released code).")
    shared = batch_sigma(key, augment, num_views) if one_sigma(augment) else None
    first = jnp.zeros_like(index) if copy is None else copy * num_views

    def one(image: jax.Array, index: jax.Array, first: jax.Array, number: jax.Array, sigma: jax.Array | None) -> jax.Array:
        return view(image, view_key(key, index, first + number), augment, size=size, crop=crop, sigma=sigma)

    over_views = jax.vmap(one, in_axes=(None if crop else 0, None, None, 0, None if shared is None else 0))
    return jax.vmap(over_views, in_axes=(0, 0, 0, None, None))(batch_image, index, first, numbers, shared)


def view_key(key: jax.Array, index: jax.Array, number: jax.Array) -> jax.Array:
    """The key of view `number` of example `index` at the step of `key`."""
    return jax.random.fold_in(jax.random.fold_in(key, index), number)


def draws(index: jax.Array, key: jax.Array, augment: ConfigDict, num_views: int) -> Draw:
    """What `views` draws for an example's first copy after the crops, every leaf [B, V, ...]: for pictures and tests."""
    def one(index: jax.Array, number: jax.Array, sigma: jax.Array | None) -> Draw:
        _, color_key = jax.random.split(view_key(key, index, number))
        drawn = draw(color_key, augment)
        return drawn if sigma is None else drawn._replace(sigma=sigma)

    shared = batch_sigma(key, augment, num_views) if one_sigma(augment) else None
    over_views = jax.vmap(one, in_axes=(None, 0, None if shared is None else 0))
    return jax.vmap(over_views, in_axes=(0, None, None))(index, jnp.arange(num_views, dtype=jnp.int32), shared)


def one_sigma(augment: ConfigDict) -> bool:
    """Whether all images of a batch are blurred alike."""
    return augment.blur_probability > 0.0 and augment.blur_sigma_per == "batch"


def batch_sigma(key: jax.Array, augment: ConfigDict, num_views: int) -> jax.Array:
    """One blur width for each view of a batch, float32 [V]; the released code blurs a whole batch with one kernel."""
    no_example = jnp.uint32(2**32 - 1)                    # indices are not negative, so no example shares this key
    return jax.random.uniform(jax.random.fold_in(key, no_example), (num_views,), jnp.float32, *augment.blur_sigma)


def for_network(images: jax.Array, augment: ConfigDict) -> jax.Array:
    """Images without a random view, as the encoder expects them at evaluation: [B, H, W, C] -> float32, normalised."""
    return jax.vmap(lambda image: normalize(to_float(image), augment.mean, augment.std))(images)
