"""The presets on photographs see what the papers' released code saw: draws, colours, crops and resizing."""

import importlib
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image, ImageEnhance, ImageFilter

from ssljax.config import stages
from ssljax.data import augment, crops, geometry, loader, pillow, sources, views
from ssljax.data.source import Source


def preset(name, stage=""):
    """A stage of a preset, by its name on the command line."""
    paper, _, preset = name.partition(":")
    found = stages(importlib.import_module(f"configs.{paper}").get_config(preset))
    return (found[stage] if stage else next(iter(found.values()))).copy_and_resolve_references().unlock()


# ------------------------------------------------------------------------------------------------- the draws

TIMES_04 = (0.6, 1.4)
TIMES_08 = (0.2, 1.8)
TIMES_03 = (0.7, 1.3)
BYOL = dict(brightness=(-0.4, 0.4), contrast=TIMES_04, saturation=(0.8, 1.2), hue=(-0.1, 0.1), jitter=0.8)
MOCO_V1 = dict(brightness=TIMES_04, contrast=TIMES_04, saturation=TIMES_04, hue=(-0.4, 0.4), jitter=1.0)
MOCO_V2 = MOCO_V1 | dict(hue=(-0.1, 0.1), jitter=0.8, blur=0.5)
MOCO_V3 = BYOL | dict(brightness=TIMES_04)
SIMCLR = dict(brightness=(-0.8, 0.8), contrast=TIMES_08, saturation=TIMES_08, hue=(-0.2, 0.2), jitter=0.8)
V2 = SIMCLR | dict(brightness=TIMES_08, blur=0.5)
DEIT = dict(brightness=TIMES_03, contrast=TIMES_03, saturation=TIMES_03, hue=(0, 0), jitter=1.0, grey=0.0)
FIRST = dict(blur=1.0)
SECOND = dict(blur=0.1, solarize=0.2)

DRAWS = {
    ("byol:imagenet_r50_e300", "one"): BYOL | FIRST,
    ("byol:imagenet_r50_e300", "two"): BYOL | SECOND,
    ("byol:imagenette_r18", "two"): BYOL | SECOND,
    ("byol:imagenet_r50_e300_symmetric", "one"): BYOL | dict(blur=0.5, solarize=0.2),
    ("byol:imagenet_r50_e300_symmetric", "two"): BYOL | dict(blur=0.5, solarize=0.2),
    ("byol:cifar10_r18", "one"): BYOL,
    ("byol:cifar10_r18", "two"): BYOL | dict(solarize=0.2),
    ("moco:imagenet_r50_v1", "one"): MOCO_V1,
    ("moco:imagenet_r50_v1_aug", "one"): MOCO_V2,
    ("moco:imagenet_r50_v2_e200", "two"): MOCO_V2,
    ("moco:imagenet_r50_v3_e300", "one"): MOCO_V3 | FIRST,
    ("moco:imagenet_r50_v3_e300", "two"): MOCO_V3 | SECOND,
    ("moco:imagenet_vit_b_v3", "two"): MOCO_V3 | SECOND,
    ("moco:cifar10_r18_sym_e200", "one"): MOCO_V2 | dict(blur=0.0),
    ("simclr:imagenet_r50", "one"): SIMCLR | dict(blur=0.5),
    ("deepcluster:imagenet_r50_v2", "large"): V2,
    ("deepcluster:imagenet_r50_v2", "small"): V2,
    ("deit:imagenet_b_ablation_no_randaugment", "one"): DEIT,
}


@pytest.mark.slow
@pytest.mark.parametrize("name, view", DRAWS, ids=["-".join(case) for case in DRAWS])
def test_draws_have_the_ranges_and_the_shares_of_the_released_code(name, view):
    """Saturation and hue of BYOL and MoCo v3 are not SimCLR's, and their two views are not alike."""
    expected = dict(grey=0.2, blur=0.0, solarize=0.0) | DRAWS[name, view]
    index = jnp.arange(4000, dtype=jnp.int32)
    drawn = jax.tree.map(lambda leaf: leaf[:, 0], views.draws(index, jax.random.key(0), preset(name))[view])
    for operation in ("brightness", "contrast", "saturation", "hue"):
        low, high = expected[operation]
        values = np.asarray(getattr(drawn.jitter, operation))
        width = high - low
        assert low - 1e-6 <= values.min() <= low + 0.01 * width, operation
        assert high - 0.01 * width <= values.max() <= high + 1e-6, operation
    for applied, share in (
        (drawn.apply_jitter, "jitter"),
        (drawn.apply_grayscale, "grey"),
        (drawn.apply_blur, "blur"),
        (drawn.apply_solarize, "solarize"),
    ):
        assert abs(float(applied.mean()) - expected[share]) < 0.03, share


