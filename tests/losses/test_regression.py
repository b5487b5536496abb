"""Errors of predicted pixels, by hand and in NumPy. BYOL's loss is tested with its method."""

import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.losses.regression import l1, l2


def test_errors_by_hand():
    prediction = jnp.array([[[1.0, 2.0]], [[0.0, -3.0]]])
    target = jnp.array([[[0.0, 4.0]], [[0.0, 1.0]]])
    np.testing.assert_array_equal(l1(prediction, target), [1.5, 2.0])
    np.testing.assert_array_equal(l2(prediction, target), [2.5, 8.0])


def test_errors_are_float32_means_of_each_example():
    prediction, target = np.random.default_rng(0).normal(size=(2, 3, 64, 64, 2))
    half = jnp.asarray(prediction, jnp.bfloat16)
    difference = np.asarray(half, np.float64) - target
    for loss, power in ((l1, 1), (l2, 2)):
        found = loss(half, jnp.asarray(target, jnp.float32))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, (np.abs(difference) ** power).mean((1, 2, 3)), rtol=1e-5)
        with pytest.raises(ValueError, match="the shape of what it predicts"):
            loss(half, jnp.zeros((3, 64, 64, 1)))
