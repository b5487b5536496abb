"""TPU generations and their slices: what a chip has, and which topologies `plan` is asked for.

Peaks, memory sizes and bandwidths are those of Google's pages (cloud.google.com/tpu/docs/v2 ... v6e, read in 2026; v4's bandwidth of 1228
GB/s is stated there as 1200). The clock is not published for all: it is the one that makes
matrix units x side^2 x 2 x clock the published peak. v6e's page counts two units of 256 x 256, which would need 3.5 GHz; half of that is
taken, as for v5p, and its step times are as uncertain as that.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

GIB = 2**30


class Generation(NamedTuple):
    """One TPU generation; every figure is for a chip.

    Attributes:
        name: as in a topology.
        peak_flops: bfloat16 floating-point operations a second.
        hbm_bytes: size of the memory.
        hbm_bandwidth: bytes a second.
        cores: TensorCores a chip. A JAX device is a core on v2 and v3 and a chip from v4 on.
        clock: Hz.
        shapes: slices in growing order, of those that Cloud TPU rents; the first fits on one host.
    """

    name: str
    peak_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    cores: int
    clock: float
    shapes: tuple[str, ...]


PLANE = ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16")
SPACE = (
    "2x2x1",
    "2x2x2",
    "2x2x4",
    "2x4x4",
    "4x4x4",
    "4x4x8",
    "4x8x8",
    "8x8x8",
    "8x8x16",
    "8x16x16",
    "16x16x16",
)

GENERATIONS = {
    g.name: g
    for g in (
        Generation("v2", 46e12, 16 * GIB, 700e9, 2, 0.70e9, PLANE),
        Generation("v3", 123e12, 32 * GIB, 900e9, 2, 0.94e9, (*PLANE, "16x32", "32x32")),
        Generation("v4", 275e12, 32 * GIB, 1228e9, 2, 1.05e9, SPACE),
        Generation("v5e", 197e12, 16 * GIB, 819e9, 1, 1.50e9, PLANE),
        Generation("v5p", 459e12, 95 * GIB, 2765e9, 2, 1.75e9, SPACE),
        Generation("v6e", 918e12, 32 * GIB, 1638e9, 1, 1.75e9, PLANE),
    )
}

SWEEP = ("v2:8x8", "v3:8x8", "v4:4x4x4", "v5e:8x8", "v5p:4x4x4", "v6e:8x8")


class Slice(NamedTuple):
    """A topology, taken apart.

    Attributes:
        generation: what its chips are.
        shape: chips along each axis of the torus.
    """

    generation: Generation
    shape: tuple[int, ...]

    @property
    def topology(self) -> str:
        """As libtpu and the command line name it."""
        return f"{self.generation.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """How many chips."""
        return math.prod(self.shape)

    @property
    def options(self) -> dict[str, str]:
        """What libtpu is to be told beside the name: Cloud runs the two cores of a v4 chip as one device, libtpu by default does not."""
        return {"chip_config_name": "megacore"} if self.generation.name == "v4" else {}


def parse(topology: str) -> Slice:
    """`v5e:8x8` taken apart.

    Raises:
        ValueError: an unknown generation, or a shape with the wrong number of axes; lists the valid ones.
    """
    match = re.fullmatch(r"(v\w+):(\d+(?:x\d+)+)", topology)
    generation = GENERATIONS.get(match[1]) if match else None
    if generation is None:
        known = "\n".join(f"  {g.name}:{', '.join(g.shapes)}" for g in GENERATIONS.values())
        raise ValueError(
            f"topology {topology!r} is unknown. It is a generation and the chips along each axis, e.g. v5e:8x8:\n{known}"
        )
    shape = tuple(int(side) for side in match[2].split("x"))
    if len(shape) != generation.shapes[0].count("x") + 1 or 0 in shape:
        raise ValueError(
            f"topology {topology!r}: a {generation.name} slice has {generation.shapes[0].count('x') + 1} axes, e.g. "
            f"{', '.join(f'{generation.name}:{s}' for s in generation.shapes)}"
        )
    return Slice(generation, shape)


def larger(slice_: Slice) -> list[Slice]:
    """Slices of the same generation with more chips, the smallest first."""
    every = [parse(f"{slice_.generation.name}:{shape}") for shape in slice_.generation.shapes]
    return [s for s in every if s.chips > slice_.chips]
