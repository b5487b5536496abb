"""Checkpoints through Orbax: written in the background, renamed into place when whole, restored bit for bit."""

from __future__ import annotations

import contextlib
import os
import shutil
import types
from collections.abc import Callable, Mapping

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from ssljax.run import hosts
from ssljax.types import Pytree, TrainState

UNMEASURED = -1e30  # JSON has no infinity


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
            policies.append(
                keep.BestN(get_metric_fn=self._value, n=1, keep_checkpoints_without_metrics=False)
            )
        self._manager = self._open(keep.AnyPreservationPolicy(policies))

    def _open(self, policy: keep.PreservationPolicy) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=self._value,
            read_only=self._read_only,
            cleanup_tmp_directories=not self._read_only,
            create=not self._read_only,
        )
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
        for step in self._newest_first():
            try:
                return self._manager.restore(step, args=ocp.args.StandardRestore(like))
            except Exception as error:  # Orbax, TensorStore and the file system each raise their own
                self._refuse_other_network(step, like, error)
                self._set_aside(step, error)
        return None

    def weights(self, like: TrainState) -> TrainState | None:
        """The networks and the method's own state of the newest readable checkpoint, without the optimizer's; None where there is none.

        The backbone must be the one of `like`; every other leaf comes in the shape that the checkpoint has: a head or labels may belong
        to other data.

        Args:
            like: `jax.ShapeDtypeStruct`s with shardings; its `opt_state` is not looked at and comes back as ().

        Raises:
            ValueError: the checkpoint is of another network.
        """
        wanted = {name: getattr(like, name) for name in ("step", "params", "model_state", "extra")}
        for step in self._newest_first():
            try:
                folder = self.directory / str(step) / "default"
                stored = _stored(folder)
            except Exception as error:  # as in `restore`
                self._set_aside(step, error)
                continue
            self._refuse_other_backbone(step, stored, wanted)
            try:
                return TrainState(**_read(folder, _in_shape(wanted, stored)), opt_state=())
            except Exception as error:  # as in `restore`
                self._set_aside(step, error)
        return None

    def _refuse_other_backbone(
        self, step: int, stored: Mapping[str, tuple[int, ...]], wanted: Pytree
    ) -> None:
        """Raises where a leaf is absent, or one of the backbone has another shape."""
        for name, shape in _shapes(wanted).items():
            found = stored.get(name, "absent")
            if found == "absent" or (
                found != shape and name.startswith(("params/encoder/", "model_state/encoder/"))
            ):
                raise ValueError(self._another(step, name, found, shape))

    def _another(
        self,
        step: int,
        name: str,
        found: tuple[int, ...] | str,
        shape: tuple[int, ...] | str,
        count: str = "",
    ) -> str:
        return (
            f"the checkpoint {self.directory / str(step)} is of another network: {name} is {found} there and {shape} here{count}. "
            "Use the configuration it was made with, or another --workdir."
        )

    def _refuse_other_network(self, step: int, like: TrainState, error: Exception) -> None:
        """Raises if the checkpoint's tree or shapes, which Orbax keeps apart from the data, are not those of `like`."""
        try:
            stored = _shapes(self._manager.item_metadata(step))
        except Exception:  # not even the description can be read: the checkpoint is broken, not foreign
            return
        wanted = _shapes(like)
        differ = [
            name for name in sorted(stored.keys() | wanted.keys()) if stored.get(name) != wanted.get(name)
        ]
        if stored and differ:
            name = differ[0]
            count = f" ({len(differ)} leaves differ)"
            raise ValueError(
                self._another(step, name, stored.get(name, "absent"), wanted.get(name, "absent"), count)
            ) from error

    def _set_aside(self, step: int, error: Exception) -> None:
        folder, aside = self.directory / str(step), self.directory.parent / "unreadable"
        fate = "It stays" if self._read_only else f"It is moved to {aside}"
        logging.error(
            "the checkpoint of step %d cannot be read (%s: %s). %s and the one before it is used.",
            step,
            type(error).__name__,
            str(error).splitlines()[0][:200] if str(error) else "",
            fate,
        )
        if self._read_only:
            return
        hosts.meet(f"{folder} cannot be read")  # by any host; if only some fail, the run fails
        if jax.process_index() == 0:
            aside.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                target = aside / str(step)
                if target.exists():
                    target.rmtree()
                shutil.move(os.fspath(folder), os.fspath(target)) if "://" not in str(
                    folder
                ) else folder.rename(target)
        hosts.meet(f"{folder} is set aside")
        self._manager.close()
        self._manager = self._open(self._policy)

    def _newest_first(self) -> list[int]:
        return sorted(self._manager.all_steps(), reverse=True)

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


