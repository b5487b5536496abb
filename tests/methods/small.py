"""Networks of one residual block, for tests of what a method puts around its network."""

import importlib
from contextlib import contextmanager

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import models
from ssljax.config import resolve
from ssljax.models import beit_vit, cpc, vit
from ssljax.models.resnet import Basic
from ssljax.run.folder import RunFolder
from ssljax.types import Facts

SIZE = 8
FACTS = Facts(num_examples=1500, num_classes=10, num_ids=1500)  # those of the digits


@contextmanager
def one_block():
    """While open, names of networks of a single block each, and of two blocks, which a detector needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.BACKBONES, "one_block", (Basic, (1,)))
        patch.setitem(models.BACKBONES, "two_blocks", (Basic, (1, 1)))
        patch.setitem(vit.SIZES, "vit_one_block", (32, 1, 2))
        patch.setitem(beit_vit.SIZES, "beit_one_block", (32, 1, 2))
        patch.setitem(cpc.STACKS, "cpc_one_block", cpc.STACKS["cpc_r8"][:1])
        yield


def config_of(method: str, preset: str = "digits", **changes):
    """A preset on images of 8 pixels with one block of 4 channels.

    `changes` are dotted settings, with `__` for the dot.
    """
    c = importlib.import_module(f"configs.{method}").get_config(preset).unlock()
    c.log_every = 1
    c.batch_size = 8
    c.data.image_size = SIZE
    c.augment.update(crop="none", jitter_strength=0.2)
    if "head" in c:
        c.head.dim = 4
    if c.model.name.startswith("resnet"):
        c.model.update(name="one_block", width=4 / 64, stem="cifar")
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return resolve(c).lock()


def batch_of(rows: int, seed: int = 0, size: int = SIZE) -> dict:
    """Noise images with labels and the ids 100, 101, ..."""
    rng = np.random.default_rng(seed)
    batch = {
        "image": rng.integers(0, 256, (rows, size, size, 1)).astype(np.uint8),
        "label": rng.integers(0, 10, rows).astype(np.int32),
        "index": np.arange(100, 100 + rows, dtype=np.int32),
    }
    return jax.device_put(batch)  # unlike `jnp.asarray` it compiles no program for each shape


def shaken(tree, seed: int):
    """The same tree with random values, so that no branch is silent and no two networks are equal."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jax.device_put(np.float32(rng.normal(0.0, 0.5, leaf.shape))), tree)


def positive(tree):
    """The absolute values and a half: variances of a shaken tree."""
    return jax.tree.map(lambda leaf: jax.device_put(np.abs(leaf) + np.float32(0.5)), tree)


def blank(program):
    """A state of zeros, for what does not read how a run begins. It costs no initialisation."""

    def zeros(leaf):
        return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)

    return jax.tree.map(zeros, program.shapes)


def watched(found: dict, function):
    """`function` as one compiled program; what its spies wrote into `found` is there afterwards."""

    @jax.jit
    def run(*arguments):
        found.clear()
        result = function(*arguments)
        return result, dict(found)

    def call(*arguments):
        result, values = run(*arguments)
        found.update(jax.tree.map(np.asarray, values))
        return result

    return call


def spied(function, **notes):
    """`watched`, which also returns what is noted of the calls of functions of `models`.

    A note, by the name of the function, is (net, x, output, **rest) -> dict.
    """
    found: dict = {}

    def spy(original, note):
        def call(net, params, statistics, x, **rest):
            out = original(net, params, statistics, x, **rest)
            found.update(note(net, x, out, **rest))
            return out

        return call

    spies = {name: spy(getattr(models, name), note) for name, note in notes.items()}
    run = watched(found, function)

    def call(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            for name, one in spies.items():
                patch.setattr(models, name, one)
            return *run(*arguments), dict(found)

    return call


def saved(folder, config, state) -> str:
    """The folder of a run that ended in this state."""
    with RunFolder(str(folder), config, FACTS) as run:
        run.save(state.replace(step=jnp.int32(3)), {})
    return str(folder)


def names(tree) -> set[str]:
    """The paths of a tree's leaves."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    }


def assert_close(ours, expected, rtol=1e-7, atol=0.0):
    """Equal structure and close values; an error names the leaf."""
    chex.assert_trees_all_close(ours, expected, rtol=rtol, atol=atol)
