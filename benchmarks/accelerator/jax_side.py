"""ssljax's side of the throughput benchmark: the step that `ssljax train` jits, on a ready batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks.accelerator import rows
from ssljax import cli, plan
from ssljax.compiler import flops
from ssljax.config import flat
from ssljax.models import resnet
from ssljax.program import build
from ssljax.types import Facts


class Ours(NamedTuple):
    """ssljax's compiled step, its state and its batch.

    Attributes:
        steps: number of steps -> seconds that they took.
        loss: -> that of the last step.
        parameters: trained ones.
        flops: per step, matrix products and convolutions.
        compile_seconds: tracing included.
        planned_bytes: device memory of the step by the compiler's plan.
        program: -> the compiled program as text.
    """

    steps: Callable[[int], float]
    loss: Callable[[], float]
    parameters: int
    flops: int
    compile_seconds: float
    planned_bytes: int
    program: Callable[[], str]


def ours(name: str, batch_size: int, *, augmented: bool, toy: bool) -> Ours:
    """Builds and compiles one part of a row."""
    row = rows.ROWS[name]
    preset = cli.preset_of(f"configs/{row.paper}.py:{row.preset}")
    there = flat(preset)
    wanted = rows.changes(row, batch_size, augmented=augmented, toy=toy)
    config, _ = cli.overridden(preset, {key: value for key, value in wanted.items() if there.get(key)})

    examples, classes = (1000, rows.TOY_CLASSES) if toy else (1_281_167, rows.CLASSES)
    facts = Facts(examples, classes, examples)
    program = build(config, facts)
    batch = ready_batch(plan.abstract_batch(program), classes)
    state = program.init(0)
    key = jax.random.key(0)

    begin = time.perf_counter()
    compiled = program.step.lower(state, batch, key).compile()
    compile_seconds = time.perf_counter() - begin
    metrics: dict[str, jax.Array] = {}

    def steps(number: int) -> float:
        nonlocal state, metrics
        jax.block_until_ready(state)
        start = time.perf_counter()
        for _ in range(number):
            state, metrics = compiled(state, batch, key)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - start

    return Ours(
        steps=steps,
        loss=lambda: float(metrics["loss"]),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        flops=written_flops(config, facts),
        compile_seconds=compile_seconds,
        planned_bytes=planned(compiled),
        program=compiled.as_text,
    )


def written_flops(config: ConfigDict, facts: Facts) -> int:
    """Operations of a step in matrix products and convolutions.

    On a single device a ResNet's convolutions have forms for a CPU beside XLA's own, and the count would take
    the dearest of them; it is made without.
    """
    with mock.patch.object(resnet, "conv2d", None):
        program = build(config, facts)
        return flops.count(program.step, *plan.arguments(program)).written


def ready_batch(shapes: dict[str, Any], classes: int) -> dict[str, Any]:
    """A batch of random pixels on the device."""
    generator = np.random.default_rng(0)

    def values(name: str, like: Any) -> np.ndarray:
        if like.dtype == np.uint8:
            return generator.integers(0, 256, like.shape, np.uint8)
        if name == "label":
            return generator.integers(0, classes, like.shape, np.int32)
        return np.arange(like.shape[0], dtype=np.int32) if name == "index" else np.zeros(like.shape, np.int32)

    return {name: jax.device_put(values(name, like), like.sharding) for name, like in shapes.items()}


def planned(compiled: Any) -> int:
    """Bytes of arguments, results and temporaries; what a result takes over from an argument counts once."""
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    taken = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return taken - memory.alias_size_in_bytes


def allocated() -> int:
    """The most bytes that this process has held on the device; 0 where the back end does not count them."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def matmul(side: int) -> float:
    """TFLOP/s of bfloat16 products of square matrices of random numbers."""
    keys = jax.random.split(jax.random.key(1))
    a, b = (jax.random.normal(key, (side, side), jnp.bfloat16) for key in keys)
    product = jax.jit(jnp.matmul)

    def run(number: int) -> float:
        begin = time.perf_counter()
        for _ in range(number):
            c = product(a, b)
        jax.block_until_ready(c)
        return time.perf_counter() - begin

    run(3)
    return 2e-12 * side**3 / rows.turn(run, 0.3)
