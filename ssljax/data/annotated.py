"""Batches of images with boxes or masks, at sizes of their own.

Boxes, training: the shorter side is one of `annotated.short_sides` at random, the longer at most
`annotated.long_side`; then a flip. Evaluation: `annotated.test_short_side` and `annotated.test_long_side`, no
flip. An image lies in the left upper corner of its batch, which is zero beyond it. Batches have one size for
landscapes and one for portraits, so a step is compiled twice; in squares (equal limits) once.

Masks, training: a random factor between `annotated.scales`, a square of `annotated.crop` pixels, a flip.
Where the image is smaller than the square, there are the mean colour and the class 255. Evaluation: whole
images at their own size, each in a square of `annotated.test_side` pixels. Images whose longer side exceeds
`annotated.long_side` are shrunk to that before all else, and measured so.

Every draw is a function of (seed, pass, id of the image), and a batch one of (seed, step), see
`sampler.oriented`. So a run goes on as if it had not stopped, and any number of hosts gets the same stream.
Colours stay as they are: the network normalises them.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssljax.data import annotated_geometry as geometry
from ssljax.data import decode, recipes, sampler
from ssljax.data.annotate import IGNORED
from ssljax.data.source import Source

Example = dict[str, np.ndarray]
Batches = Generator[dict[str, np.ndarray], None, None]

PREFETCH = 2  # batches made ahead of the consumer
THREADS = min(os.cpu_count() or 1, 16)


def train_batches(
    source: Source, config: ConfigDict, start_step: int = 0, process_index: int = 0, process_count: int = 1
) -> Batches:
    """Yield this process's share of every global batch, from `start_step` on, without end.

    Args:
        source: the train split, with boxes or masks.
        config: reads `seed`, `batch_size` (global), `data`, `augment` and `annotated`.
        start_step, process_index, process_count: as for `loader.train_batches`.

    Returns:
        Dicts of the arrays of `types.Batch`, without `label`.

    Raises:
        ValueError: the processes do not divide the batch, a setting of `augment` is not made for annotated
            images, an image or a mask is unreadable or has another size than its record says.
    """
    check(config)
    batch_size = config.batch_size
    if batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size} does not divide over {process_count} processes: choose a multiple"
        )
    share = batch_size // process_count
    own = slice(process_index * share, (process_index + 1) * share)
    portrait = in_portrait_bucket(source, config, training=True)

    def rows(step: int) -> list[tuple[int, int]]:
        positions, passes = sampler.oriented(config.seed, step, portrait, batch_size=batch_size)
        return list(zip(positions[own].tolist(), passes[own].tolist(), strict=True))

    def example(position: int, number: int) -> Example:
        return training_example(source, position, config, number)

    return _made(example, (rows(step) for step in itertools.count(start_step)))


def eval_batches(source: Source, config: ConfigDict, *, batch_size: int) -> Iterator[tuple[Example, int]]:
    """Yield every image exactly once: landscapes in their order, then portraits.

    Args:
        source: any split with boxes or masks.
        config: as for `train_batches`.
        batch_size: number of rows of every batch.

    Returns:
        Batches as of `train_batches`, and how many of their rows count. The others repeat the last.
    """
    check(config)
    portrait = in_portrait_bucket(source, config, training=False)
    groups = []
    for kind in (False, True):
        positions = np.flatnonzero(portrait == kind)
        groups += [positions[i : i + batch_size] for i in range(0, len(positions), batch_size)]

    def example(position: int) -> Example:
        return _for_boxes(source, position, config) if boxes else _whole(source, position, config)

    boxes = config.data.annotations == "boxes"
    for batch, group in zip(
        _made(example, ([(i,) for i in g.tolist()] for g in groups)), groups, strict=True
    ):
        repeats = np.minimum(np.arange(batch_size), len(group) - 1)
        yield {name: values[repeats] for name, values in batch.items()}, len(group)


def training_example(source: Source, position: int, config: ConfigDict, number: int) -> Example:
    """One row of a training batch: the image at a position, as a pass sees it."""
    draw = draws(config.seed, number, int(source.index[position]))
    if config.data.annotations == "boxes":
        return _for_boxes(source, position, config, draw)
    return _cropped(source, position, config, draw)


def shapes(config: ConfigDict, objects: int) -> list[dict[str, tuple[tuple[int, ...], type]]]:
    """The shape and the dtype of every array of a training batch, without its first axis.

    Args:
        config: as for `train_batches`.
        objects: G, the largest number of objects in an image.

    Returns:
        One dict for each size of batch: landscapes first.
    """
    numbers: dict[str, tuple[tuple[int, ...], type]] = {
        "size": ((2,), np.int32),
        "original": ((2,), np.int32),
        "index": ((), np.int32),
    }
    if config.data.annotations == "masks":
        side = config.annotated.crop
        return [numbers | {"image": ((side, side, 3), np.uint8), "mask": ((side, side), np.uint8)}]
    found = {
        "boxes": ((objects, 4), np.float32),
        "classes": ((objects,), np.int32),
        "difficult": ((objects,), np.bool_),
    }
    sizes = dict.fromkeys(bucket_of(config, portrait, training=True) for portrait in (False, True))
    return [numbers | found | {"image": ((*size, 3), np.uint8)} for size in sizes]


def bucket_of(config: ConfigDict, portrait: bool, *, training: bool) -> geometry.Size:
    """The height and width of the batches for landscapes or portraits."""
    sizes = config.annotated
    if config.data.annotations == "masks":
        side = sizes.crop if training else sizes.test_side
        return side, side
    short = max(sizes.short_sides) if training else sizes.test_short_side
    return geometry.bucket(short, longest(config, training=training), portrait)


def longest(config: ConfigDict, *, training: bool) -> int:
    """The most that the longer side of an image with boxes has, in pixels."""
    sizes = config.annotated
    return sizes.long_side if training else sizes.test_long_side or sizes.long_side


def in_portrait_bucket(source: Source, config: ConfigDict, *, training: bool) -> np.ndarray:
    """Which images go into batches for portraits, bool [N]: none if both kinds have one size."""
    sizes = [bucket_of(config, portrait, training=training) for portrait in (False, True)]
    if sizes[0] == sizes[1]:
        return np.zeros(len(source), bool)
    return geometry.is_portrait(source.targets["size"])


def draws(seed: int, number: int, index: int) -> np.ndarray:
    """Four numbers in [0, 1) for an image in a pass: float64 [4]. Raw words, for the reason of `sampler`."""
    key = np.array([seed, number], np.uint64)
    words = np.random.Philox(key=key, counter=np.array([0, index + 1, 0, 0], np.uint64)).random_raw(4)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def mirrored(config: ConfigDict, draw: np.ndarray) -> bool:
    """Whether an image with these `draws` is mirrored."""
    return bool(config.augment.flip and draw[1] < 0.5)


def check(config: ConfigDict) -> None:
    """Refuse settings that annotated images do not follow, with a ValueError that names one."""
    fixed = {
        "data.channels": 3,
        "data.repeats": 1,
        "augment.crop": "none",
        "augment.resize": "pillow",
        "augment.interpolation": "bilinear",
        "augment.jitter_probability": 0.0,
        "augment.grayscale_probability": 0.0,
        "augment.blur_probability": 0.0,
        "augment.solarize_probability": 0.0,
        "augment.erasing_probability": 0.0,
        "augment.policy": "none",
    }
    for name, wanted in fixed.items():
        section, _, key = name.partition(".")
        if config[section][key] != wanted:
            raise ValueError(
                f"config.{name}={config[section][key]!r}: images with {config.data.annotations} are resized "
                f"by Pillow and mirrored, and nothing else, so it must be {wanted!r}; `config.annotated` in "
                f"ssljax/config sets all of this for config.data.annotations={config.data.annotations}"
            )
    count = sum(view.count for view in recipes.resolved(config))
    if count != 1:
        raise ValueError(
            f"config.views has {count} views, and an image with {config.data.annotations} is seen once: "
            "give it one view"
        )


def _for_boxes(source: Source, position: int, config: ConfigDict, draw: np.ndarray | None = None) -> Example:
    """An image that is resized by its shorter side, in its bucket; without `draw` as evaluation sees it."""
    image = pixels(source, position)
    original = image.shape[:2]
    short, mirror = config.annotated.test_short_side, False
    if draw is not None:
        sides = config.annotated.short_sides
        short = sides[int(draw[0] * len(sides))]
        mirror = mirrored(config, draw)
    size = geometry.shortest_edge(original, short, longest(config, training=draw is not None))
    image = geometry.resized(image, size)
    classes = source.targets["classes"][position]
    boxes = geometry.resized_boxes(source.targets["boxes"][position], original, size)
    if mirror:
        image = image[:, ::-1]
        boxes = geometry.mirrored_boxes(boxes, size[1])
    boxes = np.where(classes[:, None] >= 0, boxes, np.float32(0.0))
    portrait = bool(geometry.is_portrait(np.array([original]))[0])
    return {
        "image": geometry.padded(image, bucket_of(config, portrait, training=draw is not None)),
        "boxes": boxes,
        "classes": classes,
        "difficult": source.targets["difficult"][position],
    } | _numbers(source, position, size, original)


def _cropped(source: Source, position: int, config: ConfigDict, draw: np.ndarray) -> Example:
    """A random square of a randomly scaled image, and its mask."""
    image, mask, original = _shrunk(source, position, config)
    low, high = config.annotated.scales
    scale = low + draw[0] * (high - low)
    size = (int(image.shape[0] * scale + 0.5), int(image.shape[1] * scale + 0.5))
    side = config.annotated.crop
    fill = np.rint(255.0 * np.array(config.augment.mean)).astype(np.uint8)
    image, mask = geometry.cropped(
        geometry.resized(image, size), geometry.resized_mask(mask, size), side, (draw[2], draw[3]), fill
    )
    if mirrored(config, draw):
        image, mask = image[:, ::-1], mask[:, ::-1]
    return {"image": image, "mask": mask} | _numbers(source, position, (side, side), original)


def _whole(source: Source, position: int, config: ConfigDict) -> Example:
    """A whole image at its own size, or shrunk to `annotated.long_side`, and its mask."""
    image, mask, original = _shrunk(source, position, config)
    size = image.shape[:2]
    side = config.annotated.test_side
    if max(size) > side:
        raise ValueError(
            f"{source.describe(position)} is {size[1]} wide and {size[0]} high, and whole images lie in "
            f"squares of annotated.test_side={side} pixels: set --config.annotated.test_side={max(size)}, or "
            f"shrink all images to that with --config.annotated.long_side={side}"
        )
    square = (side, side)
    return {
        "image": geometry.padded(image, square),
        "mask": geometry.padded(mask, square, IGNORED),
    } | _numbers(source, position, size, original)


def _shrunk(
    source: Source, position: int, config: ConfigDict
) -> tuple[np.ndarray, np.ndarray, geometry.Size]:
    """An image whose longer side is at most `annotated.long_side`, its mask, and its size before."""
    image, mask = with_mask(source, position)
    height, width = image.shape[:2]
    factor = config.annotated.long_side / max(height, width)
    if factor >= 1.0:
        return image, mask, (height, width)
    size = (max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1))
    return geometry.resized(image, size), geometry.resized_mask(mask, size), (height, width)


def _numbers(source: Source, position: int, size: geometry.Size, original: geometry.Size) -> Example:
    return {
        "size": np.array(size, np.int32),
        "original": np.array(original, np.int32),
        "index": source.index[position],
    }


def pixels(source: Source, position: int) -> np.ndarray:
    """The stored image at a position, uint8 [H, W, 3].

    Raises:
        ValueError: it is unreadable, or has another size than its record says.
    """
    name = source.describe(position)
    try:
        image = np.asarray(decode.opened(source.read([position])[0], 3))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{name} cannot be read as an image ({error}): replace or delete it, or {source.how_to_skip} to "
            "go on without it"
        ) from error
    if "size" in source.targets and image.shape[:2] != tuple(source.targets["size"][position]):
        stated = source.targets["size"][position]
        raise ValueError(
            f"{name} is {image.shape[1]} wide and {image.shape[0]} high, and its record says {stated[1]} and "
            f"{stated[0]}, so its boxes are of another image: unpack images and records of one version again"
        )
    return image


def with_mask(source: Source, position: int) -> tuple[np.ndarray, np.ndarray]:
    """The stored image at a position, uint8 [H, W, 3], and its mask, uint8 [H, W].

    Raises:
        ValueError: one of them is unreadable, or their sizes differ.
    """
    assert source.mask_of is not None, "a source without masks is never asked for one"
    image = pixels(source, position)
    mask = source.mask_of(int(source.index[position]))
    if mask.shape != image.shape[:2]:
        raise ValueError(
            f"the mask of {source.describe(position)} is {mask.shape[1]} wide and {mask.shape[0]} high, and "
            f"the image {image.shape[1]} and {image.shape[0]}: unpack images and masks of one version again"
        )
    return image, mask


def _made(example: Callable[..., Example], wanted: Iterable[list[tuple[Any, ...]]]) -> Batches:
    """Make the examples of batches in threads, PREFETCH batches ahead.

    Args:
        example: makes one, from the arguments in `wanted`.
        wanted: for each batch, the arguments of its examples.
    """
    left = iter(wanted)
    ahead: deque[list[Future[Example]]] = deque()
    pool = ThreadPoolExecutor(THREADS)

    def begin(count: int) -> None:
        for arguments in itertools.islice(left, count):
            ahead.append([pool.submit(example, *each) for each in arguments])

    try:
        begin(PREFETCH)
        while ahead:
            begin(1)
            rows = [future.result() for future in ahead.popleft()]
            yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    finally:
        for future in itertools.chain.from_iterable(ahead):
            future.cancel()
        pool.shutdown()
