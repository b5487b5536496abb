"""The networks of CPC v2: a ResNet over a grid of overlapping patches, and the masked context networks.

Henaff et al.: Data-Efficient Image Recognition with Contrastive Predictive Coding, arXiv 1905.09272.

The same weights run on the patches of an image and on whole images: no parameter has a spatial shape. Layer
normalisation takes its statistics over height, width and channels of one patch, so nothing passes from one
patch to another. ResNet-161 is the first three stacks of a ResNet-101, the third one wider and deeper.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssljax.models.conv import conv2d
from ssljax.models.heads import LinearClassifier
from ssljax.models.norm import BatchNorm
from ssljax.models.placement import along_batch
from ssljax.models.resnet import conv

DIRECTIONS = ("down", "left", "up", "right")  # where the predictions go; each turns the grid by 90 degrees
FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")  # He [X]


class Stack(NamedTuple):
    """Bottleneck blocks of one size. All stacks but the first begin with a stride of 2."""

    blocks: int
    features: int
    bottleneck: int


# ResNet-161 [P]. Of its ResNet-50 the paper gives the 24M parameters: four stacks, three have 8.5M [X].
STACKS: dict[str, tuple[Stack, ...]] = {
    "cpc_r161": (Stack(3, 256, 64), Stack(4, 512, 128), Stack(46, 4096, 512)),
    "cpc_r50": (Stack(3, 256, 64), Stack(4, 512, 128), Stack(6, 1024, 256), Stack(3, 2048, 512)),
    "cpc_r14": (Stack(1, 256, 64), Stack(2, 512, 128), Stack(1, 1024, 256)),  # small images; give it a width
    "cpc_r8": (Stack(1, 256, 64), Stack(1, 512, 128)),
}


def cut(images: jax.Array, patch: int, stride: int) -> jax.Array:
    """Cut images into a grid of overlapping squares.

    Args:
        images: [B, S, S, C].
        patch: side of a square, in pixels.
        stride: pixels between the left edges of neighbours. Square (r, c) begins at (stride r, stride c).

    Returns:
        [B, G, G, patch, patch, C], G = (S - patch) / stride + 1.

    Raises:
        ValueError: the squares do not fill the image.
    """
    height, width = images.shape[1:3]
    if height != width or height < patch or (height - patch) % stride:
        raise ValueError(
            f"patches of {patch} pixels every {stride} pixels do not fill an image of {height} x {width}: "
            "data.image_size must be model.patch plus a multiple of model.stride, such as 260 for 80 and 36"
        )
    starts = range(0, height - patch + 1, stride)
    rows = jnp.stack([images[:, top : top + patch] for top in starts], axis=1)
    return jnp.stack([rows[:, :, :, left : left + patch] for left in starts], axis=2)


class LayerNorm(nn.Module):
    """Normalise by the mean and variance of one sample, then a gain and an offset per channel.

    A group normalisation with one group. Statistics are float32.

    Attributes:
        epsilon: added to the variance.
        dtype: of the output.
    """

    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[N, H, W, C]`, normalised over H, W and C."""
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        x = x.astype(jnp.float32)
        centred = x - x.mean((1, 2, 3), keepdims=True)
        variance = jnp.square(centred).mean((1, 2, 3), keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.epsilon)
        y = y * jnp.broadcast_to(scale, y.shape) + jnp.broadcast_to(bias, y.shape)
        return y.astype(self.dtype)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions with layer norms, around a shortcut.

    Attributes:
        features: channels of the output.
        bottleneck: channels inside.
        stride: of the 3x3 convolution.
        preact: norm and ReLU come before each convolution (He et al., 2016) instead of after it.
        dtype: of the computation.
    """

    features: int
    bottleneck: int
    stride: int
    preact: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[N, H, W, C] -> [N, H/stride, W/stride, features]`."""
        convolution = partial(conv, kernel_init=FAN_OUT, dtype=self.dtype)
        norm = partial(LayerNorm, dtype=self.dtype)
        shortcut = x
        if self.preact:
            x = nn.relu(norm(name="norm1")(x))
        if shortcut.shape[-1] != self.features or self.stride > 1:
            source = x if self.preact else shortcut
            shortcut = convolution(self.features, 1, self.stride, name="shortcut")(source)
            if not self.preact:
                shortcut = norm(name="shortcut_norm")(shortcut)

        x = convolution(self.bottleneck, 1, name="conv1")(x)
        x = nn.relu(norm(name="norm2" if self.preact else "norm1")(x))
        x = convolution(self.bottleneck, 3, self.stride, name="conv2")(x)
        x = nn.relu(norm(name="norm3" if self.preact else "norm2")(x))
        x = convolution(self.features, 1, name="conv3")(x)
        if self.preact:
            return x + shortcut
        return nn.relu(norm(name="norm3")(x) + shortcut)


