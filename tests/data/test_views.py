"""Named views on the device: their recipes, sizes, counts and shared crops.

Views without overrides match recorded pixels.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ssljax import sharding
from ssljax.data import augment, geometry, recipes, views

PLAIN = dict(
    crop="tf",
    min_area=0.08,
    max_area=1.0,
    aspect=(3 / 4, 4 / 3),
    interpolation="bicubic",
    antialias=False,
    flip=True,
    jitter_probability=0.0,
    grayscale_probability=0.0,
    blur_probability=0.0,
    solarize_probability=0.0,
    policy="none",
    erasing_probability=0.0,
    color_space="rgb",
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)  # has no settings of the operations that are off
JITTER = dict(
    jitter_probability=0.8,
    jitter_strength=1.0,
    jitter_saturation=0.8,
    jitter_hue=0.2,
    jitter="tensorflow",
    jitter_order="random",
    jitter_on="crop",
    brightness="multiply",
)
BLUR = dict(
    blur_probability=0.5, blur_sigma=(0.1, 2.0), blur_sigma_per="image", blur_border="zero", blur_kernel=3
)
COLOUR = PLAIN | JITTER | BLUR | dict(grayscale_probability=0.2, grayscale_order="after")
INDEX = np.int32([7, 100])
KEY = jax.random.key(3)


def a_config(recipe=None, size=16, **named):
    return ConfigDict(
        dict(data=dict(image_size=size, channels=3), augment=recipe or PLAIN, views=named)
    ).lock()


def a_batch(*shape, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, shape)
    return {"image": pixels.astype(np.uint8), "index": INDEX}


def made(config, batch, key=KEY):
    return jax.jit(lambda batch, key: views.make(batch, key, config))(batch, key)


def draws(config, index=INDEX):
    return jax.device_get(jax.jit(lambda index: views.draws(index, KEY, config))(index))


def coloured(view, crops, drawn):
    """Apply what was drawn to crops [B, count, S, S, C]."""
    one = jax.vmap(jax.vmap(lambda image, drawn: views.color(augment.to_float(image), drawn, view.augment)))
    return jax.jit(one)(crops, drawn)


def close(actual, expected, atol=2e-6):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


# ------------------------------------------------------------------------------------- what the config says


def test_resolved_numbers_views_in_the_stated_order():
    config = a_config(
        small=dict(count=6, size=8, max_area=0.14),
        large=dict(count=2),
        again=dict(of="large", count=2, size=4),
        alone=dict(),
    )
    found = views.resolved(config)
    assert [(view.name, view.size, view.count, view.first) for view in found] == [
        ("small", 8, 6, 0),
        ("large", 16, 2, 6),
        ("again", 4, 2, 6),
        ("alone", 16, 1, 8),
    ]
    assert [view.augment.max_area for view in found] == [0.14, 1.0, 1.0, 1.0]
    assert views.total(config) == 9
    copied = views.resolved(config.copy_and_resolve_references())
    assert [view.name for view in copied] == ["small", "large", "again", "alone"]


def test_a_view_that_shares_a_crop_starts_from_its_partners_recipe():
    config = a_config(
        tokens=dict(of="patches", size=8, interpolation="bilinear"),
        patches=dict(min_area=0.4, interpolation="bicubic"),
    )
    tokens, patches = views.resolved(config)
    assert tokens.augment.min_area == 0.4
    assert tokens.augment.interpolation == "bilinear"
    assert patches.augment.interpolation == "bicubic"
    assert "size" not in tokens.augment and "of" not in tokens.augment
    assert config.augment.min_area == 0.08


@pytest.mark.parametrize(
    "named, shapes",
    [
        (dict(one=dict(), two=dict(count=2, flip=False), three=dict(of="one")), {"image": (4, 16, 16, 3)}),
        (dict(one=dict(count=2, size=8), two=dict(count=3)), {"one": (2, 8, 8, 3), "two": (3, 16, 16, 3)}),
    ],
)
def test_host_shapes(named, shapes):
    assert recipes.host_shapes(a_config(**named)) == shapes


@pytest.mark.parametrize(
    "named, message",
    [
        (dict(), "config.views is empty: name at least one"),
        (
            dict(a=dict(), b=dict(of="c")),
            "views.b.of='c' does not name a view with a crop of its own. Use one of: a",
        ),
        (
            dict(a=dict(), b=dict(of="a"), c=dict(of="b")),
            "views.c.of='b' does not name a view with a crop of its own",
        ),
        (
            dict(a=dict(count=2), b=dict(of="a")),
            "views.b.count=1, but 'a'.*has count 2: set config.views.b.count=2",
        ),
        (dict(a=dict(count=0)), "views.a.count=0: it must be at least 1"),
        (dict(a=dict(), b=dict(size=0)), "views.b.size=0: it must be at least 1"),
        (
            dict(a=dict(), b=dict(of="a", min_area=0.5)),
            "views.b.min_area=0.5 does not go with of='a'.*Set config.views.a.min_area",
        ),
        (dict(a=dict(crop="dalle"), b=dict(of="a", size=9)), "views.b.size=9: with the crop 'dalle'.*of 'a'"),
        (dict(label=dict()), "views.label: a batch has another entry of that name"),
    ],
)
def test_impossible_views_are_named(named, message):
    with pytest.raises(ValueError, match=message):
        views.resolved(a_config(**named))


# ------------------------------------------------------------------------------------------ recorded pixels

CASES = {
    "host": (dict(), 20, dict(one=dict(), two=dict())),
    "tf": (
        dict(brightness="add", blur_sigma_per="batch", jitter_strength=0.5),
        20,
        dict(one=dict(), two=dict()),
    ),
    "torchvision": (
        dict(
            crop="torchvision",
            min_area=0.2,
            jitter_probability=0.0,
            grayscale_probability=0.0,
            blur_probability=0.0,
            erasing_probability=1.0,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        20,
        dict(only=dict()),
    ),
    "affine": (
        dict(
            crop="affine",
            flip=False,
            rotate=25.0,
            shift=0.15,
            zoom=0.2,
            shear=15.0,
            jitter_strength=0.5,
            grayscale_probability=0.0,
            blur_probability=0.0,
            mean=(0.0,),
            std=(1.0,),
        ),
        16,
        dict(one=dict(), two=dict()),
    ),
}


@pytest.fixture(scope="module")
def pixels():
    """The images from which the golden views were made, by case."""
    rng = np.random.default_rng(0)
    two = rng.integers(0, 256, (2, 2, 20, 20, 3)).astype(np.uint8)
    one = rng.integers(0, 256, (2, 26, 24, 3)).astype(np.uint8)
    grey = rng.integers(0, 256, (2, 16, 16, 1)).astype(np.uint8)
    return {"host": two, "tf": one, "torchvision": one, "affine": grey}


@pytest.mark.slow
@pytest.mark.parametrize("case", [*CASES, "tf apart"])
def test_views_without_overrides_match_the_recorded_ones(golden, pixels, case):
    """`apart` makes every view separately. It has the same number, so it differs at most in the last bits."""
    case, _, apart = case.partition(" ")
    recipe, size, named = CASES[case]
    batch = {"image": jnp.asarray(pixels[case]), "index": INDEX}
    if case == "torchvision":
        batch["copy"] = jnp.asarray([0, 2], jnp.int32)
    if apart:  # views that differ in a setting, even an unused one, are not made together
        named = {name: dict(antialias=bool(i % 2)) for i, name in enumerate(named)}
    config = a_config(COLOUR | recipe, size, **named)
    found = jax.jit(lambda batch: views.stacked(batch, KEY, config))(batch)
    assert found.dtype == jnp.float32
    close(found, golden("views")[f"device/{case}"], 1e-5)


@pytest.mark.slow
def test_equal_neighbours_are_made_at_once():
    """Views of one recipe are one program, so two names cost as much as a count of two."""
    batch = a_batch(2, 24, 24, 3)

    def program(**named):
        config = a_config(COLOUR, **named)
        return jax.jit(lambda batch, key: views.stacked(batch, key, config)).lower(batch, KEY).as_text()

    together = program(one=dict(), two=dict())
    assert together == program(all=dict(count=2))
    assert len(program(one=dict(), two=dict(flip=False))) > 1.5 * len(together)


@pytest.mark.slow
def test_eight_devices_make_the_views_of_one():
    config = a_config(
        PLAIN | BLUR,
        one=dict(count=2),
        two=dict(size=8, of="one", count=2),
        three=dict(solarize_probability=0.5, solarize_threshold=0.5, size=12),
    )
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (16, 20, 20, 3)), jnp.uint8)
    batch = {"image": images, "index": jnp.arange(16, dtype=jnp.int32)}
    rows = sharding.batch_sharding(sharding.make_mesh(8))
    shards = made(config, jax.device_put(batch, rows))
    one = made(config, batch)
    assert {name: leaf.shape[1:] for name, leaf in one.items()} == {
        "one": (2, 16, 16, 3),
        "two": (2, 8, 8, 3),
        "three": (1, 12, 12, 3),
    }
    for name in one:
        assert shards[name].sharding.is_equivalent_to(rows, 5)
        close(shards[name], one[name])


# ------------------------------------------------------------------- overrides, sizes, counts, shared crops


@pytest.mark.slow
def test_overrides_hold_for_their_view_alone():
    batch = a_batch(2, 24, 24, 3)
    base = a_config(PLAIN | BLUR, one=dict(), two=dict())
    other = a_config(PLAIN | BLUR, one=dict(), two=dict(grayscale_probability=1.0, blur_probability=0.0))
    plain = made(base, batch)
    found = made(other, batch)
    close(found["one"], plain["one"])
    assert abs(found["two"] - found["two"][..., :1]).max() == 0.0
    assert abs(plain["two"] - found["two"]).max() > 0.05
    crop = made(a_config(PLAIN, one=dict(), two=dict()), batch)["two"]
    close(found["two"], jax.jit(jax.vmap(jax.vmap(augment.grayscale)))(crop))  # it is the same crop


@pytest.mark.slow
def test_sizes_and_counts_from_the_host_and_from_whole_images():
    config = a_config(PLAIN | BLUR, large=dict(count=2), small=dict(count=3, size=8, max_area=0.3))
    found = made(config, a_batch(2, 24, 24, 3))
    assert {name: leaf.shape for name, leaf in found.items()} == {
        "large": (2, 2, 16, 16, 3),
        "small": (2, 3, 8, 8, 3),
    }
    rng = np.random.default_rng(0)
    crops = {
        name: jnp.asarray(rng.integers(0, 256, (2, *shape)), jnp.uint8)
        for name, shape in recipes.host_shapes(config).items()
    }
    found = made(config, {**crops, "index": INDEX})
    drawn = draws(config)
    for view in views.resolved(config):
        close(found[view.name], coloured(view, crops[view.name], drawn[view.name]))
    sigma = np.concatenate([np.asarray(leaf.sigma) for leaf in drawn.values()], axis=1)
    assert sigma.shape == (2, 5) and len(np.unique(sigma)) == 10  # no number serves two views
    with pytest.raises(
        ValueError, match="sizes large 16, small 8, but this method needs views of one size: remove `size`"
    ):
        views.stacked({**crops, "index": INDEX}, KEY, config)


@pytest.mark.slow
def test_host_crops_of_one_size_are_assigned_in_order():
    """A view with `of` has its own place among the crops, but the numbers of its partner."""
    config = a_config(PLAIN | BLUR, a=dict(), b=dict(of="a"), c=dict(count=2, mean=(0.5, 0.5, 0.5)))
    batch = a_batch(2, 4, 16, 16, 3)
    found = made(config, batch)
    drawn = draws(config)
    for view, place in zip(views.resolved(config), (slice(0, 1), slice(1, 2), slice(2, 4)), strict=True):
        close(found[view.name], coloured(view, batch["image"][:, place], drawn[view.name]))
    np.testing.assert_array_equal(drawn["a"].sigma, drawn["b"].sigma)
    stacked = jax.jit(lambda batch: views.stacked(batch, KEY, config))(batch)
    close(stacked, np.concatenate([found["a"], found["b"], found["c"]], axis=1))


@pytest.mark.slow
def test_a_shared_crop_is_one_box_at_two_sizes():
    """Both views are resized from the same box and flipped alike. They are made by hand here."""
    config = a_config(
        PLAIN,
        patches=dict(count=2, min_area=0.3),
        tokens=dict(of="patches", count=2, size=8, interpolation="bilinear"),
    )
    batch = a_batch(2, 24, 20, 3)
    found = made(config, batch)

    @jax.jit
    def by_hand(image, index, number):
        crop_key, _ = jax.random.split(views.view_key(KEY, index, number))
        box_key, flip_key = jax.random.split(crop_key)
        box = geometry.crop_box_tf(box_key, 24, 20, min_area=0.3)
        flip = jax.random.bernoulli(flip_key)
        at = lambda size, method: augment.clip(
            geometry.crop_resize(augment.to_float(image), box, size, method=method, flip=flip)
        )
        return {"patches": at(16, "bicubic"), "tokens": at(8, "bilinear")}, flip

    mirrored = []
    for row, number in itertools.product(range(2), range(2)):
        expected, flip = by_hand(batch["image"][row], INDEX[row], np.int32(number))
        for name, image in expected.items():
            close(found[name][row, number], image)
        mirrored.append(bool(flip))
    assert set(mirrored) == {True, False}


@pytest.mark.slow
def test_views_of_one_crop_share_all_draws():
    config = a_config(
        COLOUR | dict(solarize_probability=0.5),
        a=dict(count=3),
        b=dict(of="a", count=3, size=8, blur_kernel=5),
        c=dict(count=3),
    )
    drawn = draws(config, np.arange(50, dtype=np.int32))
    jax.tree.map(np.testing.assert_array_equal, drawn["a"], drawn["b"])
    assert all(
        (x != y).any() for x, y in zip(jax.tree.leaves(drawn["a"]), jax.tree.leaves(drawn["c"]), strict=True)
    )


@pytest.mark.slow
def test_a_shared_blur_width_follows_the_number_of_the_view():
    config = a_config(
        COLOUR | dict(blur_sigma_per="batch"), a=dict(), b=dict(blur_sigma=(3.0, 4.0)), c=dict(of="b", size=8)
    )
    drawn = draws(config)
    expected = jax.jit(lambda key: views.batch_sigma(key, config.augment, 2))(KEY)
    np.testing.assert_array_equal(drawn["a"].sigma, np.broadcast_to(expected[:1], (2, 1)))
    np.testing.assert_array_equal(drawn["b"].sigma, drawn["c"].sigma)
    sigma = drawn["b"].sigma
    assert ((sigma >= 3.0) & (sigma < 4.0)).all() and sigma[0] == sigma[1]


@pytest.mark.slow
def test_copies_count_the_views_that_are_drawn():
    """With V = 2 views drawn per image, copy 1 has the numbers 2 and 3, with or without shared crops."""
    batch = a_batch(2, 24, 24, 3)
    named = dict(a=dict(), b=dict(of="a", size=8), c=dict(flip=False))
    second = made(a_config(PLAIN, **named), {**batch, "copy": jnp.asarray([1, 1], jnp.int32)})
    first = made(a_config(PLAIN, w=dict(), x=dict(), **named), batch)
    for name in named:
        close(second[name], first[name])


# --------------------------------------------------------------------------------- what is drawn, how often


def many(**changes):
    """Return the draws of 4000 views."""
    config = a_config(COLOUR | changes, one=dict())
    drawn = draws(config, np.arange(4000, dtype=np.int32))["one"]
    return jax.tree.map(lambda leaf: leaf[:, 0], drawn)


@pytest.mark.slow
def test_solarize_is_drawn_independently_of_everything_else():
    without = many()
    found = many(solarize_probability=0.2)
    for before, after in zip(jax.tree.leaves(without)[:-1], jax.tree.leaves(found)[:-1], strict=True):
        np.testing.assert_array_equal(before, after)
    assert not without.apply_solarize.any() and abs(found.apply_solarize.mean() - 0.2) < 0.02
    for other in (
        found.apply_blur,
        found.apply_jitter,
        found.apply_grayscale,
        found.jitter.brightness,
        found.sigma,
    ):
        assert abs(np.corrcoef(found.apply_solarize, other)[0, 1]) < 0.06


@pytest.mark.slow
def test_solarize_follows_the_blur_and_inverts_from_its_threshold_on():
    config = a_config(
        PLAIN | BLUR | dict(blur_probability=1.0, solarize_probability=1.0, solarize_threshold=0.4),
        one=dict(),
    )
    batch = a_batch(2, 1, 16, 16, 3)
    sigma = draws(config)["one"].sigma[:, 0]
    blur = jax.jit(lambda image, width: augment.gaussian_blur(augment.to_float(image), width, kernel_size=3))
    for found, image, width in zip(
        made(config, batch)["one"][:, 0], batch["image"][:, 0], sigma, strict=True
    ):
        blurred = np.asarray(blur(image, width))
        close(found, np.where(blurred < 0.4, blurred, 1 - blurred))
        assert 0.01 < (blurred < 0.4).mean() < 0.99


def test_the_order_is_fixed_or_random_and_nothing_else_changes():
    random = many()
    fixed = many(jitter_order="fixed")
    assert (fixed.jitter.rank == np.arange(4)).all()
    assert len(np.unique(random.jitter.rank, axis=0)) == 24
    random = random._replace(jitter=random.jitter[:4])  # without the rank
    fixed = fixed._replace(jitter=fixed.jitter[:4])
    for before, after in zip(random, fixed, strict=True):
        np.testing.assert_array_equal(before, after)


def test_strengths_of_saturation_and_hue_are_their_own():
    found = many(jitter_strength=0.5, jitter_saturation=0.4, jitter_hue=0.1)
    for values, reach in (
        (found.jitter.brightness - 1, 0.4),
        (found.jitter.contrast - 1, 0.4),
        (found.jitter.saturation - 1, 0.2),
        (found.jitter.hue, 0.05),
    ):
        assert 0.99 * reach < abs(values).max() <= reach * 1.0001 and abs(values.mean()) < 0.03 * reach


def test_torchvisions_factors_are_not_negative():
    theirs = many(jitter="torchvision", jitter_strength=2.0)
    ours = many(jitter_strength=2.0)
    for name in ("contrast", "saturation"):
        assert getattr(ours.jitter, name).min() < -0.5
        assert 0.0 <= getattr(theirs.jitter, name).min() < 0.01
    brightness = theirs.jitter.brightness  # uniform in [0, 2.6)
    assert brightness.min() >= 0.0 and abs(brightness.mean() - 1.3) < 0.03


# -------------------------------------------------------------------------------------------------- by name

TORCHVISION = (augment.brightness, augment.contrast_torchvision, augment.saturation_torchvision, augment.hue)
torchvisions_jitter = jax.jit(augment.color_jitter_torchvision)


@pytest.fixture(scope="module")
def photograph(golden):
    return jnp.asarray(golden("augment")["image_uint8"], jnp.float32) / 255.0


@pytest.mark.parametrize("channels", [3, 1])
def test_torchvisions_jitter_is_its_four_operations_in_turn(photograph, channels):
    image = photograph[..., :channels]
    factors = [jnp.float32(f) for f in (1.3, 1.6, 0.4, -0.15)]
    for order in itertools.permutations(range(4)):
        expected = image
        for i in order:
            if channels == 3 or i < 2:
                expected = augment.clip(TORCHVISION[i](expected, factors[i]))
        rank = jnp.asarray([order.index(i) for i in range(4)], jnp.int32)
        close(torchvisions_jitter(image, augment.Jitter(*factors, rank)), expected, 1e-5)


@pytest.mark.parametrize("place, field", list(enumerate(["brightness", "contrast", "saturation", "hue"])))
def test_torchvisions_jitter_is_torchvisions(golden, photograph, place, field):
    """One operation at a time, the others neutral."""
    neutral = [1.0, 1.0, 1.0, 0.0]
    factors = golden("augment")[f"tv/{field}_factors"]
    images = golden("augment")[f"tv/{field}_float"]
    for factor, expected in zip(factors, images, strict=True):
        values = [jnp.float32(factor if i == place else n) for i, n in enumerate(neutral)]
        jitter = augment.Jitter(*values, jnp.arange(4))
        close(torchvisions_jitter(photograph, jitter), expected, 1e-4)


@pytest.mark.slow
def test_a_view_gets_the_kind_of_jitter_in_its_recipe(photograph):
    """The kinds differ in contrast and saturation; each applies the function of its name to the draw."""
    functions = {"tensorflow": augment.color_jitter, "torchvision": augment.color_jitter_torchvision}
    found = {}
    for kind, function in functions.items():
        config = a_config(PLAIN | JITTER | dict(jitter=kind, jitter_probability=1.0), size=24, one=dict())
        pixels = jnp.asarray(photograph[:24] * 255, jnp.uint8)[None, None]
        batch = {"image": pixels, "index": INDEX[:1]}
        drawn = jax.tree.map(lambda leaf: leaf[0, 0], draws(config, INDEX[:1])["one"])
        found[kind] = np.asarray(made(config, batch)["one"][0, 0])
        apply = jax.jit(lambda pixels, jitter, f=function: augment.clip(f(augment.to_float(pixels), jitter)))
        close(found[kind], apply(pixels[0, 0], drawn.jitter))
    assert abs(found["tensorflow"] - found["torchvision"]).max() > 0.02


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes, kernel, padding",
    [
        (dict(blur_kernel=0), 3, "zero"),
        (dict(blur_border="reflect", blur_kernel=9), 9, "reflect"),
        (dict(blur_kernel=23), 23, "zero"),
    ],
)
def test_blur_has_the_kernel_and_the_border_of_the_recipe(photograph, changes, kernel, padding):
    config = a_config(PLAIN | BLUR | dict(blur_probability=1.0) | changes, size=24, one=dict())
    pixels = jnp.asarray(photograph[:24] * 255, jnp.uint8)[None, None]
    sigma = draws(config, INDEX[:1])["one"].sigma[0, 0]
    blur = jax.jit(partial(augment.gaussian_blur, kernel_size=kernel, padding=padding))
    expected = blur(np.asarray(pixels[0, 0], np.float32) / 255, sigma)
    close(made(config, {"image": pixels, "index": INDEX[:1]})["one"][0, 0], expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "crop, interpolation", list(itertools.product(["tf", "torchvision"], ["bicubic", "bilinear"]))
)
def test_crops_have_the_areas_the_aspect_and_the_resize_of_the_recipe(crop, interpolation):
    """A horizontal and a vertical ramp reveal the box, whose area and aspect lie in the recipe's ranges."""
    recipe = PLAIN | dict(
        crop=crop, min_area=0.2, max_area=0.3, aspect=(1.0, 1.5), interpolation=interpolation, flip=False
    )
    config = a_config(recipe, size=16, one=dict(count=20))
    down, across = np.meshgrid(np.arange(100), np.arange(100), indexing="ij")
    image = np.float32(np.stack([[down, across, across]] * 2).transpose(0, 2, 3, 1) / 100)
    found = made(config, {"image": image, "index": INDEX})["one"]
    found = np.asarray(found, np.float64).reshape(-1, 16, 16, 3)
    height = (found[:, 11, 8, 0] - found[:, 4, 8, 0]) * 100 * 16 / 7
    width = (found[:, 8, 11, 1] - found[:, 8, 4, 1]) * 100 * 16 / 7
    area = height * width / 1e4
    aspect = width / height
    assert 0.19 < area.min() < 0.23 and 0.27 < area.max() < 0.31
    assert 0.97 < aspect.min() < 1.1 and 1.35 < aspect.max() < 1.54


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_crop_is_resized_with_its_recipes_interpolation(interpolation):
    config = a_config(PLAIN | dict(crop="torchvision", interpolation=interpolation, flip=False), one=dict())
    batch = a_batch(2, 24, 20, 3)
    found = made(config, batch)["one"]

    @jax.jit
    def by_hand(image, index):
        crop_key, _ = jax.random.split(views.view_key(KEY, index, jnp.int32(0)))
        box_key, _ = jax.random.split(crop_key)
        box = geometry.crop_box_torchvision(box_key, 24, 20, min_area=0.08)
        image = augment.to_float(image)
        return augment.clip(geometry.crop_resize(image, box, 16, method=interpolation, antialias=True))

    for row in range(2):
        close(found[row, 0], by_hand(batch["image"][row], INDEX[row]))
