"""A run of two hosts when one of them fails, or when they are not started alike.

What is asked: how soon both end, and where the run resumes.

Two processes on this machine, with four fake CPU devices each, train SimCLR on the digits and write a
checkpoint every ten steps.
"""

from __future__ import annotations

import functools
import re
import signal
import subprocess
import time
from pathlib import Path

from benchmarks.faults.drill import Drill, expect
from tests.processes import SMALL, checkpoints, finish, free_port, logged, start, start_two, wait_for

ENDS_WITHIN = 30  # seconds: the heartbeats' ten, and a busy machine


def train(workdir: Path) -> list[subprocess.Popen]:
    """Start or resume the run. Returns once it has written a checkpoint."""
    before = checkpoints(workdir)[-1:] or [0]
    processes = start_two(
        "train",
        *SMALL,
        "--config.epochs=500",
        "--config.checkpoint.every_steps=10",
        f"--workdir={workdir}",
        cache=workdir.parent / "xla",
    )
    wait_for(lambda: checkpoints(workdir)[-1:] > before, processes[0], seconds=300)
    return processes


def lost(folder: Path, victim: int, number: signal.Signals) -> str:
    """Send a signal to one of the two processes; the other must end, and the same command go on."""
    workdir = folder / "run"
    code, seconds, said = happens(train(workdir), victim, number)
    reached = logged(workdir)[-1]["step"]
    newest = checkpoints(workdir)[-1]
    processes = train(workdir)
    step = resumed(processes[0], workdir)
    for process in processes:
        process.kill()
    seen = (
        f"the other ended after {seconds:.1f} s with exit code {code}, at step {reached}; the same command "
        f"went on at step {step}; it said: {said}"
    )
    expect(seconds < ENDS_WITHIN and step == str(newest), seen)
    return seen


def happens(processes: list[subprocess.Popen], victim: int, number: signal.Signals) -> tuple[int, float, str]:
    """Send the signal. Returns (exit code, seconds until it ended, last words) of the other process."""
    other = processes[1 - victim]
    begin = time.monotonic()
    processes[victim].send_signal(number)
    other.wait(timeout=300)
    seconds = time.monotonic() - begin
    if number == signal.SIGSTOP:
        processes[victim].kill()
    finish(processes[victim])
    code, output = finish(other)
    return code, seconds, last_words(output)


def last_words(output: str) -> str:
    """Why a process says that it ends, in our words or in those of JAX's distributed service."""
    said = re.findall(r"this host stops after.*|absl::Status: .*|done: .*", output)
    return said[-1][:120] if said else ""


def resumed(process: subprocess.Popen, workdir: Path) -> str:
    """The step at which the first process says that it resumes."""
    assert process.stdout is not None
    for line in process.stdout:
        if match := re.search(rf"resuming {re.escape(str(workdir))} at step (\d+)", line):
            return match[1]
    return "the beginning"


def unlike(folder: Path, flags: tuple[str, ...], message: str) -> str:
    """Start the second process with further flags: both must end soon and say what differs."""
    begin = time.monotonic()
    where = f"--coordinator=localhost:{free_port()}"
    more = (), tuple(flag.format(folder=folder) for flag in flags)
    processes = [
        start(
            "train",
            *SMALL,
            f"--workdir={folder / 'run'}",
            *more[i],
            where,
            "--processes=2",
            f"--process={i}",
            cache=folder / "xla",
            devices=4,
        )
        for i in range(2)
    ]
    found = [finish(process) for process in processes]
    seconds = time.monotonic() - begin
    said = re.search(r"the hosts were not.*?(?=\. Start)", found[0][1])
    seen = f"both ended after {seconds:.1f} s with exit codes {[code for code, _ in found]}: "
    seen += said[0].replace(str(folder), "") if said else found[0][1][-300:]
    for code, output in found:
        expect(code == 1 and message in output and "Traceback" not in output, seen)
    expect(seconds < ENDS_WITHIN and not (folder / "run" / "checkpoints").exists(), seen)
    return seen


def busy(folder: Path) -> str:
    """Start two processes in a folder that another one trains in: both must say so and end."""
    workdir = folder / "run"
    flags = (*SMALL, "--config.epochs=500", f"--workdir={workdir}")
    holder = start("train", *flags, cache=folder / "xla")
    wait_for(lambda: len(logged(workdir)) > 3, holder)
    found = [finish(process) for process in start_two("train", *flags, cache=folder / "xla")]
    holder.kill()
    finish(holder)
    seen = f"exit codes {[code for code, _ in found]}: {found[1][1].splitlines()[0]}"
    for code, output in found:
        expect(code == 1 and f"is in use: process {holder.pid} on" in output, seen)
    return seen.replace(str(folder), "")


def _unlike(name: str, flags: tuple[str, ...], message: str) -> Drill:
    """The drill of a second process with further flags."""
    follows = f"both end within {ENDS_WITHIN} s and say what differs, before anything is written"
    return Drill(name, follows, functools.partial(unlike, flags=flags, message=message))


def _drill(name: str, victim: int, number: signal.Signals) -> Drill:
    """The drill of one signal to one process; process 0 is the coordinator, which also writes the logs."""
    follows = f"the other ends within {ENDS_WITHIN} s; the same command goes on from the last checkpoint"
    return Drill(name, follows, functools.partial(lost, victim=victim, number=number))


DRILLS = (
    _drill("SIGTERM to the worker", 1, signal.SIGTERM),
    _drill("SIGTERM to the coordinator", 0, signal.SIGTERM),
    _drill("SIGKILL of the worker", 1, signal.SIGKILL),
    _drill("SIGKILL of the coordinator", 0, signal.SIGKILL),
    _drill("the worker freezes (SIGSTOP)", 1, signal.SIGSTOP),
    _drill("the coordinator freezes (SIGSTOP)", 0, signal.SIGSTOP),
    _unlike("another seed on one host", ("--config.seed=1",), "host 1 has --config.seed=1 and host 0 has 0"),
    _unlike(
        "another folder and other epochs on one host",
        ("--workdir={folder}/other", "--config.epochs=7"),
        "--config.epochs=7 and host 0 has",
    ),
    Drill("two hosts in a folder that another process trains in", "both say who trains in it, and end", busy),
)
