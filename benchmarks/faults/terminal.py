"""What reaches a terminal: too little memory, outputs that nobody reads, other libraries' notes, mistakes."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.faults.drill import Drill, expect
from tests.processes import ROOT, SMALL, environment, logged

TINY = shlex.join(
    [*SMALL, "--config.epochs=1", "--config.optim.warmup_epochs=0", "--config.data.train_per_class=20"]
)
PHOTOS = (
    "--config=configs/simclr.py:folder --config.model.name=resnet8 --config.model.width=0.125 "
    "--config.model.dtype=float32 --config.data.image_size=32 --config.batch_size=16 --config.epochs=1 "
    "--config.optim.warmup_epochs=0 --config.head.dim=16 --config.head.hidden=16 "
    "--config.evaluate.knn_k=5 --config.evaluate.batch_size=32 --config.data.source=folder:{images}"
)
ENDS_WITHIN = 10  # seconds from the message to the end of the process


def shell(command: str, folder: Path) -> tuple[int, str, str]:
    """Run a command of bash, in which `ssljax` is this one. Returns (exit code, output, errors)."""
    verbs = f'ssljax() {{ {shlex.quote(sys.executable)} -m "ssljax.$1" "${{@:2}}"; }}; set -o pipefail; '
    done = subprocess.run(
        ["bash", "-c", verbs + command],
        cwd=ROOT,
        env=environment(folder / "xla"),
        text=True,
        capture_output=True,
        errors="replace",
    )
    return done.returncode, done.stdout, done.stderr


def photos(folder: Path) -> Path:
    """A folder of two classes of 40 JPEGs."""
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(40):
            pixels = draw.integers(0, 255, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((60, 50)).save(folder / name / f"{i}.jpg")
    return folder


# ------------------------------------------------------------------------------------------------- the drills


def too_little_memory(folder: Path) -> str:
    """Train a step of about 6 GiB where 5 GB are allowed, and time the end after the message."""
    flags = "--config.data.train_per_class=0 --config.batch_size=1280 --config.data.image_size=160"
    stamped = 'while IFS= read -r line; do echo "$EPOCHREALTIME $line"; done'
    code, output, _ = shell(
        f"ulimit -v 5000000; ssljax train {TINY} {flags} --workdir={folder}/run 2>&1 | {stamped}", folder
    )
    ended = time.time()
    when, _, last = output.strip().splitlines()[-1].partition(" ")
    seconds = ended - float(when)
    seen = f"exit code {code}, {seconds:.1f} s after the message: {last}"
    expect(code == 1 and "Traceback" not in output and seconds < ENDS_WITHIN, seen)
    expect("out of memory" in last and "--config.batch_size=640" in last, seen)
    return seen


def unread(folder: Path, how: str) -> str:
    """Train with an output that is closed, broken or full: the run must reach its end."""
    workdir = folder / "run"
    code, _, errors = shell(f"ssljax train {TINY} --config.epochs=3 --workdir={workdir} {how}", folder)
    step = logged(workdir)[-1]["step"]
    seen = f"exit code {code}, {step} steps; errors: {errors.strip()[-200:] or 'none'}"
    expect(code == 0 and step == 19 and "Traceback" not in errors, seen)
    return seen


def first_line(folder: Path) -> str:
    """Let `head -1` read every verb's output."""
    images = photos(folder / "images")
    run = folder / "run"
    code, output, errors = shell(f"ssljax train {TINY} --workdir={run} | head -1", folder)
    expect(code == 0 and output.count("\n") == 1, f"train: {errors[-300:]}")
    for command in (
        f"evaluate {TINY} --workdir={run} --protocols=knn",
        f"report {run}",
        f"preview {TINY} --workdir={run}",
        f"embed --workdir={run} --images={images} --out={folder}/features.npz",
        f"config {TINY}",
        "config --keys",
    ):
        code, output, errors = shell(f"ssljax {command} | head -1", folder)
        seen = f"{command.split()[0]}: exit code {code}, {errors[-300:]}"
        expect(code == 0 and output.count("\n") == 1 and "Error" not in errors, seen)
    return "exit code 0, one line, and no error from any of them"


def notes(folder: Path) -> str:
    """Let the verbs work on a folder of images, which imports TensorFlow: its notes are not printed."""
    images = photos(folder / "images")
    flags = PHOTOS.format(images=images) + f" --workdir={folder}/run"
    commands = (
        f"train {flags}",
        f"evaluate {flags} --protocols=knn",
        f"preview {flags}",
        f"embed --workdir={folder}/run --images={images} --out={folder}/features.npz",
    )
    for command in commands:
        code, _, errors = shell(f"ssljax {command}", folder)
        left = re.sub(r"[^\n]*\d+/\d+ \[[^\n]*", "", errors.replace("\r", "\n")).strip()  # embed's bar
        expect(code == 0 and not left, f"{command.split()[0]}: exit code {code}, {left[-400:]}")
    return "nothing on standard error but the progress bar of embed"


