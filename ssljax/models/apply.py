"""Using a network: initialise it, run it in training and inference mode, read its intermediate layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssljax.models.beit_vit import BeitViT, resize_bias
from ssljax.models.cpc import PatchResNet
from ssljax.models.heads import LinearClassifier
from ssljax.models.multiview import MultiView, view_name
from ssljax.models.norm import BatchNorm
from ssljax.models.placement import along_batch
from ssljax.models.vit import ViT, resize_positions

Pytree = Any


def initialise_head(head: nn.Module, key: jax.Array, h: jax.Array) -> tuple[Pytree, Pytree, jax.Array]:
    """Initialise a head on features `h [2, D]`.

    Returns:
        parameters, running statistics, and zeros shaped like the head's output.
    """
    variables = head.init(key, h, train=False)
    z = jax.eval_shape(lambda: _apply(head, variables, h, train=False))
    return variables["params"], variables.get("batch_stats", {}), jnp.zeros(z.shape, z.dtype)


def unit_gains(params: Pytree) -> Pytree:
    """`params` with the gains of all norms at 1.

    This includes the gains that start a residual branch at zero (zero_init_residual=False).
    """

    def one(path: tuple, leaf: jax.Array) -> jax.Array:
        return jnp.ones_like(leaf) if path[-1].key == "scale" else leaf

    return jax.tree_util.tree_map_with_path(one, params)


def initialise(
    encoder: nn.Module, key: jax.Array, shape: tuple[int, int, int]
) -> tuple[Pytree, Pytree, jax.Array]:
    """Initialise a backbone for images of `shape` [H, W, C].

    Returns:
        parameters, running statistics, and zeros shaped like the features of two images.
    """
    image = jnp.zeros((2, *shape), jnp.float32)
    variables = encoder.init(key, image, train=False)
    features = jax.eval_shape(lambda: _apply(encoder, variables, image, train=False))
    return variables["params"], variables.get("batch_stats", {}), jnp.zeros(features.shape, features.dtype)


def _apply(net: nn.Module, variables: Pytree, x: jax.Array, **call: Any) -> jax.Array:
    """`net.apply`, whose declared type also covers the changed variables that `mutable` asks for."""
    y = net.apply(variables, x, **call)
    assert not isinstance(y, tuple)
    return y


def forward(
    net: nn.Module,
    params: Pytree,
    statistics: Pytree,
    x: jax.Array,
    *,
    groups: int = 1,
    key: jax.Array | None = None,
    running: bool = False,
    **call: Any,
) -> tuple[jax.Array, Pytree]:
    """Run the network in training mode, normalised by the statistics of the batch.

    Args:
        net: a backbone or a head.
        params: its parameters.
        statistics: its running statistics; {} for a network without any.
        x: [B, ...].
        groups: G > 1 normalises each of the G blocks of B / G neighbouring rows separately, as G
            unsynchronised devices do. The running statistics are then the mean over the groups (MoCo's
            SplitBatchNorm). 1 is the whole, global batch.
        key: for stochastic depth and dropout; not used with groups.
        running: normalise by the running statistics, which do not change, as in inference; dropout stays on.
            Not used with groups.
        call: further arguments of the network: `tokens=True` for all tokens of a ViT. Not used with groups.

    Returns:
        the output and the updated running statistics.

    Raises:
        ValueError: the network has stochastic depth or dropout, and there is no key.
    """
    if groups > 1:
        return _forward_in_groups(net, params, statistics, x, groups)
    rates = {name: getattr(net, name, 0.0) for name in ("drop_path", "dropout")}
    if key is None and any(rates.values()):
        stated = " and ".join(f"config.model.{name}={rate}" for name, rate in rates.items() if rate)
        raise ValueError(
            f"{stated}: this method trains its network without stochastic depth and dropout; set "
            "model.drop_path and model.dropout to 0"
        )
    rngs = None
    if key is not None:
        drop_path, dropout = jax.random.split(key)
        rngs = {"drop_path": drop_path, "dropout": dropout}
    with nn.intercept_methods(_by_running_statistics) if running else contextlib.nullcontext():
        y, state = net.apply(
            {"params": params, "batch_stats": statistics},
            x,
            train=True,
            mutable=["batch_stats"],
            rngs=rngs,
            **call,
        )
    return y, state.get("batch_stats", {})


def _by_running_statistics(
    call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext
) -> Any:
    """Call norms in inference mode, and all other layers as they are."""
    norm = isinstance(context.module, BatchNorm) and "train" in kwargs
    return call(*args, **{**kwargs, "train": False} if norm else kwargs)


def _forward_in_groups(
    net: nn.Module, params: Pytree, statistics: Pytree, x: jax.Array, groups: int
) -> tuple[jax.Array, Pytree]:
    """`forward` for each of `groups` blocks of rows separately."""
    x = x.reshape(groups, -1, *x.shape[1:])
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and groups % mesh.size == 0:
        x = along_batch(x)  # each group lies on one device, so its statistics need no exchange

    # Without a mesh, because the rows of one group are not a batch to shard.
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        y, after = jax.vmap(lambda rows: forward(net, params, statistics, rows))(x)
    y = y.reshape(-1, *y.shape[2:])
    return y, jax.tree.map(lambda leaf: leaf.mean(0), after)


def logits(head: Pytree, h: jax.Array) -> jax.Array:
    """Apply a LinearClassifier.

    Args:
        head: its parameters. They also tell the number of classes.
        h: features [B, D].

    Returns:
        float32 [B, classes].
    """
    classes = head["dense"]["kernel"].shape[-1]
    return _apply(LinearClassifier(classes), {"params": head}, h)


def infer(net: nn.Module, params: Pytree, statistics: Pytree, x: jax.Array, **call: Any) -> jax.Array:
    """Run the network in inference mode, normalised by the running statistics, which do not change.

    The arguments are those of `forward`.
    """
    return _apply(net, {"params": params, "batch_stats": statistics}, x, train=False, **call)


def tokens(net: nn.Module, params: Pytree, statistics: Pytree, x: jax.Array) -> jax.Array:
    """All tokens of a vision transformer after its last norm, the class token first: float32 `[B, N, D]`.

    Raises:
        ValueError: the network is not a vision transformer.
    """
    return infer(_transformer(net), params, statistics, x, tokens=True)


def _transformer(net: nn.Module) -> ViT | BeitViT:
    if not isinstance(net, (ViT, BeitViT)):
        raise ValueError(
            f"{type(net).__name__} is not a vision transformer: it has neither tokens nor attention"
        )
    return net


def resizable(
    net: nn.Module, image_size: int
) -> dict[str, Callable[[jax.Array, tuple[int, ...]], jax.Array]]:
    """The leaves whose shape depends on the image size, and how to resize them.

    Returns:
        for each leaf name a function from the stored array and the wanted shape to the resized array.
    """
    if not isinstance(net, (ViT, BeitViT)):
        return {}
    side = image_size // net.patch
    extra = 1 + net.distillation if isinstance(net, ViT) else 1

    def positions(stored: jax.Array, wanted: tuple[int, ...]) -> jax.Array:
        del wanted
        return resize_positions(stored, (side, side), extra_tokens=extra)

    if isinstance(net, BeitViT):
        return {"positions": positions, "relative_bias": resize_bias}
    return {"positions": positions}


def begun_anew(net: nn.Module) -> tuple[str, ...]:
    """The parts of a backbone, by name, that begin anew where `config.init_from` does not have them."""
    return ("fc_norm",) if isinstance(net, BeitViT) and net.pooling == "mean_then_norm" else ()


def attention(net: nn.Module, params: Pytree, statistics: Pytree, x: jax.Array) -> jax.Array:
    """Attention weights of the class token in the last block, and of the distillation token if there is one.

    Returns:
        float32 `[B, heads, 1 or 2, N]`.

    Raises:
        ValueError: the network is not a vision transformer.
    """
    net = _transformer(net)
    _, found = net.apply(
        {"params": params, "batch_stats": statistics}, x, train=False, mutable=["intermediates"]
    )
    blocks = found["intermediates"]
    if isinstance(net, ViT) and net.scan:
        return blocks["blocks"]["attn"]["attention"][0][-1]
    return blocks[f"block{net.depth - 1}"]["attn"]["attention"][0]


def activation(net: nn.Module, params: Pytree, statistics: Pytree, x: jax.Array, layer: str) -> jax.Array:
    """The output of a named layer in inference mode, e.g. "conv3" of an AlexNet or "group2" of a ResNet.

    Returns:
        float32 `[B, H, W, C]`.

    Raises:
        ValueError: the network has no such layer; the message lists those it has.
    """
    _, state = net.apply(
        {"params": params, "batch_stats": statistics}, x, train=False, mutable=["intermediates"]
    )
    found = _sown(net, state)
    if layer not in found:
        raise ValueError(f"this network has no layer {layer!r}; its layers are {', '.join(found)}")
    return found[layer].astype(jnp.float32)


def last_map(net: nn.Module, params: Pytree, statistics: Pytree, x: jax.Array) -> jax.Array:
    """The last feature map of a convolutional network in inference mode, of images of any size.

    Fully connected layers know one image size only. The map does not depend on them, so they are left out.

    Returns:
        float32 `[B, h, w, C]`; of an AlexNet or VGG the map before the last pool.

    Raises:
        ValueError: the network is not convolutional.
    """

    def leave_out(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if isinstance(module, nn.Dense) and module.name in ("fc6", "fc7"):
            return jnp.zeros((*args[0].shape[:-1], module.features), args[0].dtype)
        return call(*args, **kwargs)

    if not convolutional(net):
        raise ValueError(f"{type(net).__name__} is not a convolutional network: it has no feature map")
    with nn.intercept_methods(leave_out):
        _, state = net.apply(
            {"params": params, "batch_stats": statistics}, x, train=False, mutable=["intermediates"]
        )
    maps = [value for value in _sown(net, state).values() if value.ndim == 4]
    return maps[-1].astype(jnp.float32)


def convolutional(net: nn.Module) -> bool:
    """Whether `last_map` can be asked of a network: all but vision transformers and CPC's grid of patches."""
    patches = isinstance(net, PatchResNet) and not net.whole
    return not isinstance(net, (ViT, BeitViT)) and not patches


def _sown(net: nn.Module, state: Pytree) -> dict[str, jax.Array]:
    """The maps of the layers by name, in order; those of all views side by side."""
    sown = state.get("intermediates", {})
    if isinstance(net, MultiView):
        return _beside([_layers(sown[view_name(view)]) for view in net.split])
    return _layers(sown)


def _layers(sown: Pytree) -> dict[str, jax.Array]:
    """The maps of the layers by name. "conv3" is sown as "after_conv3": its parameters have its name."""
    return {name.removeprefix("after_"): value[0] for name, value in sown.items() if isinstance(value, tuple)}


def _beside(views: list[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    return {name: jnp.concatenate([view[name] for view in views], axis=-1) for name in views[0]}
