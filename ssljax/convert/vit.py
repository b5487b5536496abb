"""timm's VisionTransformer, distilled or not, which is DeiT's and MoCo v3's too: `blocks.0.attn.qkv.weight`, `head`, `head_dist`."""

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
    """Of a ViT for images [image_size, image_size, C]; fixed positions have no leaf here and an array there."""

    def rename(path: str) -> tuple[str, Reorder]:
        if path in WHOLE:
            return WHOLE[path], SAME
        layer, leaf = path.rsplit("/", 1)
        reorder = LINEAR if leaf == "kernel" else SAME
        if layer == "patch":
            return f"patch_embed.proj.{LEAVES[leaf]}", patches(model.patch) if leaf == "kernel" else SAME
        if layer == "norm":
            return f"norm.{LEAVES[leaf]}", reorder
        number, layer = re.fullmatch(r"block(s|\d+)/(.*)", layer).groups()
        return f"blocks.{'{}' if number == 's' else number}.{LAYERS[layer]}.{LEAVES[leaf]}", reorder

    fixed = {}
    if model.positions == "sincos":
        side = image_size // model.patch
        fixed["pos_embed"] = np.asarray(
            sincos(SIZES[model.name][0], side, side, extra_tokens=1 + model.distillation)
        )
    return Family(rename, {"head": "head", "distillation_head": "head_dist"}, fixed)
