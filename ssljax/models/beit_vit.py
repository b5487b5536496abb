"""BEiT's vision transformer (arXiv 2106.08254; microsoft/unilm at 768a3c8, beit/modeling_finetune.py).

    tokens = [class, patches row by row], masked patches replaced by one learned vector; + positions
    x += DP(gamma1 Attention(LN(x)));   x += DP(gamma2 MLP(LN(x)))     per block
    logits of the attention = (q / sqrt(d)) . k + bias[relative position of the two patches]

Two networks go by this name. The paper's tables 1 to 4 have learned absolute positions, and neither
LayerScale (gamma) nor the bias. The released code's default, BEiT+ in the appendices, has the bias and
LayerScale and no absolute positions: one table of the bias for all blocks in pretraining, one per block in
fine-tuning. Either is a leaf `relative_bias`: [entries, heads], or [depth, entries, heads].

Query and value have a bias, the key has none: it would not change the softmax. Initial weights are normal
with a standard deviation of 0.02, truncated at 0.02; the last layer of each branch of block l is divided by
sqrt(2 l), as in pretraining.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import initializers

from ssljax.models.drop import drop_path, rates
from ssljax.models.placement import along_batch

# Width, depth and heads.
SIZES = {
    "beit_xxs": (32, 2, 2),  # from no paper; for small images on a CPU
    "beit_xs": (64, 4, 4),  # from no paper; for small images on a CPU
    "beit_s": (192, 6, 6),  # from no paper
    "beit_b": (768, 12, 12),
    "beit_l": (1024, 24, 16),
}
RELATIVE = ("none", "shared", "blocks")
POOLING = ("mean", "mean_then_norm")
EPSILON = 1e-6
HIGHEST = jax.lax.Precision.HIGHEST
SPECIAL = 3  # entries of a table for class -> patch, patch -> class and class -> class


def cut_normal(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """N(0, 0.02^2), truncated at one standard deviation."""
    return 0.02 * jax.random.truncated_normal(key, -1.0, 1.0, shape, dtype)


def relative_index(height: int, width: int) -> jax.Array:
    """Which entry of the table belongs to a pair of tokens, the class token first: int32 [N, N], N = hw + 1.

    For two patches it counts row differences, then column differences, from -(h - 1), -(w - 1) upwards. The
    last three entries are for class -> patch, patch -> class and class -> class.
    """
    rows, columns = jnp.divmod(jnp.arange(height * width, dtype=jnp.int32), width)
    down = rows[:, None] - rows[None] + height - 1
    right = columns[:, None] - columns[None] + width - 1
    last = entries(height, width)
    index = jnp.full((height * width + 1,) * 2, last - 1, jnp.int32)
    index = index.at[1:, 1:].set(down * (2 * width - 1) + right)
    return index.at[0, 1:].set(last - 3).at[1:, 0].set(last - 2)


def entries(height: int, width: int) -> int:
    """The number of entries of a table for a grid of patches."""
    return (2 * height - 1) * (2 * width - 1) + SPECIAL


class Attention(nn.Module):
    """Multi-head self-attention with a bias per pair of tokens, its logits and softmax in float32."""

    heads: int
    scale: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array | None) -> jax.Array:
        """`[B, N, D] -> [B, N, D]`; bias: float32 `[heads, N, N]`, or None.

        The attention weights of the class token are sown as `attention [B, heads, 1, N]`.
        """
        width = x.shape[-1]
        size = width // self.heads
        qkv = nn.Dense(3 * width, use_bias=False, dtype=self.dtype, kernel_init=cut_normal, name="qkv")(x)
        q_bias = self.param("q_bias", initializers.zeros, (width,), jnp.float32)
        v_bias = self.param("v_bias", initializers.zeros, (width,), jnp.float32)
        joint = jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias]).astype(self.dtype)
        qkv = (qkv + joint[None, None]).reshape(*x.shape[:2], 3, self.heads, size)
        q, k, v = jnp.moveaxis(qkv, 2, 0)  # [B, N, heads, size] each

        attend = jax.checkpoint(_attend) if self.dtype == jnp.bfloat16 else _attend
        mixed, weights = attend(q * size**-0.5, k, v, bias)
        self.sow("intermediates", "attention", weights[:, :, :1])
        proj = nn.Dense(width, dtype=self.dtype, kernel_init=_scaled(self.scale), name="proj")
        return proj(mixed.reshape(x.shape))


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Softmax attention of scaled queries, as in `vit`, with a bias."""
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias[None]
    weights = jax.nn.softmax(logits, axis=-1)
    return jnp.einsum("bhnm,bmhd->bnhd", weights.astype(v.dtype), v), weights


