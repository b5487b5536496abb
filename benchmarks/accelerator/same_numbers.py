"""Whether the accelerator computes what the CPU computes: every method's digits preset, step by step on both.

    python -m benchmarks.accelerator.same_numbers --out FOLDER [--steps 11] [--methods simclr,byol]

Both start from the same parameters and see the same images and draws, in float32 with exact products. Prints
the loss at the first and the last step and the largest relative difference, and appends a line per method to
FOLDER/same_numbers.jsonl. Rounding grows from step to step; at the first the losses must agree to about 1e-6.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import jax
import numpy as np

from ssljax import cli, results, sharding
from ssljax.config import stages
from ssljax.data import sources
from ssljax.methods import METHODS
from ssljax.program import build, device_batches


def losses(name: str, device: jax.Device, steps: int) -> list[float]:
    """The loss of so many first steps of a method's digits preset (of its first stage) on a device."""
    config = next(iter(stages(cli.preset_of(f"configs/{name}.py:digits")).values()))
    source = sources.load(config.data, "train")
    with jax.default_device(device):
        program = build(config, sources.facts(config.data, source), sharding.mesh_of([device]))
        state = program.init(config.seed)
        key = jax.device_put(jax.random.key(config.seed), device)
        found = []
        for batch in itertools.islice(device_batches(program, source, config.seed, 0), steps):
            state, metrics = program.step(state, batch, key)
            found.append(float(metrics["loss"]))
    return found


def main() -> None:
    """One line per method."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=11)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--commit", default="", help="of the source; empty asks git")
    flags = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")
    flags.out.mkdir(parents=True, exist_ok=True)
    here, reference = jax.devices()[0], jax.devices("cpu")[0]
    for name in flags.methods.split(","):
        begin = time.perf_counter()
        a, b = (np.array(losses(name, device, flags.steps)) for device in (here, reference))
        apart = np.abs(a - b) / np.abs(b)
        line = {
            "question": "same_numbers",
            "method": name,
            "device": here.device_kind,
            "jax": jax.__version__,
            "commit": flags.commit or results.commit(),
            "date": results.now(),
            "losses": a.tolist(),
            "losses_cpu": b.tolist(),
        }
        with (flags.out / "same_numbers.jsonl").open("a") as out:
            out.write(json.dumps(line) + "\n")
        print(
            f"{name}: loss {a[0]:.6f} (CPU {b[0]:.6f}), at step {flags.steps} {a[-1]:.6f} (CPU {b[-1]:.6f}); "
            f"relative difference {apart[0]:.1e}, at most {apart.max():.1e}; "
            f"{time.perf_counter() - begin:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
