"""A parser of scheduled HLO text: what a compiled program runs, how often, and what its devices exchange.

It turns text into NamedTuples. The format is XLA's and undocumented; this is how jaxlib 0.10.2 and libtpu
0.0.42 write it.
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
        shape: as printed, with the layout; in parentheses if there are several results.
        opcode: `fusion`, `all-reduce`, ...
        operands: the names of its arguments.
        attributes: the rest of the line; for a constant this includes its value, in parentheses.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def op_name(self) -> str:
        """Its origin in the Python program: `jit(train_step)/.../conv_general_dilated`."""
        return _first(r'op_name="([^"]*)"', self.attributes)

    @property
    def cycles(self) -> int:
        """The compiler's estimate; 0 if it makes none (collectives, custom calls, asynchronous copies)."""
        return int(_first(r'"estimated_cycles":"(\d+)"', self.attributes) or 0)

    @property
    def called(self) -> str:
        """The name of the computation that it runs, or ""."""
        return _first(_CALLED.pattern, self.attributes)


class Module(NamedTuple):
    """A parsed program.

    Attributes:
        entry: the name of the computation that runs.
        computations: name -> instructions in scheduled order.
        aliases: (output, parameter) pairs that share a buffer, for donated arguments.
    """

    entry: str
    computations: dict[str, tuple[Instruction, ...]]
    aliases: tuple[tuple[int, int], ...]


class Collective(NamedTuple):
    """All collectives of one kind and dtype (of their first result) in one step of one device.

    Attributes:
        kind: one of COLLECTIVES.
        dtype: the dtype of the data.
        count: how many are run, loops included.
        bytes: the size of their results.
        largest_bytes: the size of the largest one.
        largest: the shape of the largest one, without its layout.
    """

    kind: str
    dtype: str
    count: int  # type: ignore[assignment]  # hides tuple.count, which nothing here calls
    bytes: int
    largest_bytes: int
    largest: str


class Product(NamedTuple):
    """A matrix product or convolution.

    Attributes:
        opcode: `dot` or `convolution`, which a TPU writes for both.
        dtypes: the dtypes of its operands.
        shape: the shape of its result.
        op_name: its origin in the Python program.
        precision: the requested precision; "" is the default.
    """

    opcode: str
    dtypes: tuple[str, str]
    shape: str
    op_name: str
    precision: str


def arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, dimensions) of every array in a printed shape."""
    found = []
    for dtype, dims in _ARRAY.findall(shape):
        if dtype in BITS:
            sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
            found.append((dtype, sizes))
    return found


def shape_bytes(shape: str) -> int:
    """The size of a printed shape in bytes, without padding."""
    return sum(_bytes(dtype, dims) for dtype, dims in arrays(shape))


def parse(text: str) -> Module:
    """Parse the module in `compiled.as_text()`.

    Raises:
        ValueError: there is no entry computation: this is not HLO text, or an unknown form of it.
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry = ""
    name = ""
    instructions: list[Instruction] = []
    for line in text.splitlines():
        header = None if line.startswith(" ") else _HEADER.match(line)
        if header:
            name = header[2]
            instructions = []
            if header[1]:
                entry = name
        elif line.startswith("}") and name:
            computations[name] = tuple(instructions)
            name = ""
        elif name and (instruction := _instruction(line)):
            instructions.append(instruction)
    if not entry:
        raise ValueError(
            f"no ENTRY computation in this text of {len(text)} characters: "
            "it is not the HLO of a compiled program, or a form of it that is not known here"
        )

    first_line = text[: text.find("\n")]
    shared = _braces(first_line, "input_output_alias=")
    pairs = re.findall(r"\{(\d*)\}: \((\d+), \{[\d,]*\}", shared)
    aliases = tuple((int(output or 0), int(parameter)) for output, parameter in pairs)
    return Module(entry, computations, aliases)


def _instruction(line: str) -> Instruction | None:
    """One line of a computation: NAME = SHAPE OPCODE(OPERANDS) ATTRIBUTES."""
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    rest = match[2]
    end = _closing(rest, 0) if rest.startswith("(") else rest.find(" ")
    shape = rest[:end]
    rest = rest[end:].lstrip()

    opened = rest.find("(")
    closed = _closing(rest, opened)
    opcode = rest[:opened]
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[opened:closed]))
    attributes = rest[opened:] if opcode == "constant" else rest[closed:]
    return Instruction(match[1], shape, opcode, operands, attributes)


