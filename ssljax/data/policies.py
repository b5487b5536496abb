"""RandAugment (arXiv 1909.13719) and AutoAugment (arXiv 1805.09501) on the host, as in DeiT's recipe.

    crop -> flip -> policy -> (device) normalise, erase, mix

The operations are timm's, computed by Pillow. `apply` is pure and draws nothing; `draw` decides which
operations a view gets, with which arguments. A draw depends only on (seed, epoch, index, view): it reads raw
Philox words keyed by them, as in `data.sampler`. Pillow releases Python's global lock while it computes.
Geometric operations interpolate bicubically, as DeiT's crop does.

RandAugment has timm's form, not the paper's. Each operation is skipped with probability 1/2. Its magnitude is
normal around the given one (`mstd`). The "increasing" operations grow with the magnitude
("rand-m9-mstd0.5-inc1"; "randaugment_plain" is the form without inc). AutoAugment's tables have their own
magnitudes. DeiT's ablation does not say which table it uses; "autoaugment_original" is the paper's.

"randaugment_tf" is another form and no operation of this file: `data.randaugment` applies it on the device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageEnhance, ImageOps

from ssljax.data import recipes

ON_HOST = ("randaugment", "randaugment_plain", "autoaugment_original", "autoaugment_v0")
POLICIES = ("none", *ON_HOST, "randaugment_tf")  # the last is applied on the device, see `data.randaugment`
APPLIED = 0.5  # timm's AugmentOp: the share of RandAugment's draws that are applied
IMAGENET_FILL = (
    124,
    116,
    104,
)  # round(255 mean): the colour of pixels that a geometric operation leaves empty

RANDAUGMENT = {
    "randaugment": (
        "AutoContrast",
        "Equalize",
        "Invert",
        "Rotate",
        "PosterizeIncreasing",
        "SolarizeIncreasing",
        "SolarizeAdd",
        "ColorIncreasing",
        "ContrastIncreasing",
        "BrightnessIncreasing",
        "SharpnessIncreasing",
        "ShearX",
        "ShearY",
        "TranslateXRel",
        "TranslateYRel",
    ),
    "randaugment_plain": (
        "AutoContrast",
        "Equalize",
        "Invert",
        "Rotate",
        "Posterize",
        "Solarize",
        "SolarizeAdd",
        "Color",
        "Contrast",
        "Brightness",
        "Sharpness",
        "ShearX",
        "ShearY",
        "TranslateXRel",
        "TranslateYRel",
    ),
}

# 25 pairs of (operation, probability, magnitude). Each image gets one pair.
AUTOAUGMENT = {
    "autoaugment_original": (
        (("PosterizeOriginal", 0.4, 8), ("Rotate", 0.6, 9)),
        (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
        (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
        (("PosterizeOriginal", 0.6, 7), ("PosterizeOriginal", 0.6, 6)),
        (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
        (("Equalize", 0.4, 4), ("Rotate", 0.8, 8)),
        (("Solarize", 0.6, 3), ("Equalize", 0.6, 7)),
        (("PosterizeOriginal", 0.8, 5), ("Equalize", 1.0, 2)),
        (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
        (("Equalize", 0.6, 8), ("PosterizeOriginal", 0.4, 6)),
        (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
        (("Rotate", 0.4, 9), ("Equalize", 0.6, 2)),
        (("Equalize", 0.0, 7), ("Equalize", 0.8, 8)),
        (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
        (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
        (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
        (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
        (("Sharpness", 0.4, 7), ("Invert", 0.6, 8)),
        (("ShearX", 0.6, 5), ("Equalize", 1.0, 9)),
        (("Color", 0.4, 0), ("Equalize", 0.6, 3)),
        (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
        (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
        (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
        (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
        (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
    ),
    "autoaugment_v0": (
        (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)),
        (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
        (("Color", 0.4, 1), ("Rotate", 0.6, 8)),
        (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
        (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)),
        (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
        (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)),
        (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
        (("Color", 0.6, 1), ("Equalize", 1.0, 2)),
        (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
        (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)),
        (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
        (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)),
        (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
        (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
        (("Rotate", 1.0, 7), ("TranslateYRel", 0.8, 9)),
        (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
        (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
        (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
        (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
        (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)),
        (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
        (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),
        (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)),
        (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
    ),
}


class Step(NamedTuple):
    """One operation of a view, with the argument that `apply` takes."""

    op: str
    argument: float


# ----------------------------------------------------------------------------------------------- operations


def argument(op: str, magnitude: float, negative: bool) -> float:
    """Convert a magnitude in [0, 10] to the argument that timm passes to an operation.

    Args:
        op: a name from the tables above.
        magnitude: 10 is the strongest. For Posterize, PosterizeOriginal and Solarize (without "Increasing") 0
            is the strongest.
        negative: the direction, for operations that have two: rotations, shears, translations, and factors
            around 1.

    Returns:
        The argument in the operation's own unit: degrees, shear, share of the side, blending factor, number
        of bits kept, threshold or addend. 0 for operations without an argument.
    """
    level = magnitude / 10.0
    sign = -1.0 if negative else 1.0
    if op == "Rotate":
        return sign * level * 30.0
    if op in ("ShearX", "ShearY"):
        return sign * level * 0.3
    if op in ("TranslateXRel", "TranslateYRel"):
        return sign * level * 0.45
    if op in ("ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing"):
        return max(0.1, 1.0 + sign * level * 0.9)
    if op in ("Color", "Contrast", "Brightness", "Sharpness"):
        return level * 1.8 + 0.1
    if op in ("AutoContrast", "Equalize", "Invert"):
        return 0.0
    whole = {
        "Posterize": int(level * 4),
        "PosterizeIncreasing": 4 - int(level * 4),
        "PosterizeOriginal": int(level * 4) + 4,
        "Solarize": int(level * 256),
        "SolarizeIncreasing": 256 - int(level * 256),
        "SolarizeAdd": int(level * 110),
    }
    return float(whole[op])


def apply(
    op: str,
    image: np.ndarray,
    argument: float,
    *,
    fill: tuple[int, ...] = IMAGENET_FILL,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> np.ndarray:
    """Apply one operation to one image.

    Args:
        op: a name from the tables above.
        image: uint8 [H, W, 3].
        argument: what the function `argument` returns.
        fill: the colour of pixels that a geometric operation leaves empty.
        resample: Pillow's interpolation for geometric operations.

    Returns:
        uint8 [H, W, 3].

    Raises:
        KeyError: the operation is unknown.
    """
    picture = Image.fromarray(image)
    if op in ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"):
        return np.asarray(_geometric(op, picture, argument, fill, resample))
    op = op.removesuffix("Increasing").removesuffix("Original")
    if op in ("Invert", "Posterize", "Solarize", "SolarizeAdd"):
        return np.asarray(picture.point(_table(op, int(argument))))
    return np.asarray(_COLOUR[op](picture, argument))


def _geometric(
    op: str, picture: Image.Image, argument: float, fill: tuple[int, ...], resample: Image.Resampling
) -> Image.Image:
    if op == "Rotate":
        return picture.rotate(argument, resample=resample, fillcolor=fill)
    matrices = {
        "ShearX": (1, argument, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, argument, 1, 0),
        "TranslateXRel": (1, 0, argument * picture.width, 0, 1, 0),
        "TranslateYRel": (1, 0, 0, 0, 1, argument * picture.height),
    }
    matrix = matrices[op]
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=fill)


@functools.cache
def _table(op: str, argument: int) -> list[int]:
    """Tabulate the new value of each of the 256 old values, once per channel."""
    functions: dict[str, Callable[[int], int]] = {
        "Invert": lambda v: 255 - v,
        # Keeping 0 bits gives black; Pillow's own function refuses it.
        "Posterize": lambda v: v & 0xFF << 8 - argument,
        "Solarize": lambda v: v if v < argument else 255 - v,
        "SolarizeAdd": lambda v: min(255, v + argument) if v < 128 else v,
    }
    value = functions[op]
    return [value(v) for v in range(256)] * 3


_COLOUR: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "AutoContrast": lambda picture, _: ImageOps.autocontrast(picture),
    "Equalize": lambda picture, _: ImageOps.equalize(picture),
    "Color": lambda picture, factor: ImageEnhance.Color(picture).enhance(factor),
    "Contrast": lambda picture, factor: ImageEnhance.Contrast(picture).enhance(factor),
    "Brightness": lambda picture, factor: ImageEnhance.Brightness(picture).enhance(factor),
    "Sharpness": lambda picture, factor: ImageEnhance.Sharpness(picture).enhance(factor),
}


# ---------------------------------------------------------------------------------------------------- draws


def uniforms(key: Sequence[int], n: int) -> list[float]:
    """Draw n numbers in [0, 1), each from 53 bits of a raw Philox word.

    Args:
        key: (seed, epoch, index, view), none of them negative. The numbers depend on nothing else.
        n: how many numbers.
    """
    seed, epoch, index, view = (int(word) for word in key)
    # `sampler.order` has the key (seed, epoch) too, but the last word of its counter is 0: no overlap.
    generator = np.random.Philox(
        key=np.array([seed, epoch], np.uint64), counter=np.array([0, 0, index, view + 1], np.uint64)
    )
    words = generator.random_raw(n)
    return [int(word >> 11) * 2.0**-53 for word in words.tolist()]


def draw(key: Sequence[int], augment: ConfigDict) -> list[Step]:
    """Draw the operations of one view, in order, without those that are skipped at random.

    Args:
        key: (seed, epoch, index, view).
        augment: reads `policy`; for RandAugment also `policy_magnitude`, `policy_std` and `policy_ops`.

    Raises:
        ValueError: the policy is unknown.
    """
    if augment.policy in RANDAUGMENT:
        return _draw_randaugment(key, augment)
    if augment.policy in AUTOAUGMENT:
        return _draw_autoaugment(key, augment)
    if augment.policy in POLICIES:
        return []
    raise ValueError(unknown(augment.policy))


def _draw_randaugment(key: Sequence[int], augment: ConfigDict) -> list[Step]:
    """Draw `policy_ops` operations with replacement. Each of them takes five uniform numbers."""
    names = RANDAUGMENT[augment.policy]
    u = uniforms(key, 5 * augment.policy_ops)
    steps = []
    for first in range(0, len(u), 5):
        which, applied, a, b, negative = u[first : first + 5]
        if applied < APPLIED:
            op = names[int(which * len(names))]
            magnitude = normal(a, b, augment.policy_magnitude, augment.policy_std)
            steps.append(Step(op, argument(op, magnitude, negative >= 0.5)))
    return steps


def _draw_autoaugment(key: Sequence[int], augment: ConfigDict) -> list[Step]:
    """Draw one pair of operations. Five uniform numbers: the pair, whether each applies, each direction."""
    pairs = AUTOAUGMENT[augment.policy]
    which, *u = uniforms(key, 5)
    pair = pairs[int(which * len(pairs))]
    steps = []
    for (op, probability, magnitude), applied, negative in zip(pair, u[:2], u[2:], strict=True):
        if applied < probability:
            steps.append(Step(op, argument(op, magnitude, negative >= 0.5)))
    return steps


def normal(u: float, v: float, mean: float, deviation: float) -> float:
    """Make a normal magnitude from two uniform numbers (Box-Muller), clipped to [0, 10] as in timm."""
    magnitude = mean + deviation * math.sqrt(-2.0 * math.log(1.0 - u)) * math.cos(2.0 * math.pi * v)
    return min(max(magnitude, 0.0), 10.0)


def policy(image: np.ndarray, key: Sequence[int], augment: ConfigDict) -> np.ndarray:
    """Apply the policy to one view.

    Args:
        image: uint8 [H, W, 3], cropped and flipped.
        key: (seed, epoch, index, view).
        augment: `config.augment`.

    Returns:
        uint8 [H, W, 3].
    """
    colour = fill(augment.mean)
    for step in draw(key, augment):
        image = apply(step.op, image, step.argument, fill=colour)
    return image


def fill(mean: Sequence[float]) -> tuple[int, ...]:
    """Return the fill colour, round(255 mean), or ImageNet's if the config does not normalise."""
    if not any(mean):
        return IMAGENET_FILL
    return tuple(min(255, round(255 * m)) for m in mean)


