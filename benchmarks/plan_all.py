"""Compile every paper-scale preset for a TPU slice; experiments/plans.md has a row per preset and slice.

    python -m benchmarks.plan_all [--topology v3:8x8] [--only simclr:] [--full]

A preset is of paper scale if it reads ImageNet, PASCAL VOC or COCO (PAPER). v3:8x8 stands for SimCLR's 128
cores. DeiT, which was trained on GPUs, is planned for v5e:4x4 with 64 images per chip, and detection and
segmentation with one. VOC's AlexNets and VGG-16s have smaller batches: one chip, v5e:1x1, for a detector's
two images, four, v5e:2x2, for the others.
Stages with the same step, which differ only in epochs, schedule or share of the labels, are compiled once.

Each plan is a line of experiments/plans.jsonl. Plans that are there are not compiled again, so the same
command resumes after an interruption. To compile one anew, for instance after the step has changed, delete
its line. `--only simclr:` takes the presets whose names begin with this; `--full` compiles at full effort,
for minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ssljax import optim, plan
from ssljax.compiler import ahead, slices
from ssljax.config import changed, hashed
from ssljax.program import stages

ROOT = Path(__file__).parent.parent
LINES = ROOT / "experiments" / "plans.jsonl"
PAGE = ROOT / "experiments" / "plans.md"

# The sources of paper scale.
PAPER = ("tfds:imagenet2012", "voc:VOCdevkit", "coco:coco", "transfer:voc2007")

# Settings that change only the numbers in a step, or when it is run, but not what is compiled.
SAME_STEP = (
    "seed",
    "epochs",
    "steps",
    "name",
    "preset",
    "init_from",
    "evaluate",
    "checkpoint",
    "log_every",
    "eval_every_epochs",
    "data.label_fraction",
    "data.labels_per_class",
    "data.subset_seed",
    "data.data_dir",
    "data.train_split",
    "data.test_split",
    "optim.learning_rate",
    "optim.warmup_epochs",
    "optim.weight_decay",
    "optim.scaling",
    "optim.start",
    "optim.end",
    "optim.lag",
    "init_branches",
    "distill.teacher",
    "distill.temperature",
    "inference",
    "augment.policy",
    "augment.policy_magnitude",
    "augment.policy_std",
    "augment.policy_ops",
    "augment.antialias",
    "augment.resize",
    "data.label_list",
)

# What is kept of a plan.
COMPILERS = ("jax", "jaxlib", "flax", "libtpu")
LEFT_OUT = (
    "buffers",
    "costliest",
    "estimate",
    "kind",
    "chips",
    "devices",
    "flops_xla",
    "loops",
    "hbm_bytes",
    "hbm_ms",
    "bound_by",
    "compile_seconds",
    "dtype",
    "steps",
    "epochs",
)
# What a line leaves out where it is this.
USUAL = {"effort": "low", "fits": True, "static_ms": 0.0}

INTRODUCTION = """# Plans: what the compiler says before anything runs

Made by `python -m benchmarks.plan_all` on a machine without a TPU ({versions}). **Nothing here was measured
on a TPU.** Memory, FLOPs and bytes are the compiler's own; the peak differs by about 2 % between its two
efforts. *At least* is the time of the matrix products at the chip's peak, which no step beats. *Static* is
the sum of the compiler's cycle estimates at full effort, without collectives, host and input. *Expected*
divides it by 0.5 to 1.4, the spread of such figures against six public runs on v3; on other chips nothing is
calibrated. A device is a core on v2 and v3, otherwise a chip. Memory and collectives are per device.
"""
HEADER = (
    "preset",
    "slice",
    "batch",
    "fits",
    "peak GiB of",
    "GFLOP per image",
    "collectives MB",
    "at least ms per step",
    "static ms",
    "steps",
    "at least h",
    "expected h",
    "commit",
)

# Changes that the figures led to, with the same slice, batch size and effort before and after.
CHANGES = """
## What these figures changed

SimCLR, ResNet-50, batch 4096, bfloat16, v5e:8x8, full effort, jax 0.10.2, libtpu 0.0.42.1 (`ssljax plan
--config configs/simclr.py:imagenet_r50 --topology v5e:8x8 --full`):

| | static ms | HBM traffic by XLA's count | float32 all-reduces |
|---|---|---|---|
| batch statistics in two passes | 92.1 | 58.7 GB | 155 |
| in one pass where activations are bfloat16 (`models/norm.py`) | 78.6 | 54.0 GB | 104 |

Of the 78.6 ms, convolutions with what is fused into them take 57.2 (40.8 of them backward), the residual
additions with their normalisation and ReLU 9.8, augmentation 4.8, norms of parameters and gradients (LARS and
the logged ones) 2.5.

MoCo v3, ViT-B/16, 64 images per chip, bfloat16, v5e:2x2, full effort, same versions (`ssljax plan --config
configs/moco.py:imagenet_vit_b_v3 --config.batch_size=256 --config.model.remat=dots --topology v5e:2x2
--full`). Without remat it needs 24 GiB of 16:

| blocks | attention's and tokens' layout | static ms | peak GiB | compiled in |
|---|---|---|---|---|
| in a loop (`scan`) | one matrix of all tokens | 472 | 6.60 | 100 s |
| in a loop | `[B, N, D]` | 421 | 6.65 | 87 s |
| unrolled | one matrix of all tokens | 384 | 7.52 | 235 s |
| unrolled | `[B, N, D]`, the preset's | 353 | 7.42 | 310 s |

Noisy Student's labels of ImageNet are a table of 5 GB. Its 1,281,167 rows do not split evenly over 128
devices, and every device held all of them twice. Now the table has some rows more (`types.Facts.rows`). Peak
GiB of the students B0 to B7 on v3:8x8, before and after; the numbers before are of commit 2377d137550b:

