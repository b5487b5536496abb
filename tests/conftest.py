"""Strict JAX on 8 fake CPU devices: no silent promotion, and warnings of our own code are errors.

The programs of the tests run for milliseconds, so the compiler is told not to optimise them.
"""

import os

from tests.processes import QUICK

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + f" {QUICK} --xla_force_host_platform_device_count=8"
)
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # XLA compiles faster without lines of Python
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import gc
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import packed

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

# Tracing makes many objects that stay: looking for garbage less often saves a twentieth of the time.
gc.set_threshold(100_000)

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"


class Golden:
    """A golden file: `golden("nt_xent")["c0/hidden"]`."""

    def __init__(self, name: str):
        self.arrays = packed.read(GOLDEN / f"{name}.npz")

    def __getitem__(self, field: str) -> np.ndarray:
        return self.arrays[field]

    def __contains__(self, field: str) -> bool:
        return field in self.arrays

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """All fields below `prefix/`, keyed by the rest of their name."""
        return {k[len(prefix) + 1 :]: self.arrays[k] for k in self.arrays if k.startswith(prefix + "/")}


# The files that take longest. They are begun first, so that no process waits for the other in the end.
LONGEST = (
    "test_colab",
    "test_hosts",
    "test_contract",
    "test_without_tensorflow",
    "test_newcomer",
    "test_resume",
)


def pytest_collection_modifyitems(items):
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


@pytest.fixture
def one_device(monkeypatch):
    """Meshes of one device. Eight fake ones cost eight times the work where they make no difference."""
    from ssljax import sharding  # after XLA_FLAGS

    make_mesh = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda devices=1, fsdp=1: make_mesh(devices))


@pytest.fixture(scope="session")
def golden():
    return Golden
