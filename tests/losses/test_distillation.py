"""Soft and hard distillation against the released code, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.losses.classification import cross_entropy
from ssljax.losses.distillation import hard, probabilities, soft


@pytest.mark.parametrize("case", range(4))
def test_the_released_codes_loss_and_gradients(golden, case):
    g = golden("deit_distillation").under(f"distill{case}")
    outputs, token, teacher = (jnp.asarray(g[name]) for name in ("outputs", "outputs_kd", "teacher_outputs"))
    mixed = str(g["base_criterion"]) == "mixup"
    labels = jnp.asarray(g["targets"], jnp.float32 if mixed else jnp.int32)
    settings = dict(alpha=float(g["alpha"]), label_smoothing=0.0 if mixed else float(g["smoothing"]))
    if str(g["type"]) == "soft":
        settings |= dict(temperature=float(g["tau"]), normalization="code")

    def loss(outputs, token):
        f = soft if str(g["type"]) == "soft" else hard
        return jnp.mean(f((outputs, token), teacher, labels, **settings))

    value, (to_outputs, to_token) = jax.value_and_grad(loss, (0, 1))(outputs, token)
    np.testing.assert_allclose(value, g["loss"], rtol=1e-5)
    np.testing.assert_allclose(to_outputs, g["grad_outputs"], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(to_token, g["grad_outputs_kd"], rtol=1e-4, atol=1e-7)


def test_the_two_normalizations_differ_by_the_number_of_classes():
    """Pitfall 3: B = 2, C = 4. By hand: teacher (1/2, 1/2, 0, 0), pupil uniform, KL = log 2."""
    teacher = jnp.array([[30.0, 30.0, 0.0, 0.0]] * 2)
    flat = jnp.zeros((2, 4))
    labels = jnp.array([0, 1])
    paper, code = (
        soft((flat, flat), teacher, labels, alpha=1.0, temperature=1.0, normalization=name)
        for name in ("paper", "code")
    )
    np.testing.assert_allclose(paper, [np.log(2)] * 2, rtol=1e-5)
    np.testing.assert_allclose(paper, 4 * code, rtol=1e-6)


def test_a_student_that_equals_its_teacher_has_no_soft_loss_and_no_gradient():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32)
    labels = jnp.array([0, 1, 2])

    def loss(z):
        return soft((logits, z), logits, labels, alpha=1.0, temperature=3.0).sum()

    value, grad = jax.value_and_grad(loss)(logits)
    np.testing.assert_allclose(value, 0.0, atol=1e-6)
    np.testing.assert_allclose(grad, np.zeros((3, 5)), atol=1e-6)


def test_hard_with_a_teacher_that_knows_the_labels_is_cross_entropy_and_its_teacher_gets_no_gradient():
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)
    labels = jnp.array([5, 0, 2, 2])
    teacher = 9.0 * jax.nn.one_hot(labels, 6)
    np.testing.assert_allclose(
        hard((logits, logits), teacher, labels), cross_entropy(logits, labels), rtol=1e-6
    )
    grad = jax.grad(lambda t: soft((logits, logits), t, labels, alpha=0.5, temperature=2.0).sum())(teacher)
    assert not np.any(np.asarray(grad))


def test_wrong_arguments_are_named():
    a = jnp.zeros((2, 4))
    b = jnp.zeros((2, 5))
    with pytest.raises(ValueError, match=r"\(2, 5\).*same classes"):
        hard((a, a), b, jnp.array([0, 1]))
    with pytest.raises(ValueError, match="'batchmean' is unknown"):
        soft((a, a), a, jnp.array([0, 1]), alpha=0.1, temperature=3.0, normalization="batchmean")


@pytest.mark.parametrize("temperature, expected", [(1.0, 1.3067163), (0.1, 9.9996368)])
def test_probabilities_by_hand(temperature, expected):
    student = jnp.array([[0.0, 1.0, 0.0], [5.0, 6.0, 5.0]])  # a constant per row changes nothing
    teacher = jnp.array([[2.0, 1.0, 0.0], [-1.0, -2.0, -3.0]])
    rows = probabilities(student, teacher, temperature=temperature)
    np.testing.assert_allclose(rows, [expected, expected], rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_probabilities_are_softs_divergence_and_the_teachers_entropy(temperature):
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(rng.normal(size=(4, 6)), jnp.float32) for _ in range(2))
    labels = jnp.zeros(4, jnp.int32)
    entropy = probabilities(teacher, teacher, temperature=temperature)
    p = np.exp(np.asarray(teacher, np.float64) / temperature)
    p /= p.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(entropy, -(p * np.log(p)).sum(axis=1), rtol=1e-4, atol=1e-6)

    divergence = soft((student, student), teacher, labels, alpha=1.0, temperature=temperature)
    rows = probabilities(student, teacher, temperature=temperature)
    np.testing.assert_allclose(rows, entropy + divergence / temperature**2, rtol=1e-5)


def test_probabilities_pull_nothing_from_the_teacher_and_stop_at_it():
    rng = np.random.default_rng(1)
    student, teacher = (jnp.asarray(rng.normal(size=(3, 5)), jnp.float32) for _ in range(2))
    of_student, of_teacher = jax.grad(
        lambda s, t: probabilities(s, t, temperature=0.5).sum(), argnums=(0, 1)
    )(student, teacher)
    assert not np.any(np.asarray(of_teacher))
    p, q = (np.asarray(jax.nn.softmax(z / 0.5)) for z in (student, teacher))
    np.testing.assert_allclose(of_student, (p - q) / 0.5, rtol=1e-4, atol=1e-6)
    at_the_teacher = jax.grad(lambda s: probabilities(s, teacher, temperature=0.1).sum())(teacher)
    np.testing.assert_allclose(at_the_teacher, np.zeros((3, 5)), atol=1e-5)
