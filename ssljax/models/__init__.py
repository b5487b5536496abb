"""Networks. `build` makes them from a configuration, `apply` runs them. Only this package uses flax.linen."""

from ssljax.models.apply import (
    activation,
    attention,
    forward,
    infer,
    initialise,
    initialise_head,
    logits,
    resizable,
    tokens,
    unit_gains,
)
from ssljax.models.build import BACKBONES, backbone, draws, mlp, projection_head
from ssljax.models.efficientnet import EfficientNet
from ssljax.models.heads import MLP, LinearClassifier
from ssljax.models.norm import BatchNorm
from ssljax.models.pooling import pooled
from ssljax.models.regnet import RegNet
from ssljax.models.resnet import ResNet
from ssljax.models.vit import ViT, resize_positions

__all__ = [
    "BACKBONES",
    "BatchNorm",
    "EfficientNet",
    "LinearClassifier",
    "MLP",
    "RegNet",
    "ResNet",
    "ViT",
    "activation",
    "attention",
    "backbone",
    "draws",
    "forward",
    "infer",
    "initialise",
    "initialise_head",
    "logits",
    "mlp",
    "pooled",
    "projection_head",
    "resizable",
    "resize_positions",
    "tokens",
    "unit_gains",
]
