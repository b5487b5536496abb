"""BEiT's two views of one crop: against Pillow's resize, jittered together and before the crop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from configs.beit import get_config
from ssljax.data import crops, geometry, pillow, views


def photograph_like(height=150, width=200, seed=0):
    """Smooth noise: large shapes, so that a resize is not all ringing."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 10, width // 10, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def pretraining(**changes):
    c = get_config("imagenet_b").pretrain.copy_and_resolve_references().unlock()
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return c


def test_both_views_are_pillows_resizes_of_one_crop():
    """224 bicubic and 112 Lanczos, each from the crop itself; all boxes that could be meant are tried."""
    c = pretraining(augment__jitter_probability=0.0, augment__flip=False)
    image = photograph_like()
    made = crops.training_views(image, np.int64([3, 17]), c)
    patches, tokens = np.asarray(made["patches"])[0], np.asarray(made["tokens"])[0]
    assert patches.shape == (224, 224, 3) and tokens.shape == (112, 112, 3)

    seed = crops._words(np.int64(3), np.int64(17), 0)
    top, left, height, width = np.asarray(
        crops.box_torchvision(np.int32(150), np.int32(200), seed, min_area=0.08)
    )
    crop = Image.fromarray(image[top : top + height, left : left + width])
    np.testing.assert_array_equal(patches, crop.resize((224, 224), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(tokens, crop.resize((112, 112), Image.Resampling.LANCZOS))
    again = np.asarray(Image.fromarray(patches).resize((112, 112), Image.Resampling.LANCZOS), np.int32)
    assert np.abs(again - tokens).max() > 1  # the one is not made of the other


def test_the_jitter_of_a_file_is_that_of_torchvision_and_comes_before_the_crop():
    """The contrast refers to the mean of the whole image, as in BEiT's code; both views share the factors."""
    c = pretraining(augment__flip=False)
    image = photograph_like(seed=1)
    made = crops.training_views(image, np.int64([0, 5]), c)
    whole = pillow.jitter(image, (c.seed, 0, 5, 0), c.augment)
    assert np.abs(whole.astype(int) - image).max() > 10
    plain = crops.training_views(
        whole, np.int64([0, 5]), pretraining(augment__flip=False, augment__jitter_probability=0.0)
    )
    for name in ("patches", "tokens"):
        np.testing.assert_array_equal(made[name], plain[name])

    flat = np.full((60, 70, 3), (90, 120, 30), np.uint8)
    made = crops.training_views(flat, np.int64([0, 5]), c)
    colours = [np.asarray(made[name]).reshape(-1, 3).mean(0) for name in ("patches", "tokens")]
    np.testing.assert_allclose(colours[0], colours[1], atol=0.01)


def test_the_jitter_by_hand():
    """One operation at a time: a factor in 1 +- 0.4 that reproduces the result."""
    c = pretraining()
    image = photograph_like(40, 40)
    factors = []
    for index in range(30):
        found = pillow.jitter(image, (0, 0, index, 0), c.augment.copy_and_resolve_references().unlock())
        np.testing.assert_array_equal(found, pillow.jitter(image, (0, 0, index, 0), c.augment))
        factors.append(found.mean() / image.mean())
    assert 0.55 < min(factors) < 0.8 and 1.15 < max(factors) < 1.45
    grey = np.full((8, 8, 1), 100, np.uint8)
    bright = pillow.jitter(grey, (0, 0, 0, 0), c.augment)
    assert bright.shape == grey.shape
    enhanced = {
        int(np.asarray(ImageEnhance.Brightness(Image.fromarray(grey[..., 0])).enhance(f))[0, 0])
        for f in np.linspace(0.6, 1.4, 2001)
    }
    assert int(bright[0, 0, 0]) in enhanced
    hued = c.augment.copy_and_resolve_references().unlock()
    hued.jitter_hue = 0.1
    with pytest.raises(ValueError, match="augment.jitter_hue=0"):
        pillow.jitter(image, (0, 0, 0, 0), hued)


@pytest.mark.slow
def test_on_the_device_the_jitter_comes_before_the_crop_too():
    c = get_config("cifar10").pretrain.copy_and_resolve_references().unlock()
    image = jnp.asarray(photograph_like(40, 40)[None])
    batch = {"image": image, "index": jnp.array([3])}
    made = jax.jit(lambda batch: views.make(batch, jax.random.key(1), c))(batch)
    mean, std = (np.asarray(c.augment[name], np.float32) for name in ("mean", "std"))
    patches = np.asarray(made["patches"][0, 0]) * std + mean
    tokens = np.asarray(made["tokens"][0, 0])
    assert patches.shape == tokens.shape == (32, 32, 3)
    assert np.abs(patches - tokens).max() < 0.2 and np.abs(patches - tokens).mean() < 0.01

    # By hand: the whole image jittered with the view's draws, then the same crop.
    recipe = c.augment.copy_and_resolve_references().unlock()
    recipe.jitter_on = "crop"
    own = views.view_key(jax.random.key(1), jnp.int32(3), jnp.int32(0))
    crop_key, color_key = jax.random.split(own)
    drawn = views.draw(color_key, recipe)
    recipe.update(mean=(0.0,) * 3, std=(1.0,) * 3)
    whole = views.color(image[0].astype(jnp.float32) / 255, drawn, recipe)
    expected = views.random_crop(whole, crop_key, c.augment, size=32)
    np.testing.assert_allclose(patches, expected, atol=1e-5)


@pytest.mark.parametrize("size", [(12, 12), (60, 50), (33, 47)])
def test_lanczos_on_the_device_is_pillows(size):
    image = photograph_like(40, 40)
    box = jnp.array([0, 0, 40, 40], jnp.int32)
    found = geometry.crop_resize(
        jnp.asarray(image, jnp.float32), box, size, method="lanczos3", antialias=True
    )
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS), np.float32)
    found = np.asarray(found)
    difference = np.abs(np.clip(found, 0, 255) - expected)
    assert difference.mean() < 0.35 and difference.max() < 3  # Pillow rounds and clips between its two passes
    tensorflow = crops.resize(image, *size, "lanczos3", antialias=True)
    np.testing.assert_allclose(found, tensorflow, atol=0.1)
