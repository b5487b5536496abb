"""A run's folder: config, versions and commit, metrics, TensorBoard events, checkpoints, and stop requests.

    config.json  run.json  data.json  metrics.jsonl  tensorboard/  checkpoints/<step>/
    lock (while a process trains in it)

TensorBoard events are written if TensorFlow and clu are installed. Further loggers are in `writers.py`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from ssljax.run import files, hosts, lock, monitor, start, writers
from ssljax.run.checkpoint import Checkpoints
from ssljax.types import Facts, TrainState

TIMED_STEPS = 5  # after which the time that is left is said
SHARED_SECONDS = 60  # a network disk may take this long to show a new file


def installed(package: str) -> bool:
    """Whether a package can be imported, found out without importing it."""
    return importlib.util.find_spec(package) is not None


class RunFolder:
    """The open folder of one stage of a run, shared by all hosts.

    The first host writes all files; only checkpoints are written by all hosts.
    """

    def __init__(
        self,
        workdir: str,
        config: ConfigDict,
        facts: Facts | None,
        *,
        data: Mapping[str, Any] | None = None,
        accept_changed_data: bool = False,
        log: Sequence[str] = (),
    ):
        """Open the folder, lock it, and describe the run in it.

        Args:
            workdir: one folder that all hosts see.
            config: the config of the stage.
            facts: the facts of the training data, kept for whoever opens the run's networks later; None if no
                data were read.
            data: "train" and "test" -> what to remember of the split, see `data.change`; None if no data were
                read.
            accept_changed_data: go on where the training images are not those that the run began with.
            log: names of further loggers, see `writers.WRITERS`.

        Raises:
            ValueError: another process trains in the folder; it holds a run of another config or of other
                training images (the first differences are named); one of its files is damaged; or the hosts
                have different data, or a folder each; or a logger refuses the run.
        """
        self.path = epath.Path(workdir)
        self.path.mkdir(parents=True, exist_ok=True)
        self._main = jax.process_index() == 0
        self._config = config
        self._epochs = float(config.epochs)  # in the logs
        if config.steps and facts is not None:
            self._epochs = config.steps * config.batch_size / facts.num_examples
        self._bar: tqdm | None = None
        if data is not None:
            hosts.same({f"checksum of data ({split})": part["checksum"] for split, part in data.items()})
        self._lock = lock.hold(self.path)
        try:
            self._describe(config, facts, data, accept_changed_data)
            self._checkpoints = Checkpoints(
                workdir,
                keep_last=config.checkpoint.keep,
                best=config.checkpoint.best,
                digests=config.checkpoint.digest,
            )
            self._loggers = {
                name: writers.opened(name, self.path, config) for name in (log if self._main else ())
            }
        except BaseException:
            self._lock.release()
            raise

        self._events = installed("tensorflow") and installed("clu")  # for TensorBoard
        self._board: writers.TensorBoard | None = None
        self._silent: set[str] = set()  # loggers that have failed, and of which this was said
        self._failed = False
        self._known: dict[str, float] = {}
        self._resumed_from = ""  # the checkpoint, until the first finite metrics
        self._clock: tuple[float, int] | None = None  # when and at which step the last line was logged
        self._starved = 0.0  # seconds since then
        self._timed: tuple[float, int] | None = None  # the first clock, until the time left is said
        self._running: deque[tuple[int, jax.Array]] = deque()  # steps that were not finished when last seen

        self._alone = jax.process_count() == 1
        self._signalled = False
        self._before: dict[int, Any] = {}
        if self._alone:  # with many hosts JAX catches the signal, see hosts.stop_asked
            for number in (signal.SIGTERM, signal.SIGINT):
                if (
                    signal.getsignal(number) != signal.SIG_IGN
                ):  # as a shell leaves it to a job in the background
                    self._before[number] = signal.signal(number, self._signal)

    def _signal(self, number: int, _: Any) -> None:
        """Note that the run shall stop after this step. A second Ctrl-C does not wait."""
        if number == signal.SIGINT:
            if self._signalled:
                raise KeyboardInterrupt
            # print() may be what the signal interrupts, and cannot be entered twice.
            with contextlib.suppress(OSError):  # nobody reads it
                os.write(2, b"\nstopping after this step, with a checkpoint; Ctrl-C again leaves at once\n")
        self._signalled = True

    def stop_asked(self) -> bool:
        """Whether a SIGTERM or a Ctrl-C asks the run to stop with a checkpoint of this step.

        Call this once per step on every host. All hosts get the same answer at the same step.
        """
        return self._signalled if self._alone else hosts.stop_asked()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Close the folder, unless other hosts may not share the error.

        In that case nothing may wait for them, and the last checkpoint stays unfinished.
        """
        self._failed = kind is not None and not issubclass(kind, SystemExit)
        if self._alone or kind is None or issubclass(kind, (SystemExit, monitor.NotFinite)):
            self.close()
        self._lock.release()
        if self._signalled and kind is SystemExit:
            self.say(f"stopped and saved; the same command resumes {self.path}")

    def _describe(
        self, config: ConfigDict, facts: Facts | None, data: Mapping[str, Any] | None, accept: bool
    ) -> None:
        """Write config.json, run.json and data.json, after checks that run and data are the same."""
        new = json.loads(config.to_json())
        file = self.path / "config.json"
        record = self.path / "run.json"
        if file.exists():
            start.refuse_other_config(self.path, files.read_config(file), new)
        changed = {} if data is None else start.changed_data(self.path, data, accept)
        starts = files.read_lines(record) if record.exists() else []
        hosts.meet(f"{self.path} is read")  # before anything is written
        if self._main:
            files.replace(file, json.dumps(new, indent=1))
            starts.append(start.record(facts, changed))
            files.replace(record, "".join(json.dumps(row) + "\n" for row in starts))
            if data is not None:
                files.replace(self.path / "data.json", json.dumps(data))
        self._say_differences(changed)
        hosts.meet(f"{self.path} is written")

        deadline = time.monotonic() + SHARED_SECONDS
        while not file.exists():
            if time.monotonic() > deadline:
                raise ValueError(
                    f"--workdir={self.path} is not one folder for all hosts: host {jax.process_index()} "
                    "does not see what the first host has written. Use a bucket, "
                    "--workdir=gs://BUCKET/RUN, or a disk that all of them mount"
                )
            time.sleep(1)

    def _say_differences(self, changed: Mapping[str, str]) -> None:
        """Say from whom the folder was taken over, and what changed in the data."""
        if self._lock.note:
            self.say(self._lock.note)
        if "train" in changed:
            self.say(f"WARNING going on with changed training images: {changed['train']}")
        if "test" in changed:
            self.say(f"WARNING the held-out images changed, kNN before and after differ: {changed['test']}")

    def restore(self, like: TrainState) -> TrainState | None:
        """Restore the newest readable checkpoint, and cut metrics.jsonl back to its step.

        Args:
            like: see `Checkpoints.restore`.

        Returns:
            The state, or None if there is no readable checkpoint.
        """
        state = self._checkpoints.restore(like)
        file = self.path / "metrics.jsonl"
        if self._main and file.exists():
            step = -1 if state is None else int(state.step)
            kept = [row for row in files.read_lines(file) if row["step"] <= step]
            files.replace(file, "".join(json.dumps(row) + "\n" for row in kept))
        if state is not None:
            self._resumed_from = str(self._checkpoints.directory / str(int(state.step)))
            self.say(f"resuming {self.path} at step {int(state.step)}")
        return state

    def check_finite(self, step: int, metrics: Mapping[str, float]) -> None:
        """Stop a run that has diverged, see `monitor.check_finite`. Call this with all metrics."""
        monitor.check_finite(step, metrics, self._resumed_from)
        self._resumed_from = ""

    def tick(self, step: int, total: int, starved: float, done: jax.Array) -> None:
        """Move the progress bar to the last finished step; call this after each step is dispatched.

        The first call, after the first step has finished, starts the clock, so that its compilation does not
        count. Some steps later the time that is left is said.

        Args:
            step: the number of updates dispatched.
            total: the number of updates in the whole run.
            starved: seconds for which the devices stood idle, waiting for the batch of this step.
            done: a result of this step.
        """
        self._lock.renew()
        self._starved += starved
        self._running.append((step, done))
        finished = 0
        while self._running and self._running[0][1].is_ready():  # type: ignore[attr-defined]
            finished, _ = self._running.popleft()

        if self._clock is None:
            self._restart_clock(time.perf_counter(), step)
            self._timed = self._clock
            if self._main and sys.stderr.isatty():
                self._bar = tqdm(
                    total=total, initial=step, desc=self._config.preset, unit="step", dynamic_ncols=True
                )
        elif self._bar is not None and finished > self._bar.n:
            self._bar.update(finished - self._bar.n)
        elif self._timed is not None and finished >= self._timed[1] + TIMED_STEPS:
            since, first = self._timed
            each = (time.perf_counter() - since) / (finished - first)
            self.say(f"time: about {duration(each * (total - finished))} left")
            self._timed = None

    def log(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Write one line to metrics.jsonl, TensorBoard and the terminal, and the warnings of the monitor.

        `input_bound` is the share of the time since the last line in which the devices waited for a batch.

        Args:
            step: the number of updates done.
            total: the number of updates in the whole run.
            metrics: host floats.
        """
        assert self._clock is not None, "the first tick comes before the first log"
        now = time.perf_counter()
        since, first = self._clock
        rate = (step - first) / (now - since) if step > first and now > since else 0.0
        bound = min(self._starved / (now - since), 1.0) if now > since else 0.0
        self._restart_clock(now, step)
        row = {
            "step": step,
            "epoch": round(self._epochs * step / total, 3),
            **metrics,
            "images_per_second": rate * self._config.batch_size,
            "input_bound": round(bound, 4),
        }
        self._write(row)

        shown = {name: row[name] for name in ("loss", "accuracy") if name in row} | self._known
        text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(text)
        else:
            eta = f"{(total - step) / rate:.0f} s" if rate else "-"
            speed = f"{row['images_per_second']:.0f} images/s"
            self.say(f"step {step}/{total}  epoch {row['epoch']:.1f}  {text}  {speed}  eta {eta}")
        for warning in monitor.warnings(self._config.method, step, metrics):
            self.say("WARNING " + warning)

    def log_knn(self, step: int, value: float) -> None:
        """Log the held-out kNN accuracy of this step, in percent."""
        self._known["knn"] = value
        self._write({"step": step, "knn": value})
        self._restart_clock(time.perf_counter(), step)  # evaluation does not count as training time

    def log_refresh(self, step: int, row: Mapping[str, float]) -> None:
        """Log what a method's refresh found after `step` updates."""
        self.check_finite(step, row)
        self._write({"step": step, **row})
        text = "  ".join(f"{name} {value:.4g}" for name, value in row.items())
        self.say(f"refresh at step {step}  {text}")
        for warning in monitor.warnings(self._config.method, step, row):
            self.say("WARNING " + warning)
        if self._clock is not None:
            self._restart_clock(time.perf_counter(), step)  # nor does a refresh

    def _restart_clock(self, now: float, step: int) -> None:
        """Measure speed and idle time from here on."""
        self._clock = (now, step)
        self._starved = 0.0

    def _write(self, row: Mapping[str, float]) -> None:
        """Append a row to metrics.jsonl, and pass it on to TensorBoard's events and the loggers."""
        if not self._main:
            return
        self._lock.renew()
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        with (self.path / "metrics.jsonl").open("a") as out:
            out.write(json.dumps(finite) + "\n")

        step = int(row["step"])
        scalars = {name: value for name, value in row.items() if name != "step"}
        if self._board is None and self._events:
            # This imports TensorFlow and takes seconds, so it waits until there is something to write.
            self._board = writers.TensorBoard(self.path)
        if self._board is not None:
            self._board.scalars(step, scalars)
        for name in self._loggers:
            self._tell(name, step, {key: value for key, value in scalars.items() if math.isfinite(value)})

    def _tell(self, name: str, step: int, scalars: Mapping[str, float]) -> None:
        """Give a row to a logger. A logger that fails, e.g. without a connection, does not end the run."""
        try:
            self._loggers[name].scalars(step, scalars)
        except Exception as error:  # of any class of the logger's package
            if name not in self._silent:
                self.say(f"WARNING --log {name}: {error}; the run goes on, and metrics.jsonl has it all")
            self._silent.add(name)

    def say(self, text: str) -> None:
        """Print a line on the first host, above the progress bar."""
        if not self._main:
            return
        try:
            if self._bar is not None:
                self._bar.write(text)
            else:
                print(text, flush=True)
        except OSError:
            # Nobody reads the output any more (`| head`), or its disk is full. metrics.jsonl has it all, so
            # the run goes on; what is printed from here on is thrown away, also by Python at its exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def save(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Start a checkpoint. The newest kNN accuracy goes with it, so that the best one can be kept."""
        self._lock.renew()
        self._checkpoints.save(state, {**metrics, **self._known})

    def renew(self) -> None:
        """Say that the run is alive, during work that takes long and neither logs nor saves."""
        self._lock.renew()

    def wait(self) -> None:
        """Wait until every checkpoint that was started is on disk."""
        self._checkpoints.wait()

    def close(self) -> None:
        """Wait until everything is on disk, unlock the folder, and restore the old signal handler."""
        try:
            self._checkpoints.close()
            if self._board is not None:
                self._board.close()
            for logger in self._loggers.values():
                logger.close(self._failed)
            self._loggers = {}
        finally:
            self._lock.release()
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._alone:
            for number, handler in self._before.items():
                signal.signal(number, handler)
        logging.flush()


def duration(seconds: float) -> str:
    """A time for readers: 40 s, 12 min, 3.4 h, 2.5 days."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}" if size > 60 else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def describe_stages(workdir: str, config: ConfigDict, only: str = "") -> None:
    """Write `workdir/config.json` for a config with stages, whose own folders lie below.

    It says what those folders hold, or will hold after this start: a stage that is not trained now keeps the
    config of its folder.

    Args:
        workdir: the folder of all stages.
        config: of all stages.
        only: the name of the one stage to be trained; "" for all.

    Raises:
        ValueError: the folder holds a run of other stages, or that of a stage to be trained holds a run of
            another config.
    """
    if jax.process_index() > 0:
        return
    path = epath.Path(workdir)
    file = path / "config.json"
    if file.exists():
        stages = files.read_config(file).get("stages", [])
        if stages != list(config.stages):
            raise ValueError(
                f"{workdir} holds a run of {', '.join(stages) or 'a single stage'}, and the stages of this "
                f"config are {', '.join(config.stages)}. Use another --workdir, or the old config."
            )
    new = json.loads(config.to_json())
    for name in config.stages:
        own = path / name / "config.json"
        if not own.exists():
            continue
        if only in ("", name):
            start.refuse_other_config(path / name, files.read_config(own), new[name])
        else:
            new[name] = files.read_config(own)
    path.mkdir(parents=True, exist_ok=True)
    files.replace(file, json.dumps(new, indent=1))


def facts_of(workdir: str) -> Facts | None:
    """The facts of a run's training data; None for an older run, whose folder does not have them.

    Raises:
        ValueError: run.json is damaged; the message names it and says what to do.
    """
    file = epath.Path(workdir) / "run.json"
    if not file.exists():
        return None
    starts = files.read_lines(file)
    if not starts:
        raise ValueError(
            f"{file} is empty or half-written. The `ssljax train` command of this run writes it anew"
        )
    return Facts(**starts[-1]["facts"]) if "facts" in starts[-1] else None
