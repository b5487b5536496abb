"""The 15 corruptions of ImageNet-C and CIFAR-10-C, at five severities, made from clean images.

Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations,
ICLR 2019 (arXiv:1903.12261).

The operations and their constants are those of the released code (hendrycks/robustness at 8190fe3), in
float64 NumPy: `corruptions.py` for images of ImageNet's size, `make_cifar_c.py` for small ones. Every random
number is a function of (corruption, severity, id of the image), so that all networks see the same images. The
published files were drawn from another stream: results on ours are "regenerated", not ImageNet-C.

What is kept of the released code although it may surprise:

- values are cut to whole numbers, not rounded, before they are stored;
- ImageNet-C is stored as JPEG of quality 85; CIFAR-10-C is not compressed;
- glass blur copies pixels instead of exchanging them: its "swap" works on views of one array;
- offsets of glass blur are drawn from -d to d-1;
- lengths of the elastic transform are multiples of 244 where the images have 224 pixels;
- motion blur is one-sided.

What differs ([X], sizes in docs/robustness.md):

- frost lays photographs of frost over the image. They are not here: a random texture with the brightness,
  colour and spectrum of the five photographs takes their place (`corruption_textures.frost`);
- images of other sizes than 32 and 224 take the constants of one of the two, in pixels, but for the elastic
  transform, whose lengths grow with the image;
- grey images have one channel of noise instead of three.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from ssljax.data import corruption_textures as textures

Draws = Sequence[np.random.Generator]  # one per image

SEVERITIES = (1, 2, 3, 4, 5)
SMALL = 96  # images below this many pixels take the constants of CIFAR-10-C, others those of ImageNet-C
STORED_QUALITY = 85  # of ImageNet-C's JPEG files
CHUNK = 2**16  # the most numbers of an array that a thread works on: it stays in the cache

# The constants of severities 1 to 5, in the order of the operation's arguments.
IMAGENET: dict[str, tuple[Any, ...]] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": (60, 25, 12, 5, 3),
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    "snow": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    "fog": ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "elastic_transform": (  # in parts of 244/224 of the side
        (2, 0.7, 0.1),
        (2, 0.08, 0.2),
        (0.05, 0.01, 0.02),
        (0.07, 0.01, 0.02),
        (0.12, 0.01, 0.02),
    ),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
    "jpeg_compression": (25, 18, 15, 10, 7),
}
CIFAR: dict[str, tuple[Any, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic_transform": (  # in parts of the side
        (0, 0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    ),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": (80, 65, 58, 50, 40),
}
CORRUPTIONS = tuple(IMAGENET)


def corrupt(images: np.ndarray, index: np.ndarray, corruption: str, severity: int) -> np.ndarray:
    """Corrupt images as the benchmarks do.

    Args:
        images: uint8 [B, S, S, C], C = 1 or 3.
        index: int [B], the stable ids of the images, which choose the random numbers.
        corruption: a name in CORRUPTIONS.
        severity: 1 to 5.

    Returns:
        uint8 [B, S, S, C]. Each image depends on its own id alone, not on the batch.

    Raises:
        ValueError: the corruption or the severity is unknown, or the images are not square.
    """
    if corruption not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(
            f"corruption {corruption!r} at severity {severity} is unknown: use 1 to 5 of "
            f"{', '.join(CORRUPTIONS)}"
        )
    if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] not in (1, 3):
        raise ValueError(f"images {list(images.shape)}: expected square images uint8 [B, S, S, 1 or 3]")
    most = max(1, CHUNK // images[0].size) if len(images) else 1
    out = np.empty_like(images)

    def work(first: int) -> None:
        part = slice(first, first + most)
        draws = [generator(corruption, severity, int(i)) for i in index[part]]
        out[part] = stored(applied(images[part], corruption, severity, draws))

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(work, range(0, len(images), most)))
    return out


def generator(corruption: str, severity: int, index: int) -> np.random.Generator:
    """The random numbers of one corrupted image. Philox takes a key without hashing it."""
    return np.random.Generator(np.random.Philox(key=[8 * CORRUPTIONS.index(corruption) + severity, index]))


def constants(size: int, corruption: str, severity: int) -> tuple[Any, ...]:
    """The arguments of an operation for images of `size` pixels."""
    found = (CIFAR if size < SMALL else IMAGENET)[corruption][severity - 1]
    if corruption == "elastic_transform":
        side = size if size < SMALL else 244 * size / 224
        return tuple(side * part for part in found)
    return found if isinstance(found, tuple) else (found,)


def applied(images: np.ndarray, corruption: str, severity: int, draws: Draws) -> np.ndarray:
    """The corrupted images before they are stored: uint8 [B, S, S, C]. Arguments are those of `corrupt`."""
    arguments = constants(images.shape[1], corruption, severity)
    if corruption in ON_BYTES:
        return np.stack([ON_BYTES[corruption](image, *arguments) for image in images])
    changed = OPERATIONS[corruption](images / 255.0, draws, *arguments)
    return (np.clip(changed, 0.0, 1.0) * 255.0).astype(np.uint8)  # cut, not rounded


def stored(images: np.ndarray) -> np.ndarray:
    """What a reader of the benchmark's files sees: ImageNet-C's are JPEG, CIFAR-10-C's are arrays."""
    if images.shape[1] < SMALL:
        return images
    return np.stack([jpeg_compression(image, STORED_QUALITY) for image in images])


