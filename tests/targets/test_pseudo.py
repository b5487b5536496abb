"""Pseudo-labels: soft and hard targets, the filter and the balance of Noisy Student's code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.losses.classification import cross_entropy
from ssljax.targets import pseudo

KEY = jax.random.key(0)


def taken(labels, confidence, **settings):
    settings = dict(classes=3, threshold=0.3, per_class=4) | settings
    label = jnp.asarray(labels, jnp.int32)
    return np.asarray(pseudo.copies(label, jnp.asarray(confidence, jnp.float32), KEY, **settings))


def test_soft_targets_are_powers_and_hard_ones_are_smoothed():
    q = jnp.asarray([[0.7, 0.2, 0.1], [0.1, 0.5, 0.4]])
    soft = pseudo.soft(q, temperature=1.0)
    np.testing.assert_allclose(soft, q, rtol=1e-6)  # not smoothed
    sharp = pseudo.soft(q, temperature=0.5)
    np.testing.assert_allclose(sharp[0], np.array([0.49, 0.04, 0.01]) / 0.54, rtol=1e-5)
    hard = pseudo.hard(q, label_smoothing=0.3)
    np.testing.assert_allclose(hard, [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]], rtol=1e-5)
    cold = pseudo.soft(q, temperature=0.01)
    np.testing.assert_allclose(cold, np.eye(3)[[0, 1]], atol=1e-6)


@pytest.mark.slow
def test_the_largest_probabilities_and_what_they_leave():
    q = jnp.asarray([[0.1, 0.55, 0.05, 0.3], [0.0, 0.0, 1.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    found = pseudo.largest(q, 2)
    np.testing.assert_allclose(found[:2], [[0.55, 0.3, 1, 3], [1.0, 0.0, 2, 0]], rtol=1e-6)
    labels = pseudo.none(5, 4, top=2)
    assert labels.probabilities.shape == labels.classes.shape == (5, 2)
    ids = jnp.asarray([4, 0, 2])
    labels = labels._replace(
        probabilities=labels.probabilities.at[ids].set(found[:, :2]),
        classes=labels.classes.at[ids].set(found[:, 2:].astype(jnp.int32)),
    )
    back = pseudo.looked_up(labels, ids, 4)
    np.testing.assert_allclose(back[:2], [[0.075, 0.55, 0.075, 0.3], [0, 0, 1, 0]], atol=1e-6)
    np.testing.assert_allclose(back[2], q[2], rtol=1e-6)
    whole = pseudo.PseudoLabels(q, jnp.ones(3, jnp.int32))
    np.testing.assert_array_equal(pseudo.looked_up(whole, jnp.asarray([2, 1]), 4), q[jnp.asarray([2, 1])])


@pytest.mark.slow
def test_the_gradient_of_the_soft_loss_is_the_difference_of_the_probabilities():
    q = jnp.asarray([[0.7, 0.2, 0.1]])
    logits = jnp.asarray([[0.3, -1.0, 2.0]])
    grad = jax.grad(lambda z: cross_entropy(z, q).sum())(logits)
    np.testing.assert_allclose(grad, jax.nn.softmax(logits) - q, atol=1e-6)


@pytest.mark.slow
def test_the_filter_and_the_copies_by_hand():
    """Enough images at .5; too few, so each four times; too many in one bin, so half of each."""
    assert taken([0] * 5, [0.9, 0.8, 0.8, 0.5, 0.2]).tolist() == [1, 1, 1, 1, 0]
    assert taken([0, 0], [0.9, 0.2]).tolist() == [4, 0]
    many = np.concatenate([taken([1] * 8, [0.9] * 8)[None] for _ in range(1)])
    assert set(many.ravel()) <= {0, 1}
    big = taken([1] * 8000, [0.9] * 8000, per_class=4000)
    assert set(big) == {0, 1} and abs(big.mean() - 0.5) < 0.03
    # Three images for four places: one each, and a third of them twice.
    some = taken([2] * 3000, [0.9] * 3000, per_class=4000)
    assert set(some) == {1, 2} and abs(some.mean() - 4 / 3) < 0.04


@pytest.mark.slow
def test_classes_do_not_disturb_each_other_and_the_bin_that_fills_a_class_is_taken_whole():
    labels = [0, 1, 0, 1, 0, 1, 0]
    confidence = [0.95, 0.31, 0.85, 0.99, 0.85, 0.29, 0.4]
    found = taken(labels, confidence, per_class=2)
    assert found[[1, 3, 5]].tolist() == [1, 1, 0]
    assert found[6] == 0  # 0.95 and the two at 0.85 are enough: three for two places
    assert found[[0, 2, 4]].min() >= 0 and found[[0, 2, 4]].max() <= 1
    assert taken(labels, confidence, per_class=0).tolist() == [1, 1, 1, 1, 1, 0, 1]
    assert taken([0], [1.0], per_class=1).tolist() == [1]
