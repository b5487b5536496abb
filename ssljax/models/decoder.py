"""From the features of one view to the pixels of another, the decoder g of v2 = g(f(v1)) (arXiv 1906.05849).

The released code has none; this one is ours. For images of S x S pixels:

    dense to a map of s x s x width, norm, ReLU     s = ceil(S / 2^n), n = floor(log2(S / 4)): s is 4 to 8
    n times: every pixel twice along both axes, 3x3 convolution to half as many channels, norm, ReLU
    3x3 convolution to the channels of the other view, in float32; the first S rows and columns
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssljax.models.conv import conv2d
from ssljax.models.dvae import upsample
from ssljax.models.multiview import view_name
from ssljax.models.norm import BatchNorm
from ssljax.models.placement import along_batch
from ssljax.models.resnet import KERNELS, conv

SMALLEST = 4  # pixels along a side of the first map, at least
NARROWEST = 8  # channels of a map, at least, if `width` is not below


class PixelDecoder(nn.Module):
    """From features to pixels.

    Attributes:
        size: S.
        channels: of the pixels.
        width: channels of the first map.
        bn_momentum, bn_epsilon: see BatchNorm.
        dtype: of the computation up to the last convolution.
    """

    size: int
    channels: int
    width: int
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array, *, train: bool) -> jax.Array:
        """Features `[B, D]` -> float32 `[B, S, S, channels]`."""
        stages = max(math.floor(math.log2(self.size / SMALLEST)), 0)
        side = math.ceil(self.size / 2**stages)

        x = nn.Dense(side * side * self.width, use_bias=False, dtype=self.dtype, name="dense")(h)
        x = self._normed(x.reshape(-1, side, side, self.width), 0, train)
        for stage in range(1, stages + 1):
            width = max(self.width // 2**stage, min(self.width, NARROWEST))
            he = KERNELS["he_fan_out"]
            layer = conv(width, 3, kernel_init=he, dtype=self.dtype, name=f"conv{stage}")
            x = self._normed(layer(upsample(x)), stage, train)
        last = nn.Conv(
            self.channels,
            (3, 3),
            padding=((1, 1), (1, 1)),
            conv_general_dilated=conv2d if jax.device_count() == 1 else None,
            name="output",
        )
        return last(x.astype(jnp.float32))[:, : self.size, : self.size]

    def _normed(self, x: jax.Array, stage: int, train: bool) -> jax.Array:
        norm = BatchNorm(self.bn_momentum, self.bn_epsilon, dtype=self.dtype, name=f"norm{stage}")
        return along_batch(nn.relu(norm(x, train=train)))


class ViewDecoders(nn.Module):
    """A decoder for each direction from one view to another. It sees the features of the first view alone.

    Attributes:
        split: the names of the views.
        directions: (from, to), positions in `split`.
        channels: of each view.
        size, width, bn_momentum, bn_epsilon, dtype: see PixelDecoder.
    """

    split: tuple[str, ...]
    directions: tuple[tuple[int, int], ...]
    channels: tuple[int, ...]
    size: int
    width: int
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array, *, train: bool) -> jax.Array:
        """Features of a MultiView `[B, V * D]` -> the predicted views, one after the other in the channels.

        They are in the order of `directions`, float32 `[B, S, S, sum of their channels]`.
        """
        parts = jnp.split(h, len(self.split), axis=-1)
        predictions = []
        for source, target in self.directions:
            decoder = PixelDecoder(
                self.size,
                self.channels[target],
                self.width,
                self.bn_momentum,
                self.bn_epsilon,
                self.dtype,
                name=f"{view_name(self.split[source])}_to_{view_name(self.split[target])}",
            )
            predictions.append(decoder(parts[source], train=train))
        return jnp.concatenate(predictions, axis=-1)
