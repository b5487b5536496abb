"""Reader of the scheduled HLO text that a compiled program prints: what it runs, how often, and what it sends between devices.

Pure text to NamedTuples. The format is XLA's, undocumented, read here as jaxlib 0.10.2 and libtpu 0.0.42 write it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BITS = {
    "pred": 8,
    "s4": 4,
    "u4": 4,
    "s8": 8,
    "u8": 8,
    "s16": 16,
    "u16": 16,
    "s32": 32,
    "u32": 32,
    "s64": 64,
    "u64": 64,
    "bf16": 16,
    "f16": 16,
    "f32": 32,
    "f64": 64,
    "c64": 64,
    "f8e4m3fn": 8,
    "f8e5m2": 8,
}
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|called_computations?)=\{?%?([\w.\-]+)")


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
        name: unique in the module.
        shape: as printed, layout included; in parentheses where there are several results.
        opcode: `fusion`, `all-reduce`, ...
        operands: names.
        attributes: the rest of the line; of a constant its value, in parentheses, as well.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def op_name(self) -> str:
        """Where in the Python program it comes from: `jit(train_step)/.../conv_general_dilated`."""
        return _first(r'op_name="([^"]*)"', self.attributes)

    @property
    def cycles(self) -> int:
        """The compiler's own estimate, 0 where it makes none (collectives, custom calls, asynchronous copies)."""
        return int(_first(r'"estimated_cycles":"(\d+)"', self.attributes) or 0)

    @property
    def called(self) -> str:
        """The computation it runs, or ""."""
        return _first(_CALLED.pattern, self.attributes)


class Module(NamedTuple):
    """A parsed program.

    Attributes:
        entry: name of the computation that runs.
        computations: name -> instructions in scheduled order.
        aliases: (output, parameter) pairs that share a buffer: donated arguments.
    """

    entry: str
    computations: dict[str, tuple[Instruction, ...]]
    aliases: tuple[tuple[int, int], ...]


class Collective(NamedTuple):
    """All operations of one kind and dtype (of their first result) in one step of one device.

    Attributes:
        kind: one of COLLECTIVES.
        dtype: of the data.
        count: how many are run, loops included.
        bytes: of their results.
        largest_bytes: of the largest one.
        largest: its shape, without layout.
    """

    kind: str
    dtype: str
    count: int
    bytes: int
    largest_bytes: int
    largest: str


class Product(NamedTuple):
    """A matrix product or convolution: `dot` or `convolution` (a TPU writes both so), the dtypes of its operands, its result, where it
    comes from, and the precision asked for ("" = default)."""

    opcode: str
    dtypes: tuple[str, str]
    shape: str
    op_name: str
    precision: str


def arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, dimensions) of every array in a printed shape."""
    return [
        (dtype, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d))
        for dtype, dims in _ARRAY.findall(shape)
        if dtype in BITS
    ]


def shape_bytes(shape: str) -> int:
    """Bytes of a printed shape, padding left out."""
    return sum(_bytes(dtype, dims) for dtype, dims in arrays(shape))


def parse(text: str) -> Module:
    """The module in `compiled.as_text()`.

    Raises:
        ValueError: there is no entry computation: not HLO text, or a format this reader does not know.
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, name, lines = "", "", []
    for line in text.splitlines():
        header = None if line.startswith(" ") else _HEADER.match(line)
        if header:
            name, lines = header[2], []
            entry = name if header[1] else entry
        elif line.startswith("}") and name:
            computations[name], name = tuple(lines), ""
        elif name and (instruction := _instruction(line)):
            lines.append(instruction)
    if not entry:
        raise ValueError(
            f"no ENTRY computation in this text of {len(text)} characters: not the HLO of a compiled program?"
        )
    header = text[: text.find("\n")]
    aliases = re.findall(r"\{(\d*)\}: \((\d+), \{[\d,]*\}", _braces(header, "input_output_alias="))
    return Module(
        entry, computations, tuple((int(output or 0), int(parameter)) for output, parameter in aliases)
    )


def _instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    rest = match[2]
    end = _closing(rest, 0) if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opened = rest.find("(")
    closed = _closing(rest, opened)
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[opened:closed]))
    return Instruction(
        match[1], shape, rest[:opened], operands, rest[opened if rest.startswith("constant(") else closed :]
    )


