"""DALL-E's discrete VAE (Ramesh et al., arXiv 2102.12092): an encoder to a grid of codes, and a decoder.

    encoder    7x7 conv -> groups of residual blocks, max-pool 2 between groups -> ReLU -> 1x1 conv -> logits
    decoder    1x1 conv of (soft) codes -> groups, nearest upsampling by 2 between groups -> ReLU -> 1x1 conv
               -> mu, ln b per channel

    block      out = id(x) + res(x) / layers^2,     res = (ReLU -> conv) four times
               encoder's kernels 3, 3, 3, 1; decoder's 1, 3, 3, 3; layers = groups * blocks per group

There is no normalisation layer. The 1x1 convolutions on both sides of the codes compute in float32, as in the
released code (openai/DALL-E at 5be4b23, dall_e/encoder.py and decoder.py). So does the last one here, which
is half precision there. The kernel of the decoder's first convolution is the codebook: row k is code k.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import initializers
from ml_collections import ConfigDict

from ssljax.models.placement import along_batch

EPSILON = 0.1  # of the pixel map
KERNELS = {"encoder": (3, 3, 3, 1), "decoder": (1, 3, 3, 3)}


def map_pixels(x: jax.Array, epsilon: float = EPSILON) -> jax.Array:
    """Pixels in [0, 1] -> [epsilon, 1 - epsilon], where a logit-Laplace density is finite."""
    return (1.0 - 2.0 * epsilon) * x + epsilon


def unmap_pixels(x: jax.Array, epsilon: float = EPSILON) -> jax.Array:
    """The inverse of `map_pixels`, clipped to [0, 1]."""
    return jnp.clip((x - epsilon) / (1.0 - 2.0 * epsilon), 0.0, 1.0)


# How pixels in [0, 1] are mapped to the encoder's input: scale and offset.
PIXELS = {"dall-e": (1.0 - 2.0 * EPSILON, EPSILON), "customized": (2.0, -1.0)}


def pixel_map(name: str) -> jax.Array:
    """The scale and offset of an input map by its name in PIXELS: float32 [2]."""
    return jnp.array(PIXELS[name], jnp.float32)


def mapped(image: jax.Array, pixels: jax.Array) -> jax.Array:
    """Images in [0, 1] as the encoder sees them. `pixels` is a `pixel_map`."""
    return pixels[0] * image + pixels[1]


def unmapped(x: jax.Array, pixels: jax.Array) -> jax.Array:
    """The inverse of `mapped`, clipped to [0, 1]."""
    return jnp.clip((x - pixels[1]) / pixels[0], 0.0, 1.0)


def check_recipe(augment: ConfigDict, place: str) -> None:
    """Refuse a view that is normalised before the tokenizer maps its pixels.

    Raises:
        ValueError: names the setting and what to type.
    """
    mean, std = tuple(augment.mean), tuple(augment.std)
    if any(mean) or any(value != 1.0 for value in std):
        zeros = ",".join("0." for _ in mean)
        ones = ",".join("1." for _ in std)
        raise ValueError(
            f"{place}.mean={mean} and std={std}: the tokenizer maps pixels itself (model.pixels), so its "
            f"view must not be normalised: --{place}.mean='({zeros},)' --{place}.std='({ones},)'"
        )


def gumbel_softmax(logits: jax.Array, noise: jax.Array, temperature: jax.typing.ArrayLike) -> jax.Array:
    """The relaxed one-hot sample softmax((logits + noise) / temperature).

    The decoder reads it as it is: it is not straight-through.

    Args:
        logits: [..., K].
        noise: standard Gumbel noise of the same shape.
        temperature: tau; towards 0 the sample becomes one-hot.

    Returns:
        float32 [..., K].
    """
    perturbed = logits.astype(jnp.float32) + noise.astype(jnp.float32)
    return jax.nn.softmax(perturbed / jnp.asarray(temperature, jnp.float32), axis=-1)


def _conv(features: int, size: int, dtype: jnp.dtype, name: str) -> nn.Conv:
    """A convolution of stride 1 with zeros around; weights N(0, 1 / fan_in), biases 0."""
    scale = initializers.variance_scaling(1.0, "fan_in", "normal")
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
    return nn.Conv(features, (size, size), kernel_init=scale, dtype=dtype, precision=precision, name=name)


class Residual(nn.Module):
    """A pre-activation block with four convolutions, the hidden ones a quarter as wide.

    Attributes:
        features: of the output.
        kernels: their sizes.
        gain: of the residual branch.
        dtype: of the computation.
    """

    features: int
    kernels: tuple[int, ...]
    gain: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C] -> [B, H, W, features]`."""
        skip = x
        if x.shape[-1] != self.features:
            skip = _conv(self.features, 1, self.dtype, "identity")(x)
        hidden = self.features // 4
        widths = (hidden, hidden, hidden, self.features)
        y = x
        for i, (width, size) in enumerate(zip(widths, self.kernels, strict=True), 1):
            y = _conv(width, size, self.dtype, f"conv{i}")(nn.relu(y))
        return skip + jnp.asarray(self.gain, y.dtype) * y


