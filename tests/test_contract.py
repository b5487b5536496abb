"""What every method promises, generated over METHODS. A new method is picked up by itself; it needs `configs/<method>.py:digits`."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from ssljax import sharding, train
from ssljax.checkpoint import Checkpoints
from ssljax.config import resolve
from ssljax.data import sources
from ssljax.methods import METHODS
from ssljax.step import make_train_step


def carries(case):
    """(state before, what `loss` left for `update`, state after) of every step, on one device."""
    loss = jax.jit(case.one.method.loss)
    for step, batch in enumerate(case.batches):
        before, after = case.on_one_device(case.states[step]), case.states[step + 1]
        batch = {k: jnp.asarray(np.asarray(v)) for k, v in batch.items()}
        _, out = loss(before.params, before.model_state, before.extra, batch, jax.random.fold_in(case.key, step), jnp.int32(step))
        yield jax.tree.map(np.asarray, before), jax.tree.map(np.asarray, out.carry), jax.tree.map(np.asarray, after)


def follows(target, online, decay, found):
    """`found` is the moving average of the two trees, computed in float64."""
    for (name, old), (_, new), (_, got) in zip(leaves(target), leaves({k: online[k] for k in target}), leaves(found), strict=True):
        np.testing.assert_allclose(got, decay * old.astype(np.float64) + (1 - decay) * new, rtol=1e-5, atol=1e-7, err_msg=name)


def close(tree, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), tree, other)


def moco_oracle(case):
    """Momentum towards the new parameters, the step's keys in the next rows of the ring, the key network's own statistics."""
    pointer, size = 0, case.config.queue.size
    for before, carry, after in carries(case):
        follows(before.extra.key_params, after.params, case.config.target.momentum, after.extra.key_params)
        rows = (pointer + np.arange(len(carry.keys))) % size
        expected = before.extra.queue.keys.copy()
        expected[rows] = carry.keys
        np.testing.assert_allclose(after.extra.queue.keys, expected, rtol=1e-4, atol=1e-5)
        pointer = (pointer + len(rows)) % size
        assert after.extra.queue.pointer == pointer
        close(after.extra.key_stats, carry.key_stats)


def byol_oracle(case):
    """tau on its cosine from the step's own number, towards the new parameters; the target's own statistics."""
    base, total = case.config.target.momentum, len(case.source) * case.config.epochs // case.config.batch_size
    for step, (before, carry, after) in enumerate(carries(case)):
        tau = 1 - (1 - base) * (1 + np.cos(np.pi * step / total)) / 2
        follows(before.extra.target_params, after.params, tau, after.extra.target_params)
        close(after.extra.target_stats, carry)


def deit_oracle(case):
    """The teacher stays to the bit; the average follows parameters and running statistics."""
    for before, _, after in carries(case):
        for (name, old), (_, new) in zip(leaves(before.extra.teacher), leaves(after.extra.teacher), strict=True):
            np.testing.assert_array_equal(old, new, err_msg=name)
        follows(before.extra.ema.params, after.params, case.config.ema.decay, after.extra.ema.params)


def deepcluster_oracle(case):
    """A step changes nothing of what the last clustering found; that is checked in tests/methods/test_deepcluster.py."""
    for before, _, after in carries(case):
        for (name, old), (_, new) in zip(leaves(before.extra), leaves(after.extra), strict=True):
            np.testing.assert_array_equal(old, new, err_msg=name)
    assert (case.states[0].extra.assignment >= 0).all()


# Independent NumPy versions of `update`, for methods whose extra state is not empty: name -> (extra before, step's inputs) -> extra after.
ORACLES: dict = {"moco": moco_oracle, "byol": byol_oracle, "deit": deit_oracle, "deepcluster": deepcluster_oracle}

# What else must be small: a queue of three steps (and v1's temperature, at which forty updates are felt), narrow heads.
SMALL = {"moco": {"queue.size": 96, "loss.temperature": 0.07}, "byol": {"head.hidden": 32, "predictor.hidden": 32},
         "deepcluster": {"clusters.k": 16, "clusters.dim": 8, "clusters.iterations": 2},
         # A transformer of the smallest size under a teacher of random weights; nothing that smooths the labels.
         "deit": {"model.name": "vit_xs", "model.scan": True, "teacher.width": 0.125, "ema.decay": 0.9,
                  "mix.label_smoothing": 0.0, "mix.mixup_alpha": 0.0, "distill.alpha": 0.1}}


def small_config(method: str, **changes) -> ConfigDict:
    """The method's digits preset (its last stage) with a network of 8 channels and no warm-up: a rate of 0 moves nothing."""
    c = importlib.import_module(f"configs.{method}").get_config("digits").unlock()
    c = c[c.stages[-1]] if "stages" in c else c
    c.batch_size, c.epochs, c.log_every = 16, 2, 2
    c.model.update(name="resnet8", width=0.125, stem="imagenet")
    c.optim.update(name="lars", learning_rate=0.3, scaling="none", warmup_epochs=0, trust_coefficient=0.02, weight_decay=1e-4)
    if "head" in c:
        c.head.dim = 16
    for key, value in changes.items():
        c.model[key] = value
    c.update_from_flattened_dict(SMALL.get(method, {}))
    return resolve(c).lock()


