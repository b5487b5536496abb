"""What a step's time goes to: a trace of a few steps for TensorBoard and XProf, and its longest operations on one screen."""

from __future__ import annotations

import collections
import glob
import gzip
import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

FIRST = 10  # steps left alone: compilation, and the pipeline filling up
SHOWN = 15


class Operation(NamedTuple):
    """One name of the trace: how often it ran, and its seconds all together."""

    name: str
    count: int
    seconds: float


def recorded(step: Callable[..., Any], steps: int, workdir: str, *, left: int) -> Callable[..., Any]:
    """The same step; its calls FIRST, FIRST + 1, ... are traced into `workdir/profile`, and a summary is printed after the last.

    Args:
        step: a train step.
        steps: how many calls to trace.
        workdir: a local folder or `gs://`; there the summary is left out, TensorBoard reads it.
        left: calls that the run will make.

    Raises:
        ValueError: the run ends before the last of them.
    """
    if left < FIRST + steps:
        raise ValueError(
            f"--profile={steps} records steps {FIRST + 1} to {FIRST + steps}, but the run has only {left}: ask for fewer, or "
            "train for more epochs"
        )
    folder, calls = os.path.join(workdir, "profile"), 0

    def call(*arguments: Any) -> Any:
        nonlocal calls
        if calls == FIRST:
            jax.profiler.start_trace(folder)
        result = step(*arguments)
        calls += 1
        if calls == FIRST + steps:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            if jax.process_index() == 0:
                print(f"profile of {steps} steps: tensorboard --logdir {folder}")
                files = sorted(
                    glob.glob(os.path.join(folder, "plugins", "profile", "*", "*.trace.json.gz")),
                    key=os.path.getmtime,
                )
                if files:
                    with gzip.open(files[-1], "rt") as trace:
                        print(summary(operations(json.load(trace)), steps))
        return result

    return call


def operations(trace: dict[str, Any]) -> list[Operation]:
    """The executed operations of a Chrome trace, longest first: those that XLA marks with the program they belong to."""
    totals: dict[str, list[float]] = collections.defaultdict(lambda: [0, 0.0])
    for event in trace["traceEvents"]:
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            entry = totals[event["args"]["hlo_op"].rsplit(".", 1)[0]]
            entry[0] += 1
            entry[1] += event["dur"] / 1e6
    return sorted(
        (Operation(name, int(count), seconds) for name, (count, seconds) in totals.items()),
        key=lambda op: -op.seconds,
    )


def summary(found: list[Operation], steps: int) -> str:
    """The longest operations as lines: milliseconds a step, share of all operations' time, calls a step, name."""
    total = sum(op.seconds for op in found)
    lines = [
        f"{'ms a step':>10} {'share':>6} {'calls':>6}  operation ({len(found)} kinds, device threads added up)"
    ]
    lines += [
        f"{1e3 * op.seconds / steps:10.2f} {op.seconds / total:6.1%} {op.count / steps:6.0f}  {op.name}"
        for op in found[:SHOWN]
    ]
    return "\n".join(lines)
