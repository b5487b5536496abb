"""Batches of a source: endless and resumable for training, every example exactly once for evaluation.

A training batch is a pure function of (source, config, step, balance). With batch size B and spe = n // B
steps per epoch, step s takes the rows

    [(s % spe) B, (s % spe + 1) B)

of the order `repeated(seed, s // spe, n, repeats)`, or of `balanced(seed, s // spe, balance)`. With a ratio
of unlabelled examples to labelled ones the batch is `mixed(seed, s, ...)` instead. Process p of P takes its
contiguous 1/P of every batch. So resuming costs nothing, and the stream is the same for any number of
processes, threads and devices.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssljax.data import annotated, geometry, pillow, policies, reading, recipes, sampler
from ssljax.data.source import Source

if TYPE_CHECKING:
    import tensorflow as tf

Batches = Generator[dict[str, np.ndarray], None, None]

PREFETCH = 2  # batches made ahead of the consumer


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Return n // batch_size. The last, incomplete batch of an epoch is dropped.

    Raises:
        ValueError: there are fewer examples than one batch holds.
    """
    if n < batch_size:
        raise ValueError(
            f"{n} examples do not fill one batch of {batch_size}: set batch_size to at most {n}, or use more "
            "data (data.train_per_class, data.labels_per_class, data.label_fraction)"
        )
    return n // batch_size


def train_batches(
    source: Source,
    config: ConfigDict,
    *,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    balance: np.ndarray | None = None,
    ratio: int = 0,
) -> Batches:
    """Yield this process's share of every global batch, from `start_step` on, without end.

    Args:
        source: the train split.
        config: reads `seed`, `batch_size` (global), `data`, `augment` and `views`.
        start_step: the first step to yield. The stream is the one that an uninterrupted run would see.
        process_index: which share to yield.
        process_count: number of shares.
        balance: int [N], one value per position. Every epoch draws evenly from these values, see
            `sampler.balanced`. None: every example once per epoch. With a ratio: how often a pass takes each
            unlabelled example.
        ratio: unlabelled examples for each labelled one, see `sampler.mixed`; 0: all are drawn alike.

    Returns:
        Dicts of numpy arrays, with b = batch_size / process_count:
        image: uint8 [b, H, W, C] if data.crop_on is "device"; the arrays of `recipes.host_shapes` if "host".
        label: int32 [b].
        index: int32 [b].
        labels: int8 [b, classes], only of a source with several labels per image, see `voc`.
        copy: int32 [b], only with data.repeats > 1 or a balance: how many times the image came before in this
        epoch, with a ratio in this batch. `views.make` uses it.
        Images with annotations have the fields of `types.Batch` instead, see `annotated.train_batches`.

    Raises:
        ValueError: there are fewer examples than one batch holds, the processes do not divide the batch, a
            policy cannot be applied, or an image is unreadable (the message names it).
    """
    if config.data.annotations:
        return annotated.train_batches(source, config, start_step, process_index, process_count)
    policies.check(config)
    n = len(source)
    batch_size = config.batch_size
    repeats = config.data.repeats
    spe = steps_per_epoch(n, batch_size)
    _check(source, config, process_count, balance)
    share = batch_size // process_count
    if ratio:
        return _mixed(
            source,
            config,
            balance,
            ratio,
            start_step,
            slice(process_index * share, (process_index + 1) * share),
        )

    @functools.lru_cache(maxsize=2)
    def epoch_order(epoch: int) -> np.ndarray:
        if balance is None:
            return sampler.repeated(config.seed, epoch, n, repeats)
        return sampler.balanced(config.seed, epoch, balance)

    @functools.lru_cache(maxsize=2)
    def epoch_copies(epoch: int) -> np.ndarray:
        return sampler.turns(epoch_order(epoch))

    def places(step: int) -> np.ndarray:
        return np.arange(share) + ((step % spe) * batch_size + process_index * share)

    def rows(step: int) -> np.ndarray:
        return epoch_order(step // spe)[places(step)]

    def copies(step: int) -> np.ndarray:
        return epoch_copies(step // spe)[places(step)]

    if config.data.crop_on == "host":
        batches = _host_crops(source, config, rows, copies, spe, start_step)
    else:
        batches = _in_memory(source, rows, start_step)
    if repeats == 1 and balance is None:
        return batches
    return _with_copies(batches, copies, start_step)


def _check(source: Source, config: ConfigDict, process_count: int, balance: np.ndarray | None) -> None:
    """Refuse settings that do not go together, with a ValueError."""
    batch_size = config.batch_size
    if batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size} does not divide over {process_count} processes: choose a multiple"
        )
    repeats = config.data.repeats
    if repeats > 1 and balance is not None:
        raise ValueError(
            f"data.repeats={repeats} and drawing evenly over clusters do not go together: set data.repeats=1"
        )
    crop_on = config.data.crop_on
    if crop_on not in ("host", "device"):
        raise ValueError(f"data.crop_on={crop_on!r} is unknown: use 'host' or 'device'")
    if crop_on == "host" and "affine" in {view.augment.crop for view in recipes.resolved(config)}:
        raise ValueError(
            "augment.crop='affine' does not work with data.crop_on='host': use 'tf', 'torchvision' or "
            "'none', or set data.crop_on='device'"
        )
    if crop_on == "device" and source.images is None:
        raise ValueError(
            f"{source.name} is not in memory, so it cannot be cropped on the device: load it with "
            "data.crop_on='device' too"
        )


