"""Batches of a source: endless and resumable for training, exact for evaluation.

A training batch is a pure function of (source, config, step), and of what it is balanced over. Step s takes rows
[(s % spe) B, (s % spe + 1) B) of `repeated(seed, s // spe, n, repeats)`, or of `balanced(seed, s // spe, balance)`, spe = n // B; process
p of P takes its contiguous 1/P of each. So resuming costs nothing and the stream is the same for every number of processes, threads and
devices.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssljax.data import geometry, policies, recipes, sampler
from ssljax.data.source import Source

if TYPE_CHECKING:
    import tensorflow as tf

PREFETCH = 2  # batches made ahead of the consumer
READ_AT_ONCE = 32  # records fetched by one call of Source.read


def steps_per_epoch(n: int, batch_size: int) -> int:
    """n // batch_size: the last, incomplete batch of an epoch is dropped.

    Raises:
        ValueError: fewer examples than one batch.
    """
    if n < batch_size:
        raise ValueError(
            f"{n} examples do not fill one batch of {batch_size}: set batch_size to at most {n}, or use more data "
            "(data.train_per_class, data.labels_per_class, data.label_fraction)"
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
) -> Iterator[dict[str, np.ndarray]]:
    """This process's share of every global batch, from `start_step` on, without end.

    Args:
        source: the train split.
        config: reads `seed`, `batch_size` (global), `data`, `augment` and `views`.
        start_step: the first step to deliver; the stream is the one an uninterrupted run would see.
        process_index: which share.
        process_count: how many shares.
        balance: int [N] by position: epochs draw evenly from its values, see `sampler.balanced`; None: every example once.

    Returns:
        dicts of numpy arrays, b = batch_size / process_count:
        image uint8 [b, H, W, C] (data.crop_on="device") or what `recipes.host_shapes` says ("host"); label int32 [b]; index int32 [b];
        with data.repeats > 1 or a balance also copy int32 [b], how often the image came before in this epoch (for `views.make`).

    Raises:
        ValueError: fewer examples than a batch, a batch that the processes do not divide, a policy that cannot be applied, an unreadable
            image (named).
    """
    policies.check(config)
    repeats = config.data.repeats
    n, batch_size = len(source), config.batch_size
    spe = steps_per_epoch(n, batch_size)
    if batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size} does not divide over {process_count} processes: choose a multiple"
        )
    share = batch_size // process_count
    if repeats > 1 and balance is not None:
        raise ValueError(
            f"data.repeats={repeats} and drawing evenly over clusters do not go together: set data.repeats=1"
        )
    epoch_order = functools.lru_cache(maxsize=2)(
        lambda epoch: (
            sampler.repeated(config.seed, epoch, n, repeats)
            if balance is None
            else sampler.balanced(config.seed, epoch, balance)
        )
    )

    def places(step: int) -> np.ndarray:
        return np.arange(share) + ((step % spe) * batch_size + process_index * share)

    def rows(step: int) -> np.ndarray:
        return epoch_order(step // spe)[places(step)]

    epoch_turns = functools.lru_cache(maxsize=2)(lambda epoch: sampler.turns(epoch_order(epoch)))

    def copies(step: int) -> np.ndarray:
        return epoch_turns(step // spe)[places(step)]

    if config.data.crop_on not in ("host", "device"):
        raise ValueError(f"data.crop_on={config.data.crop_on!r} is neither 'host' nor 'device'")
    if config.data.crop_on == "device" and source.images is None:
        raise ValueError(
            f"{source.name} is not in memory, so it cannot be cropped on the device: load it with data.crop_on='device' too"
        )
    if config.data.crop_on == "host":
        batches = _host_crops(source, config, rows, copies, spe, start_step)
    else:
        batches = _in_memory(source, rows, start_step)
    return batches if repeats == 1 and balance is None else _with_copies(batches, copies, start_step)


def _with_copies(
    batches: Iterator[dict[str, np.ndarray]], copies: Callable[[int], np.ndarray], start_step: int
) -> Iterator[dict[str, np.ndarray]]:
    """The same batches, with the number of each row's copy."""
    with contextlib.closing(batches):
        for step, batch in zip(itertools.count(start_step), batches, strict=False):
            yield {**batch, "copy": copies(step)}


