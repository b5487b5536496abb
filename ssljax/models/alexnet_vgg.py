"""AlexNet and VGG-16 as DeepCluster trains them: a sequence of convolutions, then two fully connected layers.

Batch normalisation follows every convolution, which keeps its bias. There is no local response
normalisation, and AlexNet is one network instead of two halves (facebookresearch/deepcluster,
models/alexnet.py and vgg16.py).

The output is the second fully connected layer BEFORE its ReLU: k-means works better on it, and a head that
needs the ReLU applies it.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssljax.models.conv import conv2d
from ssljax.models.norm import BatchNorm
from ssljax.models.placement import along_batch
from ssljax.models.resnet import strided, valid_pixels
from ssljax.models.sobel import sobel

FULL = 4096


class Conv(NamedTuple):
    """One convolution.

    Attributes:
        name: of the layer.
        features: channels of the output.
        size: of the kernel.
        stride: of rows and columns.
        padding: on every side.
        pool: window and stride of the max-pool after it; (0, 0) for none.
    """

    name: str
    features: int
    size: int = 3
    stride: int = 1
    padding: int = 1
    pool: tuple[int, int] = (0, 0)

    def convolved(self, size: jax.Array) -> jax.Array:
        """Height and width of its output, from those of its input."""
        return (size + 2 * self.padding - self.size) // self.stride + 1

    def pooled(self, size: jax.Array) -> jax.Array:
        """Height and width after the pool, of which the last window may be incomplete (Caffe)."""
        window, stride = self.pool
        return -(-(size - window) // stride) + 1 if window else size


class Architecture(NamedTuple):
    """The shape of a network.

    Attributes:
        convs: its convolutions.
        drops_first: whether there is also dropout before the first fully connected layer.
    """

    convs: tuple[Conv, ...]
    drops_first: bool

    def with_border(self, border: int) -> Architecture:
        """The same with so many zeros around the image, in place of the first convolution's padding."""
        first, *others = self.convs
        return self._replace(convs=(first._replace(padding=border), *others))

    def cells(self, size: jax.Array) -> jax.Array:
        """Height and width of the last map of an image, with incomplete windows of pools."""
        for layer in self.convs:
            size = layer.pooled(layer.convolved(size))
        return size


ALEXNET = Architecture(
    (
        Conv("conv1", 96, 11, 4, 2, (3, 2)),
        Conv("conv2", 256, 5, 1, 2, (3, 2)),
        Conv("conv3", 384),
        Conv("conv4", 384),
        Conv("conv5", 256, pool=(3, 2)),
    ),
    drops_first=True,
)


def _vgg(*groups: tuple[int, int]) -> Architecture:
    """A VGG of groups (channels, number of convolutions), each followed by a max-pool."""
    convs = []
    for group, (features, count) in enumerate(groups, start=1):
        for i in range(1, count + 1):
            pool = (2, 2) if i == count else (0, 0)
            convs.append(Conv(f"conv{group}_{i}", features, pool=pool))
    return Architecture(tuple(convs), drops_first=False)