def _closing(text: str, start: int) -> int:
    """The position after the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i + 1
    return len(text)


def _braces(text: str, key: str) -> str:
    """The text in the braces after `key`."""
    start = text.find(key + "{")
    depth = 0
    for i in range(start + len(key), len(text) if start >= 0 else 0):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[start + len(key) : i + 1]
    return ""


def _first(pattern: str, text: str) -> str:
    """The first group of the first match, or ""."""
    match = re.search(pattern, text)
    return match[1] if match else ""


def executed(module: Module) -> Iterator[tuple[Instruction, int]]:
    """Every scheduled instruction, and how often it runs in a step.

    A fusion is one instruction. Of the branches of a condition the cheapest is taken to run, because the
    library uses conditions for what is measured at logged steps only. A loop whose length is not in the text
    counts once.
    """

    def length(name: str) -> int:
        return len(module.computations.get(name, ()))

    def walk(name: str, times: int) -> Iterator[tuple[Instruction, int]]:
        for instruction in module.computations.get(name, ()):
            yield instruction, times
            if instruction.opcode == "while":
                yield from walk(instruction.called, times * (trips(module, instruction) or 1))
            elif instruction.opcode == "conditional":
                cheapest = min(branches(instruction), key=length)
                yield from walk(cheapest, times)
            elif instruction.opcode in ("call", "async-start"):
                yield from walk(instruction.called, times)

    yield from walk(module.entry, 1)


def trips(module: Module, loop: Instruction) -> int:
    """How often a `while` runs its body; 0 if the text does not say.

    If the compiler does not state it, it is taken to be the only int32 constant in the loop's condition.
    """
    known = _first(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known)
    name = _first(r"condition=%?([\w.\-]+)", loop.attributes)
    bounds = []
    for instruction in module.computations.get(name, ()):
        if instruction.opcode == "constant" and instruction.shape.startswith("s32[]"):
            bounds += re.findall(r"^\((\d+)\)", instruction.attributes)
    return int(bounds[0]) if len(bounds) == 1 else 0


def branches(conditional: Instruction) -> list[str]:
    """The computations of a `conditional`."""
    listed = _first(r"branch_computations=\{([^}]*)\}", conditional.attributes)
    if listed:
        names = listed.split(",")
    else:
        names = re.findall(r"(?:true|false)_computation=(%?[\w.\-]+)", conditional.attributes)
    return [name.strip().lstrip("%") for name in names]


def loops(module: Module) -> int:
    """How many loops of unknown length, or of more than one trip, a step runs."""
    return sum(times for i, times in executed(module) if i.opcode == "while" and trips(module, i) != 1)


def inside(module: Module, instruction: Instruction) -> Iterator[Instruction]:
    """The instruction itself and, for a fusion, all instructions fused into it, at any depth."""
    yield instruction
    if instruction.opcode == "fusion":
        for inner in module.computations.get(instruction.called, ()):
            yield from inside(module, inner)


def collectives(module: Module) -> list[Collective]:
    """What the devices exchange in a step, ordered from most to fewest bytes."""
    found: dict[tuple[str, str], Collective] = {}
    for scheduled, times in executed(module):
        for i in inside(module, scheduled):
            kind = i.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            results = _results(i)
            dtype = results[0][0]
            size = sum(_bytes(*result) for result in results)
            before = found.get((kind, dtype), Collective(kind, dtype, 0, 0, 0, ""))
            largest_bytes, largest = max((before.largest_bytes, before.largest), (size, _text(results)))
            found[kind, dtype] = Collective(
                kind=kind,
                dtype=dtype,
                count=before.count + times,
                bytes=before.bytes + times * size,
                largest_bytes=largest_bytes,
                largest=largest,
            )
    return sorted(found.values(), key=lambda c: -c.bytes)


def _results(i: Instruction) -> list[tuple[str, tuple[int, ...]]]:
    """The resulting arrays of a collective.

    The `-start` of a gather, a scatter or a permutation prints its operands before them.
    """
    shapes = arrays(i.shape)
    if i.opcode in ("all-gather-start", "reduce-scatter-start", "collective-permute-start"):
        shapes = [s for s in shapes if s[1] or s[0] != "u32"]  # a permutation's two context words
        return shapes[len(shapes) // 2 :]
    return shapes


def _bytes(dtype: str, dims: tuple[int, ...]) -> int:
    return math.prod(dims) * BITS[dtype] // 8


def _text(shapes: list[tuple[str, tuple[int, ...]]]) -> str:
    """The first shape, and how many more there are."""
    dtype, dims = shapes[0]
    first = f"{dtype}[{','.join(map(str, dims))}]"
    return f"{first} and {len(shapes) - 1} more" if len(shapes) > 1 else first


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
    """The sum of the compiler's estimates over a step.

    It means something at full compile effort only. Collectives have no estimate.
    """
    return sum(i.cycles * times for i, times in executed(module))


def costliest(module: Module, number: int) -> list[tuple[int, Instruction]]:
    """(cycles in a step, instruction) for the `number` longest instructions by the compiler's estimate."""
    rows = [(i.cycles * times, i) for i, times in executed(module) if i.cycles]
    return sorted(rows, key=lambda row: -row[0])[:number]
