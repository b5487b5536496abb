"""SimCLRv2: its three stages by hand, what passes from one to the next, and the paper's recipes."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import simclr_v2
from ssljax import config as configs
from ssljax import models, optim
from ssljax.data import views
from ssljax.earlier import start_from
from ssljax.losses.contrastive import nt_xent_with_memory
from ssljax.methods import METHODS
from ssljax.methods.simclr_v2 import Memory
from ssljax.program import build, encoder
from ssljax.targets.frozen import Frozen
from ssljax.types import TrainState
from tests.methods.small import (
    FACTS,
    assert_close,
    batch_of,
    blank,
    config_of,
    names,
    one_block,
    positive,
    saved,
    shaken,
)

KEY = jax.random.key(7)
ROWS = 6


@pytest.fixture(autouse=True)
def small_networks(one_device):
    with one_block():
        yield


def stage_of(task: str, **changes):
    """A stage on a network of one block; `changes` are settings, with `__` for the dot."""
    sections = {"target": {}, "distill": {"alpha": 1.0}} | {"task": task}
    if task != "pretrain":
        sections |= {"views": {"one": {}}, "augment__jitter_probability": 0.0}
    if task == "distill":
        sections["teacher"] = config_of("simclr_v2").model.copy_and_resolve_references()
    return config_of("simclr_v2", **sections, **changes)


def random_state(method, seed: int = 1) -> TrainState:
    """A state with random weights in every branch and positive variances, frozen networks included."""

    random = lambda tree: positive(shaken(tree, seed))
    params, model_state, extra = jax.eval_shape(method.init, jax.random.key(0), {})
    if isinstance(extra, Memory):
        keys = np.asarray(shaken(extra.queue.keys, 5))
        queue = extra.queue._replace(
            keys=keys / np.linalg.norm(keys, axis=1, keepdims=True), pointer=np.int32(0)
        )
        extra = Memory(shaken(extra.params, 3), random(extra.stats), queue)
    elif extra != ():
        extra = extra._replace(params=shaken(extra.params, 4), model_state=random(extra.model_state))
    return TrainState(0, shaken(params, seed), random(model_state), (), extra)


def loss_of(method, state, batch):
    return jax.jit(method.loss)(state.params, state.model_state, state.extra, batch, KEY, jnp.int32(0))


@partial(jax.jit, static_argnums=(0, 4))
def apply(net, params, statistics, x, train: bool):
    """Output and running statistics of a module, by Flax alone."""
    variables = {"params": params, "batch_stats": statistics}
    y, state = net.apply(variables, x, train=train, mutable=["batch_stats"])
    return y, state["batch_stats"] if train else statistics


# ------------------------------------------------------------------------------------------------ pretraining


@pytest.mark.slow
def test_without_a_memory_pretraining_is_simclrs():
    """The same loss, gradients and state as the method simclr with a head of three layers."""
    c = stage_of("pretrain")
    batch = batch_of(ROWS)
    results = []
    for name in ("simclr", "simclr_v2"):
        method = METHODS[name](c, FACTS)
        results.append(loss_of(method, random_state(method), batch))
    chex.assert_trees_all_equal(*results)


@pytest.mark.slow
def test_the_loss_with_a_memory_by_hand():
    """Queries and keys of the same views; two sets of statistics; the memory's rows are negatives."""
    c = stage_of("pretrain", queue__size=48, target__momentum=0.5)
    method = METHODS["simclr_v2"](c, FACTS)
    state = random_state(method)
    batch = batch_of(ROWS)
    total, out = loss_of(method, state, batch)

    x = np.asarray(jax.jit(lambda batch: views.stacked(batch, KEY, c))(batch))
    x = np.concatenate([x[:, 0], x[:, 1]])
    encoder_net = models.backbone(c.model)
    head = models.projection_head(c.head, c.model)

    def embed(params, stats):
        h, f_state = apply(encoder_net, params["encoder"], stats["encoder"], x, train=True)
        z, g_state = apply(head, params["projector"], stats["projector"], h, train=True)
        return z, {"encoder": f_state, "projector": g_state}

    q, model_state = embed(state.params, state.model_state)
    k, stats = embed(state.extra.params, state.extra.stats)
    loss = jax.jit(partial(nt_xent_with_memory, temperature=c.loss.temperature))
    q, k = map(np.asarray, (q, k))
    rows = loss(q[:ROWS], q[ROWS:], k[:ROWS], k[ROWS:], state.extra.queue.keys)
    np.testing.assert_allclose(total, rows[:ROWS].mean() + rows[ROWS:].mean(), rtol=1e-4)
    assert_close(out.model_state, model_state, rtol=1e-4, atol=1e-5)
    assert_close(out.carry.stats, stats, rtol=1e-4, atol=1e-5)
    unit = k / np.linalg.norm(k, axis=1, keepdims=True)
    np.testing.assert_allclose(out.carry.keys, unit, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_no_gradient_reaches_the_moving_average():
    c = stage_of("pretrain", queue__size=48)
    method = METHODS["simclr_v2"](c, FACTS)
    state = random_state(method)
    batch = batch_of(ROWS)

    def loss(params, average):
        extra = state.extra._replace(params=average)
        return method.loss(params, state.model_state, extra, batch, KEY, jnp.int32(0))[0]

    of_network, of_average = jax.jit(jax.grad(loss, argnums=(0, 1)))(state.params, state.extra.params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(of_average))
    assert np.abs(of_network["projector"]["dense1"]["kernel"]).max() > 1e-4


def test_a_memory_that_whole_batches_do_not_fill_is_refused():
    with pytest.raises(ValueError, match="K=40 keys is not filled by whole batches of 16"):
        METHODS["simclr_v2"](stage_of("pretrain", queue__size=40), FACTS)


# ------------------------------------------------------------------------------------------------ fine-tuning


@pytest.mark.slow
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_the_classifier_reads_that_layer_of_the_head(layers):
    """h, the hidden layers after norm and ReLU, or z; in training by the statistics of the batch."""
    c = stage_of("finetune", head__finetune_from=layers)
    method = METHODS["simclr_v2"](c, FACTS)
    state = random_state(method)
    batch = batch_of(ROWS)
    x = views.stacked(batch, KEY, c)[:, 0]
    net = models.backbone(c.model)
    whole = models.projection_head(c.head, c.model)

    def selected(train):
        h, _ = apply(net, state.params["encoder"], state.model_state["encoder"], x, train)
        fresh = shaken(jax.eval_shape(partial(whole.init, train=False), jax.random.key(0), h), 2)
        params = fresh["params"] | state.params.get("projector", {})
        statistics = fresh["batch_stats"] | state.model_state.get("projector", {})
        variables = {"params": params, "batch_stats": statistics}
        every, _ = whole.apply(variables, h, train=train, every_layer=True, mutable=["batch_stats"])
        return np.asarray(every[layers])

    dense = state.params["head"]["dense"]
    scores = selected(True) @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    label = np.asarray(batch["label"])
    expected = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(ROWS), label]
    total, _ = loss_of(method, state, batch)
    np.testing.assert_allclose(total, expected.mean(), rtol=1e-4)

    found = jax.jit(encoder(method, c))(state.params, state.model_state, (), batch["image"])
    np.testing.assert_allclose(found, selected(False), rtol=1e-3, atol=1e-4)
    if layers in (1, 2):
        assert selected(True).min() == 0.0 < selected(True).max()  # after the ReLU


