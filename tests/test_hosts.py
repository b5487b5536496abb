"""Two processes of four devices compute what one of eight computes, and they stop, fail and resume together.

The collectives are gloo's, between real processes. They add in another order than one process does, so
numbers agree only up to rounding.
"""

import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict

from configs import simclr
from ssljax import sharding, train
from ssljax.data import sources
from ssljax.data.source import Source
from ssljax.program import build, device_batches
from ssljax.run import hosts
from ssljax.run.checkpoint import Checkpoints, load_parts
from ssljax.types import Pytree
from tests.one_block import shrink
from tests.processes import (
    ROOT,
    SMALL,
    checkpoints,
    environment,
    finish,
    free_port,
    freeze,
    kill,
    last_state,
    logged,
    run,
    start,
    start_two,
    wait_for,
)

pytestmark = pytest.mark.slow

# 160 images: six steps. Without weight decay the first momentum is the gradient. A small learning rate keeps
# rounding differences small: with the preset's 0.3, a difference of 1e-7 in the first losses grows to 1e-2
# after ten steps.
SHORT = [
    *SMALL,
    "--config.epochs=1",
    "--config.data.train_per_class=16",
    "--config.optim.warmup_epochs=0",
    "--config.optim.weight_decay=0.0",
    "--config.optim.learning_rate=0.03",
    "--config.log_every=1",
    "--config.eval_every_epochs=1",
    "--config.checkpoint.every_steps=1",
    "--config.checkpoint.keep=20",
]
STEPS = 6
STOPS_WITHIN = 30  # seconds; HEARTBEAT_SECONDS and a busy machine


@pytest.fixture(scope="module", autouse=True)
def one_block():
    """The network of the processes that are started, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch.setitem)
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("xla")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, cache) -> Path:
    workdir = tmp_path_factory.mktemp("one")
    code, output = run("train", *SHORT, f"--workdir={workdir}", cache=cache, devices=8)
    assert code == 0, output
    return workdir


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, cache) -> Path:
    workdir = tmp_path_factory.mktemp("two")
    processes = start_two("train", *SHORT, f"--workdir={workdir}", cache=cache)
    (code0, first), (code1, second) = [finish(process) for process in processes]
    assert code0 == code1 == 0, first + second
    assert f"step {STEPS}/{STEPS}" in first
    assert "step" not in second, "only the first host prints"
    return workdir


def data() -> tuple[ConfigDict, Source]:
    """The config of SHORT, as far as batches and checkpoints depend on it, and its training split."""
    config = simclr.get_config("digits").unlock()
    config.batch_size = 32
    config.epochs = 1
    config.head.dim = 16
    config.data.update(train_per_class=16, image_size=8)
    config.model.update(width=0.125, stem="imagenet")
    config.optim.update(warmup_epochs=0, weight_decay=0.0, learning_rate=0.03)
    return config.lock(), sources.load(config.data, "train")


def saved(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every leaf of a checkpoint, by its path."""
    folder = workdir / "checkpoints" / str(step) / "default"
    tree = ocp.PyTreeCheckpointHandler().metadata(folder).tree
    plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    with ocp.PyTreeCheckpointer() as reader:
        return by_path(reader.restore(folder, restore_args=plain))


def by_path(tree: Pytree) -> dict[str, np.ndarray]:
    """Every leaf of a tree, by its path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def assert_close(got: dict[str, np.ndarray], want: dict[str, np.ndarray], tolerance: float) -> None:
    """Compare two trees, with a tolerance relative to the largest number of each array."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        scale = max(float(np.abs(value).max(initial=0)), 1e-3)
        np.testing.assert_allclose(got[name], value, rtol=0, atol=tolerance * scale, err_msg=name)


def losses(workdir: Path) -> dict[int, float]:
    """step -> loss."""
    rows = [row for row in logged(workdir) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)), "each step is logged once"
    return {row["step"]: row["loss"] for row in rows}