def _closing(text: str, start: int) -> int:
    """The place behind the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i + 1
    return len(text)


def _braces(text: str, key: str) -> str:
    """What stands in the braces behind `key`."""
    start = text.find(key + "{")
    depth = 0
    for i in range(start + len(key), len(text) if start >= 0 else 0):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[start + len(key) : i + 1]
    return ""


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1] if match else ""


def executed(module: Module) -> Iterator[tuple[Instruction, int]]:
    """Every scheduled instruction and how often it runs in a step; what is inside a fusion belongs to the fusion.

    Of a condition's branches the cheapest runs: the library's conditions are for what is measured at logged steps only. A loop whose
    length the text does not tell counts once.
    """

    def walk(name: str, times: int) -> Iterator[tuple[Instruction, int]]:
        for instruction in module.computations.get(name, ()):
            yield instruction, times
            if instruction.opcode == "while":
                yield from walk(instruction.called, times * (trips(module, instruction) or 1))
            elif instruction.opcode == "conditional":
                yield from walk(
                    min(branches(instruction), key=lambda b: len(module.computations.get(b, ()))), times
                )
            elif instruction.opcode in ("call", "async-start"):
                yield from walk(instruction.called, times)

    yield from walk(module.entry, 1)


def trips(module: Module, loop: Instruction) -> int:
    """How often a `while` runs its body; 0 where the text does not tell."""
    known = _first(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known)
    condition = module.computations.get(_first(r"condition=%?([\w.\-]+)", loop.attributes), ())
    bounds = [
        int(n)
        for i in condition
        if i.opcode == "constant" and i.shape.startswith("s32[]")
        for n in re.findall(r"^\((\d+)\)", i.attributes)
    ]
    return bounds[0] if len(bounds) == 1 else 0


def branches(conditional: Instruction) -> list[str]:
    """The computations of a `conditional`."""
    listed = _first(r"branch_computations=\{([^}]*)\}", conditional.attributes)
    names = (
        listed.split(",")
        if listed
        else re.findall(r"(?:true|false)_computation=(%?[\w.\-]+)", conditional.attributes)
    )
    return [name.strip().lstrip("%") for name in names]


def loops(module: Module) -> int:
    """How many loops of more than one trip, or of unknown length, a step runs."""
    return sum(times for i, times in executed(module) if i.opcode == "while" and trips(module, i) != 1)


def inside(module: Module, instruction: Instruction) -> Iterator[Instruction]:
    """The instruction itself and, for a fusion, all that is fused, fusions in it included."""
    yield instruction
    if instruction.opcode == "fusion":
        for inner in module.computations.get(instruction.called, ()):
            yield from inside(module, inner)


def collectives(module: Module) -> list[Collective]:
    """What the devices exchange in a step, the most bytes first."""
    found: dict[tuple[str, str], Collective] = {}
    for scheduled, times in executed(module):
        for i in inside(module, scheduled):
            kind = i.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            results = _results(i)
            dtype, size = results[0][0], sum(_bytes(*result) for result in results)
            before = found.get((kind, dtype), Collective(kind, dtype, 0, 0, 0, ""))
            found[kind, dtype] = Collective(
                kind,
                dtype,
                before.count + times,
                before.bytes + times * size,
                *max((before.largest_bytes, before.largest), (size, _text(results))),
            )
    return sorted(found.values(), key=lambda c: -c.bytes)


def _results(i: Instruction) -> list[tuple[str, tuple[int, ...]]]:
    """The arrays a collective gives: the `-start` of a gather or a permutation prints its operands before them."""
    shapes = arrays(i.shape)
    if i.opcode in ("all-gather-start", "reduce-scatter-start", "collective-permute-start"):
        shapes = [s for s in shapes if s[1] or s[0] != "u32"]  # a permutation's two context words
        return shapes[len(shapes) // 2 :]
    return shapes


def _bytes(dtype: str, dims: tuple[int, ...]) -> int:
    return math.prod(dims) * BITS[dtype] // 8


def _text(shapes: list[tuple[str, tuple[int, ...]]]) -> str:
    first = f"{shapes[0][0]}[{','.join(map(str, shapes[0][1]))}]"
    return first + (f" and {len(shapes) - 1} more" if len(shapes) > 1 else "")


def products(module: Module) -> list[Product]:
    """Every matrix product and convolution of the program, fused or not."""
    found = []
    for computation in module.computations.values():
        shapes = {i.name: i.shape for i in computation}
        for i in computation:
            if i.opcode in ("dot", "convolution"):
                left, right = (arrays(shapes[name])[0][0] for name in i.operands[:2])
                precision = _first(r"operand_precision=\{(\w+)", i.attributes)
                found.append(Product(i.opcode, (left, right), i.shape.split("{")[0], i.op_name, precision))
    return found


def static_cycles(module: Module) -> int:
    """Sum of the compiler's estimates over a step. Meaningful at full compile effort only; collectives carry no estimate."""
    return sum(i.cycles * times for i, times in executed(module))


def costliest(module: Module, number: int) -> list[tuple[int, Instruction]]:
    """(cycles in a step, instruction) of those the compiler thinks longest."""
    rows = [(i.cycles * times, i) for i, times in executed(module) if i.cycles]
    return sorted(rows, key=lambda row: -row[0])[:number]
