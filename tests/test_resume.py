"""A run that is killed, stopped and damaged ends with exactly the parameters of an uninterrupted run."""

import os
import signal
from pathlib import Path

import pytest

from tests.processes import (
    SMALL,
    being_written,
    checkpoints,
    differences,
    finish,
    freeze,
    kill,
    logged,
    run,
    start,
    wait_for,
)

pytestmark = pytest.mark.slow

TOTAL = 188  # 1,500 * 4 // 32 + 1


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("xla")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, cache) -> Path:
    workdir = tmp_path_factory.mktemp("uninterrupted")
    code, output = run("train", *SMALL, f"--workdir={workdir}", cache=cache)
    assert code == 0, output
    return workdir


def test_four_accidents_change_no_bit(uninterrupted, tmp_path, cache):
    flags = (*SMALL, f"--workdir={tmp_path}")

    # 1. kill -9 between two checkpoints.
    process = start("train", *flags, cache=cache)
    wait_for(
        lambda: checkpoints(tmp_path) and logged(tmp_path)[-1]["step"] > checkpoints(tmp_path)[-1] + 5,
        process,
    )
    kill(process)
    after_first = checkpoints(tmp_path)[-1]

    # 2. kill -9 while a checkpoint is being written: the process is frozen as soon as the unfinished folder
    # appears, then killed.
    process = start("train", *flags, cache=cache)
    freeze(process, lambda: being_written(tmp_path))
    kill(process)
    assert being_written(tmp_path), "the unfinished checkpoint must still be there"
    assert checkpoints(tmp_path)[-1] >= after_first

    # 3. SIGTERM: exit code 0 and a checkpoint of the step at which it stopped.
    process = start("train", *flags, cache=cache)
    resumed = len(logged(tmp_path))
    wait_for(
        lambda: len(logged(tmp_path)) > resumed + 2 or checkpoints(tmp_path)[-1] > after_first + 80,
        process,
    )
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert f"resuming {tmp_path} at step" in output
    stopped = checkpoints(tmp_path)[-1]
    assert stopped < TOTAL and logged(tmp_path)[-1]["step"] <= stopped

    # 4. The newest checkpoint is damaged: the log says so, and the one before it is used.
    before = checkpoints(tmp_path)[-2]
    for file in (tmp_path / "checkpoints" / str(stopped)).rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            os.truncate(file, file.stat().st_size // 2)
    code, output = run("train", *flags, cache=cache)
    assert code == 0, output
    assert f"the checkpoint of step {stopped} cannot be read" in output
    assert f"resuming {tmp_path} at step {before}" in output
    assert (tmp_path / "unreadable" / str(stopped)).exists()

    # Nor does the log show a trace of it: every row once.
    assert checkpoints(tmp_path)[-1] == checkpoints(uninterrupted)[-1] == TOTAL
    assert differences(tmp_path, uninterrupted) == []


def test_a_finished_run_is_left_alone_and_another_config_refused(uninterrupted, cache):
    newest = (uninterrupted / "checkpoints" / str(TOTAL)).stat().st_mtime_ns
    code, output = run("train", *SMALL, f"--workdir={uninterrupted}", cache=cache)
    assert code == 0 and "step" not in output.replace(f"at step {TOTAL}", ""), output
    assert (uninterrupted / "checkpoints" / str(TOTAL)).stat().st_mtime_ns == newest
    code, output = run(
        "train", *SMALL, f"--workdir={uninterrupted}", "--config.optim.learning_rate=0.1", cache=cache
    )
    assert code == 1 and "optim.learning_rate was 0.3, now 0.1" in output, output


@pytest.fixture
def interruptible():
    """A shell starts jobs in the background with SIGINT ignored, and their children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_saves_and_a_second_one_leaves_at_once(tmp_path, cache):
    flags = (*SMALL, f"--workdir={tmp_path}")
    process = start("train", *flags, cache=cache)
    wait_for(lambda: len(logged(tmp_path)) > 2, process)
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code == 0, output
    assert "stopping after this step, with a checkpoint; Ctrl-C again leaves at once" in output
    assert f"stopped and saved; the same command resumes {tmp_path}" in output
    assert "Traceback" not in output
    (saved,) = checkpoints(tmp_path)[-1:]
    assert saved < TOTAL and logged(tmp_path)[-1]["step"] <= saved

    process = start("train", *flags, cache=cache)
    wait_for(lambda: len(logged(tmp_path)) > saved // 5 + 2, process)
    process.send_signal(signal.SIGSTOP)  # both signals are there when it goes on
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code in (0, 130), output  # 0 where the step was over before the second signal came
    assert "Traceback" not in output


def test_a_closed_terminal_does_not_end_a_run(tmp_path, cache):
    """As `ssljax train ... | head -1` does it."""
    process = start("train", *SMALL, f"--workdir={tmp_path}", cache=cache)
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=150) == 0
    assert logged(tmp_path)[-1]["step"] == TOTAL
    assert checkpoints(tmp_path)[-1] == TOTAL
