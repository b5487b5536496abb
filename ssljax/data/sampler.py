"""The order of examples: pure functions of (seed, epoch), so that a run's position is its step alone.

Every draw sorts raw Philox words keyed by the arguments. NumPy guarantees that the raw stream of a bit
generator never changes; it does not guarantee this for `Generator.permutation`. So a run that is resumed
years later sees the same order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np


def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """Return the order of one epoch: a permutation of 0..n-1, independent for every (seed, epoch).

    Args:
        seed: the run's seed, >= 0.
        epoch: counted from 0.
        n: number of examples.

    Returns:
        int64 [n].

    Raises:
        ValueError: an argument is negative.
    """
    if min(seed, epoch, n) < 0:
        raise ValueError(f"order(seed={seed}, epoch={epoch}, n={n}): none of them may be negative")
    random = words_of(seed, epoch)
    return np.argsort(random(n), kind="stable").astype(np.int64)


def words_of(seed: int, epoch: int) -> Callable[[int], np.ndarray]:
    """Return the random words of one epoch: a function that yields the next `count` words, uint64 [count]."""
    return np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw


def repeated(seed: int, epoch: int, n: int, repeats: int) -> np.ndarray:
    """Return `order` with every example repeated in a row, cut to n entries.

    This is repeated augmentation (arXiv 1901.09335, DeiT's RASampler). An epoch keeps its length and sees
    ceil(n / repeats) different examples. Entry p is copy p % repeats of its example. The released code keeps
    n rounded down to a multiple of 256 entries, which gives the same whole batches if 256 divides the batch.

    Args:
        seed: the run's seed, >= 0.
        epoch: counted from 0.
        n: number of examples.
        repeats: number of copies of each example, >= 1; 1 is `order`.

    Returns:
        int64 [n].

    Raises:
        ValueError: an argument is negative, or `repeats` is 0.
    """
    if repeats < 1:
        raise ValueError(
            f"repeated(repeats={repeats}): data.repeats must be at least 1; 1 takes every example once"
        )
    different = -(-n // repeats)  # rounded up
    return np.repeat(order(seed, epoch, n)[:different], repeats)[:n]


def balanced(seed: int, epoch: int, assignment: np.ndarray) -> np.ndarray:
    """Return the order of one epoch that draws evenly from clusters.

    This is DeepCluster's `UnifLabelSampler` (arXiv 1807.05520, section 3.2). Each of the K non-empty clusters
    gives q = N // K + 1 of its members. A cluster with more than q members gives different ones; the others
    are sampled with replacement. These K q draws are shuffled and cut to N.

    Args:
        seed: the run's seed, >= 0.
        epoch: counted from 0.
        assignment: int [N], the cluster of each example; -1 for an example that is in no cluster and is never
            drawn.

    Returns:
        int64 [N], positions in `assignment`.

    Raises:
        ValueError: the seed or epoch is negative, or all clusters are empty.
    """
    assignment = np.asarray(assignment)
    if min(seed, epoch) < 0:
        raise ValueError(f"balanced(seed={seed}, epoch={epoch}): neither may be negative")
    random = words_of(seed, epoch)

    # Examples sorted by cluster, in a random order within each, without those in no cluster.
    words = random(len(assignment))
    members = np.lexsort((words, assignment))
    members = members[np.searchsorted(assignment[members], 0) :]
    sizes = np.unique(assignment[members], return_counts=True)[1]
    if not len(sizes):
        raise ValueError(
            f"none of {len(assignment)} examples is in a cluster, so nothing can be drawn. Was the data "
            "clustered?"
        )

    # `quota` members of each cluster, as places in the cluster: the first ones, or drawn with replacement.
    quota = len(assignment) // len(sizes) + 1
    words = random(len(sizes) * quota) >> np.uint64(32)
    share = words.astype(np.float64).reshape(len(sizes), quota) / 2**32
    in_turn = np.arange(quota)[None]
    place = np.where(sizes[:, None] > quota, in_turn, np.floor(share * sizes[:, None])).astype(np.int64)
    start = np.cumsum(sizes) - sizes
    drawn = members[(start[:, None] + place).ravel()]

    shuffled = drawn[np.argsort(random(len(drawn)), kind="stable")]
    return shuffled[: len(assignment)].astype(np.int64)


def mixed(
    seed: int, step: int, labelled: np.ndarray, unlabelled: np.ndarray, *, batch_size: int, ratio: int
) -> np.ndarray:
    """Return the batch of a step in which labelled images come first, and `ratio` times as many unlabelled.

    Each of the two is an endless sequence of permutations of its images (Noisy Student, arXiv 1911.04252).

    Args:
        seed: the run's seed, >= 0.
        step: counted from 0.
        labelled: int [n], positions of the labelled images.
        unlabelled: int [m], positions of the others. An image that is taken several times per pass occurs
            several times.
        batch_size: of the whole batch, a multiple of 1 + ratio.
        ratio: unlabelled images for each labelled one.

    Returns:
        int64 [batch_size].

    Raises:
        ValueError: there are no images of one of the two kinds, or the batch does not split.
    """
    first = batch_size // (1 + ratio)
    if first * (1 + ratio) != batch_size:
        raise ValueError(
            f"mixed(batch_size={batch_size}, ratio={ratio}): the batch must be a multiple of {1 + ratio}"
        )
    if not len(labelled) or not len(unlabelled):
        raise ValueError(
            f"a batch mixes labelled and unlabelled images, and there are {len(labelled)} and "
            f"{len(unlabelled)} of them. Hide some labels with data.label_fraction=0.1 or "
            "data.labels_per_class=10 and data.keep_unlabelled=True"
        )
    of_labelled = labelled[_endless(seed, 0, step * first, first, len(labelled))]
    others = batch_size - first
    of_unlabelled = unlabelled[_endless(seed, 1, step * others, others, len(unlabelled))]
    return np.concatenate([of_labelled, of_unlabelled]).astype(np.int64)


def oriented(seed: int, step: int, portrait: np.ndarray, *, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the batch of a step in which all images are portraits, or none is.

    Passes follow one another, each in the order of `order`. Portraits and the others fill a batch each; a
    batch is due when it is full, and what does not fill one waits for the next pass. So no image is left out,
    and none comes twice in a pass. This is detectron2's `AspectRatioGroupedDataset`, at any step at once.

    Args:
        seed: the run's seed, >= 0.
        step: counted from 0.
        portrait: bool [N], which images are portraits.
        batch_size: of the whole batch.

    Returns:
        int64 [batch_size], positions; and int64 [batch_size], the passes that they belong to.
    """
    sizes = [int((portrait == kind).sum()) for kind in (False, True)]

    def before(number: int) -> int:
        """The batches that are full before a pass begins."""
        return sum(number * size // batch_size for size in sizes)

    number = step * batch_size // len(portrait)
    while before(number + 1) <= step:
        number += 1

    # The batches that become full in this pass, by the place of their last image in its order.
    due = []
    for kind, size in enumerate(sizes):
        places = np.flatnonzero(portrait[_pass(seed, number, len(portrait))] == bool(kind))
        for batch in range(number * size // batch_size, (number + 1) * size // batch_size):
            last = (batch + 1) * batch_size - 1 - number * size
            due.append((int(places[last]), kind, batch))
    _, kind, batch = sorted(due)[step - before(number)]

    entries = np.arange(batch * batch_size, (batch + 1) * batch_size)
    passes = entries // sizes[kind]
    found = np.empty(batch_size, np.int64)
    for each in range(passes[0], passes[-1] + 1):
        own = _pass(seed, each, len(portrait))
        own = own[portrait[own] == bool(kind)]
        here = passes == each
        found[here] = own[entries[here] % sizes[kind]]
    return found, passes


def _endless(seed: int, stream: int, first: int, count: int, n: int) -> np.ndarray:
    """Return entries first, ..., first + count - 1 of an endless sequence of permutations of 0..n-1."""
    places = np.arange(first, first + count)
    passes = places // n
    found = np.empty(count, np.int64)
    for number in range(passes[0], passes[-1] + 1):
        here = passes == number
        found[here] = _pass(seed, 2 * number + stream, n)[places[here] % n]
    return found


@functools.lru_cache(maxsize=4)
def _pass(seed: int, epoch: int, n: int) -> np.ndarray:
    return order(seed, epoch, n)


def turns(order: np.ndarray) -> np.ndarray:
    """Count, for each entry of an epoch's order, how many times it occurred before: int32 [N]."""
    by_value = np.argsort(order, kind="stable")
    ordered = order[by_value]
    first = np.searchsorted(ordered, ordered)
    out = np.empty(len(order), np.int32)
    out[by_value] = np.arange(len(order)) - first
    return out


def subset(labels: np.ndarray, *, fraction: float = 1.0, per_class: int = 0, seed: int) -> np.ndarray:
    """Draw a balanced labelled subset.

    All subsets with the same seed are prefixes of one sequence that cycles through the classes: a random
    member of each class, then a second one of each, and so on. So the counts of two classes differ by at most
    one while both have members left, and the 1 % subset is contained in the 10 % subset, as in SimCLR's lists
    for ImageNet (12,811 and 128,116 images; imagenet_subsets/ of google-research/simclr).

    Args:
        labels: int [N].
        fraction: share of the N examples, in (0, 1], rounded down. Every class keeps at least one example.
        per_class: number of examples per class; 0 = `fraction` decides.
        seed: seed of the draw.

    Returns:
        int64 indices, sorted.

    Raises:
        ValueError: the fraction is outside (0, 1], a class has fewer than `per_class` examples, or an example
            has no label.
    """
    if per_class < 0 or (per_class == 0 and not 0 < fraction <= 1):
        raise ValueError(
            f"subset(fraction={fraction}, per_class={per_class}): the fraction must lie in (0, 1] and "
            "per_class must be >= 0"
        )
    labels = _all_labelled(labels)
    shuffled = order(seed, 0, len(labels))
    rank = np.empty(len(labels), np.int64)  # position of an example among those of its class
    rank[shuffled] = _rank_in_class(labels[shuffled])
    if per_class:
        _require(labels, per_class)
        return np.flatnonzero(rank < per_class)
    classes, inverse = np.unique(labels, return_inverse=True)
    turn = order(seed, 1, len(classes))[inverse]  # which classes get one example more
    total = max(math.floor(fraction * len(labels) + 1e-6), len(classes))
    return np.sort(np.lexsort((turn, rank))[:total]).astype(np.int64)


def first_per_class(labels: np.ndarray, n: int) -> np.ndarray:
    """Return the first n examples of each class, as sorted int64 indices.

    Args:
        labels: int [N].
        n: number of examples per class.

    Raises:
        ValueError: a class has fewer than n examples, or an example has no label.
    """
    labels = _all_labelled(labels)
    _require(labels, n)
    return np.flatnonzero(_rank_in_class(labels) < n)


def _all_labelled(labels: np.ndarray) -> np.ndarray:
    """Return the labels. Raise a ValueError if one of them is -1, which is not a class to choose from."""
    labels = np.asarray(labels)
    without = np.flatnonzero(labels < 0)
    if len(without):
        raise ValueError(
            f"{len(without)} of {len(labels)} examples have no label (-1), the first at position "
            f"{without[0]}: a subset by label needs a label for every example. Leave the others out first"
        )
    return labels


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """Count, for each example, the examples of the same class before it."""
    grouped = np.argsort(labels, kind="stable")
    _, start, count = np.unique(labels[grouped], return_index=True, return_counts=True)
    rank = np.empty(len(labels), np.int64)
    rank[grouped] = np.arange(len(labels)) - np.repeat(start, count)
    return rank


def _require(labels: np.ndarray, n: int) -> None:
    """Raise a ValueError if a class has fewer than n examples."""
    classes, counts = np.unique(labels, return_counts=True)
    if len(counts) and counts.min() < n:
        raise ValueError(
            f"class {classes[counts.argmin()]} has {counts.min()} examples, but {n} per class were asked "
            f"for: ask for at most {counts.min()} (data.train_per_class, data.labels_per_class), or add "
            "examples of that class"
        )
