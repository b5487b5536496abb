"""The train step on a method of one number, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssljax.step import make_train_step
from ssljax.types import Method, Out, TrainState


def noisy_loss(params, model_state, extra, batch, key, step):
    """w times (the batch's mean + a draw): its gradient says what the step was given."""
    draw = jax.random.uniform(key, (), jnp.float32)
    return params["w"] * (batch["x"].mean() + draw), Out(
        model_state + 1, params["w"], {"draw": draw, "step": step}
    )


def test_each_step_has_its_own_draw_and_its_own_learning_rate():
    method = Method(
        init=None,
        loss=noisy_loss,
        encode=None,
        update=lambda extra, params, carry, step: (params["w"], carry, step),
    )
    tx = optax.sgd(lambda count: jnp.float32([0.0, 0.5, 0.25])[count])
    params, extra = {"w": jnp.float32(1.0)}, (jnp.float32(0.0), jnp.float32(0.0), jnp.int32(0))
    state = TrainState(
        step=jnp.int32(0), params=params, model_state=jnp.int32(0), opt_state=tx.init(params), extra=extra
    )
    step, key, w = jax.jit(make_train_step(method, tx)), jax.random.key(3), 1.0
    for count, rate in enumerate((0.0, 0.5, 0.25)):
        state, metrics = step(state, {"x": jnp.float32([1.0, 3.0])}, key)
        gradient = 2.0 + float(jax.random.uniform(jax.random.fold_in(key, count), (), jnp.float32))
        before, w = w, w - rate * gradient
        np.testing.assert_allclose(
            [state.params["w"], metrics["loss"], metrics["grad_norm"]],
            [w, before * gradient, gradient],
            rtol=1e-5,
            atol=1e-6,
        )
        # `update` gets the new parameters, and the carry of the pass before them.
        np.testing.assert_allclose([state.extra[0], state.extra[1]], [w, before], rtol=1e-5, atol=1e-6)
        assert (state.step, metrics["step"], state.extra[2], state.model_state) == (
            count + 1,
            count,
            count,
            count + 1,
        )
