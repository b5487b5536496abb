"""Orbax checkpoints: written in the background, renamed into place when complete, restored bit for bit."""

from __future__ import annotations

import contextlib
import errno
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

# What TensorStore's messages begin with when a storage cannot be read.
STORAGE = ("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
STORAGE_ERRNO = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints/<step>`."""

    def __init__(self, workdir: str, *, keep_last: int = 1, best: str = "", read_only: bool = False):
        """Open the folder, creating it if necessary.

        Args:
            workdir: the run's folder, local or `gs://`.
            keep_last: how many of the newest checkpoints to keep.
            best: a metric; the checkpoint with its highest value is kept as well. "" keeps none for its
                value.
            read_only: for reading from a run that may still be training. Nothing is created, moved or
                deleted, and an unfinished checkpoint is left as it is.
        """
        folder = workdir if "://" in workdir else os.path.abspath(workdir)
        self.directory = epath.Path(folder) / "checkpoints"
        self._best = best
        self._read_only = read_only
        self._value = (lambda metrics: metrics[best]) if best else None

        policies = [keep.LatestN(n=keep_last)]
        if best:
            highest = keep.BestN(get_metric_fn=self._value, n=1, keep_checkpoints_without_metrics=False)
            policies.append(highest)
        self._manager = self._open(keep.AnyPreservationPolicy(policies))

    def _open(self, policy: keep.PreservationPolicy) -> ocp.CheckpointManager:
        self._policy = policy
        verbosity = logging.get_verbosity()
        if self._read_only:
            logging.set_verbosity(logging.ERROR)  # Orbax would warn that it does not write
        try:
            options = ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=self._value,
                read_only=self._read_only,
                cleanup_tmp_directories=not self._read_only,
                create=not self._read_only,
            )
            return ocp.CheckpointManager(self.directory, options=options)
        finally:
            logging.set_verbosity(verbosity)

    def save(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Start writing `state`, and return once its arrays are copied from the devices.

        A step that already has a checkpoint is skipped. Of the metrics, only the one that decides which
        checkpoint is best is stored; if it has not been measured yet, it counts as the worst value.
        """
        step = int(state.step)
        decisive = {self._best: metrics.get(self._best, UNMEASURED)} if self._best else None
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(state), metrics=decisive)

    def restore(self, like: TrainState) -> TrainState | None:
        """The newest readable checkpoint, with the shapes, dtypes and shardings of `like`.

        A damaged checkpoint is reported, and the one before it is used. The damaged ones are then moved to
        `workdir/unreadable` (left where they are if `read_only`).

        Args:
            like: a state, or its `jax.ShapeDtypeStruct`s with shardings.

        Returns:
            The state, or None if there is no checkpoint.

        Raises:
            ValueError: the checkpoint is intact but belongs to another network; or every checkpoint is
                damaged; or the storage could not be read, which says nothing about the checkpoint. Nothing
                is moved then.
        """
        damaged: list[int] = []
        for step in self._newest_first():
            try:
                state = self._manager.restore(step, args=ocp.args.StandardRestore(like))
            except Exception as error:  # Orbax, TensorStore and the file system each raise their own
                self._refuse_other_network(step, like, error)
                self._report(step, error)
                damaged.append(step)
                continue
            for other in damaged:
                self._set_aside(other)
            return state
        self._refuse_damaged(damaged)
        return None

    def weights(self, like: TrainState) -> TrainState | None:
        """The newest readable checkpoint without its optimizer state.

        The backbone must be that of `like`. Every other leaf has the shape that it has in the checkpoint,
        because a head or labels may belong to other data.

        Args:
            like: `jax.ShapeDtypeStruct`s with shardings; its `opt_state` is ignored.

        Returns:
            The state with () for its `opt_state`, or None if there is no checkpoint.

        Raises:
            ValueError: as for `restore`.
        """
        wanted = {name: getattr(like, name) for name in ("step", "params", "model_state", "extra")}
        damaged: list[int] = []
        for step in self._newest_first():
            folder = self.directory / str(step) / "default"
            try:
                stored = _stored(folder)
            except Exception as error:  # as in `restore`
                self._report(step, error)
                damaged.append(step)
                continue
            self._refuse_other_backbone(step, stored, wanted)
            try:
                return TrainState(**_read(folder, _in_shape(wanted, stored)), opt_state=())
            except Exception as error:  # as in `restore`
                self._report(step, error)
                damaged.append(step)
        self._refuse_damaged(damaged)
        return None

    def _refuse_other_backbone(
        self, step: int, stored: Mapping[str, tuple[int, ...]], wanted: Pytree
    ) -> None:
        """Raise an error if a leaf is absent, or if a leaf of the backbone has another shape."""
        backbone = ("params/encoder/", "model_state/encoder/")
        for name, shape in _shapes(wanted).items():
            found = stored.get(name, "absent")
            differs = found != shape and name.startswith(backbone)
            if found == "absent" or differs:
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
            f"the checkpoint {self.directory / str(step)} is of another network: "
            f"{name} is {found} there and {shape} here{count}. "
            "Use the config that it was trained with, or another --workdir."
        )

    def _refuse_other_network(self, step: int, like: TrainState, error: Exception) -> None:
        """Raise an error if the tree or the shapes of the checkpoint are not those of `like`.

        Orbax keeps both apart from the data, so they may be readable when the data are not.
        """
        try:
            stored = _shapes(self._manager.item_metadata(step))
        except Exception:  # not even the description can be read: the checkpoint is damaged, not another's
            return
        wanted = _shapes(like)
        names = sorted(stored.keys() | wanted.keys())
        differ = [name for name in names if stored.get(name) != wanted.get(name)]
        if stored and differ:
            name = differ[0]
            there = stored.get(name, "absent")
            here = wanted.get(name, "absent")
            count = f" ({len(differ)} leaves differ)"
            raise ValueError(self._another(step, name, there, here, count)) from error

    def _report(self, step: int, error: Exception) -> None:
        """Log that a checkpoint is damaged.

        Raises:
            ValueError: the error is one of the storage, and the checkpoint may well be intact.
        """
        said = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
        if of_storage(error):
            raise ValueError(
                f"the checkpoint {self.directory / str(step)} could not be read now ({said}). That says "
                "nothing about what is in it, so nothing was moved or begun anew. Look at permissions, "
                "credentials, memory and the disk; then the same command goes on"
            ) from error
        logging.error(
            "the checkpoint of step %d cannot be read (%s). The one before it is tried.",
            step,
            said,
        )

    def _refuse_damaged(self, steps: list[int]) -> None:
        """Raise an error if there are checkpoints and all are damaged: a run does not begin anew then."""
        if steps:
            raise ValueError(
                f"none of the checkpoints in {self.directory} can be read (steps "
                f"{', '.join(map(str, sorted(steps)))}). Put back a copy of one of them, or begin anew with "
                "another --workdir"
            )

    def _set_aside(self, step: int) -> None:
        """Move a damaged checkpoint out of the way, unless `read_only`."""
        if self._read_only:
            return
        folder = self.directory / str(step)
        aside = self.directory.parent / "unreadable"
        logging.error("the checkpoint of step %d is moved to %s", step, aside)

        hosts.meet(f"{folder} cannot be read")  # by any host; if only some fail, the run fails
        if jax.process_index() == 0:
            aside.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                target = aside / str(step)
                if target.exists():
                    target.rmtree()
                if "://" in str(folder):
                    folder.rename(target)
                else:
                    shutil.move(os.fspath(folder), os.fspath(target))
        hosts.meet(f"{folder} is set aside")
        self._manager.close()
        self._manager = self._open(self._policy)

    def _newest_first(self) -> list[int]:
        return sorted(self._manager.all_steps(), reverse=True)

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def wait(self) -> None:
        """Wait until everything that was started is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the last write and release the folder."""
        self._manager.wait_until_finished()
        self._manager.close()


