"""Cross entropy against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.losses.classification import accuracy, cross_entropy, mean_of_labelled

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 0.0, 3.0]], np.float32)
LABELS = np.array([0, 1])


def by_hand(targets):
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    return -(targets * np.log(p)).sum(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_integer_labels_and_probabilities_agree_with_numpy(smoothing):
    targets = (1 - smoothing) * np.eye(3)[LABELS] + smoothing / 3
    for labels in (jnp.asarray(LABELS), jnp.asarray(np.eye(3, dtype=np.float32)[LABELS])):
        found = cross_entropy(jnp.asarray(LOGITS), labels, label_smoothing=smoothing)
        np.testing.assert_allclose(found, by_hand(targets), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_row_without_a_label_is_zero_and_counts_in_no_mean(smoothing):
    labels = jnp.array([-1, 1])
    rows = cross_entropy(jnp.asarray(LOGITS), labels, label_smoothing=smoothing)
    expected = by_hand((1 - smoothing) * np.eye(3)[LABELS] + smoothing / 3)[1]
    np.testing.assert_allclose(rows, [0.0, expected], rtol=1e-6)
    np.testing.assert_allclose(mean_of_labelled(rows, labels), expected, rtol=1e-6)
    assert mean_of_labelled(jnp.zeros(2), jnp.array([-1, -1])) == 0.0


def test_with_all_labels_the_mean_is_the_plain_one_to_the_bit():
    rows = jnp.asarray(np.random.default_rng(0).normal(size=97), jnp.float32)
    assert mean_of_labelled(rows, jnp.arange(97)) == jnp.mean(rows)


def test_accuracy_and_bad_labels():
    np.testing.assert_array_equal(accuracy(jnp.asarray(LOGITS), jnp.asarray(LABELS)), [1.0, 0.0])
    with pytest.raises(ValueError, match=r"float32 \(2,\)"):
        cross_entropy(jnp.asarray(LOGITS), jnp.ones(2, jnp.float32))
