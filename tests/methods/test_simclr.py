"""SimCLR's loss put together by hand from its views.

Covers the pairing, the statistics over all 2B views, the probe that affects nothing else, and `encode`.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.simclr import get_config
from ssljax import models
from ssljax.data import views
from ssljax.methods import METHODS
from ssljax.program import encoder
from tests.methods.small import FACTS, config_of, one_block

B = 6
SIZE = 8
MEAN = 0.3
STD = 0.6


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    with one_block():
        yield


def small_config():
    """A normalisation that shows, and LARS, whose probe carries its own weight decay."""
    c = get_config("digits").unlock()
    c.log_every = 1
    c.data.image_size = SIZE
    c.augment.update(crop="none", mean=(MEAN,), std=(STD,))
    c.model.update(name="one_block", width=4 / 64, stem="cifar")
    c.head.dim = 4
    c.optim.update(name="lars", weight_decay=0.3)
    return c.lock()


def random_state(method):
    """Parameters without a silent branch, and the running statistics of a fresh run."""
    params, model_state, _ = jax.eval_shape(lambda key: method.init(key, {}), jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(0.0, 0.5, p.shape), jnp.float32), params)
    fresh = lambda path, s: jnp.full(s.shape, float(path[-1].key == "var"), s.dtype)
    return params, jax.tree.map_with_path(fresh, model_state)


class Pass:
    """One forward and backward pass, and the same views through the network in another order."""

    def __init__(self):
        self.config = small_config()
        self.key = jax.random.key(0)
        self.method = METHODS["simclr"](self.config, FACTS)
        self.params, self.model_state = random_state(self.method)
        rng = np.random.default_rng(0)
        self.batch = {
            "image": jnp.asarray(rng.integers(0, 256, (B, SIZE, SIZE, 1)), jnp.uint8),
            "label": jnp.asarray(rng.integers(0, 10, B), jnp.int32),
            "index": jnp.arange(100, 100 + B, dtype=jnp.int32),
        }
        self.gradient = jax.jit(jax.value_and_grad(self.loss, has_aux=True))
        (self.total, self.out), self.grads = self.gradient(self.params, self.batch)
        by_view = jax.tree.map(np.asarray, jax.jit(self.by_view)())
        self.h, self.z, self.encoder_state, self.head_state = by_view

    def loss(self, params, batch):
        return self.method.loss(params, self.model_state, (), batch, self.key, jnp.int32(0))

    def by_view(self):
        """All first views, then all second ones: features [2B, D], embeddings [2B, 4], running statistics."""
        made = views.stacked(self.batch, self.key, self.config)
        x = jnp.concatenate([made[:, 0], made[:, 1]])

        def forward(net, name, x):
            variables = {"params": self.params[name], "batch_stats": self.model_state[name]}
            y, state = net.apply(variables, x, train=True, mutable=["batch_stats"])
            return y, state["batch_stats"]

        h, encoder_state = forward(models.backbone(self.config.model), "encoder", x)
        z, head_state = forward(models.projection_head(self.config.head, self.config.model), "projector", h)
        return h, z, encoder_state, head_state


@pytest.fixture(scope="module")
def done():
    return Pass()


@pytest.mark.slow
def test_the_loss_is_the_sum_of_both_directions_and_the_probes(done):
    z = done.z.astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    logits = z @ z.T / done.config.loss.temperature
    np.fill_diagonal(logits, -np.inf)
    rows = [np.log(np.exp(logits[i]).sum()) - logits[i, (i + B) % (2 * B)] for i in range(2 * B)]
    kernel, bias = (
        np.asarray(done.params["probe"]["dense"][name], np.float64) for name in ("kernel", "bias")
    )
    scores = done.h @ kernel + bias
    label = np.tile(np.asarray(done.batch["label"]), 2)
    probe = np.log(np.exp(scores).sum(1)) - scores[np.arange(2 * B), label]
    expected = np.mean(rows[:B]) + np.mean(rows[B:]) + probe.mean() + 0.5 * 0.3 * (kernel**2).sum()
    np.testing.assert_allclose(done.total, expected, rtol=1e-4)
    np.testing.assert_allclose(done.out.metrics["loss_per_view"], np.mean(rows), rtol=1e-4)


@pytest.mark.slow
def test_running_statistics_are_those_of_all_views_together(done):
    expected = {"encoder": done.encoder_state, "projector": done.head_state}
    chex.assert_trees_all_close(done.out.model_state, expected, rtol=1e-4, atol=1e-5)
    hidden = done.h.astype(np.float64) @ np.asarray(done.params["projector"]["dense1"]["kernel"], np.float64)
    norm = done.out.model_state["projector"]["norm1"]
    np.testing.assert_allclose(norm["mean"], 0.1 * hidden.mean(0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(norm["var"], 0.9 + 0.1 * hidden.var(0), rtol=1e-4)


@pytest.mark.slow
def test_labels_reach_the_probe_and_nothing_else(done):
    other = {**done.batch, "label": (done.batch["label"] + 1) % 10}
    (_, _), grads = done.gradient(done.params, other)
    for part in ("encoder", "projector"):
        chex.assert_trees_all_equal(grads[part], done.grads[part])
    assert np.abs(grads["probe"]["dense"]["kernel"] - done.grads["probe"]["dense"]["kernel"]).max() > 1e-3


def test_images_without_a_label_are_left_out_of_the_probe(done):
    """The probe learns from the labelled images as if they were the batch; the encoder learns from all."""
    labelled = np.array([True, False, True, True, False, False])
    part = {**done.batch, "label": jnp.where(labelled, done.batch["label"], -1)}
    (total, out), grads = done.gradient(done.params, part)
    for name in ("encoder", "projector"):
        chex.assert_trees_all_equal(grads[name], done.grads[name])
    dense = {name: np.asarray(leaf, np.float64) for name, leaf in done.params["probe"]["dense"].items()}
    rows = np.tile(labelled, 2)
    label = np.tile(np.asarray(done.batch["label"]), 2)
    scores = (done.h @ dense["kernel"] + dense["bias"])[rows]
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    wrong = p - np.eye(10)[label[rows]]
    np.testing.assert_allclose(grads["probe"]["dense"]["bias"], wrong.mean(0), rtol=1e-4, atol=1e-6)
    right = (scores.argmax(1) == label[rows]).mean()
    np.testing.assert_allclose(out.metrics["probe_accuracy"], right, rtol=1e-6)
    (_, out), grads = done.gradient(done.params, {**done.batch, "label": jnp.full(B, -1, jnp.int32)})
    assert out.metrics["probe_accuracy"] == 0 and not np.asarray(grads["probe"]["dense"]["bias"]).any()


OTHERS = {
    "deit",
    "linear",
    "dvae",
    "beit",
    "noisy_student",
    "cpc",
    "detection",
    "segmentation",
}  # they have tests of their own, or other networks


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(METHODS) - OTHERS))
def test_encode_normalises_and_uses_the_running_statistics(name):
    config = config_of(name, augment__mean=(MEAN,), augment__std=(STD,))
    method = METHODS[name](config, FACTS)
    params, model_state = random_state(method)
    model_state = jax.tree.map(lambda s: s + 0.5, model_state)
    image = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 1)).astype(np.uint8)
    x = jnp.asarray((image / 255.0 - MEAN) / STD, jnp.float32)
    net = models.backbone(config.model)
    variables = {"params": params["encoder"], "batch_stats": model_state["encoder"]}
    expected = jax.jit(lambda: net.apply(variables, x, train=False))()
    found = jax.jit(encoder(method, config))(params, model_state, (), image)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
