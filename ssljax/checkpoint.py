"""Checkpoints through Orbax: written in the background, renamed into place when whole, restored bit for bit."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from ssljax.types import Pytree, TrainState

UNMEASURED = -1e30        # JSON has no infinity


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints/<step>`."""

    def __init__(self, workdir: str, *, keep_last: int = 1, best: str = "", read_only: bool = False):
        """Opens the folder, making it if need be.

        Args:
            workdir: the run's folder, local or `gs://`.
            keep_last: how many of the newest stay.
            best: the metric whose highest value is kept as well; "" keeps none for its value.
            read_only: for looking into a run that may still be training: nothing is made, moved or deleted, its unfinished
                checkpoint least of all.
        """
        self.directory = epath.Path(workdir if "://" in workdir else os.path.abspath(workdir)) / "checkpoints"
        self._best, self._read_only = best, read_only
        self._value = (lambda metrics: metrics[best]) if best else None
        policies = [keep.LatestN(n=keep_last)]
        if best:
            policies.append(keep.BestN(get_metric_fn=self._value, n=1, keep_checkpoints_without_metrics=False))
        self._manager = self._open(keep.AnyPreservationPolicy(policies))

    def _open(self, policy: keep.PreservationPolicy) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, best_fn=self._value, read_only=self._read_only,
                                               cleanup_tmp_directories=not self._read_only, create=not self._read_only)
        self._policy = policy
        return ocp.CheckpointManager(self.directory, options=options)

    def save(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Starts writing `state`; returns once its arrays are copied from the devices. Skips a step that is already there.

        Only the metric that decides what is best goes with it; one that is not measured yet counts as the worst.
        """
        step = int(state.step)
        decisive = {self._best: metrics.get(self._best, UNMEASURED)} if self._best else None
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(state), metrics=decisive)

    def restore(self, like: TrainState) -> TrainState | None:
        """The newest readable checkpoint, laid out as `like`; None where there is none.

        A checkpoint that cannot be read is named, moved to `workdir/unreadable` (left alone if `read_only`), and the one before it
        is used.

        Args:
            like: a state, or its `jax.ShapeDtypeStruct`s with shardings.

        Raises:
            ValueError: the checkpoint is whole but belongs to another network.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._manager.restore(step, args=ocp.args.StandardRestore(like))
            except Exception as error:     # Orbax, TensorStore and the file system each raise their own
                self._refuse_other_network(step, like, error)
                self._set_aside(step, error)
        return None

    def _refuse_other_network(self, step: int, like: TrainState, error: Exception) -> None:
        """Raises if the checkpoint's tree or shapes, which Orbax keeps apart from the data, are not those of `like`."""
        try:
            saved = self._manager.item_metadata(step)
            stored = {jax.tree_util.keystr(p, simple=True, separator="/"): tuple(leaf.shape)
                      for p, leaf in jax.tree_util.tree_leaves_with_path(saved)}
        except Exception:                  # not even the description can be read: the checkpoint is broken, not foreign
            return
        wanted = {jax.tree_util.keystr(p, simple=True, separator="/"): tuple(leaf.shape)
                  for p, leaf in jax.tree_util.tree_leaves_with_path(like)}
        differ = [name for name in sorted(stored.keys() | wanted.keys()) if stored.get(name) != wanted.get(name)]
        if stored and differ:
            name = differ[0]
            raise ValueError(
                f"the checkpoint {self.directory / str(step)} is of another network: {name} is {stored.get(name, 'absent')} there and "
                f"{wanted.get(name, 'absent')} here ({len(differ)} leaves differ). Use the configuration it was made with, or another "
                "--workdir.") from error

    def _set_aside(self, step: int, error: Exception) -> None:
        folder, aside = self.directory / str(step), self.directory.parent / "unreadable"
        fate = "It stays" if self._read_only else f"It is moved to {aside}"
        logging.error("the checkpoint of step %d cannot be read (%s: %s). %s and the one before it is used.",
                      step, type(error).__name__, str(error).splitlines()[0][:200] if str(error) else "", fate)
        if self._read_only:
            return
        if jax.process_index() == 0:
            aside.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                target = aside / str(step)
                if target.exists():
                    target.rmtree()
                shutil.move(os.fspath(folder), os.fspath(target)) if "://" not in str(folder) else folder.rename(target)
        self._manager.close()
        self._manager = self._open(self._policy)

    def steps(self) -> list[int]:
        """The steps that have a whole checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def wait(self) -> None:
        """Returns when everything started is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last write and lets go of the folder."""
        self._manager.wait_until_finished()
        self._manager.close()


def load_part(workdir: str, like: Pytree, part: str) -> Pytree:
    """One branch of the newest checkpoint's state, e.g. `params/encoder`, for a run that starts from another's weights.

    Args:
        workdir: the finished run's folder.
        like: the branch as the new run has it: shapes, dtypes and shardings.
        part: the branch's path, `/`-separated.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the branch is absent or of other shapes; names the first leaf that differs.
    """
    checkpoints = Checkpoints(workdir, read_only=True)
    steps = checkpoints.steps()
    checkpoints.close()
    if not steps:
        raise FileNotFoundError(f"no checkpoint in {checkpoints.directory}: train that stage first, or correct init_from")
    # The whole tree is read as plain arrays: the optimizer state of the earlier stage is of another shape and is dropped.
    with ocp.StandardCheckpointer() as reader:
        branch = reader.restore(checkpoints.directory / str(steps[-1]) / "default")
    for name in part.split("/"):
        if name not in branch:
            raise ValueError(f"the checkpoint in {workdir} has no {part!r}: at {name!r} there are {sorted(branch)}")
        branch = branch[name]
    paths = jax.tree_util.tree_leaves_with_path(like)
    stored = dict(jax.tree_util.tree_leaves_with_path(branch))
    for path, leaf in paths:
        found = stored[path].shape if path in stored else "absent"
        if found != leaf.shape:
            raise ValueError(f"{part}{jax.tree_util.keystr(path)} is {found} in {workdir} and {leaf.shape} here: "
                             "the two stages must have the same model settings")
    return jax.tree.map(lambda leaf, new: jax.device_put(leaf.astype(new.dtype), new.sharding), branch, like)
