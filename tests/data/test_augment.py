"""Operations match TensorFlow, torchvision and the released code; recipes keep their invariants."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import simclr
from ssljax import sharding
from ssljax.data import augment, views


@pytest.fixture(scope="module")
def g(golden):
    return golden("augment")


@pytest.fixture(scope="module")
def image(g):
    return jnp.asarray(g["image_uint8"], jnp.float32) / 255.0


def close(actual, expected, atol=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


# ----------------------------------------------------------------------------------------------- operations


@pytest.mark.parametrize(
    "name, parameters, function, expected, atol",
    [
        (
            "simclr/brightness",
            "simclr/brightness_v2_factors",
            augment.brightness,
            "simclr/brightness_v2_unclipped",
            1e-5,
        ),
        (
            "simclr/brightness_v1",
            "simclr/brightness_v1_deltas",
            augment.brightness_add,
            "simclr/brightness_v1_unclipped",
            1e-5,
        ),
        ("simclr/contrast", "simclr/contrast_factors", augment.contrast, "simclr/contrast_unclipped", 1e-5),
        ("simclr/saturation", "simclr/saturation_factors", augment.saturation, "simclr/saturation", 1e-5),
        ("simclr/hue", "simclr/hue_deltas", augment.hue, "simclr/hue", 1e-4),
        (
            "tv/brightness",
            "tv/brightness_factors",
            lambda x, f: augment.clip(augment.brightness(x, f)),
            "tv/brightness_float",
            1e-5,
        ),
        (
            "tv/contrast",
            "tv/contrast_factors",
            lambda x, f: augment.clip(augment.contrast_torchvision(x, f)),
            "tv/contrast_float",
            1e-5,
        ),
        (
            "tv/saturation",
            "tv/saturation_factors",
            lambda x, f: augment.clip(augment.saturation_torchvision(x, f)),
            "tv/saturation_float",
            1e-5,
        ),
        ("tv/hue", "tv/hue_factors", augment.hue, "tv/hue_float", 1e-4),
    ],
)
def test_colour_operation(g, image, name, parameters, function, expected, atol):
    values = jnp.asarray(g[parameters], jnp.float32)
    close(jax.vmap(function, in_axes=(None, 0))(image, values), g[expected], atol)


@pytest.mark.slow
def test_byol_operations(g, image):
    close(augment.saturation(image, jnp.float32(1.3)), g["byol/saturation_1p3"])
    close(augment.hue(image, jnp.float32(0.07)), g["byol/hue_0p07"], 1e-4)
    close(augment.contrast(image, jnp.float32(0.7)), g["byol/contrast_0p7"])
    close(augment.brightness_add(image, jnp.float32(0.2)), g["byol/brightness_plus0p2"])
    close(augment.solarize(image, 0.5), g["byol/solarize_0p5"])
    close(augment.gaussian_blur(image, jnp.float32(1.2), kernel_size=23), g["byol/blur_k23_sigma1p2"])


def test_grayscale(g, image):
    close(augment.grayscale(image), g["simclr/grayscale3"])
    close(augment.grayscale(image), g["tv/grayscale3_float"])


def test_solarize_and_normalize(g, image):
    close(augment.solarize(image, jnp.float32(g["tv/solarize_threshold"])), g["tv/solarize_float"])
    close(augment.normalize(image, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), g["normalize/imagenet"])


@pytest.mark.parametrize("case", range(4))
def test_blur_with_zero_padding(g, image, case):
    size = int(g[f"simclr/blur{case}_kernel_size_argument"])
    sigma = jnp.float32(g[f"simclr/blur{case}_sigma"])
    close(augment.gaussian_blur(image, sigma, kernel_size=size), g[f"simclr/blur{case}"])


def test_blur_with_reflection(g, image):
    size = int(g["tv/blur_kernel_size"])
    for sigma, expected in zip(g["tv/blur_sigmas"], g["tv/blur_float"], strict=True):
        blurred = augment.gaussian_blur(image, jnp.float32(sigma), kernel_size=size, padding="reflect")
        close(blurred, expected)


def test_blur_kernel_follows_the_size():
    assert [augment.blur_kernel_size(s) for s in (224, 96, 32)] == [23, 9, 3]


def test_blur_refuses_what_it_cannot_do(image):
    with pytest.raises(ValueError, match="kernel_size=61 reaches 30"):
        augment.gaussian_blur(image, 1.0, kernel_size=61, padding="reflect")
    with pytest.raises(ValueError, match="padding='edge'"):
        augment.gaussian_blur(image, 1.0, kernel_size=3, padding="edge")


# ----------------------------------------------------------------------------------------------- the recipe


@pytest.fixture(scope="module")
def recipe():
    """A copy of the ImageNet recipe, which a test may change."""
    return simclr.get_config("imagenet_r50").augment.copy_and_resolve_references().unlock()


def made(recipe, size, count=2):
    """Return a jitted function from (images, index, key, copy) to the views."""
    config = ConfigDict(dict(data=dict(image_size=size), augment=recipe, views=dict(only=dict(count=count))))

    def make(images, index, key, copy=None):
        batch = {"image": images, "index": index, **({} if copy is None else {"copy": copy})}
        return views.stacked(batch, key, config)

    return jax.jit(make)


@pytest.mark.slow
def test_jitter_is_the_four_operations_in_turn(image):
    names = ("brightness", "contrast", "saturation", "hue")
    values = dict(zip(names, map(jnp.float32, (1.3, 1.6, 0.4, -0.15)), strict=True))
    jitter = jax.jit(augment.color_jitter)
    for order in itertools.permutations(range(4)):
        expected = image
        for i in order:
            operation = getattr(augment, names[i])
            expected = augment.clip(operation(expected, values[names[i]]))
        rank = jnp.asarray([order.index(i) for i in range(4)], jnp.int32)
        close(jitter(image, augment.Jitter(**values, rank=rank)), expected)


def test_jitter_of_strength_zero_is_the_identity(recipe, image):
    recipe = recipe.copy_and_resolve_references()
    recipe.update(jitter_strength=0.0, jitter_probability=1.0)
    for brightness in ("multiply", "add"):
        recipe.brightness = brightness
        drawn = views.draw(jax.random.key(3), recipe)
        close(augment.color_jitter(image, drawn.jitter, additive=brightness == "add"), image, 1e-6)


def test_draw_has_the_ranges_of_the_paper(recipe):
    n = 4000
    d = jax.vmap(lambda k: views.draw(k, recipe))(jax.random.split(jax.random.key(0), n))
    for values, low, high in (
        (d.jitter.brightness, -0.8, 0.8),
        (d.jitter.contrast, 0.2, 1.8),
        (d.jitter.saturation, 0.2, 1.8),
        (d.jitter.hue, -0.2, 0.2),
        (d.sigma, 0.1, 2.0),
    ):
        margin = 0.01 * (high - low)
        assert low <= values.min() < low + margin
        assert high - margin < values.max() <= high
        close(values.mean(), (low + high) / 2, 0.02 * (high - low))
    for applied, probability in ((d.apply_jitter, 0.8), (d.apply_grayscale, 0.2), (d.apply_blur, 0.5)):
        close(applied.mean(), probability, 0.03)
    _, counts = np.unique(np.asarray(d.jitter.rank), axis=0, return_counts=True)
    assert len(counts) == 24  # every order, about equally often
    assert counts.min() > n / 24 * 0.65 and counts.max() < n / 24 * 1.4
    assert np.corrcoef(d.apply_jitter, d.apply_grayscale)[0, 1] < 0.05


@pytest.mark.slow
def test_views_depend_on_key_index_and_view_only(recipe):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (4, 16, 16, 3)), jnp.uint8)
    index = jnp.asarray([7, 100, 3, 9], jnp.int32)
    make = made(recipe, 16)
    key = jax.random.key(0)
    all_views = make(images, index, key)
    assert all_views.shape == (4, 2, 16, 16, 3) and all_views.dtype == jnp.float32
    assert all_views.min() >= 0.0 and all_views.max() <= 1.0
    in_reverse = make(images[::-1], index[::-1], key)[::-1]
    np.testing.assert_array_equal(in_reverse, all_views)  # the place in the batch does not matter
    assert all(abs(v[0] - v[1]).max() > 0.02 for v in all_views)  # the two views differ
    assert abs(make(images, index + 1, key) - all_views).max() > 0.1  # the index matters
    assert abs(make(images, index, jax.random.key(1)) - all_views).max() > 0.1  # the key matters


@pytest.mark.slow
def test_copies_of_an_image_have_views_of_their_own(recipe):
    """Copy c has views cV .. cV+V-1 of its example, so the first copy has the views made without repeats."""
    recipe = recipe.copy_and_resolve_references()
    recipe.update(blur_probability=0.0, erasing_probability=1.0)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 12, 12, 3)), jnp.uint8)
    index = jnp.asarray([7, 7, 7, 9], jnp.int32)
    copy = jnp.asarray([0, 1, 2, 0], jnp.int32)
    images = images.at[1:3].set(images[0])
    two = made(recipe, 12)(images, index, jax.random.key(0), copy)
    six = made(recipe, 12, 6)(images[:1].repeat(4, 0), index, jax.random.key(0))
    close(two[:3].reshape(6, 12, 12, 3), six[0], 2e-6)
    assert all(abs(two[a] - two[b]).max() > 0.1 for a, b in itertools.combinations(range(4), 2))


def test_erasing_comes_last_in_normalised_units(recipe):
    """With a standard deviation of 0.01, noise added before normalising would be a hundred times as large."""
    recipe = recipe.copy_and_resolve_references()
    recipe.update(
        jitter_probability=0.0,
        grayscale_probability=0.0,
        blur_probability=0.0,
        erasing_probability=1.0,
        mean=(0.5, 0.5, 0.5),
        std=(0.01, 0.01, 0.01),
    )
    image = jnp.full((16, 16, 3), 255, jnp.uint8)  # 50 once normalised
    make = jax.jit(jax.vmap(lambda k: views.view(image, k, recipe, size=16, crop=False)))
    many = np.asarray(make(jax.random.split(jax.random.key(0), 200)))
    noise = many[abs(many - 50.0) > 1e-3]
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1.0) < 0.05
    assert 0.05 < noise.size / many.size < 0.3


@pytest.mark.slow
def test_eight_devices_make_the_views_of_one(recipe):
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (16, 2, 12, 12, 3)), jnp.uint8)
    index = jnp.arange(16, dtype=jnp.int32)
    key = jax.random.key(0)
    make = made(recipe, 12)
    rows = sharding.batch_sharding(sharding.make_mesh(8))
    shards = make(jax.device_put(images, rows), jax.device_put(index, rows), key)
    assert shards.sharding.is_equivalent_to(rows, shards.ndim)
    one = np.asarray(make(images, index, key))
    close(make(images[:2], index[:2], key), one[:2], 2e-6)  # the batch size does not matter either
    close(np.asarray(shards), one, 2e-6)  # compiled for 2 rows per device, not 16: the last bit may differ


def test_one_channel(recipe):
    recipe = recipe.copy_and_resolve_references()
    recipe.update(
        mean=(0.0,),
        std=(1.0,),
        crop="affine",
        rotate=10.0,
        shift=0.1,
        zoom=0.1,
        shear=5.0,
        flip=False,
        blur_probability=0.0,
    )
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)), jnp.uint8)
    out = made(recipe, 16)(images, jnp.arange(3, dtype=jnp.int32), jax.random.key(0))  # affine resizes
    assert out.shape == (3, 2, 16, 16, 1) and out.min() >= 0.0 and out.max() <= 1.0 and out.std() > 0.1


def test_nothing_random_is_the_image_normalised(recipe, image):
    recipe = recipe.copy_and_resolve_references()
    recipe.update(
        jitter_probability=0.0,
        grayscale_probability=0.0,
        blur_probability=0.0,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
    )
    pixels = jnp.asarray(image[:24, :24] * 255, jnp.uint8)
    centred = np.asarray(pixels, np.float32) / 255 - np.float32([0.5, 0.4, 0.3])
    expected = centred / np.float32([0.2, 0.3, 0.4])
    close(views.view(pixels, jax.random.key(0), recipe, size=24, crop=False), expected, 1e-5)
    recipe.update(crop="none", flip=True)
    make = jax.vmap(lambda k: views.view(pixels, k, recipe, size=24, crop=True))
    crops = make(jax.random.split(jax.random.key(0), 8))
    mirrored = [bool(abs(c - expected[:, ::-1]).max() < 1e-5) for c in crops]
    assert 0 < sum(mirrored) < 8
    assert all(m or abs(c - expected).max() < 1e-5 for m, c in zip(mirrored, crops, strict=True))


@pytest.mark.slow
def test_gray_blur_and_the_shared_sigma(recipe, image):
    recipe = recipe.copy_and_resolve_references()
    recipe.update(
        jitter_probability=0.0, grayscale_probability=1.0, blur_probability=1.0, blur_sigma_per="batch"
    )
    pixels = jnp.asarray(image[:24, :24] * 255, jnp.uint8)
    batch = jnp.stack([jnp.stack([pixels] * 2)] * 3)
    index = jnp.arange(3, dtype=jnp.int32)
    key = jax.random.key(5)
    out = made(recipe, 24)(batch, index, key)
    assert abs(out - out[..., :1]).max() == 0.0  # grey: equal channels
    same = jnp.broadcast_to(out[:1], out[1:].shape)
    np.testing.assert_array_equal(out[1:], same)  # one sigma for the batch
    sigma = views.batch_sigma(key, recipe, 2)
    grey = augment.grayscale(augment.to_float(pixels))
    size = augment.blur_kernel_size(24)
    for v in range(2):  # and one for each view
        close(out[0, v], augment.gaussian_blur(grey, sigma[v], kernel_size=size))
    assert sigma[0] != sigma[1]
    recipe.blur_sigma_per = "image"
    each = made(recipe, 24)(batch, index, key)
    assert abs(each[0] - each[1]).max() > 1e-4


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(crop="centre"), "augment.crop='centre'"),
        (dict(brightness="scale"), "augment.brightness='scale'"),
        (dict(blur_sigma_per="pixel"), "augment.blur_sigma_per='pixel'"),
        (dict(crop="none"), "the image is 8x8 and the view's size=6"),
        (dict(jitter="pillow"), "augment.jitter='pillow' is unknown. Use 'tensorflow' or 'torchvision'"),
        (dict(jitter_order="sorted"), "augment.jitter_order='sorted' is unknown. Use 'random' or 'fixed'"),
        (
            dict(brightness="add", jitter="torchvision"),
            "brightness='add' does not go with jitter='torchvision'",
        ),
        (dict(interpolation="nearest"), "method='nearest'.*bicubic, bilinear"),
        (dict(blur_border="edge"), "padding='edge'"),
    ],
)
def test_bad_settings_are_named(recipe, change, message):
    recipe = recipe.copy_and_resolve_references()
    recipe.update(change)
    with pytest.raises(ValueError, match=message):
        made(recipe, 6)(jnp.zeros((2, 8, 8, 3), jnp.uint8), jnp.arange(2, dtype=jnp.int32), jax.random.key(0))


def test_wrong_number_of_views(recipe):
    images = jnp.zeros((2, 3, 8, 8, 3), jnp.uint8)
    index = jnp.arange(2, dtype=jnp.int32)
    with pytest.raises(ValueError, match="3 views of each image, but config.views has 2"):
        made(recipe, 8)(images, index, jax.random.key(0))
