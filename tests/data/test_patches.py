"""The changes of CPC's patches: AutoAugment's operations, histograms, deformations, Inception's colours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.cpc import PATCHES, get_config
from ssljax import models
from ssljax.data import distort, loader, patches, views

SIDE = 12
OFF = dict(
    PATCHES,
    policy_ops=0,
    deform_probability=0.0,
    histogram_probability=0.0,
    color_probability=0.0,
    grayscale_probability=0.0,
)


def random(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=shape), jnp.float32)


def config(channels=3, **recipe):
    """CIFAR-10's small preset with these changes of patches and no others."""
    c = get_config("cifar10_small" if channels == 3 else "fashion_mnist").unlock()
    c.patches = {**OFF, **recipe}
    c.augment.update(mean=(0.0,) * channels, std=(1.0,) * channels)
    return c


def changed(c):
    run = jax.jit(lambda x, index, key: patches.changed(x, {"index": index}, key, c))
    return lambda x, index=(7, 8), seed=0: np.asarray(run(x, np.int32(index), jax.random.key(seed)))


# ---------------------------------------------------------------------------------------- all operations


@pytest.mark.slow
@pytest.mark.parametrize("channels", (3, 1))
def test_every_patch_of_a_constant_image_becomes_another(channels):
    """All operations at once, in [0, 1]; by key, image and place, and not by the place in the batch."""
    run = changed(config(channels, **{**PATCHES, "color_probability": 1.0, "policy_ops": 2}))
    x = (
        jnp.full((2, 2, 2, SIDE, SIDE, channels), 0.4, jnp.float32)
        + 0.2 * random((SIDE, SIDE, channels))[None, None, None]
    )
    first = run(x)
    assert first.shape == x.shape and first.dtype == np.float32
    assert first.min() >= 0 and first.max() <= 1
    flat = first.reshape(8, -1)
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(flat) for b in flat[:i])
    np.testing.assert_array_equal(run(x, index=(8, 7))[::-1], first)
    assert np.abs(run(x, seed=1) - first).max() > 0.01


