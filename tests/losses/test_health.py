"""The health quantities against NumPy and their limits."""

import jax.numpy as jnp
import numpy as np

from ssljax.losses import health

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(200, 16)).astype(np.float32)
UNIT = Z / np.linalg.norm(Z, axis=1, keepdims=True)


def test_values_equal_numpy():
    z = jnp.asarray(Z)
    np.testing.assert_allclose(health.embedding_std(z), UNIT.std(0).mean() * 4, rtol=1e-5)

    other = RNG.normal(size=Z.shape).astype(np.float32)
    unit2 = other / np.linalg.norm(other, axis=1, keepdims=True)
    expected = ((UNIT - unit2) ** 2).sum(1).mean()
    np.testing.assert_allclose(health.alignment(z, jnp.asarray(other)), expected, rtol=1e-5)

    distance = ((UNIT[:, None] - UNIT[None]) ** 2).sum(-1)
    others = ~np.eye(200, dtype=bool)
    expected = np.log(np.exp(-2 * distance)[others].mean())
    np.testing.assert_allclose(health.uniformity(z), expected, rtol=1e-4)

    s = np.linalg.svd(Z, compute_uv=False)
    p = s / s.sum()
    expected = np.exp(-(p * np.log(p)).sum())
    np.testing.assert_allclose(health.effective_rank(z), expected, rtol=1e-3)


def test_collapse_is_visible_in_every_quantity():
    z = jnp.ones((32, 16), jnp.float32)
    assert health.embedding_std(z) < 1e-6
    assert health.alignment(z, z) < 1e-6
    assert abs(health.uniformity(z)) < 1e-5
    assert health.effective_rank(z) < 1.02