def test_the_crops_of_version_2_have_the_areas_of_the_scripts():
    large, small = views.resolved(preset("deepcluster:imagenet_r50_v2"))
    assert [(v.count, v.size, v.augment.min_area, v.augment.max_area) for v in (large, small)] == [
        (2, 224, 0.14, 1.0),
        (6, 96, 0.05, 0.14),
    ]
    assert large.augment.std[0] == 0.228


# --------------------------------------------------------------------------------------- colours by Pillow


@pytest.fixture(scope="module")
def photograph(golden):
    """A smooth photograph of 96 x 120 pixels."""
    picture = Image.fromarray(golden("augment")["image_uint8"])
    return np.asarray(picture.resize((120, 96), Image.Resampling.BICUBIC))


def hue_by_pillow(picture, turn):
    if turn == 0:
        return picture
    h, s, v = picture.convert("HSV").split()
    moved = (np.asarray(h, np.int64) + round(turn * 255)) % 256
    return Image.merge("HSV", (Image.fromarray(moved.astype(np.uint8)), s, v)).convert("RGB")


def jittered_by_pillow(picture, jitter):
    """torchvision's ColorJitter on a PIL image, for one draw."""
    operations = (
        lambda p: ImageEnhance.Brightness(p).enhance(float(jitter.brightness)),
        lambda p: ImageEnhance.Contrast(p).enhance(float(jitter.contrast)),
        lambda p: ImageEnhance.Color(p).enhance(float(jitter.saturation)),
        lambda p: hue_by_pillow(p, float(jitter.hue)),
    )
    for i in np.argsort(jitter.rank):
        picture = operations[i](picture)
    return picture


def by_pillow(pixels, drawn, recipe):
    """The released code's colours and blur on a PIL image, for what was drawn."""
    picture = Image.fromarray(pixels)
    grey = lambda p: p.convert("L").convert("RGB") if drawn.apply_grayscale else p
    if recipe.get("grayscale_order", "after") == "before":
        picture = grey(picture)
    if drawn.apply_jitter:
        picture = jittered_by_pillow(picture, drawn.jitter)
    if recipe.get("grayscale_order", "after") == "after":
        picture = grey(picture)
    if drawn.apply_blur:
        picture = picture.filter(ImageFilter.GaussianBlur(radius=float(drawn.sigma)))
    if drawn.apply_solarize:
        pixels = np.asarray(picture)
        picture = Image.fromarray(np.where(pixels < 128, pixels, 255 - pixels))
    return np.asarray(picture, np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, view",
    [
        ("moco:imagenet_r50_v1", "one"),
        ("moco:imagenet_r50_v2_e200", "one"),
        ("moco:imagenet_r50_v3_e300", "two"),
        ("deepcluster:imagenet_r50_v2", "large"),
        ("deit:imagenet_b_ablation_no_randaugment", "one"),
    ],
)
def test_colours_are_those_of_pillow(photograph, name, view):
    """Pillow rounds after every operation and this does not: 1.5 of 255 on average, and TensorFlow's 10."""
    config = preset(name)
    recipe = next(v.augment for v in views.resolved(config) if v.name == view).unlock()
    recipe.update(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    pixels = photograph[:96, :96]
    count = 24
    drawn = views.draws(jnp.arange(count, dtype=jnp.int32), jax.random.key(1), config)[view]
    drawn = jax.tree.map(lambda leaf: leaf[:, 0], drawn)
    color = jax.jit(jax.vmap(lambda one: views.color(augment.to_float(jnp.asarray(pixels)), one, recipe)))
    found = 255 * np.asarray(color(drawn))
    errors = []
    for i in range(count):
        one = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), drawn)
        errors.append(np.abs(found[i] - by_pillow(pixels, one, recipe)).mean())
    assert np.max(errors) < 3