def _mixed(
    source: Source,
    config: ConfigDict,
    taken: np.ndarray | None,
    ratio: int,
    start_step: int,
    own: slice,
) -> Batches:
    """`train_batches` with labelled and unlabelled examples in a ratio; `own` are this process's rows."""
    labelled = np.flatnonzero(source.labels >= 0)
    unlabelled = np.flatnonzero(source.labels < 0)
    if taken is not None:
        unlabelled = np.repeat(unlabelled, taken[unlabelled])

    @functools.lru_cache(maxsize=4)
    def batch(step: int) -> np.ndarray:
        return sampler.mixed(
            config.seed, step, labelled, unlabelled, batch_size=config.batch_size, ratio=ratio
        )

    def rows(step: int) -> np.ndarray:
        return batch(step)[own]

    def copies(step: int) -> np.ndarray:
        return sampler.turns(batch(step))[own]

    if config.data.crop_on == "host":
        # Every step counts as an epoch of its own, so no two batches crop an image alike.
        batches = _host_crops(source, config, rows, copies, 1, start_step)
    else:
        batches = _in_memory(source, rows, start_step)
    return _with_copies(batches, copies, start_step)


def _with_copies(batches: Batches, copies: Callable[[int], np.ndarray], start_step: int) -> Batches:
    """Add to every batch which copy of its image each row is."""
    with contextlib.closing(batches):
        for step, batch in zip(itertools.count(start_step), batches, strict=False):
            yield {**batch, "copy": copies(step)}


def _in_memory(source: Source, rows: Callable[[int], np.ndarray], start_step: int) -> Batches:
    """Take rows from the arrays in memory. One thread stays PREFETCH batches ahead."""
    images = source.images
    assert images is not None

    def batch(step: int) -> dict[str, np.ndarray]:
        r = rows(step)
        return {"image": images[r], **_numbers(source, r)}

    with ThreadPoolExecutor(1) as pool:
        steps = itertools.count(start_step)
        ahead = deque(pool.submit(batch, next(steps)) for _ in range(PREFETCH))
        while True:
            ahead.append(pool.submit(batch, next(steps)))
            yield ahead.popleft().result()


def _numbers(source: Source, rows: np.ndarray) -> dict[str, np.ndarray]:
    """What a batch says of its images: label, index, and labels where an image has several."""
    several = {"labels": source.targets["labels"][rows]} if "labels" in source.targets else {}
    return {"label": source.labels[rows], "index": source.index[rows], **several}


