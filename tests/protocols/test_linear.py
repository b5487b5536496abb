"""Linear probes against scikit-learn, optimality conditions by hand, and what a probe must not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ssljax.protocols import linear
from ssljax.protocols.features import extract


def data(n=120, m=80, d=5, classes=3, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    y, z = np.arange(n) % classes, np.arange(m) % classes
    centres = rng.normal(size=(classes, d))
    return [
        (centres[y] + noise * rng.normal(size=(n, d))).astype(np.float32),
        y.astype(np.int32),
        (centres[z] + noise * rng.normal(size=(m, d))).astype(np.float32),
        z.astype(np.int32),
    ]


def test_fit_minimises_mean_loss_plus_half_lambda_norm():
    """At the minimum (softmax - onehot)^T x / n + lambda W = 0; for the bias, without the penalty's term."""
    x, y, *_ = data()
    x = x.astype(np.float64)
    model, converged = linear.fit(x, y, 0.05)
    p = model.predict_proba(x) - np.eye(3)[y]
    assert converged
    np.testing.assert_allclose(p.T @ x / len(y) + 0.05 * model.coef_, 0, atol=2e-4)
    np.testing.assert_allclose(p.mean(0), 0, atol=2e-4)
    assert np.abs(model.coef_).max() > 0.1


def test_standardise_divides_each_channel_by_its_deviation():
    x = np.array([[0, 0], [2, 10], [4, 20]], np.float32)
    found = linear.standardise(x, x)
    np.testing.assert_allclose(found, np.sqrt(1.5) * np.array([[-1, -1], [0, 0], [1, 1]]))
    np.testing.assert_allclose(linear.standardise(np.array([[2, 10]]), x), 0, atol=1e-12)
    assert np.isfinite(linear.standardise(np.ones((3, 2)), np.ones((3, 2)))).all()  # collapsed features


def test_standardise_of_pixels_keeps_their_proportions():
    """Two places with two channels [[r, g], [r, g]]: r and g have one deviation each."""
    x = np.array([[0, 0, 0, 0], [2, 0, 6, 8]], np.float64)  # variances 1, 0, 9, 16: r -> 5, g -> 8
    found = linear.standardise(x, x, channels=2)
    np.testing.assert_allclose(found[1], np.array([1, 0, 3, 4]) / np.sqrt([5, 8, 5, 8]))


def test_lbfgs_equals_scikit_learn():
    x, y, x2, y2 = data(noise=2.0)
    a, b = ((v - x.mean(0)) / x.std(0) for v in (x, x2))
    model = LogisticRegression(C=1 / (len(y) * 0.1), max_iter=5000).fit(a, y)
    expected = 100 * model.score(b, y2)
    found = linear.lbfgs(x, y, x2, y2, num_classes=3, l2=0.1)
    assert found["top1"] == pytest.approx(expected)
    assert found["n"] == 80
    assert found["l2"] == 0.1
    assert found["converged"]
    assert 30 < expected < 95


def test_lambda_is_chosen_on_training_images_only():
    """Features with one informative dimension in a hundred need a strong penalty, clean ones do not.

    Test images cannot matter.
    """
    rng = np.random.default_rng(1)
    y = (np.arange(200) % 2).astype(np.int32)
    noisy = rng.normal(size=(200, 100)) + 0.6 * np.eye(100)[0] * (2 * y[:, None] - 1)
    clean = rng.normal(size=(200, 2)) + 4 * np.eye(2)[0] * (2 * y[:, None] - 1)
    chosen = linear.lbfgs(noisy, y, noisy[:20], y[:20], num_classes=2)["l2"]
    assert chosen in linear.GRID and chosen >= 0.1
    assert chosen == linear.lbfgs(noisy, y, noisy[:20], 1 - y[:20], num_classes=2)["l2"]
    assert linear.lbfgs(clean, y, clean, y, num_classes=2)["top1"] > 99


def test_a_class_without_training_image_is_never_predicted():
    x, y, x2, y2 = data()
    found = linear.lbfgs(x, y, x2, np.full_like(y2, 3), num_classes=4, l2=0.1)
    assert found["top1"] == 0.0
    with pytest.raises(ValueError, match="all 120 training images have label 0"):
        linear.lbfgs(x, 0 * y, x2, y2, num_classes=3, l2=0.1)


def test_sgd_first_steps_by_hand_and_the_schedule_ends_at_zero():
    """Two epochs of one batch each, with Nesterov momentum 0.9.

    The learning rates are lr and lr/2, a cosine of two steps.
    """
    x, y, x2, y2 = data(n=32)
    found = linear.sgd(x, y, x2, y2, num_classes=3, batch_size=256, epochs=2)
    lr = 0.1 * 32 / 256
    assert found["learning_rate"] == pytest.approx(lr)
    w = 0.01 * np.asarray(jax.random.normal(jax.random.key(0), (5, 3), jnp.float32), np.float64)
    b = np.zeros(3)
    vw, vb = 0.0, 0.0
    for rate in (lr, lr / 2):
        logits = x @ w + b
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(3)[y]
        gw, gb = x.T @ p / len(y), p.mean(0)
        vw, vb = 0.9 * vw + gw, 0.9 * vb + gb
        w, b = w - rate * (gw + 0.9 * vw), b - rate * (gb + 0.9 * vb)
    assert found["top1"] == pytest.approx(100 * ((x2 @ w + b).argmax(1) == y2).mean())


def test_sgd_learns_what_can_be_learned():
    x, y, x2, y2 = data(noise=0.2)
    found, again = (linear.sgd(x, y, x2, y2, num_classes=3, batch_size=16, epochs=30) for _ in range(2))
    assert found["top1"] > 95
    assert found == again


def test_a_probe_leaves_the_encoder_bitwise_alone():
    """Parameters and running statistics before and after features and both probes."""
    rng = np.random.default_rng(0)
    variables = {
        "params": jnp.asarray(rng.normal(size=(12, 6)), jnp.float32),
        "batch_stats": jnp.asarray(rng.normal(size=6), jnp.float32),
    }
    before = jax.tree.map(np.array, variables)

    @jax.jit
    def encode(image):
        x = image.reshape(image.shape[0], -1).astype(jnp.float32)
        return jax.nn.relu(x @ variables["params"] - variables["batch_stats"][None])

    image = rng.integers(0, 255, (24, 2, 2, 3)).astype(np.uint8)
    label = (np.arange(24) % 3).astype(np.int32)
    batch = {"image": image, "label": label, "index": label, "mask": np.ones(24, bool)}
    f = extract(encode, [batch]).features
    kept = f.copy()
    linear.lbfgs(f, label, f, label, num_classes=3, l2=0.1)
    linear.sgd(f, label, f, label, num_classes=3, epochs=2)
    np.testing.assert_array_equal(f, kept)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(variables), strict=True):
        np.testing.assert_array_equal(a, np.asarray(b))


def test_a_single_class_is_named_before_too_few_images_are():
    with pytest.raises(ValueError, match="needs two classes, and all 18 training images have label 0"):
        linear.choose_l2(np.zeros((18, 2)), np.zeros(18, np.int32), seed=0)
