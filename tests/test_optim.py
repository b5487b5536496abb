"""LARS, schedules and masks against the released optimizers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.deit import get_config as deit_config
from configs.simclr import get_config
from ssljax import optim
from ssljax.methods import METHODS
from tests.methods.small import FACTS


def follow(tx, init, grads):
    """Parameters after every update."""
    params = init
    state = tx.init(init)
    update = jax.jit(tx.update)
    after = []
    for g in grads:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
        after.append(params)
    return after


def run_golden(g, case, tx, excluded, steps):
    """Compare the parameters after every step with those of a released optimizer.

    Args:
        g: the golden file.
        case: name of the case in it.
        tx: mask -> the optimizer under test.
        excluded: (name, array) -> whether the parameter is neither decayed nor adapted.
        steps: number of steps in the file.
    """
    arrays = lambda name: {k: jnp.asarray(v) for k, v in g.under(f"{case}/{name}").items()}
    init = arrays("init")
    grads = [arrays(f"grad{s}") for s in range(steps)]
    mask = {k: not excluded(k, v) for k, v in init.items()}
    for s, got in enumerate(follow(tx(mask), init, grads)):
        chex.assert_trees_all_close(got, arrays(f"param{s}"), rtol=1e-4, atol=1e-5)


def test_simclr_lars(golden):
    """The default of the released optimizer.

    Its variants with Nesterov momentum or with the trust ratio after the momentum (cases 1 to 3) are in no
    paper here.
    """
    g = golden("lars")
    c = "simclr0"
    rates = jnp.asarray(g[f"{c}/lr_per_step"], jnp.float32)

    def tx(mask):
        return optim.lars(
            lambda count: rates[count],
            lr_in_momentum=True,
            momentum=float(g[f"{c}/momentum"]),
            weight_decay=float(g[f"{c}/weight_decay"]),
            trust_coefficient=float(g[f"{c}/eeta"]),
            mask=mask,
        )

    run_golden(
        g,
        c,
        tx,
        lambda k, v: any(name in k for name in ("batch_normalization", "bias", "head_supervised")),
        int(g[f"{c}/steps"]),
    )


@pytest.mark.parametrize("case", range(3))
def test_byol_lars(golden, case):
    g = golden("lars")
    c = f"byol{case}"

    def tx(mask):
        return optim.lars(
            float(g[f"{c}/learning_rate"]),
            lr_in_momentum=False,
            momentum=float(g[f"{c}/momentum"]),
            weight_decay=float(g[f"{c}/weight_decay"]),
            trust_coefficient=float(g[f"{c}/eta"]),
            mask=mask,
        )

    excludes = bool(g[f"{c}/exclude_bias_and_norm"])
    run_golden(
        g,
        c,
        tx,
        lambda k, v: excludes and (k.endswith(("/b", "/scale", "/offset")) or v.ndim <= 1),
        int(g[f"{c}/steps"]),
    )


def test_mocov3_lars(golden):
    g = golden("lars")
    c = "mocov3_0"

    def tx(mask):
        return optim.lars(
            float(g[f"{c}/learning_rate"]),
            lr_in_momentum=False,
            momentum=float(g[f"{c}/momentum"]),
            weight_decay=float(g[f"{c}/weight_decay"]),
            trust_coefficient=float(g[f"{c}/trust_coefficient"]),
            mask=mask,
        )

    run_golden(g, c, tx, lambda k, v: v.ndim <= 1, int(g[f"{c}/steps"]))


@pytest.mark.parametrize(
    "inside, want", [(True, [2.99884525, 3.99877706]), (False, [2.99875096, 3.99833705])]
)
def test_the_two_forms_part_when_the_learning_rate_moves(inside, want):
    rates = jnp.array([0.1, 0.2], jnp.float32)
    tx = optim.lars(
        lambda count: rates[count],
        lr_in_momentum=inside,
        weight_decay=0.1,
        momentum=0.9,
        trust_coefficient=0.001,
        mask={"w": True},
    )
    grads = [{"w": jnp.array([[0.0, 1.0]], jnp.float32)}, {"w": jnp.array([[1.0, 0.0]], jnp.float32)}]
    got = follow(tx, {"w": jnp.array([[3.0, 4.0]], jnp.float32)}, grads)[-1]["w"]
    np.testing.assert_allclose(got, [want], rtol=1e-7)


@pytest.mark.parametrize("case", range(3))
def test_simclr_schedule(golden, case):
    g = golden("schedules").under(f"simclr{case}")
    n = int(g["num_examples"])
    epochs = int(g["train_epochs"])
    batch = int(g["train_batch_size"])
    total = int(g["train_steps_flag"]) or optim.train_steps(n, epochs, batch)
    assert total == int(g["total_steps"])
    config = optim.ConfigDict(
        dict(
            name="sgd",
            nesterov=False,
            momentum=0.9,
            weight_decay=0.0,
            learning_rate=float(g["base_learning_rate"]),
            scaling={"linear": "linear", "sqrt": "sqrt"}[str(g["scaling"])],
            warmup_epochs=int(g["warmup_epochs"]),
        )
    )
    _, schedule = optim.make_optimizer(config, batch_size=batch, steps_per_epoch=n / batch, total_steps=total)
    np.testing.assert_allclose(schedule(jnp.asarray(g["step"])), g["lr"], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", range(2))
def test_timm_schedule_runs_its_cosine_under_the_warmup(golden, case):
    """The value of each epoch, in all its steps; with the released code's lag, that of the epoch before."""
    g = golden("schedules").under(f"deit{case}")
    settings = dict(
        steps_per_epoch=3,
        epochs=int(g["epochs"]),
        warmup_epochs=int(g["warmup_epochs"]),
        start=float(g["warmup_lr"]),
        end=float(g["min_lr"]),
    )
    epochs = jnp.arange(len(g["lr_after_step_epoch"]))
    for first in (0, 2):
        schedule = optim.timm_cosine(float(g["lr"]), **settings, lag=0)
        np.testing.assert_allclose(schedule(3 * epochs + first), g["lr_after_step_epoch"], rtol=2e-5)
    late = optim.timm_cosine(float(g["lr"]), **settings, lag=1)(3 * epochs)
    np.testing.assert_allclose(late[1:], g["lr_after_step_epoch"][:-1], rtol=2e-5)
    assert late[0] == late[1]


