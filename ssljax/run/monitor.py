"""Is the run healthy? Bands that are normal for a method, and words for what lies outside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple


class Band(NamedTuple):
    """Where a metric of a healthy run lies, and what to think when it does not.

    Attributes:
        low: below this is `below`'s business.
        high: above this is `above`'s.
        below: what it means and what to do.
        above: likewise.
    """

    low: float
    high: float
    below: str = ""
    above: str = ""


COLLAPSED = (
    "the representations have collapsed: all images get nearly the same embedding. Likely causes: a learning rate too high for "
    "the batch, views so strong that nothing is shared, weight decay or layer-wise adaptation on normalisation parameters"
)
LEAK = (
    "queries find their own key among the whole queue every time. With batch statistics by groups (bn.groups > 1) that is how a leak "
    "through them looks: is bn.shuffle on? Otherwise the views are too alike or the queue too short"
)

# Quantities of ssljax/losses/health.py. Uniformity is 0 at collapse and about -4 on a well-covered sphere.
BANDS: dict[str, dict[str, Band]] = {
    "simclr": {
        "embedding_std": Band(0.1, math.inf, below=COLLAPSED),
        "uniformity": Band(-math.inf, -0.1, above=COLLAPSED),
        "effective_rank": Band(
            2.0, math.inf, below="the embeddings span fewer than two directions: " + COLLAPSED
        ),
    },
    # The loss has no band: between random and good lie a few per cent at MoCo v3's temperature 1, and with a queue it first rises, while
    # the random keys it starts with are replaced. `loss_floor` and `loss_at_collapse` are logged beside it.
    "moco": {
        "embedding_std": Band(0.1, math.inf, below=COLLAPSED),
        "uniformity": Band(-math.inf, -0.1, above=COLLAPSED),
        "effective_rank": Band(
            2.0, math.inf, below="the embeddings span fewer than two directions: " + COLLAPSED
        ),
        "pretext_accuracy": Band(0.0, 0.999, above=LEAK),
    },
    # Without negatives nothing pushes embeddings apart, so their spread is all there is to look at; the loss of a collapsed run is 0.
    "byol": {
        "embedding_std": Band(
            0.1, math.inf, below=COLLAPSED + ", a target that follows too fast, or a missing predictor"
        ),
        "repr_loss": Band(0.01, math.inf, below="predictions match the target almost exactly: " + COLLAPSED),
        "effective_rank": Band(
            2.0, math.inf, below="the embeddings span fewer than two directions: " + COLLAPSED
        ),
    },
    "deepcluster": {
        "largest_cluster": Band(
            0.0,
            0.5,
            above="most images are in one cluster, and telling it apart teaches nothing: is clusters.repair "
            "on, the learning rate too high, do the images differ?",
        ),
    },
    "supervised": {},
}

# The first updates of any run start from nearly equal embeddings; silence until then.
QUIET_STEPS = 50


def warnings(method: str, step: int, metrics: Mapping[str, float]) -> list[str]:
    """What is unusual in the metrics of one logged step, in words; empty for a healthy run.

    Args:
        method: a key of METHODS; a method without bands is never unusual.
        step: the number of updates done.
        metrics: host floats.
    """
    if step < QUIET_STEPS or method not in BANDS:
        return []
    found = []
    for name, band in BANDS[method].items():
        if name not in metrics:
            continue
        value = metrics[name]
        if value < band.low:
            found.append(
                f"step {step}: {name} = {value:.3g}, below the {band.low:g} of a healthy {method} run: {band.below}"
            )
        elif value > band.high:
            found.append(
                f"step {step}: {name} = {value:.3g}, above the {band.high:g} of a healthy {method} run: {band.above}"
            )
    return found


class NotFinite(FloatingPointError):
    """A metric is NaN or infinite: the run stops before it can be checkpointed."""


def check_finite(step: int, metrics: Mapping[str, float]) -> None:
    """Stops a run that has left the real numbers.

    Raises:
        NotFinite: names the metrics and what to do.
    """
    bad = [f"{name} = {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise NotFinite(
            f"step {step}: {', '.join(bad)}. The run stops; its last good checkpoint is untouched. Lower optim.learning_rate, "
            "lengthen optim.warmup_epochs, or look at the images with `ssljax preview`; then start the same command again."
        )
