"""Ahead-of-time compilation without a TPU: libtpu's topologies, its lock, and the compiler's output.

With jax 0.10.2 and libtpu 0.0.42 every generation from v2 to v6e compiles on a machine without a TPU, in a
process that sees only CPUs.
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

WAIT = 600.0  # seconds to wait for another process that uses libtpu
_held: list[int] = []  # the locked file, while this process uses libtpu


def offline() -> None:
    """Keep JAX off this machine's accelerators and off the network. Call this before JAX runs anything.

    JAX gets two CPU devices, because for a single one models may choose another form than a slice would run.
    """
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    # A program from the cache would be loaded into the CPU's client, which fails.
    jax.config.update("jax_enable_compilation_cache", False)


def take_libtpu() -> None:
    """Wait until no other plan on this machine uses libtpu, and hold it until this process ends.

    libtpu serves one process per host.

    Raises:
        ModuleNotFoundError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise ModuleNotFoundError(
            "compiling for a TPU needs libtpu, even on a machine without a TPU: pip install 'ssljax[plan]'"
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
    """Repeat a call while a process that does not use our lock holds libtpu.

    libtpu's own lock is not touched.

    Args:
        call: a function that uses libtpu.

    Returns:
        The result of the call.
    """
    begin = time.monotonic()
    said = False
    while True:
        try:
            return call()
        except RuntimeError as error:
            if "lockfile" not in str(error) or time.monotonic() > begin + WAIT:
                raise
            if not said:
                print(
                    "waiting: another process on this machine holds libtpu. Where libtpu is installed, every "
                    "JAX program takes it unless it is started with JAX_PLATFORMS=cpu",
                    file=sys.stderr,
                    flush=True,
                )
            said = True
            time.sleep(5)


def topology_devices(slice_: Slice) -> list[jax.Device]:
    """The devices of a slice. One can compile for them, but not run on them.

    Raises:
        ModuleNotFoundError: libtpu is not installed.
        ValueError: libtpu does not know the shape; lists those that can be rented.
    """

    def describe() -> Any:
        return topologies.get_topology_desc(platform="tpu", topology_name=slice_.topology, **slice_.options)

    take_libtpu()
    try:
        return patiently(describe).devices
    except (RuntimeError, ValueError) as error:
        valid = ", ".join(f"{slice_.generation.name}:{shape}" for shape in slice_.generation.shapes)
        raise ValueError(
            f"libtpu refuses topology {slice_.topology}: {str(error).splitlines()[0]}\n"
            f"Slices that can be rented: {valid}"
        ) from error


class Compiled(NamedTuple):
    """A compiled step.

    Attributes:
        executable: None if the step does not fit.
        text: the compiled program as HLO.
        buffers: the largest ones, see `largest_buffers`.
        problem: the compiler's message if the step does not fit.
        seconds: how long compilation took.
    """

    executable: Any
    text: str
    buffers: list[str]
    problem: str
    seconds: float


def compile_step(step: Any, arguments: tuple[Any, ...], *, full: bool) -> Compiled:
    """Compile a jitted step for the devices of its shardings.

    Args:
        step: a function jitted for the devices of a topology.
        arguments: `jax.ShapeDtypeStruct`s.
        full: compile as the TPU would; otherwise quickly, which is enough for everything but time.
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
    """The first `number` buffers in XLA's memory-usage report, the largest: size and shapes."""
    rows = []
    for line in report.splitlines():
        fields = [field.strip() for field in line.split(";")]
        if len(fields) >= 5 and re.match(r"[\d.]+ ?[KMGT]?i?B", fields[0]):
            rows.append(f"{fields[1]:>10}  {fields[-1]}")
    return rows[:number]


def needed_bytes(message: str) -> int:
    """The memory that a program would need that does not fit, read from the compiler's message.

    The message says "Used 25.92G of 15.75G hbm", or "memory required for HLO temporaries (25.92G) exceeds
    available HBM (15.75G)".

    Returns:
        Bytes; 0 if the message does not say.
    """
    match = re.search(r"([\d.]+)([KMGT])(?:iB|B)?(?: of |\) exceeds)", message)
    if not match:
        return 0
    unit = 1024 ** (1 + "KMGT".index(match[2]))
    return int(float(match[1]) * unit)
