"""BYOL's loss against the released code and by hand, and its step put together from its parts.

The parts are the statistics, the target, the probe, and the collapse without predictor and target.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.byol import PRESETS, get_config
from ssljax import models, optim, sharding
from ssljax.data import sources, views
from ssljax.losses.regression import byol
from ssljax.methods import METHODS
from ssljax.program import build, device_batches, encoder
from ssljax.run import monitor
from tests.methods.small import FACTS, batch_of, config_of, names, one_block, shaken

pytestmark = pytest.mark.slow

B = 6


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    with one_block():
        yield


# -------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("case", range(3))
def test_released_loss_and_gradients(golden, case):
    g = golden("byol_regression").under(f"c{case}")
    p1, p2, z1, z2 = (
        g[name] for name in ("prediction_view1", "prediction_view2", "projection_view1", "projection_view2")
    )

    def both(p1, p2):
        first = byol(p1, z2)
        return jnp.mean(first + byol(p2, z1)), first

    (value, first), grads = jax.jit(jax.value_and_grad(both, argnums=(0, 1), has_aux=True))(p1, p2)
    np.testing.assert_allclose(first, g["regression_loss_p1_z2"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(value, g["repr_loss"], rtol=1e-5)
    for found, name in zip(grads, ("grad_prediction_view1", "grad_prediction_view2"), strict=True):
        np.testing.assert_allclose(found, g[name], rtol=1e-4, atol=1e-6 * max(1.0, np.abs(g[name]).max()))


def test_values_by_hand():
    p = np.float32([[1, 2, 2], [2, 0, 0], [-1, 0, 0], [0, 3, 0]])
    target = np.tile(np.float32([[2, 0, 0]]), (4, 1))
    loss = jax.jit(byol)
    np.testing.assert_allclose(loss(p, target), [4 / 3, 0, 4, 2], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(loss(7 * p, np.float32(0.1) * target), loss(p, target), rtol=1e-5, atol=1e-6)
    grad_p, grad_target = jax.jit(jax.grad(lambda p, t: byol(p, t).sum(), argnums=(0, 1)))(p, target)
    assert not np.any(grad_target)
    np.testing.assert_allclose((grad_p * p).sum(1), np.zeros(4), atol=1e-6)
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(2, 3\)"):
        byol(p, target[:2])


# ------------------------------------------------------------------------------- a step put together by hand


class Pass:
    """A loss with random parameters everywhere, and the parts it is made of."""

    def __init__(self, **changes):
        self.config = config_of("byol", **{"head__hidden": 5, "predictor__hidden": 5, **changes})
        self.method = METHODS["byol"](self.config, FACTS)
        self.key = jax.random.key(3)
        self.batch = batch_of(B)

        params, state, extra = jax.eval_shape(lambda key: self.method.init(key, {}), jax.random.key(0))
        self.params = shaken(params, 1)
        self.state = self.fresh(state)
        self.extra = extra._replace(
            target_params=shaken(extra.target_params, 2), target_stats=self.fresh(extra.target_stats)
        )

        made = np.asarray(jax.jit(lambda: views.stacked(self.batch, self.key, self.config))())
        self.v1 = made[:, 0]
        self.v2 = made[:, 1]
        self.network = jax.jit(self.passed)

    @staticmethod
    def fresh(stats):
        return jax.tree.map_with_path(
            lambda path, s: np.full(s.shape, float(path[-1].key == "var"), s.dtype), stats
        )

    def loss(self, params, batch):
        return self.method.loss(params, self.state, self.extra, batch, self.key, jnp.int32(0))

    def forward(self, params, state, x):
        """Features, the prediction (without a predictor the projection), and the running statistics."""
        h, z, state = self.network(params, state, x)
        return np.asarray(h, np.float64), np.asarray(z, np.float64), state

    def passed(self, params, state, x):
        encoder = models.backbone(self.config.model)
        projector = models.mlp(self.config.head, self.config.model, 4)
        h, f = models.forward(encoder, params["encoder"], state["encoder"], x)
        z, g = models.forward(projector, params["projector"], state["projector"], h)
        state = {**state, "encoder": f, "projector": g}
        if "predictor" in params:
            predictor = models.mlp(self.config.predictor, self.config.model, 4)
            z, q = models.forward(predictor, params["predictor"], state["predictor"], z)
            state = {**state, "predictor": q}
        return h, z, state


def regression(x, y):
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    return ((unit(x) - unit(y)) ** 2).sum(1)


@pytest.fixture(scope="module")
def done():
    """With the gradient."""
    p = Pass()
    p.gradient = jax.jit(jax.value_and_grad(p.loss, has_aux=True))
    (p.total, p.out), p.grads = p.gradient(p.params, p.batch)
    return p


def test_images_without_a_label_are_left_out_of_the_probe(done):
    part = {**done.batch, "label": np.where(np.arange(B) < 2, np.int32(-1), done.batch["label"])}
    (_, out), grads = done.gradient(done.params, part)
    chex.assert_trees_all_equal(grads["encoder"], done.grads["encoder"])
    h1, _, _ = done.forward(done.params, done.state, done.v1)
    dense = {name: np.asarray(leaf) for name, leaf in done.params["classifier"]["dense"].items()}
    scores = (h1 @ dense["kernel"] + dense["bias"])[2:]
    label = np.asarray(done.batch["label"])[2:]
    wrong = np.exp(scores) / np.exp(scores).sum(1, keepdims=True) - np.eye(10)[label]
    np.testing.assert_allclose(grads["classifier"]["dense"]["bias"], wrong.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(out.metrics["probe_accuracy"], (scores.argmax(1) == label).mean(), rtol=1e-6)


def test_the_loss_is_the_sum_of_both_directions_and_the_probe_on_view_1(done):
    h1, p1, state = done.forward(done.params, done.state, done.v1)
    _, p2, state = done.forward(done.params, state, done.v2)
    _, t1, stats = done.forward(done.extra.target_params, done.extra.target_stats, done.v1)
    _, t2, stats = done.forward(done.extra.target_params, stats, done.v2)
    both = regression(p1, t2).mean() + regression(p2, t1).mean()
    np.testing.assert_allclose(done.out.metrics["repr_loss"], both, rtol=1e-4)
    dense = {name: np.asarray(leaf) for name, leaf in done.params["classifier"]["dense"].items()}
    scores = h1 @ dense["kernel"] + dense["bias"]
    probe = np.log(np.exp(scores).sum(1)) - scores[np.arange(B), done.batch["label"]]
    np.testing.assert_allclose(done.total, both + probe.mean(), rtol=1e-4)
    # View 1, then view 2: the recursion of two passes, each network with its own statistics.
    chex.assert_trees_all_close(done.out.model_state, state, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(done.out.carry, stats, rtol=1e-4, atol=1e-5)
    online = done.out.model_state["encoder"]["stem_norm1"]["mean"]
    target = done.out.carry["encoder"]["stem_norm1"]["mean"]
    assert np.abs(online - target).max() > 1e-3 and np.abs(target).max() > 1e-3


def test_running_statistics_move_twice_a_step_by_one_view_each(done):
    kernel = np.asarray(done.params["projector"]["dense1"]["kernel"], np.float64)
    bias = np.asarray(done.params["projector"]["dense1"]["bias"], np.float64)
    means = []
    state = done.state
    for view in (done.v1, done.v2):
        h, _, state = done.forward(done.params, state, view)
        means.append((h @ kernel + bias).mean(0))
    found = done.out.model_state["projector"]["norm1"]["mean"]
    np.testing.assert_allclose(found, 0.9 * 0.1 * means[0] + 0.1 * means[1], rtol=1e-3, atol=1e-4)


def test_labels_reach_the_classifier_and_nothing_else(done):
    other = {**done.batch, "label": (done.batch["label"] + 1) % 10}
    _, grads = done.gradient(done.params, other)
    for part in ("encoder", "projector", "predictor"):
        chex.assert_trees_all_equal(grads[part], done.grads[part])
    difference = grads["classifier"]["dense"]["kernel"] - done.grads["classifier"]["dense"]["kernel"]
    assert np.abs(difference).max() > 1e-3


def test_the_target_has_the_encoder_and_projector_only_and_its_own_start():
    for start, equal in (("independent", False), ("copy", True)):
        method = METHODS["byol"](config_of("byol", target__init=start), FACTS)

        @jax.jit
        def stems(key, method=method):
            params, _, extra = method.init(key, {})
            followed = {n for n in names(params) if n.startswith(("encoder", "projector"))}
            assert names(extra.target_params) == followed
            assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(extra))
            return [tree["encoder"]["stem_conv1"]["kernel"] for tree in (extra.target_params, params)]

        same = np.array_equal(*stems(jax.random.key(0)))
        assert same == equal, start


@pytest.mark.parametrize("tau", [0.0, 0.75, 1.0])
def test_a_constant_tau(done, tau):
    """At 0 every leaf of the target is that of the online network, at 1 none has moved.

    Running statistics are neither averaged nor copied.
    """
    p = Pass(target__momentum=tau, target__schedule="constant")
    new = shaken(p.params, 7)
    after = jax.jit(p.method.update)(p.extra, new, done.out.carry, jnp.int32(5))
    expected = jax.tree.map(
        lambda old, online: tau * np.asarray(old) + (1 - tau) * np.asarray(online),
        p.extra.target_params,
        {name: new[name] for name in ("encoder", "projector")},
    )
    chex.assert_trees_all_close(after.target_params, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(after.target_stats, done.out.carry)
    assert float(jax.jit(lambda: p.loss(p.params, p.batch)[1].metrics["tau"])()) == tau


def test_tau_is_that_of_the_steps_own_number_and_reaches_1(done):
    total = 20
    config = config_of("byol", epochs=20, target__momentum=0.9)
    update = jax.jit(METHODS["byol"](config, FACTS._replace(num_examples=8)).update)
    new = shaken(done.params, 7)
    kernel = lambda tree: tree["projector"]["dense1"]["kernel"]
    for step in (0, total // 4, total):
        after = update(done.extra, new, done.out.carry, jnp.int32(step))
        tau = 1 - 0.1 * (1 + np.cos(np.pi * step / total)) / 2
        expected = tau * kernel(done.extra.target_params) + (1 - tau) * kernel(new)
        np.testing.assert_allclose(kernel(after.target_params), expected, rtol=1e-4, atol=1e-6)


def test_without_a_predictor_the_projection_is_the_prediction():
    p = Pass(predictor__layers=0, head__hidden=16)
    assert "predictor" not in p.params
    _, z1, state = p.forward(p.params, p.state, p.v1)
    _, z2, _ = p.forward(p.params, state, p.v2)
    _, t1, stats = p.forward(p.extra.target_params, p.extra.target_stats, p.v1)
    _, t2, _ = p.forward(p.extra.target_params, stats, p.v2)
    expected = regression(z1, t2).mean() + regression(z2, t1).mean()
    _, out = jax.jit(p.loss)(p.params, p.batch)
    np.testing.assert_allclose(out.metrics["repr_loss"], expected, rtol=1e-4)


# -------------------------------------------------------------------------------------------------- collapse


def test_without_predictor_and_target_the_network_collapses_and_the_monitor_says_so():
    """The same few epochs with and without the two: only the run without them is reported as collapsed."""
    verdicts = {}
    for preset, tau in (("digits_collapse", 0.0), ("digits", 0.96)):
        c = config_of(
            "byol",
            preset,
            head__hidden=16,
            head__dim=8,
            predictor__hidden=16,
            zero_init_residual=True,
            data__train_per_class=20,
            augment__crop="affine",
            batch_size=16,
            epochs=8,
            optim__name="sgd",
            optim__learning_rate=0.6,
            optim__scaling="linear",
            optim__warmup_epochs=0,
            target__momentum=tau,
            online_probe=False,
        )
        source = sources.load(c.data, "train")
        program = build(c, source.facts, sharding.make_mesh(1))
        state = program.init(0)
        key = jax.random.key(0)
        for batch, _ in zip(device_batches(program, source, 0, 0), range(program.total_steps), strict=False):
            state, metrics = program.step(state, batch, key)
        numbers = {name: float(value) for name, value in metrics.items()}
        verdicts[preset] = monitor.warnings("byol", int(state.step), numbers)
    collapsed = ["embedding_std" in text and "collapsed" in text for text in verdicts["digits_collapse"]]
    assert any(collapsed), verdicts
    assert not verdicts["digits"], verdicts


# -------------------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize("case", range(2))
def test_learning_rate(golden, case):
    """The released schedule ends with its last step; that of our runs has one step more."""
    g = golden("byol_regression").under(f"lr{case}")
    peak = float(g["base_learning_rate"]) * int(g["batch_size"]) / 256
    schedule = optim.warmup_cosine(
        peak, warmup_steps=int(g["warmup_steps"]), total_steps=int(g["total_steps"])
    )
    np.testing.assert_allclose(jax.jit(schedule)(g["step"]), g["lr"], rtol=1e-5, atol=1e-5)


def test_the_headlines_schedule_by_hand():
    c = get_config("imagenet_r50_e1000")
    total = optim.train_steps(1_281_167, c.epochs, c.batch_size)
    _, schedule = optim.make_optimizer(
        c.optim, batch_size=4096, steps_per_epoch=1_281_167 / 4096, total_steps=total
    )
    np.testing.assert_allclose([schedule(s) for s in (0, 3127, 312_785)], [0, 3.2, 0], atol=1e-6)
    assert c.optim.name == "lars" and not c.optim.lr_in_momentum


@pytest.fixture(scope="module")
def r50():
    """The method of `imagenet_r50_e300`, and the shapes of its parameters."""
    method = METHODS["byol"](get_config("imagenet_r50_e300"), FACTS)
    return method, jax.eval_shape(lambda key: method.init(key, {})[0], jax.random.key(0))


def test_norms_and_biases_of_every_part_are_left_out_of_lars_and_the_classifier_is_not(r50):
    method, params = r50
    mask = dict(zip(sorted_names(params), jax.tree.leaves(optim.decayed(params, method.probes)), strict=True))
    excluded = {name for name, decayed in mask.items() if not decayed}
    heads = {
        f"{part}/{leaf}"
        for part in ("projector", "predictor")
        for leaf in ("dense1/bias", "norm1/scale", "norm1/bias")
    }
    assert {n for n in excluded if not n.startswith("encoder")} == {*heads, "classifier/dense/bias"}
    assert all(n.endswith(("/scale", "/bias")) for n in excluded) and mask["classifier/dense/kernel"]


def sorted_names(tree):
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def test_parameter_counts_of_the_papers_networks(r50):
    size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    _, small = r50
    assert [size(small[part]) for part in ("encoder", "projector", "predictor")] == [
        23_508_032,
        9_449_472,
        2_109_440,
    ]
    assert "bias" not in small["projector"]["dense2"] and "bias" not in small["predictor"]["dense2"]


def test_the_probe_starts_as_haikus_linear_layer():
    """N(0, 1 / fan_in) that is cut at two sigma. ImageNet's presets start and pad convolutions so, too."""
    method = METHODS["byol"](config_of("byol"), FACTS)
    start = jax.jit(lambda key: method.init(key, {})[0]["classifier"]["dense"]["kernel"])
    kernel = np.asarray(start(jax.random.key(0)))
    sigma = len(kernel) ** -0.5
    assert 0.8 * sigma < kernel.std() < 0.96 * sigma and 1.7 * sigma < np.abs(kernel).max() <= 2 * sigma
    for preset in ("imagenet_r50_e1000", "imagenette_r18"):
        model = get_config(preset).model
        assert (model.kernel_init, model.padding, model.shortcut) == ("truncated_normal", "same", "simclr")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_method(preset):
    c = get_config(preset).unlock()
    c = c.pretrain if "stages" in c else c
    assert c.preset == preset and c.name == "byol"
    METHODS["byol"](c, FACTS)


