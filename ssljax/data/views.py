"""Random views on the device: each of `config.views` by its own recipe.

    crop (if the host has not) -> flip -> colour jitter (p) -> grayscale (p) -> blur (p) -> solarize (p)
    -> normalise -> random erasing (p; DeiT's)

The jitter applies brightness, contrast, saturation and hue in an order of its own and clips to [0, 1] after
each. Randomness is drawn in `draw` and `random_crop` only. A view depends only on (key, index, copy, its
number), so it is the same whatever its place in the batch, the batch's size or the number of devices. What
the config says about views is `data.recipes`; what mixes a batch is `data.mixing`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssljax.data import geometry
from ssljax.data.augment import (
    Jitter,
    blur_kernel_size,
    clip,
    color_jitter,
    color_jitter_torchvision,
    gaussian_blur,
    grayscale,
    normalize,
    solarize,
    to_float,
)
from ssljax.data.mixing import random_erasing
from ssljax.data.recipes import View, resolved, total

# ------------------------------------------------------------------------------------------------- one view


class Draw(NamedTuple):
    """All that is random in a view after the crop, neutral where an operation is off.

    Attributes:
        jitter: of the colours.
        apply_jitter, apply_grayscale, apply_blur, apply_solarize: bool, whether the view gets it.
        sigma: of the blur, in pixels.
    """

    jitter: Jitter
    apply_jitter: jax.Array
    apply_grayscale: jax.Array
    apply_blur: jax.Array
    sigma: jax.Array
    apply_solarize: jax.Array


def draw(key: jax.Array, augment: ConfigDict) -> Draw:
    """Draws a view's parameters; `augment` is the view's recipe."""
    u = jax.random.uniform(key, (12,), jnp.float32)
    jitter = draw_jitter(u, augment)
    jittered, grey = u[4] < augment.jitter_probability, u[5] < augment.grayscale_probability
    blurred, sigma = u[6] < augment.blur_probability, jnp.float32(0.0)
    if augment.blur_probability > 0.0:
        sigma = between(u[7], *augment.blur_sigma)
    solarized = jnp.bool_(False)
    if augment.solarize_probability > 0.0:  # a number of its own: the twelve are as without it
        u = jax.random.uniform(jax.random.fold_in(key, 12), (), jnp.float32)
        solarized = u < augment.solarize_probability
    return Draw(jitter, jittered, grey, blurred, sigma, solarized)


def draw_jitter(u: jax.Array, augment: ConfigDict) -> Jitter:
    """The colour jitter's parameters from `u [12]`, uniform in [0, 1)."""
    if augment.jitter_probability <= 0.0:
        return Jitter(*map(jnp.float32, (1.0, 1.0, 1.0, 0.0)), jnp.arange(4, dtype=jnp.int32))
    for name, valid in (("jitter", ("tensorflow", "torchvision")), ("jitter_order", ("random", "fixed"))):
        if augment[name] not in valid:
            raise ValueError(
                f"config.augment.{name}={augment[name]!r} is unknown. Use {valid[0]!r} or {valid[1]!r}."
            )
    s, hue = augment.jitter_strength, augment.jitter_hue * augment.jitter_strength
    low, high = 1.0 - 0.8 * s, 1.0 + 0.8 * s
    grey, vivid = 1.0 - augment.jitter_saturation * s, 1.0 + augment.jitter_saturation * s
    if augment.brightness == "multiply":
        light = between(u[0], max(low, 0.0), high)
    elif augment.brightness == "add" and augment.jitter == "tensorflow":
        light = between(u[0], -0.8 * s, 0.8 * s)
    elif augment.brightness == "add":
        raise ValueError(
            "config.augment.brightness='add' does not go with jitter='torchvision', which "
            "multiplies: set brightness='multiply'"
        )
    else:
        raise ValueError(
            f"config.augment.brightness={augment.brightness!r} is unknown. Use 'multiply' "
            "(released code) or 'add' (paper)."
        )
    if augment.jitter == "torchvision":  # its factors are not negative, however strong the jitter
        low, grey = max(low, 0.0), max(grey, 0.0)
    # The order of four uniforms: every permutation is equally likely.
    rank = (u[8:, None] > u[None, 8:]).sum(1, dtype=jnp.int32)
    if augment.jitter_order == "fixed":
        rank = jnp.arange(4, dtype=jnp.int32)
    return Jitter(light, between(u[1], low, high), between(u[2], grey, vivid), between(u[3], -hue, hue), rank)


