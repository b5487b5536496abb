"""The pieces of the corruptions: blurs, zooms, places to read pixels at, fog and frost. All in NumPy.

Each does what the library behind the released code does (scipy.ndimage, OpenCV, ImageMagick), up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# What stands for the five photographs of frost: the brightness of each at Z standard deviations from its
# mean, its colour (what red, green and blue add to the brightness), and the slope of its amplitude spectrum.
# Measured on frost1.png ... frost5.jpg of the released code. The second and the third are the same picture.
Z = (-4.0, -1.645, -0.674, 0.0, 0.674, 1.645, 4.0)
BRIGHTNESS = (
    (81, 102, 116, 128, 141, 163, 220),
    (56, 165, 193, 208, 220, 235, 254),
    (56, 165, 193, 208, 220, 235, 254),
    (22, 102, 132, 150, 167, 196, 254),
    (23, 58, 89, 117, 149, 202, 255),
)
COLOUR = ((-55, 20, 38), (-4, 1, 10), (-4, 1, 10), (-12, 3, 15), (-10, 2, 14))
SLOPE = (0.72, 0.86, 0.86, 0.58, 0.91)


def gaussian_blur(x: np.ndarray, sigma: float, radius: int, mode: str) -> np.ndarray:
    """Blur images along both axes.

    Args:
        x: float64 [B, S, S, C].
        sigma: standard deviation in pixels; 0 changes nothing.
        radius: the kernel has 2 radius + 1 weights, which sum to one.
        mode: what lies beyond the border: "edge", "reflect" (without the border pixel) or "symmetric", as in
            `np.pad`.
    """
    if sigma <= 0 or radius <= 0:
        return x
    size = x.shape[1]
    weights = np.exp(-0.5 / sigma**2 * np.arange(-radius, radius + 1) ** 2)
    weights /= weights.sum()
    for axis in (1, 2):
        beyond = [(0, 0)] * 4
        beyond[axis] = (radius, radius)
        padded = np.moveaxis(np.pad(x, beyond, mode=mode), axis, 0)  # type: ignore[call-overload]
        total = np.zeros_like(padded[:size])
        for tap, weight in enumerate(weights):
            total += weight * padded[tap : tap + size]
        x = np.moveaxis(total, 0, axis)
    return x


def clipped_zoom(x: np.ndarray, factor: float) -> np.ndarray:
    """Enlarge the centre of images [B, S, S, C] to the whole, by linear interpolation between corners."""
    size = x.shape[1]
    crop = math.ceil(size / factor)
    top = (size - crop) // 2
    enlarged = round(crop * factor)
    trim = (enlarged - size) // 2
    place = (np.arange(size) + trim) * ((crop - 1) / max(1, enlarged - 1))
    low = np.minimum(place.astype(int), crop - 1)
    high = np.minimum(low + 1, crop - 1)
    share = (place - low)[:, None]
    rows = x[:, top + low] * (1 - share[:, None]) + x[:, top + high] * share[:, None]
    return rows[:, :, top + low] * (1 - share) + rows[:, :, top + high] * share


def motion_blur(image: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """ImageMagick's motion blur: one half of a Gaussian along a line, pixels taken whole.

    Args:
        image: float64 [S, S, C] in [0, 1].
        radius: the line has 2 radius + 1 pixels.
        sigma: standard deviation in pixels.
        angle: of the line, in degrees.

    Returns:
        Like `image`, in whole grey levels: rounded to 16 bits, then cut to 8, as in the PNG it is written to.
    """
    size = image.shape[0]
    width = 2 * radius + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    down = math.sin(math.radians(angle))
    across = math.cos(math.radians(angle))
    padded = np.pad(image, ((width, width), (width, width), (0, 0)), mode="edge")
    out = np.zeros_like(image)
    for i, weight in enumerate(weights):
        row = width + math.ceil(i * down - 0.5)
        column = width + math.ceil(i * across - 0.5)
        out += weight * padded[row : row + size, column : column + size]
    return np.floor(np.rint(out * 65535.0) / 257.0) / 255.0


def copied_from(moves: np.ndarray, size: int, reach: int) -> np.ndarray:
    """Where each pixel comes from when pixels are overwritten one after the other.

    Rows size-reach ... reach+1 are worked through from the last to the first, and so are their columns. Each
    pixel takes the value that its neighbour has at that time: the old one, or the new one if the neighbour
    came earlier.

    Args:
        moves: int [B, N, N, 2] with N = size - 2 reach: (across, down), in the order of the work.
        size: S.
        reach: the longest move.

    Returns:
        int [B, S*S], positions in the flattened image as it was.
    """
    pixels = size * size
    worked = size - reach - np.arange(moves.shape[1])
    here = worked[:, None] * size + worked
    there = (worked[:, None] + moves[..., 1]) * size + (worked + moves[..., 0])
    inside = np.zeros((size, size), bool)
    inside[np.ix_(worked, worked)] = True

    # Pixel p has two values: node p is the new one, node pixels + p the old one.
    earlier = inside.ravel()[there] & (there > here)
    after = np.tile(np.arange(2 * pixels), (len(moves), 1))
    after[:, :pixels] += pixels
    after[:, here.ravel()] = np.where(earlier, there, there + pixels).reshape(len(moves), -1)
    while (after[:, :pixels] < pixels).any():
        after = np.take_along_axis(after, after, axis=1)
    return after[:, :pixels] - pixels


def affine_places(rng: np.random.Generator, size: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel of an affine map reads: rows and columns, float64 [S, S].

    Three points of a square in the middle are moved by up to `shift` pixels.
    """
    centre, arm = size // 2, size // 3
    points = np.array(
        [[centre + arm, centre + arm], [centre + arm, centre - arm], [centre - arm, centre - arm]], np.float64
    )
    moved = points + rng.uniform(-shift, shift, size=points.shape).astype(np.float32)
    ones = np.ones((3, 1))
    backwards = np.linalg.solve(np.hstack([moved, ones]), points)  # from moved (x, y, 1) to (x, y)
    rows, columns = np.indices((size, size))
    x = columns * backwards[0, 0] + rows * backwards[1, 0] + backwards[2, 0]
    y = columns * backwards[0, 1] + rows * backwards[1, 1] + backwards[2, 1]
    return y, x