VGG16 = _vgg((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
ARCHITECTURES = {"alexnet_bn": ALEXNET, "vgg16_bn": VGG16}


class EveryPlace(nn.Module):
    """A fully connected layer as a convolution: what it gives for every square of the map that it fits on.

    Its parameters are those of the `nn.Dense` that was trained on one square, flattened by rows.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C] -> [B, H - k + 1, W - k + 1, features]`, of squares of k x k."""
        trained: jax.Array = self.get_variable("params", "kernel")
        inputs, features = trained.shape
        kernel = self.param("kernel", nn.initializers.normal(0.01), (inputs, features))
        bias = self.param("bias", nn.initializers.zeros, (features,))
        side = math.isqrt(inputs // x.shape[-1])
        kernel = kernel.reshape(side, side, x.shape[-1], features).astype(self.dtype)
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + bias.astype(self.dtype)[None, None, None]


class ConvNet(nn.Module):
    """A network with a given Architecture, without a classifier.

    Attributes:
        architecture: a value of ARCHITECTURES.
        width: scales the channels and the fully connected layers.
        sobel: replace the colours by the gradients of the grey image, see `sobel.py`.
        dropout: share of the inputs of the fully connected layers that is dropped in training. Needs the rng
            "dropout".
        bn_momentum, bn_epsilon, unbiased: see BatchNorm.
        dtype: of the computation; parameters and running statistics are float32.
    """

    architecture: Architecture
    width: float = 1.0
    sobel: bool = False
    dropout: float = 0.5
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    unbiased: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        border: int = 0,
        size: jax.Array | None = None,
        part: str = "",
    ) -> jax.Array:
        """Images `[B, H, W, C]` -> fc7 before its ReLU `[B, 4096 width]`, float32.

        The activations after the ReLU of each convolution and before the pool are sown in the collection
        "intermediates" as `after_conv1`, ..., and those of the first fully connected layer as `after_fc6`.

        Args:
            x: images; with part="regions" squares of a map, as large as fc6 expects them.
            train: normalise by the statistics of the batch, and drop.
            border: above 0 the network is fully convolutional: so many zeros lie around the image (for conv1,
                in place of its padding), pools keep the incomplete window at the end, and fc7
                `[B, h, w, 4096 width]` is given for every place. Norms then use the running statistics, also
                in training, and only the inputs of fc7 are dropped.
            size: int32 [B, 2], height and width of each image within `x`; its other pixels must be 0. With a
                border, the maps of an image are then those of the image alone, and 0 around it. None: all
                pixels are the image's.
            part: half of a detector, see `map_of` and `of_regions`; "": the network.
        """
        if part == "regions":
            return self.of_regions(x, train=train)
        if self.sobel:
            x = sobel(x)
            if size is not None:
                x = jnp.where(valid_pixels(size, *x.shape[1:3]), x, 0.0)
        if part == "map":
            return self.map_of(x, size)
        shape = self.architecture.with_border(border) if border else self.architecture
        for layer in shape.convs:
            x = along_batch(self._conv(layer, x, train=train and not border))
            if border and size is not None:
                size = layer.convolved(size)
                x = jnp.where(valid_pixels(size, *x.shape[1:3]), x, 0.0)
            self.sow("intermediates", f"after_{layer.name}", x)
            if layer.pool[0]:
                x = self._pool(layer, x, whole=not border)
                if border and size is not None:
                    size = layer.pooled(size)
                    x = jnp.where(valid_pixels(size, *x.shape[1:3]), x, 0.0)
        if border:
            return self._everywhere(x, train=train)

        drop = partial(nn.Dropout(self.dropout, name="dropout"), deterministic=not train)
        x = x.reshape(x.shape[0], -1)
        if self.architecture.drops_first:
            x = drop(x)
        x = nn.relu(self._full("fc6")(x))
        self.sow("intermediates", "after_fc6", x)
        x = self._full("fc7")(drop(x))
        return x.astype(jnp.float32)

    def map_of(self, x: jax.Array, size: jax.Array | None) -> jax.Array:
        """The map of Fast R-CNN: after the last convolution, before the last pool.

        Every convolution and pool is padded so that cell (i, j) lies on pixel (16 i, 16 j), or in VGG-16,
        whose pools have no centre, on the square that begins there (rbgirshick/fast-rcnn at b612190,
        models/). Norms use the running statistics.

        Args:
            x: what conv1 sees, `[B, H, W, C]`; 0 outside of an image.
            size: as for the network. With it the map of an image is that of the image alone, and 0 around it.

        Returns:
            `[B, ceil(H / 16), ceil(W / 16), channels]`, in `dtype`.
        """
        mask = None if size is None else valid_pixels(size, *x.shape[1:3])
        for layer in self.architecture.convs:
            mask = strided(mask, layer.stride)
            layer = layer._replace(padding=(layer.size - 1) // 2)
            x = along_batch(self._conv(layer, x, train=False, mask=mask))
            if layer.pool[0] and layer.name != self.architecture.convs[-1].name:
                x = _centred_pool(layer, x)
                mask = strided(mask, layer.pool[1])
                x = x if mask is None else jnp.where(mask, x, jnp.zeros((), x.dtype))
        return x

    def of_regions(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Squares of the map `[R, k, k, C]` -> fc7 after its ReLU, float32 `[R, 4096 width]`.

        In training what both layers give is dropped, and never their inputs, as in Fast R-CNN.
        """
        drop = partial(nn.Dropout(self.dropout, name="dropout"), deterministic=not train)
        x = drop(nn.relu(self._full("fc6")(x.reshape(x.shape[0], -1))))
        return drop(nn.relu(self._full("fc7")(x).astype(jnp.float32)))

    def _full(self, name: str) -> nn.Dense:
        width = round(FULL * self.width)
        return nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.normal(0.01), name=name)

    def _everywhere(self, x: jax.Array, *, train: bool) -> jax.Array:
        """fc7 at every place of the last map: float32 `[B, h, w, 4096 width]`."""
        x = nn.relu(EveryPlace(self.dtype, name="fc6")(x))
        x = nn.Dropout(self.dropout, name="dropout")(x, deterministic=not train)
        return EveryPlace(self.dtype, name="fc7")(x).astype(jnp.float32)

    def _conv(self, layer: Conv, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        conv = nn.Conv(
            round(layer.features * self.width),
            (layer.size, layer.size),
            layer.stride,
            padding=((layer.padding, layer.padding),) * 2,
            dtype=self.dtype,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            conv_general_dilated=conv2d if jax.device_count() == 1 else None,
            name=layer.name,
        )
        norm = BatchNorm(
            self.bn_momentum,
            self.bn_epsilon,
            self.unbiased,
            dtype=self.dtype,
            name=layer.name.replace("conv", "norm"),
        )
        return nn.relu(norm(conv(x), train=train, mask=mask))

    def _pool(self, layer: Conv, x: jax.Array, *, whole: bool) -> jax.Array:
        """Max-pool. An incomplete window at the end is left out if `whole` (PyTorch), or kept (Caffe)."""
        window, stride = layer.pool
        if min(x.shape[1:3]) < window:
            raise ValueError(
                f"after {layer.name} the image is {x.shape[1]}x{x.shape[2]}, smaller than the "
                f"{window}x{window} pool: config.data.image_size is too small for this network "
                "(AlexNet needs 63, VGG-16 32); increase it or use a ResNet"
            )
        if whole:
            return nn.max_pool(x, (window, window), (stride, stride))
        missing = [(0, (window - side) % stride) for side in x.shape[1:3]]
        return nn.max_pool(x, (window, window), (stride, stride), missing)


def _centred_pool(layer: Conv, x: jax.Array) -> jax.Array:
    """Max-pool with windows around every `stride`-th pixel, so that `ceil(side / stride)` are left."""
    window, stride = layer.pool
    before = (window - 1) // 2
    padding = [
        (before, stride * -(-side // stride) - stride + window - before - side) for side in x.shape[1:3]
    ]
    return nn.max_pool(x, (window, window), (stride, stride), padding)


def stride_of_map(architecture: Architecture) -> int:
    """Pixels of the image per cell of the last convolution's map."""
    strides = [layer.stride * (layer.pool[1] or 1) for layer in architecture.convs[:-1]]
    return math.prod(strides) * architecture.convs[-1].stride
