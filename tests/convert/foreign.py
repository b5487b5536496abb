"""Helpers of the tests of converted weights."""

import jax
import jax.numpy as jnp
from flax import linen as nn


def like(net: nn.Module, image: jax.Array, classes: int, *heads: str) -> dict:
    """The shapes of a network in a train state: parameters, linear heads, running statistics."""
    h, variables = jax.eval_shape(lambda x: net.init_with_output(jax.random.key(0), x, train=False), image)
    dense = {
        "kernel": jax.ShapeDtypeStruct((h.shape[1], classes), jnp.float32),
        "bias": jax.ShapeDtypeStruct((classes,), jnp.float32),
    }
    return {
        "params": {"encoder": variables["params"], **{head: {"dense": dense} for head in heads}},
        "model_state": {"encoder": variables.get("batch_stats", {})},
    }
