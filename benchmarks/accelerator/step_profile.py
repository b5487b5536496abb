"""Where the time of a row's step goes on one device (line 13 of README.md).

    python -m benchmarks.accelerator.step_profile --row deit_b --out FOLDER [--batch N] [--commit ID] [--toy]

Traces ten plain steps of a row of `throughput`, prints their longest operations and the share of the time in
which the device stood idle, and appends both to FOLDER/step_profile.jsonl. The compiled program is written to
FOLDER/ROW.hlo.txt, where the operations can be looked up.
"""

from __future__ import annotations

import argparse
import glob
import gzip
import json
import os
import tempfile
from pathlib import Path

# In a command buffer the operations of a GPU cannot be told apart. Read when JAX starts.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_enable_command_buffer="

import jax

from benchmarks.accelerator import jax_side, rows
from ssljax import results
from ssljax.run import profile

STEPS = 10
KEPT = 40  # operations in the line


def main() -> None:
    """One line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--row", choices=rows.ROWS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=0, help="images per step; 0: the row's own")
    parser.add_argument("--commit", default="", help="of the source; empty asks git")
    parser.add_argument("--toy", action="store_true", help="a CPU, tiny networks")
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)
    batch = flags.batch or (rows.TOY_BATCH if flags.toy else rows.ROWS[flags.row].batch)

    step = jax_side.ours(flags.row, batch, augmented=False, toy=flags.toy)
    step.steps(3)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            seconds = step.steps(STEPS)
        file = glob.glob(os.path.join(folder, "plugins", "profile", "*", "*.trace.json.gz"))[0]
        with gzip.open(file, "rt") as trace:
            events = json.load(trace)

    found = profile.operations(events)
    idle = profile.idle(events)
    print(profile.summary(found, STEPS))
    print(f"{1e3 * seconds / STEPS:.2f} ms per step; the device stood idle {idle:.1%} of the time")
    (flags.out / f"{flags.row}.hlo.txt").write_text(step.program())
    line = {
        "question": "step_profile",
        "row": flags.row,
        "batch": batch,
        "toy": flags.toy,
        "commit": flags.commit or results.commit(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "date": results.now(),
        "milliseconds": 1e3 * seconds / STEPS,
        "idle": idle,
        "operations": [[op.name, op.count / STEPS, 1e3 * op.seconds / STEPS] for op in found[:KEPT]],
    }
    with (flags.out / "step_profile.jsonl").open("a") as out:
        out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