def _in_memory(
    source: Source, rows: Callable[[int], np.ndarray], start_step: int
) -> Iterator[dict[str, np.ndarray]]:
    """A plain take from the arrays; one thread stays PREFETCH batches ahead."""

    def batch(step: int) -> dict[str, np.ndarray]:
        r = rows(step)
        return {"image": source.images[r], "label": source.labels[r], "index": source.index[r]}

    with ThreadPoolExecutor(1) as pool:
        steps = itertools.count(start_step)
        ahead = deque(pool.submit(batch, next(steps)) for _ in range(PREFETCH))
        while True:
            ahead.append(pool.submit(batch, next(steps)))
            yield ahead.popleft().result()


def _host_crops(
    source: Source,
    config: ConfigDict,
    rows: Callable[[int], np.ndarray],
    copies: Callable[[int], np.ndarray],
    spe: int,
    start_step: int,
) -> Iterator[dict[str, np.ndarray]]:
    """One tf.data pipeline over all steps and epochs, in order: rows of a step -> images -> views -> batch."""
    from ssljax.data import crops

    tf = crops.tensorflow()
    share = len(rows(start_step))

    def plan(step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.stack([np.full(share, step // spe, np.int64), copies(int(step))], axis=1), rows(int(step))

    def views(
        number: tf.Tensor, position: tf.Tensor, image: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        epoch, copy = number[0], number[1]
        index = tf.gather(tf.constant(source.index), position)
        return crops.training_views(
            image, tf.stack([epoch, tf.cast(index, tf.int64)]), config, copy
        ), position

    steps = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
    dataset = steps.map(lambda s: tf.numpy_function(plan, [s], (tf.int64, tf.int64))).unbatch()
    dataset = _read(tf, source, dataset, config.data.channels).map(
        views, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    batches = iter(dataset.batch(share, drop_remainder=True).prefetch(PREFETCH).as_numpy_iterator())
    for step in itertools.count(start_step):
        try:
            views_of_step, position = next(batches)
        except tf.errors.OpError as error:
            raise _unreadable(source, _next_rows(rows, step, share), config.data.channels) or error from error
        yield {**views_of_step, "label": source.labels[position], "index": source.index[position]}


def _next_rows(rows: Callable[[int], np.ndarray], step: int, share: int) -> np.ndarray:
    """The rows among which a failure at `step` lies: its own and those fetched with its last."""
    return np.concatenate([rows(s) for s in range(step, step + 2 + READ_AT_ONCE // share)])


def _read(tf: Any, source: Source, dataset: tf.data.Dataset, channels: int) -> tf.data.Dataset:
    """(number, position) -> (number, position, image uint8 [H, W, C]), in order: read by index in chunks, decoded in parallel."""
    from ssljax.data import crops

    def read(positions: np.ndarray) -> np.ndarray:
        return (
            source.images[positions]
            if source.images is not None
            else np.array(source.read(positions), object)
        )

    def fetch(number: tf.Tensor, position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        content = tf.numpy_function(read, [position], tf.string if source.images is None else tf.uint8)
        content.set_shape([None] if source.images is None else [None, *source.images.shape[1:]])
        return number, position, content

    dataset = (
        dataset.batch(READ_AT_ONCE)
        .map(fetch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .unbatch()
    )
    if source.images is not None:
        return dataset
    return dataset.map(
        lambda number, position, content: (number, position, crops.decode(content, channels)),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def _unreadable(source: Source, positions: np.ndarray, channels: int) -> ValueError | None:
    """The pipeline failed on one of these: an error that names the image, or None when all can be read."""
    from ssljax.data import crops

    for i in positions if source.images is None else ():
        try:
            crops.decode(source.read([i])[0], channels)
        except Exception as error:
            return ValueError(
                f"{source.describe(i)} cannot be read as an image ({error}): its first and last bytes looked whole when "
                "training began. Replace or delete it"
            )
    return None


def eval_batches(source: Source, config: ConfigDict, *, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Every example exactly once, in order; the last batch is padded with zeros.

    Images are cropped as `crops.eval_image` says. Pixels in memory are cropped without TensorFlow, to within a grey level
    of that, or pass as they are where nothing is to be cut away.

    Args:
        source: any split.
        config: reads `data.image_size`, `.channels`, `.eval_crop` and `augment.antialias`.
        batch_size: rows of every batch.

    Returns:
        dicts of image uint8 [batch_size, S, S, C], label int32, index int32 and mask bool [batch_size] (False = padding).

    Raises:
        ValueError: an unreadable image (named).
    """
    n, images = len(source), None if source.images is not None else _host_eval(source, config, batch_size)
    for first in range(0, n, batch_size):
        rows = np.arange(first, min(first + batch_size, n))
        image = source.images[rows] if images is None else next(images)
        batch = {
            "image": image,
            "label": source.labels[rows],
            "index": source.index[rows],
            "mask": np.ones(len(rows), bool),
        }
        missing = batch_size - len(rows)
        if missing:
            batch = {
                k: np.concatenate([v, np.zeros((missing, *v.shape[1:]), v.dtype)]) for k, v in batch.items()
            }
        if images is None:
            batch["image"] = _central(
                batch["image"], config
            )  # behind the padding: one shape, one compilation
        yield batch


def _central(images: np.ndarray, config: ConfigDict) -> np.ndarray:
    """What `crops.eval_image` makes of images uint8 [B, H, W, C], without TensorFlow: uint8 [B, S, S, C], S = image_size."""
    size = config.data.image_size
    share = config.data.eval_crop if size > 32 else 1.0
    side = int(np.rint(np.float32(share) * np.float32(min(images.shape[1:3]))))
    if images.shape[1:3] == (size, size) and side == size:
        return images
    method, antialias = recipes.evaluation_resize(config.augment), config.augment.antialias
    return np.asarray(_central_squares(images, side=side, size=size, method=method, antialias=antialias))


@functools.partial(jax.jit, static_argnames=("side", "size", "method", "antialias"))
def _central_squares(images: jax.Array, *, side: int, size: int, method: str, antialias: bool) -> jax.Array:
    """The central squares of `side` pixels at `size` pixels, rounded and clipped: uint8 [B, S, S, C]."""
    height, width = images.shape[1:3]
    box = jnp.array([(height - side + 1) // 2, (width - side + 1) // 2, side, side], jnp.int32)
    resize = functools.partial(geometry.crop_resize, box=box, size=size, method=method, antialias=antialias)
    pixels = jax.vmap(resize)(images.astype(jnp.float32))
    return jnp.rint(jnp.clip(pixels, 0.0, 255.0)).astype(jnp.uint8)


def _host_eval(source: Source, config: ConfigDict, batch_size: int) -> Iterator[np.ndarray]:
    """uint8 [<= batch_size, S, S, C], in order."""
    from ssljax.data import crops

    tf = crops.tensorflow()

    dataset = tf.data.Dataset.range(len(source)).map(lambda i: (i, i))
    dataset = _read(tf, source, dataset, config.data.channels).map(
        lambda _, position, image: crops.eval_image(image, config),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    batches = iter(dataset.batch(batch_size).prefetch(PREFETCH).as_numpy_iterator())
    for first in range(0, len(source), batch_size):
        try:
            yield next(batches)
        except tf.errors.OpError as error:
            positions = np.arange(first, min(first + batch_size + READ_AT_ONCE, len(source)))
            raise _unreadable(source, positions, config.data.channels) or error from error
