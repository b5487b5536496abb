"""RandAugment (arXiv 1909.13719) and AutoAugment (arXiv 1805.09501) on the host, as timm applies them with Pillow: DeiT's recipe.

    crop -> flip -> policy -> (device) normalise, erase, mix

`apply` is pure and knows nothing of chance; `draw` says which operations a view gets, with which arguments. A draw is a function of
(seed, epoch, index, view) alone: raw Philox words keyed by them, as in `data.sampler`. Pillow computes the pixels without holding
Python's lock. Geometric operations interpolate bicubically, as DeiT's crop does.

timm's form, not the paper's: each of RandAugment's operations is skipped with probability a half, its magnitude is normal around the
given one (`mstd`), and the "increasing" operations grow with the magnitude ("rand-m9-mstd0.5-inc1"; "randaugment_plain" is without inc).
AutoAugment's tables have their own magnitudes; DeiT's ablation does not say which table it means, "autoaugment_original" is the paper's.
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

POLICIES = ("none", "randaugment", "randaugment_plain", "autoaugment_original", "autoaugment_v0")
APPLIED = 0.5  # timm's AugmentOp: the share of RandAugment's draws that are carried out
IMAGENET_FILL = (124, 116, 104)  # round(255 mean): what shows where the image has moved away

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

# 25 pairs of (operation, probability, magnitude), one pair an image.
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


# ---------------------------------------------------------------------------------------------------------------- operations


def argument(op: str, magnitude: float, negative: bool) -> float:
    """What timm makes of a magnitude in [0, 10].

    Args:
        op: a name from the tables above.
        magnitude: 10 is the strongest, except for Posterize, PosterizeOriginal and Solarize without "Increasing", where 0 is.
        negative: which way, for operations that have two: rotations, shears, translations, and factors around 1.

    Returns:
        degrees | shear | share of the side | blending factor | bits kept | threshold | addend; 0 for operations without an argument.
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
    return float(
        {
            "Posterize": int(level * 4),
            "PosterizeIncreasing": 4 - int(level * 4),
            "PosterizeOriginal": int(level * 4) + 4,
            "Solarize": int(level * 256),
            "SolarizeIncreasing": 256 - int(level * 256),
            "SolarizeAdd": int(level * 110),
            "AutoContrast": 0,
            "Equalize": 0,
            "Invert": 0,
        }[op]
    )


def apply(
    op: str,
    image: np.ndarray,
    argument: float,
    *,
    fill: tuple[int, ...] = IMAGENET_FILL,
    resample: int = Image.Resampling.BICUBIC,
) -> np.ndarray:
    """One operation on one image.

    Args:
        op: a name from the tables above.
        image: uint8 [H, W, 3].
        argument: from `argument`.
        fill: the colour where a geometric operation leaves nothing.
        resample: Pillow's interpolation of geometric operations.

    Returns:
        uint8 [H, W, 3].

    Raises:
        KeyError: an unknown operation.
    """
    picture = Image.fromarray(image)
    if op in ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"):
        return np.asarray(_geometric(op, picture, argument, fill, resample))
    op = op.removesuffix("Increasing").removesuffix("Original")
    if op in ("Invert", "Posterize", "Solarize", "SolarizeAdd"):
        return np.asarray(picture.point(_table(op, int(argument))))
    return np.asarray(_COLOUR[op](picture, argument))


def _geometric(
    op: str, picture: Image.Image, argument: float, fill: tuple[int, ...], resample: int
) -> Image.Image:
    if op == "Rotate":
        return picture.rotate(argument, resample=resample, fillcolor=fill)
    matrix = {
        "ShearX": (1, argument, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, argument, 1, 0),
        "TranslateXRel": (1, 0, argument * picture.width, 0, 1, 0),
        "TranslateYRel": (1, 0, 0, 0, 1, argument * picture.height),
    }[op]
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=fill)


@functools.cache
def _table(op: str, argument: int) -> list[int]:
    """New values of the 256 old ones, once for each channel."""
    value = {
        "Invert": lambda v: 255 - v,
        "Posterize": lambda v: (
            v & 0xFF << 8 - argument
        ),  # 0 bits are black; Pillow's own function refuses them
        "Solarize": lambda v: v if v < argument else 255 - v,
        "SolarizeAdd": lambda v: min(255, v + argument) if v < 128 else v,
    }[op]
    return [value(v) for v in range(256)] * 3


