"""Residual networks for photographs and for CIFAR: ResNet v1.5, wide, with selective kernels.

ResNet v1 (He et al., 2015, arXiv 1512.03385) with the stride in the 3x3 convolution ("v1.5") and a
zero-initialised last gain. There are two dialects, chosen by `shortcut`:

                      shortcut="simclr"                          shortcut="torchvision"
    projection        first block of every group                 only where the shape changes
    max-pool          SAME (0 above/left, 1 below/right if even) 1 on every side
    source            google-research/simclr, tf2/resnet.py      torchvision.models.resnet (MoCo, ...)

`sk_ratio` > 0 replaces the 3x3 convolution of a bottleneck by selective kernels (Li et al., 2019,
arXiv 1903.06586). It also selects the stem and the shortcuts of ResNet-D (He et al., 2018, arXiv 1812.01187),
as in SimCLRv2 (Chen et al., 2020, arXiv 2006.10029).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssljax.models.conv import conv2d
from ssljax.models.heads import SCHEMES
from ssljax.models.norm import BatchNorm
from ssljax.models.placement import along_batch
from ssljax.models.sobel import sobel

Layer = Callable[..., nn.Module]

STEMS = ("imagenet", "cifar")
SHORTCUTS = ("simclr", "torchvision")
PADDINGS = ("symmetric", "same")
REMAT = ("none", "blocks")
FAN_IN = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
# SimCLR's initialisation of convolutions (of variance 1/fan_in), Haiku's, and that of He et al. (arXiv
# 1502.01852) by outputs.
KERNELS = {
    "fan_in": FAN_IN,
    "truncated_normal": SCHEMES["truncated_normal"],
    "he_fan_out": nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
}


def conv(
    features: int,
    size: int,
    stride: int = 1,
    *,
    groups: int = 1,
    dilation: int = 1,
    padding: str = "symmetric",
    kernel_init: Callable = FAN_IN,
    dtype: jnp.dtype,
    name: str,
) -> nn.Conv:
    """A convolution without bias.

    Symmetric padding is (size-1)//2 before and the rest after, times the dilation, whatever the stride. XLA's
    SAME has one less before at stride 2 and an even side: 2 and 3 for 7x7, 0 and 1 for 3x3.
    """
    before = (size - 1) // 2
    # conv2d scans along the batch. That suits a laptop's CPU but not a batch that is sharded over devices.
    # It knows no dilation.
    dilation = dilation if size > 1 else 1
    on_one_device = jax.device_count() == 1 and dilation == 1
    symmetric = ((dilation * before, dilation * (size - 1 - before)),) * 2
    return nn.Conv(
        features,
        (size, size),
        stride,
        padding="SAME" if padding == "same" else symmetric,
        kernel_dilation=dilation,
        feature_group_count=groups,
        use_bias=False,
        dtype=dtype,
        name=name,
        kernel_init=kernel_init,
        conv_general_dilated=conv2d if on_one_device else None,
    )


def average_pool(x: jax.Array, stride: int) -> jax.Array:
    """2x2 average pool of ResNet-D, padded after: `[B, H, W, C] -> [B, H/stride, W/stride, C]`.

    As in the released code: at stride 1 the pool is SAME and does not count the padding. At stride 2 an odd
    side gets a zero, which counts.
    """
    window = partial(
        nn.pool,
        init=0.0,
        reduce_fn=jax.lax.add,
        window_shape=(2, 2),
        strides=(stride, stride),
        padding=((0, 1), (0, 1)),
    )
    if stride == 1:
        counted = window(jnp.ones((1, *x.shape[1:3], 1), x.dtype))
    else:
        counted = jnp.full((1, 1, 1, 1), 4, x.dtype)
    return window(x) / counted


def valid_pixels(size: jax.Array, height: int, width: int) -> jax.Array:
    """Where images are, and not their padding on the right and at the bottom.

    Args:
        size: int32 [B, 2], height and width of each image.
        height, width: of the padded images.

    Returns:
        bool [B, height, width, 1].
    """
    rows = jnp.arange(height)[None] < size[:, :1]
    columns = jnp.arange(width)[None] < size[:, 1:]
    return (rows[:, :, None] & columns[:, None])[..., None]


def strided(mask: jax.Array | None, stride: int) -> jax.Array | None:
    """The mask after a strided convolution: every `stride`-th pixel is in a window of its own."""
    return mask if mask is None or stride == 1 else mask[:, ::stride, ::stride]


def mean_of_valid(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The spatial mean over the pixels that count: `[B, H, W, C] -> float32 [B, C]`. The others must be 0."""
    x = x.astype(jnp.float32)
    if mask is None:
        return x.mean((1, 2))
    return x.sum((1, 2)) / jnp.maximum(mask.sum((1, 2), dtype=jnp.float32), 1.0)


