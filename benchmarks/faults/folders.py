"""A run's folder when a second process wants it, when its files are damaged, and when the data have changed.

The run is SimCLR on the digits, or a supervised network on a folder of 144 small images.
"""

from __future__ import annotations

import functools
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.faults.drill import Drill, expect
from tests.processes import SMALL, checkpoints, finish, kill, logged, run, start, wait_for

CLASSES = ("bird", "cat", "dog")

# A supervised network of 8 channels on the images of `photos`: 11 steps.
PHOTOS = (
    "--config=configs/supervised.py:digits",
    "--config.model.width=0.125",
    "--config.model.stem=imagenet",
    "--config.batch_size=24",
    "--config.epochs=2",
    "--config.optim.warmup_epochs=0",
    "--config.log_every=5",
    "--config.checkpoint.every_steps=5",
    "--config.eval_every_epochs=0",
)
LAST = 11


def photos(folder: Path) -> Path:
    """Write 40 training and 8 test images of each class."""
    root = folder / "photos"
    for split, count in (("train", 40), ("test", 8)):
        for label, name in enumerate(CLASSES):
            place = root / split / name
            place.mkdir(parents=True)
            draw = np.random.default_rng([label, count])
            for i in range(count):
                pixels = draw.integers(0, 255, (16, 16), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{name}{i:02}.png")
    return root


def train_photos(folder: Path, *flags: str) -> tuple[int, str]:
    """Start or resume the run on the images. Returns (exit code, what ssljax said)."""
    source = f"--config.data.source=folder:{folder / 'photos'}"
    code, output = run("train", *PHOTOS, source, *flags, f"--workdir={folder / 'run'}", cache=folder / "xla")
    return code, said(output)


def said(output: str) -> str:
    """The lines of an output that are ssljax's, without its folders."""
    lines = [
        line for line in output.splitlines() if re.match(r"ssljax|resuming|WARNING go|WARNING the|.*Tr", line)
    ]
    return re.sub(r"/\S*/", "", "; ".join(lines))


# ---------------------------------------------------------------------------------- two processes, one folder


def second_process(folder: Path) -> str:
    """A second process in the folder is refused, the first one trains on, and readers may read."""
    workdir, cache = folder / "run", folder / "xla"
    flags = (*SMALL, "--config.epochs=300", f"--workdir={workdir}")
    first = start("train", *flags, cache=cache)
    wait_for(lambda: len(logged(workdir)) > 3, first)
    code, output = run("train", *flags, cache=cache)
    wait_for(lambda: len(checkpoints(workdir)) > 0, first)
    read, judged = run("evaluate", *flags, "--protocols=knn", cache=cache)
    rows = len(logged(workdir))
    wait_for(lambda: len(logged(workdir)) > rows, first)
    first.send_signal(signal.SIGTERM)
    ended, _ = finish(first)
    steps = [row["step"] for row in logged(workdir)]
    seen = (
        f"the second ended with exit code {code}: {said(output)}; evaluate meanwhile with {read}; the first "
        f"with {ended}"
    )
    expect(read == 0, f"{seen}; {said(judged)}")
    expect(code == 1 and ended == 0 and f"process {first.pid} on" in output, seen)
    expect("Traceback" not in output and steps == sorted(set(steps)), seen)
    return seen


def killed_holder(folder: Path) -> str:
    """A killed process leaves its lock file behind, and nobody waits for it."""
    workdir, cache = folder / "run", folder / "xla"
    flags = (*SMALL, "--config.epochs=300", f"--workdir={workdir}")
    first = start("train", *flags, cache=cache)
    wait_for(lambda: len(checkpoints(workdir)) > 0, first)
    kill(first)
    left = (workdir / "lock").exists()
    rows = len(logged(workdir))
    second = start("train", *flags, cache=cache)
    wait_for(lambda: len(logged(workdir)) > rows + 3, second)
    second.send_signal(signal.SIGTERM)
    code, output = finish(second)
    seen = f"lock file left behind: {left}; the same command ended with exit code {code}: {said(output)}"
    expect(left and code == 0 and "resuming" in output and not (workdir / "lock").exists(), seen)
    return seen


# ---------------------------------------------------------------------------------------------- changed data


def image_gone(root: Path) -> None:
    """Delete a training image."""
    (root / "train" / "cat" / "cat07.png").unlink()


def image_replaced(root: Path) -> None:
    """Put another image of the same size into a training image's place."""
    shutil.copy(root / "train" / "cat" / "cat08.png", root / "train" / "cat" / "cat07.png")


def folders_swapped(root: Path) -> None:
    """Exchange the names of two class folders."""
    (root / "train" / "cat").rename(root / "train" / "was_cat")
    (root / "train" / "dog").rename(root / "train" / "cat")
    (root / "train" / "was_cat").rename(root / "train" / "dog")


def folder_renamed(root: Path) -> None:
    """Give a class another name."""
    for split in ("train", "test"):
        (root / split / "bird").rename(root / split / "parrot")


def class_added(root: Path) -> None:
    """Add a class."""
    for split in ("train", "test"):
        shutil.copytree(root / split / "cat", root / split / "emu")


def changed(folder: Path, change: Callable[[Path], None], message: str) -> str:
    """Train, change the images, and resume: refused with the difference."""
    root = photos(folder)
    code, output = train_photos(folder)
    expect(code == 0, output)
    before = (folder / "run" / "metrics.jsonl").read_bytes()
    change(root)
    code, output = train_photos(folder)
    seen = f"exit code {code}: {output}"
    untouched = (folder / "run" / "metrics.jsonl").read_bytes() == before
    expect(code == 1 and message in output and "Traceback" not in output and untouched, seen)
    return seen


def accepted(folder: Path) -> str:
    """The run goes on with changed images when told to, and its record says so."""
    root = photos(folder)
    code, output = train_photos(folder)
    expect(code == 0, output)
    shutil.rmtree(folder / "run" / "checkpoints" / str(LAST))  # so that there is something left to do
    image_gone(root)
    code, output = train_photos(folder, "--accept-changed-data")
    record = (folder / "run" / "run.json").read_text().splitlines()[-1]
    again, _ = train_photos(folder)
    seen = f"exit code {code}: {output}; the same command without the flag: exit code {again}"
    noted = "cat/cat07.png is gone" in record
    expect(code == again == 0 and "WARNING going on with changed" in output and noted, seen)
    return seen


def test_images(folder: Path) -> str:
    """A change of the held-out images is said."""
    root = photos(folder)
    code, output = train_photos(folder)
    expect(code == 0, output)
    (root / "test" / "cat" / "cat07.png").unlink()
    code, output = train_photos(folder)
    seen = f"exit code {code}: {output}"
    expect(code == 0 and "the held-out images changed" in output, seen)
    return seen


# --------------------------------------------------------------------------------------------- damaged files


def half_config(folder: Path) -> str:
    """Every verb that reads a half-written config.json names it and the way out, and the way out works."""
    root = photos(folder)
    code, output = train_photos(folder)
    expect(code == 0, output)
    file = folder / "run" / "config.json"
    file.write_bytes(file.read_bytes()[:100])
    code, output = train_photos(folder)
    embed = (f"--workdir={folder / 'run'}", f"--images={root / 'test'}", f"--out={folder / 'out.npz'}")
    embed_code, embed_output = run("embed", *embed, cache=folder / "xla")
    file.unlink()
    after, _ = train_photos(folder)
    seen = f"train, exit code {code}: {output}; embed, exit code {embed_code}; deleted, exit code {after}"
    for text in (output, embed_output):
        expect("config.json is damaged or half-written" in text and "Traceback" not in text, seen)
    expect((code, embed_code, after) == (1, 1, 0), seen)
    return seen


def half_run_json(folder: Path) -> str:
    """An empty run.json is named where it is needed, and the next start writes it anew."""
    root = photos(folder)
    code, output = train_photos(folder)
    expect(code == 0, output)
    (folder / "run" / "run.json").write_text("")
    embed = (f"--workdir={folder / 'run'}", f"--images={root / 'test'}", f"--out={folder / 'out.npz'}")
    code, output = run("embed", *embed, cache=folder / "xla")
    train_code, _ = train_photos(folder)
    after, _ = run("embed", *embed, cache=folder / "xla")
    seen = f"embed, exit code {code}: {said(output)}; train, {train_code}; embed again, {after}"
    expect((code, train_code, after) == (1, 0, 0) and "run.json is empty" in output, seen)
    return seen


def broken_line(folder: Path) -> str:
    """A damaged line in the middle of metrics.jsonl is named; without it the run goes on."""
    photos(folder)
    code, output = train_photos(folder)
    expect(code == 0, output)
    file = folder / "run" / "metrics.jsonl"
    first, second, third = file.read_text().splitlines(keepends=True)
    file.write_text(first + second[:9] + "\n" + third)
    code, output = train_photos(folder)
    kept = file.read_text() == first + second[:9] + "\n" + third
    file.write_text(first + third + second[:9])
    after, _ = train_photos(folder)
    cut = file.read_text() == first + third
    seen = f"exit code {code}: {output}; as the last line it is cut off: {cut}, exit code {after}"
    expect(code == 1 and "metrics.jsonl, line 2 of 3" in output and kept, seen)
    expect(after == 0 and cut, seen)
    return seen


def _changed(name: str, change: Callable[[Path], None], message: str) -> Drill:
    follows = f"the same command is refused and says: {message}"
    return Drill(name, follows, functools.partial(changed, change=change, message=message))


DRILLS = (
    Drill(
        "a second process in the folder",
        "it is refused and says who trains there; evaluate is not; the first goes on",
        second_process,
    ),
    Drill("the process is killed and its lock file stays", "the same command goes on at once", killed_holder),
    _changed("a training image is deleted", image_gone, "had 40 images, now 39: cat/cat07.png is gone"),
    _changed("a training image is replaced", image_replaced, "cat/cat07.png"),
    _changed("two class folders are swapped", folders_swapped, "the classes cat and dog changed places"),
    _changed("a class folder is renamed", folder_renamed, "class bird is now called parrot"),
    _changed("a class is added", class_added, "class emu is new (there were 3 classes, now 4)"),
    Drill(
        "an image is deleted, and --accept-changed-data",
        "the run goes on, and run.json says with what; after that no flag is needed",
        accepted,
    ),
    Drill("a held-out image is deleted", "the run says so and goes on", test_images),
    Drill(
        "config.json is half-written",
        "train and embed name it and the way out; when it is deleted, train writes it anew",
        half_config,
    ),
    Drill("run.json is empty", "embed names it; train writes it anew", half_run_json),
    Drill("a line of metrics.jsonl is damaged", "its number; the last line is cut off", broken_line),
)