def _scaled(scale: float) -> initializers.Initializer:
    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return cut_normal(key, shape, dtype) * scale

    return init


class Block(nn.Module):
    """One transformer layer.

    Attributes:
        heads, mlp_ratio, layer_scale, dtype: see BeitViT.
        number: of the block, from 1; it scales the initial weights of the branches' last layers.
        drops: whether stochastic depth is on.
    """

    heads: int
    mlp_ratio: float
    layer_scale: float
    dtype: jnp.dtype
    number: int
    drops: bool

    @nn.compact
    def __call__(self, x: jax.Array, rate: jax.Array, bias: jax.Array | None) -> jax.Array:
        """`[B, N, D] -> [B, N, D]`; `rate` of stochastic depth is a float32 scalar."""
        width = x.shape[-1]
        scale = 1.0 / math.sqrt(2.0 * self.number)
        attention = Attention(self.heads, scale, self.dtype, name="attn")
        x = x + self._kept("gamma_1", attention(self._norm("norm1", x), bias), rate)

        y = self._dense("fc1", int(width * self.mlp_ratio), 1.0)(self._norm("norm2", x))
        y = self._dense("fc2", width, scale)(jax.nn.gelu(y, approximate=False))
        return along_batch(x + self._kept("gamma_2", y, rate))

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        return layer_norm(name)(x.astype(jnp.float32)).astype(self.dtype)

    def _dense(self, name: str, features: int, scale: float) -> nn.Dense:
        return nn.Dense(features, dtype=self.dtype, kernel_init=_scaled(scale), name=name)

    def _kept(self, name: str, branch: jax.Array, rate: jax.Array) -> jax.Array:
        """A branch times its LayerScale, or nothing of it for the examples that stochastic depth drops."""
        if self.layer_scale:
            start = initializers.constant(self.layer_scale)
            gamma = self.param(name, start, (branch.shape[-1],), jnp.float32)
            branch = branch * gamma.astype(branch.dtype)[None, None]
        if not self.drops:
            return branch
        return drop_path(branch, rate, self.make_rng("drop_path"))


def layer_norm(name: str) -> nn.LayerNorm:
    """A LayerNorm in float32."""
    return nn.LayerNorm(EPSILON, dtype=jnp.float32, name=name)