def test_the_first_step_of_two_processes_is_that_of_one_up_to_rounding(one_process, two_processes):
    def momenta(workdir: Path) -> dict[str, np.ndarray]:
        return {name: leaf for name, leaf in saved(workdir, 1).items() if "trace" in name}

    np.testing.assert_allclose(losses(two_processes)[1], losses(one_process)[1], rtol=1e-6)
    one, two = momenta(one_process), momenta(two_processes)
    assert len(one) == 19
    moved = [np.any(leaf != 0) for leaf in one.values()]
    assert np.mean(moved) > 0.6  # not all, because the last scale of each branch starts at zero
    assert_close(two, one, 2e-5)


def test_six_steps_of_two_processes_are_those_of_one(one_process, two_processes):
    one, two = losses(one_process), losses(two_processes)
    np.testing.assert_allclose([two[s] for s in one], [one[s] for s in one], rtol=1e-4)
    assert len(set(one.values())) == STEPS
    accuracy = [[row["knn"] for row in logged(w) if "knn" in row] for w in (one_process, two_processes)]
    np.testing.assert_allclose(accuracy[1], accuracy[0], atol=1.0)
    record = [json.loads(line) for line in (two_processes / "run.json").read_text().splitlines()]
    assert [r["hosts"] for r in record] == [2] and len(record[0]["devices"]) == 8


READER = """
import sys
from jax.experimental import multihost_utils
from ssljax.program import build, device_batches
from ssljax.run import hosts
from tests.test_hosts import data
config, source = data()
hosts.start(sys.argv[1], 2, int(sys.argv[2]))
program = build(config, source.facts)
for _, batch in zip(range(4), device_batches(program, source, 0, 3)):
    mine = [int(i) for shard in batch["index"].addressable_shards for i in shard.data]
    print("rows", *mine, "of", *multihost_utils.process_allgather(batch["index"], tiled=True))
"""


def test_each_process_reads_its_own_rows_of_the_same_batches(cache):
    """Four steps across the end of the first epoch."""
    config, source = data()
    program = build(config, source.facts)
    batches = itertools.islice(device_batches(program, source, 0, 3), 4)
    want = [np.asarray(batch["index"]) for batch in batches]
    assert not np.array_equal(want[0], want[2])
    address = f"localhost:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", READER, address, str(i)],
            cwd=ROOT,
            env=environment(cache, 4),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for i in range(2)
    ]
    for i, (code, output) in enumerate(map(finish, processes)):
        assert code == 0, output
        rows = [line.split(" of ") for line in output.splitlines() if line.startswith("rows")]
        own = [[int(n) for n in mine.split()[1:]] for mine, _ in rows]
        all_rows = [[int(n) for n in everything.split()] for _, everything in rows]
        assert all_rows == [list(batch) for batch in want]
        assert own == [list(batch[16 * i : 16 * (i + 1)]) for batch in want]


@pytest.mark.parametrize("devices", [8, 4, 2, 1])
def test_a_checkpoint_of_two_processes_resumes_on_fewer_devices(two_processes, tmp_path, devices):
    """The state is restored bit for bit, and the next step is the one that two processes took."""
    config, source = data()
    copy_until(two_processes, tmp_path, STEPS - 1)
    program = build(config, source.facts, sharding.make_mesh(devices))
    reader = Checkpoints(str(tmp_path), read_only=True)
    state = reader.restore(program.shapes)
    reader.close()
    assert int(state.step) == STEPS - 1
    assert all(leaf.sharding.mesh.devices.size == devices for leaf in jax.tree.leaves(state))
    assert_close(by_path(state), saved(two_processes, STEPS - 1), 0.0)
    parts = load_parts(str(tmp_path), {"params/encoder": state.params["encoder"]})
    jax.tree.map(np.testing.assert_array_equal, parts["params/encoder"], state.params["encoder"])
    if devices < 8:  # the test below trains on eight devices in one process
        batch = next(device_batches(program, source, 0, STEPS - 1))
        _, metrics = program.step(state, batch, jax.random.key(0))
        np.testing.assert_allclose(float(metrics["loss"]), losses(two_processes)[STEPS], rtol=1e-4)