def between(u: jax.Array, low: float, high: float) -> jax.Array:
    """`u` in [0, 1) stretched to [low, high)."""
    return low + u * (high - low)


def random_crop(image: jax.Array, key: jax.Array, augment: ConfigDict, *, size: int) -> jax.Array:
    """A random crop (or warp) of `image [H, W, C]`, resized to `size` and mirrored at random.

    It is clipped as the host's uint8 crops are.
    """
    box_key, flip_key = jax.random.split(key)
    height, width, _ = image.shape
    flip = jax.random.bernoulli(flip_key) if augment.flip else False
    if augment.crop in ("tf", "torchvision"):
        draw_box = geometry.crop_box_tf if augment.crop == "tf" else geometry.crop_box_torchvision
        box = draw_box(
            box_key,
            height,
            width,
            min_area=augment.min_area,
            max_area=augment.max_area,
            aspect=augment.aspect,
        )
        return clip(
            geometry.crop_resize(
                image,
                box,
                size,
                method=augment.interpolation,
                antialias=augment.crop == "torchvision",
                flip=flip,
            )
        )
    if augment.crop == "affine":
        u = jax.random.uniform(box_key, (5,), jnp.float32, -1.0, 1.0)
        matrix = geometry.affine_matrix(
            u[0] * augment.rotate, u[1:3] * augment.shift, 1.0 + u[3] * augment.zoom, u[4] * augment.shear
        )
        image = geometry.affine(image, matrix, size)
    elif augment.crop != "none":
        raise ValueError(
            f"config.augment.crop={augment.crop!r} is unknown. Use 'tf', 'torchvision', 'affine' or 'none'."
        )
    return jnp.where(flip, image[:, ::-1], image)


def view(
    image: jax.Array,
    key: jax.Array,
    augment: ConfigDict,
    *,
    size: int,
    crop: bool,
    sigma: jax.Array | None = None,
) -> jax.Array:
    """One random view of one image.

    Args:
        image: uint8 or float in [0, 1], [H, W, C] with C = 3 or 1.
        key: all that is random follows from it.
        augment: the view's recipe.
        size: side of the view.
        crop: whether to crop and flip here; False when the host has done both.
        sigma: a blur width to use instead of drawing one.

    Returns:
        float32 [size, size, C], in [0, 1] before the normalisation and the erasing.
    """
    crop_key, color_key = jax.random.split(key)  # `draws` reads the second in the same way
    image = to_float(image)
    if crop:
        image = random_crop(image, crop_key, augment, size=size)
    if image.shape[:2] != (size, size):
        raise ValueError(
            f"view: the image is {image.shape[0]}x{image.shape[1]} and the view's size={size} "
            "(config.data.image_size, or `size` in config.views). Host crops must have that "
            "size; on the device augment.crop='none' does not resize, the other crops do."
        )
    image = color(image, draw(color_key, augment), augment, sigma=sigma)
    if augment.erasing_probability > 0.0:  # fold_in(key, 0) and (key, 1) are the split's two keys
        image = random_erasing(image, jax.random.fold_in(key, 2), probability=augment.erasing_probability)
    return image


