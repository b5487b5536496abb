"""`digits` with boxes or masks: small scenes of one to three of scikit-learn's digits, to try a method on.

A scene has three fields of 16 x 32 pixels in a row, or of 32 x 16 in a column. In each of them lies a digit
of 10 to 16 pixels at a random place; the second and the third may be missing. There are 500 scenes to train
on and 99 to test on, and no digit is in two of them. Behind them is noise, because two places of a plain
ground could not be told apart. The box of a digit reaches around its ink, the pixels above half the
brightness, which also have its class in the mask.
"""

from __future__ import annotations

import io

import numpy as np
from ml_collections import ConfigDict

from ssljax.data import builtin
from ssljax.data.annotate import BACKGROUND, Object, packed
from ssljax.data.source import Source, digest

SHORT, LONG, FIELDS = 32, 48, 3
SMALLEST, LARGEST = 10, 16  # sides of a digit
INK = 128
NOISE = 64  # the noise is darker than this
NAMES = tuple(str(digit) for digit in range(10))


def load(data: ConfigDict, split: str) -> Source:
    """Load one split of the scenes."""
    plain = data.copy_and_resolve_references().unlock()
    plain.update(image_size=8, channels=1)
    digits = builtin.digits(plain, split)
    assert digits.images is not None
    count = len(digits) // FIELDS
    made = [
        scene(
            digits.images[FIELDS * i : FIELDS * (i + 1), :, :, 0],
            digits.labels[FIELDS * i : FIELDS * (i + 1)],
            words(i, split),
            portrait=i % 2 == 1,
        )
        for i in range(count)
    ]
    boxes = data.annotations == "boxes"
    targets = packed([objects for _, _, objects in made], NAMES) if boxes else {}
    if boxes:
        targets["size"] = np.array([pixels.shape for pixels, _, _ in made], np.int32)
    return Source(
        name=digits.name,
        split=split,
        labels=np.full(count, -1, np.int32),
        index=np.arange(count, dtype=np.int32),
        class_names=NAMES if boxes else (BACKGROUND, *NAMES),
        checksum=digest(*(pixels.tobytes() + mask.tobytes() for pixels, mask, _ in made)),
        images=None,
        encoded=lambda ids: [_png(made[i][0]) for i in ids],
        name_of=lambda i: f"scene {i} of {digits.name}, {split}",
        targets=targets,
        mask_of=None if boxes else lambda i: made[i][1],
    )


def words(number: int, split: str) -> np.ndarray:
    """The random words of a scene, float64 [12 + 32 * 48] in [0, 1): four of each field, and the noise."""
    key = np.array([number, split == "test"], np.uint64)
    counter = np.zeros(4, np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw(4 * FIELDS + SHORT * LONG)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def scene(
    digits: np.ndarray, labels: np.ndarray, words: np.ndarray, *, portrait: bool
) -> tuple[np.ndarray, np.ndarray, list[Object]]:
    """Put digits into a scene.

    Args:
        digits: uint8 [3, 8, 8].
        labels: int [3].
        words: float [12 + 32 * 48] in [0, 1).
        portrait: the fields lie in a column.

    Returns:
        The scene uint8 [H, W], its mask uint8 [H, W], and the objects in it.
    """
    from PIL import Image

    pixels = (words[4 * FIELDS :].reshape(SHORT, LONG) * NOISE).astype(np.uint8)
    if portrait:
        pixels = pixels.T.copy()
    mask = np.zeros_like(pixels)
    objects = []
    for field, (digit, label) in enumerate(zip(digits, labels.tolist(), strict=True)):
        there, side, short, long = words[4 * field : 4 * field + 4]
        if field and there < 1 / 3:
            continue
        side = SMALLEST + int(side * (LARGEST - SMALLEST + 1))
        across = int(short * (SHORT - side + 1))
        along = field * LONG // FIELDS + int(long * (LONG // FIELDS - side + 1))
        y, x = (along, across) if portrait else (across, along)
        large = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BILINEAR))
        place = (slice(y, y + side), slice(x, x + side))
        pixels[place] = np.maximum(pixels[place], large)
        ink = large >= INK
        mask[place][ink] = 1 + label
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        corners = x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1
        x1, y1, x2, y2 = (float(corner) for corner in corners)
        objects.append(Object(NAMES[label], (x1, y1, x2, y2), difficult=False, area=float(ink.sum())))
    return pixels, mask, objects


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
