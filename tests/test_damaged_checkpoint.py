"""Damage in a checkpoint is noticed, the checkpoint before it is used, and a storage error is no damage."""

import json
import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs import simclr
from ssljax import train
from ssljax.config import put
from ssljax.data import sources
from ssljax.program import build
from ssljax.run import digest, monitor, reading
from ssljax.run.checkpoint import Checkpoints, load_parts
from ssljax.types import TrainState
from tests import test_checkpoint

STEPS = (1, 2, 3)


def state_at(step: int) -> TrainState:
    """With leaves of some kB. TensorStore has checksums of its own, but only for smaller ones."""
    state = test_checkpoint.state_at(step)
    kernel = jax.random.normal(jax.random.key(10 + step), (64, 32))
    encoder = {"kernel": kernel, "bias": jnp.zeros((2000,))}
    return state.replace(params={"encoder": encoder, "head": state.params["head"]})


def shapes() -> TrainState:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state_at(0)
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run's folder with three checkpoints, whose metric grows."""
    folder = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(str(folder), keep_last=3, best="knn")
    for step in STEPS:
        checkpoints.save(state_at(step), {"knn": float(step)})
    checkpoints.close()
    return folder


@pytest.fixture
def copy(run, tmp_path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def restored(folder: Path) -> TrainState:
    return Checkpoints(str(folder), read_only=True).restore(shapes())


def same(a: TrainState, b: TrainState) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def spoil(folder: Path, step: int, leaf: str) -> None:
    """Make a leaf differ from its digest, by writing another digest."""
    file = folder / "checkpoints" / str(step) / "default" / "_METADATA"
    written = json.loads(file.read_text())
    written["custom_metadata"]["leaves"][leaf][1] = "0123456789abcdef"
    file.write_text(json.dumps(written))


def flip(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def zero(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    begin = rng.randrange(len(data))
    data[begin : begin + 512] = bytes(len(data[begin : begin + 512]))
    file.write_bytes(data)


def cut(file: Path, rng: random.Random) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: rng.randrange(len(data))])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's reads in flight
@pytest.mark.parametrize("damage", [flip, zero, cut])
def test_damage_anywhere_is_noticed_or_changes_nothing(run, tmp_path, damage):
    """In every file of the newest checkpoint. What is restored is one of the states that were saved."""
    rng = random.Random(0)
    newest = run / "checkpoints" / "3"
    files = sorted(file for file in newest.rglob("*") if file.is_file())
    noticed = 0
    for i, file in enumerate([*files, *rng.choices(files, k=30)]):
        copy = tmp_path / str(i)
        shutil.copytree(run, copy)
        damage(copy / file.relative_to(run), rng)
        state = restored(copy)
        step = int(state.step)
        assert step in (2, 3) and same(state, state_at(step)), file.relative_to(newest)
        noticed += step == 2
    # Some files are read by nobody, and those drawn differ: names of data files are random.
    assert noticed >= 10


# ------------------------------------------------------------------------------------------ the digest


def leaf_values() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(8, 16))
    return [values.astype(d) for d in (jnp.float32, jnp.bfloat16, np.int32, np.uint8)] + [values > 0]


@pytest.mark.parametrize("value", leaf_values(), ids=lambda value: str(value.dtype))
def test_a_digest_does_not_depend_on_where_an_array_lies(value):
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"))
    specs = [PartitionSpec(*axes) for axes in ((), ("data",), (None, "fsdp"), ("fsdp", "data"))]
    placed = [jax.device_put(value, NamedSharding(mesh, spec)) for spec in specs]
    found = {name for leaf in [*placed, jnp.asarray(value)] for name in digest.digests([leaf]).values()}
    assert len(found) == 1


