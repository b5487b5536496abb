"""RegNetY (Radosavovic et al., arXiv 2003.13678), residual networks with squeeze-and-excitation.

    stem 3x3/2;   x = ReLU(shortcut(x) + 1x1(SE(3x3 in groups(1x1(x)))));   spatial mean

DeiT's convolutional teachers (arXiv 2012.12877, table 2) are these networks at 4, 8, 12 and 16 GFLOPs.

BatchNorm follows every convolution, and ReLU follows all but the last of a block. A block is as wide inside
as outside, and the first block of a stage halves the image. The hidden layer of the gate has a quarter of the
width of the block's INPUT.

Structure and initialisation are those of torchvision.models.regnet. timm's RegNet differs: it starts the last
gain of each block at 0. Both start a classifier at a standard deviation of 0.01; here a method adds it
(`head.std`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssljax.models.drop import drop_path, rates
from ssljax.models.norm import BatchNorm
from ssljax.models.placement import along_batch
from ssljax.models.resnet import Shortcut, conv

FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Table(NamedTuple):
    """The shape of a RegNet.

    Attributes:
        depths: blocks in each stage.
        widths: channels of each stage, multiples of `group`.
        group: channels per group of the 3x3 convolutions.
        stem: channels of the stem.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    group: int
    stem: int = 32


def table(w0: int, wa: float, wm: float, depth: int, group: int) -> Table:
    """The widths and depths of the paper's quantised linear function (section 3.3).

    Block j asks for w0 + wa j channels. It gets w0 times the nearest power of wm, rounded to a multiple of 8.
    The width of a stage is then rounded to whole groups. torchvision rounds up where that would remove more
    than a tenth, so the first stage of its 8 GFLOPs network has 224 channels; the paper, pycls, timm and this
    code have 168.

    Args:
        w0: width of the first block.
        wa: slope of the widths.
        wm: base of the powers.
        depth: number of blocks.
        group: channels per group.
    """
    powers = [round(math.log((w0 + wa * block) / w0, wm)) for block in range(depth)]
    widths = [8 * round(w0 * wm**power / 8) for power in powers]
    stages = sorted(set(widths))
    depths = tuple(widths.count(width) for width in stages)
    whole_groups = tuple(group * round(width / group) for width in stages)
    return Table(depths, whole_groups, group)


TABLES = {
    "regnety_xs": Table((1, 2), (16, 32), 8, stem=16),  # from no paper; for small images on a CPU
    "regnety_4gf": table(96, 31.41, 2.24, 22, 64),
    "regnety_8gf": table(192, 76.82, 2.19, 17, 56),
    "regnety_12gf": table(168, 73.36, 2.37, 19, 112),
    "regnety_16gf": table(200, 106.23, 2.48, 18, 112),
}


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
        gate = nn.relu(self._dense(self.squeeze, "fc1", x.mean((1, 2))))
        return x * nn.sigmoid(self._dense(x.shape[-1], "fc2", gate))[:, None, None]

    def _dense(self, features: int, name: str, x: jax.Array) -> jax.Array:
        bound = x.shape[-1] ** -0.5  # PyTorch's rule for a bias
        uniform = lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)
        dense = nn.Dense(features, dtype=self.dtype, kernel_init=FAN_OUT, bias_init=uniform, name=name)
        return dense(x)


class Block(nn.Module):
    """1x1 convolution, 3x3 in groups (with the stride), squeeze-and-excitation, 1x1 convolution.

    Attributes:
        features: channels inside and of the output.
        stride: of the 3x3 convolution.
        group: channels per group of the 3x3 convolution.
        conv, norm: make the layers.
        dtype: of the computation.
        drop: rate of stochastic depth of this block.
    """

    features: int
    stride: int
    group: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    dtype: jnp.dtype
    drop: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """`[B, H, W, C] -> [B, H/stride, W/stride, features]`."""
        squeeze = round(x.shape[-1] / 4)
        shortcut = x
        if self.stride > 1 or x.shape[-1] != self.features:
            projection = Shortcut(self.features, self.stride, False, self.conv, self.norm, name="shortcut")
            shortcut = projection(x, train=train)

        x = nn.relu(self.norm(name="norm1")(self.conv(self.features, 1, name="conv1")(x), train=train))
        x = self.conv(self.features, 3, self.stride, groups=self.features // self.group, name="conv2")(x)
        x = nn.relu(self.norm(name="norm2")(x, train=train))
        x = SqueezeExcitation(squeeze, self.dtype, name="se")(x)
        x = self.norm(name="norm3")(self.conv(self.features, 1, name="conv3")(x), train=train)
        if train and self.drop > 0:
            x = drop_path(x, self.drop, self.make_rng("drop_path"))
        return nn.relu(x + shortcut)


class RegNet(nn.Module):
    """A RegNetY without a classifier.

    Attributes:
        table: its shape.
        bn_momentum, bn_epsilon, unbiased: see BatchNorm.
        dtype: of the computation; parameters and running statistics are float32.
        drop_path: rate of stochastic depth in the last block; it grows linearly from 0 in the first block.
            Needs the rng "drop_path".
        remat: "blocks" keeps only the input of each block for the backward pass and recomputes the rest;
            "none" keeps everything.
    """

    table: Table
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    unbiased: bool = True
    dtype: jnp.dtype = jnp.float32
    drop_path: float = 0.0
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images `[B, H, W, C]` -> features `[B, D]`, the spatial mean of the last stage, in float32.

        The activations `stem`, `stage1`, ... are sown in the collection "intermediates".
        """
        make_conv = partial(conv, kernel_init=FAN_OUT, dtype=self.dtype)
        make_norm = partial(BatchNorm, self.bn_momentum, self.bn_epsilon, self.unbiased, dtype=self.dtype)
        block = nn.remat(Block, static_argnums=(2,)) if self.remat == "blocks" else Block

        x = make_conv(self.table.stem, 3, 2, name="stem_conv")(x)
        x = make_norm(name="stem_norm")(x, train=train)
        x = along_batch(nn.relu(x))
        self.sow("intermediates", "stem", x)

        drop = iter(rates(self.drop_path, sum(self.table.depths)))
        stages = zip(self.table.depths, self.table.widths, strict=True)
        for stage, (depth, features) in enumerate(stages, start=1):
            for index in range(1, depth + 1):
                layer = block(
                    features,
                    stride=2 if index == 1 else 1,
                    group=self.table.group,
                    conv=make_conv,
                    norm=make_norm,
                    dtype=self.dtype,
                    drop=next(drop),
                    name=f"stage{stage}_block{index}",
                )
                x = along_batch(layer(x, train))
            self.sow("intermediates", f"stage{stage}", x)
        return x.astype(jnp.float32).mean((1, 2))