class PatchResNet(nn.Module):
    """A ResNet with layer norms that is applied to every patch of an image, or to whole images.

    Attributes:
        stacks: its blocks.
        stem_width: channels of the stem.
        patch: side of a patch in pixels.
        stride: pixels between the left edges of neighbouring patches.
        whole: run over the whole image instead of its patches.
        stem: "imagenet" (7x7/2 and 3x3/2 max-pool) or "cifar" (one 3x3/1).
        preact: see Bottleneck.
        remat: "blocks" keeps only the input of each block for the backward pass.
        dtype: of the computation; parameters and statistics are float32.
    """

    stacks: tuple[Stack, ...]
    stem_width: int
    patch: int
    stride: int
    whole: bool = False
    stem: str = "imagenet"
    preact: bool = False
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, grid: bool = False) -> jax.Array:
        """The mean over all places, float32 `[B, D]`.

        The activation `grid` (of whole images also `stem`, `group1`, ...) is sown in "intermediates".

        Args:
            x: images [B, S, S, C], or patches [B, G, G, P, P, C] that were cut before.
            train: not used; there is neither dropout nor a running statistic.
            grid: return all places instead: float32 [B, G, G, D], of whole images the last feature map.
        """
        del train
        if x.ndim == 4 and not self.whole:
            x = cut(x, self.patch, self.stride)
        if x.ndim == 4:
            z = self._features(x, sown=True).astype(jnp.float32)
        else:
            places = x.shape[:3]
            x = along_batch(x.reshape(-1, *x.shape[3:]))
            z = self._features(x, sown=False).astype(jnp.float32).mean((1, 2)).reshape(*places, -1)
        self.sow("intermediates", "after_grid", z)
        return z if grid else z.mean((1, 2))

    def _features(self, x: jax.Array, *, sown: bool) -> jax.Array:
        """The last feature map of images or patches `[N, H, W, C]`."""
        convolution = partial(conv, kernel_init=FAN_OUT, dtype=self.dtype)
        norm = partial(LayerNorm, dtype=self.dtype)
        if self.stem == "cifar":
            x = convolution(self.stem_width, 3, name="stem_conv")(x)
        else:
            x = convolution(self.stem_width, 7, 2, name="stem_conv")(x)
        if not self.preact:
            x = nn.relu(norm(name="stem_norm")(x))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        x = along_batch(x)
        if sown:
            self.sow("intermediates", "after_stem", x)

        block = nn.remat(Bottleneck) if self.remat == "blocks" else Bottleneck
        for group, stack in enumerate(self.stacks, start=1):
            for index in range(1, stack.blocks + 1):
                layer = block(
                    stack.features,
                    stack.bottleneck,
                    2 if index == 1 and group > 1 else 1,
                    self.preact,
                    self.dtype,
                    name=f"group{group}_block{index}",
                )
                x = along_batch(layer(x))
            if sown:
                self.sow("intermediates", f"after_group{group}", x)
        return nn.relu(norm(name="last_norm")(x)) if self.preact else x


class ContextNetwork(nn.Module):
    """A masked convolutional network over the grid: row r of its output sees rows r-blocks..r of its input.

    Attributes:
        blocks: residual blocks, five in the paper.
        hidden: channels inside a block.
        dtype: of the computation.
    """

    blocks: int = 5
    hidden: int = 256
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """`[B, H, W, D] -> [B, H, W, D]`."""
        above = ((1, 0), (0, 0))  # one row of zeros on top, none below: nothing is seen of the rows below
        c = z.astype(self.dtype)
        for block in range(1, self.blocks + 1):
            layer = partial(_conv, dtype=self.dtype)
            x = nn.relu(layer(self.hidden, (1, 1), name=f"block{block}_conv1")(c))
            x = layer(self.hidden, (1, 3), ((0, 0), (1, 1)), name=f"block{block}_conv2")(x)
            x = nn.relu(layer(self.hidden, (2, 1), above, name=f"block{block}_conv3")(x))
            c = c + layer(z.shape[-1], (1, 1), name=f"block{block}_conv4")(x)
        return nn.relu(c)


