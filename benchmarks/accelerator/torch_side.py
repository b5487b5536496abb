"""PyTorch's process of the throughput benchmark. `throughput.py` starts it; nothing else does.

It reads commands on stdin and answers each with a line of numbers:

    matmul                  TFLOP/s of a large bfloat16 product
    prepare KIND            seconds until the second step, trained parameters       (KIND: eager or compile)
    turn KIND SECONDS       seconds per step, peak of allocated bytes, loss

`nan` says that it failed; the reason is on stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable

import torch

from benchmarks.accelerator import rows, torch_methods
from benchmarks.accelerator.rows import Row


class Trainer:
    """A row's network with its optimizer and one batch on the device.

    Args:
        row: of `rows.ROWS`.
        batch: images per step.
        device: "cuda" or "cpu".
        toy: tiny networks and images.
    """

    def __init__(self, row: Row, batch: int, device: str, *, toy: bool) -> None:
        torch.manual_seed(0)
        self.device = device
        side = rows.TOY_PIXELS if toy else rows.PIXELS
        classes = rows.TOY_CLASSES if toy else rows.CLASSES
        image = torch.randint(256, (row.views * batch, 3, side, side), dtype=torch.uint8, device=device)
        self.image = image.to(memory_format=torch.channels_last)
        self.label = torch.randint(classes, (batch,), device=device)
        net = torch_methods.learner(row, toy=toy)
        self.net = net.to(device, memory_format=torch.channels_last).train()
        self.optimizer = torch_methods.optimizer(row, self.net)
        # On a CPU inductor's C++ takes minutes to compile; the toy stops before it.
        compiled = torch.compile(self.net, backend="aot_eager" if toy else "inductor")
        self.losses = {"eager": self.net, "compile": compiled}
        self.loss = torch.zeros(())

    def step(self, kind: str) -> None:
        with torch.autocast(self.device, torch.bfloat16):
            loss = self.losses[kind](self.image, self.label)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.net.follow()
        self.loss = loss.detach()

    def steps(self, kind: str) -> Callable[[int], float]:
        """Number of steps -> seconds that they took; the host waits for the device only at both ends."""

        def run(number: int) -> float:
            self.wait()
            begin = time.perf_counter()
            for _ in range(number):
                self.step(kind)
            self.wait()
            return time.perf_counter() - begin

        return run

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def prepare(self, kind: str) -> tuple[float, ...]:
        begin = time.perf_counter()
        self.steps(kind)(2)
        trained = sum(p.numel() for p in self.net.parameters() if p.requires_grad)
        return time.perf_counter() - begin, trained

    def turn(self, kind: str, seconds: float) -> tuple[float, ...]:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        taken = rows.turn(self.steps(kind), seconds)
        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else 0
        return taken, peak, self.loss.item()


def matmul(device: str, side: int) -> float:
    """TFLOP/s of bfloat16 products of square matrices of random numbers."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))

    def run(number: int) -> float:
        begin = time.perf_counter()
        for _ in range(number):
            torch.matmul(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    run(3)
    return 2e-12 * side**3 / rows.turn(run, 0.3)


def main() -> None:
    """Answers until stdin is closed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", choices=rows.ROWS, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--toy", action="store_true")
    flags = parser.parse_args()

    # Compilers print to stdout too; only answers may go where they are read.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    device = "cuda" if torch.cuda.is_available() and not flags.toy else "cpu"
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    if flags.toy:
        torch.set_num_threads(1)
    side = rows.TOY_MATMUL if flags.toy else rows.MATMUL
    trainer: Trainer | None = None

    def answer(words: list[str]) -> tuple[float, ...]:
        nonlocal trainer
        if words[0] == "matmul":
            return (matmul(device, side),)
        if trainer is None:
            trainer = Trainer(rows.ROWS[flags.row], flags.batch, device, toy=flags.toy)
        if words[0] == "prepare":
            return trainer.prepare(words[1])
        return trainer.turn(words[1], float(words[2]))

    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        try:
            numbers = answer(line.split())
        except Exception:  # a failure of one kind must not lose the other
            traceback.print_exc()
            numbers = (float("nan"),) * 3
        print(*numbers, file=answers, flush=True)


if __name__ == "__main__":
    main()