def check(config: ConfigDict) -> None:
    """Refuse a policy, of any view, that cannot or should not be applied.

    Raises:
        ValueError: a policy is unknown, or is combined with crops on the device, grey images or the colour
            jitter.
    """
    for view in recipes.resolved(config):
        _check(view.augment, config.data)


def _check(augment: ConfigDict, data: ConfigDict) -> None:
    """Refuse the policy of one recipe, as `check` does for all views."""
    name = augment.policy
    if name not in POLICIES:
        raise ValueError(unknown(name))
    if name == "none":
        return
    if name in ON_HOST:
        _check_host(name, data)
    if augment.jitter_probability > 0:
        raise ValueError(
            f"augment.policy={name!r} and augment.jitter_probability={augment.jitter_probability} do not go "
            "together: RandAugment and AutoAugment replace the colour jitter. Set "
            "augment.jitter_probability=0.0 or augment.policy='none'"
        )


def _check_host(name: str, data: ConfigDict) -> None:
    """Refuse a policy of the host where the host does not crop, or not in colour."""
    if data.crop_on != "host":
        raise ValueError(
            f"augment.policy={name!r} works on crops made on the host, but data.crop_on={data.crop_on!r}: "
            "set data.crop_on='host' (images in memory can be cropped there too) or augment.policy='none'"
        )
    if data.channels != 3:
        raise ValueError(
            f"augment.policy={name!r} needs RGB, but data.channels={data.channels}: its colour operations "
            "and its fill colour need three channels. Set data.channels=3 or augment.policy='none'"
        )


def unknown(name: str) -> str:
    """Return the error message for an unknown policy."""
    *others, last = (repr(known) for known in POLICIES)
    return f"augment.policy={name!r} is unknown. Use {', '.join(others)} or {last}."