class Case:
    """One method's program on 8 devices and on 1, a batch, and the states after a step. Made once a session."""

    def __init__(self, name: str):
        self.name, self.config = name, small_config(name)
        self.source = sources.load(self.config.data, "train")
        self.eight = train.build(self.config, self.source)
        self.one = train.build(self.config, self.source, sharding.make_mesh(1))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sharding, "BIG", 256)                         # the small network has no big leaves
            self.four_by_two = train.build(self.config, self.source, sharding.make_mesh(8, fsdp=2))
        self.key = jax.random.key(0)
        self.initial = self.eight.init(0)
        if self.eight.method.refresh is not None:
            self.initial = train.refreshed(self.eight, self.source, self.initial, 0, None)
        self.balance = train.balance(self.eight, self.source, self.initial)
        stream = train.device_batches(self.eight, self.source, 0, 0, self.balance)
        self.batches = [b for b, _ in zip(stream, range(4), strict=False)]
        self.states, self.metrics = [self.initial], []
        for batch in self.batches:
            state, metrics = self.eight.step(copy(self.states[-1]), batch, self.key)
            self.states.append(state)
            self.metrics.append(metrics)

    def on_one_device(self, tree):
        return jax.device_put(jax.tree.map(np.asarray, tree), sharding.whole(self.one.mesh))


def copy(tree):
    """The step donates its state."""
    return jax.tree.map(lambda leaf: leaf.copy(), tree)


@pytest.fixture(scope="module", params=sorted(METHODS))
def case(request):
    return Case(request.param)


def leaves(tree):
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def test_a_step_keeps_tree_shapes_dtypes_and_shardings(case):
    before, after = case.initial, case.states[1]
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for (name, a), (_, b) in zip(leaves(before), leaves(after), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim), name
        assert len(b.sharding.device_set) == 8, name


def test_every_trainable_leaf_moves(case):
    """Four steps: a zero-initialised head, and then a zero-initialised last gamma, each hold back what lies below them for one."""
    for (name, a), (_, b) in zip(leaves(case.initial.params), leaves(case.states[-1].params), strict=True):
        assert np.any(np.asarray(a) != np.asarray(b)), f"{name} has not moved in four steps"


def test_one_device_computes_what_eight_and_four_by_two_compute(case):
    """Loss and every gradient leaf, on the same batch and from the same parameters after a step; 4 x 2 with its parameters split."""
    def gradient(program):
        places = jax.tree.map(lambda leaf: leaf.sharding, program.shapes)
        state = jax.device_put(jax.tree.map(np.asarray, case.states[1]), places)
        batch = jax.device_put(jax.tree.map(np.asarray, case.batches[1]), sharding.batch_sharding(program.mesh))
        key = jax.random.fold_in(case.key, 1)
        def f(params):
            return program.method.loss(params, state.model_state, state.extra, batch, key, state.step)[0]
        grad = jax.jit(sharding.on_mesh(program.mesh, jax.value_and_grad(f)), out_shardings=(None, places.params))
        return *grad(state.params), state.params
    loss1, grad1, _ = gradient(case.one)
    for program in (case.eight, case.four_by_two):
        loss, grad, params = gradient(program)
        split = [name for name, leaf in leaves(params) if not leaf.is_fully_replicated]
        assert bool(split) == (program is case.four_by_two), split
        np.testing.assert_allclose(loss, loss1, rtol=1e-5)
        for (name, a), (_, b) in zip(leaves(grad), leaves(grad1), strict=True):
            scale = max(np.abs(np.asarray(b)).max(), 1e-2)              # the gradient of a bias before a norm is nothing but rounding
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=3e-5 * scale, err_msg=name)


