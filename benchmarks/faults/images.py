"""A run on images that are damaged, too large or no images at all, and files that strangers wrote.

Each run trains SimCLR for a few steps on 40 small pictures in two classes. TensorFlow decodes and crops them.
"""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from benchmarks.faults.drill import Drill, expect
from tests.data.test_damage import cut, holed, picture, png, saved
from tests.processes import ROOT, SMALL, logged, run

TRAIN = [
    *("--config=configs/simclr.py:folder", *SMALL[1:]),
    "--config.model.name=resnet18",
    "--config.data.image_size=32",
    "--config.batch_size=4",
    "--config.epochs=2",
    "--config.optim.warmup_epochs=0",
    "--config.log_every=1",
    "--config.checkpoint.every_steps=3",
]
# Drawn late in the first epoch.
LATE = {"a/16.png": holed, "b/31.jpg": functools.partial(holed, size=500), "b/25.jpg": cut}
SKIP = "--config.data.on_bad_image=skip"


def pictures(folder: Path) -> Path:
    """Write 40 pictures in two classes, as JPEG and PNG."""
    root = folder / "pictures"
    for i in range(40):
        path = root / "ab"[i // 20] / f"{i:02}.{'png' if i % 4 == 0 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(size=(100 + i, 80)).save(path)
    return root


def train(root: Path, workdir: Path, *flags: str) -> tuple[int, str]:
    """Run `ssljax train`. Returns its exit code and what it printed."""
    source = f"--config.data.source=folder:{root}"
    return run("train", *TRAIN, source, f"--workdir={workdir}", *flags, cache=workdir.parent / "xla")


def last_line(output: str) -> str:
    """The last line with a word of ours, without the folder of the drill."""
    lines = [line for line in output.splitlines() if line.startswith(("ssljax", "done"))]
    return re.sub(r"/\S*/(pictures|run)\b", r"\1", lines[-1]) if lines else output[-300:]


def losses(workdir: Path) -> dict[int, float]:
    """Step -> loss."""
    return {row["step"]: row["loss"] for row in logged(workdir) if "loss" in row}


def in_mid_training(folder: Path) -> str:
    """Damage that only the decoder finds: the run ends, and goes on with skip like one that always had it."""
    root = pictures(folder)
    for name, spoiled in LATE.items():
        (root / name).write_bytes(spoiled((root / name).read_bytes()))
    code, output = train(root, folder / "run")
    named = last_line(output)
    expect(code == 1 and "cannot be read as an image" in named and SKIP in named, named)
    expect("Traceback" not in output, "a traceback")
    reached = max(losses(folder / "run"), default=0)

    code, output = train(root, folder / "run", SKIP)
    replaced = output.count("takes its place")
    resumed = re.search(r"resuming .* at (step \d+)", output)
    expect(code == 0 and replaced == 3, f"with skip: {replaced} replaced, {last_line(output)}")
    expect(bool(resumed), "the same command with skip began anew")
    code, output = train(root, folder / "always", SKIP)
    same = losses(folder / "run") == losses(folder / "always")
    expect(code == 0 and same, "other losses than those of a run that had skip from the start")
    return (
        f"after step {reached}: {named}; with skip it went on at {resumed and resumed[1]}, 3 images were "
        "replaced, and every loss is that of a run that always had skip"
    )


def before_training(folder: Path, make: dict[str, bytes | str]) -> str:
    """What a header or the file system shows: named before the first step; left out with skip.

    Args:
        folder: of the drill.
        make: name -> the content of a file, or "folder", "pipe" or the target of a link.
    """
    root = pictures(folder)
    said = []
    for name, content in make.items():
        path = root / "a" / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content == "folder":
            path.mkdir()
        elif content == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(content)
        code, output = train(root, folder / "run")
        named = last_line(output)
        expect(code == 1 and name in named and SKIP in named and "Traceback" not in output, named)
        found = re.search(r"image \((.*?)\): replace", named)
        said.append(found[1] if found else named)
        path.rename(folder / name)

    for name in make:
        (folder / name).rename(root / "a" / name)
    code, output = train(root, folder / "run", SKIP, "--config.epochs=1")
    left = sum(map(int, re.findall(r"(\d+) unreadable images? left out", output)))  # of train and of test
    expect(code == 0 and left == len(make), f"with skip: {left} left out, {last_line(output)}")
    return f"before the first step: {'; '.join(said)}. With skip {len(make)} left out"


def of_other_kinds(folder: Path) -> str:
    """Files whose first bytes show that they are not images to train on."""
    line = Image.new("1", (20_000, 20_000))
    return before_training(
        folder,
        {
            "drawing.png": png(20_990, 29_700),
            "line.png": saved(line, "PNG"),
            "page.jpg": b"%PDF-1.7",
        },
    )


def not_files(folder: Path) -> str:
    """What is no file at all."""
    return before_training(folder, {"folder.jpg": "folder", "link.jpg": "/nowhere.jpg", "pipe.jpg": "pipe"})


def poisoned_report(folder: Path) -> str:
    """A results.jsonl with a script, a link and table syntax in every text must become plain text."""
    poison = "<script>alert(1)</script> | [here](javascript:alert(1)) `x` ``<img src=x>\n\n# no"
    rows = [json.loads(line) for line in (ROOT / "experiments/simclr/results.jsonl").open()]
    for row in rows[:40]:
        row["changed"] = {poison: poison}
        row |= {key: poison for key in ("data", "protocol", "features", "commit", "command", "experiment")}
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:40]))
    code, output = run("report", str(folder), cache=folder / "xla")
    expect(code == 0, last_line(output))
    text = re.sub(r"^(`{3,})$.*?^\1$", "", (folder / "report.md").read_text(), flags=re.M | re.S)
    text = re.sub(r"(?<![\\`])`[^`]+`(?!`)", "", text)  # code is not acted on
    live = re.findall(r"<script|<img|[^\\]\]\(java|^# no", text, re.M)
    expect(not live, f"live in report.md: {live}")
    return f"nothing of it is live in report.md ({text.count('script')} times plain text)"


def damaged_weights(folder: Path) -> str:
    """A download that broke off: `convert` must name the file and what to do."""
    file = folder / "weights.safetensors"
    save_file({"head.weight": np.ones((3, 4), np.float32)}, file)
    command = [
        "--config=configs/supervised.py:imagenet_vit_s",
        f"--workdir={folder / 'run'}",
        f"--from={file}",
    ]
    file.write_bytes(file.read_bytes()[:-5])
    code, output = run("convert", *command, cache=folder / "xla")
    cut_short = last_line(output)
    expect(code == 1 and "weights.safetensors is damaged" in cut_short, cut_short)
    return cut_short


DRILLS = (
    Drill(
        "a hole in a JPEG and a PNG, a JPEG cut before its end marker",
        "the run names it; the same command with skip goes on with the next readable image in its place",
        in_mid_training,
    ),
    Drill(
        "a PNG of 623 million pixels, one of 400 million in 48 kB, a PDF named .jpg",
        "named before the first step, with the bound; left out with skip",
        of_other_kinds,
    ),
    Drill(
        "a folder, a link to nothing and a pipe named .jpg",
        "named before the first step, no hanging; left out with skip",
        not_files,
    ),
    Drill("scripts and links in results.jsonl", "plain text in report.md", poisoned_report),
    Drill("a safetensors file cut short", "`convert` names it and says what to do", damaged_weights),
)
