"""What every method promises, generated over METHODS.

A new method is tested automatically. It needs `configs/<method>.py:digits`, and a file in tests/contract if
it keeps a state of its own. A stage that trains something else has a line in STAGES of contract/case.py.
"""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import sharding
from ssljax.methods import METHODS
from ssljax.program import balance_of, device_batches
from ssljax.run.checkpoint import Checkpoints
from tests.contract.case import STAGES, Case, copy, leaves, own, small_config
from tests.methods.small import one_block

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=sorted({*METHODS, *STAGES}))
def case(request):
    with one_block():
        yield Case(request.param)


def test_a_step_keeps_tree_shapes_dtypes_and_shardings(case):
    before = case.initial
    after = case.states[1]
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)
    for (name, a), (_, b) in zip(leaves(before), leaves(after), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim), name
        assert len(b.sharding.device_set) == 8, name


def test_every_trainable_leaf_moves(case):
    """Within four steps. A head and a last gain that start from zero each delay the layers below by one."""
    for (name, a), (_, b) in zip(leaves(case.initial.params), leaves(case.states[-1].params), strict=True):
        assert np.any(np.asarray(a) != np.asarray(b)), f"{name} has not moved in four steps"


def test_one_device_computes_what_eight_and_four_by_two_compute(case):
    """Loss and every gradient leaf, on the same batch and from the same parameters after one step.

    Of 8 devices it is the gradient of the step itself. On 4 x 2 devices the parameters are sharded.
    """
    (loss1, _), grad1 = case.gradient(*case.arguments(1))

    def assert_equal(loss, grad):
        np.testing.assert_allclose(loss, loss1, rtol=1e-5)
        for (name, a), (_, b) in zip(leaves(grad), leaves(grad1), strict=True):
            # The gradient of a bias before a norm is nothing but rounding.
            scale = max(np.abs(np.asarray(b)).max(), 1e-2)
            np.testing.assert_allclose(
                np.asarray(a), np.asarray(b), rtol=1e-4, atol=3e-5 * scale, err_msg=name
            )

    assert_equal(case.metrics[1]["loss"], case.gradient_of_step(1))

    program = case.four_by_two
    places = jax.tree.map(lambda leaf: leaf.sharding, program.shapes)
    state = jax.device_put(jax.tree.map(np.asarray, case.states[1]), places)
    batch = jax.device_put(jax.tree.map(np.asarray, case.batches[1]), sharding.batch_sharding(program.mesh))
    key = jax.random.fold_in(case.key, 1)

    def f(params):
        return program.method.loss(params, state.model_state, state.extra, batch, key, state.step)[0]

    value_and_grad = sharding.on_mesh(program.mesh, jax.value_and_grad(f))
    loss, grad = jax.jit(value_and_grad, out_shardings=(None, places.params))(state.params)
    replicated = [leaf.is_fully_replicated for leaf in jax.tree.leaves(state.params)]
    assert not all(replicated) and all(leaf.is_fully_replicated for _, leaf in leaves(case.states[1].params))
    assert_equal(loss, grad)


def test_stopping_and_resuming_changes_no_bit(case, tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(case.states[2], {})
    checkpoints.close()
    restored = Checkpoints(str(tmp_path)).restore(case.eight.shapes)
    balance = balance_of(case.eight, case.source, restored)
    batch = next(device_batches(case.eight, case.source, 0, int(restored.step), balance))
    resumed, _ = case.step(restored, batch)
    chex.assert_trees_all_equal(resumed, case.states[3], strict=True)


def test_nothing_is_traced_again_after_the_second_step(case):
    """The size of jit's cache also sees a step that is compiled again for other shardings without a trace."""
    assert case.eight.step._cache_size() == 1


def test_extra_follows_its_numpy_oracle(case):
    if jax.tree.leaves(case.initial.extra):
        oracle = own(case.name).oracle
        assert oracle is not None, (
            f"{case.name} has extra state: "
            f"write an independent NumPy version of it in tests/contract/{case.name}.py"
        )
        oracle(case)
    else:
        assert case.states[-1].extra == case.initial.extra == ()


def test_the_loss_falls_on_one_small_batch(case):
    """By a quarter within forty updates on the same views of sixteen images, while a queue or a target
    network stands still."""
    state = copy(case.states[-1])
    extra = copy(state.extra)
    losses = []
    while len(losses) < 5 or (len(losses) < 40 and np.mean(losses[-5:]) >= 0.75 * losses[0]):
        first = jnp.zeros_like(state.step)  # step 0 draws the same views
        state, metrics = case.step(state.replace(step=first, extra=copy(extra)), case.batches[0])
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.75 * losses[0], losses


def test_bfloat16_is_finite_and_close(case):
    method = METHODS[case.config.method](small_config(case.name, dtype="bfloat16"), case.facts)
    half = jax.jit(method.loss)(*case.arguments(1))[0]
    (full, _), _ = case.gradient(*case.arguments(1))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, full, rtol=0.03)


def test_encode_gives_float32_features_and_does_not_depend_on_the_rest_of_the_batch(case):
    state = case.on_one_device(case.states[3])
    images = case.images[:4]
    features = np.asarray(case.one.encode(state.params, state.model_state, state.extra, images))
    alone = np.asarray(case.one.encode(state.params, state.model_state, state.extra, images[2:3]))
    assert features.dtype == np.float32 and features.ndim == 2 and len(features) == 4
    np.testing.assert_allclose(features[2:3], alone, rtol=1e-4, atol=1e-6)


def test_init_runs_under_eval_shape_and_the_encoder_is_named(case):
    method = METHODS[case.config.method](case.eight.config, case.facts)
    params, _, extra = jax.eval_shape(lambda key: method.init(key, {}), case.key)
    assert "encoder" in (extra.params if method.frozen else params)
    assert jax.tree.structure(extra) == jax.tree.structure(case.initial.extra)


def test_the_config_is_plain_data(case):
    assert json.loads(case.config.to_json())["method"] in case.name
