"""Images per second of the jitted random views alone, on one device (question c of README.md).

    python -m benchmarks.accelerator.augmentation --out FOLDER [--commit ID] [--toy]

The views of a preset, both of each image, from one batch of uint8 pixels that stays on the device. Appends a
line per case to FOLDER/augmentation.jsonl:

    photographs, colours          SimCLR at 224 pixels: jitter, grey and blur of crops that the host has made
    photographs, crops, colours   the same with the crop on the device
    small images                  SimCLR on CIFAR-10 at 32 pixels: crop, flip and colours
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import jax

from benchmarks.accelerator import jax_side, rows
from ssljax import cli, plan, results
from ssljax.data import views
from ssljax.program import build
from ssljax.types import Facts

# Preset, what is changed in it, images per batch.
CASES = {
    "photographs, colours": ("imagenet_r50_e100_b4096", {}, 128),
    "photographs, crops, colours": ("imagenet_r50_e100_b4096", {"data.crop_on": "device"}, 128),
    "small images": ("cifar10_r18", {}, 2048),
}


def measured(name: str, seconds: float, number: int, *, toy: bool) -> dict:
    """One case: images per second of each turn, seconds to compile, planned bytes."""
    preset, changes, size = CASES[name]
    size = 8 if toy else size
    changes = {**changes, "batch_size": size}
    config, _ = cli.overridden(cli.preset_of(f"configs/simclr.py:{preset}"), changes)
    program = build(config, Facts(50_000, 10, 50_000))
    batch = jax_side.ready_batch(plan.abstract_batch(program), 10)
    key = jax.random.key(0)

    begin = time.perf_counter()
    draw = jax.jit(lambda batch, key: views.stacked(batch, key, config))
    compiled = draw.lower(batch, key).compile()
    compile_seconds = time.perf_counter() - begin

    def steps(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            made = compiled(batch, key)
        jax.block_until_ready(made)
        return time.perf_counter() - start

    return {
        "case": name,
        "batch": size,
        "images_per_second": [size / rows.turn(steps, seconds) for _ in range(number)],
        "compile_seconds": compile_seconds,
        "memory": jax_side.planned(compiled),
    }


def main() -> None:
    """All cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one turn")
    parser.add_argument("--commit", default="", help="of the source; empty asks git")
    parser.add_argument("--toy", action="store_true", help="a CPU, small batches")
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)
    seconds = 0.2 if flags.toy else flags.seconds
    for name in CASES:
        line = {
            "question": "augmentation",
            "toy": flags.toy,
            "commit": flags.commit or results.commit(),
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "date": results.now(),
            **measured(name, seconds, flags.rounds, toy=flags.toy),
        }
        with (flags.out / "augmentation.jsonl").open("a") as out:
            out.write(json.dumps(line) + "\n")
        rates = line["images_per_second"]
        print(
            f"{name}, batch {line['batch']}: {statistics.median(rates):,.0f} images/s of two views "
            f"({min(rates):,.0f}-{max(rates):,.0f}), {line['memory'] / 2**30:.2f} GiB, "
            f"compiled in {line['compile_seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
