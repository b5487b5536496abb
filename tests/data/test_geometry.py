"""Resizing and warps against TensorFlow's and torchvision's values; crop boxes against the distributions of both libraries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.data import geometry


@pytest.fixture(scope="module")
def g(golden):
    return golden("augment")


@pytest.fixture(scope="module")
def image(g):
    return jnp.asarray(g["image_uint8"], jnp.float32) / 255.0


@pytest.fixture(scope="module")
def whole(image):
    return jnp.asarray([0, 0, *image.shape[:2]], jnp.int32)


@pytest.mark.parametrize("method, shape, atol", [("bicubic", (9, 13), 1e-3), ("bicubic", (31, 40), 1e-3), ("bilinear", (9, 13), 1e-5)])
def test_resize_is_tensorflows(g, image, whole, method, shape, atol):
    resized = geometry.crop_resize(image, whole, shape, method=method)
    np.testing.assert_allclose(resized, g[f"tf/resize_{method}_{shape[0]}x{shape[1]}"], rtol=0, atol=atol)   # the op tabulates its kernel


@pytest.mark.parametrize("method, antialias", [("bilinear", True), ("bicubic", True), ("bilinear", False)])
def test_crop_is_torchvisions(g, image, method, antialias):
    top, left, height, width, size = g["crop/top_left_h_w_size"].tolist()
    box = jnp.asarray([top, left, height, width], jnp.int32)
    cut = geometry.crop_resize(image, box, size, method=method, antialias=antialias)
    expected = g[f"crop/tv_tensor_{method}_{'' if antialias else 'no'}antialias"]
    np.testing.assert_allclose(cut, expected, rtol=0, atol=2e-5)
    mirrored = geometry.crop_resize(image, box, size, method=method, antialias=antialias, flip=jnp.bool_(True))
    np.testing.assert_allclose(mirrored, cut[:, ::-1], rtol=0, atol=1e-6)
    if antialias:
        np.testing.assert_allclose(np.clip(cut, 0, 1) * 255, g[f"crop/pil_{method}_uint8"], rtol=0, atol=2.0)


def test_flip_of_the_whole_image(g, image, whole):
    flipped = geometry.crop_resize(image, whole, image.shape[:2], flip=True)
    np.testing.assert_allclose(flipped, g["crop/tv_hflip"], rtol=0, atol=1e-6)


def test_unknown_interpolation(image, whole):
    with pytest.raises(ValueError, match="method='lanczos'"):
        geometry.crop_resize(image, whole, 8, method="lanczos")