def test_a_digest_is_the_weighted_sum_of_the_bits():
    value = np.array([[1.5, -0.0], [np.nan, 3.0]], np.float32)
    weight = [[int(w) for w in digest._weights(axis, 0, 2)] for axis in (0, 1)]
    bits = value.view(np.uint32).tolist()
    total = sum(bits[i][j] * weight[0][i] * weight[1][j] for i in (0, 1) for j in (0, 1))
    assert digest.digests({"a": jnp.asarray(value)}) == {"a": f"{total % 2**64:016x}"}
    assert all(w % 2 for axis in weight for w in axis)


@pytest.mark.parametrize("value", leaf_values()[:4], ids=lambda value: str(value.dtype))
def test_every_flipped_bit_changes_the_digest(value):
    before = digest.digests([jnp.asarray(value)])
    for i in range(0, value.nbytes * 8, 7):
        data = bytearray(value.tobytes())
        data[i // 8] ^= 1 << i % 8
        other = np.frombuffer(bytes(data), value.dtype).reshape(value.shape)
        assert digest.digests([jnp.asarray(other)]) != before


def test_signs_that_flip_together_and_rows_that_change_places_are_noticed():
    value = jnp.asarray(leaf_values()[0])
    found = [digest.digests([x])["0"] for x in (value, -value, value[::-1], value[:, ::-1], value * 0)]
    assert len(set(found)) == len(found)


def test_the_digest_of_a_random_key_is_that_of_its_words():
    key = jax.random.split(jax.random.key(3), 4)
    assert digest.digests([key]) == digest.digests([jax.random.key_data(key)])


# ------------------------------------------------------------------------------------------ falling back


def test_a_leaf_that_is_not_what_was_written_is_named_and_the_checkpoint_moved_away(copy, caplog):
    spoil(copy, 3, "opt_state/trace/encoder/kernel")
    checkpoints = Checkpoints(str(copy), keep_last=3, best="knn")
    assert same(checkpoints.restore(shapes()), state_at(2))
    assert "its digest shows that opt_state/trace/encoder/kernel is not what was written" in caplog.text
    assert checkpoints.steps() == [1, 2] and (copy / "unreadable" / "3").exists()
    checkpoints.save(state_at(3), {"knn": 3.0})
    checkpoints.close()
    assert same(restored(copy), state_at(3))


def test_weights_and_branches_are_checked_too_and_only_what_is_read(copy):
    spoil(copy, 3, "opt_state/trace/encoder/kernel")  # which neither of them reads
    assert int(Checkpoints(str(copy), read_only=True).weights(shapes()).step) == 3
    spoil(copy, 3, "params/encoder/kernel")
    assert int(Checkpoints(str(copy), read_only=True).weights(shapes()).step) == 2
    head = load_parts(str(copy), {"params/head": shapes().params["head"]})["params/head"]
    np.testing.assert_array_equal(head["bias"], state_at(3).params["head"]["bias"])
    assert not (copy / "unreadable").exists()


def test_branches_come_from_one_checkpoint(copy):
    """The head of the newest one is damaged, so its encoder is not used either."""
    spoil(copy, 3, "params/head/bias")
    like = {f"params/{name}": shapes().params[name] for name in ("encoder", "head")}
    found = load_parts(str(copy), like)
    want = state_at(2).params
    np.testing.assert_array_equal(found["params/encoder"]["kernel"], want["encoder"]["kernel"])
    np.testing.assert_array_equal(found["params/head"]["bias"], want["head"]["bias"])


@pytest.mark.parametrize("step, left", [(3, [1, 2]), (1, [2, 3])], ids=["newest", "older"])
def test_a_metrics_file_that_is_not_json_is_damage_like_any_other(copy, step, left):
    (copy / "checkpoints" / str(step) / "metrics" / "metrics").write_bytes(b'{"knn": \x007.0}')
    assert int(Checkpoints(str(copy), read_only=True).weights(shapes()).step) == left[-1]
    checkpoints = Checkpoints(str(copy), keep_last=3, best="knn")
    assert int(checkpoints.restore(shapes()).step) == left[-1]
    checkpoints.close()
    assert checkpoints.steps() == left and (copy / "unreadable" / str(step)).exists()


def test_a_damaged_description_is_not_taken_for_another_network(copy):
    file = copy / "checkpoints" / "3" / "default" / "_METADATA"
    file.write_text(file.read_text().replace('"key": "head"', '"key": "heae"', 1))
    assert int(restored(copy).step) == 2


@pytest.mark.parametrize("read", ["weights", "load_parts"])
def test_a_storage_error_stops_whoever_reads_weights(copy, monkeypatch, read):
    def refused(*_, **__):
        raise ValueError('UNAVAILABLE: Error opening "zarr" driver')

    monkeypatch.setattr(ocp.PyTreeCheckpointer, "restore", refused)
    with pytest.raises(ValueError, match="checkpoints/3 could not be read now .*nothing was moved"):
        if read == "weights":
            Checkpoints(str(copy), read_only=True).weights(shapes())
        else:
            load_parts(str(copy), {"params/head": shapes().params["head"]})


def test_init_from_a_run_whose_checkpoints_are_all_damaged_is_refused(copy):
    for step in STEPS:
        spoil(copy, step, "params/head/bias")
    with pytest.raises(ValueError, match=r"none of the checkpoints in .* can be read \(steps 1, 2, 3\)"):
        load_parts(str(copy), {"params/head": shapes().params["head"]})


def test_a_checkpoint_without_digests_is_restored_unchecked(tmp_path, caplog):
    checkpoints = Checkpoints(str(tmp_path), digests=False)
    checkpoints.save(state_at(1), {})
    checkpoints.close()
    assert reading.describe(checkpoints.directory / "1").digests == {}
    assert same(restored(tmp_path), state_at(1)) and not caplog.text


def test_the_metric_of_the_best_checkpoint_may_change(copy):
    checkpoints = Checkpoints(str(copy), keep_last=1, best="accuracy")
    checkpoints.restore(shapes())
    checkpoints.save(state_at(4), {"accuracy": 0.5})
    checkpoints.close()
    assert checkpoints.steps()[-1] == 4


# ------------------------------------------------------------------------------------------ not a number


def test_nan_in_the_first_metrics_after_a_resume_names_the_checkpoint():
    with pytest.raises(monitor.NotFinite, match="nan.*suspect that checkpoint first.*mv run/44 run/44.sus"):
        monitor.check_finite(45, {"loss": np.nan}, "run/44")
    with pytest.raises(monitor.NotFinite, match="its last good checkpoint is untouched"):
        monitor.check_finite(45, {"loss": np.nan})


@pytest.mark.slow
def test_nan_after_a_resume_suspects_the_checkpoint(tmp_path, one_device):
    """What the message says works: the checkpoint is moved away, and the one before it is used."""
    settings = {"epochs": 1, "batch_size": 32, "model.width": 0.125, "model.stem": "imagenet"}
    settings |= {"optim.warmup_epochs": 0, "eval_every_epochs": 0, "checkpoint.best": "", "log_every": 5}
    config = simclr.get_config("digits")
    with config.unlocked():
        for name, value in settings.items():
            put(config, name, value)
    source = sources.load(config.data, "train")
    state = build(config, source.facts).init(0)
    checkpoints = Checkpoints(str(tmp_path), keep_last=2)
    for step, factor in ((40, 1.0), (44, np.nan)):
        params = jax.tree.map(lambda leaf, f=factor: leaf * np.float32(f), state.params)
        checkpoints.save(state.replace(step=jnp.int32(step), params=params), {})
    checkpoints.close()

    suspect = tmp_path / "checkpoints" / "44"
    with pytest.raises(
        monitor.NotFinite, match=f"nan.*suspect that checkpoint first.*mv {suspect} "
    ) as stopped:
        train.run_stages(config, str(tmp_path))
    assert "last good" not in str(stopped.value)
    suspect.rename(f"{suspect}.suspect")
    train.run_stages(config, str(tmp_path))
    assert Checkpoints(str(tmp_path), read_only=True).steps()[-1] == 47