def mistakes(folder: Path, commands: tuple[str, ...]) -> str:
    """Make typical mistakes: exit code 1 or 2, one or two lines, no traceback."""
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("hello")
    (folder / "broken").mkdir()
    (folder / "broken" / "results.jsonl").write_text("{")
    (folder / "broken.py").write_text("def get_config(:\n")
    (folder / "other.py").write_text("import nowhere\n")
    one = folder / "other"
    for part in ("train/cat", "train/dog", "test/bird"):
        (one / part).mkdir(parents=True)
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(one / part / "0.png")

    for command in commands:
        code, output, errors = shell(f"ssljax {command.format(here=folder)}", folder)
        said = (errors or output).strip()
        expect(code in (1, 2) and "Traceback" not in errors and said, f"{command}: {code}, {said[-400:]}")
    return f"{len(commands)} messages without a traceback"


DIGITS = "--config=simclr:digits"
FOLDER = "--config=simclr:folder --workdir={here}/run"
QUICK_MISTAKES = (
    "train",
    f"train {DIGITS}",
    "train --config=simclr:digist --workdir={here}/run",
    "train --config=simcrl:digits --workdir={here}/run",
    "train --config={here}/text.txt --workdir={here}/run",
    "train --config={here}/broken.py --workdir={here}/run",
    "train --config={here}/other.py --workdir={here}/run",
    f"train {DIGITS} --workdir={{here}}/run --config.epohcs=3",
    f"train {DIGITS} --workdir={{here}}/run seed=3",
    f"config {DIGITS} --diff=moco:dig",
    "report",
    "report {here}/empty",
    "report {here}/nowhere",
    "report {here}/text.txt",
    "report {here}/broken",
    "embed --workdir={here}/empty --images={here}/empty --out={here}/x.npz",
    "embed --workdir={here}/empty --images={here}/text.txt --out={here}/x.npz",
    "embed --workdir={here}/empty --images={here}/other --out={here}/x.txt",
    "embed --workdir={here}/empty --images={here}/other --out={here}/nowhere/x.npz",
)
RUN_MISTAKES = (
    f"train {DIGITS} --workdir={{here}}/text.txt",
    f"train {DIGITS} --workdir={{here}}/text.txt/run",
    f"train {DIGITS} --workdir=/proc/run",
    f"train {DIGITS} --workdir={{here}}/run --coordinator=localhost",
    f"train {DIGITS} --workdir={{here}}/run --config.batch_size=1501",
    f"train {FOLDER} --config.data.source=folder:{{here}}/empty",
    f"train {FOLDER} --config.data.source=folder:{{here}}/nowhere",
    f"train {FOLDER} --config.data.source=folder:{{here}}/text.txt",
    f"train {FOLDER} --config.data.source=folder:{{here}}/other",
    f"evaluate {DIGITS} --workdir={{here}}/nowhere",
    f"evaluate {DIGITS} --workdir={{here}}/text.txt",
)
MORE_MISTAKES = (
    f"evaluate {DIGITS} --workdir={{here}}/empty --protocols=knnn",
    f"evaluate {DIGITS} --workdir={{here}}/empty --stage=x",
    "embed --workdir={here}/empty --images={here}/other --out={here}/x.npz",
    f"preview {DIGITS} --workdir={{here}}/text.txt",
    f"preview {FOLDER} --config.data.source=folder:{{here}}/nowhere",
    "convert --config=supervised:digits --workdir={here}/run",
    "convert --config=supervised:digits --workdir={here}/run --from={here}/text.txt",
    "convert --config=supervised:digits --workdir={here}/run --from={here}/nowhere.safetensors",
    f"plan {DIGITS}",
    f"plan {DIGITS} --topology=banana",
)


def _unread(name: str, how: str) -> Drill:
    return Drill(name, "the run goes on to its end", functools.partial(unread, how=how))


def _mistakes(what: str, commands: tuple[str, ...]) -> Drill:
    run: Callable[[Path], str] = functools.partial(mistakes, commands=commands)
    return Drill(f"{len(commands)} mistakes: {what}", "a message each that says what to type", run)


DRILLS = (
    Drill(
        "a step that does not fit into memory",
        "the process ends at once and says what fits",
        too_little_memory,
    ),
    _unread("standard output is closed at the start", ">&-"),
    _unread("standard error is closed at the start", "2>&-"),
    _unread("both are closed at the start", ">&- 2>&-"),
    _unread("the disk behind the output is full", ">/dev/full"),
    _unread("the disk behind the output and the errors is full", ">/dev/full 2>&1"),
    Drill("| head -1 behind every verb", "it ends quietly with exit code 0", first_line),
    Drill("a folder of images, for which TensorFlow is imported", "no notes on the terminal", notes),
    _mistakes("the command line", QUICK_MISTAKES),
    _mistakes("training and evaluation", RUN_MISTAKES),
    _mistakes("the other verbs", MORE_MISTAKES),
)
