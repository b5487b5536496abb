"""Resize with Pillow, exactly as torchvision resizes the images that it reads from files.

Host crops (`data.crops`) call this from the threads of tf.data, and evaluation calls it for images in memory.
Pillow releases Python's lock while it resizes: for two views of a photograph it was measured to take 30 %
less processor time than TensorFlow's antialiased resize, whose result also differs (docs/resizing.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

FILTERS = {"lanczos3": 1, "bilinear": 2, "bicubic": 3, "area": 4}  # the values of PIL.Image.Resampling


def resize(image: np.ndarray, height: int, width: int, method: str) -> np.ndarray:
    """Resize an image. Like torchvision's `resized_crop`, this sees no pixel beyond the crop.

    Args:
        image: uint8 [H, W, C].
        height, width: size of the result.
        method: a key of FILTERS.

    Returns:
        uint8 [height, width, C].
    """
    from PIL import Image

    channels = image.shape[2]
    if channels not in (1, 3):  # several views; Pillow resizes the channels of a picture one by one too
        planes = [resize(image[..., c, None], height, width, method) for c in range(channels)]
        return np.concatenate(planes, axis=2)
    picture = Image.fromarray(image if channels == 3 else image[..., 0])
    resized = picture.resize((width, height), Image.Resampling(FILTERS[method]))
    return np.asarray(resized).reshape(height, width, channels)


def central(
    image: np.ndarray, size: int, share: float, method: str, place: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """Make the image that evaluation sees: torchvision's `Resize` of the shorter side, then `CenterCrop`.

    Args:
        image: uint8 [H, W, C] with C = 3 or 1.
        size: side of the result.
        share: `size` over the shorter side after the resize: 0.875 resizes to 256 for 224 pixels.
        method: "bilinear" or "bicubic".
        place: where the crop lies, see `geometry.Place`; the corners are those of `FiveCrop`.

    Returns:
        uint8 [size, size, C].
    """
    image = _shortened(image, size, share, method)
    room = (image.shape[0] - size, image.shape[1] - size)
    # The middle as in torchvision, to even at .5.
    top, left = (round(r / 2) if at == 0 else r * (at > 0) for r, at in zip(room, place, strict=True))
    return image[top : top + size, left : left + size]


def square(image: np.ndarray, offset: np.ndarray, size: int, share: float, method: str) -> np.ndarray:
    """Make torchvision's `Resize` of the shorter side, `CenterCrop` to it and `RandomCrop`.

    Args:
        image: uint8 [H, W, C] with C = 3 or 1.
        offset: int [2], down and right: what `RandomCrop` draws.
        size, share, method: as for `central`.

    Returns:
        uint8 [size, size, C].
    """
    image = _shortened(image, size, share, method)
    short = min(image.shape[:2])
    top = round((image.shape[0] - short) / 2) + offset[0]
    left = round((image.shape[1] - short) / 2) + offset[1]
    return image[top : top + size, left : left + size]


def _shortened(image: np.ndarray, size: int, share: float, method: str) -> np.ndarray:
    """Resize an image so that its shorter side has size / share pixels. Arguments are those of `central`."""
    height, width = image.shape[:2]
    short = int(size / share)
    long = int(short * max(height, width) / min(height, width))
    new_height, new_width = (short, long) if height <= width else (long, short)
    if (new_height, new_width) != (height, width):
        image = resize(image, new_height, new_width, method)
    return image


def jitters_image(augment: ConfigDict) -> bool:
    """Whether a recipe jitters the colours of the whole image, before the crop."""
    return augment.jitter_probability > 0.0 and augment.jitter_on == "image"


def jitter(image: np.ndarray, seed: Sequence[int], augment: ConfigDict) -> np.ndarray:
    """Make torchvision's ColorJitter of an image that was read from a file, without hue.

    After each operation the pixels are whole numbers again.

    Args:
        image: uint8 [H, W, C] with C = 3 or 1.
        seed: whole numbers that determine the draws.
        augment: the view's recipe.

    Returns:
        uint8 [H, W, C].

    Raises:
        ValueError: the recipe changes the hue.
    """
    from PIL import Image, ImageEnhance

    enhance = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }
    picture = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
    for name, factor in jitter_steps(seed, augment):
        picture = enhance[name](picture).enhance(factor)
    return np.asarray(picture).reshape(image.shape)


def jitter_steps(seed: Sequence[int], augment: ConfigDict) -> list[tuple[str, float]]:
    """Draw what `jitter` does: (operation, factor) in the order applied; empty if the image stays as it is.

    Arguments and errors are those of `jitter`.
    """
    if augment.jitter_hue:
        raise ValueError(
            f"config.augment.jitter_hue={augment.jitter_hue} does not go with jitter_on='image' on the host: "
            "set augment.jitter_hue=0, or augment.jitter_on=crop"
        )
    rng = np.random.default_rng([*(int(word) for word in seed), 1])
    if rng.uniform() >= augment.jitter_probability:
        return []
    reach = {
        "brightness": 0.8 * augment.jitter_strength,
        "contrast": 0.8 * augment.jitter_strength,
        "saturation": augment.jitter_saturation * augment.jitter_strength,
    }
    steps = [(name, float(rng.uniform(max(0.0, 1.0 - r), 1.0 + r))) for name, r in reach.items()]
    return [steps[number] for number in rng.permutation(len(steps))]
