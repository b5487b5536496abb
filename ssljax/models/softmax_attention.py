"""Softmax attention. Logits and softmax are float32 in each form."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax.extend import backend

OLDEST_GPU = 8.0  # the compute capability from which cuDNN has fused attention: an A100, not a T4


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Softmax attention of scaled queries.

    In bfloat16 the weights are not kept for the backward pass: in float32, for every block, they were the
    largest part of a step's memory. On an NVIDIA GPU cuDNN's fused kernel never writes them at all: see
    experiments/accelerator.md for what that is worth. Elsewhere they are computed again from q and k.

    Args:
        q: queries `[B, N, heads, size]`, scaled.
        k: keys, of the same shape.
        v: values, of the same shape.

    Returns:
        `[B, N, heads, size]` in the dtype of v.
    """
    if v.dtype != jnp.bfloat16:
        return written_out(q, k, v)
    recomputed = jax.checkpoint(written_out)
    if not cudnn_can(q.shape[-1]):
        return recomputed(q, k, v)
    return jax.lax.platform_dependent(q, k, v, cuda=fused, default=recomputed)


def weights(q: jax.Array, k: jax.Array) -> jax.Array:
    """Attention weights float32 `[B, heads, N, M]` of scaled queries `[B, N, heads, size]` over M keys."""
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits, axis=-1)


def written_out(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`attend` with all weights in memory at once."""
    return jnp.einsum("bhnm,bmhd->bnhd", weights(q, k).astype(v.dtype), v)


def fused(
    q: jax.Array, k: jax.Array, v: jax.Array, implementation: Literal["cudnn", "xla"] = "cudnn"
) -> jax.Array:
    """`attend` by a kernel that keeps the weights on the chip.

    cuDNN's backward pass wants an even number of tokens; an odd one gets a token that nobody attends to.

    Args:
        q: as in `attend`.
        k: as in `attend`.
        v: as in `attend`.
        implementation: "xla" computes the same without the kernel.
    """
    batch, tokens = q.shape[:2]
    lengths = None
    if tokens % 2:
        q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
        lengths = jnp.full(batch, tokens, jnp.int32)
    mixed = jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=1.0,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )
    return mixed[:, :tokens]


def cudnn_can(size: int) -> bool:
    """Whether this process has a GPU whose cuDNN fuses attention with heads of `size` numbers."""
    there = backend.get_backend()
    if "cuda" not in there.platform_version.lower() or size % 8 or size > 128:
        return False
    return all(float(device.compute_capability) >= OLDEST_GPU for device in there.local_devices())
