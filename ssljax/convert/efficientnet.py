"""The names of timm's `tf_efficientnet_*`, whose weights are those of the papers' checkpoints.

`tf_efficientnet_b0.ns_jft_in1k` to `..._b7.ns_jft_in1k` and `tf_efficientnet_l2.ns_jft_in1k` are Noisy
Student's released networks.
"""

from __future__ import annotations

import re

from ssljax.convert.weights import LEAVES, Family, Reorder, of_convolutions

OUTSIDE = {"stem_conv": "conv_stem", "stem_norm": "bn1", "head_conv": "conv_head", "head_norm": "bn2"}
# Our name: timm's in the blocks of the first stage, which do not expand, and in all others.
LAYERS = {
    "expand_conv": ("", "conv_pw"),
    "expand_norm": ("", "bn1"),
    "depthwise_conv": ("conv_dw", "conv_dw"),
    "depthwise_norm": ("bn1", "bn2"),
    "se/reduce": ("se.conv_reduce", "se.conv_reduce"),
    "se/expand": ("se.conv_expand", "se.conv_expand"),
    "project_conv": ("conv_pw", "conv_pwl"),
    "project_norm": ("bn2", "bn3"),
}


def rename(path: str) -> tuple[str, Reorder]:
    """The name of a leaf and the conversion of its layout.

    "stage2_block1/se/reduce/kernel" is "blocks.1.0.se.conv_reduce.weight".
    """
    place, leaf = path.rsplit("/", 1)
    reorder = of_convolutions(path)
    if place in OUTSIDE:
        return f"{OUTSIDE[place]}.{LEAVES[leaf]}", reorder

    block, layer = place.split("/", 1)
    match = re.fullmatch(r"stage(\d+)_block(\d+)", block)
    assert match is not None, block
    stage, index = (int(number) - 1 for number in match.groups())
    name = LAYERS[layer][0 if stage == 0 else 1]
    return f"blocks.{stage}.{index}.{name}.{LEAVES[leaf]}", reorder


TIMM = Family(rename, {"head": "classifier"})
