"""`ssljax plan`: a config compiled ahead of time for a TPU slice, on a machine without a TPU.

    ssljax plan --config configs/simclr.py:imagenet_r50 --topology v5e:8x8 [--full] [--sweep] [--out plan.json] [--images N]

The step is the one that `train` runs, traced from shapes alone and compiled by libtpu (`pip install 'ssljax[plan]'`): whether it fits,
what it computes, what the network between the chips carries, and how fast it can be at best. Times are a compiler's, never a measurement.
`--full` compiles as the TPU would, for minutes, and adds the range that the compiler's schedule suggests; without it seconds to a minute
are enough for memory (about 2 % from full effort), FLOPs and collectives. `--sweep` takes one topology of every generation.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssljax import cli, sharding
from ssljax.compiler import ahead, flops, hlo, slices
from ssljax.compiler.slices import GIB, Slice
from ssljax.config import flat
from ssljax.data import recipes
from ssljax.program import AHEAD, Program, build, stages
from ssljax.results import commit, versions
from ssljax.types import Facts

# Training images and classes, so that no data set need be on this machine: (data.source, data.train_split).
DATA_SETS = {
    ("digits", ""): (1500, 10),
    ("fashion_mnist", ""): (60_000, 10),
    ("tfds:cifar10", "train"): (50_000, 10),
    ("tfds:cifar100", "train"): (50_000, 100),
    ("tfds:imagenet2012", "train"): (1_281_167, 1000),
    ("tfds:imagenette/160px-v2", "train"): (9_469, 10),
}
# Static estimate / reported step time of six public v3 runs (ResNet-50, BiT, SimCLR, ViT-S/16): how far a full-effort estimate may be off.
CALIBRATION = (0.5, 1.4)
# What may make a step fit, in the order in which it is tried; what the method or network refuses is passed over.
EDITS = (
    ("model.remat", ("dots", "blocks")),
    ("accumulate", (2, 4, 8, 16)),
    ("sharding.fsdp", (8, 16, 32, 64)),
)


class Memory(NamedTuple):
    """HBM of one device in bytes; where the step does not fit, only `peak` (what it would need) and `available` are known."""

    arguments: int
    temporaries: int
    peak: int
    available: int


class Plan(NamedTuple):
    """What the compiler says of one step on one slice. Bytes and milliseconds are a device's, FLOPs the whole step's.

    Attributes:
        config: name:preset, and the stage where there are several.
        topology, kind, chips, devices: the slice; a device is a core on v2 and v3, else a chip.
        effort: "low" or "full".
        compile_seconds: on this machine.
        batch_size, dtype, parameters: of the config.
        fits: whether it compiled.
        problem: the compiler's message where it did not.
        flops: as written, loops counted; `flops_xla` is XLA's count of the compiled program, loop bodies once.
        loops: how many loops the program runs: 0 means that the two counts are comparable.
        hbm_bytes: by XLA's count; depends on the effort, and counts loop bodies once.
        matmul_ms: matrix products at the chip's peak: no step is faster.
        hbm_ms: hbm_bytes at full bandwidth, an estimate; 0 where there are loops.
        bound_by: "compute" or "memory", by the larger of the two; "unknown" where there are loops.
        static_ms: sum of the compiler's cycle estimates, without collectives, host and input; 0 at low effort, where it means nothing.
        collectives: see `hlo.Collective`.
        buffers: the largest, as XLA's memory report lists them: bytes and shapes.
        costliest: (ms, shape, origin) of the longest instructions; empty at low effort.
        steps, epochs: of the whole run.
        advice: what was found to fit instead, compiled too.
    """

    config: str
    topology: str
    kind: str
    chips: int
    devices: int
    effort: str
    compile_seconds: float
    batch_size: int
    dtype: str
    parameters: int
    fits: bool
    problem: str
    memory: Memory
    flops: int
    flops_xla: float
    loops: int
    hbm_bytes: float
    matmul_ms: float
    hbm_ms: float
    bound_by: str
    static_ms: float
    collectives: list[hlo.Collective]
    buffers: list[str]
    costliest: list[tuple[float, str, str]]
    steps: int
    epochs: int
    advice: str = ""


def known_facts(config: ConfigDict, images: int) -> Facts:
    """What a method is told of the config's training split, without the data: as if no image were left out.

    Args:
        config: one stage.
        images: how many there are, for a source that is not in DATA_SETS; 0 looks there.

    Raises:
        ValueError: neither tells.
    """
    data = config.data
    split = "" if data.source == "digits" else data.train_split
    known = DATA_SETS.get((data.source, "")) or DATA_SETS.get((data.source, split))
    total, classes = known or (0, 0)
    total, classes = images or total, data.num_classes or classes
    if not total or not classes:
        raise ValueError(
            f"how many images data.source={data.source!r} has in {split!r} is not known here: add --images N"
            + ("" if classes else " and --config.data.num_classes=C")
        )
    if images:
        return Facts(images, classes, images)
    if data.train_per_class:
        total = min(total, data.train_per_class * classes)
    if data.labels_per_class:
        total = data.labels_per_class * classes
    elif data.label_fraction < 1:
        total = int(data.label_fraction * total + 1e-6)
    return Facts(total, classes, total)


def abstract_batch(program: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the global batch that `loader.train_batches` delivers."""
    b, data, split = program.config.batch_size, program.config.data, sharding.batch_sharding(program.mesh)
    whole = {"image": (data.image_size, data.image_size, data.channels)}
    pixels = recipes.host_shapes(program.config) if data.crop_on == "host" else whole
    numbers = ["label", "index", *(["copy"] if data.repeats > 1 or program.method.balance else [])]
    shapes = {
        **{name: ((b, *shape), jnp.uint8) for name, shape in pixels.items()},
        **{name: ((b,), jnp.int32) for name in numbers},
    }
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=split) for name, (shape, dtype) in shapes.items()
    }


