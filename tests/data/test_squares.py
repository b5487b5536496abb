"""Squares: drawn within the central one or within any largest one, and at five places for evaluation."""

import dataclasses
import importlib

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
@pytest.mark.parametrize("library", ["tensorflow", "pillow"])
def test_a_training_view_is_a_piece_of_the_image_or_its_mirror_image(library):
    """Without a change of size, nothing is interpolated: host and device cut out pixels."""
    c = get_config("imagenet_alexnet_linear").linear.copy_and_resolve_references().unlock()
    c.data.update(image_size=28)
    c.augment.update(resize=library, antialias=False)
    image = photograph_like(32, 40)
    # torchvision's Resize(32), CenterCrop(32), RandomCrop(28)
    pieces = {image[y : y + 28, x : x + 28].tobytes() for y in range(5) for x in range(4, 9)}
    mirrored = {image[y : y + 28, x : x + 28][:, ::-1].tobytes() for y in range(5) for x in range(4, 9)}
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


# ------------------------------------------------------------------------------------ DALL-E's random squares

DALLE = dict(min_area=(8 / 12) ** 2, max_area=(8 / 9) ** 2)


def listing_1(rng, height, width, size):
    """Appendix A of arXiv 2102.12092 on an empty image: top, left and side in its pixels, as fractions."""
    short = min(height, width)
    corner = rng.integers(0, [height - short + 1, width - short + 1])
    low, high = min(short, round(9 / 8 * size)), min(short, round(12 / 8 * size))
    resized = rng.integers(low, high + 1)
    inside = rng.integers(0, resized - size + 1, 2)
    return (*(corner + inside * short / resized), size * short / resized)


@pytest.mark.parametrize("height, width", [(375, 500), (500, 333), (400, 400)])
def test_dalles_boxes_have_the_distribution_of_its_listing(height, width):
    tf = crops.tensorflow()
    count = 3000
    draw = lambda i: crops.box_dalle(height, width, tf.stack([np.int64(3), i]), size=256, **DALLE)
    host = np.stack(list(tf.data.Dataset.range(count).map(draw).as_numpy_iterator()))
    on_device = lambda key: geometry.crop_box_dalle(key, height, width, size=256, **DALLE)
    device = np.asarray(jax.jit(jax.vmap(on_device))(jax.random.split(jax.random.key(0), count)))
    rng = np.random.default_rng(0)
    expected = np.array([listing_1(rng, height, width, 256) for _ in range(count)])
    for found in (host, device):
        assert (found[:, 2] == found[:, 3]).all() and (found[:, :2] >= 0).all()
        assert (found[:, :2] + found[:, 2:] <= (height, width)).all()
        for a, b in zip(found.T[:3], expected.T, strict=True):  # pixels
            assert abs(a.mean() - b.mean()) < 5 * b.std() * np.sqrt(2 / count) + 0.5
            levels = np.linspace(0.1, 0.9, 5)
            assert np.abs(np.quantile(a, levels) - np.quantile(b, levels)).max() < 0.15 * b.std() + 1
        short = min(height, width)
        assert found[:, 2].min() == round(short * 256 / min(short, 384))
        assert found[:, 2].max() == round(short * 256 / 288)


def test_a_small_image_is_not_enlarged_and_the_square_lies_anywhere():
    """30 pixels are fewer than 32 to 42, so that 28 of them are cut out as they are."""
    c = get_config("imagenet_alexnet_linear").linear.copy_and_resolve_references().unlock()
    c.data.update(image_size=28)
    c.augment.update(
        crop="dalle", resize="tensorflow", interpolation="area", antialias=False, flip=False, **DALLE
    )
    image = photograph_like(30, 44)
    pieces = [image[y : y + 28, x : x + 28].tobytes() for y in range(3) for x in range(17)]
    pixels = jnp.asarray(image, jnp.float32) / 255
    draw = jax.jit(jax.vmap(lambda key: views.random_crop(pixels, key, c.augment, size=28)))
    device = np.rint(np.asarray(draw(jax.random.split(jax.random.key(1), 40))) * 255).astype(np.uint8)
    host = [np.asarray(crops.training_views(image, np.int64([0, i]), c)["image"][0]) for i in range(40)]
    for found in (host, device):
        columns = [pieces.index(crop.tobytes()) % 17 for crop in found]
        assert min(columns) < 4 and max(columns) > 12  # the central square has 7 to 9


def test_a_shared_crop_of_another_size_would_be_another_and_is_refused():
    c = get_config("imagenet_alexnet_linear").linear.copy_and_resolve_references().unlock()
    c.augment.update(crop="dalle", resize="tensorflow", **DALLE)
    c.views = dict(a=dict(size=64), b=dict(of="a", size=64))
    assert len(views.resolved(c)) == 2
    c.views.b.size = 32
    with pytest.raises(ValueError, match="views.b.size=32: the crop 'dalle' depends on the size.*'a' has 64"):
        views.resolved(c)


# ------------------------------------------------------------------------------------------- means over areas


@pytest.mark.parametrize("box", [(0, 0, 8, 12), (1, 3, 7, 8), (2, 2, 3, 3)])
def test_an_area_is_the_mean_of_what_it_covers(box):
    """By NumPy, from pixels that are each split into many: on the device, and TensorFlow's method."""
    top, left, height, width = box
    image = photograph_like(8, 12)
    cut = image[top : top + height, left : left + width]
    parts = np.float64(cut).repeat(4, 0).repeat(4, 1)  # every fourth of a pixel that 4 new pixels may cut
    expected = parts.reshape(4, height, 4, width, 3).mean((1, 3))
    found = geometry.crop_resize(
        jnp.asarray(image, jnp.float32), jnp.asarray(box, jnp.int32), 4, method="area"
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    np.testing.assert_allclose(crops.resize(cut, 4, 4, "area"), expected, rtol=0, atol=1e-3)


def test_pillow_has_no_means_over_areas():
    c = get_config("imagenet_alexnet_linear").linear.copy_and_resolve_references().unlock()
    c.augment.update(resize="pillow", interpolation="area")
    with pytest.raises(ValueError, match="'area' does not go with augment.resize='pillow'"):
        crops.eval_image(photograph_like(40, 40), c)


@pytest.mark.parametrize("preset", ["dvae:imagenet", "dvae:imagenet_112", "dvae:folder", "beit:imagenet_b"])
def test_tokenizers_of_photographs_crop_as_dalles(preset):
    paper, _, name = preset.partition(":")
    c = importlib.import_module(f"configs.{paper}").get_config(name)
    augment = c.get("tokenizer", c).augment
    assert (augment.crop, augment.interpolation, augment.resize) == ("dalle", "area", "tensorflow")
    assert {key: augment[key] for key in DALLE} == DALLE
