"""Proposals and detections against detectron2."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.losses.detection import rpn_losses
from ssljax.models.boxes import RPN_WEIGHTS, encode
from ssljax.models.detections import detect, propose


def case(golden, name):
    stored = golden("detection")[name]
    return {field: jnp.asarray(stored[field]) for field in stored.dtype.names}


def convolved(x, weight, bias):
    """PyTorch's convolution with padding that keeps the size, on [B, C, H, W]."""
    out = jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", precision="highest")
    return out + bias[None, :, None, None]


@pytest.fixture(scope="module")
def rpn(golden):
    """The golden features through the golden head: logits and deltas in the order of the anchors."""
    g = case(golden, "rpn")

    @jax.jit
    def head(x):
        layer = lambda x, name: convolved(x, g[f"{name}_weight"], g[f"{name}_bias"])
        x = jax.nn.relu(layer(x, "conv"))
        return layer(x, "objectness_logits"), layer(x, "anchor_deltas")

    logits, deltas = head(g["features"])
    g["logits"] = logits.transpose(0, 2, 3, 1).reshape(2, -1)  # row, column, anchor
    g["deltas"] = deltas.transpose(0, 2, 3, 1).reshape(2, -1, 4)
    return g


@pytest.mark.slow
def test_rpn_losses_and_gradients_equal_detectron2(rpn):
    labels = rpn["labels"].astype(jnp.int32)
    targets = encode(rpn["matched"], rpn["anchors"][None], weights=RPN_WEIGHTS)

    @jax.jit
    @jax.grad
    def grad(deltas):
        return rpn_losses(rpn["logits"], deltas, labels, (labels >= 0).astype(jnp.float32), targets)[1].mean()

    found = rpn_losses(rpn["logits"], rpn["deltas"], labels, (labels >= 0).astype(jnp.float32), targets)
    np.testing.assert_allclose([x.mean() for x in found], rpn["losses"], rtol=1e-4)
    np.testing.assert_allclose(grad(rpn["deltas"]), rpn["grad_deltas"], atol=1e-7)


@pytest.mark.parametrize("name", ["train0", "test1"])
def test_proposals_equal_detectron2(rpn, name):
    image = int(name[-1])
    before, after = (int(n) for n in rpn[f"{name}_before_after"])
    size = rpn["image_sizes_hw"][image]
    outside = jnp.zeros((100, 4)).at[:, 2:].set(32.0)  # anchors of padded cells

    @jax.jit
    def found(logits, deltas):
        logits = jnp.concatenate([logits, jnp.full(100, -jnp.inf)])
        deltas = jnp.concatenate([deltas, jnp.full((100, 4), jnp.nan)])
        return propose(
            logits, deltas, jnp.concatenate([rpn["anchors"], outside]), size, before=before, after=after + 60
        )

    proposals = found(rpn["logits"][image], rpn["deltas"][image])
    expected = rpn[f"{name}_logits"]
    assert proposals.exists[:after].all() and len(expected) == after
    np.testing.assert_allclose(proposals.logits[:after], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(proposals.boxes[:after], rpn[f"{name}_boxes"], rtol=1e-4, atol=1e-3)
    left = ~np.asarray(proposals.exists)
    assert left.any() and not proposals.boxes[left].any() and np.isneginf(proposals.logits[left]).all()


@pytest.mark.slow
def test_detections_equal_detectron2_and_padding_changes_none(golden):
    g = case(golden, "head")
    pad = lambda x: jnp.concatenate([x, jnp.full((20, *x.shape[1:]), 9.0)])
    exists = jnp.arange(50) < 30
    run = jax.jit(lambda z, d, p: detect(pad(z), pad(d), pad(p), exists, g["image_size_hw"], keep=12))
    for image in range(2):
        rows = slice(30 * image, 30 * image + 30)
        found = run(g["scores"][rows], g["deltas"][rows].reshape(30, 4, 4), g["proposals"][image])
        np.testing.assert_allclose(found.boxes, g["det_boxes"][image], rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(found.scores, g["det_scores"][image], rtol=1e-4)
        np.testing.assert_array_equal(found.classes, g["det_classes"][image])
        np.testing.assert_array_equal(found.proposal, g["det_from_proposal"][image])
    none = jax.jit(lambda z, d, p: detect(z, d, p, jnp.zeros(30, bool), g["image_size_hw"], keep=12))
    found = none(g["scores"][:30], g["deltas"][:30].reshape(30, 4, 4), g["proposals"][0])
    assert not found.exists.any() and (found.classes == -1).all() and not found.boxes.any()