def test_only_the_layers_that_are_kept_exist():
    """The others receive no weight decay, because there are none."""
    method = METHODS["simclr_v2"](stage_of("finetune", head__finetune_from=1), FACTS)
    params, model_state, _ = jax.eval_shape(lambda key: method.init(key, {}), KEY)
    assert names(params["projector"]) == {"dense1/kernel", "norm1/scale", "norm1/bias"}
    assert names(model_state["projector"]) == {"norm1/mean", "norm1/var"}
    plain = METHODS["simclr_v2"](stage_of("finetune", head__finetune_from=0), FACTS)
    assert set(jax.eval_shape(lambda key: plain.init(key, {}), KEY)[0]) == {"encoder", "head"}


@pytest.mark.slow
def test_fine_tuning_begins_at_the_log_of_the_classes_and_lars_leaves_the_classifier_alone():
    c = stage_of("finetune")
    method = METHODS["simclr_v2"](c, FACTS)
    params, model_state, extra = jax.jit(method.init)(KEY, {})
    batch = batch_of(ROWS)
    loss = lambda p: method.loss(p, model_state, extra, batch, KEY, jnp.int32(0))[0]
    total, grads = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(total, np.log(10.0), rtol=1e-6)

    tx = optim.lars(
        0.5,
        lr_in_momentum=True,
        weight_decay=0.1,
        momentum=0.9,
        trust_coefficient=0.001,
        mask=lambda tree: optim.decayed(tree, method.probes),
    )
    params = params | {"head": shaken(params["head"], 2)}
    update, _ = jax.jit(lambda grads, params: tx.update(grads, tx.init(params), params))(grads, params)
    expected = jax.tree.map(lambda g: -0.5 * np.asarray(g), grads["head"])
    chex.assert_trees_all_close(update["head"], expected, rtol=1e-6)


