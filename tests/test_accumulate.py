"""Micro-batches give the gradient of the whole batch, which is calculated directly."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssljax.accumulate import join, make_gradient, split
from ssljax.data import sources
from ssljax.losses.contrastive import nt_xent
from ssljax.methods import METHODS
from ssljax.program import build, device_batches
from ssljax.step import make_train_step
from ssljax.types import Method, Out, TrainState, TwoPass
from tests.contract.case import leaves, small_config
from tests.methods.small import FACTS, batch_of, config_of, one_block, shaken

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
BATCH = {"image": RNG.normal(size=(12, 2, 5)).astype(np.float32), "index": np.arange(12, dtype=np.int32)}
PARAMS = {"w": RNG.normal(size=(5, 4)).astype(np.float32), "scale": np.float32(1.5)}
ARGUMENTS = (PARAMS, {"seen": np.float32(1.0)}, (), BATCH, None, np.int32(0))


def embed(params, model_state, extra, batch, key, step):
    """A layer without batch statistics. The state becomes the mean index that it saw."""
    return {"z": jnp.tanh(batch["image"] @ params["w"])}, {"seen": batch["index"].astype(jnp.float32).mean()}


def objective(params, embeddings, batch, step):
    z = embeddings["z"]
    rows = params["scale"] * nt_xent(z[:, 0], z[:, 1], temperature=0.5)
    weighted = z[:, 0] * batch["index"].astype(jnp.float32)[:, None]
    return rows.mean() + weighted.mean(), {"largest": rows.max()}


def contrastive(params, model_state, extra, batch, key, step):
    embeddings, model_state = embed(params, model_state, extra, batch, key, step)
    loss, metrics = objective(params, embeddings, batch, step)
    return loss, Out(model_state, (), metrics)


def squares(params, model_state, extra, batch, key, step):
    embeddings, model_state = embed(params, model_state, extra, batch, key, step)
    value = (params["scale"] * embeddings["z"] ** 2).mean()
    return value, Out(model_state, (), {"value": value})


def test_pieces_interleave_the_rows_and_join_puts_them_back():
    x = jnp.arange(6)
    np.testing.assert_array_equal(split({"x": x}, 2)["x"], [[0, 2, 4], [1, 3, 5]])
    np.testing.assert_array_equal(join(split(x, 3)), x)
    with pytest.raises(ValueError, match="accumulate=4 does not divide the batch of 6"):
        split(x, 4)


@pytest.mark.parametrize(
    "method",
    [
        Method(None, squares, None, separable=True),
        Method(None, contrastive, None, two_pass=TwoPass(embed, objective)),
    ],
    ids=["mean", "two_pass"],
)
def test_micro_batches_give_the_whole_batch(method):
    whole = jax.jit(make_gradient(method, 1))(*ARGUMENTS)
    pieces = jax.jit(make_gradient(method, 3))(*ARGUMENTS)
    chex.assert_trees_all_close(pieces, whole, rtol=2e-6, atol=1e-6)
    (_, out), _ = pieces
    assert out.model_state["seen"] == 5.5  # the mean over all twelve rows, each counted once


def test_averaging_a_loss_over_the_whole_batch_would_be_wrong():
    """It is refused: the mean of NT-Xent over micro-batches is another loss with another gradient."""
    right = make_gradient(Method(None, contrastive, None), 1)
    averaged = make_gradient(Method(None, contrastive, None, separable=True), 3)
    ((whole, _), grads), ((pieces, _), wrong) = (
        jax.device_get(jax.jit(f)(*ARGUMENTS)) for f in (right, averaged)
    )
    assert abs(whole - pieces) > 0.1 and np.abs(grads["w"] - wrong["w"]).max() > 1e-3
    with pytest.raises(ValueError, match="accumulate=3: this method's loss needs its whole batch"):
        make_train_step(Method(None, contrastive, None), optax.sgd(0.1), accumulate=3)


@one_block()
def test_simclr_in_micro_batches_is_its_loss_over_all_their_embeddings():
    """Against one backward pass through both micro-batches at once, each with its own batch statistics."""
    config = small_config("simclr")
    source = sources.load(config.data, "train")
    program = build(config, source.facts)
    batch = {k: np.asarray(v) for k, v in next(device_batches(program, source, 0, 0)).items()}
    state = jax.tree.map(np.asarray, program.init(0))
    key = jax.random.key(1)
    two_pass = program.method.two_pass

    def embeddings(params, a):
        micro = {k: v[a::2] for k, v in batch.items()}
        return two_pass.embed(params, state.model_state, (), micro, key, state.step)[0]

    def side_by_side(params):
        pieces = [embeddings(params, a) for a in (0, 1)]
        together = jax.tree.map(lambda a, b: jnp.stack([a, b], 1).reshape(-1, *a.shape[1:]), *pieces)
        return two_pass.objective(params, together, batch, state.step)[0]

    loss, grads = jax.jit(jax.value_and_grad(side_by_side))(state.params)
    (micro_loss, _), micro_grads = jax.jit(make_gradient(program.method, 2))(
        state.params, state.model_state, (), batch, key, state.step
    )
    np.testing.assert_allclose(micro_loss, loss, rtol=1e-6)
    for (name, a), (_, b) in zip(leaves(micro_grads), leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * max(np.abs(b).max(), 1e-3), err_msg=name)


@one_block()
def test_byol_in_micro_batches_averages_gradients_and_moves_its_target_once():
    """Every micro-batch has its own batch statistics; the target follows the network after the step."""
    change = dict(target__schedule="constant", target__momentum=0.75, head__hidden=5, predictor__hidden=5)
    method = METHODS["byol"](config_of("byol", **change), FACTS)
    shapes = jax.eval_shape(method.init, jax.random.key(0), {})
    params, stats, extra = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    params = shaken(params, 1)
    extra = extra._replace(target_params=shaken(extra.target_params, 2))
    batch = batch_of(12)
    tx = optax.sgd(0.1)
    state = TrainState(jnp.int32(0), params, stats, tx.init(params), extra)
    step = jax.jit(make_train_step(method, tx, accumulate=3))
    after, metrics = jax.device_get(step(state, batch, jax.random.key(5)))
    params, stats, extra, batch = jax.device_get((params, stats, extra, batch))

    compiled = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
    one = lambda *given: jax.device_get(compiled(*given))
    key = jax.random.fold_in(jax.random.key(5), 0)
    pieces = [
        one(params, stats, extra, {k: v[a::3] for k, v in batch.items()}, key, jnp.int32(0)) for a in range(3)
    ]
    mean = lambda *leaves: np.mean(leaves, axis=0, dtype=np.float64)
    grads = jax.tree.map(mean, *(grads for _, grads in pieces))
    outs = [out for (_, out), _ in pieces]
    close = dict(rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], np.mean([loss for (loss, _), _ in pieces]), rtol=1e-5)
    online = jax.tree.map(lambda w, g: w - 0.1 * g, params, grads)
    chex.assert_trees_all_close(after.params, jax.tree.map(np.float32, online), **close)
    target = jax.tree.map(
        lambda t, w: 0.75 * t + 0.25 * w, extra.target_params, {k: online[k] for k in extra.target_params}
    )
    chex.assert_trees_all_close(after.extra.target_params, jax.tree.map(np.float32, target), **close)
    carried = jax.tree.map(mean, *(out.carry for out in outs))
    chex.assert_trees_all_close(after.extra.target_stats, jax.tree.map(np.float32, carried), **close)
    moved = jax.tree.map(mean, *(out.model_state for out in outs))
    chex.assert_trees_all_close(after.model_state, jax.tree.map(np.float32, moved), **close)
    _, whole = jax.device_get(jax.jit(method.loss)(params, stats, extra, batch, key, jnp.int32(0)))
    apart = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (carried, whole.carry)), strict=True)]
    assert max(apart) > 1e-3  # the statistics are not those of the whole batch