@pytest.mark.slow
def test_deit_schedule_and_decayed_leaves_by_hand():
    """Six values of the recipe at batch size 1024. Kernels decay, and the token too if the flag is set."""
    c = deit_config("imagenet_ti_distilled")
    tx, schedule = optim.make_optimizer(
        c.optim, batch_size=1024, steps_per_epoch=1_281_167 / 1024, total_steps=1_281_167 * 300 // 1024 + 1
    )
    epochs = jnp.array([0, 1, 4, 5, 150, 299])
    np.testing.assert_allclose(
        schedule(epochs * 1251), [1e-6, 2.008e-4, 8.002e-4, 9.993216e-4, 5.05e-4, 1.002714e-5], rtol=2e-5
    )

    params = jax.eval_shape(lambda key: METHODS["deit"](c, FACTS).init(key, {})[0], jax.random.key(0))
    moved = {}
    for flag in (True, False):
        mask = optim.timm_decayed(params, distillation_token=flag)
        named = (
            (jax.tree_util.keystr(path, simple=True, separator="/"), on)
            for path, on in jax.tree_util.tree_leaves_with_path(mask)
        )
        moved[flag] = {name for name, on in named if on}
    assert moved[True] - moved[False] == {"encoder/distillation_token"}
    assert len(moved[False]) == 1 + 12 * 4 + 2
    assert not any("position" in name or "class_token" in name for name in moved[True])


def test_imagenet_schedule_by_hand():
    total = optim.train_steps(1_281_167, 1000, 4096)
    config = optim.ConfigDict(
        dict(
            name="sgd",
            nesterov=False,
            momentum=0.9,
            weight_decay=0.0,
            learning_rate=0.3,
            scaling="linear",
            warmup_epochs=10,
        )
    )
    _, schedule = optim.make_optimizer(
        config, batch_size=4096, steps_per_epoch=1_281_167 / 4096, total_steps=total
    )
    assert total == 312_785
    np.testing.assert_allclose(
        [schedule(s) for s in (0, 1, 3127, 157_956, 312_785)],
        [0, 0.00153502, 4.8, 2.4, 0],
        rtol=1e-5,
        atol=1e-7,
    )


def test_scaling_rules_agree_at_4096_and_a_typo_is_named():
    peaks = [optim.scaled_learning_rate(0.3, "linear", 4096), optim.scaled_learning_rate(0.075, "sqrt", 4096)]
    np.testing.assert_allclose(peaks, [4.8, 4.8])
    with pytest.raises(ValueError, match="'square'"):
        optim.scaled_learning_rate(0.3, "square", 256)


def test_a_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="100 steps does not fit a run of 50"):
        optim.warmup_cosine(1.0, warmup_steps=100, total_steps=50)


