"""Random changes of every patch for itself, on the device: the views of CPC v2.

    AutoAugment's operations (2) -> elastic deformation and shear (p) -> colour histogram (p)
    -> Inception's colours (p) -> grey (p) -> one channel alone (p)

Henaff et al., arXiv 1905.09272, section 3 and appendix A. A patch of a whole image has nothing of the changes
of its neighbours, or the network would recognise them by those. What a patch becomes depends only on
(key, index, copy, its place in the image); for SamplePairing, also on another image of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssljax.data import distort, views
from ssljax.data.augment import clip, grayscale, normalize

PURPOSE = 4  # folded into the key of a view, which other purposes have with other numbers


def changed(
    patches: jax.Array, batch: Mapping[str, jax.Array], key: jax.Array, config: ConfigDict
) -> jax.Array:
    """Change every patch of a batch at random, and normalise.

    Args:
        patches: float32 [B, G, G, P, P, C] in [0, 1].
        batch: holds `index`, int32 [B], and perhaps `copy`, see `views.make`.
        key: the step's key.
        config: reads `patches`, and of `augment` the mean and the standard deviation.

    Returns:
        float32 [B, G, G, P, P, C].
    """
    shape = patches.shape
    grid = shape[1] * shape[2]
    flat = patches.reshape(shape[0], grid, *shape[3:])
    others = flat[::-1]  # of another image
    recipe = config.patches
    index = batch["index"]
    copy = batch.get("copy", jnp.zeros_like(index))

    def one(
        patch: jax.Array, other: jax.Array, index: jax.Array, copy: jax.Array, place: jax.Array
    ) -> jax.Array:
        own = jax.random.fold_in(views.view_key(key, index, copy), PURPOSE)
        return change(patch, other, jax.random.fold_in(own, place), recipe)

    over_places = jax.vmap(one, in_axes=(0, 0, None, None, 0))
    over_images = jax.vmap(over_places, in_axes=(0, 0, 0, 0, None))
    made = over_images(flat, others, index, copy, jnp.arange(grid, dtype=jnp.int32))
    return normalized(made.reshape(shape), config.augment)


def normalized(patches: jax.Array, augment: ConfigDict) -> jax.Array:
    """Patches [..., C] in [0, 1] as the network sees them."""
    rows = patches.reshape(-1, *patches.shape[-2:])
    return normalize(rows, augment.mean, augment.std).reshape(patches.shape)


def change(patch: jax.Array, other: jax.Array, key: jax.Array, recipe: ConfigDict) -> jax.Array:
    """Change one patch at random.

    Args:
        patch: float32 [P, P, C] in [0, 1], C = 3 or 1. Grey patches keep their one channel: operations that
            only colours have are left out.
        other: another patch, for SamplePairing.
        key: determines all that is random.
        recipe: `config.patches`.

    Returns:
        float32 [P, P, C] in [0, 1].
    """
    keys = jax.random.split(key, 6)
    colour = patch.shape[-1] == 3
    if recipe.policy_ops:
        patch = _policy(patch, other, keys[0], recipe.policy_ops)
    if recipe.deform_probability > 0:
        deformed = _deformed(patch, keys[1], recipe)
        patch = jnp.where(_happens(keys[1], recipe.deform_probability), deformed, patch)
    if recipe.histogram_probability > 0:
        u = jax.random.uniform(keys[2], (patch.shape[-1], 5), jnp.float32)
        points = jax.vmap(lambda u: distort.control_points(u, tuple(recipe.slopes), recipe.ends))(u)
        stretched = distort.histogram(patch, points)
        patch = jnp.where(_happens(keys[2], recipe.histogram_probability), stretched, patch)
    if recipe.color_probability > 0:
        coloured = _coloured(patch, keys[3])
        patch = jnp.where(_happens(keys[3], recipe.color_probability), coloured, patch)
    if recipe.grayscale_probability > 0 and colour:
        grey = jax.random.bernoulli(keys[4], recipe.grayscale_probability)
        patch = jnp.where(grey, grayscale(patch), patch)
    if recipe.drop_probability > 0 and colour:
        kept = jax.random.randint(keys[5], (), 0, 3)
        alone = jnp.where(jnp.arange(3) == kept, patch, 0.0)
        patch = jnp.where(_happens(keys[5], recipe.drop_probability), alone, patch)
    return clip(patch)


def _happens(key: jax.Array, probability: float) -> jax.Array:
    """Whether an operation is applied. Its own draws come from the parts that `key` is split into."""
    return jax.random.bernoulli(jax.random.fold_in(key, 9), probability)


def _policy(patch: jax.Array, other: jax.Array, key: jax.Array, ops: int) -> jax.Array:
    """Apply some of AutoAugment's operations, drawn evenly and with replacement, at levels drawn evenly."""
    image = jnp.rint(patch * 255.0)
    other = jnp.rint(other * 255.0)
    count = len(distort.names(patch.shape[-1]))
    for number in range(ops):
        which, strength, turn, place = jax.random.split(jax.random.fold_in(key, number), 4)
        image = distort.drawn_operation(
            jax.random.randint(which, (), 0, count),
            image,
            other,
            level=jax.random.uniform(strength, (), jnp.float32),
            sign=jnp.where(jax.random.bernoulli(turn), 1.0, -1.0),
            centre=jax.random.randint(place, (2,), 0, patch.shape[0]),
        )
    return image / 255.0


def _deformed(patch: jax.Array, key: jax.Array, recipe: ConfigDict) -> jax.Array:
    """Deform a patch by a random field and a random shear."""
    side = patch.shape[0]
    points = distort.field_shape(side, recipe.elastic_spacing)
    field, lean = jax.random.split(key)
    offsets = recipe.elastic_sigma * side * jax.random.normal(field, (2, points, points), jnp.float32)
    shear = jax.random.uniform(lean, (2,), jnp.float32, -recipe.shear, recipe.shear)
    return distort.deform(patch, offsets, shear, spacing=recipe.elastic_spacing)


def _coloured(patch: jax.Array, key: jax.Array) -> jax.Array:
    """Inception's colours at random [C]."""
    order, draws = jax.random.split(key)
    u = jax.random.uniform(draws, (4,), jnp.float32)
    return distort.distort_color(
        patch,
        jax.random.randint(order, (), 0, len(distort.ORDERS)),
        brightness=views.between(u[0], -32 / 255, 32 / 255),
        saturation=views.between(u[1], 0.5, 1.5),
        hue=views.between(u[2], -0.2, 0.2),
        contrast_factor=views.between(u[3], 0.5, 1.5),
    )