def sampled(image: np.ndarray, rows: np.ndarray, columns: np.ndarray, mode: str) -> np.ndarray:
    """Read an image [S, S, C] between its pixels by linear interpolation.

    Args:
        image: float64 [S, S, C].
        rows, columns: float64 [S, S], the places to read.
        mode: what lies beyond the border: "reflect" or "symmetric", as in `np.pad`.
    """
    size = image.shape[0]
    top = np.floor(rows).astype(int)
    left = np.floor(columns).astype(int)
    down = (rows - top)[..., None]
    across = (columns - left)[..., None]
    above = _mirrored(top, size, mode)
    below = _mirrored(top + 1, size, mode)
    before = _mirrored(left, size, mode)
    behind = _mirrored(left + 1, size, mode)
    upper = image[above, before] * (1 - across) + image[above, behind] * across
    lower = image[below, before] * (1 - across) + image[below, behind] * across
    return upper * (1 - down) + lower * down


def _mirrored(place: np.ndarray, size: int, mode: str) -> np.ndarray:
    """Fold positions beyond the border back into 0..size-1."""
    if mode == "symmetric":
        folded = place % (2 * size)
        return np.minimum(folded, 2 * size - 1 - folded)
    folded = place % (2 * size - 2)
    return np.minimum(folded, 2 * size - 2 - folded)


def plasma(draws: Sequence[np.random.Generator], size: int, decay: float) -> np.ndarray:
    """Clouds by the diamond-square algorithm on a torus.

    Args:
        draws: one generator per image.
        size: S, a power of two.
        decay: by how much the disturbance shrinks from one scale to the next.

    Returns:
        float64 [B, S, S] from 0 to 1.
    """
    clouds = np.zeros((len(draws), size, size))
    step = size
    amplitude = 100.0

    def disturbed(total: np.ndarray) -> np.ndarray:
        noise = [rng.uniform(-amplitude, amplitude, total.shape[1:]) for rng in draws]
        return total / 4 + amplitude * np.stack(noise)

    while step >= 2:
        half = step // 2
        corners = clouds[:, ::step, ::step]
        rows = corners + np.roll(corners, -1, axis=1)
        clouds[:, half::step, half::step] = disturbed(rows + np.roll(rows, -1, axis=2))
        middle = clouds[:, half::step, half::step]
        beside = corners + np.roll(corners, -1, axis=2)
        clouds[:, ::step, half::step] = disturbed(middle + np.roll(middle, 1, axis=1) + beside)
        below = corners + np.roll(corners, -1, axis=1)
        clouds[:, half::step, ::step] = disturbed(middle + np.roll(middle, 1, axis=2) + below)
        step = half
        amplitude /= decay

    clouds -= clouds.min(axis=(1, 2), keepdims=True)
    return clouds / clouds.max(axis=(1, 2), keepdims=True)


def frost(rng: np.random.Generator, size: int, channels: int) -> np.ndarray:
    """A texture with the brightness, colour and spectrum of one of five photographs of frost.

    It has none of their crystals: the phases of the spectrum are random.

    Returns:
        float64 [size, size, channels] in [0, 1].
    """
    which = int(rng.integers(len(SLOPE)))
    side = 2 * size  # twice the size, so that opposite borders differ
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = np.inf
    amplitude = frequency ** -SLOPE[which]
    white = rng.normal(size=(side, side))
    field = np.fft.irfft2(np.fft.rfft2(white) * amplitude, s=(side, side))
    levels = np.interp(field[:size, :size] / field.std(), Z, BRIGHTNESS[which])
    if channels == 1:
        return levels[..., None] / 255.0
    return np.clip(levels[..., None] + np.array(COLOUR[which]), 0.0, 255.0) / 255.0
