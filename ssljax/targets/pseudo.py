"""Pseudo-labels: what a teacher says about every unlabelled image, and how often each of them is taken."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

BINS = 100  # of the confidence, from 0 to 1


class PseudoLabels(NamedTuple):
    """The teacher's labels, by image id; the last rows may belong to no image.

    Attributes:
        probabilities: float32 [ids, K], of all classes in their order or of the K most likely ones, the
            largest first; zeros for an image that has a label of its own.
        copies: int32 [ids], how often an epoch takes the image; 0 leaves it out.
        classes: int32 [ids, K], the classes that the probabilities belong to; () if they are of all classes.
    """

    probabilities: jax.Array
    copies: jax.Array
    classes: jax.Array | tuple[()] = ()


def none(ids: int, classes: int, *, top: int = 0) -> PseudoLabels:
    """No labels yet; `top` is K, and 0 keeps all classes."""
    probabilities = jnp.zeros((ids, top or classes), jnp.float32)
    return PseudoLabels(
        probabilities, jnp.zeros(ids, jnp.int32), jnp.zeros((ids, top), jnp.int32) if top else ()
    )


def largest(probabilities: jax.Array, top: int) -> jax.Array:
    """The K = `top` largest of the probabilities [B, C], then their classes, as float32 [B, 2 K]."""
    values, classes = jax.lax.top_k(probabilities, top)
    return jnp.concatenate([values, classes.astype(jnp.float32)], axis=1)  # exact below 2^24 classes


def looked_up(labels: PseudoLabels, index: jax.Array, classes: int) -> jax.Array:
    """The probabilities of all classes for these images.

    What the K largest leave is spread evenly over the other classes.

    Args:
        labels: of all images.
        index: int32 [B], ids.
        classes: C.

    Returns:
        float32 [B, C].
    """
    found = labels.probabilities[index]
    if isinstance(labels.classes, tuple):
        return found
    others = max(classes - found.shape[1], 1)
    rest = jnp.maximum(1.0 - found.sum(1, keepdims=True), 0.0) / others
    spread = jnp.broadcast_to(rest, (len(found), classes))
    return spread.at[jnp.arange(len(found))[:, None], labels.classes[index]].set(found)


def soft(probabilities: jax.Array, *, temperature: float) -> jax.Array:
    """The teacher's probabilities q as targets: q^(1/T), renormalised, and never smoothed.

    Args:
        probabilities: float32 [B, C].
        temperature: T; 1 takes them as they are.

    Returns:
        float32 [B, C].
    """
    # Relative to the largest, so that no power underflows; an image without labels has only zeros.
    largest = jnp.maximum(probabilities.max(-1, keepdims=True), 1e-30)
    powers = (probabilities / largest) ** (1.0 / temperature)
    return powers / jnp.maximum(powers.sum(-1, keepdims=True), 1e-30)


def hard(probabilities: jax.Array, *, label_smoothing: float) -> jax.Array:
    """The teacher's most likely class as a smoothed one-hot target.

    Args:
        probabilities: float32 [B, C].
        label_smoothing: probability that is spread over all classes.

    Returns:
        float32 [B, C].
    """
    classes = probabilities.shape[-1]
    one_hot = jax.nn.one_hot(jnp.argmax(probabilities, -1), classes, dtype=jnp.float32)
    return one_hot * (1.0 - label_smoothing) + label_smoothing / classes


def copies(
    label: jax.Array,
    confidence: jax.Array,
    key: jax.Array,
    *,
    classes: int,
    threshold: float,
    per_class: int,
) -> jax.Array:
    """How often each image is taken: a filter by confidence, and classes of equal size (Noisy Student, 3.2).

    Of every class the images are taken in bins of 0.01 of confidence, from the most confident bin on, until
    there are `per_class` of them or the bin begins at the threshold. If n were taken, each occurs
    per_class / n times: the whole part always, and once more with the probability of the rest. So a large
    class is thinned evenly and a small one duplicated (google-research/noisystudent, filter_unlabel.py).

    Args:
        label: int32 [N], the class that the teacher names.
        confidence: float32 [N], its probability.
        key: of the draws.
        classes: number of classes.
        threshold: smallest confidence.
        per_class: images per class; 0 takes each confident image once.

    Returns:
        int32 [N].
    """
    lowest = round(threshold * BINS)
    place = jnp.clip((confidence * BINS + 1e-4).astype(jnp.int32), 0, BINS - 1)  # 1.0 is in the highest bin
    confident = place >= lowest
    if not per_class:
        return confident.astype(jnp.int32)

    counts = jnp.zeros((classes, BINS), jnp.int32).at[label, place].add(confident.astype(jnp.int32))
    above = jnp.cumsum(counts[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1]  # images in a bin or higher
    enough = above >= per_class
    # The highest bin at which there are enough, or the lowest of all.
    first = jnp.where(enough.any(1), BINS - 1 - jnp.argmax(enough[:, ::-1], axis=1), lowest)
    taken = jnp.take_along_axis(above, first[:, None], axis=1)[:, 0]

    share = jnp.float32(per_class) / jnp.maximum(taken, 1).astype(jnp.float32)
    whole = jnp.floor(share[label])
    more = jax.random.uniform(key, label.shape, jnp.float32) < share[label] - whole
    wanted = whole.astype(jnp.int32) + more.astype(jnp.int32)
    return jnp.where(place >= first[label], wanted, 0)
