"""Colour spaces that separate luminance from chrominance, as scikit-image computes them.

Pixels in [0, 1] become (forward(pixels) - mid) / half, about [-1, 1].
The constants are those of the released code of CMC (HobbitLong/CMC, train_CMC.py: Lab, YCbCr) and of
HobbitLong/PyContrast (datasets/util.py: YDbDr). The first channel is the luminance, the others are colours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Triple = tuple[float, float, float]
Matrix = tuple[Triple, Triple, Triple]

XYZ: Matrix = (  # of linear sRGB, 2 degree observer
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE: Triple = (0.95047, 1.0, 1.08883)  # D65
YCBCR: Matrix = ((65.481, 128.553, 24.966), (-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))
YCBCR_OFFSET: Triple = (16.0, 128.0, 128.0)
YDBDR: Matrix = ((0.299, 0.587, 0.114), (-0.45, -0.883, 1.333), (-1.333, 1.116, 0.217))


def rgb_to_lab(image: jax.Array) -> jax.Array:
    """CIE Lab (sRGB, D65, 2 degree observer): L in 0..100, a in -86..98, b in -108..94.

    Args:
        image: float32 [..., 3] in [0, 1].

    Returns:
        float32 [..., 3]; white is (100, 0, 0).
    """
    linear = jnp.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)
    planes = zip(_planes(linear, XYZ), WHITE, strict=True)
    x, y, z = (_lab_root(plane / white) for plane, white in planes)
    return jnp.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], axis=-1)


def _lab_root(t: jax.Array) -> jax.Array:
    return jnp.where(t > 0.008856, jnp.cbrt(t), 7.787 * t + 16.0 / 116.0)


def lab_to_rgb(image: jax.Array) -> jax.Array:
    """The inverse of `rgb_to_lab`; colours outside sRGB are not clipped."""
    y = (image[..., 0] + 16.0) / 116.0
    roots = (y + image[..., 1] / 500.0, y, y - image[..., 2] / 200.0)
    planes = [
        white * jnp.where(root > 0.2068966, root**3, (root - 16.0 / 116.0) / 7.787)
        for root, white in zip(roots, WHITE, strict=True)
    ]
    linear = _times_inverse(jnp.stack(planes, axis=-1), XYZ)
    bent = 1.055 * jnp.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    return jnp.where(linear <= 0.0031308, 12.92 * linear, bent)


def rgb_to_ycbcr(image: jax.Array) -> jax.Array:
    """Digital YCbCr (ITU-R BT.601): Y in 16..235, Cb and Cr in 16..240. Arguments as for `rgb_to_lab`."""
    return jnp.stack(
        [plane + offset for plane, offset in zip(_planes(image, YCBCR), YCBCR_OFFSET, strict=True)], axis=-1
    )


def ycbcr_to_rgb(image: jax.Array) -> jax.Array:
    """The inverse of `rgb_to_ycbcr`."""
    offset = jnp.asarray(YCBCR_OFFSET, jnp.float32).reshape((1,) * (image.ndim - 1) + (3,))
    return _times_inverse(image - offset, YCBCR)


def rgb_to_ydbdr(image: jax.Array) -> jax.Array:
    """YDbDr (SECAM): Y in 0..1, Db and Dr in -1.333..1.333. Arguments as for `rgb_to_lab`."""
    return jnp.stack(_planes(image, YDBDR), axis=-1)


def ydbdr_to_rgb(image: jax.Array) -> jax.Array:
    """The inverse of `rgb_to_ydbdr`."""
    return _times_inverse(image, YDBDR)


def _planes(image: jax.Array, matrix: Matrix) -> list[jax.Array]:
    """One plane [...] for each row of the matrix, without a matmul, whose precision differs by device."""
    r, g, b = image[..., 0], image[..., 1], image[..., 2]
    return [row[0] * r + row[1] * g + row[2] * b for row in matrix]


def _times_inverse(image: jax.Array, matrix: Matrix) -> jax.Array:
    inverse = jnp.linalg.inv(jnp.asarray(matrix, jnp.float32))
    return jnp.einsum("...c,dc->...d", image, inverse, precision=jax.lax.Precision.HIGHEST)


class Space(NamedTuple):
    """A colour space.

    Attributes:
        forward: RGB in [0, 1] -> the space.
        back: the inverse.
        mid: subtracted from each channel.
        half: what it is then divided by.
    """

    forward: Callable[[jax.Array], jax.Array]
    back: Callable[[jax.Array], jax.Array]
    mid: Triple
    half: Triple


SPACES = {
    "lab": Space(rgb_to_lab, lab_to_rgb, (50.0, 6.025, -6.6895), (50.0, 92.208, 101.1675)),
    "ycbcr": Space(rgb_to_ycbcr, ycbcr_to_rgb, (116.151, 121.080, 132.342), (109.500, 111.855, 111.964)),
    "ydbdr": Space(rgb_to_ydbdr, ydbdr_to_rgb, (0.457, -0.082, -0.052), (0.5, 1.331, 1.333)),
}


def from_rgb(image: jax.Array, space: str) -> jax.Array:
    """Pixels in another colour space, scaled to about [-1, 1]. "rgb" returns them as they are.

    Args:
        image: float32 [H, W, C] in [0, 1].
        space: "rgb" or a key of SPACES, which needs three channels. Further channels, those of other views,
            become 2 x - 1.
    """
    if space == "rgb":
        return image
    if image.shape[-1] > 3:
        colours = from_rgb(image[..., :3], space)
        return jnp.concatenate([colours, 2.0 * image[..., 3:] - 1.0], axis=-1)
    found = SPACES[space]
    return (found.forward(image) - _channels(found.mid)) / _channels(found.half)


def to_rgb(image: jax.Array, space: str) -> jax.Array:
    """The inverse of `from_rgb`, for one image or several: float32 [..., C], not clipped."""
    if space == "rgb":
        return image
    if image.shape[-1] > 3:
        return jnp.concatenate([to_rgb(image[..., :3], space), (image[..., 3:] + 1.0) / 2.0], axis=-1)
    found = SPACES[space]
    shape = (1,) * (image.ndim - 1) + (3,)
    return found.back(image * _channels(found.half).reshape(shape) + _channels(found.mid).reshape(shape))


def _channels(values: Triple) -> jax.Array:
    return jnp.asarray(values, jnp.float32).reshape(1, 1, 3)
