"""Contrastive losses. They take embeddings as the network gives them and normalise inside."""

import jax
import jax.numpy as jnp

from ssljax.losses.bank import bank_info_nce, bank_scores, nce, nce_z
from ssljax.losses.similarity import dot, l2_normalize

__all__ = [
    "bank_info_nce",
    "bank_scores",
    "contrast_accuracy",
    "in_batch_info_nce",
    "info_nce",
    "nce",
    "nce_z",
    "nt_xent",
    "nt_xent_with_memory",
    "queue_accuracy",
    "queue_similarities",
]

# What the released code subtracts from a masked logit. It is finite, so no softmax sees a row of -inf.
MASKED = 1e9


def nt_xent(z1: jax.Array, z2: jax.Array, *, temperature: float) -> jax.Array:
    """The normalised temperature-scaled cross entropy of SimCLR (arXiv 2002.05709, equation 1).

        l(i, j) = -log  exp(sim(z_i, z_j) / tau) / sum_{k != i} exp(sim(z_i, z_k) / tau)

    It follows objective.py of google-research/simclr. Under jit the batch is one array. The negatives of a
    row are all other 2B - 2 rows, on however many devices they live, and the gradient flows through both
    sides of every similarity.

    Args:
        z1: [B, D] embeddings of view 1, unnormalised.
        z2: [B, D] embeddings of view 2; row i shows the same image as row i of z1.
        temperature: tau, which divides the cosine similarities.

    Returns:
        float32 [2B]: the rows of view 1, then those of view 2. Their mean is the paper's loss; the released
        code's loss is twice that.

    Raises:
        ValueError: the two views do not have the same [B, D] shape.
    """
    if z1.shape != z2.shape or z1.ndim != 2:
        raise ValueError(
            f"nt_xent pairs row i of z1 with row i of z2: both must be [B, D], got {z1.shape} and {z2.shape}"
        )
    z1 = l2_normalize(z1)
    z2 = l2_normalize(z2)
    tau = jnp.float32(temperature)
    itself = MASKED * jnp.eye(z1.shape[0], dtype=jnp.float32)
    ab = dot(z1, z2) / tau
    aa = dot(z1, z1) / tau - itself
    ba = dot(z2, z1) / tau
    bb = dot(z2, z2) / tau - itself
    return jnp.concatenate([_first_block_diagonal(ab, aa), _first_block_diagonal(ba, bb)])


def nt_xent_with_memory(
    q1: jax.Array,
    q2: jax.Array,
    k1: jax.Array,
    k2: jax.Array,
    queue: jax.Array,
    *,
    temperature: float,
) -> jax.Array:
    """NT-Xent against a moving-average network and its memory (SimCLRv2, arXiv 2006.10029, section 2).

        l(q1_i) = -log  exp(q1_i.k2_i / tau) / Z_i
        Z_i     = sum_j exp(q1_i.k2_j / tau) + sum_{j != i} exp(q1_i.k1_j / tau) + sum_m exp(q1_i.m / tau)

    and the same for q2 with k1 and k2 exchanged; m are the rows of the memory. If the moving average is the
    network itself and the memory is empty, this is `nt_xent`. The paper describes the memory in words only;
    these are the terms that its description and its authors' replies name.

    Args:
        q1: [B, D] embeddings of view 1 by the trained network, unnormalised.
        q2: [B, D] those of view 2.
        k1: [B, D] embeddings of view 1 by the moving average, unnormalised; the caller stops the gradient.
        k2: [B, D] those of view 2.
        queue: [K, D] embeddings of earlier batches by the moving average; K may be 0.
        temperature: tau, which divides the cosine similarities.

    Returns:
        float32 [2B], the rows of view 1 and then those of view 2. log(2B - 1 + K) if all embeddings are
        equal.

    Raises:
        ValueError: the shapes do not agree.
    """
    if not q1.shape == q2.shape == k1.shape == k2.shape or queue.shape[1:] != q1.shape[1:]:
        raise ValueError(
            "nt_xent_with_memory pairs rows of q1, q2, k1 and k2 [B, D] and compares them with all rows of "
            f"queue [K, D], got {q1.shape}, {q2.shape}, {k1.shape}, {k2.shape} and {queue.shape}"
        )
    own_view = MASKED * jnp.eye(q1.shape[0], dtype=jnp.float32)
    memory = l2_normalize(queue)

    def rows(q: jax.Array, same_view: jax.Array, other_view: jax.Array) -> jax.Array:
        positives = dot(q, other_view) / temperature
        same = dot(q, same_view) / temperature - own_view
        others = jnp.concatenate([same, dot(q, memory) / temperature], axis=1)
        return _first_block_diagonal(positives, others)

    q1, q2, k1, k2 = (l2_normalize(z) for z in (q1, q2, k1, k2))
    return jnp.concatenate([rows(q1, k1, k2), rows(q2, k2, k1)])