def test_nothing_is_changed_where_everything_is_off_and_pixels_are_normalised_last():
    c = config()
    x = random((2, 2, 2, SIDE, SIDE, 3))
    np.testing.assert_array_equal(changed(c)(x), x)
    c.augment.update(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    expected = (np.asarray(x) - (0.1, 0.2, 0.3)) / (0.5, 0.6, 0.7)
    np.testing.assert_allclose(changed(c)(x), expected, rtol=1e-5, atol=1e-6)


def test_grey_and_dropped_channels():
    x = random((2, 2, 2, SIDE, SIDE, 3))
    grey = changed(config(grayscale_probability=1.0))(x)
    np.testing.assert_array_equal(grey[..., 0], grey[..., 1])
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    assert grey.std() > 0.1
    alone = changed(config(drop_probability=1.0))(x).reshape(8, -1, 3)
    constant = alone.std(1) == 0
    assert (constant.sum(1) == 2).all()
    kept = np.asarray(x).reshape(8, -1, 3)[~np.broadcast_to(constant[:, None], alone.shape)]
    np.testing.assert_array_equal(alone[~np.broadcast_to(constant[:, None], alone.shape)], kept)


def test_probabilities_are_those_of_the_paper():
    assert {key: PATCHES[key] for key in OFF if key.endswith("probability")} == dict(
        deform_probability=0.2,
        histogram_probability=0.2,
        color_probability=0.8,
        grayscale_probability=0.25,
        drop_probability=0.0,
    )
    x = random((40, 4, 4, 4, 4, 3))
    grey = changed(config(grayscale_probability=0.25))(x, range(40))
    share = (grey[..., 0] == grey[..., 1]).all((-1, -2)).mean()
    assert abs(share - 0.25) < 0.06  # 640 patches: four standard errors


# ------------------------------------------------------------------------------------------- AutoAugment


operation = jax.jit(distort.operation, static_argnums=0)


def drawn(name, image, level=1.0, sign=1.0, other=None, centre=(4, 4)):
    other = np.zeros_like(image) if other is None else other
    number = distort.names(image.shape[-1]).index(name)
    args = (image, other, np.float32(level), np.float32(sign), np.int32(centre))
    by_number = jax.jit(distort.drawn_operation)(np.int32(number), *args)
    np.testing.assert_allclose(by_number, operation(name, *args), atol=1, err_msg=name)  # rounding
    return np.asarray(by_number)


@pytest.mark.slow
def test_autoaugments_operations_by_hand():
    x = image = np.rint(255 * np.asarray(random((80, 80, 3))))
    assert len(distort.NAMES) == 16 and len(distort.names(1)) == 15
    np.testing.assert_array_equal(drawn("Invert", image), 255 - x)
    np.testing.assert_array_equal(drawn("Solarize", image, 0.5), np.where(x < 128, x, 255 - x))
    np.testing.assert_array_equal(drawn("Posterize", image, 0.0), np.floor(x / 16) * 16)  # 4 bits
    np.testing.assert_array_equal(drawn("Posterize", image, 0.999), x)  # 8 bits
    np.testing.assert_array_equal(drawn("Brightness", image, 0.5), x)
    np.testing.assert_allclose(drawn("Brightness", image, 0.0), np.floor(np.float32(0.1) * x), atol=1)
    np.testing.assert_allclose(
        drawn("SamplePairing", image, 1.0, other=255 - image), np.floor(0.6 * x + 0.4 * (255 - x)), atol=1
    )
    # 150 of 331 pixels are 36.25 of 80, to the nearest pixel 36; the rest is grey.
    moved = drawn("TranslateX", image, 1.0)
    np.testing.assert_array_equal(moved[:, :44], x[:, 36:])
    np.testing.assert_array_equal(moved[:, 44:], np.full((80, 36, 3), 128))
    np.testing.assert_array_equal(drawn("TranslateY", image, 1.0, sign=-1.0)[36:], x[:44])
    # Cutout's box of 60 of 331 pixels is 14.5 of 80.
    hole = (drawn("Cutout", np.zeros_like(image), 1.0, centre=(40, 40)) == 128).all(-1)
    assert hole.any(0).sum() == hole.any(1).sum() == 15 and hole.sum() == 225
    for name in ("ShearX", "ShearY", "Rotate", "Sharpness", "Contrast", "Color", "AutoContrast", "Equalize"):
        found = drawn(name, image, 0.9)
        assert found.shape == x.shape and (found == np.floor(found)).all(), name
        assert name in ("AutoContrast",) or np.abs(found - x).max() > 1, name


# ------------------------------------------------------------------------------- histograms and deformations


@pytest.mark.slow
def test_lookup_tables_rise_within_their_slopes():
    u = random((200, 5), 1)
    points = np.asarray(jax.jit(jax.vmap(lambda u: distort.control_points(u, (0.5, 2.0), 0.1)))(u))
    assert np.abs(points[:, 0]).max() <= 0.1 and np.abs(points[:, -1] - 1).max() <= 0.1
    slopes = np.diff(points, axis=1) * 4
    assert slopes.min() >= 0.5 - 1e-5 and slopes.max() <= 2 + 1e-5
    assert slopes.min() < 0.7 and slopes.max() > 1.4  # they are used
    x = np.linspace(0, 1, 50, dtype=np.float32)
    dense = np.asarray(jax.jit(jax.vmap(distort.look_up, (None, 0)))(x, points))
    assert (np.diff(dense, axis=1) > 0).all()
    np.testing.assert_allclose(dense[:, [0, -1]], points[:, [0, -1]], atol=1e-5)  # the line beyond the ends


def test_slopes_of_one_are_the_identity():
    points = jax.jit(lambda u: distort.control_points(u, (1.0, 1.0), 0.0))(random((5,), 2))
    np.testing.assert_allclose(points, [0, 0.25, 0.5, 0.75, 1], atol=1e-7)
    image = random((SIDE, SIDE, 3))
    np.testing.assert_allclose(jax.jit(distort.histogram)(image, np.stack([points] * 3)), image, atol=1e-6)


def test_the_cubic_b_spline_and_its_middle_by_hand():
    np.testing.assert_allclose(
        jax.jit(distort.cubic)(jnp.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0], jnp.float32)),
        [2 / 3, 23 / 48, 1 / 6, 1 / 48, 0, 0],
        atol=1e-6,
    )
    points = jnp.array([0.0, 0.1, 0.6, 0.7, 1.0], jnp.float32)
    found = jax.jit(distort.look_up)(np.float32([0.5]), points)
    np.testing.assert_allclose(found, [(0.1 + 4 * 0.6 + 0.7) / 6], rtol=1e-5)


