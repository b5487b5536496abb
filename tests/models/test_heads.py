"""The projection head and the classifier against google-research/simclr and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ssljax.models import LinearClassifier, projection_head
from ssljax.models.heads import SCHEMES, TRUNCATED_STD
from ssljax.models.resnet import KERNELS


def head_of(layers, hidden, dim, bn_momentum=0.9, bn_epsilon=1e-5):
    """SimCLR's projection head."""
    model = dict(bn_momentum=bn_momentum, bn_epsilon=bn_epsilon, shortcut="simclr", dtype="float32")
    return projection_head(ConfigDict(dict(layers=layers, hidden=hidden, dim=dim)), ConfigDict(model))


@pytest.fixture(scope="module")
def official(golden):
    """The released three-layer head: our module, its variables, the golden fields."""
    g = golden("simclr_head_batchnorm").under("head")
    params = {}
    stats = {}
    for i in range(int(g["num_layers"])):
        params[f"dense{i + 1}"] = {"kernel": g[f"l{i}.dense.kernel"]}
        params[f"norm{i + 1}"] = {"scale": g[f"l{i}.bn.gamma"]}
        if g[f"l{i}.bn.has_beta"]:
            params[f"norm{i + 1}"]["bias"] = g[f"l{i}.bn.beta"]
        stats[f"norm{i + 1}"] = {"mean": g[f"l{i}.bn.moving_mean"], "var": g[f"l{i}.bn.moving_variance"]}
    head = head_of(
        int(g["num_layers"]),
        hidden=0,
        dim=g["eval_projection"].shape[1],
        bn_momentum=float(g["bn_momentum"]),
        bn_epsilon=float(g["bn_epsilon"]),
    )
    return head, jax.tree.map(jnp.asarray, {"params": params, "batch_stats": stats}), g


def test_official_weights_fill_exactly_our_tree(official):
    head, variables, g = official
    ours = jax.eval_shape(lambda: head.init(jax.random.key(0), jnp.asarray(g["x"]), train=False))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, ours)


def test_official_projection_in_both_modes(official):
    head, variables, g = official
    x = jnp.asarray(g["x"])
    np.testing.assert_allclose(
        head.apply(variables, x, train=False), g["eval_projection"], rtol=1e-4, atol=1e-5
    )
    z, updates = head.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(z, g["train_projection"], rtol=1e-4, atol=1e-5)
    first = g["x"].astype(np.float64) @ g["l0.dense.kernel"]
    np.testing.assert_allclose(
        updates["batch_stats"]["norm1"]["var"],
        0.9 * g["l0.bn.moving_variance"] + 0.1 * first.var(0),
        rtol=1e-5,
    )


def test_every_layer_lists_input_hidden_and_projection(official):
    head, variables, g = official
    x = jnp.asarray(g["x"])
    h, a1, a2, z = head.apply(variables, x, train=False, every_layer=True)
    np.testing.assert_array_equal(h, g["eval_finetune_input"])  # ft_proj_selector 0
    np.testing.assert_array_equal(z, head.apply(variables, x, train=False))
    gain = g["l0.bn.gamma"] / np.sqrt(g["l0.bn.moving_variance"] + g["bn_epsilon"])
    expected = (g["x"] @ g["l0.dense.kernel"] - g["l0.bn.moving_mean"]) * gain + g["l0.bn.beta"]
    np.testing.assert_allclose(a1, np.maximum(expected, 0), rtol=1e-4, atol=1e-5)
    assert a2.min() == 0 and z.min() < 0  # a ReLU after hidden layers, none at the end


def test_hidden_width_and_no_layers():
    x = jnp.ones((2, 6))
    head = head_of(2, hidden=9, dim=4)
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), x, train=False))["params"]
    assert shapes["dense1"]["kernel"].shape == (6, 9)
    assert shapes["dense2"]["kernel"].shape == (9, 4)
    assert "bias" in shapes["norm1"] and "bias" not in shapes["norm2"] and "bias" not in shapes["dense1"]
    np.testing.assert_array_equal(head_of(0, hidden=0, dim=4).apply({}, x, train=False), x)


def test_dense_weights_start_at_a_hundredth():
    params = head_of(1, hidden=0, dim=128).init(jax.random.key(0), jnp.ones((2, 256)), train=False)["params"]
    np.testing.assert_allclose(np.std(params["dense1"]["kernel"]), 0.01, rtol=0.02)


def test_linear_classifier_by_hand():
    h = jnp.array([[1.0, 2.0], [0.0, -1.0]])
    kernel = jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]])
    bias = jnp.array([0.5, 0.0, 0.0])
    params = {"dense": {"kernel": kernel, "bias": bias}}
    logits = LinearClassifier(3).apply({"params": params}, h)
    np.testing.assert_array_equal(logits, [[1.5, 2.0, 0.0], [0.5, -1.0, 1.0]])


@pytest.mark.parametrize("std", [0.0, 0.02])
def test_linear_classifier_initialisation(std):
    params = LinearClassifier(100, std).init(jax.random.key(0), jnp.ones((1, 300)))["params"]["dense"]
    np.testing.assert_allclose(np.std(params["kernel"]), std, rtol=0.02)
    np.testing.assert_array_equal(params["bias"], np.zeros(100))


@pytest.mark.parametrize("built", [1, 2, 3])
def test_the_first_layers_alone_give_what_they_give_in_the_whole_head(official, built):
    """And they have no parameters but their own, under the same names."""
    whole, variables, g = official
    x = jnp.asarray(g["x"])
    first = whole.clone(built=built)
    own = first.init(jax.random.key(0), x, train=False)
    names = [f"{kind}{layer}" for kind in ("dense", "norm") for layer in range(1, built + 1)]
    assert sorted(own["params"]) == sorted(names)

    part = {kind: {name: variables[kind][name] for name in own[kind]} for kind in ("params", "batch_stats")}
    every = whole.apply(variables, x, train=False, every_layer=True)
    np.testing.assert_array_equal(first.apply(part, x, train=False), every[built])


def test_haikus_normal_is_cut_at_two_sigma_and_not_widened_again():
    """`hk.initializers.TruncatedNormal(1 / sqrt(fan_in))`; SimCLR's kernels keep the variance."""
    x = np.linspace(-2, 2, 100_001)
    density = np.exp(-(x**2) / 2)
    std = np.sqrt((x**2 * density).sum() / density.sum())
    for initialise in (SCHEMES["truncated_normal"], KERNELS["truncated_normal"]):
        drawn = np.asarray(initialise(jax.random.key(0), (3, 3, 64, 256))) * (3 * 3 * 64) ** 0.5
        np.testing.assert_allclose(drawn.std(), std, rtol=0.005)  # 147,456 numbers: four sigma are 0.005
        assert 1.999 < np.abs(drawn).max() <= 2.0 + 1e-6
    assert abs(std - TRUNCATED_STD) < 1e-4
    simclr = np.asarray(KERNELS["fan_in"](jax.random.key(0), (3, 3, 64, 256))) * (3 * 3 * 64) ** 0.5
    np.testing.assert_allclose(simclr.std(), 1.0, rtol=0.005)
