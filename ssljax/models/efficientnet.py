"""EfficientNet (Tan & Le, ICML 2019, arXiv 1905.11946), as Noisy Student's released code builds it.

    x = x + project(SE(swish(depthwise(swish(expand(x))))))     a mobile inverted bottleneck, MBConv
    SE(u) = u sigmoid(W2 swish(W1 mean u))                      the hidden layer: a quarter of the INPUT of x

Seven stages of such blocks lie between a 3x3 stem of stride 2 and a 1x1 head. BatchNorm follows every
convolution, and swish follows all but the last of a block, which is linear. B0 to B7 and L2 are one network,
scaled in width and depth. Paddings are TensorFlow's SAME: where the stride is 2 and the side even, one pixel
more after than before.

Structure and initialisation are those of google-research/noisystudent at aac52bf. Its BatchNorm on TPUs is
not fused, so the running variance is the biased one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssljax.models.conv import conv2d
from ssljax.models.drop import drop_path, dropout
from ssljax.models.norm import BatchNorm
from ssljax.models.placement import along_batch

Layer = Callable[..., jax.Array]
STEMS = ("imagenet", "cifar")
STEM, HEAD = 32, 1280  # channels of B0


class Stage(NamedTuple):
    """A stage of B0.

    Attributes:
        kernel: side of the depthwise convolution.
        stride: of the first block.
        expand: channels inside a block, per channel of its input.
        features: channels of the output.
        repeats: number of blocks.
    """

    kernel: int
    stride: int
    expand: int
    features: int
    repeats: int


STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)


class Scale(NamedTuple):
    """How an EfficientNet differs from B0: factors of the channels and of the blocks in a stage."""

    width: float
    depth: float


SCALES = {
    "efficientnet_xs": Scale(0.5, 0.25),  # from no paper; for small images on a CPU
    "efficientnet_b0": Scale(1.0, 1.0),
    "efficientnet_b1": Scale(1.0, 1.1),
    "efficientnet_b2": Scale(1.1, 1.2),
    "efficientnet_b3": Scale(1.2, 1.4),
    "efficientnet_b4": Scale(1.4, 1.8),
    "efficientnet_b5": Scale(1.6, 2.2),
    "efficientnet_b6": Scale(1.8, 2.6),
    "efficientnet_b7": Scale(2.0, 3.1),
    "efficientnet_l2": Scale(4.3, 5.3),
}


def channels(features: int, width: float) -> int:
    """`features` times `width`, rounded to a multiple of 8 that is not more than a tenth below it."""
    scaled = features * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def same(length: int, size: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding of an axis of `length` pixels, before and after."""
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


def _normal(fan_out: int) -> nn.initializers.Initializer:
    return nn.initializers.normal(math.sqrt(2.0 / fan_out))


def conv(
    x: jax.Array, features: int, size: int, stride: int = 1, *, groups: int = 1, dtype: jnp.dtype, name: str
) -> jax.Array:
    """A convolution without bias, padded as by TensorFlow: `[B, H, W, C] -> [B, H/stride, W/stride, F]`."""
    # TensorFlow counts a depthwise convolution as one of a single output.
    fan_out = size * size * (1 if groups > 1 else features)
    layer = nn.Conv(
        features,
        (size, size),
        stride,
        padding=[same(length, size, stride) for length in x.shape[1:3]],
        feature_group_count=groups,
        use_bias=False,
        dtype=dtype,
        name=name,
        kernel_init=_normal(fan_out),
        # As in models/resnet.py: the fast form for a CPU, where the batch lies on one device.
        conv_general_dilated=conv2d if jax.device_count() == 1 else None,
    )
    return layer(x)


