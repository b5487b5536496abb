"""MoCo's losses against the released code and by hand, and its steps put together from their parts.

The parts are the order of events, the groups of the batch, the shuffling, and the targets.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import deit
from configs.moco import PRESETS, get_config
from ssljax import models, optim
from ssljax.config import stages
from ssljax.data import views
from ssljax.earlier import start_from
from ssljax.losses.contrastive import in_batch_info_nce, info_nce, queue_accuracy
from ssljax.methods import METHODS
from ssljax.models import vit
from ssljax.program import build
from ssljax.run import monitor
from ssljax.run.folder import RunFolder
from ssljax.step import make_train_step
from ssljax.targets.queue import Queue
from ssljax.types import TrainState
from tests.methods.small import FACTS, batch_of, config_of, names, one_block, shaken

pytestmark = pytest.mark.slow

B = 8
Q = np.float32([[1, 0], [0.6, 0.8]])
K = np.float32([[0.8, 0.6], [0, 1]])
QUEUE = np.float32([[1, 0], [0, 1], [-1, 0], [0, -1]])


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    with one_block():
        yield


# ------------------------------------------------------------------------------------------------ the losses

queue_loss = jax.jit(info_nce, static_argnames="temperature")
batch_loss = jax.jit(in_batch_info_nce, static_argnames="temperature")


@pytest.mark.parametrize("temperature, rows", [(0.07, [2.912988, 0.721459]), (0.2, [1.506967, 0.678653])])
def test_info_nce_by_hand(temperature, rows):
    """The mean at 0.2 is 1.092810. The rows are log-sum-exps over five cosines, calculated by hand."""
    found = queue_loss(Q, K, QUEUE, temperature=temperature)
    logits = np.array([[0.8, 1, 0, -1, 0], [0.8, 0.6, 0.8, -0.6, -0.8]]) / temperature
    np.testing.assert_allclose(found, np.log(np.exp(logits).sum(1)) - logits[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found.mean(), {0.07: 1.817223, 0.2: 1.092810}[temperature], rtol=1e-5)
    if temperature == 0.07:
        np.testing.assert_allclose(found, rows, rtol=1e-5)


@pytest.mark.parametrize("temperature, mean", [(1.0, 1.147444), (0.2, 0.237850)])
def test_in_batch_contrast_by_hand(temperature, mean):
    rows = batch_loss(Q, K, temperature=temperature)
    np.testing.assert_allclose(2 * temperature * rows.mean(), mean, rtol=1e-5)


def test_limits():
    ones = lambda rows: np.ones((rows, 2), np.float32)
    untrained = queue_loss(ones(3), ones(3), ones(65536), temperature=0.07)
    np.testing.assert_allclose(untrained, np.full(3, 11.0904), rtol=1e-5)  # log(K + 1)

    across = np.tile(np.float32([[0, 1]]), (65536, 1))
    perfect = np.float32([[5, 0]])
    found = [queue_loss(perfect, perfect, across, temperature=t)[0] for t in (0.07, 0.2)]
    np.testing.assert_allclose(found, [0.0401355, 6.0926166], rtol=2e-5)

    equal = batch_loss(ones(4096), ones(4096), temperature=1.0)
    np.testing.assert_allclose(4 * equal.mean(), 4 * np.log(4096), rtol=1e-5)  # both directions, times 2 tau


def test_one_process_of_the_released_code(golden):
    g = golden("moco_infonce")
    temperature = float(g["single/T"])
    loss = lambda q, k, queue: info_nce(q, k, queue, temperature=temperature).mean()
    both = jax.jit(lambda *rows: (jax.value_and_grad(loss)(*rows), queue_accuracy(*rows)))
    queue = g["single/queue_init"].T
    for step in range(int(g["single/steps"])):
        s = g.under(f"single/s{step}")
        (value, grad), hits = both(s["q_raw"], s["k_raw"], queue)
        np.testing.assert_allclose(value, s["loss"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(grad, s["grad_q_raw"], rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(hits, s["logits"].argmax(1) == 0)
        queue = s["queue_after"].T


def test_two_processes_of_the_released_code_are_one_batch(golden):
    g = golden("moco_infonce")
    queue = g["multi/rank0/queue_init"].T
    for step in range(int(g["multi/steps"])):
        of_both = lambda name, step=step: [g[f"multi/rank{rank}/s{step}/{name}"] for rank in range(2)]
        q, k = (np.concatenate(of_both(name)) for name in ("q_raw", "k_raw"))
        rows = queue_loss(q, k, queue, temperature=float(g["multi/T"]))
        np.testing.assert_allclose(rows.reshape(2, -1).mean(1), of_both("loss"), rtol=1e-5)
        queue = g[f"multi/rank0/s{step}/queue_after"].T


def v3_loss(q1, q2, k1, k2, temperature):
    one = in_batch_info_nce(q1, k2, temperature=temperature).mean()
    other = in_batch_info_nce(q2, k1, temperature=temperature).mean()
    return 2 * temperature * (one + other)


def test_v3_of_the_released_code_in_one_and_two_processes(golden):
    g = golden("moco_infonce")

    def read(*places):
        arrays = []
        for name in ("q1", "q2", "k1", "k2"):
            arrays.append(np.concatenate([g[f"{place}/{name}"] for place in places]))
        return arrays

    value, grads = jax.jit(jax.value_and_grad(v3_loss, argnums=(0, 1)))(*read("v3"), float(g["v3/T"]))
    np.testing.assert_allclose(value, g["v3/loss"], rtol=1e-5)
    np.testing.assert_allclose(grads, [g["v3/grad_q1"], g["v3/grad_q2"]], rtol=1e-4, atol=1e-6)

    value = jax.jit(v3_loss)(*read("v3_multi/rank0", "v3_multi/rank1"), float(g["v3_multi/T"]))
    expected = np.mean([g[f"v3_multi/rank{rank}/loss"] for rank in range(2)])
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_keys_and_queue_get_no_gradient_and_the_order_of_the_queue_is_nothing():
    rows = lambda k, queue: queue_loss(Q, k, queue, temperature=0.2)
    gk, gqueue = jax.jit(jax.grad(lambda k, queue: rows(k, queue).sum(), argnums=(0, 1)))(K, QUEUE)
    assert not np.any(gk) and not np.any(gqueue)
    np.testing.assert_allclose(rows(K, QUEUE[::-1]), rows(K, QUEUE), rtol=1e-6)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 2\), \(2, 2\) and \(4, 3\)"):
        info_nce(Q, K, np.ones((4, 3), np.float32), temperature=0.2)
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(1, 2\)"):
        in_batch_info_nce(Q, K[:1], temperature=0.2)


# ---------------------------------------------------------------------------------------------- batch groups


def test_groups_normalise_by_themselves_and_running_statistics_are_their_mean():
    net = models.mlp(config_of("moco", "digits_v3").head, config_of("moco").model, 3)
    x = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    params, stats, _ = jax.jit(lambda key: models.initialise_head(net, key, x))(jax.random.key(0))
    grouped = jax.jit(lambda x: models.forward(net, params, stats, x, groups=3))
    forward = jax.jit(lambda x: models.forward(net, params, stats, x))
    y, after = grouped(x)
    pieces = [forward(rows) for rows in np.split(x, 3)]
    np.testing.assert_allclose(y, np.concatenate([rows for rows, _ in pieces]), rtol=1e-4, atol=1e-5)
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *(stats for _, stats in pieces))
    chex.assert_trees_all_close(after, mean, rtol=1e-5, atol=1e-6)

    hidden = np.asarray(x, np.float64) @ np.asarray(params["dense1"]["kernel"])
    var = np.mean([rows.var(0) for rows in np.split(hidden, 3)], axis=0)
    np.testing.assert_allclose(after["norm1"]["var"], 0.9 + 0.1 * var, rtol=1e-4)
    assert np.abs(np.asarray(after["norm1"]["var"]) - (0.9 + 0.1 * hidden.var(0))).max() > 1e-4

    same, _ = grouped(np.tile(x[:4], (3, 1)))
    np.testing.assert_allclose(same[:4], forward(x[:4])[0], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------- a step put together by hand


class Pass:
    """One loss of a preset with random parameters everywhere, and the parts it is made of."""

    def __init__(self, preset="digits", facts=FACTS, **changes):
        self.config = config_of("moco", preset, **{"queue__size": 32, "bn__groups": 2, **changes})
        self.method = METHODS["moco"](self.config, facts)
        self.key = jax.random.key(3)
        self.batch = batch_of(B)

        params, state, extra = jax.eval_shape(lambda key: self.method.init(key, {}), jax.random.key(0))
        self.params = shaken(params, 1)
        self.state = self.positive(state)
        queue = () if extra.queue == () else Queue(shaken(extra.queue.keys, 3), jnp.int32(0))
        self.extra = extra._replace(
            key_params=shaken(extra.key_params, 2), key_stats=self.positive(extra.key_stats), queue=queue
        )

        self.network = jax.jit(self.passed, static_argnums=(3, 4))

    def computed(self):
        """With the loss, what comes with it, and the views."""
        made = jax.jit(lambda batch: views.stacked(batch, self.key, self.config))(self.batch)
        self.x1, self.x2 = np.moveaxis(np.asarray(made), 1, 0)
        self.total, self.out = self.only(lambda *found: found)
        return self

    def only(self, pick):
        """What `pick` takes of the loss and what comes with it; nothing else is computed."""
        rest = (self.state, self.extra, self.batch, self.key, jnp.int32(0))
        return jax.jit(lambda params: pick(*self.method.loss(params, *rest)))(self.params)

    @staticmethod
    def positive(stats):
        return jax.tree.map_with_path(
            lambda path, s: np.full(s.shape, float(path[-1].key == "var"), s.dtype), stats
        )

    def forward(self, params, state, x, groups, predict=False):
        """The embedding or, if `predict`, the prediction; and the running statistics after it."""
        z, state = self.network(params, state, x, groups, predict)
        return np.asarray(z, np.float64), state

    def passed(self, params, state, x, groups, predict):
        encoder = models.backbone(self.config.model)
        projector = models.mlp(self.config.head, self.config.model, 4)
        h, f = models.forward(encoder, params["encoder"], state["encoder"], x, groups=groups)
        z, g = models.forward(projector, params["projector"], state["projector"], h, groups=groups)
        state = {**state, "encoder": f, "projector": g}
        if predict:
            predictor = models.mlp(self.config.predictor, self.config.model, 4)
            z, p = models.forward(predictor, params["predictor"], state["predictor"], z)
            state = {**state, "predictor": p}
        return z, state


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def cross_entropy(logits, label):
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), label]


def info_nce_numpy(q, k, queue, tau):
    q = unit(q)
    k = unit(k)
    queue = unit(np.asarray(queue, np.float64))
    similarities = np.concatenate([(q * k).sum(1, keepdims=True), q @ queue.T], axis=1)
    return cross_entropy(similarities / tau, 0)


@pytest.fixture(scope="module")
def plain():
    """A pass without shuffling, so that the key pass can be repeated by hand."""
    return Pass(bn__shuffle=False).computed()


def test_the_queue_loss_is_both_directions_against_the_queue_before_this_batch(plain):
    q1, state = plain.forward(plain.params, plain.state, plain.x1, 2)
    k2, stats = plain.forward(plain.extra.key_params, plain.extra.key_stats, plain.x2, 2)
    q2, state = plain.forward(plain.params, state, plain.x2, 2)
    k1, stats = plain.forward(plain.extra.key_params, stats, plain.x1, 2)
    queue = plain.extra.queue.keys
    tau = plain.config.loss.temperature
    expected = info_nce_numpy(q1, k2, queue, tau).mean() + info_nce_numpy(q2, k1, queue, tau).mean()
    np.testing.assert_allclose(plain.total, expected, rtol=1e-4)
    chex.assert_trees_all_close(plain.out.model_state, state, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(plain.out.carry.key_stats, stats, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(plain.out.carry.keys, unit(np.concatenate([k1, k2])), rtol=1e-3, atol=1e-4)


def test_update_moves_the_keys_network_and_enqueues(plain):
    new = shaken(plain.params, 7)
    after = jax.jit(plain.method.update)(plain.extra, new, plain.out.carry, jnp.int32(0))
    m = plain.config.target.momentum
    assert m == 0.95
    assert set(new) == {"encoder", "projector"}
    expected = jax.tree.map(
        lambda old, online: m * np.asarray(old) + (1 - m) * np.asarray(online), plain.extra.key_params, new
    )
    chex.assert_trees_all_close(after.key_params, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(after.queue.keys[: 2 * B], plain.out.carry.keys)
    np.testing.assert_array_equal(after.queue.keys[2 * B :], plain.extra.queue.keys[2 * B :])
    assert after.queue.pointer == 2 * B
    chex.assert_trees_all_equal(after.key_stats, plain.out.carry.key_stats)


def test_asymmetric_is_one_direction_and_half_the_keys():
    one = Pass(bn__shuffle=False, loss__symmetric=False).computed()
    q, _ = one.forward(one.params, one.state, one.x1, 2)
    k, _ = one.forward(one.extra.key_params, one.extra.key_stats, one.x2, 2)
    expected = info_nce_numpy(q, k, one.extra.queue.keys, one.config.loss.temperature).mean()
    np.testing.assert_allclose(one.total, expected, rtol=1e-4)
    chex.assert_shape(one.out.carry.keys, (B, 4))


def test_shuffling_mixes_the_groups_of_the_keys_and_nothing_else(plain):
    """Shuffled keys come back in order, with other statistics. With one group, shuffling does nothing."""
    keys = lambda **changes: np.asarray(Pass(**changes).only(lambda _, out: out.carry.keys))
    difference = keys(loss__symmetric=True) - np.asarray(plain.out.carry.keys)
    assert np.abs(difference).max() > 1e-2
    whole = [keys(bn__groups=1, bn__shuffle=shuffle) for shuffle in (True, False)]
    np.testing.assert_allclose(whole[0], whole[1], rtol=1e-3, atol=1e-4)


def test_v3_predicts_each_view_and_contrasts_it_with_the_other_views_keys():
    p = Pass("digits_v3", FACTS._replace(num_examples=B), queue__size=0, bn__groups=1, epochs=20).computed()
    q1, state = p.forward(p.params, p.state, p.x1, 1, predict=True)
    q2, state = p.forward(p.params, state, p.x2, 1, predict=True)
    k1, stats = p.forward(p.extra.key_params, p.extra.key_stats, p.x1, 1)
    k2, stats = p.forward(p.extra.key_params, stats, p.x2, 1)
    tau = p.config.loss.temperature
    ctr = lambda q, k: 2 * tau * cross_entropy(unit(q) @ unit(k).T / tau, np.arange(B)).mean()
    np.testing.assert_allclose(p.total, ctr(q1, k2) + ctr(q2, k1), rtol=1e-4)
    chex.assert_trees_all_close(p.out.model_state, state, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(p.out.carry.key_stats, stats, rtol=1e-4, atol=1e-5)
    assert set(p.params) == {"encoder", "projector", "predictor"}
    assert set(p.extra.key_params) == {"encoder", "projector"}
    assert p.extra.queue == () and p.out.carry.keys == ()

    # The momentum is that of the coming step, and reaches 1.
    total = 20
    update = jax.jit(p.method.update)
    new = shaken(p.params, 7)
    kernel = lambda tree: tree["projector"]["dense1"]["kernel"]
    for step in (0, total // 2, total - 1):
        after = update(p.extra, new, p.out.carry, jnp.int32(step))
        m = 1 - 0.01 * (1 + np.cos(np.pi * (step + 1) / total)) / 2
        expected = m * kernel(p.extra.key_params) + (1 - m) * kernel(new)
        np.testing.assert_allclose(kernel(after.key_params), expected, rtol=1e-4, atol=1e-6)


def test_bounds_of_the_loss_are_logged_beside_it():
    bounds = lambda _, out: [out.metrics["loss_at_collapse"], out.metrics["loss_floor"]]
    v2 = Pass(loss__symmetric=False, loss__temperature=0.2).only(bounds)
    v3 = Pass("digits_v3", queue__size=0, bn__groups=1, loss__temperature=1.0).only(bounds)
    np.testing.assert_allclose(v2, [np.log(33), np.log(1 + 32 * np.exp(-10))], rtol=1e-5)
    np.testing.assert_allclose(v3, [4 * np.log(8), 4 * np.log(1 + 7 * np.exp(-2))], rtol=1e-5)


def test_the_monitor_knows_what_is_normal():
    """At temperature 1 the loss of v3 is 27 in a range of 25.3 to 33.3, and that is normal.

    A solved pretext task and a collapse are reported.
    """
    healthy = {
        "loss": 27.2,
        "embedding_std": 0.9,
        "uniformity": -3.0,
        "effective_rank": 60.0,
        "pretext_accuracy": 0.6,
    }
    assert monitor.warnings("moco", 1000, healthy) == []
    (leak,) = monitor.warnings("moco", 1000, {**healthy, "pretext_accuracy": 1.0})
    assert "bn.shuffle" in leak
    (collapse,) = monitor.warnings("moco", 1000, {**healthy, "embedding_std": 0.01})
    assert "collapsed" in collapse


def test_a_fresh_key_network_is_a_copy_and_the_queue_is_on_the_sphere():
    method = METHODS["moco"](config_of("moco"), FACTS)
    params, _, extra = jax.jit(lambda key: method.init(key, {}))(jax.random.key(0))
    chex.assert_trees_all_equal(extra.key_params, params)
    np.testing.assert_allclose(np.linalg.norm(extra.queue.keys, axis=1), np.ones(256), rtol=1e-5)


@pytest.fixture
def tiny_vit(monkeypatch):
    """One block of 8 channels in place of the ViT of the digits."""
    monkeypatch.setitem(vit.SIZES, "vit_xs", (8, 1, 2))


def test_a_frozen_patch_projection_survives_adamws_decay(tiny_vit):
    """Ten steps of AdamW with decay 0.1: the projection and its copy in f_k stay, everything else moves."""
    config = config_of("moco", "digits_vit_v3", head__hidden=8, predictor__hidden=8)
    method = METHODS["moco"](config, FACTS)
    tx, _ = optim.make_optimizer(config.optim, batch_size=B, steps_per_epoch=1.0, total_steps=10)

    def fresh(key):
        params, model_state, extra = method.init(key, {})
        return TrainState(jnp.int32(0), params, model_state, tx.init(params), extra)

    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes its integer count with floats
        start = state = jax.jit(fresh)(jax.random.key(0))
        step = jax.jit(make_train_step(method, tx))
        batch, key = batch_of(B), jax.random.key(0)
        for _ in range(10):
            state, _ = step(state, batch, key)
    assert not any("patch" in name for name in names(start.params) | names(state.opt_state))
    before = start.model_state["encoder"]["patch"]
    for after in (state.model_state["encoder"]["patch"], state.extra.key_stats["encoder"]["patch"]):
        chex.assert_trees_all_equal(after, before)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), start.params, state.params)
    assert all(jax.tree.leaves(moved)), moved


# -------------------------------------------------------------------------------------------- configurations


def schedule_of(preset, num_examples=1_281_167):
    c = get_config(preset)
    total = optim.train_steps(num_examples, c.epochs, c.batch_size)
    _, schedule = optim.make_optimizer(
        c.optim, batch_size=c.batch_size, steps_per_epoch=num_examples / c.batch_size, total_steps=total
    )
    return schedule


def test_learning_rates_of_v1_and_v2_change_between_epochs():
    spe = 1_281_167 // 256
    v1 = schedule_of("imagenet_r50_v1")
    v2 = schedule_of("imagenet_r50_v2_e200")
    np.testing.assert_allclose(
        [v1(spe * 120 - 1), v1(spe * 120), v1(spe * 160)], [0.03, 0.003, 0.0003], rtol=1e-5
    )
    np.testing.assert_allclose([v2(0), v2(spe - 1), v2(spe * 100)], [0.03, 0.03, 0.015], rtol=1e-5)
    assert 0 < v2(spe * 199) < v2(spe * 199 - 1) < 1e-4


def test_learning_rate_of_v3(golden):
    g = golden("moco_infonce").under("v3_sched")
    n = 1000
    c = optim.ConfigDict(
        dict(
            name="sgd",
            nesterov=False,
            momentum=0.9,
            weight_decay=0.0,
            learning_rate=float(g["base_lr"]),
            scaling="none",
            warmup_epochs=int(g["warmup_epochs"]),
        )
    )
    _, schedule = optim.make_optimizer(c, batch_size=1, steps_per_epoch=n, total_steps=n * int(g["epochs"]))
    np.testing.assert_allclose(
        schedule(jnp.asarray(g["epoch"] * n, jnp.float32)), g["lr"], rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("name", ["torch_sgd", "torch_adamw"])
def test_pytorchs_optimizers_decay_norms_and_biases_too(name):
    c = get_config("imagenet_r50_v2_e200").unlock().optim
    c.update(name=name, learning_rate=0.5, scaling="none", weight_decay=0.1, warmup_epochs=0)
    tx, _ = optim.make_optimizer(c, batch_size=256, steps_per_epoch=10.0, total_steps=101)
    params = {"norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)}}
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    jax.tree.map(lambda leaf: np.testing.assert_allclose(leaf, np.full(2, -0.05), rtol=1e-5), updates)


COUNTS = [
    ("imagenet_r50_v1", "projector", 262_272),
    ("imagenet_r50_v2_e200", "projector", 4_458_624),
    ("imagenet_r50_v3_e300", "projector", 9_445_376),
    ("imagenet_r50_v3_e300", "predictor", 2_105_344),
    ("imagenet_r50_v2_e200", "encoder", 23_508_032),
]


@pytest.mark.parametrize("preset, part, expected", COUNTS)
def test_parameter_counts_of_the_papers_networks(preset, part, expected):
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(preset)[part])) == expected


@functools.cache
def shapes(preset):
    method = METHODS["moco"](get_config(preset), FACTS)
    return jax.eval_shape(lambda key: method.init(key, {})[0], jax.random.key(0))


def test_norms_start_as_the_papers_have_them():
    gains = {}
    for zero in (True, False):
        method = METHODS["moco"](config_of("moco", zero_init_residual=zero), FACTS)
        encoder = jax.jit(lambda key, method=method: method.init(key, {})[0]["encoder"])
        gains[zero] = float(encoder(jax.random.key(0))["group1_block1"]["norm2"]["scale"][0])
    assert gains == {True: 0, False: 1}
    papers = [
        get_config(f"imagenet_r50_{version}").zero_init_residual for version in ("v1", "v2_e200", "v3_e100")
    ]
    assert papers == [False, False, True]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_method(preset):
    first, *later = stages(get_config(preset)).values()
    assert first.preset == preset and first.name == first.method == "moco"
    for stage in (first, *later):
        METHODS[stage.method](stage, FACTS)


@pytest.mark.parametrize("size", ["s", "b"])
def test_vits_are_fine_tuned_by_all_defaults_of_deit_for_150_epochs(size):
    """The network is that of the first stage, with stochastic depth."""
    c = get_config(f"imagenet_vit_{size}_v3_finetune_100pct")
    alone = get_config(f"imagenet_vit_{size}_v3").to_dict() | {"preset": c.pretrain.preset}
    assert c.pretrain.to_dict() == alone
    tuned = c.finetune
    assert (tuned.method, tuned.init_from, tuned.init_branches) == ("deit", "pretrain", ("encoder",))
    assert (tuned.epochs, tuned.evaluation_mode, tuned.data.label_fraction) == (150, False, 1.0)
    released = deit.get_config(f"imagenet_{size}").to_dict()
    found = tuned.to_dict()
    for section in ("data", "views", "mix", "distill", "optim", "ema", "batch_size"):
        assert found[section] == released[section], section
    # A jitter of probability 0 has no library and no strength.
    assert {k: v for k, v in released["augment"].items() if found["augment"].get(k, v) != v} == {}
    network = found["model"] | {"drop_path": 0.0}
    assert network == {k: v for k, v in c.pretrain.model.to_dict().items() if k in network}
    assert found["model"]["drop_path"] == released["model"]["drop_path"] == 0.1


def test_fine_tuning_starts_from_the_query_encoder_and_its_frozen_patch_projection(tmp_path, tiny_vit):
    c = get_config("digits_vit_v3_finetune_100pct")
    pretrained = build(c.pretrain, FACTS)
    donor = pretrained.init(0)
    donor = donor.replace(
        params=shaken(donor.params, 1),
        model_state=shaken(donor.model_state, 2),
        extra=donor.extra._replace(key_params=shaken(donor.extra.key_params, 3)),
    )
    with RunFolder(str(tmp_path), c.pretrain, FACTS) as run:
        run.save(donor.replace(step=jnp.int32(3)), {})

    program = build(c.finetune, FACTS)
    fresh = program.init(0)
    state = start_from(program, {"pretrain": str(tmp_path)})(program.init(0))
    chex.assert_trees_all_equal(state.params["encoder"], donor.params["encoder"])
    chex.assert_trees_all_equal(state.params["head"], fresh.params["head"])
    assert "patch" in state.model_state["encoder"]
    chex.assert_trees_all_equal(state.model_state["encoder"], donor.model_state["encoder"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"queue.size": 100}, "K=100 keys is not filled by whole batches of 16"),
        ({"bn.groups": 3}, "bn.groups=3 does not divide batch_size=8"),
        ({"target.schedule": "step"}, "'step' is unknown"),
        ({"predictor.layers": 2}, "predictor.layers=2 with a queue of K=256"),
        ({"head.scheme": "he"}, "scheme is 'he'; it must be one of: uniform, truncated_normal"),
    ],
)
def test_a_wrong_config_says_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        METHODS["moco"](config_of("moco", **changes), FACTS)
    with pytest.raises(ValueError, match="no preset 'v4'.*digits"):
        get_config("v4")


def test_optax_is_what_moves_the_query(plain):
    """No leaf of f_k or of the queue is in the tree of the gradient or of the optimizer."""

    def loss(params):
        total, _ = plain.method.loss(params, plain.state, plain.extra, plain.batch, plain.key, jnp.int32(0))
        return total

    grads = jax.eval_shape(jax.grad(loss), plain.params)
    assert names(grads) == names(plain.params)
    momentum = optax.trace(0.9).init(plain.params)
    assert names(momentum) == {f"trace/{n}" for n in names(plain.params)}
