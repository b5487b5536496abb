"""The rows of the throughput table, and the clock that both frameworks use. Imports neither of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One network and method.

    Attributes:
        paper: file in `configs/`.
        preset: in that file.
        batch: images per step, so that ours and PyTorch's fit together on a GPU of 80 GB.
        vit: a ViT-B instead of a ResNet-50.
        views: passes through the trained network per image.
    """

    paper: str
    preset: str
    batch: int
    vit: bool
    views: int


ROWS = {
    "supervised_r50": Row("supervised", "imagenet_r50", 256, False, 1),
    "simclr_r50": Row("simclr", "imagenet_r50_e100_b4096", 128, False, 2),
    "moco_v3_vit_b": Row("moco", "imagenet_vit_b_v3", 64, True, 2),
    "deit_b": Row("deit", "imagenet_b", 128, True, 1),
    "byol_r50": Row("byol", "imagenet_r50_e300", 128, False, 2),
}

# What makes random views. The plain comparison does without, on both sides.
RANDOM = (
    "augment.jitter_probability",
    "augment.grayscale_probability",
    "augment.blur_probability",
    "augment.solarize_probability",
    "augment.erasing_probability",
    "mix.mixup_alpha",
    "mix.cutmix_alpha",
)

PIXELS, CLASSES, HIDDEN = 224, 1000, 4096
TOY_PIXELS, TOY_CLASSES, TOY_HIDDEN, TOY_BATCH = 32, 10, 64, 8
MATMUL, TOY_MATMUL = 8192, 256  # side of the square matrices whose product measures the peak


def changes(row: Row, batch: int, *, augmented: bool, toy: bool) -> dict[str, Any]:
    """What is changed in the preset, by dotted key."""
    found: dict[str, Any] = {"batch_size": batch}
    if not augmented:
        found |= dict.fromkeys(RANDOM, 0.0)
    if toy:
        found["data.image_size"] = TOY_PIXELS
        if row.vit:
            found |= {"model.name": "vit_xs", "model.patch": 8}
        else:
            found |= {"model.name": "resnet10", "model.shortcut": "torchvision"}
        if row.paper in ("byol", "moco"):
            found |= {"head.hidden": TOY_HIDDEN, "predictor.hidden": TOY_HIDDEN}
    return found


def turn(steps: Callable[[int], float], seconds: float) -> float:
    """Seconds per step over about `seconds` seconds.

    Args:
        steps: number of steps -> seconds that they took, the wait for the device included.
        seconds: of the turn, its two warm-up steps not counted.
    """
    steps(1)
    once = steps(1)
    number = max(2, math.ceil(seconds / max(once, 1e-9)))
    return steps(number) / number
