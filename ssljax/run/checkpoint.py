"""Orbax checkpoints: written in the background, renamed into place when complete, restored bit for bit."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import types
from collections.abc import Callable, Collection, Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from ssljax.run import digest, hosts, reading
from ssljax.types import Pytree, TrainState

UNMEASURED = -1e30  # JSON has no infinity
SHARED_BYTES = 2**20  # an array of less, per device, is written by one device


def _handler() -> ocp.PyTreeCheckpointHandler:
    """Orbax's handler of trees. Without a bound it slices every array, however small, over all devices."""
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SHARED_BYTES)
    on_host = ocp.type_handlers.NumpyHandler()
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays), (np.ndarray, on_host))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints/<step>`."""

    def __init__(
        self,
        workdir: str,
        *,
        keep_last: int = 1,
        best: str = "",
        digests: bool = True,
        read_only: bool = False,
    ):
        """Name the folder. It is created by the first `save`.

        Args:
            workdir: the run's folder, local or `gs://`.
            keep_last: how many of the newest checkpoints to keep.
            best: a metric; the checkpoint with its highest value is kept as well. "" keeps none for its
                value.
            digests: write a digest of every leaf with each checkpoint. Where there is one, it is checked.
            read_only: for reading from a run that may still be training. Nothing is created, moved or
                deleted, and an unfinished checkpoint is left as it is.
        """
        self.directory = directory_of(workdir)
        self._keep_last = keep_last
        self._best = best
        self._digests = digests
        self._read_only = read_only
        self._manager: ocp.CheckpointManager | None = None

    def _writer(self) -> ocp.CheckpointManager:
        """Orbax's manager. Once it is open, it deletes what a killed run left unfinished."""
        if self._manager is not None:
            return self._manager
        assert not self._read_only

        def value(metrics: Mapping[str, float]) -> float:
            return metrics.get(self._best, UNMEASURED)  # `best` may have been another metric earlier

        policies = [keep.LatestN(n=self._keep_last)]
        if self._best:
            policies.append(keep.BestN(get_metric_fn=value, n=1, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep.AnyPreservationPolicy(policies),
            best_fn=value if self._best else None,
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=_handler())
        return self._manager

    def save(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Start writing `state`, and return once its arrays are copied from the devices.

        A step that already has a checkpoint is skipped. Of the metrics, only the one that decides which
        checkpoint is best is stored; if it has not been measured yet, it counts as the worst value.
        """
        step = int(state.step)
        if step in self._writer().all_steps():
            return
        decisive = {self._best: metrics.get(self._best, UNMEASURED)} if self._best else None
        leaves = reading.described(state) if self._digests else None
        self._writer().save(step, args=ocp.args.PyTreeSave(state, custom_metadata=leaves), metrics=decisive)

    def restore(self, like: TrainState) -> TrainState | None:
        """The newest checkpoint that is not damaged, with the shapes, dtypes and shardings of `like`.

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

        def read(folder: epath.Path) -> TrainState:
            stored = reading.describe(folder)
            _refuse_other_network(folder, stored.shapes, digest.shapes(like))
            return reading.read_leaves(folder, like, stored.digests)

        state, damaged = reading.newest(self.directory, read)
        if not self._read_only:
            for step in damaged:
                self._set_aside(step)
            self._set_aside_without_metrics()
            self._writer()
        return state

    def weights(self, like: TrainState) -> TrainState | None:
        """The newest checkpoint that is not damaged, without its optimizer state.

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

        def read(folder: epath.Path) -> TrainState:
            stored = reading.describe(folder)
            _refuse_other_backbone(folder, stored.shapes, digest.shapes(wanted))
            tree = reading.read_leaves(folder, _in_shape(wanted, stored.shapes), stored.digests)
            return TrainState(**tree, opt_state=())

        state, _ = reading.newest(self.directory, read)
        return state

    def _set_aside_without_metrics(self) -> None:
        """Move older checkpoints away whose metric cannot be read: the manager could not be opened."""
        for step in self.steps():
            try:
                reading.read_metrics(self.directory / str(step))
            except reading.Damaged as error:
                logging.error("the checkpoint of step %d is damaged: %s", step, error)
                self._set_aside(step)

    def _set_aside(self, step: int) -> None:
        """Move a damaged checkpoint out of the way."""
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

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, in order."""
        return reading.steps(self.directory)

    def wait(self) -> None:
        """Wait until everything that was started is on disk."""
        if self._manager is not None:
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the last write and release the folder."""
        self.wait()
        if self._manager is not None:
            self._manager.close()


def directory_of(workdir: str) -> epath.Path:
    """The folder of a run's checkpoints; Orbax wants an absolute path."""
    return epath.Path(workdir if "://" in workdir else os.path.abspath(workdir)) / "checkpoints"


def load_weights(workdir: str, like: TrainState) -> TrainState:
    """Read the weights of a run's newest checkpoint; see `Checkpoints.weights`.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the checkpoint is of another network, see also `Checkpoints.restore`.
    """
    state = Checkpoints(workdir, read_only=True).weights(like)
    if state is None:
        raise FileNotFoundError(
            f"no checkpoint in {workdir}: run `ssljax train` with the same --config and --workdir first"
        )
    return state


def load_parts(
    workdir: str,
    like: Mapping[str, Pytree],
    resize: Mapping[str, Callable[[jax.Array, tuple[int, ...]], jax.Array]] = types.MappingProxyType({}),
    optional: Collection[str] = (),
) -> dict[str, Pytree]:
    """Read some branches of a run's newest checkpoint, for a run that starts from its weights.

    All come from the same checkpoint. As in `Checkpoints.restore`, it is the newest that is not damaged.

    Args:
        workdir: the folder of the finished run.
        like: path -> branch as the new run has it: shapes, dtypes and shardings; e.g. "params/encoder". A
            branch without leaves, such as the running statistics of a ViT, is returned as it is.
        resize: name of a leaf -> (stored array, wanted shape) -> array, for leaves that may differ in shape.
        optional: parts of the branches, by name, that are left out of the result where the checkpoint has
            none.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: a branch is absent or has other shapes (names the first leaf that differs); or no
            checkpoint could be read.
    """
    wanted = {part: branch for part, branch in like.items() if jax.tree.leaves(branch)}

    # Only these branches are read, because the optimizer state of the earlier stage has other shapes.
    def read(folder: epath.Path) -> dict[str, Pytree]:
        stored = reading.describe(folder)
        tree: dict = {}
        for part, branch in wanted.items():
            branch = _without_absent(branch, part, stored.shapes, optional)
            _refuse_other_branch(workdir, stored.shapes, branch, part, resizable=tuple(resize))
            *above, name = part.split("/")
            functools.reduce(lambda node, step: node.setdefault(step, {}), above, tree)[name] = branch
        found = reading.read_leaves(folder, _in_shape(tree, stored.shapes), stored.digests)
        return {
            part: functools.reduce(lambda node, step: node[step], part.split("/"), found) for part in wanted
        }

    directory = directory_of(workdir)
    branches, _ = reading.newest(directory, read)
    if branches is None:
        raise FileNotFoundError(
            f"no checkpoint in {directory}: train that run first, or correct its name in the config"
        )

    def fitted(path: tuple, leaf: jax.Array, wanted: jax.Array) -> jax.Array:
        if leaf.shape == wanted.shape:
            return leaf
        resized = resize[path[-1].key](leaf, wanted.shape)
        return jax.device_put(resized, wanted.sharding)

    return dict(like) | {
        part: jax.tree_util.tree_map_with_path(fitted, branch, _only(like[part], branch))
        for part, branch in branches.items()
    }


def _without_absent(
    branch: Pytree, part: str, stored: Mapping[str, tuple[int, ...]], optional: Collection[str]
) -> Pytree:
    """A branch without those of its optional parts that a checkpoint does not have."""
    absent = {name for name in optional if not any(leaf.startswith(f"{part}/{name}/") for leaf in stored)}
    return {name: below for name, below in branch.items() if name not in absent} if absent else branch


def _only(branch: Pytree, names: Pytree) -> Pytree:
    """The parts of a branch that are in another one."""
    return {name: branch[name] for name in names} if isinstance(branch, dict) else branch


def _refuse_other_network(
    folder: epath.Path, stored: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise an error if the tree or the shapes of a checkpoint are not those of the network."""
    names = sorted(stored.keys() | wanted.keys())
    differ = [name for name in names if stored.get(name) != wanted.get(name)]
    if differ:
        there = stored.get(differ[0], "absent")
        here = wanted.get(differ[0], "absent")
        raise _another(folder, differ[0], there, here, f" ({len(differ)} leaves differ)")


def _refuse_other_backbone(
    folder: epath.Path, stored: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise an error if a leaf is absent, or if a leaf of the backbone has another shape."""
    backbone = ("params/encoder/", "model_state/encoder/")
    for name, shape in wanted.items():
        found = stored.get(name, "absent")
        differs = found != shape and name.startswith(backbone)
        if found == "absent" or differs:
            raise _another(folder, name, found, shape)


def _another(
    folder: epath.Path,
    name: str,
    found: tuple[int, ...] | str,
    shape: tuple[int, ...] | str,
    count: str = "",
) -> reading.Mismatch:
    return reading.Mismatch(
        f"the checkpoint {folder} is of another network: {name} is {found} there and {shape} here{count}. "
        "Use the config that it was trained with, or another --workdir."
    )


def _refuse_other_branch(
    workdir: str, stored: Mapping[str, tuple[int, ...]], like: Pytree, part: str, resizable: tuple[str, ...]
) -> None:
    """Raise an error if a branch is absent or a leaf of it has another shape and cannot be resized."""
    if not any(name.startswith(f"{part}/") for name in stored):
        branches = sorted({"/".join(name.split("/")[:2]) for name in stored})
        raise reading.Mismatch(
            f"the checkpoint in {workdir} has no {part!r}, only {', '.join(branches)}: name one of these"
        )
    for name, shape in digest.shapes(like).items():
        found = stored.get(f"{part}/{name}", "absent")
        may_differ = found != "absent" and name.split("/")[-1] in resizable
        if found != shape and not may_differ:
            raise reading.Mismatch(
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
