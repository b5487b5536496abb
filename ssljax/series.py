"""A series of runs: `ssljax train`, then `ssljax evaluate`, each in a process of its own.

After an interruption the same series goes on: a finished run is left alone, and so is one that was evaluated.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from etils import epath


class Asked(NamedTuple):
    """One run of the sweep.

    Attributes:
        name: of its folder.
        words: the flags of `ssljax train`, all but --workdir.
    """

    name: str
    words: list[str]


class Steps(NamedTuple):
    """What a sweep does for each run.

    Attributes:
        workdir: the folder of all runs.
        evaluate: whether to evaluate.
        judged: flags of `ssljax evaluate` for that.
        trained: further flags of `ssljax train`.
        results: the file of all measurements; "" for results.jsonl in `workdir`.
    """

    workdir: str
    evaluate: bool
    judged: list[str]
    trained: list[str]
    results: str = ""

    def folder(self, run: Asked) -> str:
        """The folder of a run."""
        return os.path.join(self.workdir, run.name)

    def train(self, run: Asked) -> list[str]:
        """The command that trains a run, after `ssljax`."""
        return ["train", *run.words, "--workdir", self.folder(run), *self.trained]

    def judge(self, run: Asked, results: str = "") -> list[str]:
        """The command that evaluates a run, after `ssljax`."""
        where = ["--results", results] if results else []
        return ["evaluate", "--workdir", self.folder(run), *where, *self.judged]


class Interrupted(Exception):
    """The sweep was asked to stop."""


def command(words: Sequence[str], label: str, log: TextIO | None) -> tuple[int, str]:
    """Runs `ssljax` in a process of its own, and shows its last line while it goes, on a terminal.

    Args:
        words: what follows `ssljax`.
        label: of the line.
        log: where its output goes; None prints it.

    Returns:
        its exit code and the last line that it printed.

    Raises:
        Interrupted: Ctrl-C or a SIGTERM, once the process has ended, with a checkpoint.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "ssljax", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    last, stopped = "", False
    while True:
        try:
            for line in process.stdout:
                print(line, end="", file=log, flush=True)
                last = line.strip() or last
                _show(f"{label}: {last}")
            break
        except KeyboardInterrupt:
            stopped = True
            process.terminate()  # it saves a checkpoint; its output is read to the end
    process.stdout.close()
    code = process.wait()
    if stopped:
        raise Interrupted
    return code, last


def _show(text: str) -> None:
    """Replaces the line of a terminal; elsewhere nothing."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{text[:width]}\x1b[K", end="", flush=True)


def one(steps: Steps, run: Asked, label: str) -> str:
    """Trains a run and evaluates it, as far as this has not been done.

    Returns:
        "" if all went well, otherwise what went wrong.
    """
    folder = steps.folder(run)
    log = None
    if "://" not in folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        log = (Path(folder) / "train.log").open("a")
    try:
        code, last = command(steps.train(run), label, log)
        if code or not last.startswith("done: "):
            return _wrong("train", code, last, folder)
        judged = epath.Path(folder) / "evaluated"  # the command, once it has succeeded
        words = steps.judge(run, steps.results or os.path.join(steps.workdir, "results.jsonl"))
        done = judged.exists() and judged.read_text() == shlex.join(words)
        if steps.evaluate and not done:
            code, last = command(words, label, log)
            if code:
                return _wrong("evaluate", code, last, folder)
            judged.parent.mkdir(parents=True, exist_ok=True)
            judged.write_text(shlex.join(words))
    finally:
        if log is not None:
            log.close()
    return ""


def _wrong(verb: str, code: int, last: str, folder: str) -> str:
    return f"FAILED, {verb} with exit code {code}: {last or 'no word'} (all of it: {folder}/train.log)"


def sweep(steps: Steps, runs: Sequence[Asked]) -> list[str]:
    """Does all runs, one after the other, with a line for each.

    Returns:
        the names of those that failed.
    """
    failed = []
    for i, run in enumerate(runs, 1):
        label = f"[{i}/{len(runs)}] {run.name}"
        _show(f"{label}: starting")
        began = time.monotonic()
        wrong = one(steps, run, label)
        _show("")
        print(f"{label}: {wrong or f'done in {time.monotonic() - began:.0f} s'}", flush=True)
        if wrong:
            failed.append(run.name)
    return failed
