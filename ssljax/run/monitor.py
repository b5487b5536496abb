"""The health of a run: the normal range of each metric for a method, and what it means to leave it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple


class Band(NamedTuple):
    """The range of a metric in a healthy run, and what it means to leave it.

    Attributes:
        low: the lowest healthy value.
        high: the highest healthy value.
        below: what a lower value means, and what to do.
        above: what a higher value means, and what to do.
    """

    low: float
    high: float
    below: str = ""
    above: str = ""


COLLAPSED = (
    "the representations have collapsed: all images get nearly the same embedding. Likely causes: a learning "
    "rate that is too high for the batch size, augmentations so strong that the views share nothing, weight "
    "decay or layer-wise adaptation on normalisation parameters"
)
FEW_DIRECTIONS = "the embeddings span fewer than two directions: " + COLLAPSED
LEAK = (
    "queries find their own key in the whole queue every time. If batch statistics are computed in groups "
    "(bn.groups > 1), they may give the key away: check that bn.shuffle is on. Otherwise the views are too "
    "alike or the queue is too short"
)

DEAD_CODES = (
    "most codes of the codebook are never used, and do not come back. Likely causes: dvae.kl_weight that "
    "rises too late or is too small, a learning rate that is too high, a temperature that falls too early"
)

# Quantities of ssljax/losses/health.py. Uniformity is 0 at collapse and about -4 on a well-covered sphere.
BANDS: dict[str, dict[str, Band]] = {
    "simclr": {
        "embedding_std": Band(0.1, math.inf, below=COLLAPSED),
        "uniformity": Band(-math.inf, -0.1, above=COLLAPSED),
        "effective_rank": Band(2.0, math.inf, below=FEW_DIRECTIONS),
    },
    # The loss has no band. At MoCo v3's temperature of 1, random and good lie only a few per cent apart, and
    # with a queue the loss first rises while the random keys are replaced. `loss_floor` and
    # `loss_at_collapse` are logged beside it.
    "moco": {
        "embedding_std": Band(0.1, math.inf, below=COLLAPSED),
        "uniformity": Band(-math.inf, -0.1, above=COLLAPSED),
        "effective_rank": Band(2.0, math.inf, below=FEW_DIRECTIONS),
        "pretext_accuracy": Band(0.0, 0.999, above=LEAK),
    },
    # Without negatives nothing pushes embeddings apart, so only their spread can be watched. The loss of a
    # collapsed run is 0.
    "byol": {
        "embedding_std": Band(
            0.1, math.inf, below=COLLAPSED + ", a target that follows too fast, or a missing predictor"
        ),
        "repr_loss": Band(0.01, math.inf, below="predictions match the target almost exactly: " + COLLAPSED),
        "effective_rank": Band(2.0, math.inf, below=FEW_DIRECTIONS),
    },
    "deepcluster": {
        "largest_cluster": Band(
            0.0,
            0.5,
            above="most images are in one cluster, and predicting it teaches nothing: check that "
            "clusters.repair is on, that the learning rate is not too high, and that the images differ",
        ),
    },
    "supervised": {},
    "cmc": {
        "embedding_std": Band(0.1, math.inf, below=COLLAPSED),
        "uniformity": Band(-math.inf, -0.1, above=COLLAPSED),
        "effective_rank": Band(2.0, math.inf, below=FEW_DIRECTIONS),
    },
    "dvae": {
        "codebook_usage": Band(0.05, math.inf, below=DEAD_CODES),
        "codebook_perplexity": Band(2.0, math.inf, below=DEAD_CODES),
    },
}

# Embeddings are nearly equal in the first updates of any run, so there are no warnings before this step.
QUIET_STEPS = 50


def warnings(method: str, step: int, metrics: Mapping[str, float]) -> list[str]:
    """Warnings about the metrics of one logged step; empty for a healthy run.

    Args:
        method: a key of METHODS; a method without bands gets no warnings.
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
        seen = f"step {step}: {name} = {value:.3g}"
        healthy = f"of a healthy {method} run"
        if value < band.low:
            found.append(f"{seen}, below the {band.low:g} {healthy}: {band.below}")
        elif value > band.high:
            found.append(f"{seen}, above the {band.high:g} {healthy}: {band.above}")
    return found


class NotFinite(FloatingPointError):
    """A metric is NaN or infinite. The run stops before such a state is checkpointed."""


def check_finite(step: int, metrics: Mapping[str, float], resumed_from: str = "") -> None:
    """Stop a run that has diverged.

    Args:
        step: the number of updates done.
        metrics: host floats.
        resumed_from: the folder of the checkpoint that the run was resumed from, if these are the first
            metrics since then.

    Raises:
        NotFinite: a metric is NaN or infinite; names the metrics and what to do.
    """
    bad = [f"{name} = {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if bad and resumed_from:
        raise NotFinite(
            f"step {step}: {', '.join(bad)}. The run stops. These are its first metrics since it was resumed "
            f"from {resumed_from}, so suspect that checkpoint first: it is damaged, or the run had diverged "
            f"before it was written. Move it away (mv {resumed_from} {resumed_from}.suspect): the same "
            "command then goes on from the checkpoint before it. If that ends here too, start again with a "
            "lower optim.learning_rate and another --workdir."
        )
    if bad:
        raise NotFinite(
            f"step {step}: {', '.join(bad)}. The run stops; its last good checkpoint is untouched. "
            "Lower optim.learning_rate, lengthen optim.warmup_epochs, or look at the images with "
            "`ssljax preview`; then start again with another --workdir, because a run keeps its settings."
        )
