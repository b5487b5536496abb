"""Random views on the device, each of `config.views` with its own recipe.

    crop (unless the host has done it) -> flip -> RandAugment (TensorFlow's) -> colour jitter (p)
    -> grayscale (p) -> blur (p) -> solarize (p) -> colour space -> normalise -> random erasing (p; DeiT's)

With `augment.grayscale_order="before"` (MoCo v1's) the jitter comes after the conversion to grey. The jitter
applies brightness, contrast, saturation and hue in an order that is drawn too, and clips to [0, 1] after
each. With `augment.jitter_on="image"` (BEiT's) it comes before the crop, on the whole image. Randomness is
drawn in `draw` and `random_crop`, and for erasing in `data.mixing`. A view depends only on (key, index, copy,
its number). So it does not depend on its place in the batch, the batch size or the number of devices.
`data.recipes` reads the views from the config; `data.mixing` mixes the images of a batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssljax.data import geometry, randaugment
from ssljax.data.augment import (
    Jitter,
    blur_kernel_size,
    clip,
    color_jitter,
    color_jitter_torchvision,
    gaussian_blur,
    grayscale,
    normalize,
    pillow_blur,
    solarize,
    to_float,
)
from ssljax.data.colours import from_rgb
from ssljax.data.mixing import random_erasing
from ssljax.data.pillow import jitters_image
from ssljax.data.recipes import View, resolved, total

# ------------------------------------------------------------------------------------------------- one view


class Draw(NamedTuple):
    """The random parameters of a view after the crop. They are neutral if an operation is off.

    Attributes:
        jitter: parameters of the colour jitter.
        apply_jitter, apply_grayscale, apply_blur, apply_solarize: bool, whether the operation is applied.
        sigma: standard deviation of the blur in pixels.
    """

    jitter: Jitter
    apply_jitter: jax.Array
    apply_grayscale: jax.Array
    apply_blur: jax.Array
    sigma: jax.Array
    apply_solarize: jax.Array


def draw(key: jax.Array, augment: ConfigDict) -> Draw:
    """Draw the parameters of a view. `augment` is the view's recipe."""
    u = jax.random.uniform(key, (12,), jnp.float32)
    jitter = draw_jitter(u, augment)
    jittered = u[4] < augment.jitter_probability
    grey = u[5] < augment.grayscale_probability
    blurred = u[6] < augment.blur_probability
    sigma = jnp.float32(0.0)
    if augment.blur_probability > 0.0:
        sigma = between(u[7], *augment.blur_sigma)

    # Solarization has its own key, so that the twelve numbers above are the same with and without it.
    solarized = jnp.bool_(False)
    if augment.solarize_probability > 0.0:
        u = jax.random.uniform(jax.random.fold_in(key, 12), (), jnp.float32)
        solarized = u < augment.solarize_probability
    return Draw(jitter, jittered, grey, blurred, sigma, solarized)


def draw_jitter(u: jax.Array, augment: ConfigDict) -> Jitter:
    """Make the parameters of the colour jitter from `u [12]`, uniform in [0, 1)."""
    if augment.jitter_probability <= 0.0:
        return Jitter(
            brightness=jnp.float32(1.0),
            contrast=jnp.float32(1.0),
            saturation=jnp.float32(1.0),
            hue=jnp.float32(0.0),
            rank=jnp.arange(4, dtype=jnp.int32),
        )
    _check_jitter(augment)

    s = augment.jitter_strength
    hue = augment.jitter_hue * augment.jitter_strength
    low = 1.0 - 0.8 * s
    high = 1.0 + 0.8 * s
    grey = 1.0 - augment.jitter_saturation * s
    vivid = 1.0 + augment.jitter_saturation * s
    if augment.brightness == "multiply":
        light = between(u[0], max(low, 0.0), high)
    else:
        light = between(u[0], -0.8 * s, 0.8 * s)
    if augment.jitter == "torchvision":  # its factors are never negative, however strong the jitter is
        low = max(low, 0.0)
        grey = max(grey, 0.0)

    # The ranks of four uniform numbers: every permutation is equally likely.
    rank = (u[8:, None] > u[None, 8:]).sum(1, dtype=jnp.int32)
    if augment.jitter_order == "fixed":
        rank = jnp.arange(4, dtype=jnp.int32)
    scale = between(u[1], low, high)
    keep = between(u[2], grey, vivid)
    turn = between(u[3], -hue, hue)
    return Jitter(brightness=light, contrast=scale, saturation=keep, hue=turn, rank=rank)


