"""Attention: the forms agree with each other and with NumPy, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.models import softmax_attention


def drawn(tokens, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    return tuple(jax.random.normal(key, (2, tokens, 3, 8), dtype) for key in keys)


def test_values_are_those_of_numpy():
    q, k, v = drawn(5, jnp.float32)
    logits = np.einsum("bnhd,bmhd->bhnm", q, k)
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    np.testing.assert_allclose(softmax_attention.weights(q, k), shares, rtol=1e-5)
    expected = np.einsum("bhnm,bmhd->bnhd", shares, v)
    np.testing.assert_allclose(softmax_attention.attend(q, k, v), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [5, 6])  # an odd number gets a token that nobody attends to
def test_the_fused_form_has_the_same_values_and_gradients(tokens):
    arrays = drawn(tokens, jnp.float32)

    def with_gradients(function):
        def squares(q, k, v):
            return jnp.sum(function(q, k, v) ** 2)

        return jax.value_and_grad(squares, (0, 1, 2))(*arrays)

    def fused(q, k, v):
        return softmax_attention.fused(q, k, v, implementation="xla")

    ours = with_gradients(fused)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        ours,
        with_gradients(softmax_attention.written_out),
    )


@pytest.mark.slow
def test_bfloat16_keeps_no_weights_for_the_backward_pass():
    arrays = drawn(6, jnp.bfloat16)

    def kept(function):
        _, back = jax.vjp(function, *arrays)
        return {leaf.shape for leaf in jax.tree.leaves(back) if hasattr(leaf, "shape")}

    assert (2, 3, 6, 6) in kept(softmax_attention.written_out)
    assert (2, 3, 6, 6) not in kept(softmax_attention.attend)


def test_a_cpu_has_no_fused_kernel():
    assert not softmax_attention.cudnn_can(64)
