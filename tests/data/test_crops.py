"""Host crops equal the released code where it is deterministic, and have its distributions elsewhere."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from configs.simclr import get_config
from ssljax.data import crops, policies, recipes


@pytest.fixture(scope="module")
def tf():
    return crops.tensorflow()


@pytest.fixture(scope="module")
def photograph(golden):
    return golden("augment")["image_uint8"]


def a_config(views=2, **data):
    config = get_config("imagenet_r50").unlock()
    config.data.update(image_size=16, **data)
    config.views = dict(only=dict(count=views))
    return config


def made(image, key, config, copy=0):
    """Make the views of one image, all of one size: [V, S, S, C]."""
    return crops.training_views(image, np.int64(key), config, copy)["image"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["bicubic_9x13", "bicubic_31x40", "bilinear_9x13"])
def test_resize_equals_tensorflow(golden, photograph, case):
    method, shape = case.split("_")
    got = crops.resize(np.float32(photograph) / np.float32(255), *map(int, shape.split("x")), method)
    np.testing.assert_allclose(got, golden("augment")[f"tf/resize_{case}"], atol=1e-5)


@pytest.mark.slow
def test_antialiased_resize_is_pillows(golden, photograph):
    """Training and evaluation are within one grey level of torchvision's crop of a PIL image.

    Without antialiasing, pixels are off by 8 on average.
    """
    top, left, height, width, size = golden("augment")["crop/top_left_h_w_size"]
    box = photograph[top : top + height, left : left + width]
    expected = np.float32(golden("augment")["crop/pil_bicubic_uint8"])
    error = np.abs(np.float32(crops.to_uint8(crops.resize(box, size, size, antialias=True))) - expected)
    assert error.mean() < 0.5 and error.max() <= 1

    config = a_config(channels=3, views=1)
    config.data.update(image_size=12)
    config.augment.update(crop="none", flip=False, antialias=True)
    square = Image.fromarray(photograph[1:25])  # 26 x 24: what the central crop leaves in both cases
    expected = np.float32(square.resize((12, 12), Image.Resampling.BICUBIC))
    for found in (made(photograph, [0, 0], config)[0], crops.eval_image(photograph, config)):
        assert np.abs(np.float32(found) - expected).mean() < 0.5
    # The whole image, except for what the aspect ratio cuts off.
    config.augment.update(crop="torchvision", min_area=0.999)
    smooth = np.float32(made(photograph, [0, 0], config)[0])
    config.augment.antialias = False
    sharp = np.float32(made(photograph, [0, 0], config)[0])
    assert np.abs(smooth - sharp).mean() > 3


@pytest.mark.slow
@pytest.mark.parametrize("case", ["simclr/center_crop0", "simclr/center_crop1"])
def test_central_crop_equals_the_released_code(golden, photograph, case):
    height, width, proportion = golden("augment")[f"{case}_h_w_proportion"]
    image = np.float32(photograph) / np.float32(255)
    got = crops.central_crop(image, int(height), int(width), float(proportion))
    np.testing.assert_allclose(got, golden("augment")[case], atol=1e-5)


@pytest.mark.slow
def test_eval_image_is_the_released_preprocessing_above_32_pixels_and_uncropped_below(golden, photograph):
    config = a_config(channels=3)
    config.data.image_size = 40
    cropped = crops.central_crop(np.float32(photograph) / np.float32(255), 40, 40, 0.875)
    expected = np.rint(255 * np.clip(cropped, 0, 1))
    np.testing.assert_allclose(np.float32(crops.eval_image(photograph, config)), expected, atol=1)
    config.data.image_size = 24  # 26 x 24: all columns, rows 1..24, no resize
    np.testing.assert_array_equal(crops.eval_image(photograph, config), photograph[1:25])


def test_whole_uncropped_view_is_the_image(photograph):
    config = a_config(channels=3, views=1)
    config.data.image_size = 24
    config.augment.update(crop="none", flip=False)
    np.testing.assert_array_equal(made(photograph, [0, 0], config)[0], photograph[1:25])


def draw(tf, box, height, width, n, min_area):
    """Draw n boxes, int [n, 4]."""

    @tf.function
    def draw_all(seeds):
        one = lambda seed: box(height, width, seed, min_area=min_area)
        return tf.map_fn(one, seeds, fn_output_signature=tf.int32)

    seeds = np.stack([np.zeros(n, np.int64), np.arange(n)], 1)
    return draw_all(seeds).numpy()


def test_tf_box_distribution(tf):
    """The aspect ratio is uniform and, given the ratio, so is the integer height.

    No crop covers less than 10 % of the image, although min_area is 8 %.
    """
    height = 120
    width = 160
    n = 3000
    boxes = draw(tf, crops.box_tf, height, width, n, 0.08)
    top, left, h, w = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= height).all() and (left + w <= width).all()
    area = h * w / (height * width)
    assert area.min() >= 0.099 and area.min() < 0.12 and area.max() > 0.9
    assert (w / h > 0.70).all() and (w / h < 1.40).all()

    # The documented algorithm drawn independently in NumPy, including the rejections.
    rng = np.random.default_rng(0)
    kept = []
    while len(kept) < 20_000:
        aspect = rng.uniform(3 / 4, 4 / 3)
        low = round(math.sqrt(0.08 * height * width / aspect))
        largest = round(math.sqrt(height * width / aspect))
        widest = math.floor((width + 0.5 - 1e-7) / aspect)
        high = min(largest, height, widest)
        tall = rng.integers(low, high + 1)
        wide = round(tall * aspect)
        if 0.1 * height * width <= tall * wide <= height * width and wide <= width:
            kept.append((tall, wide))
    tall, wide = np.array(kept).T
    for got, want in ((h, tall), (w, wide), (area, tall * wide / (height * width)), (w / h, wide / tall)):
        quantiles = np.linspace(0.05, 0.95, 10)
        found = np.searchsorted(np.sort(got), np.quantile(want, quantiles)) / n
        assert np.abs(found - quantiles).max() < 0.04  # > 4 standard deviations of 3000 draws


def test_torchvision_box_distribution(tf):
    """On a square the area is uniform and the aspect ratio log-uniform, except for boxes that do not fit.

    min_area=0.2 is a true minimum.
    """
    boxes = draw(tf, crops.box_torchvision, 400, 400, 3000, 0.2)
    top, left, h, w = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= 400).all() and (left + w <= 400).all()
    area = h * w / 160_000
    log_ratio = np.log(w / h)
    assert area.min() > 0.195
    small = area < 0.7  # below 3/4 every ratio fits, so the distribution is exactly uniform there
    assert abs(np.mean(area[small] < 0.45) - 0.5) < 0.05
    assert abs(log_ratio.mean()) < 0.02
    assert abs(log_ratio[small].std() - 2 * math.log(4 / 3) / math.sqrt(12)) < 0.01


def test_torchvision_box_falls_back_to_a_central_crop(tf):
    """A 10 x 200 strip has no crop of half its area.

    The result is the largest central crop with aspect ratio 4/3 (rows 0..10, 13 columns).
    """
    assert np.unique(draw(tf, crops.box_torchvision, 10, 200, 20, 0.5), axis=0).tolist() == [[0, 93, 10, 13]]
    assert np.unique(draw(tf, crops.box_torchvision, 200, 10, 20, 0.5), axis=0).tolist() == [[93, 0, 13, 10]]


def test_a_view_depends_on_seed_epoch_index_and_number_alone(photograph):
    config = a_config(channels=3, views=3)
    first = made(photograph, [2, 5], config).numpy()
    assert first.shape == (3, 16, 16, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, made(photograph, [2, 5], config))
    config.views.only.count = 2
    np.testing.assert_array_equal(first[:2], made(photograph, [2, 5], config))
    others = [made(photograph, key, config).numpy()[0] for key in ([2, 6], [3, 5], [5, 2])]
    config.seed = 1
    others += [made(photograph, [2, 5], config).numpy()[0], first[1], first[2]]
    assert all((first[0] != other).any() for other in others)


def test_the_policy_comes_after_crop_and_flip(photograph):
    config = a_config(channels=3, views=2)
    config.augment.update(
        crop="torchvision", jitter_probability=0.0, policy_magnitude=9.0, policy_std=0.5, policy_ops=4
    )
    plain = [made(photograph, [3, i], config).numpy() for i in range(6)]
    config.augment.policy = "randaugment"
    changed = [made(photograph, [3, i], config).numpy() for i in range(6)]
    for i in range(6):
        for view in range(2):
            expected = policies.policy(plain[i][view], (config.seed, 3, i, view), config.augment)
            np.testing.assert_array_equal(changed[i][view], expected)
    assert sum((a != b).any() for a, b in zip(plain, changed, strict=True)) >= 5
    config.seed = 1
    assert (made(photograph, [3, 0], config).numpy() != changed[0]).any()


def test_the_next_copy_has_the_next_views(photograph):
    """Copy c has views cV .. cV+V-1 of the example: crops, flips and policy."""
    config = a_config(channels=3, views=6)
    config.augment.update(
        policy="randaugment", policy_magnitude=9.0, policy_std=0.5, policy_ops=3, jitter_probability=0.0
    )
    six = made(photograph, [2, 5], config).numpy()
    config.views.only.count = 2
    copies = [made(photograph, [2, 5], config, copy).numpy() for copy in range(3)]
    np.testing.assert_array_equal(np.concatenate(copies), six)
    assert len({view.tobytes() for view in six}) == 6


@pytest.mark.slow
def test_half_the_views_are_flipped(tf, photograph):
    config = a_config(channels=3, views=2)
    config.data.image_size = 24
    config.augment.crop = "none"
    image = tf.constant(photograph)

    @tf.function
    def draw_all(keys):
        one = lambda key: crops.training_views(image, key, config)["image"]
        return tf.map_fn(one, keys, fn_output_signature=tf.uint8)

    many = draw_all(np.stack([np.zeros(600, np.int64), np.arange(600)], 1)).numpy()
    plain = photograph[1:25]
    flipped = photograph[1:25, ::-1]
    is_flipped = (many == flipped).all((2, 3, 4))
    assert (is_flipped | (many == plain).all((2, 3, 4))).all()
    assert abs(is_flipped.mean() - 0.5) < 0.07
    alike = is_flipped[:, 0] == is_flipped[:, 1]
    assert abs(alike.mean() - 0.5) < 0.1


def test_crop_on_host_refuses_affine(photograph):
    config = a_config(channels=3)
    config.augment.crop = "affine"
    with pytest.raises(ValueError, match="augment.crop='affine'.*'torchvision'"):
        made(photograph, [0, 0], config)


@pytest.mark.parametrize(
    "mode, kind",
    [("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"), ("RGB", "JPEG")],
)
def test_every_kind_of_image_becomes_rgb_or_grey(photograph, mode, kind):
    """Pixels equal Pillow's conversion, up to the rounding of the two JPEG decoders."""
    image = Image.fromarray(photograph).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(90)
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
    reference = Image.open(file).convert("RGBA" if mode == "P" else mode).convert("RGB")
    got = crops.decode(file.getvalue(), 3).numpy()
    assert got.shape == (26, 24, 3) and np.abs(np.int32(got) - np.asarray(reference)).max() <= 3
    grey = crops.decode(file.getvalue(), 1).numpy()
    assert grey.shape == (26, 24, 1)
    assert np.abs(np.int32(grey[..., 0]) - np.asarray(reference.convert("L"))).max() <= 3


