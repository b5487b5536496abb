"""A network as timm describes it: the config.json beside the weights, of which timm builds it.

timm's vision transformers and BEiT are built from sizes, so every one of ours has its like there. ResNets,
RegNets and EfficientNets are those that timm knows by name.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from ssljax.convert import regnet
from ssljax.convert.weights import INDEX, STABLEHLO
from ssljax.data.recipes import resizing
from ssljax.models.beit_vit import SIZES as BEIT_SIZES
from ssljax.models.build import BACKBONES
from ssljax.models.efficientnet import SCALES
from ssljax.models.regnet import TABLES
from ssljax.models.vit import SIZES

VITS = {
    "vit_ti": "tiny_patch16_224",
    "vit_s": "small_patch16_224",
    "vit_b": "base_patch16_224",
    "vit_l": "large_patch16_224",
    "vit_h": "huge_patch14_224",
}
REGNETS = {
    "regnety_4gf": "regnety_040",
    "regnety_8gf": "regnety_080",
    "regnety_12gf": "regnety_120",
    "regnety_16gf": "regnety_160",
}
ONLY_BEIT = (INDEX, "mask_token", "lm_head.")  # timm's BEiT has none of these
# The first and the last layer, by timm's name.
RESNET = ("conv1", "fc")
REGNET = ("stem.conv", "head.fc")
EFFICIENTNET = ("conv_stem", "classifier")
VIT = ("patch_embed.proj", "head")
DISTILLED = ("patch_embed.proj", ("head", "head_dist"))


def family_names(model: ConfigDict) -> tuple[str, ...]:
    """Names that make `convert.family` choose timm's, where torchvision has others."""
    return (regnet.TIMM_ONLY,) if model.name in TABLES else ()


def belongs(name: str, model: ConfigDict) -> bool:
    """Whether timm's network has the array of this name."""
    return model.name not in BEIT_SIZES or not any(part in name for part in ONLY_BEIT)


def describe(config: ConfigDict, classes: int, features: int) -> dict[str, Any]:
    """What timm's config.json says of a network.

    Args:
        config: one stage.
        classes: of its head; 0: it has none.
        features: how many it gives.

    Raises:
        ValueError: timm has no such network; the message says how else it leaves.
    """
    model, data = config.model, config.data
    if config.augment.color_space != "rgb":
        _refuse("augment.color_space", config.augment.color_space)
    architecture, args, (first, last) = _network(model)
    size = data.image_size
    args = {**args, "in_chans": data.channels}
    vit = model.name in (*SIZES, *BEIT_SIZES)
    if vit:
        args["img_size"] = size
    return {
        "architecture": architecture,
        "num_classes": classes,
        "num_features": features,
        "global_pool": args.get("global_pool", "avg"),
        "model_args": args,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [data.channels, size, size],
            "fixed_input_size": vit,
            "interpolation": resizing(config.augment).method.replace("lanczos3", "lanczos"),
            "crop_pct": data.eval_crop if size > 32 else 1.0,
            "crop_mode": "center",
            "mean": list(config.augment.mean),
            "std": list(config.augment.std),
            "num_classes": classes,
            "pool_size": None,
            "first_conv": first,
            "classifier": last,
        },
    }


def _network(model: ConfigDict) -> tuple[str, dict[str, Any], tuple[str, Any]]:
    """timm's name, the arguments that it is built with, and its first and last layer."""
    for key in ("split", "sobel", "sk_ratio"):
        if model.get(key):
            _refuse(f"model.{key}", model[key])
    if model.name in SIZES:
        return _vit(model)
    if model.name in BEIT_SIZES:
        return _beit(model)
    if model.name in REGNETS:
        return REGNETS[model.name], {}, REGNET
    if model.name in SCALES and model.name != "efficientnet_xs":
        _require(model, width=1.0, depth=1.0, stem="imagenet")
        return f"tf_{model.name}", {}, EFFICIENTNET
    if model.name in BACKBONES and model.name != "resnet8":
        _require(model, width=1.0, stem="imagenet", shortcut="torchvision", padding="symmetric", stem_width=0)
        name = "resnet18" if model.name == "resnet10" else model.name
        return name, {"layers": list(BACKBONES[model.name][1])}, RESNET
    _refuse("model.name", model.name)
    raise AssertionError


def _vit(model: ConfigDict) -> tuple[str, dict[str, Any], tuple[str, Any]]:
    width, depth, heads = SIZES[model.name]
    args = {"patch_size": model.patch, "embed_dim": width, "depth": depth, "num_heads": heads}
    size = VITS.get(model.name, "base_patch16_224")
    if model.distillation:
        args["global_pool"] = "token"
        return f"deit_{size.split('_')[0]}_distilled_patch16_224", args, DISTILLED
    return f"vit_{size}", {**args, "global_pool": "token"}, VIT


def _beit(model: ConfigDict) -> tuple[str, dict[str, Any], tuple[str, Any]]:
    width, depth, heads = BEIT_SIZES[model.name]
    args = {
        "patch_size": model.patch,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "use_abs_pos_emb": model.absolute,
        "use_rel_pos_bias": model.relative == "blocks",
        "use_shared_rel_pos_bias": model.relative == "shared",
        "init_values": model.layer_scale or None,
        "global_pool": "avg",
        "use_fc_norm": model.pooling == "mean_then_norm",
    }
    return f"beit_{'large' if model.name == 'beit_l' else 'base'}_patch16_224", args, VIT


def _require(model: ConfigDict, **needed: Any) -> None:
    for key, value in needed.items():
        if key in model and model[key] != value:
            _refuse(f"model.{key}", model[key])


def _refuse(key: str, value: Any) -> None:
    raise ValueError(f"config.{key} is {value!r}: no network of timm computes that: {STABLEHLO}")
