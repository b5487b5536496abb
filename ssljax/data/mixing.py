"""Mixup (arXiv 1710.09412), CutMix (arXiv 1905.04899) and random erasing (arXiv 1708.04896) on the device, as timm has them for DeiT.

`mixup`, `cutmix` and `erase` are pure; `mix`, `random_erasing` and the boxes draw. A box is (y0, y1, x0, x1) in pixels, ends excluded.

timm's mode "batch": one lambda and one box for the batch, and row b is mixed with row B-1-b. Here the batch is the global one, where the
released code mixes within each device: only so do 8 devices compute what one computes. It costs a mesh one collective-permute of the
images and targets a step, device d sending its rows to the device D-1-d, and nothing else. With config.accumulate > 1 a micro-batch is
mixed within itself, every one with the same lambda and box.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

MIX = (
    2**32 - 2
)  # folded into the step's key: no example's index is so large; 2**32 - 1 is views.batch_sigma's
TRIES = 10
AREA = (0.02, 1 / 3)  # of the image, what erasing takes away
ASPECT = (0.3, 1 / 0.3)


# ------------------------------------------------------------------------------------------------------------- mixup and CutMix


def smoothed_one_hot(labels: jax.Array, classes: int, smoothing: float) -> jax.Array:
    """1 - eps + eps/C for the label, eps/C for every other class: int [B] -> float32 [B, C]. A loss must not smooth them again."""
    return jax.nn.one_hot(labels, classes, dtype=jnp.float32) * (1.0 - smoothing) + smoothing / classes


def mixup(image: jax.Array, target: jax.Array, lam: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """lam * row b + (1 - lam) * row B-1-b, of the images and of the targets.

    Args:
        image: float [B, H, W, C].
        target: float [B, K], probabilities.
        lam: scalar in [0, 1].

    Returns:
        The two, mixed.
    """
    return blend(image, lam), blend(target, lam)


def cutmix(
    image: jax.Array, target: jax.Array, box: jax.Array | tuple[int, int, int, int]
) -> tuple[jax.Array, jax.Array]:
    """Row b shows row B-1-b inside the box, and the targets are mixed by the area that it covers.

    Args:
        image: float [B, H, W, C].
        target: float [B, K], probabilities.
        box: int [4] or four integers, within the image.

    Returns:
        The two, mixed with lam = 1 - area / (H W).
    """
    image = jnp.asarray(image)
    y0, y1, x0, x1 = box
    height, width = image.shape[1:3]
    area = jnp.asarray((y1 - y0) * (x1 - x0), jnp.float32)
    mixed = jnp.where(inside(box, height, width)[None, :, :, None], jnp.flip(image, 0), image)
    return mixed, blend(target, 1.0 - area / (height * width))


def blend(x: jax.Array, lam: jax.Array | float) -> jax.Array:
    """lam * x + (1 - lam) * (x with its rows in reverse)."""
    x, lam = jnp.asarray(x), jnp.asarray(lam, jnp.float32)
    return lam * x + (1.0 - lam) * jnp.flip(x, 0)


def inside(box: jax.Array | tuple[int, int, int, int], height: int, width: int) -> jax.Array:
    """Which pixels lie in the box: bool [H, W]."""
    y0, y1, x0, x1 = box
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    return (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)


def cutmix_box(key: jax.Array, lam: jax.Array, height: int, width: int) -> jax.Array:
    """A box of about 1 - lam of the image around a uniform pixel, clipped at the borders: int32 [4]."""
    y_key, x_key = jax.random.split(key)
    ratio = jnp.sqrt(1.0 - lam)
    half_y, half_x = (height * ratio).astype(jnp.int32) // 2, (width * ratio).astype(jnp.int32) // 2
    y, x = jax.random.randint(y_key, (), 0, height), jax.random.randint(x_key, (), 0, width)
    return jnp.stack(
        [
            jnp.clip(y - half_y, 0, height),
            jnp.clip(y + half_y, 0, height),
            jnp.clip(x - half_x, 0, width),
            jnp.clip(x + half_x, 0, width),
        ]
    )


def mix(
    images: jax.Array,
    targets: jax.Array,
    key: jax.Array,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    switch: float = 0.5,
) -> tuple[jax.Array, jax.Array]:
    """Mixes a whole batch by mixup or CutMix, lambda ~ Beta(alpha, alpha).

    Args:
        images: float [B, H, W, C], normalised; B even.
        targets: float [B, K], probabilities, smoothed if they should be.
        key: the step's key, the one that `views.stacked` gets.
        mixup_alpha: 0 = never mixup.
        cutmix_alpha: 0 = never CutMix; both 0 = no mixing, all stays as it is.
        switch: probability of CutMix where both are positive.

    Returns:
        (images, targets), mixed.

    Raises:
        ValueError: an odd batch, whose middle row has no partner.
    """
    if len(images) % 2:
        raise ValueError(
            f"mix: the batch has {len(images)} rows, and row b is mixed with row B-1-b: use an even batch_size (and, with "
            "accumulate > 1, even micro-batches)"
        )
    which, lam_key, box_key = jax.random.split(jax.random.fold_in(key, jnp.uint32(MIX)), 3)

    def by_mixup() -> tuple[jax.Array, jax.Array]:
        return mixup(images, targets, jax.random.beta(lam_key, mixup_alpha, mixup_alpha, dtype=jnp.float32))

    def by_cutmix() -> tuple[jax.Array, jax.Array]:
        lam = jax.random.beta(lam_key, cutmix_alpha, cutmix_alpha, dtype=jnp.float32)
        return cutmix(images, targets, cutmix_box(box_key, lam, *images.shape[1:3]))

    if mixup_alpha > 0 and cutmix_alpha > 0:
        return jax.lax.cond(jax.random.uniform(which) < switch, by_cutmix, by_mixup)
    if mixup_alpha > 0 or cutmix_alpha > 0:
        return by_mixup() if mixup_alpha > 0 else by_cutmix()
    return images, targets


# -------------------------------------------------------------------------------------------------------------- random erasing


def random_erasing(image: jax.Array, key: jax.Array, *, probability: float) -> jax.Array:
    """With `probability`, noise N(0, 1) for every pixel and channel of a random box (timm's mode "pixel", one box).

    Args:
        image: float32 [H, W, C], normalised: the noise is meant in its units.
        key: all that is random follows from it.
        probability: of erasing at all.

    Returns:
        float32 [H, W, C].
    """
    apply_key, box_key, noise_key = jax.random.split(key, 3)
    box = jnp.where(jax.random.uniform(apply_key) < probability, erasing_box(box_key, *image.shape[:2]), 0)
    return erase(image, box, jax.random.normal(noise_key, image.shape, image.dtype))


def erase(image: jax.Array, box: jax.Array, noise: jax.Array) -> jax.Array:
    """`noise` inside the box, `image` outside; all [H, W, C]."""
    return jnp.where(inside(box, *image.shape[:2])[:, :, None], noise, image)


def erasing_box(key: jax.Array, height: int, width: int) -> jax.Array:
    """Area uniform, aspect ratio log-uniform, place uniform; the first of 10 tries with both sides shorter than the image's, else empty.

    Returns:
        int32 [4].
    """
    u = jax.random.uniform(key, (TRIES, 4), jnp.float32)
    area = height * width * (AREA[0] + u[:, 0] * (AREA[1] - AREA[0]))
    aspect = jnp.exp(math.log(ASPECT[0]) + u[:, 1] * math.log(ASPECT[1] / ASPECT[0]))
    h, w = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (h < height) & (w < width)
    top, left = jnp.floor(u[:, 2] * (height - h + 1)), jnp.floor(u[:, 3] * (width - w + 1))
    boxes = jnp.stack([top, top + h, left, left + w], axis=1).astype(jnp.int32)
    return jnp.where(fits.any(), boxes[jnp.argmax(fits)], 0)
