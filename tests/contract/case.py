"""One method's program on fake devices and a few of its steps, for what every method promises (tests/test_contract.py).

A method whose digits preset has to be made smaller still, or whose `extra` is not empty, says so in a file of its own here, called as the
method: SMALL, dotted setting -> value, and oracle(case), which compares `extra` after the steps with an independent NumPy version.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType, SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ssljax import sharding
from ssljax.config import resolve
from ssljax.data import sources
from ssljax.program import balance_of, build, device_batches
from ssljax.run.loop import refreshed


def own(method: str) -> ModuleType | SimpleNamespace:
    """What the method says of itself in this folder; nothing, where it has no file."""
    name = f"tests.contract.{method}"
    found = importlib.import_module(name) if importlib.util.find_spec(name) else None
    return SimpleNamespace(SMALL=getattr(found, "SMALL", {}), oracle=getattr(found, "oracle", None))


def small_config(method: str, **changes) -> ConfigDict:
    """The method's digits preset (its last stage) with a network of 8 channels and no warm-up: a rate of 0 moves nothing."""
    c = importlib.import_module(f"configs.{method}").get_config("digits").unlock()
    c = c[c.stages[-1]] if "stages" in c else c
    c.batch_size, c.epochs, c.log_every = 16, 2, 2
    c.model.update(name="resnet8", width=0.125, stem="imagenet")
    c.optim.update(
        name="lars",
        learning_rate=0.3,
        scaling="none",
        warmup_epochs=0,
        trust_coefficient=0.02,
        weight_decay=1e-4,
    )
    if "head" in c:
        c.head.dim = 16
    for key, value in changes.items():
        c.model[key] = value
    c.update_from_flattened_dict(own(method).SMALL)
    return resolve(c).lock()


class Case:
    """One method's program on 8 devices and on 1, a batch, and the states after a step. Made once a session."""

    def __init__(self, name: str):
        self.name, self.config = name, small_config(name)
        self.source = sources.load(self.config.data, "train")
        self.facts = self.source.facts
        self.eight = build(self.config, self.facts)
        self.one = build(self.config, self.facts, sharding.make_mesh(1))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sharding, "BIG", 256)  # the small network has no big leaves
            self.four_by_two = build(self.config, self.facts, sharding.make_mesh(8, fsdp=2))
        self.key = jax.random.key(0)
        self.initial = self.eight.init(0)
        if self.eight.method.refresh is not None:
            self.initial = refreshed(self.eight, self.source, self.initial, 0, None)
        self.balance = balance_of(self.eight, self.source, self.initial)
        stream = device_batches(self.eight, self.source, 0, 0, self.balance)
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


def leaves(tree):
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def carries(case):
    """(state before, what `loss` left for `update`, state after) of every step, on one device."""
    loss = jax.jit(case.one.method.loss)
    for step, batch in enumerate(case.batches):
        before, after = case.on_one_device(case.states[step]), case.states[step + 1]
        batch = {k: jnp.asarray(np.asarray(v)) for k, v in batch.items()}
        _, out = loss(
            before.params,
            before.model_state,
            before.extra,
            batch,
            jax.random.fold_in(case.key, step),
            jnp.int32(step),
        )
        yield (
            jax.tree.map(np.asarray, before),
            jax.tree.map(np.asarray, out.carry),
            jax.tree.map(np.asarray, after),
        )


def follows(target, online, decay, found):
    """`found` is the moving average of the two trees, computed in float64."""
    for (name, old), (_, new), (_, got) in zip(
        leaves(target), leaves({k: online[k] for k in target}), leaves(found), strict=True
    ):
        np.testing.assert_allclose(
            got, decay * old.astype(np.float64) + (1 - decay) * new, rtol=1e-5, atol=1e-7, err_msg=name
        )


def close(tree, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), tree, other)
