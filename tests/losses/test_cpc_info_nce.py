"""CPC's InfoNCE against lightning-bolts' loss of one step, and against numbers calculated by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.losses.contrastive import cpc_info_nce, cpc_labels

info_nce = jax.jit(cpc_info_nce)


def of_grids(predictions, targets, step, scale=1.0):
    """The mean loss of one step, of predictions and targets [B, H, W, D] at every place."""
    b, height, width, dim = targets.shape
    sources = predictions[:, : height - step - 1].reshape(-1, dim) * scale
    labels = cpc_labels(b, height, width, step)
    return cpc_info_nce(sources, targets.reshape(-1, dim), labels=labels).mean()


def channels_last(array):
    return np.moveaxis(array, 1, -1)


@pytest.mark.slow
@pytest.mark.parametrize("step", range(6))
def test_the_loss_of_each_step_of_bolts(golden, step):
    g = golden("cpc_infonce").under("bolts")
    predictions, targets = channels_last(g["preds"]), channels_last(g["targets"])
    scale = float(g["embed_scale"])
    graded = jax.jit(jax.value_and_grad(of_grids, argnums=(0, 1)), static_argnums=2)
    loss, grads = graded(predictions, targets, step, scale)
    np.testing.assert_allclose(loss, g[f"loss_step_{step}"], rtol=1e-6)
    if f"grad_preds_step_{step}" in g:
        for grad, name in zip(grads, ("preds", "targets"), strict=True):
            expected = channels_last(g[f"grad_{name}_step_{step}"])
            np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-8)


def test_the_labels_of_the_sheet_on_a_square_and_on_a_wide_grid():
    """6 x 6, three rows down: the second image's are 54..71. On 5 x 7, two rows down: 14..34."""
    square = np.asarray(cpc_labels(2, 6, 6, 2))
    np.testing.assert_array_equal(square, [*range(18, 36), *range(54, 72)])
    wide = np.asarray(cpc_labels(2, 5, 7, 1))
    np.testing.assert_array_equal(wide, [*range(14, 35), *range(49, 70)])
    assert square.dtype == np.int32
    with pytest.raises(ValueError, match="a grid of 3 rows has no row 3 below another"):
        cpc_labels(1, 3, 3, 2)


def test_values_by_hand():
    """Equal candidates: ln M. A perfect prediction: 0. Two candidates one apart: ln(1 + e)."""
    labels = cpc_labels(1, 4, 1, 2)
    np.testing.assert_array_equal(labels, [3])  # one prediction among four candidates
    zeros = np.zeros((4, 2), np.float32)
    np.testing.assert_allclose(info_nce(zeros[:1], zeros, labels=labels), np.log(4), rtol=1e-6)
    right = 100 * np.eye(4, dtype=np.float32)
    assert info_nce(right[3:], np.eye(4, dtype=np.float32), labels=labels)[0] < 1e-6
    two = np.float32([[1.0], [2.0]])
    loss = info_nce(np.ones((1, 1), np.float32), two, labels=np.zeros(1, np.int32))
    np.testing.assert_allclose(loss, [np.log1p(np.e)], rtol=1e-6)


@pytest.mark.slow
def test_nothing_is_normalised_and_the_scale_belongs_to_the_caller():
    rng = np.random.default_rng(0)
    p, t = rng.normal(size=(2, 2, 6, 6, 3)).astype(np.float32)
    loss = jax.jit(lambda p, scale: of_grids(p, t, 2, scale))
    np.testing.assert_allclose(loss(10 * p, 0.1), loss(p, 1.0), rtol=1e-5)
    assert abs(loss(2 * p, 1.0) - loss(p, 1.0)) > 0.1


def test_it_is_the_cross_entropy_over_all_targets_in_double_precision():
    rng = np.random.default_rng(1)
    p, t = rng.normal(size=(5, 4)), rng.normal(size=(9, 4))
    labels = np.array([0, 8, 3, 3, 1], np.int32)
    logits = p @ t.T
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(5), labels]
    found = info_nce(jnp.asarray(p, jnp.float32), jnp.asarray(t, jnp.float32), labels=jnp.asarray(labels))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.dtype == jnp.float32


def test_shapes_that_do_not_agree_are_refused():
    rows = jnp.zeros((4, 2), jnp.float32)
    with pytest.raises(ValueError, match="predictions"):
        cpc_info_nce(rows, rows[:, :1], labels=jnp.zeros(4, jnp.int32))
    with pytest.raises(ValueError, match="labels"):
        cpc_info_nce(rows, rows, labels=jnp.zeros(3, jnp.int32))