deform = jax.jit(distort.deform, static_argnames="spacing")


@pytest.mark.slow
def test_a_deformation_without_offsets_and_shear_is_the_identity_and_offsets_move_pixels():
    image = random((SIDE, SIDE, 3))
    points = distort.field_shape(SIDE, 0.25)
    none = np.zeros(2, np.float32)
    still = deform(image, np.zeros((2, points, points), np.float32), none, spacing=0.25)
    np.testing.assert_allclose(still, image, atol=1e-6)
    down = np.zeros((2, points, points), np.float32)
    down[0] = 2.0  # everywhere from two pixels below
    moved = np.asarray(deform(image, down, none, spacing=0.25))
    image = np.asarray(image)
    np.testing.assert_allclose(moved[:-2], image[2:], atol=1e-5)
    np.testing.assert_allclose(moved[-2:], np.stack([image[-1]] * 2), atol=1e-5)  # the edge is repeated
    assert distort.field_shape(80, 20 / 80) == 7


@pytest.mark.slow
def test_a_shear_follows_its_matrix():
    """Row y is read from (y + s01 x), column x from (s10 y + x), about the centre."""
    ramp = np.arange(9, dtype=np.float32)[:, None, None].repeat(9, 1)
    field = np.zeros((2, 7, 7), np.float32)
    by_row = deform(ramp, field, np.float32([0.25, 0.0]), spacing=0.25)[..., 0]
    x = np.arange(9) - 4
    expected = np.clip(np.arange(9)[:, None] + 0.25 * x[None], 0, 8)
    np.testing.assert_allclose(by_row, expected, atol=1e-5)
    by_column = deform(ramp, field, np.float32([0.0, 0.25]), spacing=0.25)[..., 0]
    np.testing.assert_allclose(by_column, ramp[..., 0], atol=1e-5)  # columns of a row are all alike


# --------------------------------------------------------------------------------------------- Inception


def test_each_order_of_inceptions_colours_against_tensorflow():
    tf = pytest.importorskip("tensorflow")
    image = random((6, 7, 3), 4)
    how = dict(brightness=0.11, saturation=1.4, hue=-0.15, contrast_factor=0.6)
    steps = {
        "B": lambda x: tf.image.adjust_brightness(x, how["brightness"]),
        "S": lambda x: tf.image.adjust_saturation(x, how["saturation"]),
        "H": lambda x: tf.image.adjust_hue(x, how["hue"]),
        "C": lambda x: tf.image.adjust_contrast(x, how["contrast_factor"]),
    }
    draws = {name: jnp.float32(value) for name, value in how.items()}
    found = jax.jit(jax.vmap(lambda order: distort.distort_color(image, order, **draws)))(jnp.arange(4))
    for number, order in enumerate(("BSHC", "SBCH", "CHBS", "HSCB")):
        x = tf.constant(np.asarray(image))
        for letter in order:
            x = steps[letter](x)
        np.testing.assert_allclose(found[number], np.clip(x, 0, 1), atol=2e-5, err_msg=order)
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_it_is_clipped_once_at_the_end():
    """Brighter and then flatter: a clip in between would lose what lay above 1."""
    image = np.float32([[[0.95] * 3, [0.35] * 3]])
    run = jax.jit(distort.distort_color)
    found = run(image, 0, brightness=0.2, saturation=1.0, hue=0.0, contrast_factor=0.5)
    # The mean is .85: .85 + .3 / 2 and .85 - .3 / 2.
    np.testing.assert_allclose(found[0, :, 0], [1.0, 0.7], atol=1e-5)
    grey = run(image, 3, brightness=0.0, saturation=1.5, hue=0.2, contrast_factor=1.0)
    np.testing.assert_allclose(grey, image, atol=1e-6)  # a grey patch stays grey


