"""Which example comes when: pure functions of (seed, epoch), so that a run's position is its step and nothing else.

Every draw is a sort of raw Philox words keyed by the arguments. NumPy keeps the raw stream of a bit generator for ever, but not that of
`Generator.permutation`; a run resumed years later sees the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of one epoch: a permutation of 0..n-1, independent for every (seed, epoch).

    Args:
        seed: the run's seed, >= 0.
        epoch: counted from 0.
        n: number of examples.

    Returns:
        int64 [n].

    Raises:
        ValueError: a negative argument.
    """
    if min(seed, epoch, n) < 0:
        raise ValueError(f"order(seed={seed}, epoch={epoch}, n={n}): none may be negative")
    return np.argsort(words_of(seed, epoch)(n), kind="stable").astype(np.int64)


def words_of(seed: int, epoch: int) -> Callable[[int], np.ndarray]:
    """The random words of one epoch: count -> uint64 [count], the next ones of the stream at every call."""
    return np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw


def repeated(seed: int, epoch: int, n: int, repeats: int) -> np.ndarray:
    """`order` with every example `repeats` times in a row, cut to n places: repeated augmentation (arXiv 1901.09335, DeiT's RASampler).

    An epoch keeps its length and sees ceil(n / repeats) different examples. Place p holds copy p % repeats of its example. The released
    code keeps n rounded down to a multiple of 256: as many whole batches, if 256 divides the batch.

    Args:
        seed: the run's seed, >= 0.
        epoch: counted from 0.
        n: number of examples.
        repeats: copies of each, >= 1; 1 is `order`.

    Returns:
        int64 [n].

    Raises:
        ValueError: a negative argument, or no repeats.
    """
    if repeats < 1:
        raise ValueError(
            f"repeated(repeats={repeats}): data.repeats must be at least 1, which is every example once"
        )
    return np.repeat(order(seed, epoch, n)[: -(-n // repeats)], repeats)[:n]


def balanced(seed: int, epoch: int, assignment: np.ndarray) -> np.ndarray:
    """The order of one epoch that draws evenly from clusters (DeepCluster, arXiv 1807.05520, section 3.2; its `UnifLabelSampler`).

    Each of the K clusters that are not empty gives q = N // K + 1 of its members: different ones where it has more than q, else drawn
    with repeats. These K q draws are shuffled and cut to N.

    Args:
        seed: the run's seed, >= 0.
        epoch: counted from 0.
        assignment: int [N], the cluster of each example; -1 for one that is in none and is not drawn.

    Returns:
        int64 [N], positions in `assignment`.

    Raises:
        ValueError: a negative seed or epoch, or all clusters are empty.
    """
    assignment = np.asarray(assignment)
    if min(seed, epoch) < 0:
        raise ValueError(f"balanced(seed={seed}, epoch={epoch}): neither may be negative")
    random = words_of(seed, epoch)
    words = random(len(assignment))
    members = np.lexsort((words, assignment))  # by cluster, in a random order within each
    members = members[np.searchsorted(assignment[members], 0) :]
    sizes = np.unique(assignment[members], return_counts=True)[1]
    if not len(sizes):
        raise ValueError(
            f"none of {len(assignment)} examples is in a cluster: nothing can be drawn. Was the data clustered?"
        )
    quota = len(assignment) // len(sizes) + 1
    start, turn = np.cumsum(sizes) - sizes, np.arange(quota)[None]
    share = (random(len(sizes) * quota) >> np.uint64(32)).astype(np.float64).reshape(
        len(sizes), quota
    ) / 2**32
    place = np.where(sizes[:, None] > quota, turn, np.floor(share * sizes[:, None])).astype(np.int64)
    drawn = members[(start[:, None] + place).ravel()]
    return drawn[np.argsort(random(len(drawn)), kind="stable")][: len(assignment)].astype(np.int64)


def turns(order: np.ndarray) -> np.ndarray:
    """How often each entry of an epoch's order has come before in it: int32 [N], 0 at its first coming."""
    by_value = np.argsort(order, kind="stable")
    ordered = order[by_value]
    first = np.searchsorted(ordered, ordered)
    out = np.empty(len(order), np.int32)
    out[by_value] = np.arange(len(order)) - first
    return out


def subset(labels: np.ndarray, *, fraction: float = 1.0, per_class: int = 0, seed: int) -> np.ndarray:
    """A balanced labelled subset, drawn with `seed`.

    All subsets of one seed are prefixes of one sequence that goes round the classes (a random member of each class, then a second of
    each, ...): counts of two classes differ by at most one while both have members left, and 1 % is contained in 10 %, like SimCLR's
    lists of ImageNet (12,811 and 128,116 images; imagenet_subsets/ of google-research/simclr).

    Args:
        labels: int [N].
        fraction: share of the N examples, in (0, 1], rounded down; every class keeps at least one.
        per_class: so many of each class; 0 = `fraction` decides.
        seed: of the draw.

    Returns:
        int64 indices, sorted.

    Raises:
        ValueError: the fraction is outside (0, 1], a class has fewer than `per_class` examples, or an example
            has no label.
    """
    if per_class < 0 or (per_class == 0 and not 0 < fraction <= 1):
        raise ValueError(
            f"subset(fraction={fraction}, per_class={per_class}): the fraction must lie in (0, 1], per_class must be >= 0"
        )
    labels = _all_labelled(labels)
    shuffled = order(seed, 0, len(labels))
    rank = np.empty(len(labels), np.int64)  # place of an example among those of its class
    rank[shuffled] = _rank_in_class(labels[shuffled])
    if per_class:
        _require(labels, per_class)
        return np.flatnonzero(rank < per_class)
    classes, inverse = np.unique(labels, return_inverse=True)
    turn = order(seed, 1, len(classes))[inverse]  # which classes get the odd one out
    total = max(math.floor(fraction * len(labels) + 1e-6), len(classes))
    return np.sort(np.lexsort((turn, rank))[:total]).astype(np.int64)


def first_per_class(labels: np.ndarray, n: int) -> np.ndarray:
    """The first n examples of each class, as sorted int64 indices.

    Raises:
        ValueError: a class has fewer than n examples, or an example has no label.
    """
    labels = _all_labelled(labels)
    _require(labels, n)
    return np.flatnonzero(_rank_in_class(labels) < n)


def _all_labelled(labels: np.ndarray) -> np.ndarray:
    """The labels; raises a ValueError where one is -1, which is no class to choose from."""
    labels = np.asarray(labels)
    without = np.flatnonzero(labels < 0)
    if len(without):
        raise ValueError(
            f"{len(without)} of {len(labels)} examples have no label (-1), the first at "
            f"position {without[0]}: a subset by label is chosen among labelled "
            "examples; leave the others out first"
        )
    return labels


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """How many examples of the same class stand before each example."""
    grouped = np.argsort(labels, kind="stable")
    _, start, count = np.unique(labels[grouped], return_index=True, return_counts=True)
    rank = np.empty(len(labels), np.int64)
    rank[grouped] = np.arange(len(labels)) - np.repeat(start, count)
    return rank


def _require(labels: np.ndarray, n: int) -> None:
    classes, counts = np.unique(labels, return_counts=True)
    if len(counts) and counts.min() < n:
        raise ValueError(
            f"class {classes[counts.argmin()]} has {counts.min()} examples, {n} a class were asked for: "
            f"ask for at most {counts.min()}, or add examples of that class"
        )
