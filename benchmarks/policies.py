"""What RandAugment and AutoAugment cost the host: the input pipeline with and without them.

    [taskset -c 0] python benchmarks/policies.py --photos FOLDER [--rounds 5] [--seconds 5]

There is one view per image. At 224 pixels the images are the JPEG files in FOLDER (decode, crop, flip), at 32
pixels the same pictures in memory (crop, flip). All pipelines run in turn, on the cores that the process may
use. Ratios are taken within a round, against the first line. The CPU time per image hardly depends on what
else the machine does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs.simclr import get_config
from ssljax.config import resolve
from ssljax.data import loader, sources

BATCH = {224: 64, 32: 512}
PIPELINES = {
    "plain": dict(antialias=False, policy="none"),
    "antialiased": dict(antialias=True, policy="none"),
    "+ randaugment": dict(
        antialias=True, policy="randaugment", policy_magnitude=9.0, policy_std=0.5, policy_ops=2
    ),
    "+ autoaugment_original": dict(antialias=True, policy="autoaugment_original"),
}


def run(folder: str, size: int, pipeline: dict, seconds: float) -> tuple[float, float]:
    """Run `train_batches`, not counting its first four batches.

    Returns:
        Images per second, and milliseconds of CPU time per image.
    """
    config = get_config("imagenet_r50").unlock()
    config.batch_size = BATCH[size]
    config.data.update(
        source=f"folder:{folder}", image_size=size, crop_on="host" if size == 224 else "device"
    )
    config.views = dict(one=dict())
    config.augment.update(crop="torchvision", jitter_probability=0.0, **pipeline)
    config = resolve(config)
    source = sources.load(config.data, "train")  # crop_on="device": decoded into memory
    source = source.select([i % len(source) for i in range(max(len(source), BATCH[size]))])
    config.data.crop_on = "host"
    batches = loader.train_batches(source, config)
    for _ in range(4):
        next(batches)
    seen = 0
    start = time.perf_counter()
    used = time.process_time()
    while time.perf_counter() - start < seconds:
        seen += len(next(batches)["label"])
    rate = seen / (time.perf_counter() - start)
    cpu_ms = 1e3 * (time.process_time() - used) / seen
    batches.close()
    return rate, cpu_ms


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", required=True, help="a folder with JPEG files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run")
    flags = parser.parse_args()
    print(f"{len(os.sched_getaffinity(0))} cores")
    print(
        f"{'pixels':>6}  {'pipeline':24} {'images/s':>9} {'of the first, median (range)':>30} "
        f"{'CPU ms/image':>13}"
    )
    with tempfile.TemporaryDirectory() as root:  # a single class, so that any folder of photographs works
        (Path(root) / "train" / "all").mkdir(parents=True)
        for path in sorted(Path(flags.photos).rglob("*")):
            if path.suffix.lower() in (".jpg", ".jpeg"):
                os.symlink(path.resolve(), Path(root) / "train" / "all" / f"{path.stem}.jpg")
        for size in BATCH:
            runs: dict[str, list[tuple[float, float]]] = {name: [] for name in PIPELINES}
            for _ in range(flags.rounds):
                for name, pipeline in PIPELINES.items():
                    runs[name].append(run(root, size, pipeline, flags.seconds))
            for name, found in runs.items():
                ratios = [a / b for (a, _), (b, _) in zip(found, runs["plain"], strict=True)]
                rate = statistics.median(rate for rate, _ in found)
                cpu_ms = statistics.median(cpu_ms for _, cpu_ms in found)
                ratio = f"{statistics.median(ratios):16.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
                print(f"{size:6d}  {name:24} {rate:9.0f} {ratio} {cpu_ms:13.2f}", flush=True)


if __name__ == "__main__":
    main()
