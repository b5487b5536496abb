"""The cross entropy of masked tokens against BEiT's released code and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.losses.masked import masked_regression, masked_token_cross_entropy


@pytest.mark.parametrize("case", ["mim0", "mim1"])
def test_the_mean_of_the_rows_is_the_mean_over_all_masked_patches(golden, case):
    g = golden("beit").under(case)
    logits, tokens, mask = (jnp.asarray(g[name]) for name in ("logits_all", "token_ids", "bool_masked_pos"))
    assert len(set(np.asarray(mask).sum(1))) > 1  # images with different numbers of masked patches
    rows = masked_token_cross_entropy(logits, tokens, mask)
    assert rows.shape == (3,)
    np.testing.assert_allclose(rows.mean(), g["loss"], rtol=1e-5)


def test_only_masked_patches_get_a_gradient():
    logits = jax.random.normal(jax.random.key(0), (2, 4, 5))
    tokens = jnp.array([[0, 1, 2, 3], [4, 3, 2, 1]])
    mask = jnp.array([[True, False, False, True], [False, False, True, False]])
    grad = jax.grad(lambda z: masked_token_cross_entropy(z, tokens, mask).mean())(logits)
    np.testing.assert_array_equal(np.asarray(grad).any(-1), mask)


def test_certain_and_uniform_predictions():
    tokens = jnp.array([[3, 0]])
    mask = jnp.array([[True, True]])
    certain = 1e4 * jax.nn.one_hot(tokens, 6, dtype=jnp.float32)
    np.testing.assert_allclose(masked_token_cross_entropy(certain, tokens, mask), [0.0], atol=1e-6)
    uniform = jnp.zeros((1, 2, 8192), jnp.bfloat16)
    np.testing.assert_allclose(masked_token_cross_entropy(uniform, tokens, mask), [9.0109], rtol=1e-5)


def test_no_masked_patch_is_no_loss_and_shapes_are_checked():
    logits = jnp.zeros((2, 4, 5), jnp.float32)
    none = jnp.zeros((2, 4), bool)
    np.testing.assert_array_equal(
        masked_token_cross_entropy(logits, none.astype(jnp.int32), none), [0.0, 0.0]
    )
    with pytest.raises(ValueError, match="one token a patch"):
        masked_token_cross_entropy(logits, jnp.zeros((2, 9), jnp.int32), none)


def test_regression_by_hand():
    prediction = jnp.array([[[1.0, 3.0], [5.0, 5.0]], [[0.0, 0.0], [2.0, 0.0]]])
    mask = jnp.array([[True, False], [True, True]])
    rows = masked_regression(prediction, jnp.zeros((2, 2, 2), jnp.float32), mask)
    np.testing.assert_allclose(rows, [5.0 / 1.5, 2.0 / 1.5])