def test_a_head_with_fewer_layers_is_refused():
    with pytest.raises(ValueError, match="finetune_from=4: the projection head has 3 layers"):
        METHODS["simclr_v2"](stage_of("finetune", head__finetune_from=4), FACTS)


# ----------------------------------------------------------------------------------------------- distillation


def copied(method, state: TrainState) -> TrainState:
    """The state whose student is its teacher."""
    params, model_state = jax.tree.map(jnp.copy, tuple(state.extra))
    return state.replace(params=params, model_state=model_state)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_loss_of_distillation_by_hand(temperature):
    c = stage_of("distill", distill__temperature=temperature, distill__finetune_from=1)
    method = METHODS["simclr_v2"](c, FACTS)
    state = random_state(method)
    batch = batch_of(ROWS)
    total, out = loss_of(method, state, batch)

    x = views.stacked(batch, KEY, c)[:, 0]
    net = models.backbone(c.model)
    layer = models.projection_head(c.head, c.model, built=1)
    weights, statistics = state.extra
    t, _ = apply(net, weights["encoder"], statistics["encoder"], x, train=False)
    t, _ = apply(layer, weights["projector"], statistics["projector"], t, train=False)
    s, f_state = apply(net, state.params["encoder"], state.model_state["encoder"], x, train=True)

    def log_softmax(head, features):
        z = np.asarray(features, np.float64) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
        z = z / temperature
        z = z - z.max(axis=1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=1, keepdims=True))

    teacher = log_softmax(weights["head"]["dense"], t)
    student = log_softmax(state.params["head"]["dense"], s)
    expected = -(np.exp(teacher) * student).sum(axis=1)
    np.testing.assert_allclose(total, expected.mean(), rtol=1e-3)
    np.testing.assert_allclose(
        out.metrics["loss_floor"], -(np.exp(teacher) * teacher).sum(axis=1).mean(), rtol=1e-3, atol=1e-5
    )
    assert_close(out.model_state["encoder"], f_state, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_student_and_teacher_see_the_same_crop_and_the_teacher_its_running_statistics():
    """A student that is its teacher has the teacher's entropy for its loss, if it too were in inference mode.

    The running statistics are set to those of the batch, so that both modes agree.
    """
    c = stage_of("distill", augment__crop="affine")
    method = METHODS["simclr_v2"](c, FACTS)
    state = copied(method, random_state(method))
    batch = batch_of(ROWS)
    _, out = loss_of(method, state, batch)
    of_batch = jax.tree.map(
        lambda old, new: np.float32((np.asarray(new) - 0.9 * np.asarray(old)) / 0.1),
        state.model_state["encoder"],
        out.model_state["encoder"],
    )
    sure = jax.tree.map(
        lambda leaf: 30 * np.asarray(leaf), state.params["head"]
    )  # so that a difference would show
    state = state.replace(
        params=state.params | {"head": sure},
        extra=Frozen(state.extra.params | {"head": sure}, {"encoder": of_batch}),
    )
    total, out = loss_of(method, state, batch)
    np.testing.assert_allclose(total, out.metrics["loss_floor"], rtol=1e-5)
    assert out.metrics["agreement"] == 1.0

    other = jax.tree.map(lambda leaf: 2 * leaf, of_batch)
    changed = state.replace(extra=state.extra._replace(model_state={"encoder": other}))
    assert abs(loss_of(method, changed, batch)[0] - total) > 1e-3  # the teacher reads them


@cache
def distilling():
    c = stage_of("distill")
    return c, METHODS["simclr_v2"](c, FACTS)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.0, 0.25])
