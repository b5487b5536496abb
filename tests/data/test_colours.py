"""Colour spaces: scikit-image's Lab, values by hand, and their way into the network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.cmc import get_config
from ssljax.config import resolve
from ssljax.data import recipes, views
from ssljax.data.augment import rgb_to_lab
from ssljax.data.colours import SPACES, from_rgb, rgb_to_ycbcr, rgb_to_ydbdr, to_rgb
from ssljax.preview import pixels

RED = jnp.float32([[[1.0, 0.0, 0.0]]])


def test_lab_equals_scikit_image(golden):
    g = golden("cmc").under("lab")
    image = jnp.asarray(g["rgb_uint8"]).astype(jnp.float32) / 255.0
    for function in (rgb_to_lab, jax.jit(rgb_to_lab)):
        np.testing.assert_allclose(function(image), g["lab"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "colour, lab, normalised",
    [
        ((1, 1, 1), (100, 0, 0), (1, -0.0653, 0.0661)),
        ((0, 0, 0), (0, 0, 0), (-1, -0.0653, 0.0661)),
        ((1, 0, 0), (53.24, 80.09, 67.20), (0.0648, 0.8033, 0.7304)),
    ],
)
def test_lab_of_known_colours(colour, lab, normalised):
    image = jnp.asarray(colour, jnp.float32).reshape(1, 1, 3)
    np.testing.assert_allclose(rgb_to_lab(image)[0, 0], lab, atol=0.01)
    np.testing.assert_allclose(from_rgb(image, "lab")[0, 0], normalised, atol=1e-4)


def test_the_other_spaces_by_hand():
    np.testing.assert_allclose(rgb_to_ycbcr(RED)[0, 0], [81.481, 90.203, 240.0], rtol=1e-5)
    np.testing.assert_allclose(rgb_to_ycbcr(jnp.ones((1, 1, 3)))[0, 0], [235, 128, 128], rtol=1e-5)
    np.testing.assert_allclose(rgb_to_ydbdr(RED)[0, 0], [0.299, -0.45, -1.333], rtol=1e-5)
    np.testing.assert_allclose(from_rgb(RED, "ydbdr")[0, 0], [-0.316, -0.27648, -0.96099], rtol=1e-4)
    np.testing.assert_allclose(
        from_rgb(RED, "ycbcr")[0, 0], [-34.67 / 109.5, -30.877 / 111.855, 107.658 / 111.964], rtol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("space", ("rgb", *SPACES))
def test_every_space_can_be_undone_and_is_scaled(space):
    image = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 9, 9, 3)), jnp.float32)
    there = jnp.stack([from_rgb(one, space) for one in image])
    np.testing.assert_allclose(to_rgb(there, space), image, atol=1e-4)
    assert np.abs(there).max() <= 1.1


@pytest.mark.slow
def test_views_and_evaluation_see_the_same_channels_and_pictures_stay_rgb():
    c = get_config("cifar10_small").unlock()
    assert c.augment.color_space == "lab"
    c.data.image_size = 8
    c.augment.update(crop="none", flip=False)
    c = resolve(c)
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)), jnp.uint8)
    batch = {"image": image, "index": jnp.arange(3, dtype=jnp.int32)}
    made = views.stacked(batch, jax.random.key(0), c)[:, 0]
    seen = views.for_network(image, c.augment)
    np.testing.assert_allclose(made, seen, atol=1e-6)
    expected = rgb_to_lab(image.astype(jnp.float32) / 255.0)
    np.testing.assert_allclose(seen[..., 0], (expected[..., 0] - 50.0) / 50.0, atol=1e-5)
    np.testing.assert_allclose(seen[..., 2], (expected[..., 2] + 6.6895) / 101.1675, atol=1e-5)
    np.testing.assert_allclose(pixels(made, c.augment), np.asarray(image) / 255.0, atol=1e-4)


def test_grey_images_have_no_colour_space():
    c = get_config("digits").unlock()
    c.augment.color_space = "lab"
    with pytest.raises(ValueError, match="color_space='lab' needs colours, and data.channels=1"):
        recipes.check_channels(c)


@pytest.mark.slow
def test_channels_of_further_views_are_scaled_beside_lab():
    """Views from folders: colours in Lab, and a depth from 0 to 1."""
    image = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 3, 4)), jnp.float32)
    found = from_rgb(image, "lab")
    np.testing.assert_array_equal(found[..., :3], from_rgb(image[..., :3], "lab"))
    np.testing.assert_allclose(found[..., 3], 2 * image[..., 3] - 1, atol=1e-6)
    np.testing.assert_allclose(to_rgb(found, "lab"), image, atol=2e-5)