def test_grey_comes_before_the_jitter_in_moco_v1():
    """A jitter of the grey image cannot see the colours; jitter first, and the hue changes the grey level."""
    recipe = preset("moco:imagenet_r50_v1").augment
    recipe.update(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    image = jnp.asarray(np.random.default_rng(0).random((16, 16, 3)), jnp.float32)
    jitter = augment.Jitter(*map(jnp.float32, (0.9, 1.3, 0.7, 0.35)), rank=jnp.arange(4, dtype=jnp.int32))
    true, false, none = jnp.bool_(True), jnp.bool_(False), jnp.float32(0.0)
    drawn = views.Draw(jitter, true, true, false, none, false)
    expected = augment.color_jitter_torchvision(augment.grayscale(image), jitter)
    np.testing.assert_allclose(views.color(image, drawn, recipe), expected, atol=1e-6)
    recipe.grayscale_order = "after"
    expected = augment.grayscale(augment.color_jitter_torchvision(image, jitter))
    np.testing.assert_allclose(views.color(image, drawn, recipe), expected, atol=1e-6)


@pytest.mark.parametrize("case", range(4))
def test_blur_is_pillows(golden, case):
    g = golden("augment")
    radius = g["pil/gaussianblur_radius"][case]
    image = jnp.asarray(g["image_uint8"], jnp.float32) / 255
    found = 255 * np.asarray(augment.pillow_blur(image, jnp.float32(radius)))
    error = np.abs(found - np.float32(g["pil/gaussianblur_uint8"][case]))
    assert error.mean() < 0.7 and error.max() < 3.5  # Pillow rounds six times


@pytest.mark.slow
def test_pillows_blur_repeats_the_border(photograph):
    white = jnp.ones((32, 24, 3), jnp.float32)
    np.testing.assert_allclose(augment.pillow_blur(white, jnp.float32(2.0)), white, atol=1e-5)
    assert augment.gaussian_blur(white, jnp.float32(2.0), kernel_size=23)[0].max() < 0.7
    image = jnp.asarray(photograph[:64], jnp.float32) / 255
    found = 255 * np.asarray(augment.pillow_blur(image, jnp.float32(1.7)))
    expected = Image.fromarray(photograph[:64]).filter(ImageFilter.GaussianBlur(1.7))
    error = np.abs(found - np.asarray(expected, np.float32))
    assert error[0].mean() < 1 and error[:, -1].mean() < 1


# ------------------------------------------------------------------------------------- crops and resizing

RESIZING = {
    "moco:imagenet_r50_v1": ("torchvision", "pillow", "bilinear"),
    "moco:imagenet_r50_v2_e800": ("torchvision", "pillow", "bilinear"),
    "moco:imagenet_r50_v3_e100": ("torchvision", "pillow", "bilinear"),
    "moco:imagenet_vit_s_v3": ("torchvision", "pillow", "bilinear"),
    "moco:folder": ("torchvision", "pillow", "bilinear"),
    "deepcluster:imagenet_alexnet": ("torchvision", "pillow", "bilinear"),
    "deepcluster:imagenet_r50_v2_e400": ("torchvision", "pillow", "bilinear"),
    "deepcluster:folder": ("torchvision", "pillow", "bilinear"),
    "deit:imagenet_s": ("torchvision", "pillow", "bicubic"),
    "deit:imagenet_regnety_16gf": ("torchvision", "pillow", "bicubic"),
    "byol:imagenet_r50_e1000": ("byol", "tensorflow", "bicubic"),
    "byol:imagenette_r18": ("byol", "tensorflow", "bicubic"),
    "simclr:imagenet_r50": ("tf", "tensorflow", "bicubic"),
}


@pytest.mark.parametrize("name", RESIZING)
def test_presets_read_photographs_as_the_released_code(name):
    recipe = preset(name).augment
    assert (recipe.crop, recipe.resize, recipe.interpolation) == RESIZING[name]
    assert recipe.resize == "pillow" or not recipe.antialias


def a_config(size, **recipe):
    c = preset("moco:imagenet_r50_v2_e200")
    c.data.image_size = size
    c.views = dict(only=dict(count=2))
    c.augment.update(recipe)
    return c


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_a_crop_is_torchvisions_bit_for_bit(golden, photograph, method):
    g = golden("augment")
    top, left, height, width, size = g["crop/top_left_h_w_size"].tolist()
    box = g["image_uint8"][top : top + height, left : left + width]
    np.testing.assert_array_equal(pillow.resize(box, size, size, method), g[f"crop/pil_{method}_uint8"])

    config = a_config(40, interpolation=method, flip=False)
    found = crops.training_views(photograph, np.int64([1, 5]), config)["image"].numpy()
    for number in range(2):
        seed = np.int64([(config.seed << 32) + 1, 5 * (1 << 16) + 2 * number])
        top, left, height, width = crops.box_torchvision(96, 120, seed, min_area=0.2).numpy()
        box = Image.fromarray(photograph[top : top + height, left : left + width])
        expected = box.resize((40, 40), getattr(Image.Resampling, method.upper()))
        np.testing.assert_array_equal(found[number], expected)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(96, 120), (95, 77), (60, 60)])
