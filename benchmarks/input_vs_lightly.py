"""The input pipeline against lightly's, in alternation on the same machine.

    python benchmarks/input_vs_lightly.py --photos FOLDER --torch-python PATH/TO/python [--rounds 5]

Measures source images per second, each turned into two SimCLR views.

At 224 pixels, from the JPEG files in FOLDER:
    lightly            SimCLRTransform in a DataLoader with 2 workers: decode, crop, flip, colour, blur and
                       normalise, all on the host
    host               ssljax.data.loader: decode, crop, flip -> uint8. This is what the host does when an
                       accelerator does the rest
    host + device      the same, then ssljax.data.augment jitted on this CPU: the same work as lightly's
At 32 pixels, the same pictures in memory, without blur:
    lightly            SimCLRTransform on the host, 2 workers
    device             crop, flip and colour, jitted on this CPU

Ratios are taken within a round and their median is printed, so that a change of load affects both sides.
PyTorch and lightly are imported in the child process only (`--torch-python`: an environment that has them).
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
    """lightly's side, in its own process: one epoch per line on stdin, whose images per second it prints."""
    import numpy as np
    import torch
    from lightly.transforms import SimCLRTransform
    from PIL import Image

    small = size == 32
    encoded = [path.read_bytes() for path in photographs(folder)]

    def decoded(i: int) -> Image.Image:
        return Image.open(io.BytesIO(encoded[i])).convert("RGB")

    pictures = []
    if small:
        for i in range(len(encoded)):
            pictures.append(np.asarray(decoded(i).resize((32, 32), Image.BICUBIC)))

    class Views(torch.utils.data.Dataset):
        transform = SimCLRTransform(
            input_size=size, gaussian_blur=0.0 if small else 0.5, cj_strength=0.5 if small else 1.0
        )

        def __len__(self) -> int:
            return n

        def __getitem__(self, i: int) -> list[torch.Tensor]:
            i %= len(encoded)
            picture = Image.fromarray(pictures[i]) if small else decoded(i)
            return self.transform(picture)

    torch.set_num_threads(1)
    batches = torch.utils.data.DataLoader(
        Views(), BATCH[size], num_workers=2, persistent_workers=True, drop_last=True
    )
    list(batches)  # start the workers
    print("ready", flush=True)
    for _ in sys.stdin:
        seen = 0
        start = time.perf_counter()
        for views in batches:
            seen += len(views[0])
        print(seen / (time.perf_counter() - start), flush=True)


def ours(folder: str, size: int, n: int, *, device: bool) -> Callable[[], float]:
    """Our side: a function that runs over n images and returns images per second.

    The images come from `train_batches`. With `device`, the jitted `views.stacked` follows.
    """
    import jax

    from configs.simclr import get_config
    from ssljax.config import resolve
    from ssljax.data import loader, sources, views

    config = get_config("imagenet_r50" if size == 224 else "cifar10_r18").unlock()
    config.data.source = f"folder:{folder}"
    config.batch_size = BATCH[size]
    config = resolve(config)
    source = sources.load(config.data, "train")
    source = source.select([i % len(source) for i in range(max(n, BATCH[size]))])

    @jax.jit
    def make(batch: dict[str, jax.Array], step: int) -> jax.Array:
        return views.stacked(batch, jax.random.fold_in(jax.random.key(0), step), config)

    def run() -> float:
        batches = loader.train_batches(source, config)
        for step in range(4):  # compile, and use up the prefetched batches before the clock starts
            batch = next(batches)
            if device:
                make(batch, step).block_until_ready()
        seen = 0
        start = time.perf_counter()
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
    """Run all contestants in turn, `rounds` times. Returns medians, and ratios to the first contestant.

    Prints the rates of every round to stderr.
    """
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, run in contestants.items():
            rates[name].append(run())
        latest = ", ".join(f"{name} {r[-1]:.0f}" for name, r in rates.items())
        print(f"{size:3d} px, round {number + 1}: {latest}", file=sys.stderr)
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
    """Run both sizes. Prints a table and, with --json, appends its rows to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", required=True, help="a folder with JPEG files")
    parser.add_argument(
        "--torch-python", default=sys.executable, help="a Python with torch, torchvision and lightly"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--n", type=int, default=0, help="images per run; default 512 at 224 pixels, 4096 at 32"
    )
    parser.add_argument("--json", default="", help="append the rows to this file")
    parser.add_argument("--child", type=int, default=0, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        return child(flags.photos, flags.child, flags.n)
    from benchmarks.torch_process import TorchProcess

    rows = []
    with tempfile.TemporaryDirectory() as root:  # a single class, so that any folder of photographs works
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
    line = "{size:6d}  {pipeline:14} {img_per_s:9.0f} {ratio:12.2f} ({ratio_min:.2f}-{ratio_max:.2f})"
    for row in rows:
        print(line.format(**row))
    if flags.json:
        with open(flags.json, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