def leaf_names(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_biases_norms_and_the_probe_are_neither_decayed_nor_adapted():
    config = get_config("digits")
    params = jax.eval_shape(lambda key: METHODS["simclr"](config, FACTS).init(key, {})[0], jax.random.key(0))
    mask = leaf_names(optim.decayed(params, ("probe",)))
    blocks = {
        f"encoder/group{g}_block1/{place}" for g in (1, 2, 3) for place in ("norm1", "norm2", "shortcut/norm")
    }
    norms = {*blocks, "encoder/stem_norm1", "projector/norm1"}
    excluded = {f"{norm}/{leaf}" for norm in norms for leaf in ("scale", "bias")}
    excluded |= {"projector/norm2/scale", "probe/dense/kernel", "probe/dense/bias"}
    convs = {
        f"encoder/group{g}_block1/{place}" for g in (1, 2, 3) for place in ("conv1", "conv2", "shortcut/conv")
    }
    assert {name for name, adapted in mask.items() if not adapted} == excluded
    assert {name for name, adapted in mask.items() if adapted} == {
        f"{layer}/kernel" for layer in {*convs, "encoder/stem_conv1", "projector/dense1", "projector/dense2"}
    }


def made(name):
    """The optimizer of a run of 10 steps, 4 of them warm-up to 0.4, with weight decay 0.1."""
    config = optim.ConfigDict(
        dict(
            name=name,
            nesterov=False,
            momentum=0.9,
            weight_decay=0.1,
            learning_rate=0.4,
            scaling="none",
            warmup_epochs=2,
            trust_coefficient=0.001,
            lr_in_momentum=True,
            start=0.0,
            end=0.0,
        )
    )
    tx, _ = optim.make_optimizer(config, batch_size=8, steps_per_epoch=2.0, total_steps=10, probes=("probe",))
    return tx


@pytest.mark.parametrize(
    "name, moved", [("lars", 0.001 * 2), ("sgd", 0.1 * 2 * (1 + 0.9)), ("adamw", 0.1 * 2)]
)
def test_a_warmup_starts_at_zero_and_only_kernels_decay(name, moved):
    init = {
        "kernel": jnp.full((2, 2), 2.0),
        "bias": jnp.full(2, 2.0),
        "probe": {"kernel": jnp.full((2, 2), 2.0)},
    }
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes its integer count with floats
        first, second = follow(made(name), init, [jax.tree.map(jnp.zeros_like, init)] * 2)
    chex.assert_trees_all_equal(first, init)
    np.testing.assert_array_equal([*second["bias"], *second["probe"]["kernel"].ravel()], np.full(6, 2.0))
    # The learning rate of the second step is 0.1, and the gradient of the decay is 0.1 * 2. LARS shrinks that
    # to a thousandth of the kernel; the momentum of SGD adds that of the first step.
    np.testing.assert_allclose(second["kernel"], np.full((2, 2), 2.0 - 0.1 * moved), rtol=1e-6)


def test_a_kernel_of_zeros_moves_by_its_plain_gradient():
    tx = optim.lars(
        0.5, lr_in_momentum=True, weight_decay=0.1, momentum=0.9, trust_coefficient=0.001, mask={"w": True}
    )
    (step,) = follow(tx, {"w": jnp.zeros((1, 2))}, [{"w": jnp.array([[3.0, 4.0]])}])
    np.testing.assert_allclose(step["w"], [[-1.5, -2.0]], rtol=1e-6)


def test_a_layer_wise_rate_is_a_row_of_the_table(monkeypatch):
    """Block i of L learns at decay^(L + 1 - i) times the rate.

    The layers before the blocks learn at decay^(L + 1) times the rate, and the head at the full rate.
    """

    def layered(config, run):
        schedule = run.warmed_up(config.warmup_epochs)

        def depth(path):
            if path[0].key != "encoder":
                return config.layers + 1
            name = path[1].key
            return int(name.removeprefix("block")) + 1 if name.startswith("block") else 0

        def scaled(updates, params):
            return jax.tree.map_with_path(
                lambda path, u: u * config.decay ** (config.layers + 1 - depth(path)), updates
            )

        return optax.chain(optax.stateless(scaled), optax.sgd(schedule)), schedule

    monkeypatch.setitem(optim.OPTIMIZERS, "layered", layered)
    config = optim.ConfigDict(
        dict(name="layered", learning_rate=1.0, scaling="none", warmup_epochs=0, layers=2, decay=0.5)
    )
    tx, _ = optim.make_optimizer(config, batch_size=8, steps_per_epoch=2.0, total_steps=10)
    params = {
        "encoder": {name: {"kernel": jnp.ones(1)} for name in ("patch", "block0", "block1")},
        "head": {"kernel": jnp.ones(1)},
    }
    updates, _ = tx.update(params, tx.init(params), params)
    found = {name: -float(leaf[0]) for name, leaf in leaf_names(updates).items()}
    assert found == {
        "encoder/patch/kernel": 0.125,
        "encoder/block0/kernel": 0.25,
        "encoder/block1/kernel": 0.5,
        "head/kernel": 1.0,
    }


def rmsprop_by_hand(w, grads, rates):
    """TensorFlow's ApplyRMSProp kernel, in float64."""
    mean_square, velocity = np.ones_like(w), np.zeros_like(w)
    for g, rate in zip(grads, rates, strict=True):
        mean_square = mean_square + (g * g - mean_square) * (1 - 0.9)
        velocity = velocity * 0.9 + rate * g / np.sqrt(mean_square + 1e-3)
        w = w - velocity
    return w


def test_rmsprop_is_tensorflows():
    rng = np.random.default_rng(0)
    w = rng.normal(size=5)
    grads = rng.normal(size=(6, 5)) * np.array([1e-4, 1e-2, 1.0, 10.0, 0.0])
    rates = 0.1 * 0.5 ** np.arange(6)
    tx = optim.tf_rmsprop(lambda step: 0.1 * 0.5 ** jnp.asarray(step, jnp.float32))
    params = jnp.asarray(w, jnp.float32)
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update(jnp.asarray(g, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, rmsprop_by_hand(w, grads, rates), rtol=2e-5)


def test_the_first_step_of_rmsprop_starts_from_a_mean_square_of_one():
    tx = optim.tf_rmsprop(1.0)
    updates, _ = tx.update(jnp.float32(1.0), tx.init(jnp.float32(0.0)), jnp.float32(0.0))
    np.testing.assert_allclose(updates, -1 / np.sqrt(1.001), rtol=1e-6)  # from zero it would be 3.146


def test_the_staircase_is_the_released_codes():
    """At batch 2048: half a warm-up, its end after two stairs, and the end of 350 epochs."""
    spe = 1_281_167 / 2048
    schedule = optim.staircase(0.128, steps_per_epoch=spe, warmup_epochs=5, decay_epochs=2.4)
    at = lambda epoch: float(schedule(jnp.int32(round(epoch * spe))))
    np.testing.assert_allclose(
        [at(2.5), at(5), at(350)], [0.064, 0.128 * 0.97**2, 0.128 * 0.97**145], rtol=1e-3
    )
    late = optim.staircase(0.128, steps_per_epoch=spe, warmup_epochs=5, decay_epochs=2.4, offset_epochs=348.5)
    np.testing.assert_allclose(float(late(jnp.int32(0))), 0.128 * 0.97**145, rtol=1e-3)


def test_noisy_students_decay_leaves_out_the_norms_alone():
    params = {
        "encoder": {"norm": {"scale": 1.0, "bias": 1.0}, "se": {"kernel": 1.0, "bias": 1.0}},
        "head": {"dense": {"kernel": 1.0, "bias": 1.0}},
    }
    assert optim.not_norms(params) == {
        "encoder": {"norm": {"scale": False, "bias": False}, "se": {"kernel": True, "bias": True}},
        "head": {"dense": {"kernel": True, "bias": True}},
    }


def test_detectron2s_schedules_and_what_it_decays(golden):
    """MoCo's 24,000 steps on VOC and its 2x schedule on COCO. Norms are left out of the decay, biases not."""
    for name in ("voc24k", "coco2x"):
        g = golden("detector_schedule").under(name)
        schedule = optim.by_step(
            float(g["base_lr"]),
            milestones=tuple(g["steps"].tolist()),
            warmup_steps=int(g["warmup_iters"]),
            warmup_factor=0.001,
        )
        np.testing.assert_allclose(jax.vmap(schedule)(jnp.asarray(g["iteration"])), g["lr"], rtol=1e-5)

    horizon = optim.Horizon(0.02, 10.0, 4, (), ())
    c = get_config().copy_and_resolve_references().unlock().optim
    c.update(weight_decay=0.1, momentum=0.9, warmup_steps=0, warmup_factor=0.001, step_milestones=(2,))
    tx, _ = optim.OPTIMIZERS["detectron_sgd"](c, horizon)
    params = {
        "norm": {"scale": jnp.ones(1), "bias": jnp.ones(1)},
        "conv": {"kernel": jnp.ones(1), "bias": jnp.ones(1)},
    }
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["conv"]["kernel"], -0.02 * 0.1, rtol=1e-6)
    np.testing.assert_allclose(updates["conv"]["bias"], -0.02 * 0.1, rtol=1e-6)
    np.testing.assert_array_equal([updates["norm"]["scale"], updates["norm"]["bias"]], np.zeros((2, 1)))