def color(image: jax.Array, drawn: Draw, augment: ConfigDict, *, sigma: jax.Array | None = None) -> jax.Array:
    """All that follows the crop, up to the normalisation. `image` float32 [S, S, C] in [0, 1]."""
    if augment.jitter_probability > 0.0:
        if augment.jitter == "torchvision":
            jittered = color_jitter_torchvision(image, drawn.jitter)
        else:
            jittered = color_jitter(image, drawn.jitter, additive=augment.brightness == "add")
        image = jnp.where(drawn.apply_jitter, jittered, image)
    if augment.grayscale_probability > 0.0:
        image = jnp.where(drawn.apply_grayscale, grayscale(image), image)
    if augment.blur_probability > 0.0:
        width = drawn.sigma if sigma is None else sigma
        taps = augment.blur_kernel or blur_kernel_size(image.shape[0])
        blurred = gaussian_blur(image, width, kernel_size=taps, padding=augment.blur_border)
        image = jnp.where(drawn.apply_blur, blurred, image)
    if augment.solarize_probability > 0.0:
        image = jnp.where(drawn.apply_solarize, solarize(image, augment.solarize_threshold), image)
    return normalize(clip(image), augment.mean, augment.std)


# ----------------------------------------------------------------------------------------- views of a batch


def make(batch: Mapping[str, jax.Array], key: jax.Array, config: ConfigDict) -> dict[str, jax.Array]:
    """The views of every image of a batch.

    Args:
        batch: index int32 [B], the stable ids of the examples; copy int32 [B] where an image comes several
            times an epoch, for views of its own each time; and the pixels, uint8: image [B, H, W, C], to crop
            here, or what `recipes.host_shapes` says, [B, ...], cropped and flipped.
        key: the step's key; a view's own is fold_in(fold_in(key, index), copy * V + number), V =
            `total(config)`.
        config: reads `views`, `augment` and `data.image_size`.

    Returns:
        float32 [B, count, size, size, C] by the view's name.

    Raises:
        ValueError: crops that are not those of the config; a setting that is unknown or cannot be.
    """
    made = {}
    for group, images in _made(batch, key, config):
        place = 0
        for member in group:
            made[member.name] = images[:, place : place + member.count]
            place += member.count
    return made


def stacked(batch: Mapping[str, jax.Array], key: jax.Array, config: ConfigDict) -> jax.Array:
    """All views in order, float32 [B, V, S, S, C], for methods whose views have one size.

    Arguments as for `make`.

    Raises:
        ValueError: as `make`; sizes differ.
    """
    sizes = {member.name: member.size for member in resolved(config)}
    if len(set(sizes.values())) > 1:
        stated = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(
            f"config.views have the sizes {stated}, and this method works on views of one size: "
            "leave `size` out"
        )
    parts = [images for _, images in _made(batch, key, config)]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def draws(index: jax.Array, key: jax.Array, config: ConfigDict) -> dict[str, Draw]:
    """What `make` draws for an example's first copy after the crops, every leaf [B, count, ...].

    For pictures and tests.
    """
    made = {}
    for member in resolved(config):

        def one(
            index: jax.Array, number: jax.Array, sigma: jax.Array | None, augment: ConfigDict = member.augment
        ) -> Draw:
            _, color_key = jax.random.split(view_key(key, index, number))
            drawn = draw(color_key, augment)
            return drawn if sigma is None else drawn._replace(sigma=sigma)

        shared = _shared_sigma(key, (member,), total(config))
        over_views = jax.vmap(one, in_axes=(None, 0, None if shared is None else 0))
        made[member.name] = jax.vmap(over_views, in_axes=(0, None, None))(index, _numbers((member,)), shared)
    return made


def _made(
    batch: Mapping[str, jax.Array], key: jax.Array, config: ConfigDict
) -> Iterator[tuple[tuple[View, ...], jax.Array]]:
    """The views in groups that can be made at once, float32 [B, views of the group, S, S, C]."""
    views, drawn = resolved(config), total(config)
    copy = batch.get("copy")
    place, places = 0, sum(member.count for member in views)
    for group in _groups(views):
        count = sum(member.count for member in group)
        image = _pixels(batch, group, slice(place, place + count), places)
        yield group, _random_views(image, batch["index"], copy, key, group, drawn)
        place += count


