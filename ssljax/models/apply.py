"""What is done with a network: initialise it, pass images through it in training and inference mode, look inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssljax.models.heads import LinearClassifier
from ssljax.models.placement import along_batch
from ssljax.models.vit import ViT, resize_positions

Pytree = Any


def initialise_head(head: nn.Module, key: jax.Array, h: jax.Array) -> tuple[Pytree, Pytree, jax.Array]:
    """Fresh parameters and running statistics of a head on features `h [2, D]`, and zeros shaped like its output."""
    variables = head.init(key, h, train=False)
    z = jax.eval_shape(lambda: head.apply(variables, h, train=False))
    return variables["params"], variables.get("batch_stats", {}), jnp.zeros(z.shape, z.dtype)


def unit_gains(params: Pytree) -> Pytree:
    """Fresh parameters with every gain of a norm at 1, those that start a residual branch from zero too (zero_init_residual=False)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.ones_like(leaf) if path[-1].key == "scale" else leaf, params
    )


def initialise(
    encoder: nn.Module, key: jax.Array, shape: tuple[int, int, int]
) -> tuple[Pytree, Pytree, jax.Array]:
    """Fresh parameters and running statistics of a backbone for images [H, W, C], and zeros shaped like its features of two of them."""
    image = jnp.zeros((2, *shape), jnp.float32)
    variables = encoder.init(key, image, train=False)
    features = jax.eval_shape(lambda: encoder.apply(variables, image, train=False))
    return variables["params"], variables.get("batch_stats", {}), jnp.zeros(features.shape, features.dtype)


def forward(
    net: nn.Module,
    params: Pytree,
    statistics: Pytree,
    x: jax.Array,
    *,
    groups: int = 1,
    key: jax.Array | None = None,
    **call: bool,
) -> tuple[jax.Array, Pytree]:
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
            x = along_batch(x)  # whole groups on a device: their statistics need no exchange
        with jax.sharding.use_abstract_mesh(
            jax.sharding.AbstractMesh((), ())
        ):  # inside, rows of one group are no batch to split
            y, after = jax.vmap(lambda rows: forward(net, params, statistics, rows))(x)
        return y.reshape(-1, *y.shape[2:]), jax.tree.map(lambda leaf: leaf.mean(0), after)
    rngs = None if key is None else dict(zip(("drop_path", "dropout"), jax.random.split(key), strict=True))
    y, state = net.apply(
        {"params": params, "batch_stats": statistics},
        x,
        train=True,
        mutable=["batch_stats"],
        rngs=rngs,
        **call,
    )
    return y, state.get("batch_stats", {})


def logits(head: Pytree, h: jax.Array) -> jax.Array:
    """What a LinearClassifier with these parameters says of features [B, D]: float32 [B, classes], as many as it was trained for."""
    return LinearClassifier(head["dense"]["kernel"].shape[-1]).apply({"params": head}, h)


def infer(net: nn.Module, params: Pytree, statistics: Pytree, x: jax.Array, **call: bool) -> jax.Array:
    """A pass in inference mode: the running statistics, which stay as they are. `call` as in `forward`."""
    return net.apply({"params": params, "batch_stats": statistics}, x, train=False, **call)


def tokens(net: nn.Module, params: Pytree, statistics: Pytree, x: jax.Array) -> jax.Array:
    """All tokens of a vision transformer behind its last norm, the class token first: float32 `[B, N, D]`.

    Raises:
        ValueError: the network has none.
    """
    return infer(_transformer(net), params, statistics, x, tokens=True)


def _transformer(net: nn.Module) -> ViT:
    if not isinstance(net, ViT):
        raise ValueError(
            f"{type(net).__name__} is no vision transformer: it has neither tokens nor attention"
        )
    return net


def resizable(
    net: nn.Module, image_size: int
) -> dict[str, Callable[[jax.Array, tuple[int, ...]], jax.Array]]:
    """Leaves that may have another shape in a run with images of another size: name -> (stored array, wanted shape) -> array."""
    if not isinstance(net, ViT):
        return {}
    side = image_size // net.patch

    def positions(stored: jax.Array, wanted: tuple[int, ...]) -> jax.Array:
        del wanted
        return resize_positions(stored, (side, side), extra_tokens=1 + net.distillation)

    return {"positions": positions}


def attention(net: nn.Module, params: Pytree, statistics: Pytree, x: jax.Array) -> jax.Array:
    """Where the class token, and the distillation token if there is one, look in the last block: float32 `[B, heads, 1 or 2, N]`.

    Raises:
        ValueError: the network is no vision transformer.
    """
    net = _transformer(net)
    _, found = net.apply(
        {"params": params, "batch_stats": statistics}, x, train=False, mutable=["intermediates"]
    )
    blocks = found["intermediates"]
    if net.scan:
        return blocks["blocks"]["attn"]["attention"][0][-1]
    return blocks[f"block{net.depth - 1}"]["attn"]["attention"][0]


def activation(net: nn.Module, params: Pytree, statistics: Pytree, x: jax.Array, layer: str) -> jax.Array:
    """What a named layer gives in inference mode, e.g. "conv3" of an AlexNet or "group2" of a ResNet: float32 `[B, H, W, C]`.

    Raises:
        ValueError: the network has no such layer; lists those it has.
    """
    _, state = net.apply(
        {"params": params, "batch_stats": statistics}, x, train=False, mutable=["intermediates"]
    )
    sown = {
        name: value[0] for name, value in state.get("intermediates", {}).items() if isinstance(value, tuple)
    }
    found = {
        name.removeprefix("after_"): value for name, value in sown.items()
    }  # a layer of parameters has the name without
    if layer not in found:
        raise ValueError(f"this network has no layer {layer!r}; it names {', '.join(found)}")
    return found[layer].astype(jnp.float32)
