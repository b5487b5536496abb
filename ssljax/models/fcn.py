"""Fully convolutional networks: a class for every pixel, from the map of a backbone.

    ResNet    map of the last group -> two dilated 3x3 convolutions with norms -> 1x1 -> bilinear to the image
    AlexNet   fc7 at every place, of the image with 100 zeros around it -> 1x1 -> bilinear times 32, cropped

The first is the network of MoCo's and BYOL's tables: He et al., 2019, arXiv 1911.05722, appendix. The second
is FCN-32s: Long et al., 2015, arXiv 1411.4038; shelhamer/fcn.berkeleyvision.org at 1305c73, voc-fcn-alexnet.

Bilinear interpolation is separable, so both are enlarged by two matrix products:

    out[y, x] = sum_h sum_w  rows[y, h] columns[x, w] map[h, w]
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssljax.models.alexnet_vgg import Architecture, ConvNet
from ssljax.models.norm import BatchNorm
from ssljax.models.placement import along_batch
from ssljax.models.resnet import ResNet, stride_of, valid_pixels

BORDER = 100  # zeros around the image in FCN-32s
FACTOR = 32


class DilatedFCN(nn.Module):
    """A ResNet and a head on the map of its last group.

    Attributes:
        encoder: the ResNet. Its last group has stride 1 and dilation 2 in the papers: a map of stride 16.
        head: an FCNHead.
        trained: "all".
    """

    encoder: ResNet
    head: nn.Module
    trained: str = "all"

    def __call__(self, x: jax.Array, *, train: bool, size: jax.Array | None = None) -> jax.Array:
        """Images `[B, H, W, C]` -> scores float32 `[B, H, W, classes]`.

        Args:
            x: images.
            train: normalise by the statistics of the batch.
            size: int32 [B, 2], height and width of each image within `x`, whose other pixels must be 0. The
                scores of an image are then those of the image alone. None: all pixels are the image's.
        """
        maps = self.encoder(x, train=train, size=size, part=(0, len(self.encoder.layers)))
        if size is None:
            return bilinear(self.head(maps, train=train), *x.shape[1:3])
        cells = -(-size // stride_of(self.encoder, len(self.encoder.layers)))
        mask = valid_pixels(cells, *maps.shape[1:3])
        scores = self.head(maps, train=train, mask=mask)
        return bilinear(scores, *x.shape[1:3], within=(cells, size))


class FCN32s(nn.Module):
    """AlexNet or VGG-16 with fc6 and fc7 at every place, and a score at each.

    The convolutions' norms always use the running statistics: those of one image at a time would be of little
    worth, and DeepCluster trains its classifiers of PASCAL VOC so.

    Attributes:
        encoder: the network.
        head: Scores.
        side: of the square images that fc6 was trained on.
        trained: "all", or "fc": all but the convolutions.
    """

    encoder: ConvNet
    head: nn.Module
    side: int
    trained: str = "all"

    def __call__(self, x: jax.Array, *, train: bool, size: jax.Array | None = None) -> jax.Array:
        """Images `[B, H, W, C]` -> scores float32 `[B, H, W, classes]`; the arguments are a DilatedFCN's."""
        if self.is_initializing():  # fc6 gets its shape from the images that it was trained on
            square = jnp.zeros((1, self.side, self.side, x.shape[-1]), x.dtype)
            self.head(self.encoder(square, train=False)[:, None, None], train=False)
            return jnp.zeros((*x.shape[:3], 0), jnp.float32)
        scores = self.head(nn.relu(self.encoder(x, train=train, border=BORDER, size=size)), train=train)
        inputs = self.encoder.variables["params"]["fc6"]["kernel"].shape[0]
        channels = round(self.encoder.architecture.convs[-1].features * self.encoder.width)
        fc6 = math.isqrt(inputs // channels)
        if size is not None:
            places = self.encoder.architecture.with_border(BORDER).cells(size) - (fc6 - 1)
            scores = jnp.where(valid_pixels(places, *scores.shape[1:3]), scores, 0.0)
        return times_32(scores, self.encoder.architecture, x.shape[1], x.shape[2], fc6=fc6)


class FCNHead(nn.Module):
    """Two dilated 3x3 convolutions, each with a norm and a ReLU, then one score per class.

    Attributes:
        num_classes: background included.
        channels: of the 3x3 convolutions.
        dilation: of the 3x3 convolutions.
        bn_momentum, bn_epsilon, unbiased: see BatchNorm.
        dtype: of the computation.
    """

    num_classes: int
    channels: int = 256
    dilation: int = 6
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    unbiased: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """A map `[B, h, w, C]` -> scores float32 `[B, h, w, num_classes]`; `mask` as for BatchNorm."""
        for layer in (1, 2):
            conv = nn.Conv(
                self.channels,
                (3, 3),
                padding=((self.dilation, self.dilation),) * 2,
                kernel_dilation=self.dilation,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=nn.initializers.he_normal(),
                name=f"conv{layer}",
            )
            norm = BatchNorm(
                self.bn_momentum, self.bn_epsilon, self.unbiased, dtype=self.dtype, name=f"norm{layer}"
            )
            x = along_batch(nn.relu(norm(conv(x), train=train, mask=mask)))
        return Scores(self.num_classes, std=0.01, name="scores")(x)


class Scores(nn.Module):
    """A linear classifier at every place of a map.

    Attributes:
        num_classes: background included.
        std: of the initial weights N(0, std^2).
        dropout: share of the inputs that is dropped in training. Needs the rng "dropout".
    """

    num_classes: int
    std: float = 0.0
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """A map `[B, h, w, C]` -> scores float32 `[B, h, w, num_classes]`."""
        if self.dropout:
            x = nn.Dropout(self.dropout)(x, deterministic=not train)
        dense = nn.Dense(
            self.num_classes,
            kernel_init=nn.initializers.normal(self.std),
            precision=jax.lax.Precision.HIGHEST,
            name="dense",
        )
        return dense(x.astype(jnp.float32))


# ------------------------------------------------------------------------------------------------- enlarging


def bilinear(
    maps: jax.Array,
    height: int,
    width: int,
    *,
    align_corners: bool = False,
    within: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Resize maps as `torch.nn.functional.interpolate(mode="bilinear")` does.

    Args:
        maps: `[B, h, w, C]`.
        height, width: of the result.
        align_corners: False: cells have an area, and the map's area is the image's. True: the centres of the
            corners fall together.
        within: int32 [B, 2] each, how many rows and columns of each map become how many of its result; the
            others are padding. None: all.

    Returns:
        float32 `[B, height, width, C]`.
    """
    weights = []
    for axis, pixels in enumerate((height, width)):
        cells = maps.shape[1 + axis]
        if within is None:
            weights.append(_bilinear(cells, pixels, cells, pixels, align_corners))
        else:
            of_image = lambda n, m, c=cells, p=pixels: _bilinear(n, m, c, p, align_corners)
            weights.append(jax.vmap(of_image)(within[0][:, axis], within[1][:, axis]))
    return _enlarged(maps, *weights)


def _bilinear(
    valid_cells: int | jax.Array, valid_pixels: int | jax.Array, cells: int, pixels: int, align_corners: bool
) -> jax.Array:
    """How much each cell counts in each pixel: float32 [pixels, cells]."""
    n = jnp.asarray(valid_cells, jnp.float32)
    m = jnp.asarray(valid_pixels, jnp.float32)
    pixel = jnp.arange(pixels, dtype=jnp.float32)
    if align_corners:
        place = pixel * ((n - 1.0) / jnp.maximum(m - 1.0, 1.0))
    else:
        place = (pixel + 0.5) * (n / m) - 0.5
    place = jnp.clip(place, 0.0, n - 1.0)
    distance = jnp.abs(place[:, None] - jnp.arange(cells, dtype=jnp.float32)[None])
    return jnp.maximum(1.0 - distance, 0.0)


def _enlarged(maps: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Two matrix products, with `rows` [H, h] and `columns` [W, w] of all maps, or of each."""
    each = "b" if rows.ndim == 3 else ""
    highest = jax.lax.Precision.HIGHEST
    wide = jnp.einsum(f"{each}xw,bhwc->bhxc", columns, maps.astype(jnp.float32), precision=highest)
    return jnp.einsum(f"{each}yh,bhxc->byxc", rows, wide, precision=highest)


def upsample_filter(size: int) -> jax.Array:
    """The bilinear kernel of a transposed convolution along one axis: float32 [size].

    Its outer product with itself is `surgery.upsample_filt(size)` of the released code.
    """
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    return 1.0 - jnp.abs(jnp.arange(size, dtype=jnp.float32) - centre) / factor


def times_32(scores: jax.Array, architecture: Architecture, height: int, width: int, fc6: int) -> jax.Array:
    """Enlarge the scores of FCN-32s by the fixed bilinear kernel of stride 32, and crop the image out.

    Args:
        scores: `[B, h, w, C]`, of the image with BORDER zeros around it.
        architecture: of the network.
        height, width: of the image.
        fc6: side of the kernel of fc6.

    Returns:
        float32 `[B, height, width, C]`.

    Raises:
        ValueError: the network has another stride than 32.
    """
    size, offset = crop_of(architecture, fc6)
    kernel = upsample_filter(size)

    def weights(pixels: int, cells: int) -> jax.Array:
        tap = jnp.arange(pixels)[:, None] + offset - FACTOR * jnp.arange(cells)[None]
        return jnp.where((tap >= 0) & (tap < size), kernel[jnp.clip(tap, 0, size - 1)], 0.0)

    return _enlarged(scores, weights(height, scores.shape[1]), weights(width, scores.shape[2]))


def crop_of(architecture: Architecture, fc6: int) -> tuple[int, int]:
    """The kernel that enlarges the scores, and where the image begins in the result.

    This is Caffe's `coord_map.crop`: it follows the centre of a window through all layers.

    Args:
        architecture: of the network.
        fc6: side of the kernel of fc6.

    Returns:
        Side of the kernel, and pixels to leave out above and on the left: 63 and 18 for AlexNet, 64 and 19
        for VGG-16, with their own fc6 (6 and 7).

    Raises:
        ValueError: the network has another stride than 32.
    """
    stride, centre = 1, 0.0  # of the window of place 0, in pixels of the image
    for i, layer in enumerate(architecture.convs):
        padding = layer.padding if i else BORDER
        centre += stride * ((layer.size - 1) / 2 - padding)
        stride *= layer.stride
        window, step = layer.pool
        if window:
            centre += stride * (window - 1) / 2
            stride *= step
    if stride != FACTOR:
        raise ValueError(f"a network of stride {stride} cannot be an FCN-32s: use alexnet_bn or vgg16_bn")
    centre += stride * (fc6 - 1) / 2
    for size in (2 * FACTOR - 1, 2 * FACTOR):  # the one whose middle is a whole pixel of the image
        offset = (size - 1) / 2 - centre
        if offset == int(offset):
            return size, int(offset)
    raise ValueError(f"fc6 of {fc6}x{fc6} does not fall on whole pixels")
