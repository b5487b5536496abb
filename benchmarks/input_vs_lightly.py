"""Input pipeline against lightly's, in alternation on the same machine: source images a second, two SimCLR views each.

    python benchmarks/input_vs_lightly.py --photos FOLDER --torch-python PATH/TO/python [--rounds 5]

At 224 pixels, from the JPEG files in FOLDER:
    lightly            SimCLRTransform in a DataLoader with 2 workers: decode, crop, flip, colour, blur, normalise, all on the host
    host               ssljax.data.loader: decode, crop, flip -> uint8. What is left to the host when an accelerator does the rest
    host + device      the same, then ssljax.data.augment jitted on this CPU: the same work as lightly
At 32 pixels, the same pictures in memory, without blur:
    lightly            SimCLRTransform on the host, 2 workers
    device             crop, flip and colour jitted on this CPU

Ratios are taken within a round and their median is printed, so that a change of load touches both. PyTorch and lightly are imported in
the child process alone (`--torch-python`: an environment that has them).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SUFFIXES = (".jpg", ".jpeg")
BATCH = {224: 64, 32: 256}


def photographs(folder: str) -> list[Path]:
    """All JPEG files below the folder, sorted."""
    found = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise SystemExit(f"--photos {folder}: no {' or '.join(SUFFIXES)} file below it")
    return found


def child(folder: str, size: int, n: int) -> None:
    """lightly's side, in its own process: for every line on stdin one epoch, its images a second on stdout."""
    import numpy as np
    import torch
    from lightly.transforms import SimCLRTransform
    from PIL import Image

    encoded = [path.read_bytes() for path in photographs(folder)]
    pictures = (
        [
            np.asarray(Image.open(io.BytesIO(e)).convert("RGB").resize((32, 32), Image.BICUBIC))
            for e in encoded
        ]
        if size == 32
        else []
    )

    class Views(torch.utils.data.Dataset):
        transform = SimCLRTransform(
            input_size=size, gaussian_blur=0.0 if size == 32 else 0.5, cj_strength=0.5 if size == 32 else 1.0
        )

        def __len__(self) -> int:
            return n

        def __getitem__(self, i: int) -> list[torch.Tensor]:
            i %= len(encoded)
            return self.transform(
                Image.fromarray(pictures[i])
                if size == 32
                else Image.open(io.BytesIO(encoded[i])).convert("RGB")
            )

    torch.set_num_threads(1)
    batches = torch.utils.data.DataLoader(
        Views(), BATCH[size], num_workers=2, persistent_workers=True, drop_last=True
    )
    list(batches)  # start the workers
    print("ready", flush=True)
    for _ in sys.stdin:
        start, seen = time.perf_counter(), 0
        for views in batches:
            seen += len(views[0])
        print(seen / (time.perf_counter() - start), flush=True)


def ours(folder: str, size: int, n: int, *, device: bool) -> Callable[[], float]:
    """One run over n images through `train_batches`, with `views.stacked` jitted behind it or not; returns images a second."""
    import jax

    from configs.simclr import get_config
    from ssljax.config import resolve
    from ssljax.data import loader, sources, views

    config = get_config("imagenet_r50" if size == 224 else "cifar10_r18").unlock()
    config.data.source, config.batch_size = f"folder:{folder}", BATCH[size]
    config = resolve(config)
    source = sources.load(config.data, "train")
    source = source.select([i % len(source) for i in range(max(n, BATCH[size]))])
    make = jax.jit(
        lambda batch, step: views.stacked(batch, jax.random.fold_in(jax.random.key(0), step), config)
    )

    def run() -> float:
        batches = loader.train_batches(source, config)
        for step in range(4):  # compile, and use up what was prepared before the clock starts
            batch = next(batches)
            if device:
                make(batch, step).block_until_ready()
        start, seen = time.perf_counter(), 0
        while seen < n:
            batch = next(batches)
            done = make(batch, seen) if device else batch["image"]
            seen += len(batch["label"])
        if device:
            done.block_until_ready()
        rate = seen / (time.perf_counter() - start)
        batches.close()
        return rate

    return run


def alternate(contestants: dict[str, Callable[[], float]], rounds: int, size: int) -> list[dict]:
    """Runs all contestants in turn, `rounds` times; the first is the peer. Prints and returns medians and ratios."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, run in contestants.items():
            rates[name].append(run())
        print(
            f"{size:3d} px, round {number + 1}: "
            + ", ".join(f"{name} {r[-1]:.0f}" for name, r in rates.items()),
            file=sys.stderr,
        )
    peer = next(iter(rates.values()))
    rows = []
    for name, r in rates.items():
        ratios = [a / b for a, b in zip(r, peer, strict=True)]
        rows.append(
            {
                "size": size,
                "pipeline": name,
                "img_per_s": round(statistics.median(r), 1),
                "rounds": rounds,
                "ratio": round(statistics.median(ratios), 2),
                "ratio_min": round(min(ratios), 2),
                "ratio_max": round(max(ratios), 2),
            }
        )
    return rows


def main() -> None:
    """Both sizes; a table on stdout and, with --json, one line a row in a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", required=True, help="a folder with JPEG files")
    parser.add_argument(
        "--torch-python", default=sys.executable, help="a Python with torch, torchvision and lightly"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--n", type=int, default=0, help="images a run; default 512 at 224 pixels, 4096 at 32"
    )
    parser.add_argument("--json", default="", help="append the rows to this file")
    parser.add_argument("--child", type=int, default=0, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        return child(flags.photos, flags.child, flags.n)
    from benchmarks.torch_process import TorchProcess

    rows = []
    with tempfile.TemporaryDirectory() as root:  # one class, so that any folder of photographs will do
        for split in ("train", "test"):
            (Path(root) / split / "all").mkdir(parents=True)
        for i, path in enumerate(photographs(flags.photos)):
            os.symlink(path.resolve(), Path(root) / "train" / "all" / f"{i}.jpg")
        for size, device_only, n in ((224, False, flags.n or 512), (32, True, flags.n or 4096)):
            lightly = TorchProcess(
                flags.torch_python, __file__, "--photos", flags.photos, "--child", str(size), "--n", str(n)
            )
            contestants = {"lightly": lambda lightly=lightly: lightly.ask()[0]}
            if not device_only:
                contestants["host"] = ours(root, size, n, device=False)
            contestants["device" if device_only else "host + device"] = ours(root, size, n, device=True)
            rows += alternate(contestants, flags.rounds, size)
            lightly.close()
    print(f"{'pixels':>6}  {'pipeline':14} {'images/s':>9} {'x lightly, median (range)':>28}")
    for row in rows:
        print(
            "{size:6d}  {pipeline:14} {img_per_s:9.0f} {ratio:12.2f} ({ratio_min:.2f}-{ratio_max:.2f})".format(
                **row
            )
        )
    if flags.json:
        with open(flags.json, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
