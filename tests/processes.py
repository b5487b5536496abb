"""Real runs of the real entry point, small enough to be started and killed by a test."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

# SimCLR on the digits with a network of 8 channels: about 300 steps of a few milliseconds.
SMALL = ["--config=configs/simclr.py:digits", "--config.model.width=0.125", "--config.model.stem=imagenet", "--config.batch_size=32",
         "--config.epochs=6", "--config.log_every=5", "--config.checkpoint.every_steps=40", "--config.eval_every_epochs=0",
         "--config.checkpoint.best=", "--config.head.dim=16"]


def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONUNBUFFERED": "1"}


def start(verb: str, *flags: str, cache: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", f"ssljax.{verb}", *flags], cwd=ROOT, env=environment(cache), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def run(verb: str, *flags: str, cache: Path) -> tuple[int, str]:
    """(exit code, what it printed)."""
    process = start(verb, *flags, cache=cache)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output
