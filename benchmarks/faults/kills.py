"""Five SIGKILLs per method: the run ends with the bits of one that was never interrupted."""

from __future__ import annotations

import functools
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.drill import Drill, expect
from tests.processes import (
    being_written,
    checkpoints,
    differences,
    freeze,
    kill,
    logged,
    run,
    start,
    wait_for,
)

# A network of eight channels; 200 steps.
SETTINGS = {
    "batch_size": 60,
    "epochs": 8,
    "log_every": 5,
    "eval_every_epochs": 2,
    "checkpoint.every_steps": 20,
    "model.width": 0.125,
}
STEPS_PER_EPOCH = 25
STAGES = {"deit": ("teacher", "student")}  # half the epochs each
OWN = {
    "moco": {"bn.groups": 4, "queue.size": 240},
    "deepcluster": {"clusters.every": 2},
    "deit.teacher": {"epochs": 4, "ema.decay": 0.0},
    "deit.student": {
        "epochs": 4,
        "model.width": None,
        "teacher.width": 0.125,
        "optim.warmup_epochs": 1,
    },
}


def flags(method: str) -> list[str]:
    """The command line of a small run of the method's digits preset."""
    found = [f"--config=configs/{method}.py:digits"]
    for stage in STAGES.get(method, ("",)):
        own = OWN.get(f"{method}.{stage}" if stage else method, {})
        prefix = f"{stage}." if stage else ""
        settings = SETTINGS | own
        found += [f"--config.{prefix}{name}={value}" for name, value in settings.items() if value is not None]
    return found


class Watched:
    """A run that is killed: where it stands.

    Attributes:
        folders: of its stages.
    """

    def __init__(self, method: str, workdir: Path, cache: Path):
        self.folders = [workdir / stage for stage in STAGES.get(method, ("",))]
        self._command = (*flags(method), f"--workdir={workdir}")
        self._cache = cache
        self._before: list[list[dict]] = []

    def start(self) -> subprocess.Popen:
        """Start or resume it."""
        self._before = [logged(folder) for folder in self.folders]
        return start("train", *self._command, cache=self._cache)

    def reached(self, step: int) -> bool:
        """Whether this process has logged `step` of the whole run, or a later one."""
        rows = [logged(folder) for folder in self.folders]
        return rows != self._before and sum(each[-1]["step"] for each in rows if each) >= step

    def writes(self, step: int) -> bool:
        """Whether it writes a checkpoint of `step` or later."""
        return self.reached(step) and any(being_written(folder) for folder in self.folders)

    def evaluates(self, step: int) -> bool:
        """Whether it evaluates or refreshes after `step` or later: an epoch's last step is logged."""
        rows = [rows for rows in map(logged, self.folders) if rows]
        if not self.reached(step) or not rows:
            return False
        last = rows[-1][-1]
        return "loss" in last and last["step"] % (2 * STEPS_PER_EPOCH) == 0


def killed(folder: Path, method: str) -> str:
    """Kill the run five times and let it end, beside one that is left alone."""
    rng = random.Random(method)
    cache = folder / "xla"
    code, output = run("train", *flags(method), f"--workdir={folder / 'whole'}", cache=cache)
    expect(code == 0, f"the uninterrupted run failed: {output[-500:]}")

    watched = Watched(method, folder / "killed", cache)
    moments: list[tuple[str, Callable[[subprocess.Popen], None]]] = [
        ("the start", lambda process: time.sleep(rng.uniform(0.5, 4.0))),
        ("a step", waiting(watched.reached, rng.randrange(10, 50))),
        ("an evaluation or refresh", freezing(watched.evaluates, rng.randrange(50, 95))),
        ("a checkpoint", freezing(watched.writes, rng.randrange(100, 140))),
        ("a step", waiting(watched.reached, rng.randrange(140, 190))),
    ]
    seen = []
    for name, until in moments:
        process = watched.start()
        until(process)
        kill(process)
        stands = [(logged(each) or [{"step": 0}])[-1]["step"] for each in watched.folders]
        seen.append(f"{name} at {sum(stands)}")

    code, output = run("train", *flags(method), f"--workdir={folder / 'killed'}", cache=cache)
    expect(code == 0, f"the killed run did not end: {output[-500:]}")
    differ = []
    for one in watched.folders:
        whole = folder / "whole" / one.relative_to(folder / "killed")
        expect(checkpoints(one)[-1] == checkpoints(whole)[-1], f"{one.name} ended at another step")
        differ += differences(one, whole)
    expect(not differ, f"killed in {'; '.join(seen)}; different: {', '.join(differ[:3])}")
    return f"killed in {'; '.join(seen)}; every leaf and every row is the same"


def waiting(condition: Callable[[int], bool], step: int) -> Callable[[subprocess.Popen], None]:
    """Wait until the condition holds for this step."""
    return lambda process: wait_for(lambda: condition(step), process)


def freezing(condition: Callable[[int], bool], step: int) -> Callable[[subprocess.Popen], None]:
    """Wait until the condition holds for this step, and stop the process while it does."""
    return lambda process: freeze(process, lambda: condition(step))


DRILLS = tuple(
    Drill(
        f"SIGKILL five times: {method}",
        "all leaves of the last state and all rows of metrics.jsonl are those of an uninterrupted run",
        functools.partial(killed, method=method),
    )
    for method in ("simclr", "moco", "byol", "deit", "deepcluster")
)
