"""PyTorch's process of kernels.py, which starts it; nothing else does.

Each line on stdin is `KERNEL SECONDS SIZE...`; the answer is seconds per call and the peak of allocated
bytes. `nan` says that it failed; the reason is on stderr.
"""

from __future__ import annotations

import functools
import os
import sys
import time
import traceback
from collections.abc import Callable

import torch
from torch.nn import functional as F

from benchmarks.accelerator import rows
from benchmarks.accelerator.kernels import ITERATIONS, NEIGHBOURS, TEMPERATURE, features

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS = 65_536  # of k-means at once


def nt_xent(images: int, numbers: int) -> Callable[[], object]:
    """lightly's and SimCLR's loss: all similarities, the own one masked."""
    z = torch.randn(2 * images, numbers, device=DEVICE, requires_grad=True)
    label = torch.arange(2 * images, device=DEVICE).roll(images)

    def step() -> object:
        unit = F.normalize(z, dim=1)
        logits = unit @ unit.T / TEMPERATURE
        logits.fill_diagonal_(-1e9)
        loss = F.cross_entropy(logits, label)
        return torch.autograd.grad(loss, z)

    return step


def attention(images: int, tokens: int, heads: int, numbers: int) -> Callable[[], object]:
    """scaled_dot_product_attention with its gradient, in bfloat16."""
    make = functools.partial(torch.randn, images, heads, tokens, numbers, device=DEVICE, dtype=torch.bfloat16)
    q, k, v = (make(requires_grad=True) for _ in range(3))
    g = make()
    return lambda: torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), (q, k, v), g)


def knn(bank: int, numbers: int, queries: int) -> Callable[[], object]:
    """A matrix product and topk, 1,024 queries at a time, from host to host."""
    train = torch.from_numpy(features(bank, numbers))
    test = torch.from_numpy(features(queries, numbers, seed=1))

    def search() -> object:
        stored = F.normalize(train.to(DEVICE), dim=1)
        asked = F.normalize(test.to(DEVICE), dim=1)
        return [torch.topk(part @ stored.T, NEIGHBOURS, dim=1)[1].cpu() for part in asked.split(1024)]

    return search


def kmeans(count: int, numbers: int, clusters: int) -> Callable[[], object]:
    """Lloyd's iterations with matrix products, and the last assignment."""
    x = torch.from_numpy(features(count, numbers)).to(DEVICE)

    def assign(centroids: torch.Tensor) -> torch.Tensor:
        half = centroids.square().sum(1) / 2
        return torch.cat([torch.argmin(half - part @ centroids.T, dim=1) for part in x.split(ROWS)])

    def fit() -> object:
        centroids = x[torch.randperm(count, device=DEVICE)[:clusters]]
        for _ in range(ITERATIONS):
            own = assign(centroids)
            sums = torch.zeros_like(centroids).index_add_(0, own, x)
            counts = torch.bincount(own, minlength=clusters).clamp(min=1)
            centroids = sums / counts[:, None]
        return assign(centroids)

    return fit


KERNELS = {"nt_xent": nt_xent, "attention": attention, "knn": knn, "kmeans": kmeans}


@functools.lru_cache(maxsize=1)
def built(kernel: str, *size: int) -> Callable[[], object]:
    """The function of a kernel with its data; the last one is kept."""
    return KERNELS[kernel](*size)


def turn(step: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Seconds per call, and the peak of allocated bytes."""

    def wait() -> None:
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    def run(number: int) -> float:
        wait()
        begin = time.perf_counter()
        for _ in range(number):
            step()
        wait()
        return time.perf_counter() - begin

    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    taken = rows.turn(run, seconds)
    peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else float("nan")
    if DEVICE == "cuda":
        torch.cuda.empty_cache()  # the other process needs it
    return taken, peak


def main() -> None:
    """Answer until stdin is closed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.backends.cuda.matmul.allow_tf32 = False  # float32 products are exact on both sides
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        kernel, seconds, *size = line.split()
        try:
            numbers = turn(built(kernel, *map(int, size)), float(seconds))
        except Exception:  # one that does not fit must not lose the next
            traceback.print_exc()
            built.cache_clear()
            numbers = (float("nan"), float("nan"))
        print(*numbers, file=answers, flush=True)


if __name__ == "__main__":
    main()
