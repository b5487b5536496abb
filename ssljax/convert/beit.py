"""The names of BEiT's released networks (microsoft/unilm at 768a3c8, beit/), in pretraining and fine-tuning.

For example `blocks.0.attn.qkv.weight`, `rel_pos_bias.relative_position_bias_table`, `lm_head`.
"""

from __future__ import annotations

import re

import numpy as np

from ssljax.convert.weights import LEAVES, LINEAR, SAME, Family, Reorder, patches
from ssljax.models.beit_vit import BeitViT, relative_index

WHOLE = {"class_token": "cls_token", "positions": "pos_embed"}
LAYERS = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn/qkv": "attn.qkv",
    "attn/proj": "attn.proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
# The place of the table, and of the buffer that says which of its entries belongs to two tokens.
TABLES = {"shared": "rel_pos_bias", "blocks": "blocks.{}.attn"}
MASK = Reorder(lambda x: x[0, 0], lambda x: x[None, None])  # [1, 1, D] there


def family(net: BeitViT, height: int, width: int, head: str) -> Family:
    """The Family of a network of BEiT's.

    Args:
        net: the backbone.
        height, width: of the grid of patches.
        head: the name of the linear layer, "lm_head" in pretraining and "head" in fine-tuning.
    """

    def rename(path: str) -> tuple[str, Reorder]:
        if path in WHOLE:
            return WHOLE[path], SAME
        if path == "relative_bias":
            return f"{TABLES[net.relative]}.relative_position_bias_table", SAME
        layer, leaf = path.rsplit("/", 1)
        if layer == "patch":
            reorder = patches(net.patch) if leaf == "kernel" else SAME
            return f"patch_embed.proj.{LEAVES[leaf]}", reorder
        if layer in ("norm", "fc_norm"):
            return f"{layer}.{LEAVES[leaf]}", SAME

        match = re.fullmatch(r"block(\d+)/?(.*)", layer)
        assert match is not None, path
        number, layer = match.groups()
        block = f"blocks.{number}"
        if layer == "":  # gamma_1, gamma_2
            return f"{block}.{leaf}", SAME
        if layer == "attn":  # q_bias, v_bias
            return f"{block}.attn.{leaf}", SAME
        return f"{block}.{LAYERS[layer]}.{LEAVES[leaf]}", LINEAR if leaf == "kernel" else SAME

    index = np.asarray(relative_index(height, width), np.int64)
    rows = {"none": 0, "shared": 1, "blocks": net.depth}[net.relative]
    fixed = {f"{TABLES[net.relative].format(i)}.relative_position_index": index for i in range(rows)}
    return Family(
        rename,
        {"head": head},
        others={"mask_token": lambda _: ("mask_token", MASK)},
        fixed=fixed,
        fixed_hint=f"a grid of {height} x {width} patches has: correct config.data.image_size",
    )