class Direction(nn.Module):
    """All that one direction learns: its context network, its targets, and a prediction for each step.

    Attributes:
        steps: the step indices; index i predicts the row i + 1 below.
        dim: of targets and predictions.
        blocks, hidden: of the context network.
        dtype: of the context network; targets and predictions are float32.
    """

    steps: tuple[int, ...]
    dim: int = 64
    blocks: int = 5
    hidden: int = 256
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """From the grid `[B, H, W, D]` to targets and predictions.

        Returns:
            targets [B, H, W, dim], and for every step index i the predictions [B, H - i - 1, W, dim] that the
            rows with a target make.
        """
        layer = partial(_conv, self.dim, (1, 1), precision=jax.lax.Precision.HIGHEST, dtype=jnp.float32)
        targets = layer(name="targets")(z)
        c = ContextNetwork(self.blocks, self.hidden, self.dtype, name="context")(z).astype(jnp.float32)
        predictions = []
        for step in self.steps:
            sources = c[:, : z.shape[1] - step - 1]
            predictions.append(layer(name=f"prediction{step}")(sources))
        return targets, predictions


class Classifier(nn.Module):
    """The residual network on feature maps that learns from few labels, "ResNet-33" with 11 blocks.

    Attributes:
        blocks: bottleneck blocks.
        bottleneck: channels inside.
        dropout: rate, on the pooled features.
        preact: see Bottleneck.
        remat: as for PatchResNet.
        dtype: of the computation.
    """

    blocks: int
    bottleneck: int
    dropout: float = 0.0
    preact: bool = False
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: jax.Array, *, train: bool) -> jax.Array:
        """Feature maps `[B, H, W, D]` -> float32 `[B, D]`, the mean of the last one."""
        x = maps.astype(self.dtype)
        block = nn.remat(Bottleneck) if self.remat == "blocks" else Bottleneck
        for index in range(1, self.blocks + 1):
            layer = block(x.shape[-1], self.bottleneck, 1, self.preact, self.dtype, name=f"block{index}")
            x = along_batch(layer(x))
        if self.preact:
            x = nn.relu(LayerNorm(dtype=self.dtype, name="last_norm")(x))
        h = x.astype(jnp.float32).mean((1, 2))
        if train and self.dropout > 0:
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.dropout, h.shape)
            h = jnp.where(keep, h / (1.0 - self.dropout), 0.0)
        return h


class GridClassifier(nn.Module):
    """CPC's linear classifier: batch normalisation without a gain, logits at every place, and their mean.

    Attributes:
        num_classes: number of logits.
    """

    num_classes: int

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
        """From a grid `[B, G, G, D]` to logits float32 `[B, num_classes]`."""
        z = BatchNorm(use_scale=False, name="norm")(z.astype(jnp.float32), train=train)
        # The mean of the logits is the logit of the mean, in 1 / G^2 of the operations.
        return LinearClassifier(self.num_classes, name="logits")(z.mean((1, 2)))


def turned(grid: jax.Array, direction: str) -> jax.Array:
    """The grid [B, H, W, D] turned so that what lies in this direction lies below."""
    return jnp.rot90(grid, DIRECTIONS.index(direction), axes=(1, 2))


def _conv(
    features: int,
    size: tuple[int, int],
    padding: tuple = ((0, 0), (0, 0)),
    *,
    dtype: jnp.dtype,
    name: str,
    precision: jax.lax.Precision | None = None,
) -> nn.Conv:
    """A convolution of stride 1 with bias."""
    own = conv2d if jax.device_count() == 1 and precision is None else None
    return nn.Conv(
        features, size, padding=padding, dtype=dtype, name=name, precision=precision, conv_general_dilated=own
    )