class SelectiveKernel(nn.Module):
    """Two 3x3 streams, mixed by a softmax gate per channel.

    One convolution computes both streams, and neither is dilated (as in SimCLRv2's code).

    Attributes:
        features: channels of one stream, and of the output.
        stride: of the 3x3 convolution.
        ratio: the gate's hidden layer has max(32, features * ratio) channels.
    """

    features: int
    stride: int
    ratio: float
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, C] -> [B, H/stride, W/stride, features]`."""
        x = self.conv(2 * self.features, 3, self.stride, name="conv")(x)
        x = nn.relu(self.norm(name="norm")(x, train=train))
        streams = jnp.stack(jnp.split(x, 2, axis=-1))  # [2, B, H, W, C]
        gate = streams.sum(0).mean((1, 2), keepdims=True)  # [B, 1, 1, C]
        gate = self.conv(max(int(self.features * self.ratio), 32), 1, name="gate_conv1")(gate)
        gate = nn.relu(self.norm(name="gate_norm")(gate, train=train))
        gate = self.conv(2 * self.features, 1, name="gate_conv2")(gate)
        gate = nn.softmax(jnp.stack(jnp.split(gate, 2, axis=-1)), axis=0)  # [2, B, 1, 1, C]
        return (streams * gate).sum(0)


class Shortcut(nn.Module):
    """The projection of a residual block: a 1x1 convolution and a norm.

    In ResNet-D a 2x2 average pool before the convolution takes the stride.
    """

    features: int
    stride: int
    average_pool: bool
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """`[B, H, W, C] -> [B, H/stride, W/stride, features]`; `mask` is that of the result."""
        stride = self.stride
        if self.average_pool:
            x = average_pool(x, stride)
            stride = 1
        x = self.conv(self.features, 1, stride, name="conv")(x)
        return self.norm(name="norm")(x, train=train, mask=mask)


class Basic(nn.Module):
    """Two 3x3 convolutions (ResNet-18, -34).

    `sk_ratio` affects only the shortcut, as in the released code.
    """

    expansion = 1
    features: int
    stride: int
    project: bool
    sk_ratio: float
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """`[B, H, W, C] -> [B, H/stride, W/stride, features]`; `mask` is that of `x`."""
        mask = strided(mask, self.stride)
        shortcut = x
        if self.project:
            resnet_d = self.sk_ratio > 0
            projection = Shortcut(self.features, self.stride, resnet_d, self.conv, self.norm, name="shortcut")
            shortcut = projection(x, train=train, mask=mask)

        x = self.conv(self.features, 3, self.stride, name="conv1")(x)
        x = nn.relu(self.norm(name="norm1")(x, train=train, mask=mask))
        x = self.conv(self.features, 3, name="conv2")(x)
        x = self.norm(scale_init=nn.initializers.zeros, name="norm2")(x, train=train, mask=mask)
        return nn.relu(x + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions, for ResNet-50 and deeper.

    The last convolution has four times as many channels. With `sk_ratio` > 0 the 3x3 convolution is a
    SelectiveKernel.
    """

    expansion = 4
    features: int
    stride: int
    project: bool
    sk_ratio: float
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """`[B, H, W, C] -> [B, H/stride, W/stride, 4 features]`; `mask` is that of `x`."""
        after = strided(mask, self.stride)
        wide = self.expansion * self.features
        shortcut = x
        if self.project:
            resnet_d = self.sk_ratio > 0
            projection = Shortcut(wide, self.stride, resnet_d, self.conv, self.norm, name="shortcut")
            shortcut = projection(x, train=train, mask=after)

        x = self.conv(self.features, 1, name="conv1")(x)
        x = nn.relu(self.norm(name="norm1")(x, train=train, mask=mask))

        if self.sk_ratio > 0:
            selective = SelectiveKernel(
                self.features, self.stride, self.sk_ratio, self.conv, self.norm, name="sk"
            )
            x = selective(x, train=train)
        else:
            x = self.conv(self.features, 3, self.stride, name="conv2")(x)
            x = nn.relu(self.norm(name="norm2")(x, train=train, mask=after))

        x = self.conv(wide, 1, name="conv3")(x)
        x = self.norm(scale_init=nn.initializers.zeros, name="norm3")(x, train=train, mask=after)
        return nn.relu(x + shortcut)


class ResNet(nn.Module):
    """A residual network without a classifier.

    Attributes:
        block: Basic or Bottleneck.
        layers: blocks in each group.
        widths: channels of each group inside its blocks (a Bottleneck's output has four times as many).
        stem_width: channels of the stem.
        stem: "imagenet" (7x7/2 and 3x3/2 max-pool) or "cifar" (one 3x3/1).
        shortcut: "simclr" or "torchvision", see the top of this file.
        sk_ratio: of the selective kernels; 0 means none.
        padding: of the convolutions, "symmetric" or "same", see `conv`; Haiku's networks have "same".
        bn_momentum, bn_epsilon, unbiased: see BatchNorm.
        dtype: of the computation; parameters and running statistics are float32.
        remat: "blocks" keeps only the input of each block for the backward pass and recomputes the rest (a
            third more FLOPs); "none" keeps everything.
        sobel: replace the colours by the gradients of the grey image, see `sobel.py`.
        kernel_init: initialisation of the convolutions, a value of KERNELS.
        last_stride: of the last group, its shortcut included; 1 for segmentation.
        last_dilation: of every 3x3 convolution of the last group.
    """

    block: type[Basic] | type[Bottleneck]
    layers: tuple[int, ...]
    widths: tuple[int, ...]
    stem_width: int = 64
    stem: str = "imagenet"
    shortcut: str = "simclr"
    sk_ratio: float = 0.0
    padding: str = "symmetric"
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    unbiased: bool = False
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    sobel: bool = False
    kernel_init: Callable = FAN_IN
    last_stride: int = 2
    last_dilation: int = 1

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        size: jax.Array | None = None,
        part: tuple[int, int] | None = None,
    ) -> jax.Array:
        """Images `[B, H, W, C]` -> features `[B, D]`, the spatial mean of the last group, in float32.

        The activations `stem`, `group1`, ... are sown in the collection "intermediates".

        Args:
            x: images, or with `part` what comes before its first group.
            train: normalise by the statistics of the batch.
            size: int32 [B, 2], height and width of each image within `x`, whose other pixels must be 0. The
                map of an image is then that of the image alone: norms see valid pixels only, and padding
                stays 0. SAME padding depends on whether a side is even, and then it is the sides of `x` that
                count. None: all pixels are valid. Not for `sk_ratio` > 0.
            part: (first, last), of which groups the map `[B, h, w, C]` is returned, in `dtype`; 0 is the
                stem. None: all, and features.
        """
        if size is not None and self.sk_ratio > 0:
            raise ValueError(
                f"config.model.sk_ratio={self.sk_ratio}: selective kernels average over whole maps, padding "
                "included. Images of different sizes need a network with sk_ratio=0"
            )
        first, last = part or (0, len(self.layers))
        mask = None if size is None else valid_pixels(size, *x.shape[1:3])
        make_conv = partial(conv, padding=self.padding, kernel_init=self.kernel_init, dtype=self.dtype)
        make_norm = partial(BatchNorm, self.bn_momentum, self.bn_epsilon, self.unbiased, dtype=self.dtype)
        block = nn.remat(self.block, static_argnums=(2,)) if self.remat == "blocks" else self.block

        if first == 0:
            if self.sobel:
                x = sobel(x) if mask is None else jnp.where(mask, sobel(x), 0.0)
            x = along_batch(self._stem(x, train=train, mask=mask, conv=make_conv, norm=make_norm))
            mask = strided(mask, stride_of(self, 0))
            self.sow("intermediates", "stem", x)

        for group, (blocks, features) in enumerate(zip(self.layers, self.widths, strict=True), start=1):
            if not first <= group <= last:
                continue
            is_last = group == len(self.layers)
            group_stride = self.last_stride if is_last and group > 1 else min(group, 2)
            group_conv = partial(make_conv, dilation=self.last_dilation) if is_last else make_conv
            for index in range(1, blocks + 1):
                stride = group_stride if index == 1 else 1
                changes = stride > 1 or x.shape[-1] != features * self.block.expansion
                project = index == 1 and (self.shortcut == "simclr" or changes)
                layer = block(
                    features,
                    stride,
                    project,
                    self.sk_ratio,
                    conv=group_conv,
                    norm=make_norm,
                    name=f"group{group}_block{index}",
                )
                x = along_batch(layer(x, train, mask))
                mask = strided(mask, stride)
            self.sow("intermediates", f"group{group}", x)
        if part is not None:
            return x
        return mean_of_valid(x, mask)

    def _stem(
        self, x: jax.Array, *, train: bool, mask: jax.Array | None, conv: Layer, norm: Layer
    ) -> jax.Array:
        """The input of group 1: a quarter of the image's size for "imagenet", the same size for "cifar"."""
        full = self.stem_width
        half = full // 2
        if self.stem == "cifar":
            convs = [(full, 3, 1)]  # features, size, stride
        elif self.sk_ratio > 0:
            convs = [(half, 3, 2), (half, 3, 1), (full, 3, 1)]
        else:
            convs = [(full, 7, 2)]

        for i, (features, size, stride) in enumerate(convs, start=1):
            x = conv(features, size, stride, name=f"stem_conv{i}")(x)
            mask = strided(mask, stride)
            x = nn.relu(norm(name=f"stem_norm{i}")(x, train=train, mask=mask))

        if self.stem == "cifar":
            return x
        padding = "SAME" if self.shortcut == "simclr" else ((1, 1), (1, 1))
        x = nn.max_pool(x, (3, 3), (2, 2), padding)
        # With padding 1, the first window in the padding of an image still sees the image.
        mask = strided(mask, 2)
        return x if mask is None else jnp.where(mask, x, jnp.zeros((), x.dtype))


def stride_of(net: ResNet, group: int) -> int:
    """Pixels of the image per cell of the map after a group; 0 is the stem."""
    stem = 1 if net.stem == "cifar" else 4
    if group == len(net.layers) > 1:
        return stem * 2 ** (group - 2) * net.last_stride
    return stem * 2 ** max(group - 1, 0)
