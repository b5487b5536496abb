"""The names of torchvision's ResNet, which timm shares: `conv1`, `layer2.0.downsample.1`, `fc`."""

from __future__ import annotations

import re

from ml_collections import ConfigDict

from ssljax.convert.weights import CONV, LEAVES, SAME, STABLEHLO, Family, Reorder


def rename(path: str) -> tuple[str, Reorder]:
    """The name of a leaf and the conversion of its layout.

    "group2_block1/shortcut/norm/var" is "layer2.0.downsample.1.running_var".
    """
    *place, layer, leaf = path.split("/")
    layer = layer.removeprefix("stem_").replace("norm", "bn")
    if place:
        match = re.fullmatch(r"group(\d+)_block(\d+)", place[0])
        assert match is not None, path
        group, block = match.groups()
        if place[1:] == ["shortcut"]:
            layer = {"conv": "downsample.0", "bn": "downsample.1"}[layer]
        layer = f"layer{group}.{int(block) - 1}.{layer}"
    return f"{layer}.{LEAVES[leaf]}", CONV if leaf == "kernel" else SAME


RESNET = Family(rename, {"head": "fc"})


def family(model: ConfigDict) -> Family:
    """The Family of a ResNet in torchvision's dialect.

    Raises:
        ValueError: the ResNet has SimCLR's dialect, selective kernels or SAME padding.
    """
    for key, needed in (("shortcut", "torchvision"), ("sk_ratio", 0.0), ("padding", "symmetric")):
        if model[key] != needed:
            raise ValueError(
                f"config.model.{key} is {model[key]!r}: no network of torchvision or timm computes that. "
                f"Their weights need --config.model.{key}={needed}. A network that was trained otherwise "
                f"cannot be written in their form: {STABLEHLO}"
            )
    return RESNET