| | B0 | B1 | B2 | B3 | B4 | B5 | B6 | B7 |
|---|---|---|---|---|---|---|---|---|
| whole on every device | 10.59 | 12.44 | 13.22 | 14.00 | 14.00 | 18.40 | 27.05 | 18.53 |
| split over the devices | 0.98 | 2.85 | 3.62 | 6.04 | 12.09 | 13.76 | 14.51 | 12.84 |
"""


def presets() -> Iterator[tuple[str, ConfigDict]]:
    """(name:preset and stage, config) for every stage of paper scale, once.

    A stage that is also a preset of its own, or a stage of an earlier preset, is not listed again.
    """
    seen = set()
    for path in sorted((ROOT / "configs").glob("*.py")):
        module = importlib.import_module(f"configs.{path.stem}")
        for preset in module.PRESETS:
            for stage, config, _ in stages(module.get_config(preset), ""):
                settings = path.stem, hashed(config)
                if config.data.source in PAPER and settings not in seen:
                    seen.add(settings)
                    yield f"{path.stem}:{preset} {stage}".strip(), config


def key(config: ConfigDict, topology: str) -> str:
    """A key that two configs share exactly if their compiled steps differ at most in constants."""
    settings = {
        name: value
        for name, value in changed(config).items()
        if name not in SAME_STEP and name.split(".")[0] not in SAME_STEP
    }
    text = json.dumps([settings, topology], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def compiled() -> dict[str, dict[str, Any]]:
    """key -> line. A later line with the same key replaces an earlier one.

    A line without versions has those of the line before it, and one without a field of USUAL has that.
    """
    found = {}
    versions: dict[str, str] = {}
    for text in LINES.read_text().splitlines() if LINES.exists() else []:
        line = {"versions": versions, **USUAL, **json.loads(text)}
        versions = line["versions"]
        found[line["key"]] = line
    return found


def compile_one(config: ConfigDict, topology: str, full: bool) -> None:
    """Compile a stage and append its line."""
    found = plan.plan(config, slices.parse(topology), full=full)
    if not found.fits:
        found = found._replace(advice=plan.advise(config, slices.parse(topology), 0))
    line = {"key": key(config, topology), **plan.made_by(), **plan.plain(found)}
    with LINES.open("a") as out:
        out.write(json.dumps(shortened(line), separators=(",", ":")) + "\n")


def shortened(line: dict[str, Any]) -> dict[str, Any]:
    """A plan without most of its bytes: what the page does not show, and packages that compile nothing."""
    kept = {name: value for name, value in line.items() if name not in LEFT_OUT and value != ""}
    kept["versions"] = {name: line["versions"][name] for name in COMPILERS if name in line["versions"]}
    sums: dict[str, int] = defaultdict(int)
    for each in line["collectives"]:
        sums[each["kind"]] += each["bytes"]
    kept["collectives"] = [{"kind": kind, "bytes": total} for kind, total in sums.items()]
    kept["memory"] = {name: line["memory"][name] for name in ("peak", "available")}
    kept["matmul_ms"] = round(line["matmul_ms"], 4)
    return {name: value for name, value in kept.items() if name not in USUAL or value != USUAL[name]}


def page() -> str:
    """The text of experiments/plans.md, from what has been compiled."""
    lines = compiled()
    topologies = sorted({line["topology"] for line in lines.values()})
    rows = []
    for name, config in presets():
        for topology in topologies:
            line = lines.get(key(config, topology))
            if line:
                images = plan.known_facts(config, 0).num_examples
                steps = config.steps or optim.train_steps(images, config.epochs, config.batch_size)
                rows.append(cells(name, line, steps))

    versions = [line["versions"] for line in lines.values()]
    made = sorted({f"jax {v['jax']}, libtpu {v.get('libtpu', '?')}" for v in versions})
    return "\n".join(
        [
            INTRODUCTION.format(versions="; ".join(made)),
            "| " + " | ".join(HEADER) + " |",
            "|" + "---|" * len(HEADER),
            *("| " + " | ".join(row) + " |" for row in rows),
            CHANGES,
        ]
    )


def cells(name: str, line: dict[str, Any], steps: int) -> tuple[str, ...]:
    """One row of the page."""
    memory = line["memory"]
    static = line["static_ms"]
    gib = f"{memory['peak'] / slices.GIB:.2f} of {memory['available'] / slices.GIB:.0f}"
    hours = [static / c * steps / 3.6e6 for c in plan.CALIBRATION[::-1]]
    return (
        name,
        line["topology"],
        str(line["batch_size"]),
        "yes" if line["fits"] else f"**no**; {line['advice']}",
        gib,
        f"{line['flops'] / line['batch_size'] / 1e9:.1f}",
        f"{sum(c['bytes'] for c in line['collectives']) / 1e6:.1f}",
        f"{line['matmul_ms']:.1f}",
        f"{static:.0f}" if static else "-",
        f"{steps:,}",
        f"{line['matmul_ms'] * steps / 3.6e6:.2g}",
        f"{hours[0]:.1f} to {hours[1]:.1f}" if static else "-",
        line["commit"],
    )


def main() -> None:
    """Compile what is missing, then write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", default="v3:8x8")
    parser.add_argument("--only", default="")
    parser.add_argument("--full", action="store_true")
    flags = parser.parse_args()
    ahead.offline()
    for name, config in presets():
        if not name.startswith(flags.only):
            continue
        known = compiled().get(key(config, flags.topology))
        if known is None or (flags.full and known["effort"] == "low"):
            print(f"{name} on {flags.topology}", flush=True)
            compile_one(config, flags.topology, flags.full)
            PAGE.write_text(page())
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