def test_labels_count_where_there_are_any(alpha):
    """(1 - alpha) over labelled images and alpha over all, both divided by the size of the batch."""
    batch = batch_of(ROWS)
    labelled = np.array([True, False, True, False, False, True])
    part = {**batch, "label": np.where(labelled, batch["label"], -1)}
    c, method = distilling()
    state = random_state(method)
    word = np.asarray(loss_of(method, state, part)[0], np.float64)
    np.testing.assert_allclose(word, loss_of(method, state, batch)[0], rtol=1e-6)  # no label is read
    x = views.stacked(batch, KEY, c)[:, 0]
    net = models.backbone(c.model)
    h, _ = apply(net, state.params["encoder"], state.model_state["encoder"], x, train=True)
    dense = state.params["head"]["dense"]
    z = np.asarray(h, np.float64) @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    rows = np.log(np.exp(z).sum(axis=1)) - z[np.arange(ROWS), np.asarray(batch["label"])]
    expected = (1 - alpha) * rows[labelled].sum() / ROWS + alpha * word
    method = METHODS["simclr_v2"](stage_of("distill", distill__alpha=alpha), FACTS)
    np.testing.assert_allclose(loss_of(method, state, part)[0], expected, rtol=1e-4)


@pytest.mark.slow
def test_the_squared_temperature_scales_the_teachers_part():
    batch = batch_of(ROWS)
    totals = []
    for scaled in (False, True):
        c = stage_of("distill", distill__temperature=0.5, distill__tau_squared=scaled)
        method = METHODS["simclr_v2"](c, FACTS)
        totals.append(loss_of(method, random_state(method), batch)[0])
    np.testing.assert_allclose(totals[1], 0.25 * totals[0], rtol=1e-6)


# ----------------------------------------------------------------------------- from one stage to the next


def finished(folder, c) -> tuple[str, TrainState]:
    """The folder of a run with random weights in every branch, and its state."""
    program = build(c, FACTS)
    state = random_state(program.method)
    state = state.replace(opt_state=blank(program).opt_state)
    return saved(folder, c, state), state


@pytest.mark.slow
def test_each_stage_takes_from_the_one_before_what_the_paper_takes(tmp_path):
    folder, first = finished(tmp_path / "pretrain", stage_of("pretrain"))

    # Fine-tuning: the encoder and the layers of the head up to the one that the classifier reads.
    c = stage_of("finetune", init_from="pretrain", init_branches=("encoder", "projector"))
    program = build(c, FACTS)
    begun = random_state(program.method, 9)
    tuned = start_from(program, {"pretrain": folder})(begun)
    chex.assert_trees_all_equal(tuned.params["encoder"], first.params["encoder"])
    chex.assert_trees_all_equal(tuned.model_state["encoder"], first.model_state["encoder"])
    for name in ("dense1", "norm1"):
        chex.assert_trees_all_equal(tuned.params["projector"][name], first.params["projector"][name])
    chex.assert_trees_all_equal(
        tuned.model_state["projector"]["norm1"], first.model_state["projector"]["norm1"]
    )
    chex.assert_trees_all_equal(tuned.params["head"], begun.params["head"])

    # Distillation: the whole fine-tuned network is the teacher; the student starts anew.
    folder, second = finished(tmp_path / "finetune", c)
    c = stage_of("distill", distill__teacher="finetune", distill__finetune_from=1)
    program = build(c, FACTS)
    begun = random_state(program.method, 9)
    student = start_from(program, {"finetune": folder})(begun)
    chex.assert_trees_all_equal(student.extra.params, second.params)
    chex.assert_trees_all_equal(student.extra.model_state, second.model_state)
    chex.assert_trees_all_equal(student.params, begun.params)

    # A smaller network: the teacher is the distilled one, whose classifier reads its features.
    folder, third = finished(tmp_path / "distill", c)
    c = stage_of("distill", distill__teacher=folder, distill__finetune_from=0)
    program = build(c, FACTS)
    last = start_from(program, {})(random_state(program.method, 9))
    chex.assert_trees_all_equal(last.extra.params, third.params)


@pytest.mark.slow
def test_a_linear_evaluation_takes_the_encoder_and_no_layer_of_the_head(tmp_path):
    folder, first = finished(tmp_path / "pretrain", stage_of("pretrain"))
    c = config_of("linear", init_from="pretrain", model=stage_of("pretrain").model)
    program = build(c, FACTS)
    state = start_from(program, {"pretrain": folder})(blank(program))
    assert set(state.extra.params) == {"encoder"}
    chex.assert_trees_all_equal(state.extra.params["encoder"], first.params["encoder"])