def _groups(views: tuple[View, ...]) -> list[tuple[View, ...]]:
    """Neighbours of one recipe and size whose numbers follow each other."""
    groups: list[tuple[View, ...]] = []
    for member in views:
        last = groups[-1][-1] if groups else None
        follows = last is not None and last.first + last.count == member.first
        if follows and (last.augment, last.size) == (member.augment, member.size):
            groups[-1] += (member,)
        else:
            groups.append((member,))
    return groups


def _pixels(batch: Mapping[str, jax.Array], group: tuple[View, ...], part: slice, places: int) -> jax.Array:
    """What a group is made from.

    Images [B, H, W, C], or the host's crops of it [B, views of the group, S, S, C].
    """
    if "image" not in batch:
        crops = [batch[member.name] for member in group]
        return crops[0] if len(crops) == 1 else jnp.concatenate(crops, axis=1)
    image = batch["image"]
    if image.ndim == 4:
        return image
    if image.shape[1] != places:
        raise ValueError(
            f"the batch holds {image.shape[1]} views of each image and config.views has "
            f"{places}. The loader and the method must read the same config."
        )
    return image if part == slice(0, places) else image[:, part]


def _random_views(
    image: jax.Array,
    index: jax.Array,
    copy: jax.Array | None,
    key: jax.Array,
    group: tuple[View, ...],
    drawn: int,
) -> jax.Array:
    """One group of views, float32 [B, views of the group, S, S, C].

    `drawn` is how many views an image has.
    """
    augment, size, crop = group[0].augment, group[0].size, image.ndim == 4
    numbers = _numbers(group)
    shared = _shared_sigma(key, group, drawn)
    first = jnp.zeros_like(index) if copy is None else copy * drawn

    def one(
        image: jax.Array, index: jax.Array, first: jax.Array, number: jax.Array, sigma: jax.Array | None
    ) -> jax.Array:
        return view(image, view_key(key, index, first + number), augment, size=size, crop=crop, sigma=sigma)

    over_views = jax.vmap(one, in_axes=(None if crop else 0, None, None, 0, None if shared is None else 0))
    return jax.vmap(over_views, in_axes=(0, 0, 0, None, None))(image, index, first, numbers, shared)


def _numbers(group: tuple[View, ...]) -> jax.Array:
    return jnp.arange(group[0].first, group[-1].first + group[-1].count, dtype=jnp.int32)


def _shared_sigma(key: jax.Array, group: tuple[View, ...], drawn: int) -> jax.Array | None:
    """The blur width of each view of the group where a batch shares it, or None."""
    augment, numbers = group[0].augment, slice(group[0].first, group[-1].first + group[-1].count)
    if augment.blur_probability <= 0.0 or augment.blur_sigma_per == "image":
        return None
    if augment.blur_sigma_per != "batch":
        raise ValueError(
            f"config.augment.blur_sigma_per={augment.blur_sigma_per!r} is unknown. Use 'image' "
            "(paper) or 'batch' (released code)."
        )
    sigma = batch_sigma(key, augment, drawn)
    return sigma if numbers == slice(0, drawn) else sigma[numbers]


def view_key(key: jax.Array, index: jax.Array, number: jax.Array) -> jax.Array:
    """The key of view `number` of example `index` at the step of `key`."""
    return jax.random.fold_in(jax.random.fold_in(key, index), number)


def batch_sigma(key: jax.Array, augment: ConfigDict, num_views: int) -> jax.Array:
    """One blur width per view of a batch, float32 [V].

    The released code blurs a whole batch with one kernel.
    """
    no_example = jnp.uint32(2**32 - 1)  # indices are not negative, so no example shares this key
    key = jax.random.fold_in(key, no_example)
    return jax.random.uniform(key, (num_views,), jnp.float32, *augment.blur_sigma)


def for_network(images: jax.Array, augment: ConfigDict) -> jax.Array:
    """Images without a random view, as the encoder expects them at evaluation.

    [B, H, W, C] -> float32, normalised.
    """
    return jax.vmap(lambda image: normalize(to_float(image), augment.mean, augment.std))(images)
