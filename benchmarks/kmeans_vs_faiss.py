"""k-means of ssljax against faiss-cpu, in alternation on the same cores.

    python -m benchmarks.kmeans_vs_faiss --faiss-python PATH/TO/python \\
        [--rows 100000] [--threads 1] [--rounds 3]

Measures seconds, seconds of CPU time, and the objective that each ends with. Both run 20 iterations from
random rows and a last assignment of all rows, in 256 dimensions with 1000 clusters, which is what DeepCluster
does once per epoch. The rows are scattered around 2000 centres. Both processes are confined to as many cores
as they may have threads. faiss is imported in the child only (`pip install faiss-cpu`). On a machine with
other work, one thread and CPU time say more than the clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

DIM, CLUSTERS, ITERATIONS = 256, 1000, 20


def data(rows: int) -> np.ndarray:
    """The rows, float32 [rows, DIM]; the same in both processes."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2 * CLUSTERS, DIM)).astype(np.float32)
    own = centres[rng.integers(0, len(centres), rows)]
    noise = rng.standard_normal((rows, DIM)).astype(np.float32)
    return own + np.float32(0.7) * noise


def child(rows: int, threads: int) -> None:
    """faiss's side: one run per line on stdin, whose seconds, CPU time and objective it prints."""
    import faiss

    faiss.omp_set_num_threads(threads)
    x = data(rows)
    print("ready", flush=True)
    for seed in sys.stdin:
        begin = time.perf_counter()
        cpu = time.process_time()
        kmeans = faiss.Kmeans(DIM, CLUSTERS, niter=ITERATIONS, seed=int(seed), max_points_per_centroid=10**9)
        kmeans.train(x)
        distance, _ = kmeans.index.search(x, 1)
        seconds = time.perf_counter() - begin
        cpu_seconds = time.process_time() - cpu
        print(seconds, cpu_seconds, float(distance.sum(dtype=np.float64)) / rows, flush=True)


def ours(rows: int) -> Callable[[int], tuple[float, ...]]:
    """Our side: seed -> (seconds, CPU time, objective). It is compiled before the clock starts."""
    import jax

    from ssljax.targets import kmeans

    x = jax.numpy.asarray(data(rows))

    def run(seed: int) -> tuple[float, ...]:
        begin = time.perf_counter()
        cpu = time.process_time()
        found = jax.block_until_ready(kmeans.fit(x, CLUSTERS, jax.random.key(seed), iterations=ITERATIONS))
        seconds = time.perf_counter() - begin
        cpu_seconds = time.process_time() - cpu
        return seconds, cpu_seconds, float(kmeans.objective(x, found)) / rows

    run(0)
    return run


def main() -> None:
    """Print every round and the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faiss-python", default=sys.executable, help="a Python with faiss-cpu and NumPy")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        return child(flags.rows, flags.threads)

    from benchmarks.torch_process import TorchProcess

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.threads])
    sizes = ("--rows", str(flags.rows), "--threads", str(flags.threads))
    faiss = TorchProcess(flags.faiss_python, __file__, "--child", *sizes)
    run = ours(flags.rows)
    rounds = []
    for number in range(1, flags.rounds + 1):
        rounds.append((faiss.ask(str(number)), run(number)))
        (clock1, cpu1, objective1), (clock2, cpu2, objective2) = rounds[-1]
        print(
            f"round {number}: faiss {clock1:.2f} s ({cpu1:.2f} s CPU), objective per row {objective1:.2f}; "
            f"ssljax {clock2:.2f} s ({cpu2:.2f} s CPU), {objective2:.2f}",
            flush=True,
        )
    faiss.close()
    clock, cpu, objective = ([b[i] / a[i] for a, b in rounds] for i in range(3))
    print(
        f"ssljax / faiss: {spread(clock)} by the clock, {spread(cpu)} in CPU time, "
        f"objective {statistics.median(objective):.4f}; {flags.rows:,} rows, {flags.threads} threads"
    )


def spread(ratios: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


if __name__ == "__main__":
    main()
