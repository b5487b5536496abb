"""Real runs of the command line, of one process or two, small enough for a test to start and kill them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

# Compile quickly: a few steps need no fast code. Without the fusion emitters a step compiles in 2.2 s instead
# of 5.8; jaxlib 0.11 does not know the flag any more, and XLA ends a process that gives it an unknown one.
QUICK = "--xla_backend_optimization_level=0"
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    QUICK += " --xla_cpu_use_fusion_emitters=false"

ROOT = Path(__file__).parent.parent
BARE = Path(__file__).parent / "bare"

# SimCLR on the digits, on 8 x 8 pixels with a network of 8 channels: 188 steps of about ten milliseconds.
SMALL = [
    "--config=configs/simclr.py:digits",
    "--config.data.image_size=8",
    "--config.model.width=0.125",
    "--config.model.stem=imagenet",
    "--config.batch_size=32",
    "--config.epochs=4",
    "--config.log_every=5",
    "--config.checkpoint.every_steps=40",
    "--config.eval_every_epochs=0",
    "--config.checkpoint.best=",
    "--config.head.dim=16",
]


def environment(cache: Path, devices: int = 1) -> dict[str, str]:
    """The environment of a process with this many fake devices, which does not write for TensorBoard."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(BARE), os.environ.get("PYTHONPATH")))),
        "XLA_FLAGS": f"{QUICK} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "PYTHONUNBUFFERED": "1",
    }


def start(verb: str, *flags: str, cache: Path, devices: int = 1) -> subprocess.Popen:
    """Start one process of `ssljax VERB`, whose network has one block."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.one_block", verb, *flags],
        cwd=ROOT,
        env=environment(cache, devices),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def start_two(verb: str, *flags: str, cache: Path) -> list[subprocess.Popen]:
    """Start two processes of one run, with four devices each."""
    here = f"--coordinator=localhost:{free_port()}"
    return [
        start(verb, *flags, here, "--processes=2", f"--process={i}", cache=cache, devices=4) for i in range(2)
    ]


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def finish(process: subprocess.Popen, seconds: float = 150) -> tuple[int, str]:
    """Wait for a process. Returns (exit code, output)."""
    output, _ = process.communicate(timeout=seconds)
    return process.returncode, output


def run(verb: str, *flags: str, cache: Path, devices: int = 1) -> tuple[int, str]:
    """Run one process to its end. Returns (exit code, output)."""
    return finish(start(verb, *flags, cache=cache, devices=devices))


def logged(workdir: Path) -> list[dict]:
    """The rows of metrics.jsonl so far."""
    file = workdir / "metrics.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]


def checkpoints(workdir: Path) -> list[int]:
    """The steps that have a complete checkpoint, in order."""
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.exists() else []


def being_written(workdir: Path) -> bool:
    """Whether there is an unfinished checkpoint, of this process or of one that was killed."""
    folder = workdir / "checkpoints"
    return folder.exists() and any("tmp" in p.name for p in folder.iterdir())


def last_state(workdir: Path) -> dict[str, bytes]:
    """The leaves of the newest checkpoint by their paths, as their bytes."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax  # not at the top: the processes that this file starts do not need it here
    import numpy as np
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as reader:
        state = reader.restore(workdir / "checkpoints" / str(checkpoints(workdir)[-1]) / "default")
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def differences(run: Path, uninterrupted: Path) -> list[str]:
    """What two finished runs differ in: leaves of the last state, rows of the log but for their times."""
    got, want = last_state(run), last_state(uninterrupted)
    found = [name for name in sorted(got.keys() | want.keys()) if got.get(name) != want.get(name)]
    timed = ("images_per_second", "input_bound")
    rows = [
        [{name: value for name, value in row.items() if name not in timed} for row in logged(folder)]
        for folder in (run, uninterrupted)
    ]
    return found + (["metrics.jsonl"] if rows[0] != rows[1] else [])


def freeze(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    """Stop a process (SIGSTOP) while the condition holds; it must come to hold while the process runs."""
    while True:
        wait_for(condition, process)
        process.send_signal(signal.SIGSTOP)
        if condition():
            return
        process.send_signal(signal.SIGCONT)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 120) -> None:
    """Wait until the condition holds, which must happen while the process runs."""
    deadline = time.time() + seconds
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"the run ended by itself: {process.stdout.read()}")
        assert time.time() < deadline, "waited too long"
        time.sleep(0.001)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL."""
    process.kill()
    process.wait()
