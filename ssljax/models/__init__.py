"""Networks: the only room that knows Flax. `backbone` and `projection_head` build them from a configuration."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from ssljax.models.heads import MLP, SCHEMES, LinearClassifier
from ssljax.models.layout import along_batch
from ssljax.models.norm import BatchNorm
from ssljax.models.plain import LAYOUTS, PlainNet
from ssljax.models.regnet import TABLES, RegNet
from ssljax.models.resnet import REMAT, SHORTCUTS, STEMS, Basic, Bottleneck, ResNet
from ssljax.models.vit import POSITIONS, REMATS, SIZES, ViT, resize_positions
from ssljax.models.vit import SCHEMES as VIT_SCHEMES

__all__ = ["BACKBONES", "BatchNorm", "LinearClassifier", "MLP", "PlainNet", "RegNet", "ResNet", "ViT", "activation", "attention",
           "backbone", "draws", "forward", "infer", "initialise", "initialise_head", "mlp", "projection_head", "resize_positions",
           "unit_gains"]

Pytree = Any

# Kind and number of blocks of each group; a group is twice as wide as the one before.
BACKBONES = {
    "resnet8": (Basic, (1, 1, 1)),                  # three groups: small images on a CPU
    "resnet10": (Basic, (1, 1, 1, 1)),
    "resnet18": (Basic, (2, 2, 2, 2)),
    "resnet34": (Basic, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
    "resnet200": (Bottleneck, (3, 24, 36, 3)),
}


def _one_of(key: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"config.model.{key} is {value!r}; it must be one of: {', '.join(valid)}")


def backbone(model: ConfigDict) -> nn.Module:
    """The backbone of `config.model`, a key of BACKBONES, plain.LAYOUTS, regnet.TABLES or vit.SIZES: images -> float32 features `[B, D]`.

    Its call is `net(images [B, H, W, C], *, train)`. `width` scales every layer of a ResNet or a plain network, the first included.
    `shortcut="torchvision"` also brings PyTorch's unbiased running variance, which a RegNet always has, see BatchNorm. `sobel` puts
    Sobel's filter before the first layer of a ResNet or a plain network; `drop_path` is the stochastic depth of a ViT or a RegNet.

    Raises:
        ValueError: `name`, `stem`, `shortcut` or `remat` is unknown, `width` leaves no channels, or selective kernels are asked of
            basic blocks.
    """
    _one_of("name", model.name, (*BACKBONES, *LAYOUTS, *TABLES, *SIZES))
    if model.name in SIZES:
        return _vit(model)
    if model.name in TABLES:
        _one_of("remat", model.remat, REMAT)
        return RegNet(TABLES[model.name], drop_path=model.drop_path, remat=model.remat, bn_momentum=model.bn_momentum,
                      bn_epsilon=model.bn_epsilon, unbiased=True, dtype=jnp.dtype(model.dtype))
    if model.name in LAYOUTS:
        return PlainNet(LAYOUTS[model.name], model.width, model.sobel, model.dropout, **_norm(model))
    _one_of("stem", model.stem, STEMS)
    _one_of("shortcut", model.shortcut, SHORTCUTS)
    _one_of("remat", model.remat, REMAT)
    block, layers = BACKBONES[model.name]
    if model.sk_ratio > 0 and block is Basic:
        raise ValueError(f"config.model.sk_ratio is {model.sk_ratio}, but {model.name} has basic blocks and selective kernels replace the "
                         "3x3 convolution of a bottleneck: set sk_ratio to 0, or name to resnet50, resnet101, resnet152 or resnet200")
    base = round(64 * model.width)
    if base < 2:
        raise ValueError(f"config.model.width is {model.width}, which leaves {base} channels in the stem: 64 * width must be 2 or more")
    return ResNet(
        block, layers, widths=tuple(base * 2**group for group in range(len(layers))), stem_width=base,
        stem=model.stem, shortcut=model.shortcut, sk_ratio=model.sk_ratio, remat=model.remat, sobel=model.sobel,
        **_norm(model))


def _vit(model: ConfigDict) -> ViT:
    _one_of("positions", model.positions, POSITIONS)
    _one_of("scheme", model.scheme, VIT_SCHEMES)
    _one_of("remat", model.remat, REMATS)
    width, depth, heads = SIZES[model.name]
    return ViT(width, depth, heads, model.patch, positions=model.positions, scheme=model.scheme, distillation=model.distillation,
               drop_path=model.drop_path, dropout=model.dropout, frozen_patch=model.frozen_patch, remat=model.remat, scan=model.scan,
               dtype=jnp.dtype(model.dtype))


def draws(model: ConfigDict) -> bool:
    """Whether a training pass of this backbone draws at random: stochastic depth or dropout is on."""
    if model.name in SIZES:
        return model.drop_path > 0 or model.dropout > 0
    if model.name in TABLES:
        return model.drop_path > 0
    return model.name in LAYOUTS and model.dropout > 0


def projection_head(head: ConfigDict, model: ConfigDict) -> MLP:
    """SimCLR's projector of `config.head` on the backbone of `config.model`, whose norms and dtype it shares."""
    return MLP(head.layers, head.hidden, head.dim, hidden_bias=False, last_bias=False, norm=True, last_norm=True, last_gain=True,
               scheme="normal_0.01", **_norm(model))


