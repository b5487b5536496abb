"""Reading and decoding images in tf.data, and what happens to one that turns out to be unreadable.

`data.on_bad_image="error"` ends the run and names the image. With "skip" the next readable image takes its
place, with its own label and id, whenever the unreadable one is drawn. Which one that is depends on the
images alone, so the stream is the same after a resume and for any number of hosts.

Only what a decoder finds comes this far: the sources leave out at the start what the first and the last bytes
of a file show.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import os
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from ssljax.data import damage
from ssljax.data.decode import reason, settle, threaded
from ssljax.data.source import Source

if TYPE_CHECKING:
    import tensorflow as tf

log = logging.getLogger(__name__)

AT_ONCE = 32  # records fetched by one call of Source.read
NAMED: set[str] = set()  # the replaced images that this process has named

StandIn = Callable[[np.int64, bytes], tuple[np.int64, np.ndarray]]
Pipeline = Callable[[int, StandIn | None], Iterator[tuple[Any, np.ndarray]]]


def images(
    tf: Any, source: Source, dataset: tf.data.Dataset, channels: int, stand_in: StandIn | None
) -> tf.data.Dataset:
    """Add the images to a dataset of positions, in order.

    Images are read by index in chunks and decoded in parallel.

    Args:
        tf: TensorFlow.
        source: where images are read.
        dataset: elements are (number, position); `number` is passed on.
        channels: 3 or 1.
        stand_in: from `stand_in_of`, which costs a tenth of the speed. None: an unreadable image is an error.

    Returns:
        A dataset of (number, position, image uint8 [H, W, C]). The position is that of the image.
    """
    from ssljax.data import crops

    pixels = source.images
    dtype = tf.string if pixels is None else tf.uint8
    shape = [None] if pixels is None else [None, *pixels.shape[1:]]

    def read(positions: np.ndarray) -> np.ndarray:
        if pixels is not None:
            return pixels[positions]
        return np.array([allowed(encoded) for encoded in source.read(positions)], object)

    def allowed(encoded: bytes) -> bytes:
        """No bytes in place of an image that TensorFlow must not decode. That fails as any damage does."""
        if stand_in is None and source.decode is None:
            try:
                damage.check_header(io.BytesIO(encoded))
            except ValueError:
                return b""
        return encoded

    # None of a pipeline's functions branches on a tensor. Rewriting them as if takes half a second and more.
    @tf.autograph.experimental.do_not_convert
    def fetch(number: tf.Tensor, position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        content = tf.numpy_function(read, [position], dtype)
        content.set_shape(shape)
        return number, position, content

    def tensor(content: tf.Tensor) -> tf.Tensor:
        if source.decode is None:
            return crops.decode(content, channels)
        image = tf.numpy_function(source.decode, [content], tf.uint8)
        image.set_shape([None, None, channels])
        return image

    @tf.autograph.experimental.do_not_convert
    def decode(
        number: tf.Tensor, position: tf.Tensor, content: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        if stand_in is None:
            return number, position, tensor(content)
        position, image = tf.numpy_function(stand_in, [position, content], (tf.int64, tf.uint8))
        position.set_shape([])
        image.set_shape([None, None, channels])
        return number, position, image

    chunks = dataset.batch(AT_ONCE)
    chunks = chunks.map(fetch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    examples = chunks.unbatch()
    if pixels is not None:
        return examples
    return examples.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def decoded(source: Source, encoded: bytes, channels: int) -> np.ndarray:
    """Decode one example of a source at once, outside of a pipeline.

    Returns:
        uint8 [H, W, channels].

    Raises:
        ValueError: it is unreadable; says why.
    """
    if source.decode is not None:
        return source.decode(encoded)
    from ssljax.data import crops

    return crops.decode_now(encoded, channels)


def stand_in_of(source: Source, channels: int) -> StandIn:
    """Return a function (position, its bytes) -> (position, image) that never meets an unreadable image.

    It decodes the image at the position or, if that is unreadable, the next readable one; the first follows
    the last.
    """
    known: dict[int, int] = {}  # position of an unreadable image -> how far ahead the next readable one is

    def stand_in(position: np.int64, encoded: bytes) -> tuple[np.int64, np.ndarray]:
        count = len(source)
        problem = ""
        for ahead in range(known.get(int(position), 0), count):
            at = (int(position) + ahead) % count
            try:
                image = decoded(source, source.read([at])[0] if ahead else encoded, channels)
            except ValueError as error:
                problem = problem or str(error)
                continue
            if ahead and position not in known:
                known[int(position)] = ahead
                _name(source.describe(int(position)), problem, source.describe(at))
            return np.int64(at), image
        raise ValueError("no image is readable")

    return stand_in


def _name(name: str, problem: str, instead: str) -> None:
    """Log an image that is replaced, once in a process."""
    if name not in NAMED:
        NAMED.add(name)
        log.warning(
            "%s cannot be read as an image (%s): %s takes its place (unreadable so far: %d)",
            name,
            problem,
            instead,
            len(NAMED),
        )


def going_on(
    pipeline: Pipeline,
    suspects: Callable[[int], np.ndarray],
    source: Source,
    data: ConfigDict,
    first: int,
) -> Generator[tuple[Any, np.ndarray], None, None]:
    """Yield the batches of a pipeline, over unreadable images if `data.on_bad_image` is "skip".

    The pipeline is built without stand-ins, which make it slower, until it meets an unreadable image. Then it
    is built anew from that batch on. Both give the same batches.

    Args:
        pipeline: (number of a batch, stand-in) -> the batches from that one on.
        suspects: the positions that can have failed in a batch, by its number.
        source: what is read.
        data: reads `on_bad_image` and `channels`.
        first: the number of the first batch.

    Raises:
        ValueError: an image is unreadable (the message names it), or cannot be read any more.
    """
    from ssljax.data import crops

    tf = crops.tensorflow()
    stand_in = None
    number = first
    batches = pipeline(number, stand_in)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            if source.images is not None or data.on_bad_image != "skip" or stand_in is not None:
                raise _failure(error, source, suspects(number), data) from error
            stand_in = stand_in_of(source, data.channels)
            batches = pipeline(number, stand_in)
            continue
        yield batch
        number += 1


def _failure(error: Exception, source: Source, positions: np.ndarray, data: ConfigDict) -> Exception:
    """Find out which image a failure of the pipeline is about.

    Args:
        error: the pipeline's error.
        source: what was read.
        positions: the images among which it happened.
        data: reads `on_bad_image` and `channels`.

    Returns:
        A ValueError that names the image, or `error` itself if all images can be read.
    """
    if source.images is not None:
        return error
    for i in positions:
        name = source.describe(i)
        try:
            encoded = source.read([i])[0]
        except (OSError, ValueError) as problem:
            return _gone(problem, name)
        try:
            decoded(source, encoded, data.channels)
        except ValueError as problem:
            if data.on_bad_image == "skip":
                continue
            return ValueError(
                f"{name} cannot be read as an image ({problem}), though its first and last bytes looked "
                f"complete: replace or delete it, or {source.how_to_skip} to go on without it"
            )
    if "no image is readable" in str(error):
        return ValueError(f"none of the {len(source)} images of {source.name} can be decoded")
    return error


def _gone(error: Exception, name: str) -> ValueError:
    """The error about an image that could be read when the run began, and cannot any more."""
    try:
        problem = reason(error, name)
    except ValueError as failure:
        return failure
    return ValueError(
        f"{name} cannot be read any more ({problem}): bring it back, then the same command goes on"
    )


def readable(source: Source, data: ConfigDict) -> Source:
    """Leave out every image that cannot be decoded, if `data.on_bad_image` is "skip".

    This decodes all images once. Evaluation does it, because an image that is replaced by another would count
    twice. The other images keep their ids.

    Args:
        source: any split.
        data: reads `on_bad_image` and `channels`.
    """
    in_memory = source.images is not None or data.source == "digits"  # which has no such setting
    if in_memory or data.on_bad_image != "skip":
        return source

    def problem(i: int) -> str:
        try:
            decoded(source, source.read([i])[0], data.channels)
        except (OSError, ValueError) as error:
            return reason(error, source.describe(i))
        return ""

    found = threaded(problem, len(source), threads=os.cpu_count() or 1)
    good, skipped = settle(found, source.describe, data.on_bad_image)
    if not skipped:
        return source
    return dataclasses.replace(source.select(good), skipped=source.skipped + skipped)