def _check_jitter(augment: ConfigDict) -> None:
    """Refuse an unknown kind of jitter, with a ValueError."""
    for name, valid in (("jitter", ("tensorflow", "torchvision")), ("jitter_order", ("random", "fixed"))):
        if augment[name] not in valid:
            raise ValueError(
                f"config.augment.{name}={augment[name]!r} is unknown. Use {valid[0]!r} or {valid[1]!r}."
            )
    if augment.brightness not in ("multiply", "add"):
        raise ValueError(
            f"config.augment.brightness={augment.brightness!r} is unknown. Use 'multiply' "
            "(released code) or 'add' (paper)."
        )
    if augment.brightness == "add" and augment.jitter == "torchvision":
        raise ValueError(
            "config.augment.brightness='add' does not go with jitter='torchvision', which "
            "multiplies: set brightness='multiply'"
        )


def between(u: jax.Array, low: float, high: float) -> jax.Array:
    """Stretch `u` in [0, 1) to [low, high)."""
    return low + u * (high - low)


def random_crop(image: jax.Array, key: jax.Array, augment: ConfigDict, *, size: int) -> jax.Array:
    """Make a random crop (or warp) of an image, resized and mirrored at random.

    Crops are clipped, as the host's uint8 crops are.

    Args:
        image: float32 [H, W, C] in [0, 1].
        key: determines all that is random.
        augment: the view's recipe.
        size: side of the result.

    Returns:
        float32 [size, size, C] in [0, 1].

    Raises:
        ValueError: the recipe's `crop` is unknown.
    """
    box_key, flip_key = jax.random.split(key)
    height, width, _ = image.shape
    flip = jax.random.bernoulli(flip_key) if augment.flip else False
    if augment.crop in geometry.BOXES:
        draw_box = geometry.BOXES[augment.crop]
        box = draw_box(
            box_key,
            height,
            width,
            min_area=augment.min_area,
            max_area=augment.max_area,
            aspect=augment.aspect,
        )
        crop = geometry.crop_resize(
            image,
            box,
            size,
            method=augment.interpolation,
            antialias=augment.crop == "torchvision",
            flip=flip,
        )
        return clip(crop)
    if augment.crop in ("square", "dalle"):
        if augment.crop == "square":
            box = geometry.crop_box_square(box_key, height, width, area=augment.min_area)
        else:
            areas = {"min_area": augment.min_area, "max_area": augment.max_area}
            box = geometry.crop_box_dalle(box_key, height, width, size=size, **areas)
        method = augment.interpolation
        return clip(geometry.crop_resize(image, box, size, method=method, antialias=True, flip=flip))
    if augment.crop == "squash":
        whole = geometry.squashed_side(size, augment.min_area)
        everything = jnp.array([0, 0, height, width], jnp.int32)
        image = geometry.crop_resize(image, everything, whole, method=augment.interpolation, antialias=True)
        u = jax.random.uniform(box_key, (2,), jnp.float32)
        corner = geometry.uniform_integer(u, jnp.int32(whole - size + 1))
        image = jax.lax.dynamic_slice(clip(image), (*corner, 0), (size, size, image.shape[2]))
    elif augment.crop == "affine":
        u = jax.random.uniform(box_key, (5,), jnp.float32, -1.0, 1.0)
        rotation = u[0] * augment.rotate
        shift = u[1:3] * augment.shift
        zoom = 1.0 + u[3] * augment.zoom
        shear = u[4] * augment.shear
        matrix = geometry.affine_matrix(rotation, shift, zoom, shear)
        image = geometry.affine(image, matrix, size)
    elif augment.crop != "none":
        raise ValueError(
            f"config.augment.crop={augment.crop!r} is unknown. Use 'tf', 'torchvision', 'byol', 'square', "
            "'dalle', 'squash', 'affine' or 'none'."
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
    """Make one random view of one image.

    Args:
        image: uint8 or float in [0, 1], [H, W, C] with C = 3 or 1.
        key: determines all that is random.
        augment: the view's recipe.
        size: side of the view.
        crop: whether to crop and flip here. False if the host has done both.
        sigma: a blur width to use instead of the drawn one.

    Returns:
        float32 [size, size, C], in [0, 1] before it is normalised and erased.

    Raises:
        ValueError: the image does not have the view's size after cropping.
    """
    crop_key, color_key = jax.random.split(key)  # `_drawn` uses the second key in the same way
    image = to_float(image)
    if crop and jitters_image(augment):  # otherwise the host has done it
        image = _jittered(image, draw(color_key, augment), augment)
    if crop:
        image = random_crop(image, crop_key, augment, size=size)
    if image.shape[:2] != (size, size):
        raise ValueError(
            f"view: the image is {image.shape[0]}x{image.shape[1]} and the view's size={size} "
            "(config.data.image_size, or `size` in config.views). Host crops must have that size; on the "
            "device augment.crop='none' does not resize, the other crops do."
        )
    if augment.policy == "randaugment_tf":
        image = _policy(image, jax.random.fold_in(key, 3), augment)
    image = color(image, draw(color_key, augment), augment, sigma=sigma)
    if augment.erasing_probability > 0.0:
        erasing_key = jax.random.fold_in(key, 2)  # fold_in(key, 0) and (key, 1) are the split's two keys
        image = random_erasing(image, erasing_key, probability=augment.erasing_probability)
    return image


def _policy(image: jax.Array, key: jax.Array, augment: ConfigDict) -> jax.Array:
    """Apply RandAugment as TensorFlow computes it. Other policies are applied on the host."""
    arguments = randaugment.arguments(
        augment.policy_level, translate=augment.policy_translate, cutout=augment.policy_cutout
    )
    return randaugment.randaugment(image, key, arguments, ops=augment.policy_ops)


def color(image: jax.Array, drawn: Draw, augment: ConfigDict, *, sigma: jax.Array | None = None) -> jax.Array:
    """Apply all that follows the crop, up to the normalisation.

    Args:
        image: float32 [S, S, C] in [0, 1].
        drawn: the random parameters.
        augment: the view's recipe.
        sigma: a blur width to use instead of the drawn one.

    Returns:
        float32 [S, S, C], normalised.
    """
    jitters = augment.jitter_probability > 0.0 and not jitters_image(augment)
    greys = augment.grayscale_probability > 0.0
    grey_first = jitters and greys and augment.grayscale_order == "before"
    if grey_first:
        image = jnp.where(drawn.apply_grayscale, grayscale(image), image)
    if jitters:
        image = _jittered(image, drawn, augment)
    if greys and not grey_first:
        image = jnp.where(drawn.apply_grayscale, grayscale(image), image)
    if augment.blur_probability > 0.0:
        width = drawn.sigma if sigma is None else sigma
        image = jnp.where(drawn.apply_blur, _blurred(image, width, augment), image)
    if augment.solarize_probability > 0.0:
        image = jnp.where(drawn.apply_solarize, solarize(image, augment.solarize_threshold), image)
    return _channels(clip(image), augment)


def _channels(image: jax.Array, augment: ConfigDict) -> jax.Array:
    """Pixels [H, W, C] in [0, 1] as the network sees them: in the recipe's colour space, normalised."""
    return normalize(from_rgb(image, augment.color_space), augment.mean, augment.std)


def _jittered(image: jax.Array, drawn: Draw, augment: ConfigDict) -> jax.Array:
    """Change the colours of an image [H, W, C], if that was drawn."""
    if augment.jitter == "torchvision":
        jittered = color_jitter_torchvision(image, drawn.jitter)
    else:
        jittered = color_jitter(image, drawn.jitter, additive=augment.brightness == "add")
    return jnp.where(drawn.apply_jitter, jittered, image)


def _blurred(image: jax.Array, sigma: jax.Array, augment: ConfigDict) -> jax.Array:
    """Blur an image [S, S, C] by the recipe's kind of blur."""
    if augment.blur_border == "pillow":
        return pillow_blur(image, sigma)
    taps = augment.blur_kernel or blur_kernel_size(image.shape[0])
    return gaussian_blur(image, sigma, kernel_size=taps, padding=augment.blur_border)


# ----------------------------------------------------------------------------------------- views of a batch


def make(batch: Mapping[str, jax.Array], key: jax.Array, config: ConfigDict) -> dict[str, jax.Array]:
    """Make the views of every image of a batch.

    Args:
        batch: holds
            index: int32 [B], the stable ids of the examples.
            copy: int32 [B], only if an image occurs several times per epoch; each copy gets its own views.
            image: uint8 [B, H, W, C], to be cropped here; or the arrays of `recipes.host_shapes`, uint8
            [B, ...], already cropped and flipped.
        key: the step's key. The key of a view is fold_in(fold_in(key, index), copy * V + number), with V =
            `total(config)`.
        config: reads `views`, `augment` and `data.image_size`.

    Returns:
        float32 [B, count, size, size, C] by the view's name.

    Raises:
        ValueError: the crops are not those of the config, or a setting is unknown or impossible.
    """
    made = {}
    for group, images in _made(batch, key, config):
        first = 0
        for member in group:
            made[member.name] = images[:, first : first + member.count]
            first += member.count
    return made


def stacked(batch: Mapping[str, jax.Array], key: jax.Array, config: ConfigDict) -> jax.Array:
    """Make all views of every image as one array, for methods whose views have one size.

    Arguments are those of `make`.

    Returns:
        float32 [B, V, S, S, C], the views in order.

    Raises:
        ValueError: as for `make`, or the views have different sizes.
    """
    sizes = {member.name: member.size for member in resolved(config)}
    if len(set(sizes.values())) > 1:
        stated = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(
            f"config.views have the sizes {stated}, but this method needs views of one size: remove `size` "
            "from config.views"
        )
    return by_size(batch, key, config)[0]


def by_size(batch: Mapping[str, jax.Array], key: jax.Array, config: ConfigDict) -> list[jax.Array]:
    """Make all views of every image in order, as one array for each run of neighbours of one size.

    Arguments are those of `make`.

    Returns:
        Arrays float32 [B, views of the run, S, S, C].
    """
    made = [(group[0].size, images) for group, images in _made(batch, key, config)]
    runs = []
    for _, run in itertools.groupby(made, key=lambda pair: pair[0]):
        parts = [images for _, images in run]
        runs.append(parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1))
    return runs


