"""How far a refresh before the first step has come: the next start goes on there, and repeats nothing."""

from __future__ import annotations

import hashlib
import json
import time

import jax
import jax.numpy as jnp
from etils import epath

from ssljax.run import digest
from ssljax.run.checkpoint import Checkpoints
from ssljax.run.folder import RunFolder, duration
from ssljax.types import Pytree, TrainState


class Progress:
    """What has been found so far, in `workdir/refresh/<of what>/checkpoints/<images>`.

    It is written every `config.checkpoint.every_steps` batches, and when the run is asked to stop. It is used
    only for the same images and weights. Once the first checkpoint of the run holds it all, it is removed.
    """

    def __init__(self, folder: RunFolder, every: int, everywhere: jax.sharding.Sharding):
        """Nothing is read or written yet.

        Args:
            folder: of the run.
            every: so many batches are between two checkpoints.
            everywhere: a copy on each device of the run.
        """
        self._folder = folder
        self._every = every
        self._everywhere = everywhere
        self._checkpoints: Checkpoints | None = None
        self._batches = 0
        self._first: tuple[float, int] | None = None  # when the first batch was done; its images

    def resumed(self, found: Pytree, of: Pytree) -> tuple[Pytree, int]:
        """What an interrupted refresh has found, and from how many images.

        Args:
            found: nothing yet, in its shapes and shardings.
            of: arrays on which the findings depend, such as the ids of the images and the weights.
        """
        name = hashlib.sha256(json.dumps(digest.digests(of)).encode()).hexdigest()[:16]
        self._checkpoints = Checkpoints(str(_directory(self._folder) / name))
        stored = self._checkpoints.restore(self._state(found, 0))
        if stored is None:
            return found, 0
        return stored.extra, int(stored.step)

    def reached(self, found: Pytree, images: int, total: int) -> None:
        """Say how far it is and write it down, if it is time to. Call this after each batch, on every host.

        Args:
            found: so far.
            images: how many were looked at.
            total: how many there are.

        Raises:
            SystemExit: (code 0) the run was asked to stop, and all that was found is on disk.
        """
        assert self._checkpoints is not None, "`resumed` comes first"
        self._folder.renew()
        self._batches += 1
        if self._first is None:
            self._first = (time.monotonic(), images)  # it also compiles
        stop = self._folder.stop_asked()
        if not stop and self._batches % self._every:
            return

        self._checkpoints.save(self._state(found, images), {})
        since, before = self._first
        each = (time.monotonic() - since) / max(images - before, 1)
        self._folder.say(
            f"refresh: {images:,} of {total:,} images, about {duration(each * (total - images))} left"
        )
        if stop:
            self._checkpoints.close()
            raise SystemExit(0)

    def close(self) -> None:
        """Wait until everything is on disk."""
        if self._checkpoints is not None:
            self._checkpoints.close()

    def _state(self, found: Pytree, images: int) -> TrainState:
        """As a state of so many steps, which is what a checkpoint holds."""
        step = jax.device_put(jnp.int32(images), self._everywhere)
        return TrainState(step=step, params=(), model_state=(), opt_state=(), extra=found)


def forget(folder: RunFolder) -> None:
    """Remove what refreshes have found, once a checkpoint of the run itself is complete, which has it too."""
    directory = _directory(folder)
    if not directory.exists():
        return
    folder.wait()
    if jax.process_index() == 0:
        directory.rmtree()


def _directory(folder: RunFolder) -> epath.Path:
    return folder.path / "refresh"