def test_stopping_and_resuming_changes_no_bit(case, tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(case.states[2], {})
    checkpoints.close()
    restored = Checkpoints(str(tmp_path)).restore(case.eight.shapes)
    balance = train.balance(case.eight, case.source, restored)
    batch = next(train.device_batches(case.eight, case.source, 0, int(restored.step), balance))
    resumed, _ = case.eight.step(restored, batch, case.key)
    for (name, a), (_, b) in zip(leaves(case.states[3]), leaves(resumed), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=name)


def test_nothing_is_traced_again_after_the_second_step(case):
    assert case.eight.step._cache_size() == 1


def test_extra_follows_its_numpy_oracle(case):
    if jax.tree.leaves(case.initial.extra):
        assert case.name in ORACLES, f"{case.name} has extra state: give it an independent NumPy version in ORACLES"
        ORACLES[case.name](case)
    else:
        assert case.states[-1].extra == case.initial.extra == ()


def test_the_loss_falls_on_one_small_batch(case):
    """Forty updates on the same views of the same sixteen images; a queue or a target network stands still meanwhile."""
    state = case.on_one_device(case.states[-1])
    extra = state.extra
    batch = {k: jnp.asarray(np.asarray(v)) for k, v in case.batches[0].items()}
    losses = []
    with jax.numpy_dtype_promotion("standard"):        # optax's Adam mixes its integer count with floats
        tx = optax.adam(3e-3)
        step = jax.jit(make_train_step(case.one.method, tx))
        state = state.replace(opt_state=tx.init(state.params))
        for _ in range(40):
            state, metrics = step(state.replace(step=jnp.zeros((), jnp.int32), extra=extra), batch, case.key)      # step 0: the same views
            losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.75 * losses[0], losses


def test_bfloat16_is_finite_and_close(case):
    config = train.with_ids(train.with_classes(small_config(case.name, dtype="bfloat16"), 10), case.source.num_ids)
    method = METHODS[case.name](train.with_examples(config, len(case.source)))
    state = case.on_one_device(case.states[1])
    batch = {k: jnp.asarray(np.asarray(v)) for k, v in case.batches[1].items()}
    args = (state.params, state.model_state, state.extra, batch, jax.random.fold_in(case.key, 1), state.step)
    half = jax.jit(method.loss)(*args)[0]
    full = jax.jit(case.one.method.loss)(*args)[0]
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, full, rtol=0.03)


def test_encode_gives_float32_features_and_does_not_depend_on_the_rest_of_the_batch(case):
    state = case.on_one_device(case.states[3])
    images = case.source.images[:4]
    features = np.asarray(case.one.encode(state.params, state.model_state, state.extra, images))
    alone = np.asarray(case.one.encode(state.params, state.model_state, state.extra, images[2:3]))
    assert features.dtype == np.float32 and features.ndim == 2 and len(features) == 4
    np.testing.assert_allclose(features[2:3], alone, rtol=1e-4, atol=1e-6)


def test_init_runs_under_eval_shape_and_the_encoder_is_named(case):
    method = METHODS[case.name](case.eight.config)
    params, _, extra = jax.eval_shape(lambda key: method.init(key, {}), case.key)
    assert "encoder" in params
    assert jax.tree.structure(extra) == jax.tree.structure(case.initial.extra)


def test_the_config_is_plain_data(case):
    assert json.loads(case.config.to_json())["method"] == case.name