def draws(index: jax.Array, key: jax.Array, config: ConfigDict) -> dict[str, Draw]:
    """Return what `make` draws after the crops for the first copy of every example. For figures and tests.

    Args:
        index: int32 [B], the stable ids of the examples.
        key: the step's key.
        config: as for `make`.

    Returns:
        A `Draw` by the view's name; every leaf has shape [B, count, ...].
    """
    drawn = total(config)
    return {member.name: _drawn(index, key, member, drawn) for member in resolved(config)}


def _drawn(index: jax.Array, key: jax.Array, member: View, drawn: int) -> Draw:
    """Draw one entry of `config.views` for every example. `drawn` is the number of views of an image."""
    shared = _shared_sigma(key, (member,), drawn)

    def one(index: jax.Array, number: jax.Array, sigma: jax.Array | None) -> Draw:
        _, color_key = jax.random.split(view_key(key, index, number))
        parameters = draw(color_key, member.augment)
        return parameters if sigma is None else parameters._replace(sigma=sigma)

    over_views = jax.vmap(one, in_axes=(None, 0, None if shared is None else 0))
    over_images = jax.vmap(over_views, in_axes=(0, None, None))
    return over_images(index, _numbers((member,)), shared)


def _made(
    batch: Mapping[str, jax.Array], key: jax.Array, config: ConfigDict
) -> Iterator[tuple[tuple[View, ...], jax.Array]]:
    """Yield the views in groups that can be made at once, float32 [B, views of the group, S, S, C]."""
    views = resolved(config)
    drawn = total(config)
    places = sum(member.count for member in views)
    copy = batch.get("copy")
    first = 0
    for group in _groups(views):
        count = sum(member.count for member in group)
        image = _pixels(batch, group, slice(first, first + count), places)
        yield group, _random_views(image, batch["index"], copy, key, group, drawn)
        first += count


