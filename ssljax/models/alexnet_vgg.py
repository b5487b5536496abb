"""Plain networks: convolutions one after the other, then two full layers. AlexNet and VGG-16 as DeepCluster trains them.

Batch normalisation behind every convolution (which keeps its bias), no local response normalisation, one AlexNet instead of two halves
(facebookresearch/deepcluster, models/alexnet.py and vgg16.py). What comes out is the second full layer BEFORE its ReLU: k-means is better
on it, and a head that wants the ReLU applies it.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssljax.models.conv import conv2d
from ssljax.models.norm import BatchNorm
from ssljax.models.placement import along_batch
from ssljax.models.sobel import sobel

FULL = 4096


class Conv(NamedTuple):
    """One convolution: its name, channels, size, stride, padding, and the max-pool behind it (window, stride), (0, 0) for none."""

    name: str
    features: int
    size: int = 3
    stride: int = 1
    padding: int = 1
    pool: tuple[int, int] = (0, 0)


class Architecture(NamedTuple):
    """A network: its convolutions, and whether dropout also stands before the first full layer."""

    convs: tuple[Conv, ...]
    drops_first: bool


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
VGG16 = Architecture(
    tuple(
        Conv(f"conv{group}_{i}", features, pool=(2, 2) if i == count else (0, 0))
        for group, (features, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1)
        for i in range(1, count + 1)
    ),
    drops_first=False,
)
ARCHITECTURES = {"alexnet_bn": ALEXNET, "vgg16_bn": VGG16}


class ConvNet(nn.Module):
    """A network of a Architecture, without a classifier.

    Attributes:
        architecture: a value of ARCHITECTURES.
        width: scales the channels and the full layers.
        sobel: look at the gradients of the grey image instead of colours.
        dropout: share of the full layers' inputs dropped while training; needs the key "dropout".
        unbiased: see BatchNorm.
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
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images `[B, H, W, C]` -> the second full layer before its ReLU `[B, 4096 width]`, float32.

        What leaves the ReLU of each convolution, before the pool, is sown in the collection "intermediates" as `after_conv1`, ...; so is
        `after_fc6`.
        """
        x = sobel(x) if self.sobel else x
        for layer in self.architecture.convs:
            x = along_batch(self._conv(layer, x, train=train))
            self.sow("intermediates", f"after_{layer.name}", x)
            if layer.pool[0]:
                x = self._pool(layer, x)
        full = partial(
            nn.Dense, round(FULL * self.width), dtype=self.dtype, kernel_init=nn.initializers.normal(0.01)
        )
        drop = partial(nn.Dropout(self.dropout, name="dropout"), deterministic=not train)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(full(name="fc6")(drop(x) if self.architecture.drops_first else x))
        self.sow("intermediates", "after_fc6", x)
        return full(name="fc7")(drop(x)).astype(jnp.float32)

    def _conv(self, layer: Conv, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Conv(
            round(layer.features * self.width),
            (layer.size,) * 2,
            layer.stride,
            padding=((layer.padding,) * 2,) * 2,
            dtype=self.dtype,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            conv_general_dilated=conv2d if jax.device_count() == 1 else None,
            name=layer.name,
        )(x)
        norm = BatchNorm(
            self.bn_momentum,
            self.bn_epsilon,
            self.unbiased,
            dtype=self.dtype,
            name=layer.name.replace("conv", "norm"),
        )
        return nn.relu(norm(x, train=train))

    def _pool(self, layer: Conv, x: jax.Array) -> jax.Array:
        window, stride = layer.pool
        if min(x.shape[1:3]) < window:
            raise ValueError(
                f"behind {layer.name} the image is {x.shape[1]}x{x.shape[2]}, smaller than the {window}x{window} pool: "
                "config.data.image_size is too small for this network (AlexNet needs 63, VGG-16 32); use a ResNet"
            )
        return nn.max_pool(x, (window, window), (stride, stride))
