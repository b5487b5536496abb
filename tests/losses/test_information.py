"""Mutual information against scikit-learn, and where its value is known."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from ssljax.losses.information import nmi


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_scikit_learns(noise):
    rng = np.random.default_rng(0)
    a = rng.integers(0, 12, 3000)
    b = np.where(rng.random(3000) < noise, rng.integers(0, 700, 3000), (a * 5 + 3) % 4)
    expected = normalized_mutual_info_score(a, b, average_method="geometric")
    np.testing.assert_allclose(nmi(jnp.asarray(a, jnp.int32), jnp.asarray(b, jnp.int32)), expected, atol=1e-5)


def test_known_values():
    a = jnp.int32([0, 0, 1, 1, 2, 2])
    np.testing.assert_allclose(nmi(a, jnp.int32([7, 7, -1, -1, 3, 3])), 1.0, atol=1e-6)  # names do not matter
    np.testing.assert_allclose(nmi(a, jnp.int32([0, 1, 0, 1, 0, 1])), 0.0, atol=1e-6)  # independent
    b = jnp.int32([0, 0, 0, 0, 1, 1])  # I(a; b) = H(b)
    expected = np.sqrt((np.log(3) - np.log(2) * 2 / 3) / np.log(3))
    np.testing.assert_allclose(nmi(a, b), expected, atol=1e-6)
    one = jnp.zeros(6, jnp.int32)
    assert nmi(one, one) == 1.0 and nmi(a, one) == 0.0