def arguments(program: Program) -> tuple[Any, ...]:
    """What the step is called with, as shapes."""
    return (program.shapes, abstract_batch(program), jax.eval_shape(lambda: jax.random.key(0)))


def program_on(slice_: Slice, config: ConfigDict, images: int = 0) -> Program:
    """The program that `train` builds on this slice.

    Args:
        slice_: from `slices.parse`.
        config: one stage.
        images: see `known_facts`.

    Raises:
        ValueError: the batch does not split over the devices, libtpu refuses the shape, the size of the data is not known.
        ModuleNotFoundError: libtpu is not installed.
    """
    return build(
        config,
        known_facts(config, images),
        sharding.mesh_of(ahead.topology_devices(slice_), config.sharding.fsdp),
    )


def plan(config: ConfigDict, slice_: Slice, *, full: bool = False, images: int = 0) -> Plan:
    """Compiles one stage's step for a slice and reads what the compiler says; raises as `program_on` does.

    Args:
        config: one stage.
        slice_: from `slices.parse`.
        full: see `ahead.compile_step`.
        images: see `known_facts`.
    """
    program = program_on(slice_, config, images)
    return describe(
        program, slice_, ahead.compile_step(program.step, arguments(program), full=full), full=full
    )


def describe(program: Program, slice_: Slice, compiled: ahead.Compiled, *, full: bool) -> Plan:
    """The figures of a compiled step."""
    config, devices, generation = program.config, program.mesh.devices.size, slice_.generation
    share = devices / slice_.chips  # devices a chip: 2 where a device is a core
    written = flops.count(program.step, *arguments(program))
    found = read(compiled, int(generation.hbm_bytes / share))
    matmul_ms = 1e3 * written.on_mxu / devices / (generation.peak_flops / share)
    hbm_ms = 0.0 if found["loops"] else 1e3 * found["hbm_bytes"] / (generation.hbm_bandwidth / share)
    to_ms = 1e3 / generation.clock if full else 0.0
    return Plan(
        config=f"{config.name}:{config.preset}",
        topology=slice_.topology,
        kind=program.mesh.devices.flat[0].device_kind,
        chips=slice_.chips,
        devices=devices,
        effort="full" if full else "low",
        compile_seconds=round(compiled.seconds, 1),
        batch_size=config.batch_size,
        dtype=config.model.dtype,
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(program.shapes.params)),
        flops=written.written,
        flops_xla=found["flops"] * devices,
        loops=found["loops"],
        hbm_bytes=found["hbm_bytes"],
        matmul_ms=matmul_ms,
        hbm_ms=hbm_ms,
        bound_by="unknown" if found["loops"] else "memory" if hbm_ms > matmul_ms else "compute",
        static_ms=found["cycles"] * to_ms,
        fits=compiled.executable is not None,
        problem=compiled.problem,
        memory=found["memory"],
        collectives=found["collectives"],
        buffers=compiled.buffers,
        costliest=[(cycles * to_ms, i.shape, i.op_name) for cycles, i in found["costliest"] if full],
        steps=program.total_steps,
        epochs=config.epochs,
    )


