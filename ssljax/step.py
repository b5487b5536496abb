"""The train step: loss, gradient, optimizer, the method's own update. One body for every paper."""

from __future__ import annotations

import jax
import optax

from ssljax.accumulate import make_gradient
from ssljax.types import Batch, Method, Step, TrainState


def make_train_step(method: Method, tx: optax.GradientTransformation, accumulate: int = 1) -> Step:
    """Build the function to jit: (state, batch, key) -> (state, metrics).

    The key is the run's own, `jax.random.key(seed)`, and it is the same at every step. What a step draws
    follows from (seed, step), so a resumed run draws what the uninterrupted one would have drawn.

    Args:
        method: the paper.
        tx: the optimizer.
        accumulate: number of micro-batches that the gradient is accumulated over; 1 takes the batch whole.

    Raises:
        ValueError: the method's loss cannot be taken in micro-batches.
    """
    gradient = make_gradient(method, accumulate)

    def train_step(
        state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(key, state.step)
        (loss, out), grads = gradient(state.params, state.model_state, state.extra, batch, key, state.step)

        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        extra = method.update(state.extra, params, out.carry, state.step)

        metrics = {
            **out.metrics,
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
            "param_norm": optax.tree.norm(params),
        }
        state = TrainState(
            step=state.step + 1,
            params=params,
            model_state=out.model_state,
            opt_state=opt_state,
            extra=extra,
        )
        return state, metrics

    return train_step
