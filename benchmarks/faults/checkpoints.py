"""Damage in a run's newest checkpoint: it is noticed and named, and the same command ends with the same bits.

All drills use copies of one small run of SimCLR on the digits, stopped before its end.
"""

from __future__ import annotations

import atexit
import functools
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.faults.drill import Drill, expect
from tests.processes import SMALL, checkpoints, differences, logged, run

RUN = (*SMALL, "--config.checkpoint.best=probe_accuracy", "--config.checkpoint.keep=4")
DAMAGED = 240  # the newest checkpoint of the copies; the whole run has 282 steps


@functools.cache
def base() -> Path:
    """A folder with the run `whole`, which was never interrupted, and `stopped`, as it was at step 240."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    code, output = run("train", *RUN, f"--workdir={folder / 'whole'}", cache=folder / "xla")
    expect(code == 0, f"the uninterrupted run failed: {output[-500:]}")
    shutil.copytree(folder / "whole", folder / "stopped")
    for step in checkpoints(folder / "stopped"):
        if step > DAMAGED:
            shutil.rmtree(folder / "stopped" / "checkpoints" / str(step))
    return folder


def stopped(folder: Path) -> tuple[Path, Path]:
    """A copy of the stopped run. Returns its folder and that of its newest checkpoint."""
    workdir = folder / "run"
    shutil.copytree(base() / "stopped", workdir)
    return workdir, workdir / "checkpoints" / str(DAMAGED)


def train(workdir: Path, *more: str) -> tuple[int, str]:
    """The same command once more."""
    return run("train", *RUN, *more, f"--workdir={workdir}", cache=base() / "xla")


def said(output: str, *words: str) -> str:
    """The first line that contains the words, without the place in the source."""
    lines = [line for line in output.splitlines() if all(word in line for word in words)]
    return lines[0].split("] ")[-1].replace(str(base()), "...") if lines else "nothing"


def resumed(folder: Path, damage: Callable[[Path], None], words: str) -> str:
    """Damage the newest checkpoint and resume: the one before it is used, and the end is the same."""
    workdir, newest = stopped(folder)
    before = checkpoints(workdir)[-2]
    damage(newest)
    code, output = train(workdir)
    seen = f"{said(output, 'cannot be read')}; {said(output, 'resuming')}".replace(str(folder), "")
    expect(code == 0 and f"resuming {workdir} at step {before}" in output, f"{seen}; {output[-300:]}")
    expect(words in output and "Traceback" not in output, f"{seen}; {output[-300:]}")
    expect((workdir / "unreadable" / str(DAMAGED)).exists(), f"{seen}; it was not moved to unreadable/")
    differ = differences(workdir, base() / "whole")
    expect(not differ, f"{seen}; different at the end: {', '.join(differ[:3])}")
    return f"{seen}; every leaf and every row at the end is the same"


def data_files(checkpoint: Path) -> list[Path]:
    """The files with the arrays, the largest first."""
    files = [file for file in (checkpoint / "default").rglob("d/*") if file.is_file()]
    return sorted(files, key=lambda file: -file.stat().st_size)


def flip_in_a_leaf(checkpoint: Path) -> None:
    """Flip one bit in the middle of the largest file, among the numbers of some leaf."""
    file = data_files(checkpoint)[0]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def zero_a_page(checkpoint: Path) -> None:
    """4 kB of zeros in the middle of the largest file."""
    file = data_files(checkpoint)[0]
    with file.open("r+b") as out:
        out.seek(file.stat().st_size // 2)
        out.write(bytes(4096))


def halve(checkpoint: Path) -> None:
    """Cut every file of arrays in half."""
    for file in data_files(checkpoint):
        os.truncate(file, file.stat().st_size // 2)


def spoil_the_metrics(checkpoint: Path) -> None:
    """Flip a bit of the small file by which the best checkpoint is chosen."""
    file = checkpoint / "metrics" / "metrics"
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)


def a_hundred_bits(folder: Path) -> str:
    """Flip one bit anywhere in the checkpoint and read it, a hundred times."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax  # here, because the other drills do not need it in this process
    import numpy as np
    import orbax.checkpoint as ocp
    from absl import logging

    from ssljax.run.checkpoint import Checkpoints

    workdir, newest = stopped(folder)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        ocp.PyTreeCheckpointHandler().metadata(newest / "default").tree,
    )

    def read() -> tuple[int, list[bytes]]:
        state = Checkpoints(str(workdir), read_only=True).restore(like)
        return int(state["step"]), [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]

    logging.set_verbosity(logging.FATAL)
    good = dict([read()])
    newest.rename(workdir / "aside")
    good |= dict([read()])
    (workdir / "aside").rename(newest)

    rng = random.Random(0)
    files = [file for file in sorted(newest.rglob("*")) if file.is_file()]
    noticed = 0
    for _ in range(100):
        (file,) = rng.choices(files, weights=[file.stat().st_size for file in files])
        whole = file.read_bytes()
        data = bytearray(whole)
        place = rng.randrange(len(data))
        data[place] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        step, leaves = read()
        expect(leaves == good[step], f"byte {place} of {file.relative_to(newest)} gave other numbers")
        noticed += step < DAMAGED
        file.write_bytes(whole)
    return f"{noticed} noticed, {100 - noticed} changed nothing that is read, none gave other numbers"


