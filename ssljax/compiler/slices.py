"""TPU generations and their slices: the figures of a chip, and the topologies that `plan` accepts.

Peaks, memory sizes and bandwidths are those of Google's pages (cloud.google.com/tpu/docs/v2 ... v6e, read in
2026; they state v4's bandwidth of 1228 GB/s as 1200). The clock is not published for all generations. Here it
is the one for which matrix units x side^2 x 2 x clock is the published peak. v6e's page counts two units of
256 x 256, which would need 3.5 GHz. Half of that is used here, as for v5p, so v6e's step times are uncertain
by that factor.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

GIB = 2**30


class Generation(NamedTuple):
    """One TPU generation. All figures are per chip.

    Attributes:
        name: the name in a topology.
        peak_flops: bfloat16 floating-point operations per second.
        hbm_bytes: the size of the memory.
        hbm_bandwidth: bytes per second.
        cores: TensorCores per chip. A JAX device is a core on v2 and v3, and a chip from v4 on.
        clock: Hz.
        shapes: slices that Cloud TPU rents, in increasing size; the first fits on one host.
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
        Generation("v5e", 197e12, 16 * GIB, 819e9, 1, 1.50e9, ("1x1", *PLANE)),
        Generation("v5p", 459e12, 95 * GIB, 2765e9, 2, 1.75e9, SPACE),
        Generation("v6e", 918e12, 32 * GIB, 1638e9, 1, 1.75e9, ("1x1", *PLANE)),
    )
}

SWEEP = ("v2:8x8", "v3:8x8", "v4:4x4x4", "v5e:8x8", "v5p:4x4x4", "v6e:8x8")


class Slice(NamedTuple):
    """A parsed topology.

    Attributes:
        generation: the generation of its chips.
        shape: the number of chips along each axis of the torus.
    """

    generation: Generation
    shape: tuple[int, ...]

    @property
    def topology(self) -> str:
        """Its name for libtpu and on the command line."""
        return f"{self.generation.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """The number of chips."""
        return math.prod(self.shape)

    @property
    def options(self) -> dict[str, Any]:
        """What libtpu must be told beside the name.

        Cloud TPU runs the two cores of a v4 chip as one device, and libtpu by default does not. By default
        libtpu takes a host to have four chips.
        """
        if self.generation.name == "v4":
            return {"chip_config_name": "megacore"}
        return {"chips_per_host_bounds": (1, 1, 1)} if self.chips == 1 else {}


def parse(topology: str) -> Slice:
    """Parse a topology, e.g. `v5e:8x8`.

    Raises:
        ValueError: the generation is unknown, or the shape has the wrong number of axes; lists the valid
            ones.
    """
    match = re.fullmatch(r"(v\w+):(\d+(?:x\d+)+)", topology)
    if match is None or match[1] not in GENERATIONS:
        known = "\n".join(f"  {g.name}:{', '.join(g.shapes)}" for g in GENERATIONS.values())
        raise ValueError(
            f"topology {topology!r} is unknown. A topology is a generation and the chips along each axis, "
            f"e.g. v5e:8x8. Those that can be rented:\n{known}"
        )
    generation = GENERATIONS[match[1]]
    shape = tuple(int(side) for side in match[2].split("x"))
    axes = generation.shapes[0].count("x") + 1
    if len(shape) != axes or 0 in shape:
        valid = ", ".join(f"{generation.name}:{s}" for s in generation.shapes)
        raise ValueError(f"topology {topology!r}: a {generation.name} slice has {axes} axes, e.g. {valid}")
    return Slice(generation, shape)


def larger(slice_: Slice) -> list[Slice]:
    """The slices of the same generation with more chips, the smallest first."""
    every = [parse(f"{slice_.generation.name}:{shape}") for shape in slice_.generation.shapes]
    return [s for s in every if s.chips > slice_.chips]