def test_evaluation_resizes_the_shorter_side_and_crops_the_centre(photograph, method, shape):
    """For files and for images in memory. 40 pixels are cut from 45, as 224 from 256."""
    image = np.ascontiguousarray(photograph[: shape[0], : shape[1]])
    config = a_config(40, interpolation=method)
    height, width = shape
    new = (int(45 * width / height), 45) if height < width else (45, int(45 * height / width))
    resized = Image.fromarray(image).resize(new, getattr(Image.Resampling, method.upper()))
    left = round((new[0] - 40) / 2)
    top = round((new[1] - 40) / 2)
    expected = np.asarray(resized.crop((left, top, left + 40, top + 40)))
    np.testing.assert_array_equal(crops.eval_image(image, config), expected)
    np.testing.assert_array_equal(loader._central(image[None], config)[0], expected)


def test_one_channel_and_the_whole_image_by_pillow(photograph):
    grey = photograph[..., :1]
    config = a_config(32, crop="none", flip=False)
    config.data.channels = 1
    found = crops.training_views(grey, np.int64([0, 0]), config)["image"].numpy()[0]
    expected = Image.fromarray(grey[..., 0]).resize((40, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found[..., 0], np.asarray(expected)[:, 4:36])


def test_byols_evaluation_cuts_the_side_to_whole_pixels(photograph):
    """0.875 of 95 pixels is 83.1, and of 92 it is 80.5; of 90 it is 78.75, which would round to 79."""
    image = np.ascontiguousarray(photograph[:90])
    config = preset("byol:imagenet_r50_e300")
    config.data.image_size = 40
    tf = crops.tensorflow()
    top = (90 - 78 + 1) // 2
    left = (120 - 78 + 1) // 2
    cut = tf.image.resize(image[top : top + 78, left : left + 78], (40, 40), "bicubic")
    expected = np.rint(np.clip(cut, 0, 255))
    np.testing.assert_array_equal(crops.eval_image(image, config), expected)
    np.testing.assert_allclose(np.float32(loader._central(image[None], config)[0]), expected, atol=1)


def byol_boxes(height, width, n):
    """`_decode_and_random_crop` of the released code, in NumPy."""
    rng = np.random.default_rng(0)
    area = rng.uniform(0.08, 1.0, n) * height * width
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), n))
    w = np.minimum(np.rint(np.sqrt(area * ratio)), width).astype(int)
    h = np.minimum(np.rint(np.sqrt(area / ratio)), height).astype(int)
    return np.stack([rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w], 1)


def host_boxes(height, width, n):
    tf = crops.tensorflow()

    @tf.function
    def draw_all(seeds):
        one = lambda seed: crops.box_byol(height, width, seed, min_area=0.08)
        return tf.map_fn(one, seeds, fn_output_signature=tf.int32)

    return draw_all(np.stack([np.zeros(n, np.int64), np.arange(n)], 1)).numpy()


def device_boxes(height, width, n):
    draw = jax.jit(jax.vmap(lambda key: geometry.crop_box_byol(key, height, width)))
    return np.asarray(draw(jax.random.split(jax.random.key(0), n)))


@pytest.mark.parametrize("boxes", [host_boxes, device_boxes])
def test_byols_crop_is_cut_down_and_never_drawn_again(boxes):
    """On a strip most boxes are cut, so their height is the strip's and their aspect ratio above 4/3."""
    height, width, n = 60, 200, 3000
    found = boxes(height, width, n)
    expected = byol_boxes(height, width, 20_000)
    top, left, h, w = found.T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= height).all() and (left + w <= width).all()
    whole = (expected[:, 2] == height).mean()
    assert whole > 0.5 and abs((h == height).mean() - whole) < 0.03
    assert (w / h > 1.4).mean() > 0.4
    for column in range(4):
        quantiles = np.quantile(expected[:, column], np.linspace(0.1, 0.9, 9))
        share = [(expected[:, column] <= q).mean() - (found[:, column] <= q).mean() for q in quantiles]
        assert np.abs(share).max() < 0.04


