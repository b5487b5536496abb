"""The names of torchvision's and timm's RegNetY.

Both are read, because DeiT's released teacher has timm's names. Only torchvision's are written.
"""

from __future__ import annotations

import re
from functools import partial

from ssljax.convert.weights import LEAVES, Family, Reorder, of_convolutions

# Our name: (torchvision's, timm's).
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
    """The name of a leaf and the conversion of its layout.

    "stage2_block1/se/fc1/kernel" is "trunk_output.block2.block2-0.f.se.fc1.weight" in torchvision and
    "s2.b1.se.fc1.weight" in timm.
    """
    place, leaf = path.rsplit("/", 1)
    reorder = of_convolutions(path)

    if place in LAYERS:
        prefix = ""
        layer = place
    else:
        block, layer = place.split("/", 1)
        prefix = _block(block, timm=timm)
    name = LAYERS[layer][1 if timm else 0]
    return f"{prefix}{name}.{LEAVES[leaf]}", reorder


def _block(block: str, *, timm: bool) -> str:
    """The prefix of a block: "stage2_block1" -> "trunk_output.block2.block2-0." or "s2.b1."."""
    match = re.fullmatch(r"stage(\d+)_block(\d+)", block)
    assert match is not None, block
    stage, index = map(int, match.groups())
    return f"s{stage}.b{index}." if timm else f"trunk_output.block{stage}.block{stage}-{index - 1}."


TORCHVISION = Family(partial(rename, timm=False), {"head": "fc"})
TIMM = Family(partial(rename, timm=True), {"head": "head.fc"})