# ---------------------------------------------------------------------------------------------------- noise
# Operations take images float64 [B, S, S, C] in [0, 1] and return them before they are clipped.


def drawn(draws: Draws, draw: Callable[[np.random.Generator], np.ndarray]) -> np.ndarray:
    """One array per image, stacked."""
    return np.stack([draw(generator) for generator in draws])


def gaussian_noise(x: np.ndarray, draws: Draws, scale: float) -> np.ndarray:
    """Sensor noise."""
    return x + drawn(draws, lambda rng: rng.normal(size=x.shape[1:], scale=scale))


def shot_noise(x: np.ndarray, draws: Draws, photons: float) -> np.ndarray:
    """Poisson noise of a sensor that catches `photons` of white light."""
    return np.stack([rng.poisson(image * photons) for image, rng in zip(x, draws, strict=True)]) / photons


def impulse_noise(x: np.ndarray, draws: Draws, amount: float) -> np.ndarray:
    """Salt and pepper: this share of all values becomes 0 or 1, each channel on its own."""
    hit = drawn(draws, lambda rng: rng.random(x.shape[1:])) <= amount
    salt = drawn(draws, lambda rng: rng.random(x.shape[1:])) <= 0.5
    return np.where(hit, salt.astype(x.dtype), x)


# ----------------------------------------------------------------------------------------------------- blur


def defocus_blur(x: np.ndarray, draws: Draws, radius: float, alias: float) -> np.ndarray:
    """Out of focus: the mean over a disk whose edge is smoothed by a Gaussian of sigma `alias`."""
    del draws
    half = 8 if radius <= 8 else int(radius)
    steps = np.arange(-half, half + 1)
    disk = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(np.float64)
    disk = (disk / disk.sum())[None, :, :, None]
    smooth = textures.gaussian_blur(disk, alias, 1 if radius <= 8 else 2, "reflect")
    kernel = smooth[0, :, :, 0].astype(np.float32)

    size = x.shape[1]
    padded = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)), mode="reflect")
    shape = padded.shape[1:3]
    spectrum = np.fft.rfft2(padded, axes=(1, 2)) * np.fft.rfft2(kernel, s=shape)[:, :, None]
    # The disk is symmetric, so that a convolution is a correlation.
    whole = np.fft.irfft2(spectrum, s=shape, axes=(1, 2))
    return whole[:, 2 * half : 2 * half + size, 2 * half : 2 * half + size]


def glass_blur(x: np.ndarray, draws: Draws, sigma: float, reach: int, rounds: int) -> np.ndarray:
    """Frosted glass: blur, let every pixel take the place of a near one, blur again."""
    radius = int(4 * sigma + 0.5)  # as scikit-image
    blurred = (textures.gaussian_blur(x, sigma, radius, "edge") * 255.0).astype(np.uint8)
    size = x.shape[1]
    side = size - 2 * reach  # the pixels reach+1 ... size-reach, from the last to the first
    shape = (rounds, side, side, 2)
    moves = drawn(draws, lambda rng: rng.integers(-reach, reach, size=shape) if side > 0 else np.zeros(0))
    flat = blurred.reshape(len(x), size * size, -1)
    for turn in range(rounds if side > 0 else 0):
        source = textures.copied_from(moves[:, turn], size, reach)
        flat = np.take_along_axis(flat, source[:, :, None], axis=1)
    return textures.gaussian_blur(flat.reshape(x.shape) / 255.0, sigma, radius, "edge")


def motion_blur(x: np.ndarray, draws: Draws, radius: int, sigma: float) -> np.ndarray:
    """A moving camera, in a direction of -45 to 45 degrees."""
    moved = [
        textures.motion_blur(image, radius, sigma, rng.uniform(-45, 45))
        for image, rng in zip(x, draws, strict=True)
    ]
    return np.stack(moved)


