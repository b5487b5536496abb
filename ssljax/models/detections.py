"""From the outputs of a detector's two stages to boxes, for one image each: `vmap` them over a batch.

    propose   best logits -> decode -> clip -> drop empty boxes -> NMS -> best proposals
    detect    softmax -> drop small scores -> decode -> clip -> NMS within each class -> best detections

The conventions are those of facebookresearch/detectron2 at 02b5c4e. Neither function passes a gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssljax.models.boxes import HEAD_WEIGHTS, RPN_WEIGHTS, clip, decode, nms, nonempty


class Proposals(NamedTuple):
    """Boxes of the first stage, by falling logit.

    Attributes:
        boxes: float32 [P, 4], 0 where there is none.
        logits: float32 [P], -inf where there is none.
        exists: bool [P].
    """

    boxes: jax.Array
    logits: jax.Array
    exists: jax.Array


class Detections(NamedTuple):
    """Boxes of the second stage, by falling score.

    Attributes:
        boxes: float32 [D, 4], 0 where there is none.
        scores: float32 [D], 0 where there is none.
        classes: int32 [D], -1 where there is none.
        proposal: int32 [D], index of the proposal that a box was made from.
        exists: bool [D].
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array
    proposal: jax.Array
    exists: jax.Array


def propose(
    logits: jax.Array,
    deltas: jax.Array,
    anchors: jax.Array,
    size: jax.Array,
    *,
    before: int,
    after: int,
    threshold: float = 0.7,
) -> Proposals:
    """The best boxes of the region proposal network.

    Args:
        logits: [N]; -inf for anchors of cells that are padding.
        deltas: [N, 4].
        anchors: float32 [N, 4].
        size: height and width of the image without its padding, in pixels, [2].
        before: how many of the best logits enter the suppression (12,000 in training, 6,000 in a test).
        after: how many proposals are returned at most (2,000 and 1,000).
        threshold: of the suppression.

    Returns:
        `after` proposals. A box that is not finite never is one.
    """
    logits, deltas = jax.lax.stop_gradient((logits.astype(jnp.float32), deltas))
    best, index = jax.lax.top_k(logits, min(before, logits.size))
    decoded = decode(deltas[index], anchors[index], weights=RPN_WEIGHTS)
    boxes = clip(decoded, size)
    usable = nonempty(boxes) & jnp.isfinite(decoded).all(axis=-1) & jnp.isfinite(best)
    best = jnp.where(usable, best, -jnp.inf)
    chosen, exists = nms(boxes, best, threshold=threshold, keep=after)
    return Proposals(
        boxes=jnp.where(exists[:, None], boxes[chosen], 0.0),
        logits=jnp.where(exists, best[chosen], -jnp.inf),
        exists=exists,
    )


def detect(
    logits: jax.Array,
    deltas: jax.Array,
    proposals: jax.Array,
    exists: jax.Array,
    size: jax.Array,
    *,
    keep: int = 100,
    score: float = 0.05,
    threshold: float = 0.5,
) -> Detections:
    """The best boxes of the box head.

    Args:
        logits: [P, K + 1] of K classes and the background, which is the last.
        deltas: [P, K, 4], one per class.
        proposals: float32 [P, 4].
        exists: bool [P].
        size: height and width of the image without its padding, in pixels, [2].
        keep: how many are returned at most, over all classes.
        score: only what has a larger probability is a detection.
        threshold: of the suppression within each class.

    Returns:
        `keep` detections, in the coordinates of the network's input.
    """
    logits, deltas = jax.lax.stop_gradient((logits.astype(jnp.float32), deltas))
    places, classes, _ = deltas.shape
    decoded = decode(deltas, proposals[:, None], weights=HEAD_WEIGHTS).reshape(-1, 4)
    probability = jax.nn.softmax(logits)[:, :classes].reshape(-1)
    usable = jnp.repeat(exists, classes) & jnp.isfinite(decoded).all(axis=-1) & (probability > score)
    ranked = jnp.where(usable, probability, -jnp.inf)
    names = jnp.tile(jnp.arange(classes), places)

    boxes = clip(decoded, size)
    chosen, found = nms(boxes, ranked, threshold=threshold, keep=keep, classes=names)
    return Detections(
        boxes=jnp.where(found[:, None], boxes[chosen], 0.0),
        scores=jnp.where(found, probability[chosen], 0.0),
        classes=jnp.where(found, names[chosen], -1),
        proposal=chosen // classes,
        exists=found,
    )
