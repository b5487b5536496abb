"""The measurements on accelerators as a page: the .jsonl files beside this as experiments/accelerator.md.

python -m benchmarks.accelerator.table
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "experiments" / "accelerator.md"

NOT_RUN = "not run: no machine"

Line = dict[str, Any]

INTRODUCTION = """# On an accelerator

Written by `python -m benchmarks.accelerator.table` from the .jsonl files in
[benchmarks/accelerator](../benchmarks/accelerator/README.md), which lists the commands, and the questions
that are still open. Nothing has run on a TPU yet.
"""

THROUGHPUT = """## Training steps beside PyTorch

Each row is the step that `ssljax train` jits for the paper's ImageNet preset, at 224 pixels in bfloat16,
on a batch of uint8 crops that stays on the device, without random views on either side. PyTorch has the
same network, loss, optimizer and number of parameters, in channels_last and bfloat16 autocast. The two
take turns; a ratio is the median over three rounds with its range, and above 1 ssljax is faster. The
share of the peak refers to an 8192 x 8192 bfloat16 matrix product on the same device. Since commit
5ec65ad a ViT's attention is cuDNN's fused kernel; the H200's two rows of `deit_b` say what that is worth.
"""

AUGMENTATION = """## Random views on the device

Images per second from which two views are made each, jitted and alone on the device: photographs at 224
pixels, small images at 32 pixels.
"""

PROFILE = """## Where the time of a step goes

The longest kinds of operations of a plain step, and the share of the time in which the device stood idle.
A `custom-call` is a matrix product. XLA keeps a ViT's tokens with the batch innermost and transposes them
between the layers, about 6 ms of a step. Commit a77718f tried to stop that (the tokens of all images as rows
of one matrix in every layer, and a GELU that is computed again in the backward pass): the transpositions
stayed, the step became 1 ms slower, and the change was taken back.
"""

CIFAR10 = """## CIFAR-10

ResNet-18 by the recipe of lightly's benchmark (`cifar10_lightly`). kNN is that of the last epoch, k = 200,
on the 10,000 test images. lightly reports the best epoch: SimCLR 84.8, MoCo 84.7, BYOL 86.8, in 87 to 112
minutes on an RTX A6000; an epoch there takes 26 to 34 s.

**The images are not lightly's**: they were encoded again as JPEG files of quality 75 with half the colours'
resolution. `supervised` is the same network on all labels (`supervised:cifar10_r18` with 100 epochs in
bfloat16 and a weight decay of 5e-4), a control for what these images allow; at the end its own head is
measured. "While training" is kNN with 2,000 training and 2,000 test images, at the end or shortly before.
SimCLR is 6.6 points below lightly's figure. How much of that the images explain was not measured: the
supervised run was stopped at epoch 93. Other differences: one batch statistic for both views, bfloat16,
another initialisation, the last epoch instead of the best.
"""

KERNELS = """## Single operations

Milliseconds, median of three rounds, and GiB on the device. `in chunks`, `recomputed`, larger blocks and
`jax.nn` are candidates: where one is better, it should become ssljax's. Attention was measured before ssljax
took cuDNN's kernel, which refuses an odd number of tokens in training; ssljax gives it one more, which nobody
attends to. In the profile of `deit_b` above a block's attention takes 0.46 ms.
"""

SAME_NUMBERS = """## The same numbers as on a CPU

