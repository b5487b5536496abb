"""Convert weights between this package and other frameworks, in both directions.

Supported are timm's ViT and DeiT, torchvision's and timm's ResNet and RegNetY, timm's EfficientNet, BEiT's
released networks, and DALL-E's tokenizer, which comes in two files.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ml_collections import ConfigDict

from ssljax import models
from ssljax.convert import beit, dalle, efficientnet, regnet, resnet, vit, weights
from ssljax.convert.weights import STABLEHLO, Arrays, Family
from ssljax.models import BACKBONES, BeitViT
from ssljax.models.beit_vit import SIZES as BEIT_SIZES
from ssljax.models.build import DVAE
from ssljax.models.efficientnet import SCALES
from ssljax.models.regnet import TABLES
from ssljax.models.vit import SIZES as VIT_SIZES

__all__ = ["family", "read"]


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
    if model.name == DVAE:
        return dalle.family(model)
    if model.name in BEIT_SIZES:
        net = models.backbone(model)
        assert isinstance(net, BeitViT)
        side = config.data.image_size // net.patch
        return beit.family(net, side, side, "lm_head" if config.method == "beit" else "head")
    if model.name in VIT_SIZES:
        return vit.family(model, config.data.image_size)
    if model.name not in (*BACKBONES, *TABLES, *SCALES) or model.get("split"):
        key = "split" if model.get("split") else "name"
        raise ValueError(
            f"config.model.{key} is {model[key]!r}: no network of torchvision or timm computes that. "
            f"{STABLEHLO}"
        )
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


def read(config: ConfigDict, files: Sequence[str]) -> Arrays:
    """The state dict of one network.

    Args:
        config: one stage.
        files: one; or two for a dVAE, of its encoder and its decoder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file cannot be read, or they are not the files of this network.
    """
    if config.model.name == DVAE:
        return dalle.together([weights.read(file) for file in files], files)
    if len(files) > 1:
        raise ValueError(
            f"--from names {len(files)} files, and only a tokenizer (config.model.name=dvae) has two: "
            f"{config.model.name} is read from one"
        )
    return weights.read(files[0])