def read(compiled: ahead.Compiled, available: int) -> dict[str, Any]:
    """The figures of a compiled step, a device's; `available` is its memory."""
    if compiled.executable is None:
        return {
            "memory": Memory(0, 0, ahead.needed_bytes(compiled.problem), available),
            "flops": 0.0,
            "hbm_bytes": 0.0,
            "loops": 0,
            "cycles": 0,
            "collectives": [],
            "costliest": [],
        }
    memory, cost, module = (
        compiled.executable.memory_analysis(),
        compiled.executable.cost_analysis(),
        hlo.parse(compiled.text),
    )
    return {
        "memory": Memory(
            memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.peak_memory_in_bytes, available
        ),
        "flops": cost["flops"],
        "hbm_bytes": cost["bytes accessed"],
        "loops": hlo.loops(module),
        "cycles": hlo.static_cycles(module),
        "collectives": hlo.collectives(module),
        "costliest": hlo.costliest(module, 8),
    }


def candidates(config: ConfigDict, slice_: Slice) -> Iterator[tuple[str, ConfigDict, Slice]]:
    """What may make a step fit: (what to change, config, slice), the cheapest first."""
    there = flat(config)  # a plain network has no remat
    for path, values in EDITS:
        section, _, name = path.rpartition(".")
        for value in values if path in there else ():
            edited = config.copy_and_resolve_references()  # ConfigDict(config) would share its sections
            (edited[section] if section else edited)[name] = value
            yield f"--config.{path}={value}", edited.lock(), slice_
    for bigger in slices.larger(slice_):
        yield f"--topology {bigger.topology}", config, bigger


def advise(config: ConfigDict, slice_: Slice, images: int) -> str:
    """The first candidate that compiles and fits, in words."""
    tried = []
    for text, edited, where in candidates(config, slice_):
        try:
            found = plan(edited, where, images=images)
        except ValueError:  # the batch does not split so, or the setting is not for this method
            continue
        if found.fits:
            return f"{text} fits: {size(found.memory.peak)} of {size(found.memory.available)} a device (compiled too)"
        tried.append(text)
    return f"nothing tried fits: {', '.join(tried) or 'no candidate divides the batch'}. A smaller batch_size is left"


def size(count: float) -> str:
    """Bytes as MiB or GiB."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"


def show(p: Plan) -> str:
    """The plan as the terminal shows it."""
    device, m = "chip" if p.devices == p.chips else "core", p.memory
    head = (
        f"{p.config} on {p.topology}: {p.chips} chips, {p.devices} devices ({p.kind}, a device is a {device}), batch {p.batch_size}, "
        f"{p.dtype}, {p.parameters / 1e6:.1f} M parameters; compiled at {p.effort} effort in {p.compile_seconds:.0f} s"
    )
    if not p.fits:
        needed = f"needs {size(m.peak)}" if m.peak else "needs more"
        return f"{head}\nmemory        DOES NOT FIT: {needed}, a {device} has {size(m.available)}\nadvice        {p.advice}"
    xla, traffic = "XLA's own count says nothing, the step has loops", "not known, the step has loops"
    if not p.loops:
        xla = f"XLA counts {p.flops_xla / p.flops:.2f} of it"
        traffic = (
            f"{p.hbm_bytes / 1e9:.4g} GB a {device} and step by XLA's count (rough; depends on the effort)"
        )
    lines = [
        head,
        f"memory        fits: peak {size(m.peak)} of {size(m.available)} a {device} (arguments {size(m.arguments)}, temporaries "
        f"{size(m.temporaries)}); {AHEAD} batches on their way come on top",
        f"compute       {p.flops / 1e12:.4g} TFLOP a step as written, {p.flops / p.batch_size / 1e9:.4g} GFLOP an image; {xla}",
        f"HBM traffic   {traffic}",
    ]
    lines += [
        f"collectives   {c.kind} {c.dtype}: {c.count}, {c.bytes / 1e6:.2f} MB a {device} and step, largest {c.largest}"
        for c in p.collectives
    ] or ["collectives   none"]
    roof = f"; {p.hbm_ms:.4g} ms if the HBM traffic is right: bound by {p.bound_by}" if p.hbm_ms else ""
    lines += [f"lower bound   {p.matmul_ms:.4g} ms a step, matrix products at peak{roof}", *run_lines(p)]
    lines += [
        f"long          {ms:7.2f} ms  {shape[:50]}  {origin[-80:]}" for ms, shape, origin in p.costliest
    ]
    return "\n".join([*lines, *(f"buffer        {text[:120]}" for text in p.buffers)])


def expected_ms(p: Plan) -> tuple[float, float]:
    """The range of step times that the static schedule suggests, by CALIBRATION; zeros where there is no schedule to go by."""
    return p.static_ms / CALIBRATION[1], p.static_ms / CALIBRATION[0]


def run_lines(p: Plan) -> list[str]:
    """How long the run takes: at least, and, at full effort, the range."""

    def speed(ms: float) -> str:
        return f"{1e3 * p.batch_size / ms:,.0f} images/s, {p.steps * ms / 3.6e6:.3g} h"

    lines = [f"run           {p.steps:,} steps for {p.epochs} epochs: at most {speed(p.matmul_ms)}"]
    if p.static_ms:
        fast, slow = expected_ms(p)
        lines += [
            f"estimate      {fast:.3g} to {slow:.3g} ms a step: {speed(fast)} to {speed(slow)}",
            f"              A compiler's estimate, not a measurement: its static schedule has {p.static_ms:.3g} ms, without",
            f"              collectives, host and input; such figures were {CALIBRATION[0]} to {CALIBRATION[1]} times the step",
            "              times reported of six public runs, all on v3. Nothing is calibrated elsewhere.",
        ]
    return lines


COLUMNS = (
    "config",
    "topology",
    "devices",
    "fits",
    "peak GiB",
    "TFLOP/step",
    "collectives MB",
    "bound ms",
    "static ms",
    "images/s at most",
)


def row(p: Plan) -> list[str]:
    """The cells of a plan under COLUMNS; bytes and GiB are a device's."""
    return [
        p.config,
        p.topology,
        str(p.devices),
        "yes" if p.fits else "NO",
        f"{p.memory.peak / GIB:.2f} of {p.memory.available / GIB:.0f}",
        f"{p.flops / 1e12:.4g}",
        f"{sum(c.bytes for c in p.collectives) / 1e6:.4g}",
        f"{p.matmul_ms:.4g}",
        f"{p.static_ms:.3g}" if p.static_ms else "-",
        f"{1e3 * p.batch_size / p.matmul_ms:,.0f}",
    ]


