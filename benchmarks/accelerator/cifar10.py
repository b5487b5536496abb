"""CIFAR-10 by lightly's recipe on one accelerator: seconds per epoch, and kNN at the end (question b).

    python -m benchmarks.accelerator.cifar10 --paper simclr --seed 0 --images FOLDER_OR_TAR --workdir DIR \\
        --out FOLDER [--seconds 420] [--commit ID] [--toy]

Papers: simclr, moco, byol, deepcluster. Runs `ssljax train` on the preset `cifar10_lightly`, and stops it
after `--seconds` with SIGTERM, which saves a checkpoint. The same command then goes on, also on another
machine to which DIR was copied. When the run is done, `ssljax evaluate` measures kNN on the test images. Each
call appends a line to FOLDER/cifar10.jsonl. `supervised` trains the same network on all labels for a hundred
epochs, and its own head is measured: a control for images that are not the original ones.

Images are files in train/CLASS and test/CLASS, or a tar of them, which is unpacked to DIR/images. They are
decoded once and kept in memory; crops and colours are drawn on the device. `--toy` trains two epochs of a
small network on 640 images, on a CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from ssljax import results

PRESETS = {
    "simclr": "cifar10_lightly",
    "moco": "cifar10_lightly",
    "byol": "cifar10_lightly",
    "deepcluster": "cifar10_lightly_v2",
    "supervised": "cifar10_r18",
}
CHANGES: dict[str, dict[str, Any]] = {
    "supervised": {"epochs": 100, "model.dtype": "bfloat16", "optim.weight_decay": 5e-4}
}
PROTOCOLS = {"supervised": "classifier"}  # knn of all others
TOY = {
    "model.name": "resnet10",
    "model.width": 0.125,
    "model.dtype": "float32",
    "data.train_per_class": 64,
    "batch_size": 64,
    "epochs": 2,
    "log_every": 5,
}
TOY_ONLY = {
    "moco": {"queue.size": 256},
    "deepcluster": {"clusters.k": 20},
    "supervised": {"optim.warmup_epochs": 0},
}


def flags_of(paper: str, seed: int, images: Path, workdir: Path, *, toy: bool) -> list[str]:
    """The flags of `ssljax train` and `ssljax evaluate`."""
    changes = {"seed": seed, "data.source": f"folder:{images}"} | CHANGES.get(paper, {})
    if toy:
        changes |= TOY | TOY_ONLY.get(paper, {})
    overrides = [f"--config.{key}={value}" for key, value in changes.items()]
    return [f"--config=configs/{paper}.py:{PRESETS[paper]}", f"--workdir={workdir}", *overrides]


def unpacked(images: Path, folder: Path) -> Path:
    """The folder of the images; a tar is unpacked to `folder`, unless that was done before."""
    if images.is_dir():
        return images
    if folder.is_dir():
        return folder
    with tarfile.open(images) as archive:
        archive.extractall(folder, filter="data")
    return folder


def run(verb: str, flags: list[str], seconds: float) -> bool:
    """Run a verb, and stop it with SIGTERM after some seconds. Returns whether it came to its end.

    Raises:
        SystemExit: it failed.
    """
    process = subprocess.Popen([sys.executable, "-m", f"ssljax.{verb}", *flags])
    try:
        code = process.wait(seconds)
        stopped = False
    except subprocess.TimeoutExpired:
        process.terminate()
        code = process.wait(60)
        stopped = True
    if code:
        raise SystemExit(f"ssljax {verb} ended with exit code {code}: see above")
    return not stopped


def measured(workdir: Path) -> dict[str, Any]:
    """What metrics.jsonl says of a run; an epoch has 50,000 images.

    Raises:
        SystemExit: the run was stopped before it logged anything.
    """
    if not (workdir / "metrics.jsonl").exists():
        raise SystemExit(
            "stopped before the first logged step: give --seconds more; the same command goes on"
        )
    rows = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "images_per_second" in row]
    rates = [row["images_per_second"] for row in logged[1:]]  # the first includes the start
    rate = statistics.median(rates) if rates else float("nan")
    knn = [row["knn"] for row in rows if "knn" in row]
    return {
        "epochs_done": logged[-1]["epoch"],
        "images_per_second": rate,
        "seconds_per_epoch": 50_000 / rate,
        "input_bound": statistics.median(row["input_bound"] for row in logged),
        "loss": logged[-1]["loss"],
        "knn_while_training": knn[-1] if knn else float("nan"),
    }


def last(file: Path, metric: str) -> float:
    """The last measurement of a metric in results.jsonl."""
    rows = [json.loads(text) for text in file.read_text().splitlines()]
    return [row["value"] for row in rows if row.get("metric") == metric][-1]


def main() -> None:
    """One run, or a part of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--paper", choices=PRESETS, default="simclr")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=Path, required=True, help="a folder, or a tar of it")
    parser.add_argument("--workdir", type=Path, required=True, help="of the run, which goes on from there")
    parser.add_argument("--out", type=Path, required=True, help="the folder of cifar10.jsonl")
    parser.add_argument("--seconds", type=float, default=420, help="of training in this call")
    parser.add_argument("--commit", default="", help="of the source; empty asks git")
    parser.add_argument("--toy", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)

    images = unpacked(given.images, given.workdir / "images")
    flags = flags_of(given.paper, given.seed, images, given.workdir / "run", toy=given.toy)
    finished = run("train", flags, given.seconds)
    found: dict[str, Any] = {"finished": finished, **measured(given.workdir / "run")}
    if finished:
        protocol = PROTOCOLS.get(given.paper, "knn")
        run("evaluate", [*flags, f"--protocols={protocol}"], 300)
        found[protocol] = last(given.workdir / "run" / "results.jsonl", "top1")

    import jax

    line = {
        "question": "cifar10",
        "paper": given.paper,
        "preset": PRESETS[given.paper],
        "seed": given.seed,
        "toy": given.toy,
        "commit": given.commit or results.commit(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "date": results.now(),
        **found,
    }
    with (given.out / "cifar10.jsonl").open("a") as out:
        out.write(json.dumps(line) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
