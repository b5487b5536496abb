"""Logit-Laplace and the KL to uniform against the golden file, scipy's density and hand-made numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.losses.reconstruction import kl_to_uniform, logit_laplace
from ssljax.models.dvae import map_pixels


@pytest.mark.slow
def test_the_density_of_the_released_code_and_its_gradients(golden):
    g = golden("dalle_dvae")
    x = map_pixels(jnp.asarray(g["image"]))
    assert x.min() >= 0.1 and x.max() <= 0.9
    mu = jnp.asarray(g["ll/mu"])
    ln_b = jnp.asarray(g["ll/ln_b"])
    nll = logit_laplace(x, mu, ln_b)
    np.testing.assert_allclose(nll[0], g["ll/nll_first_image"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.mean(nll), g["ll/nll_mean_full"], rtol=1e-5)
    np.testing.assert_allclose(np.mean(nll) - np.log(2), g["ll/loss_without_log2"], rtol=1e-5)
    mean = lambda mu, ln_b: jnp.mean(logit_laplace(x, mu, ln_b))
    by_mu, by_ln_b = jax.grad(mean, argnums=(0, 1))(mu, ln_b)
    np.testing.assert_allclose(by_mu[:1], g["ll/grad_mu"], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(by_ln_b[:1], g["ll/grad_ln_b"], rtol=1e-4, atol=1e-7)


def test_values_by_hand_and_a_density_of_integral_one():
    zero = jnp.float32(0.0)
    np.testing.assert_allclose(logit_laplace(jnp.float32(0.5), zero, zero), -0.693147, rtol=1e-5)
    np.testing.assert_allclose(logit_laplace(jnp.float32(0.9), zero, zero), 0.482426, rtol=1e-5)
    x = (np.arange(200_000) + 0.5) / 200_000
    for mu, ln_b in ((0.0, 0.0), (1.3, -1.0), (-0.7, 0.6)):
        same = jnp.full(x.shape, 1.0, jnp.float32)
        density = np.exp(-np.asarray(logit_laplace(jnp.asarray(x, jnp.float32), mu * same, ln_b * same)))
        np.testing.assert_allclose(density.mean(), 1.0, atol=2e-3)


def test_the_kl_lies_between_0_and_ln_k_and_is_per_place(golden):
    g = golden("dalle_dvae")
    logits = jnp.asarray(g["kl/logits_b_n_v"])
    kl = kl_to_uniform(logits)
    assert kl.shape == logits.shape[:-1]
    np.testing.assert_allclose(kl.sum(), g["kl/total_sum"], rtol=1e-5)
    # What a known implementation takes for the mean over the batch is the sum.
    np.testing.assert_allclose(kl.sum(), g["kl/lucidrains_batchmean"], rtol=1e-5)
    np.testing.assert_allclose(kl.sum(1).mean(), g["kl/sum_over_positions_mean_over_batch"], rtol=1e-5)
    np.testing.assert_array_equal(kl_to_uniform(jnp.zeros((2, 64), jnp.float32)), np.zeros(2))
    certain = 1e4 * jax.nn.one_hot(jnp.array([5]), 8192, dtype=jnp.float32)
    np.testing.assert_allclose(kl_to_uniform(certain), [9.0109], rtol=1e-5)
