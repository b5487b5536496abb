"""Random views on the device: SimCLR's augmentation (arXiv 2002.05709, appendix A).

    crop (if the host has not) -> flip -> colour jitter (p) -> grayscale (p) -> blur (p) -> normalise -> random erasing (p; DeiT's)

The jitter applies brightness, contrast, saturation and hue in a random order and clips to [0, 1] after each. Randomness is drawn in `draw`
and `random_crop` only. `random_views` maps the recipe over a batch. A view depends only on (key, index, copy, view), so it is the same
whatever its place in the batch, the batch's size or the number of devices. What mixes a batch is `data.mixing`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssljax.data import geometry
from ssljax.data.augment import Jitter, blur_kernel_size, clip, color_jitter, gaussian_blur, grayscale, normalize, to_float
from ssljax.data.mixing import random_erasing


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


def random_views(batch_image: jax.Array, index: jax.Array, key: jax.Array, augment: ConfigDict, *, size: int, num_views: int,
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
        raise ValueError(f"random_views: the batch holds {batch_image.shape[1]} views of each image and the config names {num_views}. "
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
    """What `random_views` draws for an example's first copy after the crops, every leaf [B, V, ...]: for pictures and tests."""
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
