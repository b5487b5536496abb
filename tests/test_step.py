"""The train step on a method of one number, by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssljax.step import make_train_step
from ssljax.types import Method, Out, TrainState


def noisy_loss(params, model_state, extra, batch, key, step):
    """w times (the batch's mean + a draw), whose gradient shows what the step was given."""
    draw = jax.random.uniform(key, (), jnp.float32)
    loss = params["w"] * (batch["x"].mean() + draw)
    return loss, Out(model_state + 1, params["w"], {"draw": draw, "step": step})


def test_each_step_has_its_own_draw_and_its_own_learning_rate():
    """Three steps from one trace of the function."""
    method = Method(
        init=None,
        loss=noisy_loss,
        encode=None,
        update=lambda extra, params, carry, step: (params["w"], carry, step),
    )
    tx = optax.sgd(lambda count: jnp.float32([0.0, 0.5, 0.25])[count])
    params = {"w": jnp.float32(1.0)}
    state = TrainState(
        step=jnp.int32(0),
        params=params,
        model_state=jnp.int32(0),
        opt_state=tx.init(params),
        extra=(jnp.float32(0.0), jnp.float32(0.0), jnp.int32(0)),
    )
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(make_train_step(method, tx), n=1))
    key = jax.random.key(3)
    w = 1.0
    for count, rate in enumerate((0.0, 0.5, 0.25)):
        state, metrics = step(state, {"x": jnp.float32([1.0, 3.0])}, key)
        draw = jax.random.uniform(jax.random.fold_in(key, count), (), jnp.float32)
        gradient = 2.0 + float(draw)
        before = w
        w = w - rate * gradient
        np.testing.assert_allclose(
            [state.params["w"], metrics["loss"], metrics["grad_norm"]],
            [w, before * gradient, gradient],
            rtol=1e-5,
            atol=1e-6,
        )
        # `update` gets the new parameters, and the carry of the pass that used the old ones.
        np.testing.assert_allclose([state.extra[0], state.extra[1]], [w, before], rtol=1e-5, atol=1e-6)
        assert (state.step, state.model_state) == (count + 1, count + 1)
        assert (metrics["step"], state.extra[2]) == (count, count)
