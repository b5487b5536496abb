"""`ssljax plan`: compile a config ahead of time for a TPU slice, on a machine without a TPU.

    ssljax plan --config configs/simclr.py:imagenet_r50 --topology v5e:8x8 \\
        [--full] [--sweep] [--out plan.json] [--images N] [--stage NAME]

The step is the one that `train` runs, traced from shapes alone and compiled by libtpu (`pip install
'ssljax[plan]'`). The plan says whether it fits, what it computes, what the chips send to each other, and how
fast it can be at best. Times are the compiler's estimates, never measurements.

By default, compilation takes seconds to a minute. That is enough for memory (about 2 % from full effort),
FLOPs and collectives. `--full` compiles as the TPU would, for minutes, and adds the range of step times that
the compiler's schedule suggests. `--sweep` plans for one topology of every generation.
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
from ssljax.data import annotated, coco, recipes, scenes, voc_objects
from ssljax.program import AHEAD, Program, build, stage, stages
from ssljax.results import commit, versions
from ssljax.types import Facts

# (data.source, data.train_split) -> training images and classes, so that no data set is needed on this
# machine.
DATA_SETS = {
    ("digits", ""): (1500, 10),
    ("digits", "boxes"): (500, 10),
    ("digits", "masks"): (500, 11),
    ("fashion_mnist", ""): (60_000, 10),
    ("tfds:cifar10", "train"): (50_000, 10),
    ("tfds:cifar100", "train"): (50_000, 100),
    ("tfds:imagenet2012", "train"): (1_281_167, 1000),
    ("tfds:imagenette/160px-v2", "train"): (9_469, 10),
    ("voc:VOCdevkit", "2007/trainval"): (5_011, 20),
    ("voc:VOCdevkit", "2007/trainval+2012/trainval"): (16_551, 20),
    ("voc:VOCdevkit", "2012/train_aug"): (10_582, 21),
    ("transfer:voc2007", "train+validation"): (5_011, 20),
    ("coco:coco", "train"): (117_266, 80),  # of train2017, those with objects that are no crowds
}
# The largest numbers of objects in an image, which the data at hand may stay below.
MOST_OBJECTS = {"coco": coco.MOST, "voc": voc_objects.MOST, "digits": scenes.FIELDS}
FEW_OBJECTS = 8  # of any other data
# How far a full-effort estimate may be off: static estimate / reported step time of six public v3 runs
# (ResNet-50, BiT, SimCLR, ViT-S/16).
CALIBRATION = (0.5, 1.4)
# Settings that may make a step fit, in the order in which they are tried. Those that the method or the
# network refuses are skipped.
EDITS = (
    ("model.remat", ("dots", "blocks")),
    ("accumulate", (2, 4, 8, 16)),
    ("sharding.fsdp", (8, 16, 32, 64)),
)


class Memory(NamedTuple):
    """HBM of one device in bytes.

    If the step does not fit, only `peak` (what it would need) and `available` are known.

    Attributes:
        arguments: the state and the batch.
        temporaries: everything that lives within the step.
        peak: the most that is in use at one time.
        available: the memory of the device.
    """

    arguments: int
    temporaries: int
    peak: int
    available: int


class Plan(NamedTuple):
    """What the compiler says about one step on one slice.

    Bytes and milliseconds are per device. FLOPs are those of the whole step.

    Attributes:
        config: name:preset, and the stage if there are several.
        topology, kind, chips, devices: the slice. A device is a core on v2 and v3, otherwise a chip.
        effort: "low" or "full".
        compile_seconds: how long compilation took on this machine.
        batch_size, dtype, parameters: of the config.
        fits: whether the step compiled.
        problem: the compiler's message if it did not.
        flops: of the program as written, with loops counted as often as they run.
        flops_xla: XLA's count of the compiled program, with loop bodies counted once.
        loops: how many loops the program runs. The two counts are comparable only if it is 0.
        hbm_bytes: by XLA's count; depends on the effort, and counts loop bodies once.
        matmul_ms: the time of the matrix products at the chip's peak. No step is faster.
        hbm_ms: the time of `hbm_bytes` at full bandwidth, an estimate; 0 if there are loops.
        bound_by: "compute" or "memory", by the larger of these two times; "unknown" if there are loops.
        static_ms: the sum of the compiler's cycle estimates, without collectives, host and input; 0 at low
            effort, where it means nothing.
        collectives: see `hlo.Collective`.
        buffers: the largest buffers as XLA's memory report lists them: bytes and shapes.
        costliest: (ms, shape, origin) of the longest instructions; empty at low effort.
        steps, epochs: the length of the whole run.
        advice: a change with which the step was found to fit, by compiling it; "" if it fits as it is.
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
    """The facts of a config's training split without its data, assuming that no image is skipped.

    Args:
        config: one stage.
        images: the number of training images, for a source that is not in DATA_SETS; 0 looks it up there.
            With `data.unlabelled` it is the number of those further images.

    Raises:
        ValueError: the number of images or of classes is not known.
    """
    data = config.data
    if data.unlabelled:
        if not images:
            raise ValueError(
                f"the number of images that data.unlabelled={data.unlabelled!r} has is not known here: add "
                "--images N"
            )
        alone = config.copy_and_resolve_references().unlock()
        alone.data.unlabelled = ""
        first = known_facts(alone, 0)
        return Facts(
            first.num_examples + images,
            first.num_classes,
            first.num_ids + images,
            num_unlabelled=first.num_unlabelled + images,
        )
    split = data.annotations if data.source == "digits" else data.train_split
    known = DATA_SETS.get((data.source, split)) or DATA_SETS.get((data.source, ""))
    total, classes = known or (0, 0)
    total = images or total
    classes = data.num_classes or classes
    if not total or not classes:
        missing = "--images N" if classes else "--images N and --config.data.num_classes=C"
        raise ValueError(
            f"the number of images that data.source={data.source!r} has in {split!r} is not known here: "
            f"add {missing}"
        )

    if images:
        return Facts(images, classes, images)
    if data.train_per_class:
        total = min(total, data.train_per_class * classes)
    few = data.labels_per_class or data.label_fraction < 1
    if few and data.keep_unlabelled:
        labelled = data.labels_per_class * classes or int(data.label_fraction * total + 1e-6)
        return Facts(total, classes, total, num_unlabelled=total - labelled)
    if data.labels_per_class:
        total = data.labels_per_class * classes
    elif data.label_fraction < 1:
        total = int(data.label_fraction * total + 1e-6)
    return Facts(total, classes, total)