class Encoder(nn.Module):
    """From images to logits over the codes. The defaults are DALL-E's: 53,786,240 parameters, f = 8.

    Attributes:
        group_count: number of groups; neighbours in the grid of codes are f = 2^(group_count - 1) pixels
            apart.
        n_hid: channels of the first group; each group has twice as many as the one before.
        n_blk_per_group: blocks per group.
        vocab_size: K, the number of codes.
        dtype: of the computation up to the last convolution.
    """

    group_count: int = 4
    n_hid: int = 256
    n_blk_per_group: int = 2
    vocab_size: int = 8192
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """`[B, H, W, C]`, mapped by `map_pixels` -> float32 logits `[B, H / f, W / f, K]`.

        Raises:
            ValueError: f does not divide the sides of the image.
        """
        del train
        factor = 2 ** (self.group_count - 1)
        if x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(
                f"the tokenizer halves an image {self.group_count - 1} times, and {x.shape[1]}x{x.shape[2]} "
                f"is no multiple of {factor}: choose another image size, or fewer groups (model.groups, "
                "tokenizer.groups)"
            )
        gain = 1.0 / (self.group_count * self.n_blk_per_group) ** 2
        x = _conv(self.n_hid, 7, self.dtype, "input")(x.astype(self.dtype))
        for group in range(1, self.group_count + 1):
            for block in range(1, self.n_blk_per_group + 1):
                width = self.n_hid * 2 ** (group - 1)
                residual = Residual(width, KERNELS["encoder"], gain, self.dtype, name=f"group{group}_{block}")
                x = residual(x)
            if group < self.group_count:
                x = nn.max_pool(x, (2, 2), (2, 2))
            x = along_batch(x)
            self.sow("intermediates", f"after_group{group}", x)
        x = nn.relu(x).astype(jnp.float32)
        return _conv(self.vocab_size, 1, jnp.float32, "output")(x)


class Decoder(nn.Module):
    """From (soft) one-hot codes to the distribution of every pixel. DALL-E's has 43,829,766 parameters.

    Attributes:
        group_count, n_blk_per_group, vocab_size, dtype: as for the Encoder; the first convolution is float32.
        n_init: width of the codebook.
        n_hid: channels of the last group; each group has half as many as the one before.
        output_channels: C, the channels of the images.
    """

    group_count: int = 4
    n_init: int = 128
    n_hid: int = 256
    n_blk_per_group: int = 2
    output_channels: int = 3
    vocab_size: int = 8192
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, codes: jax.Array, *, train: bool = False) -> jax.Array:
        """Run the decoder.

        Args:
            codes: float `[B, h, w, K]`, probabilities or one-hot, or the codes themselves, int `[B, h, w]`.
            train: not read.

        Returns:
            float32 `[B, h f, w f, 2 C]`: mu per channel, then ln b per channel.
        """
        del train
        gain = 1.0 / (self.group_count * self.n_blk_per_group) ** 2
        x = self._looked_up(codes).astype(self.dtype)
        for group in range(1, self.group_count + 1):
            for block in range(1, self.n_blk_per_group + 1):
                width = self.n_hid * 2 ** (self.group_count - group)
                residual = Residual(width, KERNELS["decoder"], gain, self.dtype, name=f"group{group}_{block}")
                x = residual(x)
            if group < self.group_count:
                x = upsample(x)
            x = along_batch(x)
        x = nn.relu(x).astype(jnp.float32)
        return _conv(2 * self.output_channels, 1, jnp.float32, "output")(x)

    def _looked_up(self, codes: jax.Array) -> jax.Array:
        """The first convolution. Of hard codes it is a look-up in its kernel, without any one-hot array."""
        conv = _conv(self.n_init, 1, jnp.float32, "input")
        if jnp.issubdtype(codes.dtype, jnp.floating):
            return conv(codes.astype(jnp.float32))
        if self.is_initializing():
            conv(jnp.zeros((*codes.shape, self.vocab_size), jnp.float32))
        weights = self.variables["params"]["input"]
        return (weights["kernel"][0, 0] + weights["bias"][None])[codes]


def upsample(x: jax.Array) -> jax.Array:
    """Repeat every pixel twice along both axes: `[B, H, W, C] -> [B, 2 H, 2 W, C]`."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def image_of(stats: jax.Array) -> jax.Array:
    """The image that a decoder's output stands for: pixels in [0, 1], `[..., C]` of `[..., 2 C]`."""
    mu, _ = jnp.split(stats, 2, axis=-1)
    return unmap_pixels(jax.nn.sigmoid(mu))


def perplexity(codes: jax.Array, vocab_size: int) -> tuple[jax.Array, jax.Array]:
    """How evenly a batch of codes uses the codebook.

    Args:
        codes: int [...].
        vocab_size: K.

    Returns:
        exp of the entropy of the codes' frequencies, from 1 to K; and the fraction of codes that occur.
    """
    counts = jnp.zeros(vocab_size, jnp.float32).at[codes.reshape(-1)].add(1.0)
    share = counts / math.prod(codes.shape)
    entropy = -jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1.0)))
    return jnp.exp(entropy), jnp.mean((counts > 0).astype(jnp.float32))
