"""The tiny detector of tests/golden/c4_tiny.npz under our names."""

import re

import numpy as np
from flax.traverse_util import unflatten_dict

from tests.models.golden_resnet import nhwc

HEADS = {
    "proposal_generator.rpn_head.conv": "rpn/conv",
    "proposal_generator.rpn_head.objectness_logits": "rpn/objectness",
    "proposal_generator.rpn_head.anchor_deltas": "rpn/deltas",
    "roi_heads.res5.norm": "head/norm",
    "roi_heads.box_predictor.cls_score": "head/classes",
    "roi_heads.box_predictor.bbox_pred": "head/boxes",
}
LEAVES = {"weight": "kernel", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def ours(name: str) -> str:
    """Our name of a leaf: "backbone.res2.0.conv1.weight" is "encoder/group1_block1/conv1/kernel"."""
    path, leaf = name.rsplit(".", 1)
    if path in HEADS:
        place = HEADS[path]
    else:
        path = re.sub(r"conv(\d)\.norm", r"norm\1", path)
        path = re.sub(r"^(backbone|roi_heads)\.", "encoder.", path)
        path = re.sub(r"stem\.(conv|norm)1", r"stem_\g<1>1", path)
        path = re.sub(r"res(\d)\.(\d)", lambda m: f"group{int(m[1]) - 1}_block{int(m[2]) + 1}", path)
        place = path.replace("shortcut", "shortcut.conv").replace("conv.norm", "norm").replace(".", "/")
    norm = place.split("/")[-1].removeprefix("stem_").startswith("norm")
    return f"{place}/{'scale' if norm and leaf == 'weight' else LEAVES[leaf]}"


def reordered(value: np.ndarray) -> np.ndarray:
    """OIHW -> HWIO, and [out, in] -> [in, out]."""
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    return value.T if value.ndim == 2 else value


def tree(fields: dict[str, np.ndarray]) -> tuple[dict, dict]:
    """(params, model_state) of fields by detectron2's names."""
    params = {}
    statistics = {"rpn": {}}
    for name, value in fields.items():
        into = statistics if "running_" in name else params
        into[tuple(ours(name).split("/"))] = reordered(value)
    statistics.pop("rpn")
    return unflatten_dict(params), {**unflatten_dict(statistics), "rpn": {}}


def batch(golden) -> dict:
    """The two images in what detectron2 pads them to, with room for four boxes each."""
    sizes = golden["image_sizes_hw"]
    height, width = sizes.max(0)
    image = np.zeros((2, height, width, 3), np.uint8)
    boxes = np.zeros((2, 4, 4), np.float32)
    classes = np.full((2, 4), -1, np.int32)
    for i, (h, w) in enumerate(sizes):
        image[i, :h, :w] = golden[f"im{i}/image_chw_rgb"].transpose(1, 2, 0)
        count = len(golden[f"im{i}/gt_classes"])
        boxes[i, :count] = golden[f"im{i}/gt_boxes"]
        classes[i, :count] = golden[f"im{i}/gt_classes"]
    return {
        "image": image,
        "size": np.int32(sizes),
        "boxes": boxes,
        "classes": classes,
        "index": np.arange(2, dtype=np.int32),
    }


__all__ = ["batch", "nhwc", "ours", "reordered", "tree"]