@pytest.mark.slow
def test_a_teacher_is_asked_for_by_the_name_of_its_setting():
    program = build(stage_of("distill"), FACTS)
    with pytest.raises(ValueError, match="config.distill.teacher is empty"):
        start_from(program, {})(random_state(program.method, 9))


# --------------------------------------------------------------------------------------- the paper's recipes

IMAGES = 1_281_167


def rate(stage) -> float:
    return optim.scaled_learning_rate(stage.optim.learning_rate, stage.optim.scaling, stage.batch_size)


@pytest.mark.parametrize("network", simclr_v2.IMAGENET)
def test_the_recipes_of_a_network(network):
    depth, width, sk = simclr_v2.IMAGENET[network]
    pretrain = simclr_v2.get_config(network)
    assert pretrain.model.name == f"resnet{depth}" and pretrain.model.width == width
    assert pretrain.model.sk_ratio == (0.0625 if sk else 0.0)
    assert (pretrain.epochs, pretrain.batch_size, pretrain.head.layers) == (800, 4096, 3)
    np.testing.assert_allclose(rate(pretrain), 6.4)
    assert (pretrain.optim.name, pretrain.optim.weight_decay, pretrain.optim.warmup_epochs) == (
        "lars",
        1e-4,
        40,
    )
    assert (pretrain.augment.brightness, pretrain.loss.temperature) == ("multiply", 0.1)

    for part, images, epochs in (("1pct", 12_811, 60), ("10pct", 128_116, 30), ("100pct", IMAGES, 30)):
        c = simclr_v2.get_config(f"{network}_{part}")
        assert c.stages == ("pretrain", "finetune")
        assert configs.hashed(c.pretrain) == configs.hashed(pretrain)
        tuned = c.finetune
        np.testing.assert_allclose(rate(tuned), 0.16 if width == 1 and not sk else 0.064, rtol=1e-6)
        assert (tuned.optim.weight_decay, tuned.optim.warmup_epochs, tuned.batch_size) == (0.0, 0, 1024)
        assert tuned.head.finetune_from == (0 if part == "100pct" else 1)
        assert ("projector" in tuned.init_branches) == (part != "100pct")
        assert tuned.augment.jitter_probability == tuned.augment.blur_probability == 0.0
        assert optim.train_steps(images, tuned.epochs, 1024) == images * epochs // 1024 + 1

    student = simclr_v2.get_config(f"{network}_self_1pct").distill
    np.testing.assert_allclose(rate(student), 6.4)
    assert (student.epochs, student.batch_size, student.optim.warmup_epochs) == (400, 4096, 20)
    assert (student.distill.alpha, student.distill.temperature, student.distill.tau_squared) == (
        1.0,
        0.1,
        False,
    )
    assert student.distill.finetune_from == 1 and student.teacher == student.model
    assert student.data.label_fraction == 1.0 and student.augment.jitter_probability == 0.0


def test_a_student_of_the_largest_network_has_four_stages():
    c = simclr_v2.get_config("imagenet_r50_distilled_10pct")
    assert c.stages == ("pretrain", "finetune", "self_distill", "distill")
    assert c.pretrain.model.width == c.self_distill.model.width == 3.0
    assert (c.self_distill.distill.teacher, c.distill.distill.teacher) == ("finetune", "self_distill")
    assert (c.self_distill.distill.finetune_from, c.distill.distill.finetune_from) == (1, 0)
    assert (c.self_distill.distill.temperature, c.distill.distill.temperature) == (0.1, 1.0)
    assert c.distill.teacher == c.pretrain.model and c.distill.model.width == 1.0


def test_the_steps_and_the_peak_of_pretraining():
    """Counted by hand: 1,281,167 * 800 // 4096 + 1 steps, and 40 epochs of warm-up."""
    assert optim.train_steps(IMAGES, 800, 4096) == 250_228
    optimizer, schedule = optim.make_optimizer(
        simclr_v2.get_config("imagenet_r50").optim,
        batch_size=4096,
        total_steps=250_228,
        probes=(),
        steps_per_epoch=IMAGES / 4096,
        restarted=(),
    )
    np.testing.assert_allclose(schedule(12_511), 6.4, rtol=1e-5)
    np.testing.assert_allclose(schedule(250_228), 0.0, atol=1e-6)