_COLOUR: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "AutoContrast": lambda picture, _: ImageOps.autocontrast(picture),
    "Equalize": lambda picture, _: ImageOps.equalize(picture),
    "Color": lambda picture, factor: ImageEnhance.Color(picture).enhance(factor),
    "Contrast": lambda picture, factor: ImageEnhance.Contrast(picture).enhance(factor),
    "Brightness": lambda picture, factor: ImageEnhance.Brightness(picture).enhance(factor),
    "Sharpness": lambda picture, factor: ImageEnhance.Sharpness(picture).enhance(factor),
}


# ---------------------------------------------------------------------------------------------------------------------- chance


def uniforms(key: Sequence[int], n: int) -> list[float]:
    """n numbers in [0, 1) that follow from `key` = (seed, epoch, index, view), none of it negative: 53 bits of each raw Philox word."""
    seed, epoch, index, view = (int(word) for word in key)
    # the last word of the counter is 0 in `sampler.order`, whose key is (seed, epoch) too: the streams never meet
    words = np.random.Philox(
        key=np.array([seed, epoch], np.uint64), counter=np.array([0, 0, index, view + 1], np.uint64)
    ).random_raw(n)
    return [int(word >> 11) * 2.0**-53 for word in words.tolist()]


def draw(key: Sequence[int], augment: ConfigDict) -> list[Step]:
    """The operations of one view, in order; those that chance skips are left out.

    Args:
        key: (seed, epoch, index, view).
        augment: reads `policy`; for RandAugment also `policy_magnitude`, `policy_std` and `policy_ops`.

    Raises:
        ValueError: an unknown policy.
    """
    steps = []
    if augment.policy in RANDAUGMENT:
        names, u = RANDAUGMENT[augment.policy], iter(uniforms(key, 5 * augment.policy_ops))
        for which, applied, a, b, negative in zip(
            u, u, u, u, u, strict=True
        ):  # five numbers an operation; with replacement
            if applied < APPLIED:
                op, magnitude = (
                    names[int(which * len(names))],
                    normal(a, b, augment.policy_magnitude, augment.policy_std),
                )
                steps.append(Step(op, argument(op, magnitude, negative >= 0.5)))
        return steps
    if augment.policy in AUTOAUGMENT:
        pairs, (which, *u) = AUTOAUGMENT[augment.policy], uniforms(key, 5)
        for (op, probability, magnitude), applied, negative in zip(
            pairs[int(which * len(pairs))], u[:2], u[2:], strict=True
        ):
            if applied < probability:
                steps.append(Step(op, argument(op, magnitude, negative >= 0.5)))
        return steps
    if augment.policy == "none":
        return []
    raise ValueError(unknown(augment.policy))


def normal(u: float, v: float, mean: float, deviation: float) -> float:
    """A magnitude, normal (Box-Muller) and clipped to [0, 10] like timm's."""
    return min(
        max(mean + deviation * math.sqrt(-2.0 * math.log(1.0 - u)) * math.cos(2.0 * math.pi * v), 0.0), 10.0
    )


def policy(image: np.ndarray, key: Sequence[int], augment: ConfigDict) -> np.ndarray:
    """The policy on one view.

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
    """round(255 mean), ImageNet's where the config does not normalise."""
    return tuple(min(255, round(255 * m)) for m in mean) if any(mean) else IMAGENET_FILL


def check(config: ConfigDict) -> None:
    """Refuses a policy, of any view, that cannot or should not be applied.

    Raises:
        ValueError: an unknown policy; a policy on the device, on grey images or beside the colour jitter.
    """
    for view in recipes.resolved(config):
        _check(view.augment, config.data)


def _check(augment: ConfigDict, data: ConfigDict) -> None:
    name = augment.policy
    if name not in POLICIES:
        raise ValueError(unknown(name))
    if name == "none":
        return
    if data.crop_on != "host":
        raise ValueError(
            f"augment.policy={name!r} works on the crops that the host makes, and with data.crop_on={data.crop_on!r} it makes "
            "none: set data.crop_on='host' (images in memory can be cropped there too) or augment.policy='none'"
        )
    if data.channels != 3:
        raise ValueError(
            f"augment.policy={name!r} needs RGB and data.channels={data.channels}: its colour operations and its fill are "
            "made for three channels. Set data.channels=3 or augment.policy='none'"
        )
    if augment.jitter_probability > 0:
        raise ValueError(
            f"augment.policy={name!r} and augment.jitter_probability={augment.jitter_probability}: RandAugment replaces the "
            "colour jitter, and so does AutoAugment. Set augment.jitter_probability=0.0 or augment.policy='none'"
        )


def unknown(name: str) -> str:
    """The message about an unknown policy."""
    return (
        f"augment.policy={name!r} is unknown. Use {', '.join(map(repr, POLICIES[:-1]))} or {POLICIES[-1]!r}."
    )
