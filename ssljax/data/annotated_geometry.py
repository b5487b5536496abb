"""What moves images together with their boxes and masks: pure functions of NumPy arrays.

Sizes are (height, width) in pixels. Boxes are x1, y1, x2, y2 in continuous pixels: the image covers
0..width and 0..height. Images are resized by Pillow, bilinear with antialias, masks by nearest neighbour.

The rules for boxes are those of facebookresearch/detectron2 at 02b5c4e, with which MoCo fine-tunes:
`ResizeShortestEdge`, `HFlipTransform`, `AspectRatioGroupedDataset`.
"""

from __future__ import annotations

import numpy as np

from ssljax.data import pillow
from ssljax.data.annotate import IGNORED

MULTIPLE = 32  # of the sides of a batch: the largest stride of the networks

Size = tuple[int, int]


def shortest_edge(size: Size, short: int, longest: int) -> Size:
    """The size of an image whose shorter side becomes `short`, and the longer at most `longest`."""
    height, width = size
    scale = short / min(size)
    new = (float(short), scale * width) if height < width else (scale * height, float(short))
    if max(new) > longest:
        scale = longest / max(new)
        new = (new[0] * scale, new[1] * scale)
    return int(new[0] + 0.5), int(new[1] + 0.5)


def is_portrait(sizes: np.ndarray) -> np.ndarray:
    """Which images [N, 2] are not wider than high, bool [N]. They never share a batch with the others."""
    return sizes[:, 1] <= sizes[:, 0]


def bucket(short: int, longest: int, portrait: bool) -> Size:
    """The size of a batch into which every image from `shortest_edge(.., short, longest)` fits."""
    low, high = (-(-side // MULTIPLE) * MULTIPLE for side in (min(short, longest), longest))
    return (high, low) if portrait else (low, high)


def resized_boxes(boxes: np.ndarray, old: Size, new: Size) -> np.ndarray:
    """Boxes [G, 4] of an image that was resized, cut at its border: float32."""
    (height, width), (new_height, new_width) = old, new
    factor = np.array([new_width / width, new_height / height] * 2)
    border = [new_width, new_height] * 2
    return np.clip(boxes * factor, 0.0, border).astype(np.float32)


def mirrored_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Boxes [G, 4] of an image that was mirrored: x becomes width - x."""
    x1, y1, x2, y2 = boxes.T
    return np.stack([width - x2, y1, width - x1, y2], axis=1)


def resized(image: np.ndarray, size: Size) -> np.ndarray:
    """An image uint8 [h, w, 3] at another size."""
    return image if image.shape[:2] == size else pillow.resize(image, *size, "bilinear")


def resized_mask(mask: np.ndarray, size: Size) -> np.ndarray:
    """A mask uint8 [h, w] at another size. Every pixel keeps a class that was there."""
    from PIL import Image

    if mask.shape == size:
        return mask
    return np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))


def padded(array: np.ndarray, size: Size, value: int | np.ndarray = 0) -> np.ndarray:
    """An image or a mask with `value` on its right and below it: [H, W, ...]."""
    out = np.empty((*size, *array.shape[2:]), array.dtype)
    out[:] = value
    out[: array.shape[0], : array.shape[1]] = array
    return out


def cropped(
    image: np.ndarray, mask: np.ndarray, side: int, place: tuple[float, float], fill: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A square of an image and of its mask.

    Args:
        image: uint8 [h, w, 3]. Where it is smaller than the square, it is extended on the right and below.
        mask: uint8 [h, w].
        side: of the square.
        place: down and right, in [0, 1): 0 is the left upper corner.
        fill: uint8 [3], the pixels outside of the image. Those of the mask are 255.

    Returns:
        uint8 [side, side, 3] and uint8 [side, side].
    """
    top, left = (
        int(share * (max(length - side, 0) + 1)) for share, length in zip(place, image.shape[:2], strict=True)
    )
    part = np.s_[top : top + side, left : left + side]
    return padded(image[part], (side, side), fill), padded(mask[part], (side, side), IGNORED)