def _first_block_diagonal(positives: jax.Array, others: jax.Array) -> jax.Array:
    """Cross entropy over the columns of [positives [B, B] | others [B, N]], with label i for row i -> [B]."""
    logits = jnp.concatenate([positives, others], axis=1)
    return jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(positives)


def contrast_accuracy(z1: jax.Array, z2: jax.Array) -> jax.Array:
    """Whether a row of view 1 is nearest to its own row among the B rows of view 2.

    This is the released code's metric: a B-way problem, easier than the (2B - 1)-way problem of the loss.

    Args:
        z1: [B, D] embeddings of view 1, unnormalised.
        z2: [B, D] embeddings of view 2, unnormalised.

    Returns:
        float32 [B] of 0 and 1.
    """
    similarity = jax.lax.stop_gradient(dot(l2_normalize(z1), l2_normalize(z2)))
    return (jnp.argmax(similarity, axis=1) == jnp.arange(z1.shape[0])).astype(jnp.float32)


def info_nce(q: jax.Array, k: jax.Array, queue: jax.Array, *, temperature: float) -> jax.Array:
    """MoCo's loss (arXiv 1911.05722, equation 1): one positive key and K negatives from the queue.

        l(q) = -log  exp(q.k / tau) / (exp(q.k / tau) + sum_j exp(q.queue_j / tau))

    The keys of the batch are not negatives of each other. No gradient flows to the keys and the queue.

    Args:
        q: [B, D] queries, unnormalised.
        k: [B, D] keys, unnormalised; row i shows the same image as row i of q.
        queue: [K, D] keys of earlier batches.
        temperature: tau, which divides the cosine similarities.

    Returns:
        float32 [B]. With K random negatives and a perfect key it is log(1 + K exp(-1/tau)), not 0; without
        learning it is log(K + 1).

    Raises:
        ValueError: queries and keys differ in shape, or the queue has another width.
    """
    if q.shape != k.shape or q.ndim != 2 or queue.shape[1:] != q.shape[1:]:
        raise ValueError(
            "info_nce compares row i of q [B, D] with row i of k [B, D] and all rows of queue [K, D], "
            f"got {q.shape}, {k.shape} and {queue.shape}"
        )
    positive, negatives = queue_similarities(q, k, queue)
    logits = jnp.concatenate([positive[:, None], negatives], axis=1) / temperature
    return jax.nn.logsumexp(logits, axis=1) - logits[:, 0]


