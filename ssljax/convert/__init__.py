"""Convert weights between this package and other frameworks, in both directions.

Supported are timm's ViT and DeiT, torchvision's and timm's ResNet and RegNetY, and timm's EfficientNet.
"""

from __future__ import annotations

from collections.abc import Collection

from ml_collections import ConfigDict

from ssljax.convert import efficientnet, regnet, resnet, vit
from ssljax.convert.weights import Family
from ssljax.models import BACKBONES
from ssljax.models.efficientnet import SCALES
from ssljax.models.regnet import TABLES

__all__ = ["family"]


def family(config: ConfigDict, names: Collection[str] = ()) -> Family:
    """The names and layouts that the arrays of `config.model` have in the other framework.

    Args:
        config: one stage.
        names: of the arrays in the file to read. They tell timm's RegNet from torchvision's; without them, as
            in writing, it is torchvision's.

    Raises:
        ValueError: the network computes something that the other framework's network does not.
    """
    model = config.model
    if model.name not in (*BACKBONES, *TABLES, *SCALES):
        return vit.family(model, config.data.image_size)
    epsilon = 1e-3 if model.name in SCALES else 1e-5
    if model.bn_epsilon != epsilon:
        raise ValueError(
            f"config.model.bn_epsilon is {model.bn_epsilon}, but torchvision and timm have {epsilon:g} and "
            f"their files do not record it. Their weights need --config.model.bn_epsilon={epsilon:g}"
        )
    if model.name in SCALES:
        return efficientnet.TIMM
    if model.name in TABLES:
        return regnet.TIMM if regnet.TIMM_ONLY in names else regnet.TORCHVISION
    return resnet.family(model)
