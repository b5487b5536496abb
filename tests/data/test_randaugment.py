"""RandAugment on the device against google-research/noisystudent's operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from configs.simclr import get_config
from ssljax.config import resolve
from ssljax.data import policies, randaugment, views
from ssljax.data.augment import to_float
from ssljax.data.randaugment import NAMES, arguments

CENTRE = jnp.array([0, 0], jnp.int32)
# What the code computes at each of the paper's magnitudes: bits kept, threshold, addend, half a box.
TABLE = {
    6: (2, 153, 66, 24),
    12: (4, 51, 132, 48),
    15: (6, 128, 165, 60),
    18: (7, 204, 198, 72),
    24: (1, 102, 264, 96),
    27: (1, 179, 297, 108),
}


# These have no golden pixels: test_geometry_by_hand has them, and test_patches.py Cutout.
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout")


apply = jax.jit(randaugment.apply, static_argnums=(0, 2))


def whole(value, side=4):
    return jnp.full((side, side, 3), value, jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in GEOMETRIC])
def test_pixels_are_the_released_codes(golden, name):
    g = golden("augment")
    image = jnp.asarray(g["image_uint8"], jnp.float32)
    for number, level in enumerate(g["noisystudent/levels"]):
        found = apply(name, image, arguments(float(level)), np.float32(1.0), CENTRE)
        expected = g[f"noisystudent/img/{name}"][number].astype(np.float32)
        assert np.abs(np.asarray(found) - expected).max() <= 1, (name, level)
        assert (np.asarray(found) != expected).mean() < 0.01, (name, level)


@pytest.mark.parametrize("magnitude", TABLE)
def test_arguments_wrap_as_uint8_does(golden, magnitude):
    a = arguments(magnitude)
    assert (a.bits, a.solarize, a.add, a.cutout) == TABLE[magnitude]
    np.testing.assert_allclose((a.rotate, a.shear), (3.0 * magnitude, 0.03 * magnitude))
    np.testing.assert_allclose((a.translate, a.enhance), (10 * magnitude, 0.18 * magnitude + 0.1))
    if magnitude == 27:
        posterize, solarize, add, factor, box = golden("augment")["noisystudent/arg_at_27"]
        assert (8 - min((8 - posterize) % 256, 7), solarize % 256) == (a.bits, a.solarize)
        np.testing.assert_allclose((add, factor, box), (a.add, a.enhance, a.cutout))


@pytest.mark.slow
def test_strong_operations_by_hand():
    """At M = 27 solarisation and posterisation are strong, not off; contrast blends towards a constant."""
    a = arguments(27)

    @jax.jit
    def found():
        return [
            [randaugment.solarize(whole(v), a.solarize)[0, 0, 0] for v in (178, 179, 200)],
            randaugment.solarize(whole(102), arguments(24).solarize)[0, 0, 0],
            [randaugment.posterize(whole(v), a.bits)[0, 0, 0] for v in (127, 128)],
            randaugment.contrast(whole(100, 224), a.enhance).max(),
            [randaugment.contrast(whole(0, side), 0.0).max() for side in (32, 224, 240, 256, 300)],
        ]

    # Contrast: 196 + 4.96 (100 - 196) < 0
    assert found() == [[178, 76, 55], 153, [0, 128], 0, [4, 196, 225, 255, 255]]


@pytest.mark.slow
def test_geometry_by_hand():
    image = np.arange(5 * 4, dtype=np.float32).reshape(5, 4, 1)
    plus = np.float32(1.0)
    a = arguments(10, translate=1)
    moved = apply("TranslateX", image, a, plus, CENTRE)[..., 0]
    np.testing.assert_array_equal(moved[:, :3], image[:, 1:, 0])
    np.testing.assert_array_equal(moved[:, 3], np.full(5, 128.0))
    moved = apply("TranslateY", image, a, -plus, CENTRE)[..., 0]
    np.testing.assert_array_equal(moved[1:], image[:-1, :, 0])
    sheared = apply("ShearX", image, arguments(10), plus, CENTRE)[..., 0]
    for row in range(5):
        shift = int(np.floor(0.3 * row + 0.5))  # the nearest column
        np.testing.assert_array_equal(sheared[row, : 4 - shift], image[row, shift:, 0])
        np.testing.assert_array_equal(sheared[row, 4 - shift :], np.full(shift, 128.0))
    square = np.arange(9, dtype=np.float32).reshape(3, 3, 1)
    turned = apply("Rotate", square, arguments(30), plus, CENTRE)[..., 0]  # 90 degrees
    np.testing.assert_array_equal(turned, np.rot90(np.arange(9).reshape(3, 3)))
    box = jax.jit(randaugment.cutout)(np.zeros((6, 6, 1), np.float32), np.int32([1, 4]), 2)[..., 0]
    assert np.argwhere(np.asarray(box) == 128).tolist() == [[r, c] for r in range(3) for c in range(2, 6)]


def test_the_forms_of_a_tpu_and_of_a_cpu_agree():
    value = jnp.asarray(np.random.default_rng(0).integers(0, 256, 1000), jnp.int32)
    counts = np.bincount(value, minlength=256)
    table = jnp.asarray(np.random.default_rng(1).integers(0, 256, 256), jnp.float32)
    for count in (randaugment._counts_by_product, randaugment._counts_by_scatter):
        np.testing.assert_array_equal(count(value), counts)
    for read in (randaugment._read_by_product, randaugment._read_by_gather):
        np.testing.assert_array_equal(read(value, table), table[value])


@pytest.mark.slow
def test_draws_are_even_always_applied_and_those_of_the_key():
    """Which of the sixteen operations an image got, told by their pixels."""
    rng = np.random.default_rng(0)
    pixels = jnp.asarray(rng.integers(0, 200, (24, 24, 3)), jnp.float32)
    a = arguments(9, translate=4, cutout=3)
    run = jax.jit(jax.vmap(lambda key: randaugment.randaugment(pixels / 255.0, key, a, ops=1)))
    keys = jax.random.split(jax.random.key(0), (4, 1000))
    drawn = np.concatenate([run(some) for some in keys])
    found = np.rint(drawn * 255.0)
    both = jax.jit(lambda sign: [randaugment.apply(name, pixels, a, sign, CENTRE) for name in NAMES])
    expected = np.stack([*both(np.float32(1.0)), *both(np.float32(-1.0))])
    near = cdist(found.reshape(4000, -1), expected.reshape(32, -1), "chebyshev").reshape(4000, 2, 16) <= 1
    number = near.any(1).argmax(1)
    rest = ~near.any((1, 2))
    number[rest] = NAMES.index("Cutout")
    assert set(found[rest][found[rest] != np.asarray(pixels)]) <= {128.0}
    counts = np.bincount(number, minlength=16)
    assert all(190 < count < 315 for count in counts), counts  # 250 expected, deviation 15.3
    np.testing.assert_array_equal(run(keys[0, 7::-1]), drawn[7::-1])


def a_config(**augment):
    config = get_config("digits").unlock()
    config.augment.update(policy="randaugment_tf", jitter_probability=0.0, **augment)
    return resolve(config)


@pytest.mark.slow
def test_views_are_augmented_after_the_crop_and_before_the_normalisation():
    config = a_config(crop="none", flip=False, policy_level=9.0, mean=(0.5,), std=(0.25,), policy_translate=4)
    policies.check(config)
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (6, 16, 16, 1)), jnp.uint8)
    index = jnp.arange(6, dtype=jnp.int32)
    key = jax.random.key(3)
    made = jax.jit(lambda batch: views.stacked(batch, key, config))({"image": image, "index": index})
    a = arguments(9.0, translate=4)
    alter = jax.jit(lambda image, key: randaugment.randaugment(image, key, a, ops=2))
    for place, number in ((0, 0), (5, 1)):
        own = jax.random.fold_in(views.view_key(key, index[place], jnp.int32(number)), 3)
        expected = alter(to_float(image[place]), own)
        np.testing.assert_allclose(made[place, number], (expected - 0.5) / 0.25, atol=1e-5)


def test_the_colour_jitter_does_not_go_with_it():
    config = a_config()
    config.augment.jitter_probability = 0.5
    with pytest.raises(ValueError, match="policy='randaugment_tf' and augment.jitter_probability=0.5"):
        policies.check(config)