def abstract_batch(program: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the global batch that `loader.train_batches` delivers."""
    data = program.config.data
    split = sharding.batch_sharding(program.mesh)

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((program.config.batch_size, *shape), dtype, sharding=split)

    if data.annotations:
        objects = MOST_OBJECTS.get(data.source.partition(":")[0], FEW_OBJECTS)
        landscape = annotated.shapes(program.config, objects)[0]
        return {name: array(*field) for name, field in landscape.items()}
    pixels: dict[str, tuple[int, ...]] = {"image": (data.image_size, data.image_size, data.channels)}
    if data.crop_on == "host":
        pixels = recipes.host_shapes(program.config)
    numbers = ["label", "index"]
    if data.repeats > 1 or program.method.balance:
        numbers.append("copy")

    images = {name: array(shape, jnp.uint8) for name, shape in pixels.items()}
    if program.method.several_labels:
        images["labels"] = array((program.facts.num_classes,), jnp.int8)
    return images | {name: array((), jnp.int32) for name in numbers}


def arguments(program: Program) -> tuple[Any, ...]:
    """The arguments of the step, as shapes."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return program.shapes, abstract_batch(program), key


def program_on(slice_: Slice, config: ConfigDict, images: int = 0) -> Program:
    """The program that `train` builds on this slice.

    Args:
        slice_: from `slices.parse`.
        config: one stage.
        images: see `known_facts`.

    Raises:
        ValueError: the batch does not split over the devices, libtpu refuses the shape, or the size of the
            data set is not known.
        ModuleNotFoundError: libtpu is not installed.
    """
    facts = known_facts(config, images)
    mesh = sharding.mesh_of(ahead.topology_devices(slice_), config.sharding.fsdp)
    return build(config, facts, mesh)


def plan(config: ConfigDict, slice_: Slice, *, full: bool = False, images: int = 0) -> Plan:
    """Compile one stage's step for a slice and read what the compiler says about it.

    Args:
        config: one stage.
        slice_: from `slices.parse`.
        full: see `ahead.compile_step`.
        images: see `known_facts`.

    Raises:
        ValueError, ModuleNotFoundError: see `program_on`.
    """
    program = program_on(slice_, config, images)
    compiled = ahead.compile_step(program.step, arguments(program), full=full)
    return describe(program, slice_, compiled, full=full)


def describe(program: Program, slice_: Slice, compiled: ahead.Compiled, *, full: bool) -> Plan:
    """The plan of a compiled step."""
    config = program.config
    devices = program.mesh.devices.size
    generation = slice_.generation
    per_chip = devices / slice_.chips  # devices per chip: 2 if a device is a core
    written = flops.count(program.step, *arguments(program))
    found = read(compiled, int(generation.hbm_bytes / per_chip))

    matmul_ms = 1e3 * written.on_mxu / devices / (generation.peak_flops / per_chip)
    to_ms = 1e3 / generation.clock if full else 0.0
    if found["loops"]:
        hbm_ms, bound_by = 0.0, "unknown"
    else:
        hbm_ms = 1e3 * found["hbm_bytes"] / (generation.hbm_bandwidth / per_chip)
        bound_by = "memory" if hbm_ms > matmul_ms else "compute"
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
        bound_by=bound_by,
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
    """The compiler's figures of a step, per device.

    Args:
        compiled: from `ahead.compile_step`.
        available: the memory of a device in bytes.
    """
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

    memory = compiled.executable.memory_analysis()
    cost = compiled.executable.cost_analysis()
    module = hlo.parse(compiled.text)
    return {
        "memory": Memory(
            memory.argument_size_in_bytes,
            memory.temp_size_in_bytes,
            memory.peak_memory_in_bytes,
            available,
        ),
        "flops": cost["flops"],
        "hbm_bytes": cost["bytes accessed"],
        "loops": hlo.loops(module),
        "cycles": hlo.static_cycles(module),
        "collectives": hlo.collectives(module),
        "costliest": hlo.costliest(module, 8),
    }


def candidates(config: ConfigDict, slice_: Slice) -> Iterator[tuple[str, ConfigDict, Slice]]:
    """Changes that may make a step fit, the cheapest first: (the flag in words, config, slice)."""
    settings = flat(config)
    for path, values in EDITS:
        if path not in settings:  # a plain network has no remat
            continue
        section, _, name = path.rpartition(".")
        for value in values:
            edited = config.copy_and_resolve_references()  # ConfigDict(config) would share its sections
            part = edited[section] if section else edited
            part[name] = value
            yield f"--config.{path}={value}", edited.lock(), slice_
    for bigger in slices.larger(slice_):
        yield f"--topology {bigger.topology}", config, bigger


def advise(config: ConfigDict, slice_: Slice, images: int) -> str:
    """Describe the first candidate that compiles and fits."""
    tried = []
    for text, edited, where in candidates(config, slice_):
        try:
            found = plan(edited, where, images=images)
        except ValueError:  # the batch does not split this way, or the method refuses the setting
            continue
        if found.fits:
            used = f"{size(found.memory.peak)} of {size(found.memory.available)} per device"
            return f"{text} fits: {used} (compiled too)"
        tried.append(text)
    failed = ", ".join(tried) or "no candidate divides the batch"
    return f"nothing that was tried fits: {failed}. Use a smaller batch_size"


def size(count: float) -> str:
    """Bytes as MiB or GiB."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"


def number_of(count: int, word: str) -> str:
    """A number and what it counts: 1 chip, 2 chips."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def show(p: Plan) -> str:
    """The plan as the terminal shows it."""
    device = "chip" if p.devices == p.chips else "core"
    memory = p.memory
    head = (
        f"{p.config} on {p.topology}: {number_of(p.chips, 'chip')}, {number_of(p.devices, 'device')} "
        f"({p.kind}, a device is a {device}), "
        f"batch {p.batch_size}, {p.dtype}, {p.parameters / 1e6:.1f} M parameters; "
        f"compiled at {p.effort} effort in {p.compile_seconds:.0f} s"
    )
    if not p.fits:
        needed = f"needs {size(memory.peak)}" if memory.peak else "needs more"
        return "\n".join(
            [
                head,
                f"memory        DOES NOT FIT: {needed}, a {device} has {size(memory.available)}",
                f"advice        {p.advice}",
            ]
        )

    counted = "not comparable with XLA's own count, the step has loops"
    traffic = "not known, the step has loops"
    if not p.loops:
        counted = f"XLA counts {p.flops_xla / p.flops:.2f} of it"
        traffic = f"{p.hbm_bytes / 1e9:.4g} GB per {device} and step by XLA's count"
        traffic += " (rough; depends on the effort)"
    bound = f"{p.matmul_ms:.4g} ms per step, matrix products at peak"
    if p.hbm_ms:
        bound += f"; {p.hbm_ms:.4g} ms if the HBM traffic is right: bound by {p.bound_by}"

    lines = [
        head,
        f"memory        fits: peak {size(memory.peak)} of {size(memory.available)} per {device} "
        f"(arguments {size(memory.arguments)}, temporaries {size(memory.temporaries)}); "
        f"{AHEAD} batches in flight come on top",
        f"compute       {p.flops / 1e12:.4g} TFLOP per step as written, "
        f"{p.flops / p.batch_size / 1e9:.4g} GFLOP per image; {counted}",
        f"HBM traffic   {traffic}",
        *collective_lines(p, device),
        f"lower bound   {bound}",
        *run_lines(p),
    ]
    lines += [
        f"long          {ms:7.2f} ms  {shape[:50]}  {origin[-80:]}" for ms, shape, origin in p.costliest
    ]
    lines += [f"buffer        {text[:120]}" for text in p.buffers]
    return "\n".join(lines)


def collective_lines(p: Plan, device: str) -> list[str]:
    """What the devices send to each other, one line per kind and dtype."""
    if not p.collectives:
        return ["collectives   none"]
    return [
        f"collectives   {c.kind} {c.dtype}: {c.count}, {c.bytes / 1e6:.2f} MB per {device} and step, "
        f"largest {c.largest}"
        for c in p.collectives
    ]


def expected_ms(p: Plan) -> tuple[float, float]:
    """The range of step times that the static schedule suggests, by CALIBRATION; zeros without a schedule."""
    return p.static_ms / CALIBRATION[1], p.static_ms / CALIBRATION[0]


def run_lines(p: Plan) -> list[str]:
    """How long the run takes at least and, at full effort, the estimated range."""

    def speed(ms: float) -> str:
        return f"{1e3 * p.batch_size / ms:,.0f} images/s, {p.steps * ms / 3.6e6:.3g} h"

    lines = [f"run           {p.steps:,} steps for {p.epochs} epochs: at most {speed(p.matmul_ms)}"]
    if p.static_ms:
        fast, slow = expected_ms(p)
        low, high = CALIBRATION
        lines += [
            f"estimate      {fast:.3g} to {slow:.3g} ms per step: {speed(fast)} to {speed(slow)}",
            "              A compiler's estimate, not a measurement. Its static schedule has "
            f"{p.static_ms:.3g} ms, without",
            "              collectives, host and input. On six public runs such figures were "
            f"{low} to {high} times",
            "              the reported step times. The runs were all on v3; other chips are not calibrated.",
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
    """The cells of a plan under COLUMNS. Memory and bytes are per device."""
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
    """A table with one row per plan."""
    rows = [list(COLUMNS), *map(row, plans)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: list[str]) -> str:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        return "  ".join(padded).rstrip()

    return "\n".join(line(cells) for cells in rows)


def made_by() -> dict[str, Any]:
    """The commit and the versions that a plan depends on."""
    return {"commit": commit(), "versions": {**versions(), "libtpu": importlib.metadata.version("libtpu")}}


def plain(p: Plan) -> dict[str, Any]:
    """The plan in types that JSON can hold."""
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
    # A plan needs no run folder, for which the other verbs ask.
    flags = cli.parse(
        "plan", ["--workdir=.", *argv], topology="", full=False, sweep=False, out="", images=0, stage=""
    )
    plans = []

    with cli.answered("plan"):
        if not flags.topology and not flags.sweep:
            raise ValueError(
                f"--topology is missing, e.g. --topology v5e:8x8, or --sweep for {', '.join(slices.SWEEP)}"
            )
        topologies = slices.SWEEP if flags.sweep else (flags.topology,)
        wanted = [slices.parse(topology) for topology in topologies]
        known = stages(flags.config, "")
        if flags.stage:
            known = [(flags.stage, *stage(flags.config, "", flags.stage))]
        for (name, config, _), slice_ in itertools.product(known, wanted):
            progress = f"compiling {config.name}:{config.preset} for {slice_.topology}"
            print(progress, file=sys.stderr, flush=True)
            found = plan(config, slice_, full=flags.full, images=flags.images)
            found = found._replace(config=f"{found.config} {name}".strip())
            if not found.fits and not flags.sweep:
                found = found._replace(advice=advise(config, slice_, flags.images))
            plans.append(found)
            if not flags.sweep:
                print(show(found) + "\n", flush=True)

    if flags.sweep:
        print(table(plans))
    if flags.out:
        facts = {"command": " ".join(["ssljax plan", *argv]), **made_by(), "plans": [plain(p) for p in plans]}
        with cli.answered("plan"):
            Path(flags.out).write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
