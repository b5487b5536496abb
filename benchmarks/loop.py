"""What the training loop costs beside its step: `fit` against a bare loop of the same compiled step.

    python -m benchmarks.loop [--preset digits] [--steps 200] [--rounds 5]

The bare loop repeats the step on one ready batch. The two alternate in one process. Prints images per second
and the ratio of each round, and the median ratio. `fit` reads and transfers batches, logs every `log_every`
steps and writes metrics. Checkpoints and evaluation, which happen every few minutes, are left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import jax

from configs import simclr
from ssljax.data import sources
from ssljax.program import build, device_batches
from ssljax.run.folder import RunFolder
from ssljax.run.loop import fit


def main() -> None:
    """Print one line per round, and the median."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    config = simclr.get_config(flags.preset).unlock()
    config.eval_every_epochs = 0
    config.checkpoint.every_steps = 10**9
    config.optim.warmup_epochs = 0
    config.lock()
    source = sources.load(config.data, "train")
    program = build(config, source.facts)._replace(total_steps=flags.steps)
    key = jax.random.key(0)
    ready = next(device_batches(program, source, 0, 0))
    jax.block_until_ready(program.step(program.init(0), ready, key))

    def bare() -> float:
        state = program.init(0)
        jax.block_until_ready(state.params)
        begin = time.perf_counter()
        for _ in range(flags.steps):
            state, _ = program.step(state, ready, key)
        jax.block_until_ready(state.params)
        return flags.steps * config.batch_size / (time.perf_counter() - begin)

    def loop() -> float:
        with tempfile.TemporaryDirectory() as folder:
            run = RunFolder(folder, config, program.facts)
            run.save = lambda state, metrics: None  # the last step's checkpoint is not what is measured
            state = program.init(0)
            jax.block_until_ready(state.params)
            begin = time.perf_counter()
            state = fit(program, source, seed=0, folder=run, start=lambda _, fresh=state: fresh)
            jax.block_until_ready(state.params)
            seconds = time.perf_counter() - begin
            run.close()
        return flags.steps * config.batch_size / seconds

    bare()
    loop()
    ratios = []
    for number in range(flags.rounds):
        a = bare()
        b = loop()
        ratios.append(b / a)
        print(f"round {number}: bare {a:.0f} images/s, loop {b:.0f} images/s, ratio {b / a:.3f}", flush=True)
    print(
        f"median ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}), "
        f"preset {flags.preset}, {flags.steps} steps"
    )


if __name__ == "__main__":
    main()
