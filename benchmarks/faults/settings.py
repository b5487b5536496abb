"""Random settings of every digits preset: a clear message or a sound run, never a traceback.

Each drill takes 200 mutations of one preset through the command line up to the program, and trains a few of
those that are accepted for a step. `python -m tests.fuzz PRESET --seed N` tries others.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

from benchmarks.faults.drill import Drill, expect
from tests.processes import ROOT, environment

COUNT = 200
STEPS = 2
# tests.fuzz.presets() lists the same, but imports JAX.
PRESETS = (
    "simclr.py:digits",
    "simclr.py:digits_finetune",
    "moco.py:digits",
    "moco.py:digits_v3",
    "moco.py:digits_vit_v3",
    "byol.py:digits",
    "byol.py:digits_collapse",
    "deepcluster.py:digits",
    "deepcluster.py:digits_v2",
    "deit.py:digits",
    "supervised.py:digits",
    "supervised.py:digits_vit",
)


def fuzzed(folder: Path, preset: str) -> str:
    """Try the mutations in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", f"configs/{preset}", f"--count={COUNT}", f"--steps={STEPS}"],
        cwd=ROOT,
        env=environment(folder / "xla"),
        text=True,
        capture_output=True,
    )
    lines = done.stdout.splitlines() or [done.stderr[-300:]]
    expect(done.returncode == 0, "; ".join(lines)[-1000:])
    return lines[-1]


DRILLS = tuple(
    Drill(
        f"{COUNT} random settings of {preset}",
        "a message that names the setting, or a sound run",
        functools.partial(fuzzed, preset=preset),
    )
    for preset in PRESETS
)
