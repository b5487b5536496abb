"""Squares of fixed size: drawn within the central one for training, at five places for evaluation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.deepcluster import get_config
from ssljax.data import crops, geometry, loader, sources, views

SHARE = 224 / 256


def boxes_on_the_host(height, width, count):
    tf = crops.tensorflow()
    draw = lambda i: crops.box_square(height, width, tf.stack([np.int64(3), i]), area=SHARE**2)
    return np.stack(list(tf.data.Dataset.range(count).map(draw).as_numpy_iterator()))


def boxes_on_the_device(height, width, count):
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.vmap(lambda key: geometry.crop_box_square(key, height, width, area=SHARE**2))(keys))


@pytest.mark.slow
@pytest.mark.parametrize("draw", [boxes_on_the_host, boxes_on_the_device])
@pytest.mark.parametrize("height, width", [(32, 48), (48, 32), (32, 32)])
def test_squares_are_uniform_within_the_central_one(draw, height, width):
    """Of a central square of 32 pixels, squares of 28: five offsets a side, as RandomCrop(28) has."""
    count = 4000
    found = draw(height, width, count)
    assert (found[:, 2:] == 28).all()
    offset = found[:, :2] - [(height - 32) // 2, (width - 32) // 2]
    assert offset.min() == 0 and offset.max() == 4
    pairs = np.bincount(5 * offset[:, 0] + offset[:, 1], minlength=25)
    assert np.abs(pairs - count / 25).max() < 5 * np.sqrt(count / 25)


def photograph_like(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "library, crop, columns",
    [
        ("tensorflow", "square", range(4, 9)),
        ("pillow", "square", range(4, 9)),
        ("tensorflow", "dalle", range(13)),
    ],
)
def test_a_training_view_is_a_piece_of_the_image_or_its_mirror_image(library, crop, columns):
    """Without a change of size, nothing is interpolated: host and device cut out pixels."""
    c = get_config("imagenet_alexnet_linear").linear.copy_and_resolve_references().unlock()
    c.data.update(image_size=28)
    c.augment.update(resize=library, antialias=False, crop=crop, max_area=0.77)
    image = photograph_like(32, 40)
    # torchvision's Resize(32), CenterCrop(32), RandomCrop(28)
    pieces = {image[y : y + 28, x : x + 28].tobytes() for y in range(5) for x in columns}
    mirrored = {image[y : y + 28, x : x + 28][:, ::-1].tobytes() for y in range(5) for x in columns}
    for i in range(8):
        host = np.asarray(crops.training_views(image, np.int64([0, i]), c)["image"])
        pixels = jnp.asarray(image, jnp.float32) / 255
        device = views.random_crop(pixels, jax.random.key(i), c.augment, size=28)
        device = np.rint(np.asarray(device) * 255).astype(np.uint8)
        assert host[0].tobytes() in pieces | mirrored and device.tobytes() in pieces | mirrored


@pytest.mark.parametrize("height, width", [(40, 40), (40, 56), (56, 40)])
@pytest.mark.parametrize("library", ["tensorflow", "pillow"])
def test_the_five_places_are_those_of_torchvisions_five_crop(library, height, width):
    """Corners of the whole image, not of its central square; host and memory agree to the grey level."""
    c = get_config("imagenet_alexnet_linear").linear.copy_and_resolve_references().unlock()
    c.data.update(image_size=35, eval_crop=SHARE, channels=3)
    c.augment.update(resize=library, antialias=False)
    image = photograph_like(height, width)
    bottom, right = height - 35, width - 35
    middle = ((bottom + 1) // 2, (right + 1) // 2)
    if library == "pillow":  # torchvision rounds to even
        middle = (round(bottom / 2), round(right / 2))
    starts = [(0, 0), (0, right), (bottom, 0), (bottom, right), middle]
    digits = sources.load(get_config("digits").data, "train").select(range(2))
    source = dataclasses.replace(digits, images=np.stack([image, image[::-1]]))
    for place, (y, x) in zip(geometry.FIVE, starts, strict=True):
        expected = image[y : y + 35, x : x + 35]
        np.testing.assert_array_equal(crops.eval_image(image, c, place), expected)
        (batch,) = loader.eval_batches(source, c, batch_size=2, place=place)
        np.testing.assert_array_equal(batch["image"][0], expected)
    assert geometry.FIVE[4] == geometry.CENTRE
    np.testing.assert_array_equal(crops.eval_image(image, c), expected)
