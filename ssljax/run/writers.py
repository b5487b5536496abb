"""Where the log of a run goes beside metrics.jsonl: to TensorBoard, and with `--log` to wandb and MLflow.

wandb and MLflow are configured by their own environment variables, e.g. WANDB_MODE=offline, WANDB_PROJECT,
MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME. The id of a run is kept in loggers.json of its folder, so a
run that is resumed goes on in the same place.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from ssljax.config import flat
from ssljax.data.crops import tensorflow
from ssljax.run import files

EXPERIMENT = "ssljax"  # the project of wandb and the experiment of MLflow, unless the environment says other


class Writer(Protocol):
    """Takes what a run logs."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log finite numbers after this many updates."""

    def close(self, failed: bool) -> None:
        """Write what is left. `failed`: an error ended the run."""


class TensorBoard:
    """The event files of a run, written by clu."""

    def __init__(self, folder: epath.Path):
        """Import TensorFlow, with the accelerators hidden from it, and begin a file in folder/tensorboard."""
        tensorflow()
        from clu import metric_writers

        self._writer = metric_writers.SummaryWriter(str(folder / "tensorboard"))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Writer`."""
        self._writer.write_scalars(step, dict(values))

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Log pictures, uint8 [H, W, 3]."""
        self._writer.write_images(step, {name: picture[None] for name, picture in pictures.items()})

    def close(self, failed: bool = False) -> None:
        """See `Writer`."""
        self._writer.flush()
        self._writer.close()


class Wandb:
    """A run of Weights & Biases."""

    def __init__(self, folder: epath.Path, config: ConfigDict):
        """Begin the run of a folder, or go on with it."""
        import wandb

        name, _ = remembered(folder, "wandb", lambda: secrets.token_hex(4))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", EXPERIMENT),
            name=title(folder),
            id=name,
            resume="allow",
            dir=None if "://" in str(folder) else str(folder),
            config=flat(config),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Writer`. The steps that a resumed run repeats are known to wandb, which leaves them out."""
        self._run.log(dict(values), step=step)

    def close(self, failed: bool) -> None:
        """See `Writer`."""
        self._run.finish(exit_code=int(failed))


class Mlflow:
    """A run of MLflow."""

    def __init__(self, folder: epath.Path, config: ConfigDict):
        """Begin the run of a folder, or go on with it."""
        import mlflow

        self._client = mlflow.MlflowClient()
        wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self._client.get_experiment_by_name(wanted)
        experiment = self._client.create_experiment(wanted) if found is None else found.experiment_id

        def begin() -> str:
            return str(self._client.create_run(experiment, run_name=title(folder)).info.run_id)

        self._id, self._resumed = remembered(folder, "mlflow", begin)
        self._last: dict[str, int] = {}  # metric -> the last step that MLflow knew when the run was resumed
        if self._resumed:
            self._client.update_run(self._id, status="RUNNING")
            return
        for key, value in flat(config).items():
            self._client.log_param(self._id, key, str(value)[:5000])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Writer`. The steps that a resumed run repeats are left out: their numbers are the same."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = [Metric(key, value, now, step) for key, value in values.items() if step > self._known_step(key)]
        self._client.log_batch(self._id, metrics=new)

    def _known_step(self, key: str) -> int:
        if not self._resumed:
            return -1
        if key not in self._last:
            history = self._client.get_metric_history(self._id, key)
            self._last[key] = max((point.step for point in history), default=-1)
        return self._last[key]

    def close(self, failed: bool) -> None:
        """See `Writer`."""
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


WRITERS: dict[str, Callable[[epath.Path, ConfigDict], Writer]] = {"wandb": Wandb, "mlflow": Mlflow}


def asked(text: str) -> tuple[str, ...]:
    """The loggers that `--log` names.

    Args:
        text: words between commas.

    Raises:
        ValueError: a word names no logger.
        ImportError: the package of one is not installed; says how to install it.
    """
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for word in words:
        if word not in WRITERS:
            near = difflib.get_close_matches(word, WRITERS, 1, 0.4)
            guess = f", did you mean {near[0]!r}" if near else ""
            raise ValueError(
                f"--log: {word!r} is unknown{guess}; valid: {', '.join(WRITERS)}. metrics.jsonl and "
                "TensorBoard's events are written in any case"
            )
        if importlib.util.find_spec(word) is None:
            raise ImportError(f"--log {word}: {word} is not installed: pip install 'ssljax[{word}]'")
    return words


def opened(name: str, folder: epath.Path, config: ConfigDict) -> Writer:
    """Begin or go on with a run in a logger.

    Raises:
        ValueError: the logger does not, e.g. because nobody is logged in.
    """
    try:
        return WRITERS[name](folder, config)
    except Exception as error:  # of any class of the package
        offline = {"wandb": "WANDB_MODE=offline", "mlflow": "MLFLOW_TRACKING_URI=sqlite:///PATH.db"}.get(
            name, ""
        )
        raise ValueError(f"--log {name}: {error}. Without a connection: {offline}") from error


def remembered(folder: epath.Path, logger: str, begin: Callable[[], str]) -> tuple[str, bool]:
    """The id of a folder's run in a logger, and whether it was there before."""
    file = folder / "loggers.json"
    way_out = "Delete it: the loggers then begin new runs"
    known = files.read_object(file, way_out) if file.exists() else {}
    if logger in known:
        return known[logger], True
    known[logger] = begin()
    files.replace(file, json.dumps(known))
    return known[logger], False


def title(folder: epath.Path) -> str:
    """A run's name in a logger: the last two parts of its path, e.g. digits/pretrain."""
    return "/".join(str(folder).rstrip("/").split("/")[-2:])
