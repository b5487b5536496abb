"""What happens to a run of two hosts when one fails: how soon the other ends, and where the run resumes.

    python -m benchmarks.faults [--rounds 1] [--workdir FOLDER]

Two processes on this machine, with four fake CPU devices each, train SimCLR on the digits and write a
checkpoint every ten steps. Prints a table.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.processes import SMALL, checkpoints, finish, logged, start_two, wait_for


class Event(NamedTuple):
    """Something that happens to one of two processes.

    Attributes:
        name: its name in the table.
        victim: the process that it happens to; 0 is the coordinator, which also writes the logs.
        signal: the signal that the victim is sent.
    """

    name: str
    victim: int
    signal: signal.Signals


EVENTS = (
    Event("SIGTERM to the worker", 1, signal.SIGTERM),
    Event("SIGTERM to the coordinator", 0, signal.SIGTERM),
    Event("SIGKILL of the worker", 1, signal.SIGKILL),
    Event("SIGKILL of the coordinator", 0, signal.SIGKILL),
    Event("the worker freezes (SIGSTOP)", 1, signal.SIGSTOP),
    Event("the coordinator freezes (SIGSTOP)", 0, signal.SIGSTOP),
)


def main() -> None:
    """Print one row per event and round."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--workdir", default="", help="default: a temporary folder")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(flags.workdir or folder) / "run"
        print(
            "| event | the other: exit code | seconds until it ended | last step logged "
            "| the same command resumed at | it said |"
        )
        print("|---|---|---|---|---|---|")
        processes = train(workdir)
        for event in EVENTS * flags.rounds:
            code, seconds, said = happens(event, processes)
            reached = logged(workdir)[-1]["step"]
            processes = train(workdir)
            step = resumed(processes[0], workdir)
            print(f"| {event.name} | {code} | {seconds:.1f} | {reached} | {step} | {said} |", flush=True)
        for process in processes:
            process.kill()


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


def happens(event: Event, processes: list[subprocess.Popen]) -> tuple[int, float, str]:
    """Let the event happen. Returns (exit code, seconds until it ended, last words) of the other process."""
    victim = processes[event.victim]
    other = processes[1 - event.victim]
    begin = time.monotonic()
    victim.send_signal(event.signal)
    other.wait(timeout=300)
    seconds = time.monotonic() - begin
    if event.signal == signal.SIGSTOP:
        victim.kill()
    finish(victim)
    code, output = finish(other)
    return code, seconds, last_words(output)


def last_words(output: str) -> str:
    """Why a process says that it ends, in our words or in those of JAX's distributed service."""
    said = re.findall(r"this host stops after.*|absl::Status: .*|done: .*", output)
    return said[-1][:120].replace("|", "/") if said else ""


def resumed(process: subprocess.Popen, workdir: Path) -> str:
    """The step at which the first process says that it resumes."""
    for line in process.stdout:
        if match := re.search(rf"resuming {re.escape(str(workdir))} at step (\d+)", line):
            return match[1]
    return "the beginning"


if __name__ == "__main__":
    main()