def load_weights(workdir: str, like: TrainState) -> TrainState:
    """See `Checkpoints.weights`.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is of another network.
    """
    checkpoints = Checkpoints(workdir, read_only=True)
    state = checkpoints.weights(like)
    checkpoints.close()
    if state is None:
        raise FileNotFoundError(
            f"no checkpoint in {workdir}: run `ssljax train` with the same --config and --workdir first"
        )
    return state


def load_part(
    workdir: str,
    like: Pytree,
    part: str,
    resize: Mapping[str, Callable[[jax.Array, tuple[int, ...]], jax.Array]] = types.MappingProxyType({}),
) -> Pytree:
    """One branch of the newest checkpoint's state, e.g. `params/encoder`, for a run that starts from another's weights.

    Args:
        workdir: the finished run's folder.
        like: the branch as the new run has it: shapes, dtypes and shardings.
        part: the branch's path, `/`-separated; a branch without leaves, a ViT's running statistics, comes back as it is.
        resize: name of a leaf -> (stored array, wanted shape) -> array, for leaves that may differ in shape.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the branch is absent or of other shapes; names the first leaf that differs.
    """
    checkpoints = Checkpoints(workdir, read_only=True)
    steps = checkpoints.steps()
    checkpoints.close()
    if not steps:
        raise FileNotFoundError(
            f"no checkpoint in {checkpoints.directory}: train that run first, or correct its name in the config"
        )
    if not jax.tree.leaves(like):
        return like
    # Only this branch is read: the optimizer state of the earlier stage is of another shape.
    folder = checkpoints.directory / str(steps[-1]) / "default"
    stored = _stored(folder)
    if not any(name.startswith(f"{part}/") for name in stored):
        branches = sorted({"/".join(name.split("/")[:2]) for name in stored})
        raise ValueError(f"the checkpoint in {workdir} has no {part!r}, but {', '.join(branches)}")
    for name, shape in _shapes(like).items():
        if (found := stored.get(f"{part}/{name}", "absent")) != shape and (
            found == "absent" or name.split("/")[-1] not in resize
        ):
            raise ValueError(
                f"{part}/{name} is {found} in {workdir} and {shape} here: the two runs must have the same model settings"
            )

    tree = like
    for name in reversed(part.split("/")):
        tree = {name: tree}
    branch = _read(folder, _in_shape(tree, stored))
    for name in part.split("/"):
        branch = branch[name]

    def fitted(path: tuple, leaf: jax.Array, place: jax.Array) -> jax.Array:
        same = leaf.shape == place.shape
        return leaf if same else jax.device_put(resize[path[-1].key](leaf, place.shape), place.sharding)

    return jax.tree_util.tree_map_with_path(fitted, branch, like)


def _in_shape(tree: Pytree, stored: Mapping[str, tuple[int, ...]]) -> Pytree:
    """The tree with the shapes that a checkpoint has; a leaf of another shape is whole on each device."""

    def one(path: tuple, leaf: jax.Array) -> jax.Array | jax.ShapeDtypeStruct:
        shape = stored[jax.tree_util.keystr(path, simple=True, separator="/")]
        if shape == tuple(leaf.shape):
            return leaf
        return jax.ShapeDtypeStruct(
            shape, leaf.dtype, sharding=NamedSharding(leaf.sharding.mesh, PartitionSpec())
        )

    return jax.tree_util.tree_map_with_path(one, tree)


def _read(folder: epath.Path, like: Pytree) -> Pytree:
    """The leaves of `like` out of a checkpoint that may hold more."""
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore(
            folder,
            args=ocp.args.PyTreeRestore(
                like, restore_args=ocp.checkpoint_utils.construct_restore_args(like), partial_restore=True
            ),
        )


def _stored(folder: epath.Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a checkpoint's leaves, without reading them."""
    return _shapes(ocp.PyTreeCheckpointHandler().metadata(folder).tree)


def _shapes(tree: Pytree) -> dict[str, tuple[int, ...]]:
    """The shape of each leaf by its path, `/`-separated."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
