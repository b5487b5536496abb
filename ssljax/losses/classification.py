"""Cross entropy and accuracy for labelled images."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """Softmax cross entropy, one value per example.

    Args:
        logits: [B, C], any floating dtype; the softmax is taken in float32.
        labels: int [B], or probabilities [B, C]. A negative integer means no label, and gives a loss of 0.
        label_smoothing: mass s spread evenly over the classes. Targets become (1 - s) * target + s / C.

    Returns:
        float32 [B].

    Raises:
        ValueError: the labels fit neither form.
    """
    logits = logits.astype(jnp.float32)
    classes = logits.shape[-1]
    if labels.shape == logits.shape:
        targets = labels.astype(jnp.float32)
    elif labels.shape == logits.shape[:-1] and jnp.issubdtype(labels.dtype, jnp.integer):
        targets = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
    else:
        raise ValueError(
            f"labels must be integers {logits.shape[:-1]} or probabilities {logits.shape}, "
            f"got {labels.dtype} {labels.shape}"
        )
    if label_smoothing and labels.ndim < logits.ndim:
        smoothed = (1.0 - label_smoothing) * targets + label_smoothing / classes
        targets = jnp.where((labels >= 0)[..., None], smoothed, 0.0)  # no label, no smoothing
    else:
        targets = (1.0 - label_smoothing) * targets + label_smoothing / classes
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The sum over the classes of the logistic loss of each, one value per example.

    Args:
        logits: [B, C], any floating dtype; computed in float32.
        labels: int [B, C]: 1, 0, or another number (-1, 255) for a class that does not count.

    Returns:
        float32 [B].
    """
    logits = logits.astype(jnp.float32)
    sign = 1.0 - 2.0 * (labels == 1).astype(jnp.float32)
    counts = (labels == 0) | (labels == 1)
    return jnp.sum(jnp.where(counts, jax.nn.softplus(sign * logits), 0.0), axis=-1)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether the largest logit is that of the label.

    Args:
        logits: [B, C].
        labels: int [B]; a negative label gives 0.

    Returns:
        float32 [B] of 0 and 1.
    """
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def mean_of_labelled(rows: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over the examples that have a label; 0 if none has.

    Args:
        rows: float32 [B], 0 for an example without a label, as `cross_entropy` and `accuracy` return it.
        labels: int [B], negative for no label.

    Returns:
        float32 scalar. If all examples have a label it equals the plain mean to the last bit, because the
        correction is then a factor of exactly 1.
    """
    labelled = jnp.maximum((labels >= 0).sum(), 1).astype(jnp.float32)
    return jnp.mean(rows) * (rows.shape[0] / labelled)