def of_storage(error: Exception) -> bool:
    """Whether an error is one of permissions, connections, memory or the disk, not of what a file holds."""
    if isinstance(error, (PermissionError, MemoryError, ConnectionError, TimeoutError)):
        return True
    if isinstance(error, OSError) and error.errno in STORAGE_ERRNO:
        return True
    return any(word in str(error) for word in STORAGE)


def load_weights(workdir: str, like: TrainState) -> TrainState:
    """Read the weights of a run's newest checkpoint; see `Checkpoints.weights`.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the checkpoint is of another network.
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
    """Read one branch of a run's newest checkpoint, for a run that starts from its weights.

    Args:
        workdir: the folder of the finished run.
        like: the branch as the new run has it: shapes, dtypes and shardings.
        part: the path of the branch, e.g. "params/encoder". A branch without leaves, such as the running
            statistics of a ViT, is returned as it is.
        resize: name of a leaf -> (stored array, wanted shape) -> array, for leaves that may differ in shape.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the branch is absent or has other shapes; names the first leaf that differs.
    """
    checkpoints = Checkpoints(workdir, read_only=True)
    steps = checkpoints.steps()
    checkpoints.close()
    if not steps:
        raise FileNotFoundError(
            f"no checkpoint in {checkpoints.directory}: train that run first, "
            "or correct its name in the config"
        )
    if not jax.tree.leaves(like):
        return like

    # Only this branch is read, because the optimizer state of the earlier stage has other shapes.
    folder = checkpoints.directory / str(steps[-1]) / "default"
    stored = _stored(folder)
    _refuse_other_branch(workdir, stored, like, part, resizable=tuple(resize))
    tree = like
    for name in reversed(part.split("/")):
        tree = {name: tree}
    branch = _read(folder, _in_shape(tree, stored))
    for name in part.split("/"):
        branch = branch[name]

    def fitted(path: tuple, leaf: jax.Array, wanted: jax.Array) -> jax.Array:
        if leaf.shape == wanted.shape:
            return leaf
        resized = resize[path[-1].key](leaf, wanted.shape)
        return jax.device_put(resized, wanted.sharding)

    return jax.tree_util.tree_map_with_path(fitted, branch, like)


def _refuse_other_branch(
    workdir: str, stored: Mapping[str, tuple[int, ...]], like: Pytree, part: str, resizable: tuple[str, ...]
) -> None:
    """Raise an error if a branch is absent or a leaf of it has another shape and cannot be resized."""
    if not any(name.startswith(f"{part}/") for name in stored):
        branches = sorted({"/".join(name.split("/")[:2]) for name in stored})
        raise ValueError(
            f"the checkpoint in {workdir} has no {part!r}, only {', '.join(branches)}: name one of these"
        )
    for name, shape in _shapes(like).items():
        found = stored.get(f"{part}/{name}", "absent")
        may_differ = found != "absent" and name.split("/")[-1] in resizable
        if found != shape and not may_differ:
            raise ValueError(
                f"{part}/{name} is {found} in {workdir} and {shape} here: "
                "the two runs must have the same model settings"
            )


def _in_shape(tree: Pytree, stored: Mapping[str, tuple[int, ...]]) -> Pytree:
    """The tree with the shapes of a checkpoint. A leaf whose shape changes is replicated on all devices."""

    def one(path: tuple, leaf: jax.Array) -> jax.Array | jax.ShapeDtypeStruct:
        shape = stored[jax.tree_util.keystr(path, simple=True, separator="/")]
        if shape == tuple(leaf.shape):
            return leaf
        assert isinstance(leaf.sharding, NamedSharding)
        replicated = NamedSharding(leaf.sharding.mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=replicated)

    return jax.tree_util.tree_map_with_path(one, tree)


def _read(folder: epath.Path, like: Pytree) -> Pytree:
    """The leaves of `like` from a checkpoint that may hold more."""
    each = ocp.checkpoint_utils.construct_restore_args(like)
    arguments = ocp.args.PyTreeRestore(like, restore_args=each, partial_restore=True)
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore(folder, args=arguments)


def _stored(folder: epath.Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a checkpoint's leaves, without reading them."""
    return _shapes(ocp.PyTreeCheckpointHandler().metadata(folder).tree)


def _shapes(tree: Pytree) -> dict[str, tuple[int, ...]]:
    """The path of each leaf, with `/` between its parts, and its shape."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
