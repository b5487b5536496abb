"""The names of timm's VisionTransformer, distilled or not, which DeiT and MoCo v3 share.

For example `blocks.0.attn.qkv.weight`, `head` and `head_dist`.
"""

from __future__ import annotations

import re

import numpy as np
from ml_collections import ConfigDict

from ssljax.convert.weights import LEAVES, LINEAR, SAME, Family, Reorder, patches
from ssljax.models.vit import SIZES, sincos

WHOLE = {"class_token": "cls_token", "distillation_token": "dist_token", "positions": "pos_embed"}
LAYERS = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn/qkv": "attn.qkv",
    "attn/proj": "attn.proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}


def family(model: ConfigDict, image_size: int) -> Family:
    """The Family of a ViT for images [image_size, image_size, C].

    Fixed positions are an array in timm's file, but not a leaf of our tree.
    """

    def rename(path: str) -> tuple[str, Reorder]:
        if path in WHOLE:
            return WHOLE[path], SAME
        layer, leaf = path.rsplit("/", 1)
        reorder = LINEAR if leaf == "kernel" else SAME
        if layer == "patch":
            reorder = patches(model.patch) if leaf == "kernel" else SAME
            return f"patch_embed.proj.{LEAVES[leaf]}", reorder
        if layer == "norm":
            return f"norm.{LEAVES[leaf]}", reorder

        match = re.fullmatch(r"block(s|\d+)/(.*)", layer)
        assert match is not None, path
        number, layer = match.groups()
        if number == "s":  # stacked blocks; see Family.rename
            number = "{}"
        return f"blocks.{number}.{LAYERS[layer]}.{LEAVES[leaf]}", reorder

    fixed = {}
    if model.positions == "sincos":
        side = image_size // model.patch
        width, _, _ = SIZES[model.name]
        positions = sincos(width, side, side, extra_tokens=1 + model.distillation)
        fixed["pos_embed"] = np.asarray(positions)
    hint = (
        "config.model.positions='sincos' computes (MoCo v3's released networks exchange rows and columns): "
        "read it with --config.model.positions=learned"
    )
    heads = {"head": "head", "distillation_head": "head_dist"}
    return Family(rename, heads, fixed=fixed, fixed_hint=hint)