def test_fine_tuning_continues_from_the_pretrained_encoder_on_the_papers_batch():
    c = get_config("imagenet_r200_x2_finetune_10pct")
    alone = get_config("imagenet_r200_x2").to_dict() | {"preset": c.pretrain.preset}
    assert c.pretrain.to_dict() == alone  # what the second stage changes is its own
    assert (c.finetune.method, c.finetune.init_from) == ("supervised", "pretrain")
    assert (c.finetune.batch_size, c.finetune.data.label_fraction) == (1024, 0.1)
    assert c.finetune.model == c.pretrain.model
    assert (c.pretrain.model.name, c.pretrain.model.width) == ("resnet200", 2.0)
    assert (c.finetune.optim.nesterov, c.finetune.optim.weight_decay) == (True, 0.0)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="no preset 'imagenet'.*digits"):
        get_config("imagenet")
    with pytest.raises(ValueError, match="'linear' is unknown"):
        METHODS["byol"](config_of("byol", target__schedule="linear"), FACTS)
    method = METHODS["byol"](config_of("byol", target__init="zeros"), FACTS)
    with pytest.raises(ValueError, match="target.init='zeros'"):
        jax.eval_shape(method.init, jax.random.key(0), {})


@pytest.mark.parametrize("name", ["byol", "moco"])
def test_encode_is_the_online_encoder_with_its_running_statistics(name):
    config = config_of(name, augment__mean=(0.3,), augment__std=(0.6,))
    method = METHODS[name](config, FACTS)
    params, state, extra = jax.eval_shape(lambda key: method.init(key, {}), jax.random.key(0))
    params = shaken(params, 1)
    extra = shaken(extra, 2)
    fill = lambda path, s: np.full(s.shape, 0.5 + (path[-1].key == "var"), s.dtype)
    state = jax.tree.map_with_path(fill, state)
    image = np.asarray(batch_of(3)["image"])
    x = jnp.asarray((image / 255.0 - 0.3) / 0.6, jnp.float32)
    net = models.backbone(config.model)
    expected = jax.jit(lambda: models.infer(net, params["encoder"], state["encoder"], x))()
    assert np.abs(expected).max() > 1e-3
    found = jax.jit(encoder(method, config))(params, state, extra, image)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
