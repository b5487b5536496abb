"""Average precision, in the forms that benchmarks use.

With scores from high to low, P_k and R_k are the precision and the recall of the first k.

    step            sum of (R_k - R_(k-1)) P_k, scikit-learn's
    envelope        the same, of the maximum of P_j over all j >= k: VISSL's SVM, PASCAL VOC since 2010
    eleven points   mean over r = 0, 0.1, ..., 1 of the largest P_k with R_k >= r: PASCAL VOC 2007
    trapezoid       mean over the positives of the mean precision before and after each: Oxford and Paris
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def precision_and_recall(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P_k and R_k for k = 1..N. Of equal scores, the first counts as higher.

    Args:
        scores: [N].
        positive: bool [N], with one True at least.
    """
    hits = np.cumsum(positive[np.argsort(-scores, kind="stable")])
    return hits / np.arange(1, len(hits) + 1), hits / hits[-1]


def step(scores: np.ndarray, positive: np.ndarray) -> float:
    """scikit-learn's average precision: images with equal scores are found together.

    DeepCluster's PASCAL VOC classification subtracts 1e-5 from the scores of positives first, so that ties
    count against them. The arguments are those of `precision_and_recall`.
    """
    precision, recall = precision_and_recall(scores, positive)
    ordered = -np.sort(-scores)
    last = np.append(ordered[1:] != ordered[:-1], True)
    return float((np.diff(recall[last], prepend=0.0) * precision[last]).sum())


def envelope(scores: np.ndarray, positive: np.ndarray) -> float:
    """The area under the smallest falling curve above all precisions; see `precision_and_recall`."""
    precision, recall = precision_and_recall(scores, positive)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * falling).sum())


def eleven_points(scores: np.ndarray, positive: np.ndarray) -> float:
    """PASCAL VOC 2007's average precision; see `precision_and_recall`."""
    precision, recall = precision_and_recall(scores, positive)
    # A tenth of 10 is not 0.1 in binary, so recalls that are tenths are compared with a margin.
    reached = [precision[recall >= r / 10 - 1e-9].max(initial=0.0) for r in range(11)]
    return float(np.mean(reached))


def over_classes(
    measure: Callable[[np.ndarray, np.ndarray], float], scores: np.ndarray, labels: np.ndarray
) -> float:
    """The mean in percent over the classes that an image shows, without difficult images.

    Args:
        measure: `step`, `envelope` or `eleven_points`.
        scores, labels: [N, classes]; a label is 1, 0, or -1 for difficult.

    Raises:
        ValueError: no image shows a class.
    """
    each = []
    for k, sure in enumerate((labels >= 0).T):
        positive = labels[sure, k] == 1
        if positive.any():
            each.append(measure(scores[sure, k], positive))
    if not each:
        raise ValueError(
            f"average precision needs images with a class; none of {len(labels)} has one for sure"
        )
    return 100.0 * float(np.mean(each))


def trapezoid(similarity: np.ndarray, wanted: np.ndarray, junk: np.ndarray) -> tuple[float, np.ndarray]:
    """The average precision of one query of Oxford, Paris and their revisited forms.

    Args:
        similarity: [N], to every image of the database.
        wanted: positions that should be found.
        junk: positions that do not count, neither as found nor as wrong.

    Returns:
        The average precision, NaN if nothing should be found; and the ranks of what should be found, from 0,
        sorted, with the junk taken out.
    """
    counted = np.ones(len(similarity), bool)
    counted[junk] = False
    positive = np.zeros(len(similarity), bool)
    positive[wanted] = True
    order = np.argsort(-similarity, kind="stable")
    ranks = np.flatnonzero(positive[order[counted[order]]])
    if not len(ranks):
        return float("nan"), ranks
    before = np.arange(len(ranks)) / np.maximum(ranks, 1)
    before[ranks == 0] = 1.0
    after = np.arange(1, len(ranks) + 1) / (ranks + 1)
    return float((before + after).sum() / 2 / len(wanted)), ranks


def precision_at(ranks: np.ndarray, k: int) -> float:
    """revisitop's precision of the first k, or of fewer if all that should be found comes earlier.

    Args:
        ranks: int [P], P > 0, as `trapezoid` returns them.
        k: how many of the first count.
    """
    k = min(int(ranks.max()) + 1, k)
    return float((ranks < k).sum() / k)


def precision_at_recalls(similarity: np.ndarray, wanted: np.ndarray, junk: np.ndarray) -> np.ndarray:
    """The largest precision of one query at each recall from 0, 0.1, ... to 1 or more, float64 [11].

    The arguments are those of `trapezoid`; something should be found.
    """
    _, ranks = trapezoid(similarity, wanted, junk)
    precision = np.arange(1, len(ranks) + 1) / (ranks + 1)
    recall = np.arange(1, len(ranks) + 1) / len(ranks)
    return np.array([precision[recall >= r / 10 - 1e-9].max() for r in range(11)])


def mean_ap(
    similarity: np.ndarray, wanted: Sequence[np.ndarray], junk: Sequence[np.ndarray]
) -> tuple[float, np.ndarray, dict[int, float]]:
    """The mean of `trapezoid` over the queries for which something should be found.

    Args:
        similarity: [Q, N], from each query to every image of the database.
        wanted, junk: for each query, see `trapezoid`.

    Returns:
        The mean, in 0..1; the average precision of each query, [Q], NaN where nothing should be found; and
        the mean precision of the first 1, 5 and 10.
    """
    found = [trapezoid(*one) for one in zip(similarity, wanted, junk, strict=True)]
    each = np.array([ap for ap, _ in found])
    ranks = [rank for _, rank in found if len(rank)]
    precisions = {k: float(np.mean([precision_at(rank, k) for rank in ranks])) for k in (1, 5, 10)}
    return float(np.nanmean(each)), each, precisions
