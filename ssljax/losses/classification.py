"""Cross entropy for labelled images."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """Softmax cross entropy, one value an example.

    Args:
        logits: [B, C], any floating dtype; the softmax is taken in float32.
        labels: int [B], or probabilities [B, C]. A negative integer is no label: its row's loss is 0.
        label_smoothing: mass s spread evenly: targets become (1 - s) * target + s / C.

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


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1 where the largest logit is the label's -> float32 [B]. labels: int [B]; a negative one gives 0."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def mean_of_labelled(rows: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over examples with a label, 0 where there are none.

    Args:
        rows: float32 [B], 0 for an example without a label, as `cross_entropy` and `accuracy` give it.
        labels: int [B], negative for no label.

    Returns:
        float32 scalar. With all labels it is the plain mean to the last bit: what that is multiplied by is 1.
    """
    labelled = jnp.maximum((labels >= 0).sum(), 1).astype(jnp.float32)
    return jnp.mean(rows) * (rows.shape[0] / labelled)
