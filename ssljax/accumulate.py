"""The gradient of a step, taken whole or in micro-batches when the batch does not fit at once.

A loss that is a mean over examples is averaged over the micro-batches. A loss over the whole batch, such as
NT-Xent, needs every embedding before it can give any gradient. For such a loss there is a gradient cache (Gao
et al., arXiv 2101.06983): first the embeddings of all micro-batches are computed, then the loss and its
gradient with respect to the embeddings, then each micro-batch runs a second time to carry that gradient back
to the parameters. The result is exact and costs one more forward pass.

Both compute the step of the large batch, except that batch normalisation sees one micro-batch. The running
statistics, those that a method carries too, are the mean over the micro-batches, with one update per step.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ssljax.types import Batch, Method, Out, Pytree, TwoPass

Gradient = Callable[..., tuple[tuple[jax.Array, Out], Pytree]]


def make_gradient(method: Method, accumulate: int) -> Gradient:
    """Build (params, model_state, extra, batch, key, step) -> ((loss, Out), gradient of the loss).

    Args:
        method: the paper.
        accumulate: number of micro-batches; 1 takes the batch whole. Micro-batch a holds the rows a,
            a + accumulate, ..., so each device works on its own rows.

    Raises:
        ValueError: the method's loss cannot be taken in pieces.
    """
    if accumulate == 1:
        return jax.value_and_grad(method.loss, has_aux=True)
    if method.two_pass is not None:
        return _cached(method.two_pass, accumulate)
    if method.separable:
        return _averaged(method, accumulate)
    raise ValueError(
        f"accumulate={accumulate}: this method's loss needs its whole batch at once (its state follows the "
        "batch); use config.model.remat, config.sharding.fsdp, more devices or a smaller batch_size"
    )


def _averaged(method: Method, accumulate: int) -> Gradient:
    """The mean of the micro-batches' losses and gradients, and of what they carry."""
    loss_and_gradient = jax.value_and_grad(method.loss, has_aux=True)

    def gradient(
        params: Pytree, model_state: Pytree, extra: Pytree, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[tuple[jax.Array, Out], Pytree]:
        def one(micro: Batch) -> tuple[jax.Array, Out, Pytree]:
            (loss, out), grads = loss_and_gradient(params, model_state, extra, micro, key, step)
            return loss, out, grads

        def add(total: Pytree, micro: Batch) -> tuple[Pytree, None]:
            return jax.tree.map(jnp.add, total, one(micro)), None

        pieces = split(batch, accumulate)
        first = jax.tree.map(lambda leaf: leaf[0], pieces)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(one, first))

        total, _ = jax.lax.scan(add, zeros, pieces)
        loss, out, grads = jax.tree.map(lambda leaf: leaf / accumulate, total)
        return (loss, out), grads

    return gradient


def _cached(two_pass: TwoPass, accumulate: int) -> Gradient:
    """The gradient cache, for a loss over the whole batch."""
    embed, objective = two_pass
    loss_and_gradients = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)

    def gradient(
        params: Pytree, model_state: Pytree, extra: Pytree, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[tuple[jax.Array, Out], Pytree]:
        pieces = split(batch, accumulate)

        # 1. Embeddings of every micro-batch. Nothing is kept for a backward pass.
        def forward(_: None, micro: Batch) -> tuple[None, tuple[Pytree, Pytree]]:
            return None, embed(params, model_state, extra, micro, key, step)

        _, (embeddings, states) = jax.lax.scan(forward, None, pieces)

        # 2. The loss of the whole batch, and its gradients with respect to the embeddings and to the
        #    parameters that `objective` uses itself.
        whole = jax.tree.map(join, embeddings)
        (loss, metrics), (direct, cotangents) = loss_and_gradients(params, whole, batch, step)

        # 3. Each micro-batch again, to carry its share of that gradient back to the parameters.
        def backward(total: Pytree, piece: tuple[Batch, Pytree]) -> tuple[Pytree, None]:
            micro, cotangent = piece
            _, pull = jax.vjp(lambda params: embed(params, model_state, extra, micro, key, step)[0], params)
            (share,) = pull(cotangent)
            return jax.tree.map(jnp.add, total, share), None

        grads, _ = jax.lax.scan(backward, direct, (pieces, split(cotangents, accumulate)))
        mean_state = jax.tree.map(lambda leaf: leaf.mean(0), states)
        return (loss, Out(mean_state, (), metrics)), grads

    return gradient


def split(batch: Pytree, pieces: int) -> Pytree:
    """Reshape every leaf [B, ...] to [pieces, B / pieces, ...]; row i goes to piece i mod `pieces`.

    Raises:
        ValueError: B is not a multiple of `pieces`.
    """

    def cut(leaf: jax.Array) -> jax.Array:
        if leaf.shape[0] % pieces:
            raise ValueError(f"accumulate={pieces} does not divide the batch of {leaf.shape[0]}")
        return jnp.swapaxes(leaf.reshape(-1, pieces, *leaf.shape[1:]), 0, 1)

    return jax.tree.map(cut, batch)


def join(leaf: jax.Array) -> jax.Array:
    """Undo `split` for one leaf: [pieces, n, ...] -> [pieces * n, ...] in the order of the batch."""
    return jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:])