def _groups(views: tuple[View, ...]) -> list[tuple[View, ...]]:
    """Group neighbours that have the same recipe and size and consecutive numbers."""
    groups: list[tuple[View, ...]] = []
    for member in views:
        if groups and _continues(groups[-1][-1], member):
            groups[-1] += (member,)
        else:
            groups.append((member,))
    return groups


def _continues(last: View, member: View) -> bool:
    """Tell whether `member` can be made together with the entry before it."""
    follows = last.first + last.count == member.first
    return follows and last.augment == member.augment and last.size == member.size


def _pixels(batch: Mapping[str, jax.Array], group: tuple[View, ...], part: slice, places: int) -> jax.Array:
    """Select the pixels from which a group is made.

    Args:
        batch: as for `make`.
        group: entries of `config.views`.
        part: the places of the group among all views.
        places: number of all views.

    Returns:
        Whole images [B, H, W, C], or the host's crops for this group [B, views of the group, S, S, C].
    """
    if "image" not in batch:
        crops = [batch[member.name] for member in group]
        return crops[0] if len(crops) == 1 else jnp.concatenate(crops, axis=1)
    image = batch["image"]
    if image.ndim == 4:
        return image
    if image.shape[1] != places:
        raise ValueError(
            f"the batch holds {image.shape[1]} views of each image, but config.views has {places}. The "
            "loader and the method must read the same config."
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
    """Make one group of views, float32 [B, views of the group, S, S, C].

    `drawn` is the number of views of an image.
    """
    augment = group[0].augment
    size = group[0].size
    crop = image.ndim == 4
    numbers = _numbers(group)
    shared = _shared_sigma(key, group, drawn)
    first = jnp.zeros_like(index) if copy is None else copy * drawn

    def one(
        image: jax.Array, index: jax.Array, first: jax.Array, number: jax.Array, sigma: jax.Array | None
    ) -> jax.Array:
        return view(image, view_key(key, index, first + number), augment, size=size, crop=crop, sigma=sigma)

    image_axis = None if crop else 0  # the views share the whole image, or each has its own crop
    sigma_axis = None if shared is None else 0
    over_views = jax.vmap(one, in_axes=(image_axis, None, None, 0, sigma_axis))
    over_images = jax.vmap(over_views, in_axes=(0, 0, 0, None, None))
    return over_images(image, index, first, numbers, shared)


def _numbers(group: tuple[View, ...]) -> jax.Array:
    """Return the numbers of the group's views, int32 [views of the group]."""
    return jnp.arange(group[0].first, group[-1].first + group[-1].count, dtype=jnp.int32)


def _shared_sigma(key: jax.Array, group: tuple[View, ...], drawn: int) -> jax.Array | None:
    """Draw the blur width of each view of the group if the batch shares it. None if it does not."""
    augment = group[0].augment
    if augment.blur_probability <= 0.0 or augment.blur_sigma_per == "image":
        return None
    if augment.blur_sigma_per != "batch":
        raise ValueError(
            f"config.augment.blur_sigma_per={augment.blur_sigma_per!r} is unknown. Use 'image' "
            "(paper) or 'batch' (released code)."
        )
    sigma = batch_sigma(key, augment, drawn)
    first = group[0].first
    end = group[-1].first + group[-1].count
    if (first, end) == (0, drawn):
        return sigma
    return sigma[first:end]


def view_key(key: jax.Array, index: jax.Array, number: jax.Array) -> jax.Array:
    """Make the key of view `number` of example `index`, from the key of the step."""
    return jax.random.fold_in(jax.random.fold_in(key, index), number)


def batch_sigma(key: jax.Array, augment: ConfigDict, num_views: int) -> jax.Array:
    """Draw one blur width per view for a whole batch, float32 [V].

    The released code blurs a whole batch with one kernel.
    """
    no_example = jnp.uint32(2**32 - 1)  # no example has this index, so none shares this key
    key = jax.random.fold_in(key, no_example)
    return jax.random.uniform(key, (num_views,), jnp.float32, *augment.blur_sigma)


def for_network(images: jax.Array, augment: ConfigDict) -> jax.Array:
    """Normalise images [B, H, W, C] to float32 without a random view, as evaluation feeds the encoder."""

    def one(image: jax.Array) -> jax.Array:
        return _channels(to_float(image), augment)

    return jax.vmap(one)(images)
