"""Batches of a source: endless and resumable for training, exact for evaluation.

A training batch is a pure function of (source, config, step). Step s takes rows [(s % spe) B, (s % spe + 1) B) of
`order(seed, s // spe, n)`, spe = n // B; process p of P takes its contiguous 1/P of each. So resuming costs nothing and the stream is
the same for every number of processes, threads and devices.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from ml_collections import ConfigDict

from ssljax.data import sampler
from ssljax.data.sources import Source

PREFETCH = 2       # batches made ahead of the consumer


def steps_per_epoch(n: int, batch_size: int) -> int:
    """n // batch_size: the last, incomplete batch of an epoch is dropped.

    Raises:
        ValueError: fewer examples than one batch.
    """
    if n < batch_size:
        raise ValueError(f"{n} examples do not fill one batch of {batch_size}: set batch_size to at most {n}, or use more data "
                         "(data.train_per_class, data.labels_per_class, data.label_fraction)")
    return n // batch_size


def train_batches(source: Source, config: ConfigDict, *, start_step: int = 0, process_index: int = 0,
                  process_count: int = 1) -> Iterator[dict[str, np.ndarray]]:
    """This process's share of every global batch, from `start_step` on, without end.

    Args:
        source: the train split.
        config: reads `seed`, `batch_size` (global), `data` and `augment`.
        start_step: the first step to deliver; the stream is the one an uninterrupted run would see.
        process_index: which share.
        process_count: how many shares.

    Returns:
        dicts of numpy arrays, b = batch_size / process_count:
        image uint8 [b, V, S, S, C] (data.crop_on="host") or [b, H, W, C] ("device"); label int32 [b]; index int32 [b].

    Raises:
        ValueError: fewer examples than a batch, a batch that the processes do not divide, an unreadable image (named).
    """
    spe = steps_per_epoch(len(source), config.batch_size)
    if config.batch_size % process_count:
        raise ValueError(f"batch_size={config.batch_size} does not divide over {process_count} processes: choose a multiple")
    share = config.batch_size // process_count
    epoch_order = functools.lru_cache(maxsize=2)(functools.partial(sampler.order, config.seed, n=len(source)))

    def rows(step: int) -> np.ndarray:
        first = (step % spe) * config.batch_size + process_index * share
        return epoch_order(step // spe)[first:first + share]

    if config.data.crop_on == "device" and source.images is not None:
        return _in_memory(source, rows, start_step)
    if config.data.crop_on not in ("host", "device"):
        raise ValueError(f"data.crop_on={config.data.crop_on!r} is neither 'host' nor 'device'")
    raise ValueError("images that are not in memory cannot be cropped on the device: load the source with data.crop_on='device'")


def _in_memory(source: Source, rows, start_step: int) -> Iterator[dict[str, np.ndarray]]:
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


def eval_batches(source: Source, config: ConfigDict, *, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Every example exactly once, in order; the last batch is padded with zeros.

    Returns:
        dicts of image uint8 [batch_size, S, S, C], label int32, index int32 and mask bool [batch_size] (False = padding).
    """
    size = config.data.image_size
    for first in range(0, len(source), batch_size):
        rows = np.arange(first, min(first + batch_size, len(source)))
        image = source.images[rows]
        assert image.shape[1:3] == (size, size)
        batch = {"image": image, "label": source.labels[rows], "index": source.index[rows], "mask": np.ones(len(rows), bool)}
        yield _pad(batch, batch_size)


def _pad(batch: dict[str, np.ndarray], batch_size: int) -> dict[str, np.ndarray]:
    """Zeros (False in the mask) up to `batch_size` rows."""
    missing = batch_size - len(batch["mask"])
    return {k: np.concatenate([v, np.zeros((missing, *v.shape[1:]), v.dtype)]) if missing else v for k, v in batch.items()}