# ---------------------------------------------------------------------------------------------- named views


@pytest.mark.parametrize(
    "case, changes",
    [
        ("tf", dict()),
        ("none", dict(crop="none")),
        (
            "torchvision",
            dict(
                crop="torchvision",
                min_area=0.2,
                antialias=True,
                jitter_probability=0.0,
                policy="randaugment",
                policy_magnitude=9.0,
                policy_std=0.5,
                policy_ops=2,
            ),
        ),
    ],
)
def test_crops_without_overrides_match_the_recorded_ones(golden, photograph, case, changes):
    """Two views of copy 1 of an image, recorded before views had names."""
    config = a_config(channels=3)
    config.augment.update(changes)
    for named in (dict(one=dict(), two=dict()), dict(all=dict(count=2))):
        config.views = named
        wrong = made(photograph, [2, 5], config, 1).numpy() != golden("views")[f"host/{case}"]
        assert wrong.mean() < 0.01  # usually none; another processor may round a few pixels differently


def test_views_have_sizes_and_recipes_of_their_own(photograph):
    config = a_config(channels=3)
    alone = made(photograph, [2, 5], config).numpy()
    config.views = dict(large=dict(flip=False), small=dict(count=2, size=8, crop="torchvision", max_area=0.3))
    found = crops.training_views(photograph, np.int64([2, 5]), config)
    assert {name: tuple(leaf.shape) for name, leaf in found.items()} == recipes.host_shapes(config)
    large = found["large"].numpy()[0]
    assert (large == alone[0]).all() or (large == alone[0][:, ::-1]).all()  # view 0: the same box
    config.views = dict(any=dict(), small=dict(count=2, size=8, crop="torchvision", max_area=0.3))
    again = crops.training_views(photograph, np.int64([2, 5]), config)
    np.testing.assert_array_equal(again["small"], found["small"])
    assert (found["small"][0].numpy() != found["small"][1].numpy()).any()


