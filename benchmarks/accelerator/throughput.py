"""Images per second of a training step here and in PyTorch, on one GPU (question a of README.md).

    python -m benchmarks.accelerator.throughput --row supervised_r50 --out FOLDER [--commit ID] [--toy]

Run it from the repository's root. Rows: supervised_r50, simclr_r50, moco_v3_vit_b, deit_b, byol_r50. A row
has two parts, each a line of FOLDER/throughput.jsonl. A part that is there already for this commit, device
and batch is skipped.

    plain        no random views on either side: ssljax against PyTorch eager and torch.compile
    augmented    ssljax alone: the preset's views, drawn on the device, against its own plain step

ssljax's step is the one that `ssljax train` jits for the ImageNet preset, with a smaller batch. Its input is
one batch of uint8 crops that stays on the device. PyTorch's side is in torch_methods.py: channels_last,
bfloat16 autocast, fused optimizers, TF32 allowed.

Each framework has its own process. Both compile at the same time, unless `--apart` is given. Then they take
turns, and only one works at a time. Neither reads a result back before its turn ends. Ratios are taken
within a round. FLOPs are counted in ssljax's program and taken for PyTorch's too, which computes the same.

Without PyTorch the script measures ssljax alone and says so. `--toy` runs all of it on a CPU with tiny
networks.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.accelerator import rows
from benchmarks.accelerator.rows import ROWS
from benchmarks.torch_process import TorchProcess

if TYPE_CHECKING:
    from benchmarks.accelerator.jax_side import Ours

PARTS = ("plain", "augmented")
KINDS = ("eager", "compile")
NAN = float("nan")


# ------------------------------------------------------------------------------------------------- PyTorch


class Theirs:
    """PyTorch's process; what fails in it gives NaN.

    Args:
        python: that has torch, torchvision and timm.
        flags: of `torch_side.py`.
    """

    def __init__(self, python: str, flags: list[str]) -> None:
        self.process = TorchProcess(python, "-m", "benchmarks.accelerator.torch_side", *flags)

    def ask(self, line: str) -> list[float]:
        """Three numbers, NaN for those that did not come."""
        try:
            found = self.process.ask(line)
        except OSError:
            found = []
        return [*found, NAN, NAN, NAN][:3]

    def end(self) -> None:
        """Ends the process and frees its memory on the device; all numbers are there."""
        self.process.process.kill()
        self.process.process.wait()


def start_torch(python: str, flags: list[str]) -> tuple[Theirs | None, dict[str, list[float]]]:
    """The process, prepared, and what it said of each kind: seconds to prepare, parameters."""
    try:
        theirs = Theirs(python, flags)
    except (SystemExit, OSError) as error:
        print(f"no PyTorch: ssljax is measured alone ({error})", flush=True)
        return None, {}
    return theirs, {kind: theirs.ask(f"prepare {kind}") for kind in KINDS}


# ------------------------------------------------------------------------------------------------- records


def about(flags: argparse.Namespace, batch: int) -> dict[str, Any]:
    """What identifies a line and its machine."""
    import jax

    from ssljax import results

    found = versions(sys.executable, ("jax", "jaxlib", "flax"))
    found |= versions(flags.torch_python, ("torch", "torchvision", "timm"))
    return {
        "question": "throughput",
        "row": flags.row,
        "batch": batch,
        "toy": flags.toy,
        "commit": flags.commit or results.commit(),
        "device": jax.devices()[0].device_kind,
        "versions": found,
        "date": results.now(),
        "compiled_apart": flags.apart,
    }


def versions(python: str, packages: tuple[str, ...]) -> dict[str, str]:
    """Those of the packages that this Python has."""
    code = "import importlib.metadata as m, json, sys\n"
    code += "there = {d.name: d.version for d in m.distributions() if d.name in sys.argv[1:]}\n"
    code += "print(json.dumps(there))"
    try:
        asked = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return json.loads(asked.stdout)


def done(file: Path, line: dict[str, Any]) -> set[str]:
    """The parts that the file has for this row, batch, commit and device; ssljax alone is no comparison."""
    same = ("question", "row", "batch", "toy", "commit", "device")
    if not file.exists():
        return set()
    lines = [json.loads(text) for text in file.read_text().splitlines() if text.strip()]
    mine = [there for there in lines if all(there[key] == line[key] for key in same)]
    return {there["part"] for there in mine if len(there["turns"]) > 1}


def figures(turns: dict[str, list[float]], images: int, flops: int, peak: float) -> dict[str, Any]:
    """Images per second, share of the peak, and how much faster the first is than the others, round by round.

    Args:
        turns: seconds per step by name; the first is compared with the rest.
        images: per step.
        flops: per step.
        peak: TFLOP/s of a matrix product.
    """
    first = next(iter(turns))
    median = {name: statistics.median(times) for name, times in turns.items()}
    found: dict[str, Any] = {
        "images_per_second": {name: images / seconds for name, seconds in median.items()},
        "share_of_peak": {name: 1e-12 * flops / seconds / peak for name, seconds in median.items()},
        "faster": {},
    }
    for name in turns:
        if name != first:
            ratios = [b / a for a, b in zip(turns[first], turns[name], strict=True)]
            found["faster"][name] = [statistics.median(ratios), min(ratios), max(ratios)]
    return found


def show(line: dict[str, Any]) -> str:
    """A part in words."""
    parts = []
    for name, rate in line["images_per_second"].items():
        memory = line["memory"].get(name, 0) / 2**30
        parts.append(
            f"{name} {rate:.0f} images/s, {line['share_of_peak'][name]:.1%} of peak, {memory:.1f} GiB"
        )
    for name, (middle, low, high) in line["faster"].items():
        parts.append(f"{middle:.2f} ({low:.2f}-{high:.2f}) times as fast as {name}")
    return f"{line['row']}, {line['part']}, batch {line['batch']}, {line['device']}: " + "; ".join(parts)


def write(file: Path, line: dict[str, Any]) -> None:
    """Appends a line and prints it."""
    with file.open("a") as out:
        out.write(json.dumps(line) + "\n")
    print(show(line), flush=True)


# ---------------------------------------------------------------------------------------------------- main


def alternate(sides: dict[str, Callable[[], float]], number: int) -> dict[str, list[float]]:
    """Seconds per step of every side in so many rounds."""
    turns: dict[str, list[float]] = {name: [] for name in sides}
    for at in range(number):
        for name, side in sides.items():
            turns[name].append(side())
        times = ", ".join(f"{name} {1e3 * times[-1]:.1f} ms" for name, times in turns.items())
        print(f"round {at + 1}: {times}", flush=True)
    return turns


def plain_part(flags: argparse.Namespace, batch: int) -> tuple[Ours, float, dict[str, Any]]:
    """Ours against PyTorch; the compiled step, the peak in TFLOP/s, and what the line says beside `about`."""
    from benchmarks.accelerator import jax_side

    child = ["--row", flags.row, "--batch", str(batch), *(["--toy"] if flags.toy else [])]
    build = lambda: jax_side.ours(flags.row, batch, augmented=False, toy=flags.toy)
    if flags.apart:
        step = build()
        theirs, prepared = start_torch(flags.torch_python, child)
    else:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            future = pool.submit(start_torch, flags.torch_python, child)
            step = build()
            theirs, prepared = future.result()
    side = rows.TOY_MATMUL if flags.toy else rows.MATMUL
    peaks = {"ssljax": jax_side.matmul(side)}
    sides: dict[str, Callable[[], float]] = {"ssljax": lambda: rows.turn(step.steps, flags.seconds)}
    seen: dict[str, list[float]] = {}

    def their_turn(kind: str) -> float:
        answer = theirs.ask(f"turn {kind} {flags.seconds}")
        seen[kind] = answer
        return answer[0]

    if theirs is not None:
        peaks["torch"] = theirs.ask("matmul")[0]
        for kind in KINDS:
            if prepared[kind][0] == prepared[kind][0]:  # not NaN
                sides[f"torch {kind}"] = lambda kind=kind: their_turn(kind)
    turns = alternate(sides, flags.rounds)
    if theirs is not None:
        theirs.end()

    found = {f"torch {kind}": answer for kind, answer in seen.items()}
    parameters = {"ssljax": step.parameters, **{f"torch {k}": v[1] for k, v in prepared.items()}}
    for name, count in parameters.items():
        if count == count and count != step.parameters:
            print(f"NOT THE SAME NETWORK: ssljax {step.parameters:,}, {name} {count:,.0f} parameters")
    peak = max(value for value in peaks.values() if value == value)
    return (
        step,
        peak,
        {
            "part": "plain",
            "turns": turns,
            "matmul_tflops": peaks,
            "flops_per_step": step.flops,
            "parameters": parameters,
            "compile_seconds": {
                "ssljax": step.compile_seconds,
                **{f"torch {k}": v[0] for k, v in prepared.items()},
            },
            "memory": {"ssljax": step.planned_bytes, **{name: answer[1] for name, answer in found.items()}},
            "allocated": jax_side.allocated(),
            "loss": {"ssljax": step.loss(), **{name: answer[2] for name, answer in found.items()}},
            **figures(turns, batch, step.flops, peak),
        },
    )


def augmented_part(flags: argparse.Namespace, batch: int, plain: Ours | None, peak: float) -> dict[str, Any]:
    """The preset's views on the device against none; what the line says beside `about`."""
    from benchmarks.accelerator import jax_side

    if plain is None:
        plain = jax_side.ours(flags.row, batch, augmented=False, toy=flags.toy)
        peak = jax_side.matmul(rows.TOY_MATMUL if flags.toy else rows.MATMUL)
    step = jax_side.ours(flags.row, batch, augmented=True, toy=flags.toy)
    turns = alternate(
        {
            "augmented": lambda: rows.turn(step.steps, flags.seconds),
            "plain": lambda: rows.turn(plain.steps, flags.seconds),
        },
        flags.rounds,
    )
    return {
        "part": "augmented",
        "turns": turns,
        "matmul_tflops": {"ssljax": peak},
        "flops_per_step": plain.flops,
        "compile_seconds": {"augmented": step.compile_seconds, "plain": plain.compile_seconds},
        "memory": {"augmented": step.planned_bytes, "plain": plain.planned_bytes},
        "allocated": jax_side.allocated(),
        "loss": {"augmented": step.loss(), "plain": plain.loss()},
        **figures(turns, batch, plain.flops, peak),
    }


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--row", choices=ROWS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the folder of throughput.jsonl")
    parser.add_argument(
        "--torch-python", default=sys.executable, help="a Python with torch, torchvision, timm"
    )
    parser.add_argument("--batch", type=int, default=0, help="images per step; 0: the row's own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one turn")
    parser.add_argument(
        "--budget", type=float, default=230.0, help="no part starts after half of these seconds"
    )
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--commit", default="", help="of the source; empty asks git")
    parser.add_argument("--apart", action="store_true", help="compile one after the other")
    parser.add_argument("--toy", action="store_true", help="a CPU, tiny networks")
    return parser.parse_args()


def main() -> None:
    """Measures the parts of a row that are not there yet."""
    begin = time.perf_counter()
    flags = parsed()
    flags.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs the rest
    if flags.toy:
        os.environ["JAX_PLATFORMS"] = "cpu"
        flags.seconds = min(flags.seconds, 0.2)
    batch = flags.batch or (rows.TOY_BATCH if flags.toy else ROWS[flags.row].batch)
    file = flags.out / "throughput.jsonl"

    line = about(flags, batch)
    wanted = flags.parts.split(",")
    left = [part for part in PARTS if part in wanted and part not in done(file, line)]
    if not left:
        print(f"{flags.row}: {file} has it for commit {line['commit']} on {line['device']}")
        return
    step, peak = None, NAN
    if "plain" in left:
        step, peak, found = plain_part(flags, batch)
        write(file, line | found)
    if "augmented" in left:
        spent = time.perf_counter() - begin
        if "plain" in left and spent > flags.budget / 2:
            print(f"{flags.row}: {spent:.0f} of {flags.budget:.0f} s gone, `augmented` is left out")
            return
        write(file, line | augmented_part(flags, batch, step, peak))


if __name__ == "__main__":
    main()
