"""RegNetY under torchvision's names, which are written, and under timm's, which are read: DeiT's released teacher is timm's."""

from __future__ import annotations

import re
from functools import partial

from ssljax.convert.weights import CONV, LEAVES, SAME, Family, Reorder, patches

# Ours, torchvision's, timm's.
LAYERS = {
    "conv1": ("f.a.0", "conv1.conv"),
    "norm1": ("f.a.1", "conv1.bn"),
    "conv2": ("f.b.0", "conv2.conv"),
    "norm2": ("f.b.1", "conv2.bn"),
    "se/fc1": ("f.se.fc1", "se.fc1"),
    "se/fc2": ("f.se.fc2", "se.fc2"),
    "conv3": ("f.c.0", "conv3.conv"),
    "norm3": ("f.c.1", "conv3.bn"),
    "shortcut/conv": ("proj.0", "downsample.conv"),
    "shortcut/norm": ("proj.1", "downsample.bn"),
    "stem_conv": ("stem.0", "stem.conv"),
    "stem_norm": ("stem.1", "stem.bn"),
}
TIMM_ONLY = "stem.conv.weight"


def rename(path: str, *, timm: bool) -> tuple[str, Reorder]:
    """ "stage2_block1/se/fc1/kernel" -> "trunk_output.block2.block2-0.f.se.fc1.weight", or "s2.b1.se.fc1.weight"."""
    place, leaf = path.rsplit("/", 1)
    reorder = (
        SAME if leaf != "kernel" else patches(1) if "/se/" in path else CONV
    )  # the gate's 1x1 convolutions are matrices here
    block, layer = ("", place) if place in LAYERS else place.split("/", 1)
    name = LAYERS[layer][timm]
    if block:
        stage, index = map(int, re.fullmatch(r"stage(\d+)_block(\d+)", block).groups())
        name = (
            f"s{stage}.b{index}." if timm else f"trunk_output.block{stage}.block{stage}-{index - 1}."
        ) + name
    return f"{name}.{LEAVES[leaf]}", reorder


TORCHVISION = Family(partial(rename, timm=False), {"head": "fc"})
TIMM = Family(partial(rename, timm=True), {"head": "head.fc"})
