"""One method's program on fake devices and a few of its steps, for tests/test_contract.py.

A method has a file of its own here, named after it, if its digits preset must be made smaller still or if
its `extra` is not empty. The file defines SMALL, dotted setting -> value, and oracle(case), which compares
`extra` after the steps with an independent NumPy version.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType, SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from ssljax import sharding
from ssljax.config import resolve
from ssljax.data import sources
from ssljax.program import balance_of, build, device_batches
from ssljax.run.loop import refreshed

# Stages of a method that are methods of their own: name -> method, preset and stage.
STAGES = {
    "simclr_v2_finetune": ("simclr_v2", "digits_finetune", "finetune"),
    "simclr_v2_distill": ("simclr_v2", "digits_self", "distill"),
    "cpc_linear": ("cpc", "digits_linear", "linear"),
    "cpc_classify": ("cpc", "digits_finetune", "finetune"),
}


def own(method: str) -> ModuleType | SimpleNamespace:
    """SMALL and oracle of the method's file in this folder; empty if it has no file."""
    name = f"tests.contract.{method}"
    found = importlib.import_module(name) if importlib.util.find_spec(name) else None
    return SimpleNamespace(SMALL=getattr(found, "SMALL", {}), oracle=getattr(found, "oracle", None))


def small_config(name: str, **changes) -> ConfigDict:
    """A stage of STAGES, or a method's digits preset, with a network of one block of 16 channels.

    Of a preset with stages it is the last one of the method. There is no warm-up, because a learning rate of
    0 moves nothing.
    """
    method, preset, stage = STAGES.get(name, (name, "digits", ""))
    c = importlib.import_module(f"configs.{method}").get_config(preset).unlock()
    if "stages" in c:
        own_stages = [each for each in c.stages if c[each].method == method]
        c = c[stage or own_stages[-1]]
    c.batch_size = 16
    c.epochs = 100  # so that the rate is still high after forty steps
    c.log_every = 2
    c.model.update(name="one_block", width=0.25, stem="imagenet")
    c.optim.update(name="adamw", learning_rate=3e-3, scaling="none", warmup_epochs=0, weight_decay=1e-4)
    if "head" in c:
        c.head.dim = 16
    for key, value in changes.items():
        c.model[key] = value
    c.update_from_flattened_dict(own(name).SMALL)
    return resolve(c).lock()


class Case:
    """One method's program on 8 devices and on 1, four batches, and the states after each step."""

    def __init__(self, name: str):
        self.name = name
        self.config = small_config(name)
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
        self.states = [self.initial]
        self.metrics = []
        for batch in self.batches:
            state, metrics = self.step(copy(self.states[-1]), batch)
            self.states.append(state)
            self.metrics.append(metrics)

    @property
    def images(self):
        """Images as evaluation reads them, of sources that hold them; those of the first batch otherwise."""
        held = self.source.images
        return np.asarray(self.batches[0]["image"]) if held is None else held

    def step(self, state, batch):
        """A step on 8 devices, which consumes the state."""
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes its integer count with floats
            return self.eight.step(state, batch, self.key)

    @functools.cached_property
    def gradient(self):
        """(params, model_state, extra, batch, key, step) -> ((loss, out), gradient), on one device."""
        return jax.jit(jax.value_and_grad(self.one.method.loss, has_aux=True))

    def gradient_of_step(self, step):
        """The gradient that a step on 8 devices took, out of AdamW's first moments before and after it."""
        before, after = (optax.tree.get(self.states[i].opt_state, "mu") for i in (step, step + 1))
        return jax.tree.map(lambda old, new: (np.asarray(new) - 0.9 * np.asarray(old)) / 0.1, before, after)

    def arguments(self, step):
        """What `loss` takes at this step, on one device."""
        state = self.on_one_device(self.states[step])
        batch = {k: jnp.asarray(np.asarray(v)) for k, v in self.batches[step].items()}
        key = jax.random.fold_in(self.key, step)
        return state.params, state.model_state, state.extra, batch, key, jnp.int32(step)

    def on_one_device(self, tree):
        return jax.device_put(jax.tree.map(np.asarray, tree), sharding.whole(self.one.mesh))


def copy(tree):
    """A copy of a state, because the step donates its argument."""
    return jax.tree.map(lambda leaf: leaf.copy(), tree)


def leaves(tree):
    """(path, leaf) of every leaf."""
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def carries(case):
    """(state before, what `loss` left for `update`, state after) of every step."""
    for step in range(len(case.batches)):
        (_, out), _ = case.gradient(*case.arguments(step))
        yield tuple(
            jax.tree.map(np.asarray, x) for x in (case.states[step], out.carry, case.states[step + 1])
        )


def follows(target, online, decay, found):
    """`found` is the moving average of the two trees, computed in float64."""
    expected = jax.tree.map(
        lambda old, new: decay * old.astype(np.float64) + (1 - decay) * new,
        target,
        {name: online[name] for name in target},
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-7)
