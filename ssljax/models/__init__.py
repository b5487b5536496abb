"""Networks: the only room that knows Flax. `backbone` and `projection_head` build them from a configuration."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from ssljax.models.heads import LinearClassifier, ProjectionHead
from ssljax.models.norm import BatchNorm
from ssljax.models.resnet import SHORTCUTS, STEMS, Basic, Bottleneck, ResNet

__all__ = ["BACKBONES", "BatchNorm", "LinearClassifier", "ProjectionHead", "ResNet", "backbone", "forward", "infer", "initialise",
           "projection_head"]

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
    """The backbone of `config.model`: images `[B, H, W, C]` -> float32 features `[B, D]`.

    Its call is `net(images, *, train)`. `width` scales every layer, the stem included. `shortcut="torchvision"` also brings
    PyTorch's unbiased running variance, see BatchNorm.

    Raises:
        ValueError: `name`, `stem` or `shortcut` is unknown, `width` leaves no channels, or selective kernels are asked of basic blocks.
    """
    _one_of("name", model.name, tuple(BACKBONES))
    _one_of("stem", model.stem, STEMS)
    _one_of("shortcut", model.shortcut, SHORTCUTS)
    block, layers = BACKBONES[model.name]
    if model.sk_ratio > 0 and block is Basic:
        raise ValueError(f"config.model.sk_ratio is {model.sk_ratio}, but {model.name} has basic blocks and selective kernels replace the "
                         "3x3 convolution of a bottleneck: set sk_ratio to 0, or name to resnet50, resnet101, resnet152 or resnet200")
    base = round(64 * model.width)
    if base < 2:
        raise ValueError(f"config.model.width is {model.width}, which leaves {base} channels in the stem: 64 * width must be 2 or more")
    return ResNet(
        block, layers, widths=tuple(base * 2**group for group in range(len(layers))), stem_width=base,
        stem=model.stem, shortcut=model.shortcut, sk_ratio=model.sk_ratio,
        **_norm(model))


def projection_head(head: ConfigDict, model: ConfigDict) -> ProjectionHead:
    """The projection head of `config.head` on the backbone of `config.model`, whose norms and dtype it shares."""
    return ProjectionHead(head.layers, head.hidden, head.dim, **_norm(model))


def initialise(encoder: nn.Module, key: jax.Array, shape: tuple[int, int, int]) -> tuple[Pytree, Pytree, jax.Array]:
    """Fresh parameters and running statistics of a backbone for images [H, W, C], and zeros shaped like its features of two of them."""
    image = jnp.zeros((2, *shape), jnp.float32)
    variables = encoder.init(key, image, train=False)
    features = jax.eval_shape(lambda: encoder.apply(variables, image, train=False))
    return variables["params"], variables["batch_stats"], jnp.zeros(features.shape, features.dtype)


def forward(net: nn.Module, params: Pytree, statistics: Pytree, x: jax.Array) -> tuple[jax.Array, Pytree]:
    """A training pass, normalised by the batch's own statistics -> (output, the running statistics after it)."""
    y, state = net.apply({"params": params, "batch_stats": statistics}, x, train=True, mutable=["batch_stats"])
    return y, state["batch_stats"]


def infer(net: nn.Module, params: Pytree, statistics: Pytree, x: jax.Array) -> jax.Array:
    """A pass in inference mode: the running statistics, which stay as they are."""
    return net.apply({"params": params, "batch_stats": statistics}, x, train=False)


def _norm(model: ConfigDict) -> dict:
    return dict(bn_momentum=model.bn_momentum, bn_epsilon=model.bn_epsilon, unbiased=model.shortcut == "torchvision",
                dtype=jnp.dtype(model.dtype))
