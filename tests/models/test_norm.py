"""BatchNorm against PyTorch and Keras: outputs, running statistics and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import sharding
from ssljax.models import BatchNorm
from ssljax.models.norm import normalize_batch
from tests.models.golden_resnet import nhwc


def apply_train(norm, variables, x):
    y, updates = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    return y, updates["batch_stats"]


@pytest.mark.parametrize("case", ["torch_bn1d", "torch_bn2d"])
def test_torch_outputs_statistics_and_gradients(golden, case):
    g = golden("simclr_head_batchnorm").under(case)
    rows = nhwc if g["x"].ndim == 4 else lambda a: a
    norm = BatchNorm(momentum=1 - float(g["momentum_torch"]), epsilon=float(g["eps"]), unbiased=True)
    params = {"scale": jnp.asarray(g["weight"]), "bias": jnp.asarray(g["bias"])}
    stats = {"mean": jnp.asarray(g["running_mean_before"]), "var": jnp.asarray(g["running_var_before"])}
    x = jnp.asarray(rows(g["x"]))

    y_eval = norm.apply({"params": params, "batch_stats": stats}, x, train=False)
    np.testing.assert_allclose(y_eval, rows(g["y_eval_before"]), rtol=1e-5, atol=1e-6)

    def forward(params, x):
        return apply_train(norm, {"params": params, "batch_stats": stats}, x)

    y, vjp, after = jax.vjp(forward, params, x, has_aux=True)
    np.testing.assert_allclose(y, rows(g["y_train"]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after["mean"], g["running_mean_after"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after["var"], g["running_var_after"], rtol=1e-5, atol=1e-6)
    grad_params, grad_x = vjp(jnp.asarray(rows(g["grad_output"])))
    np.testing.assert_allclose(grad_x, rows(g["grad_x"]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grad_params["scale"], g["grad_weight"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grad_params["bias"], g["grad_bias"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case, unbiased", [("tf_bn_plain", False), ("tf_bn_fused", True)])
def test_keras_running_variance_is_biased_unless_fused(golden, case, unbiased):
    g = golden("simclr_head_batchnorm").under(case)
    norm = BatchNorm(momentum=float(g["momentum"]), epsilon=float(g["epsilon"]), unbiased=unbiased)
    x = jnp.asarray(g["x"])
    variables = norm.init(jax.random.key(0), x, train=False)
    y, after = apply_train(norm, variables, x)
    np.testing.assert_allclose(y, g["y_train"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(after["mean"], g["moving_mean"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after["var"], g["moving_variance"], rtol=1e-5, atol=1e-6)
    y = norm.apply({"params": variables["params"], "batch_stats": after}, x, train=False)
    np.testing.assert_allclose(y, g["y_eval_after"], rtol=1e-5, atol=1e-5)


def test_initialising_leaves_the_running_statistics_at_zero_and_one():
    x = 3.0 + jax.random.normal(jax.random.key(0), (8, 4))
    stats = BatchNorm().init(jax.random.key(1), x, train=True)["batch_stats"]
    np.testing.assert_array_equal(stats["mean"], np.zeros(4))
    np.testing.assert_array_equal(stats["var"], np.ones(4))


def test_a_large_mean_does_not_cancel_the_variance():
    x = np.random.default_rng(0).normal(1000.0, 0.1, (4096, 3)).astype(np.float32)
    norm = BatchNorm(momentum=0.0)
    _, after = apply_train(norm, norm.init(jax.random.key(0), jnp.asarray(x), train=False), jnp.asarray(x))
    # E[x^2] - E[x]^2 in float32 is off by more.
    np.testing.assert_allclose(after["var"], x.astype(np.float64).var(0), rtol=1e-3)


def test_bfloat16_in_and_out_but_float32_statistics():
    x = jax.random.normal(jax.random.key(0), (64, 4), jnp.bfloat16) + jnp.bfloat16(2.0)
    norm = BatchNorm(momentum=0.0, dtype=jnp.bfloat16)
    y, after = apply_train(norm, norm.init(jax.random.key(0), x, train=False), x)
    assert y.dtype == jnp.bfloat16 and after["mean"].dtype == after["var"].dtype == jnp.float32
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(after["mean"], exact.mean(0), rtol=1e-5)
    np.testing.assert_allclose(after["var"], exact.var(0), rtol=1e-4)


@pytest.mark.parametrize("offset, guess", [(0.0, 0.0), (30.0, 0.0), (30.0, 29.0)])
def test_bfloat16_in_one_pass_is_float32_in_two(offset, guess):
    """Outputs, statistics and gradients on the same numbers.

    The running mean is far from the batch's, as in a first step, or near it.
    """
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(offset, 1.0, (32, 6, 6, 4)), jnp.bfloat16)
    dy = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    scale = jnp.arange(1.0, 5.0)
    bias = jnp.arange(4.0)
    near = jnp.full(4, guess)

    def both(x):
        (y, mean, var), back = jax.vjp(lambda *args: normalize_batch(*args, near, 1e-5), x, scale, bias)
        return y, mean, var, *back((dy, jnp.zeros(4), jnp.zeros(4)))

    names = ("y", "mean", "var", "dx", "dscale", "dbias")
    for name, low, exact in zip(names, both(x), both(x.astype(jnp.float32)), strict=True):
        tolerance = 5e-3 if name == "dx" else 2e-4  # dx comes back in the dtype of x
        np.testing.assert_allclose(
            np.asarray(low, np.float32), exact, rtol=tolerance, atol=tolerance, err_msg=name
        )


def test_statistics_are_those_of_all_devices_together():
    x = jax.random.normal(jax.random.key(0), (16, 2, 2, 3)) * jnp.arange(1.0, 17.0)[:, None, None, None]
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, train=False)
    y, after = apply_train(norm, variables, x)
    sharded = jax.device_put(x, sharding.batch_sharding(sharding.make_mesh(8)))
    y8, after8 = jax.jit(lambda x: apply_train(norm, variables, x))(sharded)
    np.testing.assert_allclose(y8, y, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after8, after)


@pytest.mark.slow
def test_masked_places_count_in_nothing():
    """Output, statistics and gradients are those of the valid places alone."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(2.0, 3.0, (2, 5, 6, 3)), jnp.float32)
    mask = jnp.asarray(rng.integers(0, 2, (2, 5, 6, 1)), bool)
    dirty = jnp.where(mask, x, 1e3)
    rows = x[mask[..., 0]]  # [n, 3]
    norm = BatchNorm(momentum=0.5, unbiased=True)
    variables = {
        "params": {"scale": jnp.array([0.5, 1.0, 2.0]), "bias": jnp.array([1.0, 2.0, 3.0])},
        "batch_stats": {"mean": jnp.ones(3), "var": jnp.full(3, 2.0)},
    }
    weight = jnp.asarray(rng.normal(size=x.shape), jnp.float32)

    def masked(params, x):
        y, after = norm.apply(
            variables | {"params": params}, x, train=True, mask=mask, mutable=["batch_stats"]
        )
        return jnp.sum(y * weight), (y, after)

    def alone(params, x):
        y, after = norm.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])
        return jnp.sum(y * weight[mask[..., 0]]), (y, after)

    (_, (y, after)), grads = jax.value_and_grad(masked, (0, 1), has_aux=True)(variables["params"], dirty)
    (_, (y1, after1)), grads1 = jax.value_and_grad(alone, (0, 1), has_aux=True)(variables["params"], rows)
    np.testing.assert_allclose(y[mask[..., 0]], y1, rtol=1e-5, atol=1e-5)
    assert not np.asarray(jnp.where(mask, 0.0, y)).any()
    for a, b in zip(jax.tree.leaves((after, grads[0])), jax.tree.leaves((after1, grads1[0])), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grads[1][mask[..., 0]], grads1[1], rtol=1e-4, atol=1e-5)
    assert not np.asarray(jnp.where(mask, 0.0, grads[1])).any()

    still = norm.apply(variables, dirty, train=False, mask=mask)
    np.testing.assert_allclose(still[mask[..., 0]], norm.apply(variables, rows, train=False), rtol=1e-6)
    assert not np.asarray(jnp.where(mask, 0.0, still)).any()
    none, after = norm.apply(variables, x, train=True, mask=mask & False, mutable=["batch_stats"])
    assert not np.asarray(none).any() and np.isfinite(jax.tree.leaves(after)).all()
