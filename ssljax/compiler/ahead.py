"""Compiling for a TPU that is not there: libtpu's topologies, its one-process rule, and what the compiler gives back.

With jax 0.10.2 and libtpu 0.0.42 every generation from v2 to v6e compiles on a machine without a TPU, in a process that sees CPUs.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from ssljax.compiler.slices import Slice

WAIT = 600.0  # seconds for which another process's libtpu is waited for
_held: list[int] = []  # the file that says so while this process has libtpu


def offline() -> None:
    """Keeps JAX off whatever accelerator this machine has and off the network. To be called before JAX runs anything.

    Two CPU devices, because models may choose another form for a single one, which is not what a slice runs.
    """
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update(
        "jax_enable_compilation_cache", False
    )  # what it would read back is loaded into the CPU's client, and fails


def take_libtpu() -> None:
    """Waits until no other plan on this machine uses libtpu, and keeps it until the process ends: it serves one process a host.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise ModuleNotFoundError(
            "compiling for a TPU needs libtpu, also where there is no TPU: pip install 'ssljax[plan]'"
        )
    if _held:
        return
    lock = os.open(os.path.join(tempfile.gettempdir(), "ssljax-libtpu.lock"), os.O_RDONLY | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(
            "waiting: another plan on this machine is using libtpu, which serves one process at a time",
            file=sys.stderr,
            flush=True,
        )
        fcntl.flock(lock, fcntl.LOCK_EX)
    _held.append(lock)


def patiently(call: Callable[[], Any]) -> Any:
    """The call's result; while a process that does not know our lock holds libtpu, it is tried again. libtpu's own lock is left alone."""
    begin, said = time.monotonic(), False
    while True:
        try:
            return call()
        except RuntimeError as error:
            if "lockfile" not in str(error) or time.monotonic() > begin + WAIT:
                raise
            if not said:
                print(
                    "waiting: another process on this machine has libtpu. Where it is installed any JAX program takes it, unless "
                    "started with JAX_PLATFORMS=cpu",
                    file=sys.stderr,
                    flush=True,
                )
            said = True
            time.sleep(5)


def topology_devices(slice_: Slice) -> list[jax.Device]:
    """The devices of a slice; they can be compiled for and nothing else.

    Raises:
        ModuleNotFoundError: libtpu is not installed.
        ValueError: libtpu does not know the shape; lists those that can be rented.
    """
    take_libtpu()
    try:
        return patiently(
            lambda: topologies.get_topology_desc(
                platform="tpu", topology_name=slice_.topology, **slice_.options
            )
        ).devices
    except (RuntimeError, ValueError) as error:
        valid = ", ".join(f"{slice_.generation.name}:{shape}" for shape in slice_.generation.shapes)
        raise ValueError(
            f"libtpu refuses topology {slice_.topology}: {str(error).splitlines()[0]}\n"
            f"Slices that can be rented: {valid}"
        ) from error


class Compiled(NamedTuple):
    """A compiled step: the executable (None where it does not fit), its text, XLA's list of buffers, and the message."""

    executable: Any
    text: str
    buffers: list[str]
    problem: str
    seconds: float


def compile_step(step: Any, arguments: tuple[Any, ...], *, full: bool) -> Compiled:
    """Compiles a jitted step for the devices of its shardings.

    Args:
        step: jitted, over the devices of a topology.
        arguments: `jax.ShapeDtypeStruct`s.
        full: compile as the TPU would; else quickly, which is enough for all but time.
    """
    jax.config.update("jax_exec_time_optimization_effort", 0.0 if full else -1.0)
    lowered = step.lower(*arguments)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            executable = patiently(lambda: lowered.compile(compiler_options={"xla_dump_to": folder}))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return Compiled(None, "", [], str(error), time.perf_counter() - begin)
        seconds = time.perf_counter() - begin
        reports = sorted(Path(folder).glob("*memory-usage-report.txt"), key=lambda path: path.stat().st_size)
        buffers = largest_buffers(reports[-1].read_text()) if reports else []
    return Compiled(executable, executable.as_text(), buffers, "", seconds)


def largest_buffers(report: str, number: int = 6) -> list[str]:
    """The first lines of XLA's memory-usage report: size and shapes of the largest buffers."""
    rows = []
    for line in report.splitlines():
        fields = [field.strip() for field in line.split(";")]
        if len(fields) >= 5 and re.match(r"[\d.]+ ?[KMGT]?i?B", fields[0]):
            rows.append(f"{fields[1]:>10}  {fields[-1]}")
    return rows[:number]


def needed_bytes(message: str) -> int:
    """What a program that does not fit would need, from the compiler's message; 0 where it does not say.

    It is written as "Used 25.92G of 15.75G hbm" or "memory required for HLO temporaries (25.92G) exceeds available HBM (15.75G)".
    """
    match = re.search(r"([\d.]+)([KMGT])(?:iB|B)?(?: of |\) exceeds)", message)
    return int(float(match[1]) * 1024 ** (1 + "KMGT".index(match[2]))) if match else 0
