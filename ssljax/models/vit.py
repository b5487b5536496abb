"""Vision transformers (Dosovitskiy et al., arXiv 2010.11929) as MoCo v3, DeiT and BEiT use them: pre-norm, exact GELU, LayerNorm 1e-6.

    tokens = [class, (distillation), patches row by row] + positions;   x += Attention(LN(x));   x += MLP(LN(x));   LN

                    scheme="deit"                                  scheme="moco_v3"
    kernels         N(0, 0.02^2), biases 0                         Xavier uniform (query, key and value each for itself), biases 0
    patches         U(+-1/sqrt(fan_in)), the bias too              U(+-sqrt(6 / (fan_in + D))), bias 0
    class token     N(0, 0.02^2)                                   N(0, 1e-12)
    source          timm 0.3.2 and facebookresearch/deit           facebookresearch/moco-v3, vits.py at c349e6e

timm's truncated normal is cut at +-2 in absolute terms, a hundred standard deviations: it is the plain normal.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import initializers

from ssljax.models.drop import drop_path, dropout, rates
from ssljax.models.placement import along_batch

# Width, depth and heads; MoCo v3's small network has twelve heads, DeiT's six.
SIZES = {
    "vit_xs": (64, 4, 4),  # no paper's: small images on a CPU
    "vit_ti": (192, 12, 3),
    "vit_s": (384, 12, 6),
    "vit_s_h12": (384, 12, 12),
    "vit_b": (768, 12, 12),
    "vit_l": (1024, 24, 16),
    "vit_h": (1280, 32, 16),
}
SCHEMES, POSITIONS, REMATS = ("deit", "moco_v3"), ("learned", "sincos"), ("none", "blocks", "dots")
EPSILON = 1e-6


def kernel_init(scheme: str, split: int = 1) -> Callable:
    """Of a Dense layer; `split` outputs side by side count as layers of their own for Xavier's rule."""
    if scheme == "deit":
        return initializers.normal(0.02)

    def xavier(key: jax.Array, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        bound = math.sqrt(6.0 / (shape[0] + shape[1] // split))
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return xavier


class Attention(nn.Module):
    """Multi-head self-attention; logits and softmax in float32."""

    heads: int
    scheme: str
    dtype: jnp.dtype
    extra: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, N, D] -> [B, N, D]`; sows where each of the `extra` first tokens looks, `attention [B, heads, extra, N]`."""
        width = x.shape[-1]
        qkv = nn.Dense(
            3 * width, dtype=self.dtype, kernel_init=kernel_init(self.scheme, split=3), name="qkv"
        )(x)
        q, k, v = jnp.moveaxis(
            qkv.reshape(*x.shape[:2], 3, self.heads, width // self.heads), 2, 0
        )  # [B, N, heads, d] each
        logits = jnp.einsum(
            "bnhd,bmhd->bhnm", q * (width // self.heads) ** -0.5, k, preferred_element_type=jnp.float32
        )
        weights = jax.nn.softmax(logits, axis=-1)
        self.sow("intermediates", "attention", weights[:, :, : self.extra])
        mixed = jnp.einsum("bhnm,bmhd->bnhd", weights.astype(v.dtype), v).reshape(x.shape)
        return nn.Dense(width, dtype=self.dtype, kernel_init=kernel_init(self.scheme), name="proj")(mixed)


class Block(nn.Module):
    """One transformer layer. The rate of stochastic depth is an input, so that a scan over blocks can hand each its own."""

    heads: int
    mlp_ratio: float
    scheme: str
    dtype: jnp.dtype
    drops: bool
    dropout: float
    extra: int

    @nn.compact
    def __call__(self, x: jax.Array, rate: jax.Array) -> jax.Array:
        """`[B, N, D] -> [B, N, D]`; `rate` float32 scalar. `drops`: stochastic depth is on; `dropout` 0 in inference."""
        norm = lambda name, x: nn.LayerNorm(EPSILON, dtype=jnp.float32, name=name)(
            x.astype(jnp.float32)
        ).astype(self.dtype)
        branch = Attention(self.heads, self.scheme, self.dtype, self.extra, name="attn")(norm("norm1", x))
        x = x + self._kept(dropout(self, branch), rate)
        y = nn.Dense(
            int(x.shape[-1] * self.mlp_ratio),
            dtype=self.dtype,
            kernel_init=kernel_init(self.scheme),
            name="fc1",
        )(norm("norm2", x))
        y = dropout(self, jax.nn.gelu(y, approximate=False))
        y = nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=kernel_init(self.scheme), name="fc2")(y)
        return along_batch(x + self._kept(dropout(self, y), rate))

    def _kept(self, branch: jax.Array, rate: jax.Array) -> jax.Array:
        return drop_path(branch, rate, self.make_rng("drop_path")) if self.drops else branch


class ViT(nn.Module):
    """A vision transformer without a classifier.

    Attributes:
        width, depth, heads: see SIZES.
        patch: side of a patch in pixels; divides the image's.
        mlp_ratio: hidden width of the MLPs over `width`.
        positions: "learned", or "sincos" (MoCo v3: fixed, no parameter; zero for the class token).
        scheme: of the initialisation, "deit" or "moco_v3", see the head of this file.
        distillation: a second token behind the class token (DeiT).
        drop_path: rate of stochastic depth in the last block; it grows linearly from 0 in the first. Needs the rng "drop_path".
        dropout: rate behind the positions, the attention's projection and both layers of the MLPs (an ablation of DeiT). Needs the rng
            "dropout".
        frozen_patch: the patch projection stays as it was drawn (MoCo v3, section 4.4). It is then no parameter but a variable of
            "batch_stats", the collection of what no gradient and no optimizer reaches; it is saved and restored like the rest.
        remat: what is computed again in the backward pass: "none"; "blocks", all but the input of each block; "dots", all but
            the results of matrix products without a batch dimension.
        scan: one loop over stacked blocks instead of `depth` copies: compiles in a fraction of the time. Parameters then lie in
            `blocks` with a leading axis of length `depth`, otherwise in `block0`, `block1`, ...
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
        """Images `[B, H, W, C]` -> the class token `[B, width]` after the last norm, float32; with `tokens` all of them `[B, N, width]`."""
        rows, columns = image.shape[1] // self.patch, image.shape[2] // self.patch
        x = self._patches(image)
        std = 0.02 if self.scheme == "deit" else 1e-6
        extra = [
            self.param(name, initializers.normal(std), (1, 1, self.width), jnp.float32)
            for name in ("class_token", "distillation_token")[: 1 + self.distillation]
        ]
        x = jnp.concatenate(
            [
                *(jnp.broadcast_to(token, (x.shape[0], 1, self.width)) for token in extra),
                x.astype(jnp.float32),
            ],
            axis=1,
        )
        if self.positions == "learned":
            x = x + self.param(
                "positions", initializers.normal(0.02), (1, x.shape[1], self.width), jnp.float32
            )
        else:
            x = x + sincos(self.width, rows, columns, extra_tokens=len(extra))
        x = dropout(self, x.astype(self.dtype)) if train else x.astype(self.dtype)
        x = self._blocks(x, train)
        x = nn.LayerNorm(EPSILON, dtype=jnp.float32, name="norm")(x.astype(jnp.float32))
        return x if tokens else x[:, 0]

    def _patches(self, image: jax.Array) -> jax.Array:
        """`[B, H, W, C] -> [B, patches, width]`, row by row: the strided convolution as one matrix product."""
        batch, height, width, channels = image.shape
        p, fan_in = self.patch, self.patch**2 * channels
        if height % p or width % p:
            raise ValueError(
                f"config.model.patch is {p}, which does not divide an image of {height}x{width}: choose a divisor of "
                "config.data.image_size"
            )
        x = (
            image.reshape(batch, height // p, p, width // p, p, channels)
            .swapaxes(2, 3)
            .reshape(batch, -1, fan_in)
        )
        bound = math.sqrt(1.0 / fan_in if self.scheme == "deit" else 6.0 / (fan_in + self.width))

        def uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        bias_init = uniform if self.scheme == "deit" else initializers.zeros
        if not self.frozen_patch:
            return nn.Dense(
                self.width, dtype=self.dtype, kernel_init=uniform, bias_init=bias_init, name="patch"
            )(x)
        frozen = self.variable(
            "batch_stats",
            "patch",
            lambda: {
                "kernel": uniform(self.make_rng("params"), (fan_in, self.width)),
                "bias": bias_init(self.make_rng("params"), (self.width,)),
            },
        )
        return nn.Dense(self.width, dtype=self.dtype, parent=None).apply({"params": frozen.value}, x)

    def _blocks(self, x: jax.Array, train: bool) -> jax.Array:
        each = jnp.array(rates(self.drop_path, self.depth), jnp.float32)
        block = Block
        if self.remat != "none":
            policy = (
                jax.checkpoint_policies.dots_with_no_batch_dims_saveable if self.remat == "dots" else None
            )
            block = nn.remat(Block, policy=policy, prevent_cse=not self.scan)
        settings = dict(
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            scheme=self.scheme,
            dtype=self.dtype,
            drops=train and self.drop_path > 0,
            dropout=self.dropout if train else 0.0,
            extra=1 + self.distillation,
        )
        if self.scan:
            body = nn.scan(
                lambda block, x, rate: (block(x, rate), ()),
                length=self.depth,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True, "drop_path": True, "dropout": True},
            )
            return body(block(**settings, name="blocks"), x, each)[0]
        for i in range(self.depth):
            x = block(**settings, name=f"block{i}")(x, each[i])
            self.sow("intermediates", f"after_block{i}", x)
        return x


def sincos(width: int, rows: int, columns: int, *, extra_tokens: int) -> jax.Array:
    """MoCo v3's fixed positions, float32 [1, extra + rows * columns, width]; extra tokens have none (zeros).

    Four quarters: sine and cosine of the column, sine and cosine of the row, at width / 4 wavelengths from 2 pi to 10,000 times that.
    (In the released code the roles of row and column are exchanged, which only matters when weights are converted.)

    Raises:
        ValueError: the width is no multiple of 4.
    """
    if width % 4:
        raise ValueError(
            f"positions='sincos' need a width that is a multiple of 4, not {width}; use 'learned'"
        )
    omega = 10_000.0 ** (-jnp.arange(width // 4, dtype=jnp.float32) / (width // 4))
    angle = lambda places: places.astype(jnp.float32)[:, None] * omega[None]
    column, row = angle(jnp.tile(jnp.arange(columns), rows)), angle(jnp.repeat(jnp.arange(rows), columns))
    grid = jnp.concatenate([jnp.sin(column), jnp.cos(column), jnp.sin(row), jnp.cos(row)], axis=1)
    return jnp.concatenate([jnp.zeros((extra_tokens, width), jnp.float32), grid])[None]


def resize_positions(positions: jax.Array, grid: tuple[int, int], *, extra_tokens: int) -> jax.Array:
    """Learned positions for another image size: the square grid is resized bicubically, the extra tokens keep theirs.

    PyTorch's kernel (a = -0.75, half-pixel centres, borders repeated, no antialiasing), as DeiT fine-tunes at 384 pixels;
    `jax.image.resize` has a = -0.5 and other borders.

    Args:
        positions: [..., extra + side * side, D].
        grid: rows and columns of the new grid.
        extra_tokens: 1, or 2 with a distillation token.

    Returns:
        [..., extra + rows * columns, D], in the input's dtype.

    Raises:
        ValueError: the tokens behind the extra ones are no square.
    """
    tokens, width = positions.shape[-2] - extra_tokens, positions.shape[-1]
    side = math.isqrt(max(tokens, 0))
    if side < 1 or side * side != tokens:
        raise ValueError(
            f"positions of {positions.shape[-2]} tokens, {extra_tokens} of them extra, leave {tokens}, which is no square: "
            "extra_tokens is 1, or 2 with a distillation token"
        )
    extra, old = positions[..., :extra_tokens, :], positions[..., extra_tokens:, :].astype(jnp.float32)
    old = old.reshape(*positions.shape[:-2], side, side, width)
    new = jnp.einsum(
        "rj,ck,...jkd->...rcd",
        cubic_matrix(side, grid[0]),
        cubic_matrix(side, grid[1]),
        old,
        precision=jax.lax.Precision.HIGHEST,
    )
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
    at = jnp.clip(places, 0, old - 1).astype(jnp.int32)
    return jnp.sum(weights[:, :, None] * jax.nn.one_hot(at, old, dtype=jnp.float32), axis=1)