def test_the_four_orders_are_equally_frequent():
    keys = jax.random.split(jax.random.key(3), 800)
    drawn = jax.vmap(lambda key: jax.random.randint(jax.random.split(key)[0], (), 0, len(distort.ORDERS)))(
        keys
    )
    share = np.bincount(drawn, minlength=4) / 800
    assert distort.ORDERS == ("BSHC", "SBCH", "CHBS", "HSCB") and np.abs(share - 0.25).max() < 0.06


# ------------------------------------------------------------------------------------- the crop: "squash"


@pytest.mark.slow
def test_the_whole_image_is_squashed_and_a_square_is_drawn_from_it():
    c = get_config("cifar10_small").unlock()
    c.augment.update(crop="squash", min_area=(26 / 30) ** 2, interpolation="bilinear", flip=False)
    image = np.broadcast_to(np.linspace(0, 1, 60, dtype=np.float32)[None, :, None], (30, 60, 3))
    corners = set()
    crops = jax.vmap(lambda key: views.random_crop(jnp.asarray(image), key, c.augment, size=26))
    for crop in np.asarray(jax.jit(crops)(jax.random.split(jax.random.key(0), 40))):
        assert crop.shape == (26, 26, 3)
        step = np.diff(crop[0, :, 0])
        np.testing.assert_allclose(step[1:-1], 2 / 59, atol=2e-3)  # sixty columns became thirty
        corners.add(round(crop[0, 1, 0] * 59 / 2 - 1.25))
    assert corners == {0, 1, 2, 3, 4}


@pytest.mark.slow
def test_evaluation_squashes_too_and_cuts_out_the_middle():
    """On the host as from memory, to within a grey level."""
    crops = pytest.importorskip("ssljax.data.crops")
    pytest.importorskip("tensorflow")
    c = get_config("folder").unlock()
    c.data.image_size = 52
    c.augment.min_area = (52 / 60) ** 2
    image = np.random.default_rng(0).integers(0, 256, (90, 140, 3), np.uint8)
    host = crops.eval_image(image, c).numpy()
    memory = loader._central(image[None], c)[0]
    assert host.shape == memory.shape == (52, 52, 3)
    assert np.abs(host.astype(int) - memory.astype(int)).max() <= 1
    c.augment.flip = False
    drawn = crops.training_views(image, np.int64([0, 5]), c)["image"].numpy()
    assert drawn.shape == (1, 52, 52, 3)
    whole = crops.resize(image, 60, 60, "bilinear", antialias=True).numpy()
    offsets = [
        (i, j)
        for i in range(9)
        for j in range(9)
        if np.abs(np.rint(whole[i : i + 52, j : j + 52]) - drawn[0]).max() <= 1
    ]
    assert len(offsets) == 1


def test_the_view_of_the_paper_is_not_normalised_before_it_is_cut():
    c = get_config("imagenet_r161")
    (view,) = views.resolved(c)
    assert (tuple(view.augment.mean), tuple(view.augment.std)) == ((0, 0, 0), (1, 1, 1))
    assert c.augment.mean == (0.485, 0.456, 0.406)
    grid = jax.eval_shape(
        lambda x: models.cut(x, 80, 36), jax.ShapeDtypeStruct((2, 260, 260, 3), jnp.float32)
    )
    assert grid.shape == (2, 6, 6, 80, 80, 3)
