"""Vision transformers (Dosovitskiy et al., arXiv 2010.11929) as in MoCo v3, DeiT and BEiT.

They have pre-norm blocks, the exact GELU, and LayerNorm with epsilon 1e-6:

    tokens = [class, (distillation), patches row by row] + positions
    x += Attention(LN(x));   x += MLP(LN(x))     per block
    LN

                 scheme="deit"                            scheme="moco_v3"
    kernels      N(0, 0.02^2), biases 0                   Xavier uniform, biases 0; query, key and value
                                                          separately
    patches      U(+-1/sqrt(fan_in)), the bias too        U(+-sqrt(6 / (fan_in + D))), bias 0
    class token  N(0, 0.02^2)                             N(0, 1e-12)
    source       timm 0.3.2 and facebookresearch/deit     facebookresearch/moco-v3, vits.py at c349e6e

timm truncates its normal at +-2 in absolute terms. That is a hundred standard deviations, so it is the plain
normal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import initializers

from ssljax.models import softmax_attention
from ssljax.models.drop import drop_path, dropout, rates
from ssljax.models.placement import along_batch

# Width, depth and heads. MoCo v3's small network has twelve heads, DeiT's has six.
SIZES = {
    "vit_xxs": (32, 2, 2),  # from no paper; for small images on a CPU
    "vit_xs": (64, 4, 4),  # from no paper; for small images on a CPU
    "vit_ti": (192, 12, 3),
    "vit_s": (384, 12, 6),
    "vit_s_h12": (384, 12, 12),
    "vit_b": (768, 12, 12),
    "vit_l": (1024, 24, 16),
    "vit_h": (1280, 32, 16),
}
SCHEMES = ("deit", "moco_v3")
POSITIONS = ("learned", "sincos")
REMATS = ("none", "blocks", "dots")
EPSILON = 1e-6


def kernel_init(scheme: str, split: int = 1) -> Callable:
    """The initialiser of a Dense layer's kernel.

    Args:
        scheme: a value of SCHEMES.
        split: the layer is `split` layers side by side, and Xavier's rule treats each separately.
    """
    if scheme == "deit":
        return initializers.normal(0.02)

    def xavier(key: jax.Array, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        bound = math.sqrt(6.0 / (shape[0] + shape[1] // split))
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return xavier


class Attention(nn.Module):
    """Multi-head self-attention, with logits and softmax in float32."""

    heads: int
    scheme: str
    dtype: jnp.dtype
    extra: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, N, D] -> [B, N, D]`.

        The attention weights of the first `extra` tokens are sown as `attention [B, heads, extra, N]`.
        """
        width = x.shape[-1]
        size = width // self.heads
        joint = nn.Dense(
            3 * width, dtype=self.dtype, kernel_init=kernel_init(self.scheme, split=3), name="qkv"
        )
        qkv = joint(x).reshape(*x.shape[:2], 3, self.heads, size)
        q, k, v = jnp.moveaxis(qkv, 2, 0)  # [B, N, heads, size] each

        q = q * size**-0.5
        mixed = softmax_attention.attend(q, k, v)
        self.sow("intermediates", "attention", softmax_attention.weights(q[:, : self.extra], k))

        proj = nn.Dense(width, dtype=self.dtype, kernel_init=kernel_init(self.scheme), name="proj")
        return proj(mixed.reshape(x.shape))


class Block(nn.Module):
    """One transformer layer.

    The rate of stochastic depth is an input, so that a scan over blocks can give each block its own rate.

    Attributes:
        heads, mlp_ratio, scheme, dtype: see ViT.
        drops: whether stochastic depth is on.
        dropout: rate of dropout; 0 in inference.
        extra: number of tokens before the patches.
    """

    heads: int
    mlp_ratio: float
    scheme: str
    dtype: jnp.dtype
    drops: bool
    dropout: float
    extra: int

    @nn.compact
    def __call__(self, x: jax.Array, rate: jax.Array) -> jax.Array:
        """`[B, N, D] -> [B, N, D]`, where `rate` is a float32 scalar."""
        width = x.shape[-1]
        attend = Attention(self.heads, self.scheme, self.dtype, self.extra, name="attn")
        y = attend(self._norm("norm1", x))
        x = x + self._kept(dropout(self, y), rate)

        y = self._dense("fc1", int(width * self.mlp_ratio))(self._norm("norm2", x))
        y = dropout(self, jax.nn.gelu(y, approximate=False))
        y = self._dense("fc2", width)(y)
        return along_batch(x + self._kept(dropout(self, y), rate))

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        norm = nn.LayerNorm(EPSILON, dtype=jnp.float32, name=name)
        return norm(x.astype(jnp.float32)).astype(self.dtype)

    def _dense(self, name: str, features: int) -> nn.Dense:
        return nn.Dense(features, dtype=self.dtype, kernel_init=kernel_init(self.scheme), name=name)

    def _kept(self, branch: jax.Array, rate: jax.Array) -> jax.Array:
        if not self.drops:
            return branch
        return drop_path(branch, rate, self.make_rng("drop_path"))


