"""The golden files' weights under our names, e.g. `group2_block1/shortcut/conv/kernel`."""

import re

import numpy as np
from flax.traverse_util import unflatten_dict

# TensorFlow (google-research/simclr, tf2/resnet.py). A block creates its projection before the main path.
MAIN_CONVS = {
    "ResidualBlock": ("conv1", "conv2"),
    "BottleneckBlock": ("conv1", "conv2", "conv3"),
    "selective": ("conv1", "sk/conv", "sk/gate_conv1", "sk/gate_conv2", "conv3"),
}
MAIN_NORMS = {
    "ResidualBlock": ("norm1", "norm2"),
    "BottleneckBlock": ("norm1", "norm2", "norm3"),
    "selective": ("norm1", "sk/norm", "sk/gate_norm", "norm3"),
}
TF_LEAF = {
    "kernel": "kernel",
    "gamma": "scale",
    "beta": "bias",
    "moving_mean": "mean",
    "moving_variance": "var",
}


def simclr_layers(case: dict) -> dict[str, str]:
    """Golden layer "007.bn" -> our path "group1_block1/shortcut/norm"."""
    kind = str(case["block"])
    if case["sk_ratio"] > 0 and kind == "BottleneckBlock":
        kind = "selective"

    places: dict[tuple[int, str], dict[str, list]] = {}  # (group, block as Keras names it), in network order
    for i, entry in enumerate(case["layer_paths"]):
        layer, path = str(entry).split(": ")
        found = re.match(r"block_group(\d)/([^/]*)/", path)
        place = (int(found[1]), found[2]) if found else (0, "stem")
        created = int((re.search(r"_(\d+)$", path) or [0, 0])[1])  # Keras numbers layers as they are created
        places.setdefault(place, {"conv": [], "bn": []})[layer].append((created, f"{i:03d}.{layer}"))

    ours = {}
    seen = {}
    for (group, _), layers in places.items():
        seen[group] = seen.get(group, 0) + 1
        for layer, main in (("conv", MAIN_CONVS[kind]), ("bn", MAIN_NORMS[kind])):
            word = {"conv": "conv", "bn": "norm"}[layer]
            golden = [name for _, name in sorted(layers[layer])]
            if group == 0:
                names = [f"stem_{word}{n + 1}" for n in range(len(golden))]
            else:
                projection = (f"shortcut/{word}",) if len(golden) > len(main) else ()
                names = [f"group{group}_block{seen[group]}/{n}" for n in projection + main]
            ours |= dict(zip(golden, names, strict=True))
    return ours


def simclr_tree(case: dict, under: str) -> dict:
    """{"params": ..., "batch_stats": ...} of the fields below `under` ("weights" or "after_train")."""
    layers = simclr_layers(case)
    flat = {}
    for field, value in case.items():
        if field.startswith(under + "/"):
            index, layer, leaf = field[len(under) + 1 :].split(".")
            collection = "batch_stats" if leaf.startswith("moving_") else "params"
            flat[(collection, *layers[f"{index}.{layer}"].split("/"), TF_LEAF[leaf])] = value
    return unflatten_dict(flat)


def nhwc(value: np.ndarray) -> np.ndarray:
    """NCHW -> NHWC."""
    return value.transpose(0, 2, 3, 1)
