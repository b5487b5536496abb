"""Losses of both stages of a detector against detectron2 and fvcore, and what is drawn for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.losses.detection import drawn_first, head_losses, rpn_losses, sample, smooth_l1
from ssljax.models.boxes import HEAD_WEIGHTS, RPN_WEIGHTS, encode

encode = jax.jit(encode, static_argnames="weights")
sample = jax.jit(sample, static_argnames=("count", "positives"))


def case(golden, name):
    stored = golden("detection")[name]
    return {field: jnp.asarray(stored[field]) for field in stored.dtype.names}


@pytest.mark.slow
def test_smooth_l1_equals_fvcore(golden):
    g = case(golden, "smooth_l1")
    np.testing.assert_allclose(g["beta"], [0, 1 / 9, 1])
    for i, beta in enumerate(g["beta"].tolist()):
        found, pull = jax.vjp(lambda p, beta=beta: smooth_l1(p, g["target"], beta=beta), g["prediction"])
        np.testing.assert_allclose(found, g["loss"][i], rtol=1e-5)
        np.testing.assert_allclose(pull(jnp.ones_like(found))[0], g["grad"][i], rtol=1e-5)


@pytest.fixture(scope="module")
def rpn(golden):
    """Anchors of two images with logits, deltas and labels."""
    g = case(golden, "rpn")
    rng = np.random.default_rng(0)
    labels = g["labels"].astype(jnp.int32)
    return {
        "logits": jnp.asarray(rng.normal(size=labels.shape), jnp.float32),
        "deltas": jnp.asarray(rng.normal(size=(*labels.shape, 4)), jnp.float32),
        "labels": labels,
        "weights": (labels >= 0).astype(jnp.float32),
        "targets": encode(g["matched"], g["anchors"][None], weights=RPN_WEIGHTS),
    }


def test_rpn_losses_are_sums_over_256_anchors_an_image(rpn):
    logits, deltas, labels, _, targets = (np.asarray(v, np.float64) for v in rpn.values())
    sampled, positive = labels >= 0, labels == 1
    bce = np.log1p(np.exp(logits)) - positive * logits
    objectness, box = jax.jit(rpn_losses)(**rpn)
    np.testing.assert_allclose(objectness, (bce * sampled).sum(1) / 256, rtol=1e-5)
    np.testing.assert_allclose(box, (np.abs(deltas - targets).sum(2) * positive).sum(1) / 256, rtol=1e-5)


def test_what_is_not_sampled_counts_nowhere_even_if_it_is_not_finite(rpn):
    value = jax.jit(
        jax.value_and_grad(lambda z, d, **r: sum(x.mean() for x in rpn_losses(z, d, **r)), argnums=(0, 1))
    )
    rest = {k: rpn[k] for k in ("labels", "weights", "targets")}
    expected, grads = value(rpn["logits"], rpn["deltas"], **rest)
    outside = rpn["labels"] < 0
    logits = jnp.where(outside, -jnp.inf, rpn["logits"])
    rest["targets"] = jnp.where((rpn["labels"] == 1)[..., None], rest["targets"], jnp.nan)
    found, found_grads = value(logits, rpn["deltas"], **rest)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for a, b in zip(found_grads, grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
        assert not np.asarray(b)[np.asarray(outside)].any()
    rest["weights"] = jnp.where(rpn["labels"] == 0, rest["weights"], 0.0)  # an image without positives
    found, found_grads = value(logits, rpn["deltas"], **rest)
    assert np.isfinite(found) and not found_grads[1].any()


@pytest.fixture(scope="module")
def head(golden):
    g = case(golden, "head")
    batch = {
        "logits": g["scores"].reshape(2, 30, 5),
        "deltas": g["deltas"].reshape(2, 30, 4, 4),
        "classes": g["gt_classes"],
        "weights": jnp.ones((2, 30)),
        "targets": encode(g["gt_boxes"], g["proposals"], weights=HEAD_WEIGHTS),
    }
    return batch, g


@pytest.mark.slow
def test_head_losses_and_gradients_equal_detectron2(head):
    batch, g = head
    rest = {k: v for k, v in batch.items() if k != "deltas"}
    box, grad = jax.jit(jax.value_and_grad(lambda d: head_losses(deltas=d, **rest)[1].mean()))(
        batch["deltas"]
    )
    classification = head_losses(**batch)[0].mean()
    np.testing.assert_allclose([classification, box], g["losses"], rtol=1e-5)
    np.testing.assert_allclose(grad.reshape(60, 16), g["grad_deltas"], rtol=1e-4, atol=1e-7)
    untrained = {**batch, "logits": jnp.zeros((2, 30, 21))}
    np.testing.assert_allclose(head_losses(**untrained)[0].mean(), np.log(21), rtol=1e-5)


@pytest.mark.slow
def test_the_divisor_is_the_number_of_rois_that_exist_in_the_batch(head):
    """Padding changes no loss, and images with few RoIs are not worth more."""
    batch, _ = head
    padded = {k: jnp.concatenate([v, jnp.full_like(v, 7)], axis=1) for k, v in batch.items()}
    padded["weights"] = padded["weights"].at[:, 30:].set(0.0)
    for a, b in zip(head_losses(**padded), head_losses(**batch), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    few = {**batch, "weights": batch["weights"].at[1, 10:].set(0.0)}
    rows = head_losses(**batch)[1], head_losses(**few)[1]
    np.testing.assert_allclose(rows[1][0], rows[0][0] * 60 / 40, rtol=1e-6)
    none = head_losses(**{**batch, "weights": jnp.zeros((2, 30))})
    assert not none[0].any() and not none[1].any()
    background = {**batch, "classes": jnp.full_like(batch["classes"], 4)}
    assert not head_losses(**background)[1].any() and head_losses(**background)[0].all()


def test_positives_are_drawn_up_to_their_limit_and_background_fills_up():
    labels = jnp.array([1] * 40 + [0] * 200 + [-1] * 60)
    for positives, expected in ((16, (16, 48)), (64, (40, 24))):
        drawn = sample(jax.random.key(0), labels, count=64, positives=positives)
        assert (drawn[:40].sum(), drawn[40:240].sum(), drawn[240:].sum()) == (*expected, 0)
    few = sample(jax.random.key(0), labels.at[45:].set(-1), count=64, positives=16)
    assert (few[:40].sum(), few[40:].sum()) == (16, 5)  # fewer exist
    draws = jax.vmap(lambda k: sample(k, labels, count=64, positives=16))(
        jax.random.split(jax.random.key(1), 400)
    )
    np.testing.assert_allclose(draws[:, :40].mean(0), 16 / 40, atol=0.12)  # 5 standard deviations
    np.testing.assert_allclose(draws[:, 40:240].mean(0), 48 / 200, atol=0.12)


def test_the_drawn_rois_come_first():
    labels = jnp.array([0, 1, -1, 0, 1, 1])
    weights = jnp.array([1.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    index, weight = drawn_first(labels, weights, count=5)
    np.testing.assert_array_equal(index, [4, 5, 0, 3, 1])
    np.testing.assert_array_equal(weight, [1, 1, 1, 1, 0])
