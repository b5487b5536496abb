"""Mixup, CutMix and random erasing on the device, as timm implements them for DeiT.

Papers: mixup arXiv 1710.09412, CutMix arXiv 1905.04899, random erasing arXiv 1708.04896.

`mixup`, `cutmix` and `erase` draw nothing; `mix`, `random_erasing` and the two box functions do. A box is
(y0, y1, x0, x1) in pixels, ends excluded.

This is timm's mode "batch": one lambda and one box for the batch, and row b is mixed with row B-1-b. The
batch is the global one, while the released code mixes within each device. Only with the global batch do 8
devices compute what one device computes. On a mesh this costs one collective-permute of the images and
targets per step, in which device d sends its rows to device D-1-d. With config.accumulate > 1 every
micro-batch is mixed within itself, all with the same lambda and box.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

# Folded into the step's key. No example's index is so large, and 2**32 - 1 belongs to views.batch_sigma.
MIX = 2**32 - 2

# Random erasing: number of attempts, area as a share of the image, aspect ratio.
TRIES = 10
AREA = (0.02, 1 / 3)
ASPECT = (0.3, 1 / 0.3)


# ----------------------------------------------------------------------------------------- mixup and CutMix


def smoothed_one_hot(labels: jax.Array, classes: int, smoothing: float) -> jax.Array:
    """Make smoothed targets: 1 - eps + eps/C for the label, eps/C for every other class.

    A loss must not smooth them again.

    Args:
        labels: int [B].
        classes: number of classes C.
        smoothing: eps, in [0, 1].

    Returns:
        float32 [B, C].
    """
    return jax.nn.one_hot(labels, classes, dtype=jnp.float32) * (1.0 - smoothing) + smoothing / classes


def mixup(image: jax.Array, target: jax.Array, lam: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """Blend row b with row B-1-b, with weights lam and 1 - lam, in the images and in the targets.

    Args:
        image: float [B, H, W, C].
        target: float [B, K], probabilities.
        lam: scalar in [0, 1].

    Returns:
        The mixed images and the mixed targets.
    """
    return blend(image, lam), blend(target, lam)


def cutmix(
    image: jax.Array, target: jax.Array, box: jax.Array | tuple[int, int, int, int]
) -> tuple[jax.Array, jax.Array]:
    """Paste row B-1-b into row b inside the box, and mix the targets by the area of the box.

    Args:
        image: float [B, H, W, C].
        target: float [B, K], probabilities.
        box: int [4] or four integers, within the image.

    Returns:
        The mixed images, and the targets mixed with lam = 1 - area / (H W).
    """
    image = jnp.asarray(image)
    y0, y1, x0, x1 = box
    height, width = image.shape[1:3]
    area = jnp.asarray((y1 - y0) * (x1 - x0), jnp.float32)
    mixed = jnp.where(inside(box, height, width)[None, :, :, None], jnp.flip(image, 0), image)
    return mixed, blend(target, 1.0 - area / (height * width))


def blend(x: jax.Array, lam: jax.Array | float) -> jax.Array:
    """Blend `x` with itself in reversed row order, with weights lam and 1 - lam."""
    x = jnp.asarray(x)
    lam = jnp.asarray(lam, jnp.float32)
    return lam * x + (1.0 - lam) * jnp.flip(x, 0)


def inside(box: jax.Array | tuple[int, int, int, int], height: int, width: int) -> jax.Array:
    """Mark the pixels inside the box: bool [H, W]."""
    y0, y1, x0, x1 = box
    rows = jnp.arange(height)[:, None]
    columns = jnp.arange(width)[None, :]
    return (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)


def cutmix_box(key: jax.Array, lam: jax.Array, height: int, width: int) -> jax.Array:
    """Draw a box of about 1 - lam of the image around a uniform pixel, clipped at the borders: int32 [4]."""
    y_key, x_key = jax.random.split(key)
    ratio = jnp.sqrt(1.0 - lam)
    half_y = (height * ratio).astype(jnp.int32) // 2
    half_x = (width * ratio).astype(jnp.int32) // 2
    y = jax.random.randint(y_key, (), 0, height)
    x = jax.random.randint(x_key, (), 0, width)

    y0 = jnp.clip(y - half_y, 0, height)
    y1 = jnp.clip(y + half_y, 0, height)
    x0 = jnp.clip(x - half_x, 0, width)
    x1 = jnp.clip(x + half_x, 0, width)
    return jnp.stack([y0, y1, x0, x1])


def mix(
    images: jax.Array,
    targets: jax.Array,
    key: jax.Array,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    switch: float = 0.5,
) -> tuple[jax.Array, jax.Array]:
    """Mix a whole batch by mixup or CutMix, with lambda ~ Beta(alpha, alpha).

    Args:
        images: float [B, H, W, C], normalised; B is even.
        targets: float [B, K], probabilities, already smoothed if they should be.
        key: the step's key, the same that `views.stacked` gets.
        mixup_alpha: alpha of mixup; 0 = no mixup.
        cutmix_alpha: alpha of CutMix; 0 = no CutMix. If both are 0, nothing is mixed.
        switch: probability of CutMix if both alphas are positive.

    Returns:
        The mixed images and the mixed targets.

    Raises:
        ValueError: the batch is odd, so its middle row has no partner.
    """
    if len(images) % 2:
        raise ValueError(
            f"mix: the batch has {len(images)} rows. Row b is mixed with row B-1-b, so the middle row has no "
            "partner: use an even batch_size (and, with accumulate > 1, even micro-batches)"
        )
    key = jax.random.fold_in(key, jnp.uint32(MIX))
    which, lam_key, box_key = jax.random.split(key, 3)

    def by_mixup() -> tuple[jax.Array, jax.Array]:
        lam = jax.random.beta(lam_key, mixup_alpha, mixup_alpha, dtype=jnp.float32)
        return mixup(images, targets, lam)

    def by_cutmix() -> tuple[jax.Array, jax.Array]:
        lam = jax.random.beta(lam_key, cutmix_alpha, cutmix_alpha, dtype=jnp.float32)
        return cutmix(images, targets, cutmix_box(box_key, lam, *images.shape[1:3]))

    if mixup_alpha > 0 and cutmix_alpha > 0:
        return jax.lax.cond(jax.random.uniform(which) < switch, by_cutmix, by_mixup)
    if mixup_alpha > 0:
        return by_mixup()
    if cutmix_alpha > 0:
        return by_cutmix()
    return images, targets


# ------------------------------------------------------------------------------------------- random erasing


def random_erasing(image: jax.Array, key: jax.Array, *, probability: float) -> jax.Array:
    """Replace a random box by noise, with the given probability (timm's mode "pixel", one box).

    Args:
        image: float32 [H, W, C], normalised. The noise is N(0, 1) for every pixel and channel.
        key: determines all that is random.
        probability: probability of erasing at all.

    Returns:
        float32 [H, W, C].
    """
    apply_key, box_key, noise_key = jax.random.split(key, 3)
    erased = jax.random.uniform(apply_key) < probability
    box = jnp.where(erased, erasing_box(box_key, *image.shape[:2]), 0)
    noise = jax.random.normal(noise_key, image.shape, image.dtype)
    return erase(image, box, noise)


def erase(image: jax.Array, box: jax.Array, noise: jax.Array) -> jax.Array:
    """Return `noise` inside the box and `image` outside. All have shape [H, W, C]."""
    return jnp.where(inside(box, *image.shape[:2])[:, :, None], noise, image)


def erasing_box(key: jax.Array, height: int, width: int) -> jax.Array:
    """Draw the box of random erasing.

    Area and place are uniform, the aspect ratio is log-uniform. The first of 10 tries counts whose sides are
    both shorter than the image's. If there is none, the box is empty.

    Returns:
        int32 [4].
    """
    u = jax.random.uniform(key, (TRIES, 4), jnp.float32)
    area = height * width * (AREA[0] + u[:, 0] * (AREA[1] - AREA[0]))
    aspect = jnp.exp(math.log(ASPECT[0]) + u[:, 1] * math.log(ASPECT[1] / ASPECT[0]))
    h = jnp.round(jnp.sqrt(area * aspect))
    w = jnp.round(jnp.sqrt(area / aspect))
    fits = (h < height) & (w < width)
    top = jnp.floor(u[:, 2] * (height - h + 1))
    left = jnp.floor(u[:, 3] * (width - w + 1))
    boxes = jnp.stack([top, top + h, left, left + w], axis=1).astype(jnp.int32)
    return jnp.where(fits.any(), boxes[jnp.argmax(fits)], 0)