class SqueezeExcitation(nn.Module):
    """Scale the channels by a gate that sees the whole image (Hu et al., arXiv 1709.01507).

    Attributes:
        squeeze: width of the hidden layer.
        dtype: of the computation.
    """

    squeeze: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C] -> [B, H, W, C]`."""
        mean = x.astype(jnp.float32).mean((1, 2)).astype(self.dtype)
        gate = self._dense(x.shape[-1], "expand", nn.swish(self._dense(self.squeeze, "reduce", mean)))
        return x * nn.sigmoid(gate)[:, None, None]

    def _dense(self, features: int, name: str, x: jax.Array) -> jax.Array:
        dense = nn.Dense(features, dtype=self.dtype, kernel_init=_normal(features), name=name)
        return dense(x)


class Block(nn.Module):
    """MBConv.

    Attributes:
        kernel, stride, expand, features: see Stage; the stride is the block's own.
        conv, norm: make the layers.
        dtype: of the computation.
        drop: rate of stochastic depth, where there is a shortcut.
    """

    kernel: int
    stride: int
    expand: int
    features: int
    conv: Layer
    norm: Callable[..., nn.Module]
    dtype: jnp.dtype
    drop: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[B, H, W, C] -> [B, H/stride, W/stride, features]`."""
        shortcut = x
        width = x.shape[-1]
        inside = width * self.expand
        if self.expand > 1:
            x = self.conv(x, inside, 1, name="expand_conv")
            x = nn.swish(self.norm(name="expand_norm")(x, train=train))
        x = self.conv(x, inside, self.kernel, self.stride, groups=inside, name="depthwise_conv")
        x = nn.swish(self.norm(name="depthwise_norm")(x, train=train))
        x = SqueezeExcitation(max(1, width // 4), self.dtype, name="se")(x)
        x = self.norm(name="project_norm")(self.conv(x, self.features, 1, name="project_conv"), train=train)
        if self.stride > 1 or width != self.features:
            return x
        if train and self.drop > 0:
            x = drop_path(x, self.drop, self.make_rng("drop_path"))
        return x + shortcut


class EfficientNet(nn.Module):
    """An EfficientNet without a classifier.

    Attributes:
        width: factor of B0's channels.
        depth: factor of B0's blocks in a stage.
        stem: "imagenet", or "cifar" for images of 32 pixels: stages 2 and 3 keep their size.
        bn_momentum, bn_epsilon, unbiased: see BatchNorm.
        dtype: of the computation; parameters and running statistics are float32.
        drop_path: rate of stochastic depth that the block after the last would have; block i of n has i/n of
            it. Needs the rng "drop_path".
        dropout: rate of dropout on the features. Needs the rng "dropout".
        frozen_blocks: the stem and this many blocks are as in inference and get no gradient; 0 trains all.
        remat: "blocks" keeps only the input of each block for the backward pass and recomputes the rest;
            "none" keeps everything.
    """

    width: float = 1.0
    depth: float = 1.0
    stem: str = "imagenet"
    bn_momentum: float = 0.99
    bn_epsilon: float = 1e-3
    unbiased: bool = False
    dtype: jnp.dtype = jnp.float32
    drop_path: float = 0.0
    dropout: float = 0.0
    frozen_blocks: int = 0
    remat: str = "none"

    @property
    def blocks(self) -> list[tuple[str, Stage]]:
        """The name of every block and its settings, with the width and the stride of this network."""
        found = []
        for number, stage in enumerate(STAGES, start=1):
            small = self.stem == "cifar" and number in (2, 3)
            for index in range(1, math.ceil(self.depth * stage.repeats) + 1):
                stride = stage.stride if index == 1 and not small else 1
                block = stage._replace(stride=stride, features=channels(stage.features, self.width))
                found.append((f"stage{number}_block{index}", block))
        return found

    @property
    def frozen(self) -> frozenset[str]:
        """The branches of the parameters that are not trained."""
        if not self.frozen_blocks:
            return frozenset()
        names = [name for name, _ in self.blocks[: self.frozen_blocks]]
        return frozenset({"stem_conv", "stem_norm", *names})

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images `[B, H, W, C]` -> features `[B, D]`, the spatial mean of the head, in float32.

        The activations `stem`, `stage1`, ..., `head` are sown in the collection "intermediates".
        """
        make_conv = partial(conv, dtype=self.dtype)
        make_norm = partial(BatchNorm, self.bn_momentum, self.bn_epsilon, self.unbiased, dtype=self.dtype)
        block = nn.remat(Block, static_argnums=(2,)) if self.remat == "blocks" else Block

        x = make_conv(x, channels(STEM, self.width), 3, 2, name="stem_conv")
        trained = train and self.frozen_blocks == 0
        x = along_batch(nn.swish(make_norm(name="stem_norm")(x, train=trained)))
        self.sow("intermediates", "stem", x)

        blocks = self.blocks
        for number, (name, settings) in enumerate(blocks):
            layer = block(
                settings.kernel,
                settings.stride,
                settings.expand,
                settings.features,
                conv=make_conv,
                norm=make_norm,
                dtype=self.dtype,
                drop=self.drop_path * number / len(blocks),
                name=name,
            )
            x = along_batch(layer(x, train and number >= self.frozen_blocks))
            if number + 1 == self.frozen_blocks:
                x = jax.lax.stop_gradient(x)
            stage = name.split("_")[0]
            if number + 1 == len(blocks) or not blocks[number + 1][0].startswith(stage):
                self.sow("intermediates", stage, x)

        x = make_conv(x, channels(HEAD, self.width), 1, name="head_conv")
        x = along_batch(nn.swish(make_norm(name="head_norm")(x, train=train)))
        self.sow("intermediates", "head", x)
        x = x.astype(jnp.float32).mean((1, 2))
        return dropout(self, x) if train else x