def zoom_blur(x: np.ndarray, draws: Draws, stop: float, step: float) -> np.ndarray:
    """A camera that moves towards the scene: the mean of the image and of ever closer views of it."""
    del draws
    factors = np.arange(1.0, stop, step)
    total = x.copy()
    for factor in factors:
        total += textures.clipped_zoom(x, factor)
    return total / (len(factors) + 1)


# -------------------------------------------------------------------------------------------------- weather


def snow(
    x: np.ndarray,
    draws: Draws,
    mean: float,
    scale: float,
    zoom: float,
    least: float,
    radius: int,
    sigma: float,
    keep: float,
) -> np.ndarray:
    """Flakes that fall in one direction, over a whitened image."""
    size = x.shape[1]
    layers = drawn(draws, lambda rng: rng.normal(size=(size, size), loc=mean, scale=scale))
    layers = textures.clipped_zoom(layers[..., None], zoom)
    layers = np.floor(np.clip(np.where(layers < least, 0.0, layers), 0.0, 1.0) * 255.0) / 255.0
    flakes = np.stack(
        [
            textures.motion_blur(layer, radius, sigma, rng.uniform(-135, -45))
            for layer, rng in zip(layers, draws, strict=True)
        ]
    )
    grey = x @ np.array([0.299, 0.587, 0.114]) if x.shape[3] == 3 else x[..., 0]
    white = keep * x + (1 - keep) * np.maximum(x, grey[..., None] * 1.5 + 0.5)
    return white + flakes + flakes[:, ::-1, ::-1]


def frost(x: np.ndarray, draws: Draws, keep: float, cover: float) -> np.ndarray:
    """Frost on the lens; see `textures.frost` for what stands for the photographs of it."""
    layers = drawn(draws, lambda rng: textures.frost(rng, x.shape[1], x.shape[3]))
    return keep * x + cover * layers


def fog(x: np.ndarray, draws: Draws, amount: float, decay: float) -> np.ndarray:
    """Clouds of a fractal."""
    size = x.shape[1]
    clouds = textures.plasma(draws, 1 << (size - 1).bit_length(), decay)[:, :size, :size, None]
    brightest = x.max(axis=(1, 2, 3), keepdims=True)
    return (x + amount * clouds) * brightest / (brightest + amount)


def brightness(x: np.ndarray, draws: Draws, amount: float) -> np.ndarray:
    """A higher value in HSV; hue and saturation stay."""
    del draws
    value = x.max(axis=3, keepdims=True)
    share = (value - x) / np.where(value > 0, value, 1.0)
    return np.clip(value + amount, 0.0, 1.0) * (1.0 - share)


# -------------------------------------------------------------------------------------------------- digital


def contrast(x: np.ndarray, draws: Draws, factor: float) -> np.ndarray:
    """Less contrast: towards the mean of each channel."""
    del draws
    mean = x.mean(axis=(1, 2), keepdims=True)
    return (x - mean) * factor + mean


def elastic_transform(x: np.ndarray, draws: Draws, stretch: float, sigma: float, shift: float) -> np.ndarray:
    """An affine map that moves three points, then a smooth field of displacements."""
    size = x.shape[1]
    moved = np.stack(
        [
            textures.sampled(image, *textures.affine_places(rng, size, shift), mode="reflect")
            for image, rng in zip(x, draws, strict=True)
        ]
    )
    fields = drawn(draws, lambda rng: np.moveaxis(rng.uniform(-1, 1, size=(2, size, size)), 0, 2))
    fields = stretch * textures.gaussian_blur(fields, sigma, int(3 * sigma + 0.5), "symmetric")
    rows, columns = np.indices((size, size))
    return np.stack(
        [
            textures.sampled(image, rows + field[..., 1], columns + field[..., 0], mode="symmetric")
            for image, field in zip(moved, fields, strict=True)
        ]
    )


def pixelate(image: np.ndarray, factor: float) -> np.ndarray:
    """Fewer pixels: uint8 [S, S, C], shrunk and enlarged by means over boxes."""
    size = image.shape[0]
    small = max(1, int(size * factor))
    picture = _picture(image).resize((small, small), Image.Resampling.BOX)
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX)).reshape(image.shape)


def jpeg_compression(image: np.ndarray, quality: int) -> np.ndarray:
    """What is left of an image, uint8 [S, S, C], in a JPEG file of this quality."""
    file = io.BytesIO()
    _picture(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file, formats=("JPEG",))).reshape(image.shape)


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
}
ON_BYTES: dict[str, Callable[..., np.ndarray]] = {
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
}