def test_a_shared_crop_is_one_box_at_two_sizes(photograph):
    """Both views are resized from the same box and flipped alike. The box is cut by hand here."""
    config = a_config(channels=3)
    config.augment.crop = "torchvision"
    config.views = dict(
        patches=dict(count=2, min_area=0.3, size=20),
        tokens=dict(of="patches", count=2, size=10, interpolation="bilinear", antialias=True),
    )
    mirrored = set()
    for index in range(4):
        found = crops.training_views(photograph, np.int64([1, index]), config)
        for number in range(2):
            stream = (config.seed << 32) + 1
            crop_seed = np.int64([stream, index * (1 << 16) + 2 * number])
            flip_seed = np.int64([stream, index * (1 << 16) + 2 * number + 1])
            top, left, height, width = crops.box_torchvision(26, 24, crop_seed, min_area=0.3).numpy()
            flip = bool(crops.tensorflow().random.stateless_uniform([], flip_seed) < 0.5)
            box = photograph[top : top + height, left : left + width]
            for name, size, method, antialias in (
                ("patches", 20, "bicubic", False),
                ("tokens", 10, "bilinear", True),
            ):
                expected = crops.to_uint8(crops.resize(box, size, size, method, antialias=antialias)).numpy()
                np.testing.assert_array_equal(found[name][number], expected[:, ::-1] if flip else expected)
            mirrored.add(flip)
    assert mirrored == {True, False}


