"""The corruptions equal the released code's, on the same random numbers; and they depend on the id alone."""

import io

import numpy as np
import pytest
from PIL import Image

from ssljax.data import corruption_textures as textures
from ssljax.data import corruptions

PUBLISHED = [name for name in corruptions.CORRUPTIONS if name != "frost"]


@pytest.fixture(scope="module")
def g(golden):
    return golden("corruptions")


def draw(name, severity, index=0):
    """The generator that the released code was run with; see tests/golden/README.md."""
    names = list(corruptions.IMAGENET)
    return np.random.Generator(np.random.Philox(key=[8 * names.index(name) + severity, index]))


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("size", [32, 224])
def test_equal_to_the_released_code(g, size, name):
    """Values that lie on a whole number are cut to it or to the one below, so one grey level may be missing.

    Glass blur cuts twice.
    """
    image = g[f"{size}/image"]
    step = size // 16
    for severity, expected in enumerate(g[f"{size}/{name}"], 1):
        made = corruptions.applied(image[None], name, severity, [draw(name, severity)])[0]
        found = made[step // 2 :: step, step // 2 :: step].astype(int)
        difference = np.abs(found - expected)
        assert difference.max() <= (2 if name == "glass_blur" else 1), severity
        assert difference.mean() < 0.21, severity
        exact = name in ("gaussian_noise", "shot_noise", "impulse_noise", "contrast", "fog", "pixelate")
        assert not exact or not difference.any()
    assert (np.diff(np.abs(g[f"{size}/{name}"].astype(int)), axis=0) != 0).any()


def photograph(size, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((size, size), Image.BICUBIC)
    return np.asarray(small if channels == 3 else small.convert("L")).reshape(size, size, channels)


@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
@pytest.mark.parametrize("size, channels", [(8, 1), (28, 1), (32, 3), (100, 3)])
def test_an_image_depends_on_its_id_alone(name, size, channels):
    images = np.stack([photograph(size, channels, seed) for seed in range(3)])
    ids = np.array([5, 9, 2**31 - 1])
    before = images.copy()
    together = corruptions.corrupt(images, ids, name, 3)
    assert together.dtype == np.uint8 and together.shape == images.shape
    np.testing.assert_array_equal(images, before)
    backwards = corruptions.corrupt(images[::-1], ids[::-1], name, 3)[::-1]
    np.testing.assert_array_equal(backwards, together)
    np.testing.assert_array_equal(corruptions.corrupt(images[1:2], ids[1:2], name, 3)[0], together[1])
    assert (together != images).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("name", ["gaussian_noise", "glass_blur", "fog", "frost", "motion_blur"])
def test_other_ids_and_severities_have_other_random_numbers(name):
    images = np.stack([photograph(32)] * 2)
    made = corruptions.corrupt(images, np.array([0, 1]), name, 2)
    assert (made[0] != made[1]).any()
    first, second = (corruptions.generator(name, severity, 7).random(4) for severity in (2, 3))
    assert (first != second).all()


def test_a_batch_in_pieces_is_the_same(monkeypatch):
    images = np.stack([photograph(32, seed=i) for i in range(7)])
    whole = corruptions.corrupt(images, np.arange(7), "elastic_transform", 2)
    monkeypatch.setattr(corruptions, "CHUNK", 2 * 32 * 32 * 3)
    np.testing.assert_array_equal(corruptions.corrupt(images, np.arange(7), "elastic_transform", 2), whole)


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 128])
@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
def test_severity_five_is_further_from_the_image_than_severity_one(name, size):
    """But for the elastic transform, which changes in kind, and frost, which gets more opaque."""
    images = np.stack([photograph(size, seed=i) for i in range(16)])
    distance = [
        np.abs(corruptions.corrupt(images, np.arange(16), name, s).astype(float) - images).mean()
        for s in (1, 5)
    ]
    assert name in ("elastic_transform", "frost") or distance[1] > 1.15 * distance[0]


