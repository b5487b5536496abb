"""A run's folder: its config, versions and commit, metrics, TensorBoard events, checkpoints, and the way it asks to stop.

    config.json  run.json  metrics.jsonl  tensorboard/  checkpoints/<step>/

TensorBoard events are written where TensorFlow and clu are installed.
"""

from __future__ import annotations

import importlib.util
import json
import math
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from ssljax.config import differences
from ssljax.data.crops import tensorflow
from ssljax.results import commit, versions
from ssljax.run import hosts, monitor
from ssljax.run.checkpoint import Checkpoints
from ssljax.types import Facts, TrainState

SHARED_SECONDS = 60  # a network disk may show a new file as late as that

# What may change between two starts of one run without making it another.
HARMLESS = ("log_every", "eval_every_epochs", "checkpoint", "evaluate", "name", "preset", "sharding")


def installed(package: str) -> bool:
    """Whether a package is there to be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


class RunFolder:
    """Opens `workdir`, one folder that all hosts see, for one stage of a run. The first host writes; checkpoints are written by all.

    `facts` are those of the training data, kept for whoever opens the run's networks later; None where no data were read.

    Raises:
        ValueError: the folder holds a run of another config (names the first setting that differs), or each host has a folder of its own.
    """

    def __init__(self, workdir: str, config: ConfigDict, facts: Facts | None):
        self.path = epath.Path(workdir)
        self.path.mkdir(parents=True, exist_ok=True)
        self._main = jax.process_index() == 0
        self._describe(config, facts)
        self._checkpoints = Checkpoints(
            workdir, keep_last=config.checkpoint.keep, best=config.checkpoint.best
        )
        self._config, self._bar, self._writer, self._known = config, None, None, {}
        self._events = installed("tensorflow") and installed("clu")  # TensorBoard; metrics.jsonl is plain
        self._clock: tuple[float, int] | None = None
        self._starved = 0.0
        self._alone, self._signalled = jax.process_count() == 1, False
        if self._alone:  # of many hosts JAX catches the signal, see hosts.stop_asked
            self._before = signal.signal(signal.SIGTERM, self._signal)

    def _signal(self, *_: Any) -> None:
        self._signalled = True

    def stop_asked(self) -> bool:
        """After a SIGTERM: leave with a checkpoint of this step. To be asked once a step; many hosts agree on the step."""
        return self._signalled if self._alone else hosts.stop_asked()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Closes; but after an error that other hosts may not share, nothing may wait for them: the last checkpoint stays unfinished."""
        if self._alone or kind is None or issubclass(kind, (SystemExit, monitor.NotFinite)):
            self.close()

    def _describe(self, config: ConfigDict, facts: Facts | None) -> None:
        """Writes config.json and run.json; on a restart checks that the run is the same, and always that the hosts share the folder."""
        new = json.loads(config.to_json())
        file = self.path / "config.json"
        if file.exists():
            differ = [
                f"{key} was {old!r}, now {now!r}"
                for key, old, now in differences(json.loads(file.read_text()), new)
                if key.split(".")[0] not in HARMLESS
            ]
            if differ:
                raise ValueError(
                    f"{self.path} holds a run of another config: {'; '.join(differ[:3])}. "
                    "Use another --workdir, or the old settings."
                )
        hosts.meet(f"{self.path} is read")  # before anything is written
        if self._main:
            file.write_text(json.dumps(new, indent=1))
            run = {
                "command": ["ssljax", *sys.argv[1:]],
                "commit": commit(),
                "versions": versions(),
                "hosts": jax.process_count(),
                **({} if facts is None else {"facts": facts._asdict()}),
                "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()],
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            }
            with (self.path / "run.json").open("a") as out:
                out.write(json.dumps(run) + "\n")
        hosts.meet(f"{self.path} is written")
        deadline = time.monotonic() + SHARED_SECONDS
        while not file.exists():
            if time.monotonic() > deadline:
                raise ValueError(
                    f"--workdir={self.path} is not one folder for all hosts: host {jax.process_index()} does not see what the "
                    "first has written. Use a bucket, --workdir=gs://BUCKET/RUN, or a disk that all of them mount"
                )
            time.sleep(1)

    def restore(self, like: TrainState) -> TrainState | None:
        """The newest readable checkpoint or None, and metrics.jsonl cut back to it."""
        state = self._checkpoints.restore(like)
        file = self.path / "metrics.jsonl"
        if self._main and file.exists():
            step = -1 if state is None else int(state.step)
            lines = [
                line
                for line in file.read_text().splitlines()
                if line.endswith("}") and json.loads(line)["step"] <= step
            ]
            file.write_text("".join(line + "\n" for line in lines))
        if state is not None and self._main:
            self._say(f"resuming {self.path} at step {int(state.step)}")
        return state

    def tick(self, step: int, total: int, starved: float) -> None:
        """Called after each step is dispatched: moves the bar and starts the clock behind the first, compiling, step.

        Args:
            step: the number of updates dispatched.
            total: of the whole run.
            starved: seconds that the devices stood idle for want of this step's batch.
        """
        self._starved += starved
        if self._clock is None:
            self._starved = 0.0
            self._clock = (time.perf_counter(), step)
            if self._main and sys.stderr.isatty():
                self._bar = tqdm(
                    total=total, initial=step, desc=self._config.preset, unit="step", dynamic_ncols=True
                )
        elif self._bar is not None:
            self._bar.update(1)

    def log(self, step: int, total: int, steps_per_epoch: int, metrics: Mapping[str, float]) -> None:
        """One line of metrics.jsonl, TensorBoard and the terminal; warnings of the monitor.

        `input_bound` is the share of the time since the last line in which the devices waited for a batch.
        """
        now = time.perf_counter()
        since, first = self._clock
        rate = (step - first) / (now - since) if step > first and now > since else 0.0
        bound = min(self._starved / (now - since), 1.0) if now > since else 0.0
        self._clock, self._starved = (now, step), 0.0
        row = {
            "step": step,
            "epoch": round(step / steps_per_epoch, 3),
            **metrics,
            "images_per_second": rate * self._config.batch_size,
            "input_bound": round(bound, 4),
        }
        self._write(row)
        shown = {name: row[name] for name in ("loss", "accuracy") if name in row} | self._known
        text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            eta = f"{(total - step) / rate:.0f} s" if rate else "-"
            self._say(
                f"step {step}/{total}  epoch {row['epoch']:.1f}  {text}  {row['images_per_second']:.0f} images/s  eta {eta}"
            )
        for warning in monitor.warnings(self._config.method, step, metrics):
            self._say("WARNING " + warning)

    def log_knn(self, step: int, value: float) -> None:
        """The held-out kNN accuracy of this step, in percent."""
        self._known["knn"] = value
        self._write({"step": step, "knn": value})
        self._clock, self._starved = (time.perf_counter(), step), 0.0  # the evaluation is no training time

    def log_refresh(self, step: int, row: Mapping[str, float]) -> None:
        """What a method's refresh found after so many updates."""
        monitor.check_finite(step, row)
        self._write({"step": step, **row})
        self._say(
            f"refresh at step {step}  " + "  ".join(f"{name} {value:.4g}" for name, value in row.items())
        )
        for warning in monitor.warnings(self._config.method, step, row):
            self._say("WARNING " + warning)
        if self._clock is not None:
            self._clock, self._starved = (time.perf_counter(), step), 0.0  # no training time either

    def _write(self, row: Mapping[str, float]) -> None:
        if not self._main:
            return
        with (self.path / "metrics.jsonl").open("a") as out:
            out.write(
                json.dumps({name: value if math.isfinite(value) else None for name, value in row.items()})
                + "\n"
            )
        if self._writer is None and self._events:
            tensorflow()  # with the accelerators hidden from it
            from clu import (
                metric_writers,
            )  # brings TensorFlow with it: seconds, so only once there is something to write

            self._writer = metric_writers.SummaryWriter(str(self.path / "tensorboard"))
        if self._writer is not None:
            scalars = {name: value for name, value in row.items() if name != "step"}
            self._writer.write_scalars(int(row["step"]), scalars)

    def _say(self, text: str) -> None:
        if not self._main:
            return
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def save(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Starts a checkpoint; the newest known kNN goes with it, so that the best can be kept."""
        self._checkpoints.save(state, {**metrics, **self._known})

    def close(self) -> None:
        """Everything on disk, the old signal handler back."""
        self._checkpoints.close()
        if self._writer is not None:
            self._writer.flush()
            self._writer.close()
        if self._bar is not None:
            self._bar.close()
        if self._alone:
            signal.signal(signal.SIGTERM, self._before)
        logging.flush()


def facts_of(workdir: str) -> Facts | None:
    """What a run's training data were like; None for a folder that does not say, of a run before it was noted."""
    file = epath.Path(workdir) / "run.json"
    if not file.exists():
        return None
    last = json.loads(file.read_text().splitlines()[-1])
    return Facts(**last["facts"]) if "facts" in last else None