def test_views_of_one_size_come_in_order_and_shared_ones_have_a_place_of_their_own(photograph):
    config = a_config(channels=3)
    config.views = dict(a=dict(), b=dict(of="a", interpolation="bilinear"), c=dict())
    found = made(photograph, [2, 5], config).numpy()
    config.views = dict(a=dict(), c=dict())
    np.testing.assert_array_equal(found[[0, 2]], made(photograph, [2, 5], config))
    config.views.a.interpolation = "bilinear"
    np.testing.assert_array_equal(found[1], made(photograph, [2, 5], config)[0])
    assert (found[0] != found[1]).any()
    config.views = dict(a=dict(), b=dict(of="a"), c=dict())  # two numbers per image, not three
    second = made(photograph, [2, 5], config, 1).numpy()
    config.views = dict(a=dict(count=4))
    np.testing.assert_array_equal(second, made(photograph, [2, 5], config).numpy()[[2, 2, 3]])


@pytest.mark.parametrize("box", [crops.box_tf, crops.box_torchvision])
def test_boxes_have_the_requested_areas_and_aspect_ratios(tf, box):
    seeds = np.stack([np.zeros(500, np.int64), np.arange(500)], 1)

    @tf.function
    def draw_all(seeds):
        one = lambda seed: box(300, 400, seed, min_area=0.2, max_area=0.4, aspect=(0.5, 0.8))
        return tf.map_fn(one, seeds, fn_output_signature=tf.int32)

    _, _, height, width = draw_all(seeds).numpy().T
    area = height * width / 120_000
    aspect = width / height
    assert 0.195 < area.min() < 0.22 and 0.38 < area.max() < 0.405
    assert 0.49 < aspect.min() < 0.52 and 0.77 < aspect.max() < 0.81


@pytest.mark.parametrize("size", [12, 40])
def test_evaluation_resizes_with_the_recipes_interpolation_or_bicubically_for_a_warp(photograph, size):
    config = a_config(channels=3)
    config.data.image_size = size
    share = config.data.eval_crop if size > 32 else 1.0
    for crop, interpolation, method in (
        ("tf", "bilinear", "bilinear"),
        ("tf", "bicubic", "bicubic"),
        ("affine", None, "bicubic"),
    ):
        config.augment.crop = crop
        if interpolation is None:
            del config.augment.interpolation
        else:
            config.augment.interpolation = interpolation
        expected = crops.to_uint8(crops.central_crop(photograph, size, size, share, method))
        np.testing.assert_array_equal(crops.eval_image(photograph, config), expected)
    bilinear = crops.to_uint8(crops.central_crop(photograph, size, size, share, "bilinear"))
    assert (bilinear.numpy() != expected.numpy()).any()
