"""Resizing and warps match TensorFlow and torchvision; crop boxes have the distributions of both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.data import geometry

crop_resize = jax.jit(geometry.crop_resize, static_argnums=2, static_argnames=("method", "antialias"))
affine_matrix = jax.jit(geometry.affine_matrix)
affine = jax.jit(geometry.affine, static_argnums=2)


@pytest.fixture(scope="module")
def g(golden):
    return golden("augment")


@pytest.fixture(scope="module")
def image(g):
    return jnp.asarray(g["image_uint8"], jnp.float32) / 255.0


@pytest.fixture(scope="module")
def whole(image):
    return jnp.asarray([0, 0, *image.shape[:2]], jnp.int32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, shape, atol",
    [("bicubic", (9, 13), 1e-3), ("bicubic", (31, 40), 1e-3), ("bilinear", (9, 13), 1e-5)],
)
def test_resize_is_tensorflows(g, image, whole, method, shape, atol):
    """The tolerance is larger for bicubic because TensorFlow's op tabulates its kernel."""
    resized = crop_resize(image, whole, shape, method=method)
    expected = g[f"tf/resize_{method}_{shape[0]}x{shape[1]}"]
    np.testing.assert_allclose(resized, expected, rtol=0, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("method, antialias", [("bilinear", True), ("bicubic", True), ("bilinear", False)])
def test_crop_is_torchvisions(g, image, method, antialias):
    top, left, height, width, size = g["crop/top_left_h_w_size"].tolist()
    box = jnp.asarray([top, left, height, width], jnp.int32)
    cut = crop_resize(image, box, size, method=method, antialias=antialias)
    expected = g[f"crop/tv_tensor_{method}_{'' if antialias else 'no'}antialias"]
    np.testing.assert_allclose(cut, expected, rtol=0, atol=2e-5)
    mirrored = crop_resize(image, box, size, method=method, antialias=antialias, flip=jnp.bool_(True))
    np.testing.assert_allclose(mirrored, cut[:, ::-1], rtol=0, atol=1e-6)
    if antialias:
        np.testing.assert_allclose(np.clip(cut, 0, 1) * 255, g[f"crop/pil_{method}_uint8"], rtol=0, atol=2.0)


def test_flip_of_the_whole_image(g, image, whole):
    flipped = crop_resize(image, whole, image.shape[:2], flip=True)
    np.testing.assert_allclose(flipped, g["crop/tv_hflip"], rtol=0, atol=1e-6)


def test_unknown_interpolation(image, whole):
    with pytest.raises(ValueError, match="method='lanczos'"):
        crop_resize(image, whole, 8, method="lanczos")


def test_an_area_is_the_mean_of_what_it_covers(image):
    """By NumPy: 7 x 9 pixels, split into 4 x 4 parts, are 4 x 4 pixels of 7 x 9 parts."""
    tf = pytest.importorskip("tensorflow")
    cut = np.asarray(image)[1:8, 3:12]
    expected = cut.repeat(4, 0).repeat(4, 1).reshape(4, 7, 4, 9, 3).mean((1, 3))
    found = crop_resize(image, jnp.asarray([1, 3, 7, 9], jnp.int32), 4, method="area")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(tf.image.resize(cut, (4, 4), "area"), expected, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- warps

SCIPY_CASES = (
    (0.0, (0.0, 0.0), 1.0, 0.0),
    (30.0, (0.0, 0.0), 1.0, 0.0),
    (0.0, (0.25, -0.125), 1.0, 0.0),
    (-15.0, (0.1, 0.05), 1.2, 10.0),
)


@pytest.mark.slow
@pytest.mark.parametrize("rotation, shift, zoom, shear", SCIPY_CASES)
def test_affine_is_scipys(image, rotation, shift, zoom, shear):
    from scipy import ndimage

    matrix = affine_matrix(
        jnp.float32(rotation), jnp.asarray(shift, jnp.float32), jnp.float32(zoom), jnp.float32(shear)
    )
    square = image[:24, :24]
    warped = affine(square, matrix, 24)
    linear = np.asarray(matrix[:, :2], float)
    shift_in_pixels = np.asarray(matrix[:, 2], float) * 24
    centre = np.full(2, 12.5)  # of the padded image
    offset = centre + shift_in_pixels - linear @ centre
    for c in range(3):
        # Padded, because SciPy's constant mode does not blend across the border.
        padded = np.pad(np.asarray(square[..., c], float), 1)
        expected = ndimage.affine_transform(padded, linear, offset, order=1)
        np.testing.assert_allclose(warped[..., c], expected[1:-1, 1:-1], rtol=0, atol=2e-5)


@pytest.mark.slow
def test_affine_directions():
    """Values by hand.

    A quarter turn is anticlockwise, a shift moves down and right, a zoom of 2 enlarges, and the outside is 0.
    """
    image = jnp.arange(16, dtype=jnp.float32).reshape(4, 4, 1) + 1.0

    def warp(rotation=0.0, shift=(0.0, 0.0), zoom=1.0):
        matrix = affine_matrix(
            jnp.float32(rotation), jnp.asarray(shift, jnp.float32), jnp.float32(zoom), jnp.float32(0.0)
        )
        return np.asarray(affine(image, matrix, 4))[..., 0]

    original = np.asarray(image)[..., 0]
    np.testing.assert_allclose(warp(rotation=90.0), np.rot90(original), atol=1e-4)
    down_right = np.zeros((4, 4))
    down_right[1:, 2:] = original[:-1, :-2]
    np.testing.assert_allclose(warp(shift=(0.25, 0.5)), down_right, atol=1e-5)
    middle = original[1:3, 1:3]
    np.testing.assert_allclose(warp(zoom=2.0)[1:3, 1:3], middle * 0.5 + middle.mean() * 0.5, atol=1e-4)


@pytest.mark.slow
def test_affine_resizes():
    """The identity at twice the size is a bilinear resize, but border pixels blend with the 0 outside."""
    image = jnp.asarray(np.random.default_rng(0).random((8, 8, 1)), jnp.float32)
    still = affine_matrix(jnp.float32(0.0), jnp.zeros(2, jnp.float32), jnp.float32(1.0), jnp.float32(0.0))
    resized = crop_resize(image, jnp.asarray([0, 0, 8, 8], jnp.int32), 16, method="bilinear")
    warped = affine(image, still, 16)
    np.testing.assert_allclose(warped[1:-1, 1:-1], resized[1:-1, 1:-1], rtol=0, atol=1e-5)


# ----------------------------------------------------------------------------------------------- crop boxes

N = 4000


def boxes(function, height, width, **settings):
    draw = jax.jit(jax.vmap(lambda key: function(key, height, width, **settings)))
    return np.asarray(draw(jax.random.split(jax.random.key(0), N)))


def compare(ours, theirs, height, width):
    """Compare means and quantiles of area, aspect, height and corner, up to the sampling error of N boxes."""
    assert (ours[:, :2] >= 0).all() and (ours[:, 2:] > 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()
    statistics = {
        "area": lambda b: b[:, 2] * b[:, 3] / (height * width),
        "aspect": lambda b: b[:, 3] / b[:, 2],
        "height": lambda b: b[:, 2] / height,
        "top": lambda b: b[:, 0] / height,
        "left": lambda b: b[:, 1] / width,
    }
    for name, f in statistics.items():
        a = f(ours)
        b = f(theirs)
        quantiles = np.linspace(0.1, 0.9, 9)
        spread = max(b.std(), 1e-3)
        assert abs(a.mean() - b.mean()) < 5 * spread * np.sqrt(2 / N), name
        step = 2 / min(height, width)  # values are integers over the side
        np.testing.assert_allclose(
            np.quantile(a, quantiles),
            np.quantile(b, quantiles),
            rtol=0,
            atol=0.12 * spread + step,
            err_msg=name,
        )


@pytest.mark.parametrize("height, width", [(32, 32), (375, 500), (100, 40)])
def test_tf_boxes_are_tensorflows(height, width):
    tf = pytest.importorskip("tensorflow")

    @tf.function
    def reference():
        def one(i):
            begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
                [height, width, 3],
                tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
                seed=tf.stack([i, 1]),
                min_object_covered=0.1,
                aspect_ratio_range=(3 / 4, 4 / 3),
                area_range=(0.08, 1.0),
                max_attempts=100,
                use_image_if_no_bounding_boxes=True,
            )
            return tf.concat([begin[:2], size[:2]], 0)

        return tf.map_fn(one, tf.range(N))

    ours = boxes(geometry.crop_box_tf, height, width)
    compare(ours, reference().numpy(), height, width)
    area = ours[:, 2] * ours[:, 3]
    assert (area >= 0.1 * height * width).all()  # min_object_covered, although min_area is 0.08


def test_no_tf_box_covers_less_than_a_tenth():
    """`min_object_covered` is 0.1, even if `min_area` allows less."""
    area = boxes(geometry.crop_box_tf, 40, 40, min_area=0.02)[:, 2:].prod(1) / 1600
    assert 0.1 <= area.min() < 0.12


def test_tf_box_that_cannot_fit_is_the_whole_image():
    assert (boxes(geometry.crop_box_tf, 12, 300) == [0, 0, 12, 300]).all()


def torchvision_box(rng, height, width, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
    """A transcription of RandomResizedCrop.get_params."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        w = round(np.sqrt(area * aspect))
        h = round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("height, width", [(32, 32), (375, 500), (20, 60)])
def test_torchvision_boxes(height, width):
    rng = np.random.default_rng(0)
    ours = boxes(geometry.crop_box_torchvision, height, width)
    theirs = np.array([torchvision_box(rng, height, width) for _ in range(N)])
    compare(ours, theirs, height, width)


def test_torchvision_box_that_cannot_fit_is_central():
    assert (boxes(geometry.crop_box_torchvision, 12, 300) == [0, 142, 12, 16]).all()


@pytest.mark.slow
@pytest.mark.parametrize("height, width", [(375, 500), (500, 333), (400, 400)])
def test_dalles_boxes(height, width):
    """Listing 1 by NumPy, on the device and on the host."""
    crops = pytest.importorskip("ssljax.data.crops")
    rng = np.random.default_rng(0)
    short = min(height, width)
    theirs = []
    for _ in range(N):
        t = rng.integers(min(short, 288), min(short, 384) + 1)
        square = rng.integers(0, [height - short + 1, width - short + 1])
        inside = rng.integers(0, t - 256 + 1, 2) * short / t
        theirs.append([*(square + inside), short * 256 / t, short * 256 / t])
    settings = dict(size=256, min_area=0.444, max_area=0.79)
    compare(boxes(geometry.crop_box_dalle, height, width, **settings), np.array(theirs), height, width)
    data = crops.tensorflow().data.Dataset.range(N)
    data = data.map(lambda i: crops.box_dalle(height, width, [i, i], **settings))
    compare(np.array(list(data.as_numpy_iterator())), np.array(theirs), height, width)
