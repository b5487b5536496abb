"""The newest checkpoint restores the whole state bit for bit. (Killed and damaged runs: test_resume.py.)"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from ssljax import sharding
from ssljax.run.checkpoint import Checkpoints
from ssljax.types import TrainState


def state_at(step: int) -> TrainState:
    keys = iter(jax.random.split(jax.random.key(step), 5))
    params = {
        "encoder": {"kernel": jax.random.normal(next(keys), (3, 2))},
        "head": {"bias": jax.random.normal(next(keys), (2,))},
    }
    tx = optax.trace(decay=0.9)
    momentum = jax.tree.map(lambda p: jax.random.normal(next(keys), p.shape), tx.init(params))
    statistics = {"mean": jax.random.normal(next(keys), (2,))}
    return TrainState(
        step=jnp.int32(step), params=params, model_state=statistics, opt_state=momentum, extra=()
    )


def shapes() -> TrainState:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state_at(0)
    )


def test_reading_a_live_run_changes_nothing(tmp_path):
    """Evaluation reads while training writes: an unfinished checkpoint stays, a damaged one is skipped."""
    checkpoints = Checkpoints(str(tmp_path), keep_last=3)
    for step in (1, 2):
        checkpoints.save(state_at(step), {})
    checkpoints.close()
    for file in (tmp_path / "checkpoints" / "2").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    unfinished = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp"
    unfinished.mkdir()
    before = sorted(tmp_path.rglob("*"))
    like = shapes()
    reader = Checkpoints(str(tmp_path), read_only=True)
    jax.tree.map(np.testing.assert_array_equal, reader.restore(like), state_at(1))
    reader.close()
    assert sorted(tmp_path.rglob("*")) == before
    nowhere = Checkpoints(str(tmp_path / "nowhere"), read_only=True)
    assert nowhere.restore(like) is None and not (tmp_path / "nowhere").exists()


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied: _METADATA"),
        ValueError('PERMISSION_DENIED: Error opening "zarr" driver'),  # what TensorStore raises for the same
        OSError(5, "Input/output error"),
        MemoryError(),
    ],
    ids=lambda error: f"{type(error).__name__}",
)
def test_a_storage_that_cannot_be_read_stops_and_moves_nothing(tmp_path, monkeypatch, error):
    checkpoints = Checkpoints(str(tmp_path), keep_last=2)
    for step in (1, 2):
        checkpoints.save(state_at(step), {})
    checkpoints.wait()
    before = everything(tmp_path)

    def refused(*_, **__):
        raise error

    monkeypatch.setattr(ocp.PyTreeCheckpointer, "restore", refused)
    with pytest.raises(
        ValueError, match="could not be read now .*nothing was moved.*the same command goes on"
    ):
        checkpoints.restore(shapes())
    checkpoints.close()
    assert everything(tmp_path) == before


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), keep_last=2)
    for step in (1, 2):
        checkpoints.save(state_at(step), {})
    checkpoints.wait()
    for file in (tmp_path / "checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    before = everything(tmp_path)
    for look in (checkpoints.restore, checkpoints.weights):
        with pytest.raises(ValueError, match=r"none of the checkpoints .* can be read \(steps 1, 2\)"):
            look(shapes())
    checkpoints.close()
    assert everything(tmp_path) == before


def test_the_newest_state_is_restored_and_older_ones_are_dropped_unless_best(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), keep_last=2, best="knn")
    for step, knn in ((1, 10.0), (2, 30.0), (3, 20.0), (4, 15.0)):
        checkpoints.save(state_at(step), {"knn": knn})
    checkpoints.close()
    checkpoints = Checkpoints(str(tmp_path), keep_last=2, best="knn")
    assert checkpoints.steps() == [2, 3, 4]
    restored = checkpoints.restore(shapes())
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, restored, state_at(4))


@pytest.mark.slow
def test_leaves_on_the_host_and_large_and_small_arrays_on_eight_devices_are_kept(tmp_path):
    """4.5 M numbers are sliced over the devices; three are written by one; a NumPy array is kept too."""
    state = state_at(4)
    everywhere = sharding.whole(sharding.make_mesh(8))
    large = jnp.arange(1_500_000, dtype=jnp.float32).reshape(8, -1)
    extra = {
        "large": jax.device_put(jnp.concatenate([large, -large, 2 * large]), everywhere),
        "small": jax.device_put(jnp.arange(3.0), everywhere),
        "host": np.arange(5, dtype=np.float32),
    }
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(state.replace(extra=extra), {})
    checkpoints.close()
    place = lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=everywhere)
    found = Checkpoints(str(tmp_path)).restore(jax.tree.map(place, state.replace(extra=extra)))
    for name, value in extra.items():
        np.testing.assert_array_equal(found.extra[name], value, err_msg=name)
