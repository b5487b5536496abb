"""Moving averages and the queue against the released codes and by hand.

Also MoCo's order of events within a step, against a trajectory of its released code.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssljax.losses.contrastive import info_nce
from ssljax.losses.similarity import l2_normalize
from ssljax.step import make_train_step
from ssljax.targets import ema
from ssljax.targets import queue as queues
from ssljax.targets.queue import Queue, enqueue
from ssljax.types import Method, Out, TrainState

# ------------------------------------------------------------------------------------------- moving averages


def test_one_update_equals_the_released_one(golden):
    g = golden("byol_regression").under("ema")
    decay = ema.cosine_decay(int(g["step"]), int(g["max_steps"]), float(g["base_ema"]))
    np.testing.assert_allclose(decay, g["tau"], rtol=1e-5)
    new = ema.update(
        {"w": jnp.asarray(g["target_w"]), "b": jnp.asarray(g["target_b"])},
        {"w": jnp.asarray(g["online_w"]), "b": jnp.asarray(g["online_b"])},
        decay,
    )
    np.testing.assert_allclose(new["w"], g["new_target_w"], rtol=1e-5)
    np.testing.assert_allclose(new["b"], g["new_target_b"], rtol=1e-5)


def test_closed_form_against_a_network_that_stands_still():
    online = {"w": jnp.float32([3.0, -1.0])}
    target = {"w": jnp.float32([1.0, 1.0])}
    for _ in range(7):
        target = ema.update(target, online, 0.9)
    np.testing.assert_allclose(target["w"], [3 + 0.9**7 * -2, -1 + 0.9**7 * 2], atol=1e-6)


def test_decay_one_keeps_and_decay_zero_copies():
    target = {"w": jnp.float32([0.1, 5.0])}
    online = {"w": jnp.float32([0.3, -7.0])}
    np.testing.assert_array_equal(ema.update(target, online, 1.0)["w"], target["w"])
    np.testing.assert_array_equal(ema.update(target, online, 0.0)["w"], online["w"])


def test_the_target_keeps_its_dtype_and_bfloat16_parameters_still_move_it():
    """With tau at 0.9999 a bfloat16 target would stand still; a float32 one follows a bfloat16 network."""
    one = {"w": jnp.ones(2, jnp.float32)}
    two = {"w": jnp.full(2, 2.0, jnp.float32)}
    half = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)
    target = ema.update(one, half(two), 0.9999)["w"]
    assert target.dtype == jnp.float32
    np.testing.assert_allclose(target, [1.0001, 1.0001], rtol=1e-6)
    assert ema.update(half(one), two, 0.9)["w"].dtype == jnp.bfloat16


def test_trees_that_differ_are_refused():
    with pytest.raises(ValueError):
        ema.update({"w": jnp.ones(2)}, {"w": jnp.ones(2), "b": jnp.ones(2)}, 0.9)


@pytest.mark.parametrize("case", range(2))
def test_byol_schedule(golden, case):
    g = golden("byol_regression").under(f"tau{case}")
    found = ema.cosine_decay(jnp.asarray(g["step"]), int(g["max_steps"]), float(g["base_ema"]))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, g["tau"], atol=1e-5)


def test_moco_v3_schedule(golden):
    g = golden("moco_infonce").under("v3_sched")
    found = ema.decay(
        jnp.asarray(g["epoch"], jnp.float32),
        schedule="cosine",
        base=float(g["base_m"]),
        total=int(g["epochs"]),
    )
    np.testing.assert_allclose(found, g["moco_m"], rtol=1e-6)


def test_schedule_by_hand_and_clamped():
    steps = jnp.array([0, 250, 500, 750, 1000, 1001, 1500])
    np.testing.assert_allclose(
        ema.cosine_decay(steps, 1000, 0.996), [0.996, 0.99658579, 0.998, 0.99941421, 1, 1, 1], rtol=1e-6
    )
    assert float(ema.decay(jnp.int32(7), schedule="constant", base=0.25, total=0)) == 0.25


def test_schedules_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="total=0 steps"):
        ema.cosine_decay(0, 0, 0.9)
    with pytest.raises(ValueError, match="'linear' is unknown"):
        ema.decay(0, schedule="linear", base=0.9, total=10)


# ------------------------------------------------------------------------------------------------- the queue


def test_first_in_first_out():
    queue = Queue(jnp.zeros((8, 1)), jnp.int32(0))
    for step in range(1, 6):
        queue = enqueue(queue, jnp.full((2, 1), step, jnp.float32))
    np.testing.assert_array_equal(queue.keys[:, 0], [5, 5, 2, 2, 3, 3, 4, 4])
    assert queue.pointer == 2 and queue.pointer.dtype == jnp.int32


def test_a_batch_that_does_not_divide_the_queue_is_refused():
    with pytest.raises(
        ValueError,
        match=r"K=12 keys is not filled by whole batches of 5.*divide K, the nearest are 1, 2, 3, 4, 6, 12",
    ):
        enqueue(Queue(jnp.zeros((12, 2)), jnp.int32(0)), jnp.ones((5, 2)))


@pytest.mark.slow
def test_a_queue_starts_from_random_directions():
    queue = queues.init(jax.random.key(0), 512, 16)
    np.testing.assert_allclose(np.linalg.norm(queue.keys, axis=1), np.ones(512), rtol=1e-5)
    assert np.abs(np.asarray(queue.keys).mean(0)).max() < 0.05 and queue.pointer == 0


def test_queue_of_the_released_code_with_one_process(golden):
    g = golden("moco_infonce")
    queue = Queue(jnp.asarray(g["single/queue_init"].T), jnp.int32(0))
    for step in range(int(g["single/steps"])):
        queue = enqueue(queue, l2_normalize(jnp.asarray(g[f"single/s{step}/k_raw"])))
        np.testing.assert_allclose(queue.keys, g[f"single/s{step}/queue_after"].T, rtol=1e-5, atol=1e-6)
        assert queue.pointer == g[f"single/s{step}/ptr_after"][0]


def test_two_processes_of_the_released_code_are_one_global_batch(golden):
    g = golden("moco_infonce")
    queue = Queue(jnp.asarray(g["multi/rank0/queue_init"].T), jnp.int32(0))
    for step in range(int(g["multi/steps"])):
        keys = np.concatenate([g[f"multi/rank{rank}/s{step}/k_raw"] for rank in range(2)])
        queue = enqueue(queue, l2_normalize(jnp.asarray(keys)))
        for rank in range(2):
            np.testing.assert_allclose(
                queue.keys, g[f"multi/rank{rank}/s{step}/queue_after"].T, rtol=1e-5, atol=1e-6
            )
        assert queue.pointer == g[f"multi/rank0/s{step}/ptr_after"][0]


# ----------------------------------------------------------------------------- the order of events in a step


def small_network(params, x):
    """Linear, BatchNorm by the batch, ReLU, Linear. Weights have the PyTorch names of the released test."""
    x = x @ params["l.weight"].T + params["l.bias"][None]
    x = (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + 1e-5)
    x = jax.nn.relu(x * params["bn.weight"][None] + params["bn.bias"][None])
    return x @ params["fc.weight"].T + params["fc.bias"][None]


def test_update_after_the_optimizer_is_the_papers_momentum_before_the_keys(golden):
    """Three steps of facebookresearch/moco: f_k of each step, its loss, and the queue after it.

    Our step and our order of updates must give the same.
    """
    g = golden("moco_infonce").under("momentum")
    weights = [name for name in g if name.startswith("init/encoder_q.") and "running" not in name]
    names = [name.removeprefix("init/encoder_q.") for name in weights]

    def loss(params, model_state, extra, batch, key, step):
        key_params, queue = extra
        k = l2_normalize(small_network(key_params, batch["k"]))
        rows = info_nce(small_network(params, batch["q"]), k, queue.keys, temperature=float(g["T"]))
        return rows.mean(), Out(model_state, k, {})

    def update(extra, params, carry, step):
        return ema.update(extra[0], params, float(g["m"])), enqueue(extra[1], carry)

    tx = optax.chain(
        optax.add_decayed_weights(float(g["weight_decay"])),
        optax.sgd(float(g["lr"]), momentum=float(g["sgd_momentum"])),
    )
    read = lambda place, net: {name: jnp.asarray(g[f"{place}/encoder_{net}.{name}"]) for name in names}
    params = read("init", "q")
    queue = Queue(jnp.asarray(g["queue_init"].T), jnp.int32(0))
    state = TrainState(
        step=jnp.int32(0),
        params=params,
        model_state=(),
        opt_state=tx.init(params),
        extra=(read("init", "k"), queue),
    )
    method = Method(init=None, loss=loss, encode=None, update=update)
    step = jax.jit(make_train_step(method, tx))
    for number in range(int(g["steps"])):
        key_params, _ = state.extra
        chex.assert_trees_all_close(key_params, read(f"s{number}", "k"), rtol=1e-4, atol=1e-6)
        batch = {"q": jnp.asarray(g[f"s{number}/im_q"]), "k": jnp.asarray(g[f"s{number}/im_k"])}
        state, metrics = step(state, batch, jax.random.key(0))
        np.testing.assert_allclose(metrics["loss"], g[f"s{number}/loss"], rtol=1e-5)
        np.testing.assert_allclose(state.extra[1].keys, g[f"s{number}/queue_after"].T, rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(state.params, read(f"s{number}", "q"), rtol=1e-3, atol=1e-5)