The loss of each method's digits preset on the accelerator and on a CPU, with the same seed, images and
random draws: at the first step, and the largest relative difference within eleven steps. SimCLR's losses
drift apart within the eleven steps; why has not been examined. DeepCluster has no labels before its first
clustering, so its loss is zero on both and says nothing.
"""


def lines(name: str) -> list[Line]:
    """The measurements of a file, without those of toys; none if there is no file yet."""
    file = HERE / f"{name}.jsonl"
    if not file.exists():
        return []
    found = [json.loads(text) for text in file.read_text().splitlines()]
    return [line for line in found if not line.get("toy", False)]


def table(rows: list[list[str]]) -> str:
    """Markdown, header first."""
    head, *body = rows
    return "\n".join(
        "| " + " | ".join(row) + " |" for row in [head, ["---", *["---:"] * (len(head) - 1)], *body]
    )


def throughput() -> str:
    """One row per network and method."""
    rows = [
        [
            "",
            "on",
            "batch",
            "ssljax, images/s",
            "of the peak",
            "GiB",
            "PyTorch eager",
            "torch.compile",
            "GiB",
        ]
    ]
    for line in lines("throughput"):
        rate = line["images_per_second"]
        memory = {name: f"{size / 2**30:.1f}" for name, size in line["memory"].items()}
        cells = [f"{rate['ssljax']:,.0f}", f"{100 * line['share_of_peak']['ssljax']:.0f} %", memory["ssljax"]]
        for name in ("torch eager", "torch compile"):
            middle, low, high = line["faster"][name]
            cells.append(f"{rate[name]:,.0f}: {middle:.2f} ({low:.2f}-{high:.2f})")
        rows.append([line["row"], machine(line), str(line["batch"]), *cells, memory["torch compile"]])
    return table(rows)


def augmentation() -> str:
    """One row per kind of view."""
    rows = [["", "batch", "images/s", "GiB"]]
    for line in lines("augmentation"):
        rate = np.median(line["images_per_second"])
        rows.append([line["case"], str(line["batch"]), f"{rate:,.0f}", f"{line['memory'] / 2**30:.2f}"])
    return table(rows)


def same_numbers() -> str:
    """One row per method."""
    rows = [["", "first step, accelerator", "CPU", "largest difference in eleven steps"]]
    for line in lines("same_numbers"):
        here = np.array(line["losses"])
        there = np.array(line["losses_cpu"])
        apart = f"{np.max(np.abs(here - there) / np.abs(there)):.1e}" if np.all(there != 0) else "–"
        rows.append([line["method"], f"{here[0]:.6f}", f"{there[0]:.6f}", apart])
    return table(rows)


def profile() -> str:
    """One row per network and method."""
    rows = [["", "on", "ms per step", "idle", "longest operations, ms"]]
    for line in lines("step_profile"):
        longest = ", ".join(f"{kind} {ms:.1f}" for kind, _, ms in line["operations"][:6])
        time = f"{line['milliseconds']:.1f}"
        rows.append([line["row"], machine(line), time, f"{line['idle']:.1%}", longest])
    return table(rows)


def cifar10() -> str:
    """One row per run; of several calls that made one run, the last."""
    rows = [["", "seed", "epochs", "s per epoch", "images/s", "kNN while training", "at the end"]]
    runs = {(line["paper"], line["seed"], line["commit"]): line for line in lines("cifar10")}
    for line in runs.values():
        numbers = [f"{line['epochs_done']:.0f}", f"{line['seconds_per_epoch']:.2f}"]
        end = line.get("knn", line.get("classifier"))
        numbers += [f"{line['images_per_second']:,.0f}", f"{line['knn_while_training']:.1f}"]
        numbers.append("–" if end is None else f"{end:.1f}")
        rows.append([line["paper"], str(line["seed"]), *numbers])
    return table(rows)


def kernels() -> str:
    """One row per form and size."""
    rows = [["", "size", "form", "ms", "GiB"]]
    for line in lines("kernels"):
        size = " x ".join(f"{number:,}" for number in line["size"])
        for form, times in line["milliseconds"].items():
            failed = line["failed"].get(form, "").partition(":")[0]
            memory = line["memory"][form] / 2**30
            rows.append([line["kernel"], size, form, failed or f"{np.median(times):,.2f}", f"{memory:.2f}"])
    return table(rows)


def machine(line: Line) -> str:
    """Device and commit of a measurement, in a few letters."""
    return f"{line['device'].split()[1]}, {line['commit'][:7]}"


def where(name: str) -> str:
    """The machines, commits and versions of a file's measurements."""
    found = []
    for line in lines(name):
        versions = line.get("versions", {"jax": line.get("jax", "")})
        said = ", ".join(
            f"{package} {versions[package]}" for package in ("jax", "torch") if package in versions
        )
        found.append(f"{line['device']}; commit {line['commit']}; {said}; {line['date'][:10]}")
    return ". ".join(dict.fromkeys(found)) + "."


def main() -> None:
    """Writes the page."""
    parts = [INTRODUCTION]
    for text, name, made in (
        (THROUGHPUT, "throughput", throughput()),
        (PROFILE, "step_profile", profile()),
        (CIFAR10, "cifar10", cifar10()),
        (AUGMENTATION, "augmentation", augmentation()),
        (KERNELS, "kernels", kernels()),
        (SAME_NUMBERS, "same_numbers", same_numbers()),
    ):
        there = bool(lines(name))
        parts += [text, f"{where(name) if there else NOT_RUN}\n", *([f"{made}\n"] if there else [])]
    PAGE.write_text("\n".join(parts))
    print(PAGE)


if __name__ == "__main__":
    main()