class ViT(nn.Module):
    """A vision transformer without a classifier.

    Attributes:
        width, depth, heads: see SIZES.
        patch: side of a patch in pixels; it divides the side of the image.
        mlp_ratio: hidden width of the MLPs over `width`.
        positions: "learned", or "sincos" (MoCo v3: fixed, without parameters, zero for the class token).
        scheme: of the initialisation, "deit" or "moco_v3", see the top of this file.
        distillation: add a second token after the class token (DeiT).
        drop_path: rate of stochastic depth in the last block; it grows linearly from 0 in the first block.
            Needs the rng "drop_path".
        dropout: rate after the positions, the attention's projection and both layers of the MLPs (an ablation
            of DeiT). Needs the rng "dropout".
        frozen_patch: keep the patch projection as it was initialised (MoCo v3, section 4.4). It is then not a
            parameter but a variable of "batch_stats", the collection that no gradient and no optimizer
            reaches. It is saved and restored like the rest.
        remat: what the backward pass recomputes: "none"; "blocks", everything but the input of each block;
            "dots", everything but the results of matrix products without a batch dimension.
        scan: use one loop over stacked blocks instead of `depth` copies, which compiles in a fraction of the
            time. The parameters are then in `blocks` with a leading axis of length `depth`, otherwise in
            `block0`, `block1`, ...
        dtype: of the matrix products; parameters, LayerNorm and softmax are float32.
    """

    width: int
    depth: int
    heads: int
    patch: int
    mlp_ratio: float = 4.0
    positions: str = "learned"
    scheme: str = "deit"
    distillation: bool = False
    drop_path: float = 0.0
    dropout: float = 0.0
    frozen_patch: bool = False
    remat: str = "none"
    scan: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool, tokens: bool = False) -> jax.Array:
        """Run the network.

        Args:
            image: `[B, H, W, C]`.
            train: apply stochastic depth and dropout.
            tokens: return all tokens.

        Returns:
            the class token after the last norm, float32 `[B, width]`, or all tokens `[B, N, width]`.
        """
        patches = self._patches(image)
        x = self._with_extra_tokens(patches)
        if self.positions == "learned":
            shape = (1, x.shape[1], self.width)
            positions = self.param("positions", initializers.normal(0.02), shape, jnp.float32)
        else:
            rows = image.shape[1] // self.patch
            columns = image.shape[2] // self.patch
            positions = sincos(self.width, rows, columns, extra_tokens=1 + self.distillation)
        x = (x + positions).astype(self.dtype)
        if train:
            x = dropout(self, x)

        x = self._blocks(x, train)
        x = nn.LayerNorm(EPSILON, dtype=jnp.float32, name="norm")(x.astype(jnp.float32))
        return x if tokens else x[:, 0]

    def _patches(self, image: jax.Array) -> jax.Array:
        """`[B, H, W, C] -> [B, patches, width]`, row by row: a strided convolution as one matrix product."""
        batch, height, width, channels = image.shape
        p = self.patch
        fan_in = p**2 * channels
        if height % p or width % p:
            raise ValueError(
                f"config.model.patch is {p}, which does not divide an image of {height}x{width}: "
                "choose a divisor of config.data.image_size"
            )
        grid = image.reshape(batch, height // p, p, width // p, p, channels)
        x = grid.swapaxes(2, 3).reshape(batch, -1, fan_in)

        bound = math.sqrt(1.0 / fan_in if self.scheme == "deit" else 6.0 / (fan_in + self.width))

        def uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        bias_init = uniform if self.scheme == "deit" else initializers.zeros
        if not self.frozen_patch:
            dense = nn.Dense(
                self.width, dtype=self.dtype, kernel_init=uniform, bias_init=bias_init, name="patch"
            )
            return dense(x)

        def fresh() -> dict[str, jax.Array]:
            kernel = uniform(self.make_rng("params"), (fan_in, self.width))
            bias = bias_init(self.make_rng("params"), (self.width,))
            return {"kernel": kernel, "bias": bias}

        frozen = self.variable("batch_stats", "patch", fresh)
        y = nn.Dense(self.width, dtype=self.dtype, parent=None).apply({"params": frozen.value}, x)
        assert not isinstance(y, tuple)
        return y

    def _with_extra_tokens(self, patches: jax.Array) -> jax.Array:
        """`[B, patches, width] -> float32 [B, N, width]`, the extra tokens first."""
        std = 0.02 if self.scheme == "deit" else 1e-6
        tokens = []
        for name in ("class_token", "distillation_token")[: 1 + self.distillation]:
            tokens.append(self.param(name, initializers.normal(std), (1, 1, self.width), jnp.float32))
        rows = [jnp.broadcast_to(token, (patches.shape[0], 1, self.width)) for token in tokens]
        return jnp.concatenate([*rows, patches.astype(jnp.float32)], axis=1)

    def _blocks(self, x: jax.Array, train: bool) -> jax.Array:
        drop_rates = jnp.array(rates(self.drop_path, self.depth), jnp.float32)
        kind = Block
        if self.remat != "none":
            policy = None
            if self.remat == "dots":
                policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            kind = nn.remat(Block, policy=policy, prevent_cse=not self.scan)
        block = partial(
            kind,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            scheme=self.scheme,
            dtype=self.dtype,
            drops=train and self.drop_path > 0,
            dropout=self.dropout if train else 0.0,
            extra=1 + self.distillation,
        )
        if self.scan:
            loop = nn.scan(
                lambda block, x, rate: (block(x, rate), ()),
                length=self.depth,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True, "drop_path": True, "dropout": True},
            )
            x, _ = loop(block(name="blocks"), x, drop_rates)
            return x

        for i in range(self.depth):
            x = block(name=f"block{i}")(x, drop_rates[i])
            self.sow("intermediates", f"after_block{i}", x)
        return x