def queue_similarities(q: jax.Array, k: jax.Array, queue: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine similarities of queries with their own keys and with the queue. Only q gets a gradient.

    Args:
        q: [B, D] queries, unnormalised.
        k: [B, D] keys, unnormalised.
        queue: [K, D].

    Returns:
        float32 [B] and float32 [B, K].
    """
    q = l2_normalize(q)
    k = jax.lax.stop_gradient(l2_normalize(k))
    queue = jax.lax.stop_gradient(l2_normalize(queue))
    positive = jnp.einsum("bd,bd->b", q, k, precision=jax.lax.Precision.HIGHEST)
    return positive, dot(q, queue)


def queue_accuracy(q: jax.Array, k: jax.Array, queue: jax.Array) -> jax.Array:
    """Whether a query is nearer to its own key than to the whole queue: the accuracy of MoCo's pretext task.

    Args:
        q: [B, D] queries, unnormalised.
        k: [B, D] keys, unnormalised.
        queue: [K, D].

    Returns:
        float32 [B] of 0 and 1.
    """
    positive, negatives = queue_similarities(q, k, queue)
    return (positive > jnp.max(negatives, axis=1)).astype(jnp.float32)


def in_batch_info_nce(q: jax.Array, k: jax.Array, *, temperature: float) -> jax.Array:
    """MoCo v3's contrast (arXiv 2104.02057, Algorithm 1, `ctr` without its factor).

        l(q_i) = -log  exp(q_i.k_i / tau) / sum_j exp(q_i.k_j / tau)

    The negatives of a row are the keys of the other rows. Unlike NT-Xent, it takes no negatives from the same
    view. The caller stops the gradient to k and scales by 2 tau.

    Args:
        q: [B, D], unnormalised.
        k: [B, D], unnormalised; under jit B is the global batch, on however many devices.
        temperature: tau, which divides the cosine similarities.

    Returns:
        float32 [B]; log(B) when all embeddings are equal.

    Raises:
        ValueError: the two shapes differ.
    """
    if q.shape != k.shape or q.ndim != 2:
        raise ValueError(
            "in_batch_info_nce pairs row i of q with row i of k: "
            f"both must be [B, D], got {q.shape} and {k.shape}"
        )
    logits = dot(l2_normalize(q), l2_normalize(k)) / temperature
    return jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits)


# ------------------------------------------------------------------------------------------------------- CPC


def cpc_info_nce(predictions: jax.Array, targets: jax.Array, *, labels: jax.Array) -> jax.Array:
    """CPC's InfoNCE (arXiv 1905.09272, appendix A): which of all targets was predicted?

        l(p_i) = -log  exp(p_i . t_label(i)) / sum_j exp(p_i . t_j)

    Every target is a candidate, the right one once: the other places of the same image and those of the other
    images. Nothing is normalised here, and there is no temperature; the caller scales the predictions.

    Args:
        predictions: [P, D], one row per place and offset that is predicted.
        targets: [M, D], the vectors of all places of all images.
        labels: int32 [P], the row of `targets` that is right, see `cpc_labels`.

    Returns:
        float32 [P]; log(M) if all candidates are equal.

    Raises:
        ValueError: the shapes do not agree.
    """
    if (
        predictions.ndim != 2
        or targets.shape[1:] != predictions.shape[1:]
        or labels.shape != (predictions.shape[0],)
    ):
        raise ValueError(
            "cpc_info_nce compares predictions [P, D] with targets [M, D] and has labels [P], "
            f"got {predictions.shape}, {targets.shape} and {labels.shape}"
        )
    logits = dot(predictions.astype(jnp.float32), targets.astype(jnp.float32))
    right = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - right


def cpc_labels(images: int, height: int, width: int, step: int) -> jax.Array:
    """The targets of CPC's predictions `step` + 1 rows below their sources.

    The sources are rows 0..height-step-2 of every image, and targets are counted image by image and row by
    row: the label of source (b, r, c) is b * height * width + (r + step + 1) * width + c.

    Args:
        images: number of images.
        height, width: of the grid of places.
        step: the index of the paper's pseudo-code; 2 predicts the third row below.

    Returns:
        int32 [images * (height - step - 1) * width].

    Raises:
        ValueError: the grid has no row so far below another.
    """
    if not 0 <= step < height - 1:
        raise ValueError(
            f"cpc_labels: a grid of {height} rows has no row {step + 1} below another: use a step index "
            f"below {height - 1}"
        )
    places = jnp.arange(images * height * width, dtype=jnp.int32).reshape(images, height, width)
    return places[:, step + 1 :].reshape(-1)
