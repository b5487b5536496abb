"""Whether shuffling the keys matters: MoCo on the digits with and without it (arXiv 1911.05722, A.9).

    python -m benchmarks.moco_leak [GROUPS ...]

Batch statistics are computed in small groups. In a group of few images, a query and its key are normalised by
nearly the same statistics, and the network can recognise the key by them: the pretext task gets easier and
the features worse. Prints one line per run: the share of queries in the last epoch that are nearer to their
own key than to the whole queue, and the kNN accuracy on the held-out digits.
"""

from __future__ import annotations

import sys
import time

import jax
import numpy as np

from configs.moco import get_config
from ssljax.data import sources
from ssljax.program import build, device_batches
from ssljax.run.loop import online_knn


def run(groups: int, shuffle: bool) -> tuple[float, float, float]:
    """Train once. Returns pretext accuracy and kNN top-1, both in percent, and seconds."""
    begin = time.perf_counter()
    config = get_config("digits").unlock()
    config.bn.update(groups=groups, shuffle=shuffle)
    source = sources.load(config.data, "train")
    test = sources.load(config.data, "test")
    program = build(config.lock(), source.facts)
    state = program.init(config.seed)
    key = jax.random.key(config.seed)
    pretext = []
    batches = device_batches(program, source, config.seed, 0)
    for _ in range(program.total_steps):
        state, metrics = program.step(state, next(batches), key)
        pretext.append(metrics["pretext_accuracy"])
    batches.close()
    last = 100 * float(np.mean(jax.device_get(pretext[-program.steps_per_epoch :])))
    return last, online_knn(program, state, source, test), time.perf_counter() - begin


def main() -> None:
    """Print the table."""
    print(f"{'groups':>6}  {'images':>6}  {'shuffled':8}  {'pretext, %':>10}  {'kNN, %':>6}  {'seconds':>7}")
    for groups in [int(word) for word in sys.argv[1:]] or [4, 32]:
        for shuffle in (True, False):
            pretext, knn, seconds = run(groups, shuffle)
            settings = f"{groups:6d}  {128 // groups:6d}  {shuffle!s:8}"
            print(f"{settings}  {pretext:10.1f}  {knn:6.1f}  {seconds:7.1f}", flush=True)


if __name__ == "__main__":
    main()