def sincos(width: int, rows: int, columns: int, *, extra_tokens: int) -> jax.Array:
    """MoCo v3's fixed positions, float32 [1, extra + rows * columns, width].

    Four quarters: sine and cosine of the column, sine and cosine of the row, at width / 4 wavelengths from
    2 pi to 10,000 times that. The extra tokens have zeros. The released code exchanges the roles of row and
    column, which matters only when weights are converted.

    Raises:
        ValueError: the width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(
            f"positions='sincos' needs a width that is a multiple of 4, not {width}; use 'learned'"
        )
    omega = 10_000.0 ** (-jnp.arange(width // 4, dtype=jnp.float32) / (width // 4))
    angle = lambda places: places.astype(jnp.float32)[:, None] * omega[None]
    column = angle(jnp.tile(jnp.arange(columns), rows))
    row = angle(jnp.repeat(jnp.arange(rows), columns))
    grid = jnp.concatenate([jnp.sin(column), jnp.cos(column), jnp.sin(row), jnp.cos(row)], axis=1)
    return jnp.concatenate([jnp.zeros((extra_tokens, width), jnp.float32), grid])[None]


def resize_positions(positions: jax.Array, grid: tuple[int, int], *, extra_tokens: int) -> jax.Array:
    """Resize learned positions to another image size.

    The square grid is resized bicubically, and the extra tokens keep their positions. This is PyTorch's
    kernel (a = -0.75, half-pixel centres, borders repeated, no antialiasing), as in DeiT's fine-tuning at 384
    pixels. `jax.image.resize` has a = -0.5 and other borders.

    Args:
        positions: [..., extra + side * side, D].
        grid: rows and columns of the new grid.
        extra_tokens: 1, or 2 with a distillation token.

    Returns:
        [..., extra + rows * columns, D], in the input's dtype.

    Raises:
        ValueError: the tokens after the extra ones do not form a square.
    """
    tokens = positions.shape[-2] - extra_tokens
    width = positions.shape[-1]
    side = math.isqrt(max(tokens, 0))
    if side < 1 or side * side != tokens:
        raise ValueError(
            f"positions of {positions.shape[-2]} tokens, {extra_tokens} of them extra, leave {tokens}, "
            "which is not a square number: extra_tokens is 1, or 2 with a distillation token"
        )
    extra = positions[..., :extra_tokens, :]
    old = positions[..., extra_tokens:, :].astype(jnp.float32)
    old = old.reshape(*positions.shape[:-2], side, side, width)
    rows = cubic_matrix(side, grid[0])
    columns = cubic_matrix(side, grid[1])
    new = jnp.einsum("rj,ck,...jkd->...rcd", rows, columns, old, precision=jax.lax.Precision.HIGHEST)
    new = new.reshape(*positions.shape[:-2], grid[0] * grid[1], width).astype(positions.dtype)
    return jnp.concatenate([extra, new], axis=-2)


def cubic_matrix(old: int, new: int) -> jax.Array:
    """PyTorch's bicubic interpolation along one axis as a matrix, float32 [new, old]."""
    a = -0.75
    source = (jnp.arange(new, dtype=jnp.float32) + 0.5) * (old / new) - 0.5
    first = jnp.floor(source)
    places = first[:, None] + jnp.arange(-1.0, 3.0, dtype=jnp.float32)[None]  # the four neighbours
    d = jnp.abs(source[:, None] - places)
    near = ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
    far = ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a
    weights = jnp.where(d <= 1.0, near, far)
    at = jnp.clip(places, 0, old - 1).astype(jnp.int32)  # borders repeated
    return jnp.sum(weights[:, :, None] * jax.nn.one_hot(at, old, dtype=jnp.float32), axis=1)