def mlp(head: ConfigDict, model: ConfigDict, dim: int) -> MLP:
    """A projector or predictor of MoCo or BYOL with `dim` outputs; norms and dtype are those of `config.model`.

    Raises:
        ValueError: `head.scheme` is unknown.
    """
    if head.scheme not in SCHEMES:
        raise ValueError(f"a head's scheme is {head.scheme!r}; it must be one of: {', '.join(SCHEMES)}")
    norms = _norm(model) if head.norm or head.last_norm else {"dtype": jnp.dtype(model.dtype)}
    return MLP(head.layers, head.hidden, dim, hidden_bias=head.hidden_bias, last_bias=head.last_bias, norm=head.norm,
               last_norm=head.last_norm, scheme=head.scheme, **norms)


def initialise_head(head: nn.Module, key: jax.Array, h: jax.Array) -> tuple[Pytree, Pytree, jax.Array]:
    """Fresh parameters and running statistics of a head on features `h [2, D]`, and zeros shaped like its output."""
    variables = head.init(key, h, train=False)
    z = jax.eval_shape(lambda: head.apply(variables, h, train=False))
    return variables["params"], variables.get("batch_stats", {}), jnp.zeros(z.shape, z.dtype)


def unit_gains(params: Pytree) -> Pytree:
    """Fresh parameters with every gain of a norm at 1, those that start a residual branch from zero too (zero_init_residual=False)."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: jnp.ones_like(leaf) if path[-1].key == "scale" else leaf, params)


def initialise(encoder: nn.Module, key: jax.Array, shape: tuple[int, int, int]) -> tuple[Pytree, Pytree, jax.Array]:
    """Fresh parameters and running statistics of a backbone for images [H, W, C], and zeros shaped like its features of two of them."""
    image = jnp.zeros((2, *shape), jnp.float32)
    variables = encoder.init(key, image, train=False)
    features = jax.eval_shape(lambda: encoder.apply(variables, image, train=False))
    return variables["params"], variables.get("batch_stats", {}), jnp.zeros(features.shape, features.dtype)


def forward(net: nn.Module, params: Pytree, statistics: Pytree, x: jax.Array, *, groups: int = 1, key: jax.Array | None = None,
            **call: bool) -> tuple[jax.Array, Pytree]:
    """A training pass, normalised by the batch's own statistics -> (output, the running statistics after it).

    Args:
        net: a backbone or a head.
        params: its parameters.
        statistics: its running statistics; {} for a network that has none.
        x: [B, ...].
        groups: G > 1 normalises each of the G blocks of B / G neighbouring rows by itself, as G unsynchronised devices do; the running
            statistics are the mean over the groups (MoCo's SplitBatchNorm). 1 is the whole, global batch.
        key: for stochastic depth and dropout; not with groups.
        call: what else the network takes: `tokens=True` for all tokens of a ViT.
    """
    if groups > 1:
        x, mesh = x.reshape(groups, -1, *x.shape[1:]), jax.sharding.get_abstract_mesh()
        if not mesh.empty and groups % mesh.size == 0:
            x = along_batch(x)                                     # whole groups on a device: their statistics need no exchange
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):     # inside, rows of one group are no batch to split
            y, after = jax.vmap(lambda rows: forward(net, params, statistics, rows))(x)
        return y.reshape(-1, *y.shape[2:]), jax.tree.map(lambda leaf: leaf.mean(0), after)
    rngs = None if key is None else dict(zip(("drop_path", "dropout"), jax.random.split(key), strict=True))
    y, state = net.apply({"params": params, "batch_stats": statistics}, x, train=True, mutable=["batch_stats"], rngs=rngs, **call)
    return y, state.get("batch_stats", {})


def infer(net: nn.Module, params: Pytree, statistics: Pytree, x: jax.Array, **call: bool) -> jax.Array:
    """A pass in inference mode: the running statistics, which stay as they are. `call` as in `forward`."""
    return net.apply({"params": params, "batch_stats": statistics}, x, train=False, **call)


def attention(net: ViT, params: Pytree, statistics: Pytree, x: jax.Array) -> jax.Array:
    """Where the class token, and the distillation token if there is one, look in the last block: float32 `[B, heads, 1 or 2, N]`."""
    _, found = net.apply({"params": params, "batch_stats": statistics}, x, train=False, mutable=["intermediates"])
    blocks = found["intermediates"]
    if net.scan:
        return blocks["blocks"]["attn"]["attention"][0][-1]
    return blocks[f"block{net.depth - 1}"]["attn"]["attention"][0]


def activation(net: nn.Module, params: Pytree, statistics: Pytree, x: jax.Array, layer: str) -> jax.Array:
    """What a named layer gives in inference mode, e.g. "conv3" of an AlexNet or "group2" of a ResNet: float32 `[B, H, W, C]`.

    Raises:
        ValueError: the network has no such layer; lists those it has.
    """
    _, state = net.apply({"params": params, "batch_stats": statistics}, x, train=False, mutable=["intermediates"])
    sown = {name: value[0] for name, value in state.get("intermediates", {}).items() if isinstance(value, tuple)}
    found = {name.removeprefix("after_"): value for name, value in sown.items()}           # a layer of parameters has the name without
    if layer not in found:
        raise ValueError(f"this network has no layer {layer!r}; it names {', '.join(found)}")
    return found[layer].astype(jnp.float32)


def _norm(model: ConfigDict) -> dict:
    return dict(bn_momentum=model.bn_momentum, bn_epsilon=model.bn_epsilon, unbiased=model.shortcut == "torchvision",
                dtype=jnp.dtype(model.dtype))