def test_a_byol_view_is_a_box_cut_down_to_the_image(photograph):
    """On a strip of 24 x 120 pixels, boxes as high as the strip and up to five times as wide."""
    strip = np.ascontiguousarray(photograph[:24])
    config = preset("byol:imagenet_r50_e300")
    config.data.image_size = 16
    config.views = dict(only=dict(flip=False))
    wide = 0
    for index in range(8):
        seed = np.int64([config.seed << 32, index * (1 << 16)])
        top, left, height, width = crops.box_byol(24, 120, seed, min_area=0.08).numpy()
        wide += width > 1.4 * height
        box = strip[top : top + height, left : left + width]
        expected = crops.to_uint8(crops.resize(box, 16, 16, "bicubic"))
        found = crops.training_views(strip, np.int64([0, index]), config)["image"][0]
        np.testing.assert_array_equal(found, expected)
    assert wide >= 2


# ------------------------------------------------------------------------------- 1 % and 10 % of ImageNet


@pytest.fixture
def stored(monkeypatch):
    """Stands for `records.load`: notes what was loaded, and gives 1,000 examples of ten classes."""
    loaded = []

    def load(data, name, split):
        loaded.append((name, split))
        labels = np.arange(1000, dtype=np.int32) % 10
        return Source(
            name=f"tfds:{name}",
            split=split,
            labels=labels,
            index=np.arange(1000, dtype=np.int32),
            class_names=tuple("abcdefghij"),
            checksum=name,
            images=np.zeros((1000, 8, 8, 3), np.uint8),
            encoded=lambda positions: [b""] * len(positions),
            name_of=lambda i: f"image {i}",
        )

    monkeypatch.setattr(sources.records, "load", load)
    return loaded


@pytest.mark.parametrize("name", ["simclr:imagenet_r50_finetune_", "byol:imagenet_r50_x2_finetune_"])
@pytest.mark.parametrize("part", ["1pct", "10pct"])
def test_parts_of_imagenet_are_the_papers_lists(stored, name, part):
    data = preset(name + part, "finetune").data
    assert sources.labelled_source(data) == f"tfds:imagenet2012_subset/{part}"
    assert len(sources.load(data, "train")) == 1000  # the list as it is, of which nothing is drawn
    sources.load(data, "test")
    assert stored == [(f"imagenet2012_subset/{part}", "train"), ("imagenet2012", "test")]
    stored.clear()
    data.label_list = "balanced"
    assert len(sources.load(data, "train")) == (10 if part == "1pct" else 100)
    assert stored == [("imagenet2012", "train")]
    assert sources.labelled_source(data) == "tfds:imagenet2012"


def test_other_fractions_and_the_first_stage_are_of_imagenet_itself(stored):
    data = preset("simclr:imagenet_r50_finetune_1pct", "finetune").data
    data.label_fraction = 0.05
    assert len(sources.load(data, "train")) == 50
    sources.load(preset("simclr:imagenet_r50_finetune_1pct", "pretrain").data, "train")
    assert stored == [("imagenet2012", "train")] * 2


def test_a_list_that_is_not_prepared_says_how_to_get_it_and_how_to_do_without(monkeypatch, caplog):
    def load(data, name, split):
        raise FileNotFoundError(f"data.source=tfds:{name} is not prepared")

    monkeypatch.setattr(sources.records, "load", load)
    data = preset("supervised:imagenet_r50_1pct").data
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(
            FileNotFoundError,
            match="tfds:imagenet2012_subset/1pct is not prepared.*data.label_list=balanced draws 0.01 of",
        ),
    ):
        sources.load(data, "train")


def test_byols_rate_of_fine_tuning_is_scaled_as_by_the_released_schedule():
    """0.02 at a batch size of 256 is 0.08 at 1024."""
    from ssljax import optim

    c = preset("byol:imagenet_r50_finetune_1pct", "finetune")
    assert isinstance(c, ConfigDict) and c.batch_size == 1024
    total = optim.train_steps(12_811, c.epochs, 1024)
    _, schedule = optim.make_optimizer(c.optim, batch_size=1024, steps_per_epoch=12.5, total_steps=total)
    np.testing.assert_allclose(schedule(0), 0.08, rtol=1e-6)
