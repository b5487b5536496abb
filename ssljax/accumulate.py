"""The gradient of a step, whole or in micro-batches, for a batch that does not fit at once.

A loss that is a mean over examples is averaged over the micro-batches. A loss over the whole batch, NT-Xent for one, needs every embedding
before any gradient; for it the embeddings of all micro-batches are computed first, then the loss and its gradient with respect to them,
then each micro-batch a second time to carry that gradient back to the parameters (gradient cache; Gao et al., arXiv 2101.06983). It is
exact, and costs one more forward pass.

What either computes is the step of the big batch in all but one point: batch normalisation sees a micro-batch. The running statistics
are the mean of the micro-batches', one update a step.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ssljax.types import Batch, Method, Out, Pytree

Gradient = Callable[..., tuple[tuple[jax.Array, Out], Pytree]]


def make_gradient(method: Method, accumulate: int) -> Gradient:
    """(params, model_state, extra, batch, key, step) -> ((loss, Out), gradient of the loss).

    Args:
        method: the paper.
        accumulate: micro-batches; 1 takes the batch whole. Micro-batch a holds the rows a, a + accumulate, ..., so each device works on
            its own rows.

    Raises:
        ValueError: the method's loss cannot be taken in pieces.
    """
    if accumulate == 1:
        return jax.value_and_grad(method.loss, has_aux=True)
    if method.two_pass is not None:
        return _cached(method, accumulate)
    if method.separable:
        return _averaged(method, accumulate)
    raise ValueError(
        f"accumulate={accumulate}: this method's loss needs its whole batch at once (its state follows the batch); use "
        "config.model.remat, config.sharding.fsdp, more devices or a smaller batch_size"
    )


def _averaged(method: Method, accumulate: int) -> Gradient:
    def gradient(
        params: Pytree, model_state: Pytree, extra: Pytree, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple:
        def one(micro: Batch) -> tuple[jax.Array, Out, Pytree]:
            (loss, out), grads = jax.value_and_grad(method.loss, has_aux=True)(
                params, model_state, extra, micro, key, step
            )
            return loss, out, grads

        pieces = split(batch, accumulate)
        shapes = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], pieces))
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, _ = jax.lax.scan(
            lambda total, micro: (jax.tree.map(jnp.add, total, one(micro)), None), nothing, pieces
        )
        loss, out, grads = jax.tree.map(lambda leaf: leaf / accumulate, total)
        return (loss, out), grads

    return gradient


def _cached(method: Method, accumulate: int) -> Gradient:
    embed, objective = method.two_pass

    def gradient(
        params: Pytree, model_state: Pytree, extra: Pytree, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple:
        pieces = split(batch, accumulate)

        # 1. Embeddings of every micro-batch, nothing kept for a backward pass.
        _, (embeddings, states) = jax.lax.scan(
            lambda _, micro: (None, embed(params, model_state, extra, micro, key, step)), None, pieces
        )
        # 2. The loss of the whole batch, and its gradient with respect to the embeddings and to what stands behind them.
        (loss, metrics), (direct, cotangents) = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(
            params, jax.tree.map(join, embeddings), batch, step
        )

        # 3. Each micro-batch again, to carry its share of that gradient back.
        def back(total: Pytree, piece: tuple[Batch, Pytree]) -> tuple[Pytree, None]:
            micro, cotangent = piece
            _, pull = jax.vjp(lambda params: embed(params, model_state, extra, micro, key, step)[0], params)
            return jax.tree.map(jnp.add, total, pull(cotangent)[0]), None

        grads, _ = jax.lax.scan(back, direct, (pieces, split(cotangents, accumulate)))
        return (loss, Out(jax.tree.map(lambda leaf: leaf.mean(0), states), (), metrics)), grads

    return gradient


def split(batch: Pytree, pieces: int) -> Pytree:
    """Every leaf [B, ...] as [pieces, B / pieces, ...]; row i goes to piece i mod `pieces`.

    Raises:
        ValueError: B is not a multiple of `pieces`.
    """

    def cut(leaf: jax.Array) -> jax.Array:
        if leaf.shape[0] % pieces:
            raise ValueError(f"accumulate={pieces} does not divide the batch of {leaf.shape[0]}")
        return jnp.swapaxes(leaf.reshape(-1, pieces, *leaf.shape[1:]), 0, 1)

    return jax.tree.map(cut, batch)


def join(leaf: jax.Array) -> jax.Array:
    """The inverse of `split` for one leaf: [pieces, n, ...] -> [pieces * n, ...] in the order of the batch."""
    return jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:])