def table(plans: list[Plan]) -> str:
    """One row a plan, in columns."""
    rows = [COLUMNS, *map(row, plans)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in rows
    )


def made_by() -> dict[str, Any]:
    """The commit of the source and the versions that a plan depends on."""
    return {"commit": commit(), "versions": {**versions(), "libtpu": importlib.metadata.version("libtpu")}}


def plain(p: Plan) -> dict[str, Any]:
    """The plan as JSON knows it."""
    estimate = {
        "step_ms": expected_ms(p),
        "hours": [p.steps * ms / 3.6e6 for ms in expected_ms(p)],
        "note": "a compiler's estimate, not a measurement; calibrated on six runs, all on v3",
    }
    return {
        **p._asdict(),
        "memory": p.memory._asdict(),
        "collectives": [c._asdict() for c in p.collectives],
        "estimate": estimate if p.static_ms else {},
    }


def main(argv: list[str] | None = None) -> None:
    """`ssljax plan`."""
    argv = sys.argv[1:] if argv is None else argv
    ahead.offline()
    # A plan belongs to no run's folder, which the flags of the other verbs ask for.
    flags = cli.parse("plan", ["--workdir=.", *argv], topology="", full=False, sweep=False, out="", images=0)
    plans = []
    try:
        if not flags.topology and not flags.sweep:
            raise ValueError(
                f"--topology is missing, e.g. --topology v5e:8x8, or --sweep for {', '.join(slices.SWEEP)}"
            )
        wanted = [slices.parse(topology) for topology in (slices.SWEEP if flags.sweep else (flags.topology,))]
        for (stage, config, _), slice_ in itertools.product(stages(flags.config, ""), wanted):
            print(
                f"compiling {config.name}:{config.preset} for {slice_.topology}", file=sys.stderr, flush=True
            )
            found = plan(config, slice_, full=flags.full, images=flags.images)
            found = found._replace(config=f"{found.config} {stage}".strip())
            if not found.fits and not flags.sweep:
                found = found._replace(advice=advise(config, slice_, flags.images))
            plans.append(found)
            if not flags.sweep:
                print(show(found) + "\n", flush=True)
    except (ValueError, ModuleNotFoundError) as error:
        raise SystemExit(f"ssljax plan: {error}") from error
    if flags.sweep:
        print(table(plans))
    if flags.out:
        facts = {"command": " ".join(["ssljax plan", *argv]), **made_by(), "plans": [plain(p) for p in plans]}
        Path(flags.out).write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