def copy_until(run: Path, target: Path, step: int) -> None:
    """Copy the run's folder as it was after `step`."""
    subprocess.run(["cp", "-r", f"{run}/.", target], check=True)
    for later in checkpoints(target):
        if later > step:
            subprocess.run(["rm", "-r", target / "checkpoints" / str(later)], check=True)


def test_either_resumes_the_checkpoint_of_the_other(one_process, two_processes, tmp_path, cache):
    to_two, to_one = tmp_path / "to_two", tmp_path / "to_one"
    copy_until(one_process, to_two, 3)
    copy_until(two_processes, to_one, 3)
    processes = start_two("train", *SHORT, f"--workdir={to_two}", cache=cache)
    (code0, two), (code1, silent) = [finish(process) for process in processes]
    code2, one = run("train", *SHORT, f"--workdir={to_one}", cache=cache, devices=8)
    assert [code0, code1, code2] == [0, 0, 0], two + silent + one

    for output, resumed, begun in ((two, to_two, one_process), (one, to_one, two_processes)):
        assert f"resuming {resumed} at step 3" in output
        found, expected = losses(resumed), losses(begun)
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)


def noisy_student_flags() -> list[str]:
    """A teacher of one step, and a student that learns from 50 labels and 250 images without."""
    flags = ["--config=configs/noisy_student.py:digits"]
    for stage, batch in (("teacher", 40), ("student", 96)):
        settings = dict(epochs=1, batch_size=batch, eval_every_epochs=0)
        settings |= {"model.name": "resnet8", "model.width": 0.125, "model.stem": "imagenet"}
        settings |= {"data.train_per_class": 30, "optim.warmup_epochs": 0, "augment.policy": "none"}
        settings |= {"checkpoint.best": "", "checkpoint.every_steps": 1, "checkpoint.keep": 20}
        flags += [f"--config.{stage}.{name}={value}" for name, value in settings.items()]
    settings = {"teacher.name": "resnet8", "teacher.width": 0.125, "teacher.stem": "imagenet"}
    settings |= {"evaluate.batch_size": 16}
    return flags + [f"--config.student.{name}={value}" for name, value in settings.items()]


