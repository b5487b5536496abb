"""Cross entropy of every pixel.

    mean over the batch's pixels that have a class         PyTorch's default
    mean over images of the mean over an image's pixels    shelhamer/fcn.berkeleyvision.org, image by image

The two weigh images differently as soon as one has more ignored pixels than another.
"""

import jax
import jax.numpy as jnp
import optax

IGNORED = 255


def pixel_cross_entropy(logits: jax.Array, labels: jax.Array, *, per_image: bool = False) -> jax.Array:
    """Softmax cross entropy of the pixels that have a class, one value per image.

    Args:
        logits: [B, H, W, C], any floating dtype; the softmax is taken in float32.
        labels: int [B, H, W]; pixels with IGNORED count nowhere.
        per_image: the mean over the image's own pixels. Otherwise the values are scaled so that their mean
            over the batch is the mean over all its pixels, on however many devices it lies.

    Returns:
        float32 [B]; 0 for an image without a pixel that counts.
    """
    counts = labels != IGNORED
    classes = jnp.where(counts, labels, 0).astype(jnp.int32)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), classes)
    total = jnp.where(counts, nll, 0.0).sum((1, 2))
    if per_image:
        return total / jnp.maximum(counts.sum((1, 2)), 1).astype(jnp.float32)
    return total * (labels.shape[0] / jnp.maximum(counts.sum(), 1).astype(jnp.float32))


def pixel_accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of the pixels with a class whose largest logit is that class, in the whole batch: float32 []."""
    counts = labels != IGNORED
    right = counts & (jnp.argmax(logits, axis=-1) == labels.astype(jnp.int32))
    return right.sum().astype(jnp.float32) / jnp.maximum(counts.sum(), 1).astype(jnp.float32)
