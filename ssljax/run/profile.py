"""Where the time of a step goes: a trace for TensorBoard and XProf, and a table of its longest operations."""

from __future__ import annotations

import glob
import gzip
import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

FIRST = 10  # steps that are skipped: compilation, and the filling of the input pipeline
SHOWN = 15  # operations in the table


class Operation(NamedTuple):
    """One kind of operation in the trace.

    Attributes:
        name: its name in the program, without the number.
        count: how often it ran.
        seconds: its time in total.
    """

    name: str
    count: int  # type: ignore[assignment]  # hides tuple.count, which nothing here calls
    seconds: float


def refuse_more(steps: int, left: int) -> None:
    """Raise a ValueError if a run of `left` steps ends before the last step to trace."""
    if left < FIRST + steps:
        raise ValueError(
            f"--profile={steps} records steps {FIRST + 1} to {FIRST + steps}, but the run has only {left}: "
            "ask for fewer, or train for more epochs"
        )


def recorded(step: Callable[..., Any], steps: int, workdir: str) -> Callable[..., Any]:
    """Wrap a step so that some of its calls are traced into `workdir/profile`.

    The first FIRST calls are skipped. After the last traced call a summary is printed.

    Args:
        step: a train step.
        steps: how many calls to trace.
        workdir: a local folder, or `gs://`, for which there is no summary, only the files for TensorBoard.

    Returns:
        The same step, traced.

    """
    folder = os.path.join(workdir, "profile")
    calls = 0

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
                report(folder, steps)
        return result

    return call


def report(folder: str, steps: int) -> None:
    """Print where the traces are, and the summary of the newest one if it is on this machine."""
    print(f"profile of {steps} steps: tensorboard --logdir {folder}")
    pattern = os.path.join(folder, "plugins", "profile", "*", "*.trace.json.gz")
    files = sorted(glob.glob(pattern), key=os.path.getmtime)
    if files:
        with gzip.open(files[-1], "rt") as trace:
            events = json.load(trace)
        print(summary(operations(events), steps))
        print(
            f"the device stood idle {idle(events):.1%} of the time between the first and the last operation"
        )


def operations(trace: dict[str, Any]) -> list[Operation]:
    """The executed operations in a Chrome trace, longest first.

    Only the events that XLA marks with the program they belong to are operations.
    """
    totals: dict[str, Operation] = {}
    for event in executed(trace):
        name = event["args"]["hlo_op"].rsplit(".", 1)[0]
        before = totals.get(name, Operation(name, 0, 0.0))
        totals[name] = Operation(name, before.count + 1, before.seconds + event["dur"] / 1e6)
    return sorted(totals.values(), key=lambda op: -op.seconds)


def executed(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a Chrome trace that XLA marks with the operation that ran."""
    events = trace["traceEvents"]
    return [event for event in events if event.get("ph") == "X" and "hlo_op" in event.get("args", {})]


def idle(trace: dict[str, Any]) -> float:
    """The share of the time, from the first operation to the end of the last, in which none ran."""
    spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in executed(trace))
    if not spans:
        return 0.0
    first = reached = spans[0][0]
    idle = 0.0
    for begin, end in spans:
        idle += max(begin - reached, 0.0)
        reached = max(reached, end)
    return idle / (reached - first) if reached > first else 0.0


def summary(found: list[Operation], steps: int) -> str:
    """A table of the longest operations, per step: milliseconds, share of the total time, calls, name."""
    total = sum(op.seconds for op in found)
    header = f"{'ms per step':>11} {'share':>6} {'calls':>6}"
    lines = [f"{header}  operation ({len(found)} kinds, summed over device threads)"]
    for op in found[:SHOWN]:
        ms = 1e3 * op.seconds / steps
        lines.append(f"{ms:11.2f} {op.seconds / total:6.1%} {op.count / steps:6.0f}  {op.name}")
    return "\n".join(lines)
