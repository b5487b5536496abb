"""The names of BEiT's released networks (microsoft/unilm at 768a3c8, beit/), in pretraining and fine-tuning.

For example `blocks.0.attn.qkv.weight`, `rel_pos_bias.relative_position_bias_table`, `lm_head`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ssljax.convert.weights import LINEAR, patches
from ssljax.models.beit_vit import BeitViT

Pytree = Any
INDEX = "relative_position_index"  # a buffer, which our network computes
TABLE = "relative_position_bias_table"
HEADS = ("lm_head", "head")
OURS = {"weight": "kernel", "bias": "bias"}
LAYER = re.compile(r"blocks\.(\d+)\.(?:(gamma_[12])|attn\.([qv]_bias)|(?:attn\.|mlp\.)?(\w+)\.(weight|bias))")


def params(state: Mapping[str, np.ndarray], net: BeitViT) -> Pytree:
    """The parameters of methods `beit` (pretraining) or `deit` (fine-tuning) from a state dict.

    Args:
        state: name -> array.
        net: the backbone.

    Returns:
        {"encoder", "head"}, and "mask_token" where there is one.

    Raises:
        ValueError: a name is not one of these networks'.
    """
    found: dict[str, Any] = {"encoder": {}}
    tables = {}
    for name, array in state.items():
        array = np.asarray(array)
        if name.endswith(INDEX):
            continue
        if name.endswith(TABLE):
            tables[name] = array
        elif name == "mask_token":
            found["mask_token"] = array[0, 0]
        elif name.split(".")[0] in HEADS:
            leaf = OURS[name.split(".")[1]]
            inside = found.setdefault("head", {}).setdefault("dense", {})
            inside[leaf] = array.T if leaf == "kernel" else array
        else:
            *modules, leaf = _place(name)
            inside = found["encoder"]
            for module in modules:
                inside = inside.setdefault(module, {})
            inside[leaf] = _laid_out(modules, leaf, array, net.patch)
    if net.relative == "shared":
        (found["encoder"]["relative_bias"],) = tables.values()
    elif net.relative == "blocks":
        rows = [tables[f"blocks.{i}.attn.{TABLE}"] for i in range(net.depth)]
        found["encoder"]["relative_bias"] = np.stack(rows)
    return found


def _place(name: str) -> tuple[str, ...]:
    """The path of our leaf, below the encoder, for one of their names."""
    whole = {"cls_token": "class_token", "pos_embed": "positions"}
    if name in whole:
        return (whole[name],)
    patch = re.fullmatch(r"patch_embed\.proj\.(weight|bias)", name)
    if patch:
        return "patch", OURS[patch[1]]
    norm = re.fullmatch(r"(norm|fc_norm)\.(weight|bias)", name)
    if norm:
        return norm[1], "scale" if norm[2] == "weight" else "bias"
    match = LAYER.fullmatch(name)
    if match is None:
        raise ValueError(
            f"{name!r} is no name of BEiT's networks, such as blocks.0.attn.qkv.weight: pass the state dict "
            "of a released checkpoint (its entry 'model')"
        )
    number, gamma, bias, layer, leaf = match.groups()
    block = f"block{number}"
    if gamma:
        return block, gamma
    if bias:
        return block, "attn", bias
    if layer.startswith("norm"):
        return block, layer, "scale" if leaf == "weight" else "bias"
    inside = ("attn", layer) if layer in ("qkv", "proj") else (layer,)
    return (block, *inside, OURS[leaf])


def _laid_out(modules: list[str], leaf: str, array: np.ndarray, patch: int) -> np.ndarray:
    """An array of theirs in our layout."""
    if leaf != "kernel":
        return array
    return patches(patch).ours(array) if modules == ["patch"] else LINEAR.ours(array)
