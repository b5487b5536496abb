"""Losses of a two-stage detector, and the random choice of what they are computed on.

    RPN     sum of BCE / (256 images)                 sum of |delta - target| over positives / (256 images)
    head    mean of cross entropy over the RoIs       sum of |delta - target| over foreground / number of RoIs

Neither box loss is a mean over positives: an image with few of them counts less. All losses are scaled so
that their mean over the batch is the value above, on however many devices the batch lies. The conventions are
those of facebookresearch/detectron2 at 02b5c4e. Faster R-CNN: Ren et al., 2015, arXiv 1506.01497.
"""

import jax
import jax.numpy as jnp
import optax


def smooth_l1(prediction: jax.Array, target: jax.Array, *, beta: float) -> jax.Array:
    """Quadratic up to a distance of `beta`, linear with slope 1 from there on; beta = 0 is the plain L1 loss.

    This is the Huber loss divided by beta.

    Args:
        prediction: any shape.
        target: the same shape.
        beta: where the quadratic part ends.

    Returns:
        float32, the same shape.
    """
    distance = jnp.abs(prediction.astype(jnp.float32) - target.astype(jnp.float32))
    if beta == 0:
        return distance
    return jnp.where(distance < beta, 0.5 * distance**2 / beta, distance - 0.5 * beta)


def rpn_losses(
    logits: jax.Array,
    deltas: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    targets: jax.Array,
    *,
    per_image: int = 256,
    beta: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Losses of the region proposal network.

    Args:
        logits: [B, N] of "an object", for N anchors.
        deltas: [B, N, 4].
        labels: int [B, N], 1 for positive anchors.
        weights: float32 [B, N], 1 for the anchors that were sampled, else 0.
        targets: float32 [B, N, 4], deltas of the matched true boxes; read only for sampled positives.
        per_image: how many anchors are sampled per image. The divisor, also where fewer were found.
        beta: of `smooth_l1`.

    Returns:
        objectness: float32 [B].
        box: float32 [B].
    """
    sampled = weights > 0
    positive = labels == 1
    logits = jnp.where(sampled, logits.astype(jnp.float32), 0.0)
    bce = optax.sigmoid_binary_cross_entropy(logits, positive.astype(jnp.float32))
    objectness = jnp.where(sampled, bce, 0.0).sum(axis=1) / per_image
    return objectness, _box_loss(deltas, targets, sampled & positive, beta).sum(axis=1) / per_image


def head_losses(
    logits: jax.Array,
    deltas: jax.Array,
    classes: jax.Array,
    weights: jax.Array,
    targets: jax.Array,
    *,
    beta: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Losses of the box head (Fast R-CNN).

    Args:
        logits: [B, T, K + 1] of K classes and the background, which is the last.
        deltas: [B, T, K, 4], one per class.
        classes: int [B, T], true classes of the RoIs, K for background.
        weights: float32 [B, T], 1 for RoIs that exist, else 0.
        targets: float32 [B, T, 4], deltas of the matched true boxes; read only for foreground.
        beta: of `smooth_l1`.

    Returns:
        classification: float32 [B].
        box: float32 [B].
    """
    exists = weights > 0
    per_image = jnp.maximum(exists.sum(), 1).astype(jnp.float32) / exists.shape[0]
    nll = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), classes)
    classification = jnp.where(exists, nll, 0.0).sum(axis=1) / per_image

    own = classes[..., None] == jnp.arange(deltas.shape[2])[None, None]  # [B, T, K], nowhere for background
    box = _box_loss(deltas, targets[:, :, None], own & exists[..., None], beta)
    return classification, box.sum(axis=(1, 2)) / per_image


def _box_loss(deltas: jax.Array, targets: jax.Array, mask: jax.Array, beta: float) -> jax.Array:
    """Sum of the four distances where `mask` is set, else 0, also if the target is not finite there."""
    targets = jnp.where(mask[..., None], targets, 0.0)
    deltas = jnp.where(mask[..., None], deltas.astype(jnp.float32), 0.0)
    return smooth_l1(deltas, targets, beta=beta).sum(axis=-1)


def sample(key: jax.Array, labels: jax.Array, *, count: int, positives: int) -> jax.Array:
    """Draw positives, and fill up with background.

    Args:
        key: of one image.
        labels: int [N], 1 positive, 0 background, else never drawn (see `boxes.match`).
        count: how many are drawn; fewer where fewer exist.
        positives: how many of them are positive at most.

    Returns:
        float32 [N], 1 for what was drawn, else 0.
    """
    noise = jax.random.uniform(key, labels.shape)

    def draw(mask: jax.Array, most: int, limit: jax.Array) -> jax.Array:
        drawn, index = jax.lax.top_k(jnp.where(mask, noise, -1.0), min(most, noise.size))
        exists = (drawn >= 0) & (jnp.arange(index.size) < limit)
        return jnp.zeros_like(noise).at[index].set(exists.astype(noise.dtype))

    positive = draw(labels == 1, positives, jnp.array(positives))
    background = draw(labels == 0, count, count - positive.sum().astype(jnp.int32))
    return positive + background


def drawn_first(labels: jax.Array, weights: jax.Array, *, count: int) -> tuple[jax.Array, jax.Array]:
    """Which RoIs go through the head: the drawn ones, and others to fill the fixed number of places.

    Args:
        labels: int [N], as given to `sample`.
        weights: float32 [N], from `sample`.
        count: places.

    Returns:
        index: int32 [min(count, N)]: drawn positives, drawn background, others; each by index.
        weight: float32 [min(count, N)], 1 for what was drawn, else 0.
    """
    order = weights * (1.0 + (labels == 1).astype(weights.dtype))
    _, index = jax.lax.top_k(order, min(count, order.size))
    return index, weights[index]