@pytest.mark.parametrize(
    "size, constants",
    [
        (32, [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)]),
        (128, [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)]),
    ],
)
def test_frost_is_laid_over_the_image(size, constants):
    image = photograph(size)
    for severity, (keep, cover) in enumerate(constants, 1):
        layer = textures.frost(draw("frost", severity), size, 3)
        found = corruptions.applied(image[None], "frost", severity, [draw("frost", severity)])[0]
        expected = np.minimum(keep * image + cover * 255 * layer, 255)
        np.testing.assert_allclose(found, expected - 0.5, atol=0.51)


def test_large_images_are_stored_as_jpeg_and_small_ones_are_not():
    large = photograph(128)[None]
    cut = corruptions.applied(large, "contrast", 2, [draw("contrast", 2)])[0]
    file = io.BytesIO()
    Image.fromarray(cut).save(file, "JPEG", quality=85)
    found = corruptions.corrupt(large, np.array([0]), "contrast", 2)[0]
    np.testing.assert_array_equal(found, np.asarray(Image.open(file)))
    small = photograph(32)[None]
    cut = corruptions.applied(small, "contrast", 2, [draw("contrast", 2)])
    np.testing.assert_array_equal(corruptions.corrupt(small, np.array([0]), "contrast", 2), cut)


def test_glass_copies_the_value_that_a_neighbour_has_at_that_time():
    """The released loop, pixel by pixel: its exchange of two views is a copy."""
    size, reach = 9, 3
    moves = np.random.default_rng(0).integers(-reach, reach, size=(3, 3, 3, 2))
    source = textures.copied_from(moves, size, reach)
    for one, found in zip(moves, source, strict=True):
        pixels = np.arange(size * size).reshape(size, size, 1)
        for i, h in enumerate(range(size - reach, reach, -1)):
            for j, w in enumerate(range(size - reach, reach, -1)):
                dx, dy = one[i, j]
                pixels[h, w], pixels[h + dy, w + dx] = pixels[h + dy, w + dx], pixels[h, w]
        np.testing.assert_array_equal(found, pixels.ravel())
        assert (found != np.arange(size * size)).any()


def test_motion_is_one_half_of_a_gaussian():
    """A white line, moved across: by hand."""
    image = np.zeros((15, 15, 1))
    image[:, 9] = 1.0
    moved = textures.motion_blur(image, 2, 1.0, 0.0)[7, :, 0]
    weights = np.exp(-0.5 * np.arange(5) ** 2)
    expected = np.zeros(15)
    expected[9 - np.arange(5)] = weights / weights.sum()
    np.testing.assert_allclose(moved, expected, atol=1 / 255)
    assert (moved <= expected + 1e-9).all()  # cut, not rounded


def test_frost_has_the_brightness_and_colour_of_the_photographs():
    """The substitute is told from the original by its statistics alone, so they are what can be tested."""
    for which in range(5):
        layers = []
        for seed in range(300):
            rng = np.random.default_rng(seed)
            if np.random.default_rng(seed).integers(5) == which:
                layers.append(255 * textures.frost(rng, 32, 3))
        mean = np.stack(layers).mean(axis=(0, 1, 2))
        expected = np.array(
            [(78, 149, 166), (201, 205, 215), (201, 205, 215), (138, 153, 165), (112, 123, 135)]
        )
        np.testing.assert_allclose(mean, expected[which], atol=9)


def test_unknown_names_and_shapes_are_answered():
    image = photograph(32)[None]
    with pytest.raises(ValueError, match="corruption 'rain' at severity 1 is unknown: use 1 to 5 of gauss"):
        corruptions.corrupt(image, np.array([0]), "rain", 1)
    with pytest.raises(ValueError, match="severity 0 is unknown"):
        corruptions.corrupt(image, np.array([0]), "fog", 0)
    with pytest.raises(ValueError, match=r"images \[1, 20, 32, 3\]: expected square"):
        corruptions.corrupt(image[:, :20], np.array([0]), "fog", 1)