def all_damaged(folder: Path) -> str:
    """Spoil every checkpoint: the command stops, and everything lies where it lay."""
    workdir, newest = stopped(folder)
    for step in checkpoints(workdir):
        flip_in_a_leaf(newest.parent / str(step))
    rows = logged(workdir)
    before = sorted(newest.parent.rglob("*"))
    code, output = train(workdir)
    seen = f"exit code {code}: {said(output, 'none of the checkpoints')}".replace(str(folder), "")
    expect(code == 1 and "none of the checkpoints" in output and "Traceback" not in output, output[-500:])
    expect(rows == logged(workdir) and before == sorted(newest.parent.rglob("*")), f"{seen}; files changed")
    return seen


def weights_of(folder: Path) -> str:
    """Spoil the newest checkpoint of a run whose weights others read: `evaluate` and `init_from`."""
    workdir, newest = stopped(folder)
    halve(newest)  # a flipped bit in a leaf that nobody reads is no matter
    code, output = run("evaluate", *RUN, f"--workdir={workdir}", "--protocols=knn", cache=base() / "xla")
    expect(code == 0 and "cannot be read" in output, f"evaluate: {output[-300:]}")
    more = (f"--config.init_from={workdir}", "--config.epochs=1", "--config.optim.warmup_epochs=0")
    code, output = run("train", *SMALL, *more, f"--workdir={folder / 'next'}", cache=base() / "xla")
    expect(code == 0 and "cannot be read" in output, f"init_from: {output[-300:]}")
    expect(newest.exists(), "a command that only reads moved the checkpoint")
    return f"both took step {checkpoints(workdir)[-2]} and said: {said(output, 'cannot be read')}"


THE_SAME = "the log names it, the checkpoint before it is used, and the end is the same bit for bit"
DRILLS = (
    Drill(
        "one bit of a checkpoint flips, a hundred times",
        "noticed, or nothing that is read changes",
        a_hundred_bits,
    ),
    Drill(
        "a bit flips among the weights",
        THE_SAME,
        functools.partial(resumed, damage=flip_in_a_leaf, words="digest shows"),
    ),
    Drill(
        "a page of a checkpoint becomes zeros",
        THE_SAME,
        functools.partial(resumed, damage=zero_a_page, words="cannot be read"),
    ),
    Drill(
        "a checkpoint's files are cut in half",
        THE_SAME,
        functools.partial(resumed, damage=halve, words="cannot be read"),
    ),
    Drill(
        "a bit flips in the file of the metric",
        THE_SAME,
        functools.partial(resumed, damage=spoil_the_metrics, words="is not JSON"),
    ),
    Drill(
        "every checkpoint is damaged",
        "exit code 1, all of them named, nothing moved or begun anew",
        all_damaged,
    ),
    Drill(
        "others read the weights of a damaged checkpoint", "they take those of the one before it", weights_of
    ),
)