def test_two_hosts_label_what_one_labels_and_a_restart_labels_nothing_again(tmp_path, cache):
    flags = noisy_student_flags()
    code, output = run("train", *flags, f"--workdir={tmp_path}/one", cache=cache)
    assert code == 0 and output.count("refresh at step 0") == 1, output
    shutil.copytree(tmp_path / "one/teacher", tmp_path / "two/teacher")
    processes = start_two("train", *flags, f"--workdir={tmp_path}/two", cache=cache)
    for code, output in [finish(process) for process in processes]:
        assert code == 0, output

    one, two = saved(tmp_path / "one/student", 0), saved(tmp_path / "two/student", 0)
    name = "extra/labels/probabilities"
    np.testing.assert_allclose(two[name], one[name], atol=1e-4)
    assert (one[name].sum(1) > 0.99).sum() == 250
    np.testing.assert_array_equal(two["extra/labels/copies"], one["extra/labels/copies"])

    # Of the student's checkpoints only the one with the labels is left.
    want = last_state(tmp_path / "one/student")
    for step in checkpoints(tmp_path / "one/student")[1:]:
        shutil.rmtree(tmp_path / f"one/student/checkpoints/{step}")
    code, output = run("train", *flags, f"--workdir={tmp_path}/one", cache=cache)
    assert code == 0 and "refresh at step 0" not in output, output
    assert last_state(tmp_path / "one/student") == want

    # Killed while it labels, it goes on with the images that are left.
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "one/teacher", killed / "teacher")
    process = start("train", *flags, f"--workdir={killed}", cache=cache)
    freeze(process, lambda: labelled(killed) >= 80)
    kill(process)
    begun = labelled(killed)
    assert 80 <= begun < 250 and not checkpoints(killed / "student")
    code, output = run("train", *flags, f"--workdir={killed}", cache=cache)
    assert code == 0 and f"refresh: {begun + 16} of 250 images" in output, output
    assert output.count("refresh: ") == -(-(250 - begun) // 16)
    assert last_state(killed / "student") == want
    assert not (killed / "student/refresh").exists()


def labelled(workdir: Path) -> int:
    """How many images the newest checkpoint of an unfinished refresh has."""
    return max(
        (step for folder in workdir.glob("student/refresh/*") for step in checkpoints(folder)), default=0
    )


def test_a_run_survives_signals_and_dead_hosts(tmp_path, cache):
    """SIGTERM to one, SIGKILL of the worker, SIGKILL of the coordinator: each time the command resumes."""
    flags = (*SMALL, "--config.epochs=100", "--config.checkpoint.every_steps=3", f"--workdir={tmp_path}")

    def until_it_trains() -> list[subprocess.Popen]:
        before = checkpoints(tmp_path)[-1:] or [0]
        processes = start_two("train", *flags, cache=cache)
        wait_for(lambda: checkpoints(tmp_path)[-1:] > before, processes[0])
        return processes

    def seconds_to_end(process: subprocess.Popen) -> float:
        begin = time.monotonic()
        process.wait(timeout=STOPS_WITHIN)
        return time.monotonic() - begin

    # 1. One is asked to stop: both save the same step.
    first, second = until_it_trains()
    second.send_signal(signal.SIGTERM)
    code0, output = finish(first, 60)
    code1, silent = finish(second, 60)
    assert (code0, code1) == (0, 0), output + silent
    stopped = checkpoints(tmp_path)[-1]
    assert logged(tmp_path)[-1]["step"] <= stopped < 4600

    # 2. The worker dies.
    first, second = until_it_trains()
    second.kill()
    assert seconds_to_end(first) < STOPS_WITHIN
    code, output = finish(first)
    assert code != 0 and f"resuming {tmp_path} at step {stopped}" in output, output
    assert "another host died" in output or "another task died" in output, output
    second.communicate()

    # 3. The coordinator dies.
    last = checkpoints(tmp_path)[-1]
    first, second = until_it_trains()
    first.kill()
    assert seconds_to_end(second) < STOPS_WITHIN
    code, output = finish(second)
    assert code != 0 and ("another host died" in output or "another task died" in output), output
    assert f"resuming {tmp_path} at step {last}" in first.communicate()[0]

    steps = [row["step"] for row in logged(tmp_path)]
    assert steps == sorted(set(steps)), "after three interruptions every logged step is there once"


def test_a_single_process_waits_for_nobody(monkeypatch):
    def fail(*_, **__):
        pytest.fail("a single process must not wait for others")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    hosts.start()
    hosts.meet("alone")
    with hosts.together("train", "", 1, 0):
        pass


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, False),
        ({"TPU_ML_PLATFORM": "JAX"}, True),
        ({"TPU_ML_PLATFORM": "JAX", "JAX_PLATFORMS": "tpu,cpu"}, True),
        ({"TPU_ML_PLATFORM": "JAX", "JAX_PLATFORMS": "cpu"}, False),
        ({"TPU_ML_PLATFORM": "Tensorflow"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, False),
    ],
)
def test_the_environment_says_whether_there_are_others(environment, expected):
    assert hosts.several(environment) == expected


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--coordinator=10.0.0.1", "--processes=2"],
            "--coordinator=10.0.0.1 has no port: write 10.0.0.1:8476",
        ),
        (
            ["--coordinator=10.0.0.1:8476", "--processes=2", "--process=2"],
            "processes are numbered from 0 to 1",
        ),
        (["--processes=2"], "without --coordinator: say where process 0 listens"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(tmp_path, flags, message):
    with pytest.raises(SystemExit, match=f"ssljax train: .*{message}"):
        train.main([*SHORT, f"--workdir={tmp_path}", *flags])