class BeitViT(nn.Module):
    """BEiT's backbone.

    Attributes:
        width, depth, heads: see SIZES.
        patch: side of a patch in pixels; it divides the sides of the image.
        mlp_ratio: hidden width of the MLPs over `width`.
        absolute: add learned positions.
        relative: add a bias of relative positions to the attention's logits: "none", "shared" or "blocks".
        layer_scale: initial gamma of the branches (0.1 for B, 1e-5 for L); 0: no LayerScale.
        pooling: features; "mean" of the patch tokens after the last norm (pretraining), or "mean_then_norm":
            a norm of the mean, without a norm before it (fine-tuning). The two norms have different names,
            so fine-tuning begins with a fresh one.
        drop_path: rate of stochastic depth in the last block; it grows linearly from 0 in the first block.
        remat: what the backward pass recomputes: "none", "blocks" or "dots", see `vit.ViT`.
        dtype: of the matrix products; parameters, LayerNorm and softmax are float32.
    """

    width: int
    depth: int
    heads: int
    patch: int
    mlp_ratio: float = 4.0
    absolute: bool = False
    relative: str = "shared"
    layer_scale: float = 0.1
    pooling: str = "mean"
    drop_path: float = 0.0
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        image: jax.Array,
        *,
        train: bool,
        tokens: bool = False,
        mask: jax.Array | None = None,
        mask_token: jax.Array | None = None,
    ) -> jax.Array:
        """Run the network.

        Args:
            image: `[B, H, W, C]`.
            train: apply stochastic depth.
            tokens: return all tokens.
            mask: bool `[B, patches]`; the embedding of a masked patch is replaced by the mask token before
                positions are added. None: no patch is.
            mask_token: float32 `[width]`; a parameter of the method, because only pretraining has one.

        Returns:
            pooled features, float32 `[B, width]`, or all tokens after the last norm `[B, N, width]`, the
            class token first.
        """
        grid = (image.shape[1] // self.patch, image.shape[2] // self.patch)
        x = self._patches(image)
        if mask is not None:
            assert mask_token is not None
            x = jnp.where(mask[..., None], mask_token.astype(x.dtype)[None, None], x)
        class_token = self.param("class_token", cut_normal, (1, 1, self.width), jnp.float32)
        first = jnp.broadcast_to(class_token, (x.shape[0], 1, self.width))
        x = jnp.concatenate([first, x.astype(jnp.float32)], axis=1)
        if self.absolute:
            x = x + self.param("positions", cut_normal, (1, x.shape[1], self.width), jnp.float32)

        x = self._blocks(x.astype(self.dtype), train, grid).astype(jnp.float32)
        if self.pooling == "mean_then_norm":
            normalised = layer_norm("fc_norm")
            return normalised(x) if tokens else normalised(x[:, 1:].mean(axis=1))
        x = layer_norm("norm")(x)
        return x if tokens else x[:, 1:].mean(axis=1)

    def _patches(self, image: jax.Array) -> jax.Array:
        """`[B, H, W, C] -> [B, patches, width]`, row by row."""
        batch, height, width, channels = image.shape
        p = self.patch
        if height % p or width % p:
            raise ValueError(
                f"config.model.patch is {p}, which does not divide an image of {height}x{width}: "
                "choose a divisor of config.data.image_size"
            )
        x = patches(image, p)
        return nn.Dense(self.width, dtype=self.dtype, kernel_init=cut_normal, name="patch")(x)

    def _blocks(self, x: jax.Array, train: bool, grid: tuple[int, int]) -> jax.Array:
        drop_rates = jnp.array(rates(self.drop_path, self.depth), jnp.float32)
        biases = self._biases(grid)
        kind = Block
        if self.remat != "none":
            policy = None
            if self.remat == "dots":
                policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            kind = nn.remat(Block, policy=policy)
        block = partial(
            kind,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            layer_scale=self.layer_scale,
            dtype=self.dtype,
            drops=train and self.drop_path > 0,
        )
        for i in range(self.depth):
            x = block(number=i + 1, name=f"block{i}")(x, drop_rates[i], biases[i])
            # The patches as a map, so that `Evaluated.maps` and the probe of a layer can read them.
            self.sow("intermediates", f"after_block{i}", x[:, 1:].reshape(-1, *grid, self.width))
        return x

    def _biases(self, grid: tuple[int, int]) -> list[jax.Array | None]:
        """What each block adds to its logits: float32 [heads, N, N] each, or None."""
        if self.relative == "none":
            return [None] * self.depth
        shape: tuple[int, ...] = (entries(*grid), self.heads)
        if self.relative == "blocks":
            shape = (self.depth, *shape)
        table = self.param("relative_bias", initializers.zeros, shape, jnp.float32)
        index = relative_index(*grid)
        bias = jnp.moveaxis(table[..., index, :], -1, -3)
        return list(bias) if self.relative == "blocks" else [bias] * self.depth


def patches(image: jax.Array, side: int) -> jax.Array:
    """Cut images into squares: `[B, H, W, C] -> [B, patches, side * side * C]`, row by row."""
    batch, height, width, channels = image.shape
    grid = image.reshape(batch, height // side, side, width // side, side, channels)
    return grid.swapaxes(2, 3).reshape(batch, -1, side * side * channels)


def resize_bias(table: jax.Array, wanted: tuple[int, ...]) -> jax.Array:
    """Fit tables of relative positions to another grid and to other blocks.

    One shared table becomes a copy per block. For a larger grid, entries are spread geometrically: with n
    source offsets per side and t wanted ones, source offset k lies at 1 + q + ... + q^(k - 1), where q makes
    the last lie at t. A bicubic spline through them is read at whole offsets. The three special entries are
    copied. (BEiT's code: run_class_finetuning.py; plain resizing costs accuracy there.)

    Args:
        table: float32 [entries, heads], or [depth, entries, heads].
        wanted: the new shape.

    Returns:
        float32, of the wanted shape.

    Raises:
        ValueError: the tables do not belong to square grids, or separate tables would have to become one.
    """
    if table.ndim > len(wanted):
        raise ValueError(
            "relative_bias has a table per block there and one for all blocks here: set "
            "config.model.relative=blocks"
        )
    old = _side(table.shape[-2])
    new = _side(wanted[-2])
    table = table.astype(jnp.float32)
    if old != new:
        table = _spread(table, old, new)
    return jnp.broadcast_to(table, wanted)


def _side(count: int) -> int:
    """The side, 2 n - 1 for n patches, of a square table with so many entries."""
    side = math.isqrt(max(count - SPECIAL, 0))
    if side * side != count - SPECIAL or side % 2 == 0:
        raise ValueError(f"relative_bias with {count} entries is not that of a square grid of patches")
    return side


def _spread(table: jax.Array, old: int, new: int) -> jax.Array:
    """Resample tables [..., old^2 + 3, heads] to [..., new^2 + 3, heads]."""
    square = table[..., :-SPECIAL, :].reshape(*table.shape[:-2], old, old, table.shape[-1])
    reach = new // 2
    matrix = spline_matrix(offsets(old // 2, reach), jnp.arange(-reach, reach + 1, dtype=jnp.float32))
    square = jnp.einsum("rj,ck,...jkh->...rch", matrix, matrix, square, precision=HIGHEST)
    square = square.reshape(*table.shape[:-2], new * new, table.shape[-1])
    return jnp.concatenate([square, table[..., -SPECIAL:, :]], axis=-2)


def offsets(n: int, t: int) -> jax.Array:
    """Where the offsets -n..n of the old table lie on the new one, float32 [2 n + 1]."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2.0
        if (1.0 - q**n) / (1.0 - q) > t:
            high = q
        else:
            low = q
    right = [sum(q**i for i in range(k)) for k in range(1, n + 1)]
    return jnp.array([*(-place for place in reversed(right)), 0.0, *right], jnp.float32)


def spline_matrix(places: jax.Array, at: jax.Array) -> jax.Array:
    """Cubic-spline interpolation as a matrix [len(at), len(places)]: values at `places` -> values at `at`.

    The spline is not-a-knot: its third derivative is continuous at the second and the last but one place, as
    in FITPACK's interpolating spline. Beyond the ends it keeps the last value.
    """
    n = len(places)
    at = jnp.clip(at, places[0], places[-1])
    h = jnp.diff(places)
    # Second derivatives m of the spline at the places, for each unit vector of values: A m = R y.
    row = jnp.arange(1, n - 1)
    a, b = h[:-1], h[1:]
    left = jnp.zeros((n, n), jnp.float32)
    left = left.at[row, row - 1].set(a / 6).at[row, row].set((a + b) / 3).at[row, row + 1].set(b / 6)
    left = left.at[0, :3].set(jnp.stack([h[1], -h[0] - h[1], h[0]]))
    left = left.at[-1, -3:].set(jnp.stack([h[-1], -h[-2] - h[-1], h[-2]]))
    right = jnp.zeros((n, n), jnp.float32)
    right = right.at[row, row - 1].set(1 / a).at[row, row].set(-1 / a - 1 / b).at[row, row + 1].set(1 / b)
    second = jnp.linalg.solve(left, right)

    low = jnp.clip(jnp.searchsorted(places, at, side="right") - 1, 0, n - 2)  # the place before each point
    step = h[low][:, None]
    a = (places[low + 1] - at)[:, None] / step
    b = 1.0 - a
    unit = jnp.eye(n, dtype=jnp.float32)
    bend = (a**3 - a) * second[low] + (b**3 - b) * second[low + 1]
    return a * unit[low] + b * unit[low + 1] + bend * step**2 / 6
