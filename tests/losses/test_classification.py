"""Cross entropy against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.losses.classification import accuracy, cross_entropy

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 0.0, 3.0]], np.float32)
LABELS = np.array([0, 1])


def by_hand(targets):
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    return -(targets * np.log(p)).sum(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_integer_labels_and_probabilities_agree_with_numpy(smoothing):
    targets = (1 - smoothing) * np.eye(3)[LABELS] + smoothing / 3
    for labels in (jnp.asarray(LABELS), jnp.asarray(np.eye(3, dtype=np.float32)[LABELS])):
        np.testing.assert_allclose(cross_entropy(jnp.asarray(LOGITS), labels, label_smoothing=smoothing), by_hand(targets), rtol=1e-6)


def test_accuracy_and_bad_labels():
    np.testing.assert_array_equal(accuracy(jnp.asarray(LOGITS), jnp.asarray(LABELS)), [1.0, 0.0])
    with pytest.raises(ValueError, match=r"float32 \(2,\)"):
        cross_entropy(jnp.asarray(LOGITS), jnp.ones(2, jnp.float32))