def _host_crops(
    source: Source,
    config: ConfigDict,
    rows: Callable[[int], np.ndarray],
    copies: Callable[[int], np.ndarray],
    spe: int,
    start_step: int,
) -> Batches:
    """Run one tf.data pipeline over all steps, in order: rows of a step -> images -> views -> batch."""
    from ssljax.data import crops

    tf: Any = crops.tensorflow()
    share = len(rows(start_step))
    channels = config.data.channels

    def plan(step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        epoch = np.full(share, step // spe, np.int64)
        number = np.stack([epoch, copies(int(step))], axis=1)
        return number, rows(int(step))

    @tf.autograph.experimental.do_not_convert
    def views(
        number: tf.Tensor, position: tf.Tensor, image: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        epoch, copy = number[0], number[1]
        index = tf.gather(tf.constant(source.index), position)
        key = tf.stack([epoch, tf.cast(index, tf.int64)])
        return crops.training_views(image, key, config, copy), position

    def batches(step: int, stand_in: reading.StandIn | None) -> Iterator[tuple[Any, np.ndarray]]:
        steps = tf.data.Dataset.range(step, np.iinfo(np.int64).max)
        plans = steps.map(lambda s: tf.numpy_function(plan, [s], (tf.int64, tf.int64))).unbatch()
        images = reading.images(tf, source, plans, channels, stand_in)
        dataset = images.map(views, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return iter(dataset.batch(share, drop_remainder=True).prefetch(PREFETCH).as_numpy_iterator())

    def suspects(step: int) -> np.ndarray:
        """The rows of a step, and those that are fetched together with its last."""
        return np.concatenate([rows(s) for s in range(step, step + 2 + reading.AT_ONCE // share)])

    found = reading.going_on(batches, suspects, source, config.data, start_step)
    for views_of_step, position in found:
        yield {**views_of_step, **_numbers(source, position)}


def eval_batches(
    source: Source,
    config: ConfigDict,
    *,
    batch_size: int,
    positions: np.ndarray | None = None,
    place: geometry.Place = geometry.CENTRE,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield every example exactly once, in order. The last batch is padded with zeros.

    Images are cropped as in `crops.eval_image`. Images in memory are cropped without TensorFlow, with the
    same result to within one grey level (exactly the same by Pillow). They pass unchanged if there is nothing
    to crop. Then `source.alter` changes them.

    Args:
        source: any split.
        config: reads `data.image_size`, `.channels`, `.eval_crop` and how `augment` resizes.
        batch_size: number of rows of every batch.
        positions: int64 [N], which examples; repeats are allowed. None: all.
        place: where the crop of an image lies.

    Returns:
        Dicts of numpy arrays: image uint8 [batch_size, S, S, C], label int32 [batch_size], index int32
        [batch_size] and mask bool [batch_size], which is False for padding, and for the image that takes the
        place of an unreadable one with `data.on_bad_image="skip"` (see `reading`).

    Raises:
        ValueError: an image is unreadable (the message names it).
    """
    wanted = np.arange(len(source)) if positions is None else positions
    if source.whole:
        config = config.copy_and_resolve_references().unlock()
        config.data.eval_crop = 1.0
    decoded = _host_eval(source, config, wanted, batch_size, place)  # not begun if the images are in memory
    n = len(wanted)
    for first in range(0, n, batch_size):
        rows = wanted[first : first + batch_size]
        if source.images is None:
            image, mask = next(decoded)
        else:
            image, mask = source.images[rows], np.ones(len(rows), bool)
        batch = {"image": image, "label": source.labels[rows], "index": source.index[rows], "mask": mask}
        missing = batch_size - len(rows)
        if missing:
            batch = {name: _padded(values, missing) for name, values in batch.items()}
        if source.images is not None:  # after the padding: one shape, so one compilation
            batch["image"] = _central(batch["image"], config, place)
        if source.alter is not None:
            shown = batch["image"][: len(rows)]
            batch["image"] = _padded(source.alter(shown, source.index[rows]), missing)
        yield batch


def drawn_batches(source: Source, config: ConfigDict, draws: int, batch_size: int) -> Batches:
    """Yield every example `draws` times, in order, each time with other random views.

    The last batch of each pass is filled up with the first example.

    Returns:
        What `train_batches` yields for one process, and `mask` bool [batch_size], False for what fills up.
    """
    n = len(source)
    per_pass = -(-n // batch_size)

    def rows(step: int) -> np.ndarray:
        found = np.arange(batch_size) + step % per_pass * batch_size
        return np.where(found < n, found, 0)

    def first(step: int) -> np.ndarray:
        return np.zeros(batch_size, np.int64)

    if config.data.crop_on == "host":
        batches = _host_crops(source, config, rows, first, 1, 0)  # every step crops as an epoch of its own
    else:
        batches = _in_memory(source, rows, 0)
    with contextlib.closing(batches):
        for number, batch in zip(range(draws * per_pass), batches, strict=False):
            left = n - number % per_pass * batch_size
            yield {**batch, "mask": np.arange(batch_size) < left}


def _padded(values: np.ndarray, missing: int) -> np.ndarray:
    """Append `missing` rows of zeros."""
    return np.concatenate([values, np.zeros((missing, *values.shape[1:]), values.dtype)])


def _central(images: np.ndarray, config: ConfigDict, place: geometry.Place = geometry.CENTRE) -> np.ndarray:
    """Do without TensorFlow what `crops.eval_image` does.

    Args:
        images: uint8 [B, H, W, C].
        config, place: as for `eval_batches`.

    Returns:
        uint8 [B, S, S, C], S = data.image_size.
    """
    size = config.data.image_size
    share = config.data.eval_crop if size > 32 else 1.0
    how = recipes.resizing(config.augment)
    if config.augment.crop == "squash" and images.shape[1] != images.shape[2]:
        return np.stack([_squashed(image, size, share, how, place) for image in images])
    if how.library == "pillow":
        return np.stack([pillow.central(image, size, share, how.method, place) for image in images])
    to_whole = np.floor if config.augment.crop == "byol" else np.rint
    side = int(to_whole(np.float32(share) * np.float32(min(images.shape[1:3]))))
    if images.shape[1:3] == (size, size) and side == size:
        return images
    squares = _squares(images, side=side, size=size, method=how.method, antialias=how.antialias, place=place)
    return np.asarray(squares)


def _squashed(
    image: np.ndarray, size: int, share: float, how: recipes.Resizing, place: geometry.Place
) -> np.ndarray:
    """Resize an image to a square, whatever its aspect ratio, and cut out a part: uint8 [S, S, C]."""
    whole = geometry.squashed_side(size, share**2)
    if how.library == "pillow":
        resized = pillow.resize(image, whole, whole, how.method)
    else:
        box = jnp.array([0, 0, *image.shape[:2]], jnp.int32)
        pixels = geometry.crop_resize(
            jnp.asarray(image, jnp.float32), box, whole, method=how.method, antialias=how.antialias
        )
        resized = np.asarray(jnp.rint(jnp.clip(pixels, 0.0, 255.0)).astype(jnp.uint8))
    top, left = (int(geometry.offset(whole - size, at)) for at in place)
    return resized[top : top + size, left : left + size]


@functools.partial(jax.jit, static_argnames=("side", "size", "method", "antialias", "place"))
def _squares(
    images: jax.Array, *, side: int, size: int, method: str, antialias: bool, place: geometry.Place
) -> jax.Array:
    """Resize the squares of `side` pixels at `place` to `size` pixels, clip and round: uint8 [B, S, S, C]."""
    height, width = images.shape[1:3]
    top = geometry.offset(height - side, place[0])
    left = geometry.offset(width - side, place[1])
    box = jnp.array([top, left, side, side], jnp.int32)
    resize = functools.partial(geometry.crop_resize, box=box, size=size, method=method, antialias=antialias)
    pixels = jax.vmap(resize)(images.astype(jnp.float32))
    return jnp.rint(jnp.clip(pixels, 0.0, 255.0)).astype(jnp.uint8)


def _host_eval(
    source: Source, config: ConfigDict, positions: np.ndarray, batch_size: int, place: geometry.Place
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the crops of `eval_batches` from a tf.data pipeline.

    Returns:
        Pairs of uint8 [<= batch_size, S, S, C] and whether each is the image itself, bool [<= batch_size].
    """
    from ssljax.data import crops

    tf: Any = crops.tensorflow()

    @tf.autograph.experimental.do_not_convert
    def crop(asked: tf.Tensor, position: tf.Tensor, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return crops.eval_image(image, config, place), asked == position

    def batches(number: int, stand_in: reading.StandIn | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        left = positions[number * batch_size :]
        pairs = tf.data.Dataset.from_tensor_slices((left, left))
        images = reading.images(tf, source, pairs, config.data.channels, stand_in)
        dataset = images.map(crop, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return iter(dataset.batch(batch_size).prefetch(PREFETCH).as_numpy_iterator())

    def suspects(number: int) -> np.ndarray:
        first = number * batch_size
        return positions[first : first + batch_size + reading.AT_ONCE]

    yield from reading.going_on(batches, suspects, source, config.data, 0)
