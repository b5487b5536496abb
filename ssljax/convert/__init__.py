"""Weights in and out: timm's ViT and DeiT, torchvision's and timm's ResNet and RegNetY <-> our `params` and `model_state`."""

from __future__ import annotations

from collections.abc import Collection

from ml_collections import ConfigDict

from ssljax.convert import regnet, resnet, vit
from ssljax.convert.weights import Family
from ssljax.models import BACKBONES
from ssljax.models.regnet import TABLES

__all__ = ["family"]


def family(config: ConfigDict, names: Collection[str] = ()) -> Family:
    """The names that the network of `config.model` has elsewhere, and how its arrays lie there.

    Args:
        config: one stage.
        names: of the arrays in the file that is read; they tell timm's RegNet from torchvision's, which is written.

    Raises:
        ValueError: the network computes something that the other framework's does not.
    """
    model = config.model
    if model.name not in BACKBONES and model.name not in TABLES:
        return vit.family(model, config.data.image_size)
    if model.bn_epsilon != 1e-5:
        raise ValueError(
            f"config.model.bn_epsilon is {model.bn_epsilon}; torchvision and timm have 1e-5, and weights files do not say"
        )
    if model.name in TABLES:
        return regnet.TIMM if regnet.TIMM_ONLY in names else regnet.TORCHVISION
    return resnet.family(model)
