"""Convert another framework's state dict (name -> array) to our tree and back, bit for bit.

A name or shape that does not match is an error. A Family says which of their names a leaf of ours has and
how the array is laid out there. This package has one file per kind of network.

BatchNorm's `num_batches_tracked` is neither read nor written, so PyTorch starts it at 0.
"""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

Pytree = Any
Arrays = Mapping[str, np.ndarray]
# Of `params`, what some other framework's file can hold.
PARTS = ("encoder", "head", "distillation_head", "decoder", "mask_token")
INDEX = "relative_position_index"  # BEiT's files have this buffer, timm's do not
STABLEHLO = "it leaves by `ssljax export --workdir=DIR --to=stablehlo:FILE`, which runs without ssljax"
LARGEST = float(jnp.finfo(jnp.bfloat16).max)  # a network may compute in bfloat16
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


class Reorder(NamedTuple):
    """How to convert the layout of one array, without loss.

    Attributes:
        ours: from their layout to ours.
        theirs: from our layout to theirs.
    """

    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]


SAME = Reorder(lambda x: x, lambda x: x)
LINEAR = Reorder(np.transpose, np.transpose)  # [out, in] -> [in, out]
# [out, in, h, w] -> [h, w, in, out]
CONV = Reorder(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))


def patches(side: int) -> Reorder:
    """A convolution [D, C, side, side] as the matrix [side * side * C, D] that multiplies a patch.

    The pixels of a patch are in row-major order, with the channels innermost.
    """
    return Reorder(
        lambda w: CONV.ours(w).reshape(-1, w.shape[0]),
        lambda w: CONV.theirs(w.reshape(side, side, -1, w.shape[-1])),
    )


def of_convolutions(path: str) -> Reorder:
    """The layout of a leaf of a network of convolutions with gates (squeeze and excitation).

    Args:
        path: of the leaf, e.g. "stage2_block1/se/fc1/kernel".
    """
    if not path.endswith("/kernel"):
        return SAME
    if "/se/" in path:
        return patches(1)  # the gate's 1x1 convolutions are matrices here
    return CONV


Rename = Callable[[str], tuple[str, Reorder]]


class Family(NamedTuple):
    """The names that one kind of network has in another framework.

    Attributes:
        rename: from the path of a leaf below `encoder` to its name there and the conversion of its layout.
            `{}` in the name stands for the number of a block, where our leaf stacks the blocks.
        heads: from the names of our linear heads, such as `head`, to the name of the linear layer there.
        others: further parts of `params` that a file holds, each with its `rename`; the path of a part that
            is a leaf itself is "".
        fixed: arrays that are in their file, but that our network computes.
        fixed_hint: what the file has if such an array differs, and what to type.
    """

    rename: Rename
    heads: Mapping[str, str]
    others: Mapping[str, Rename] = {}
    fixed: Arrays = {}
    fixed_hint: str = ""

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of `params` that a file can hold."""
        return ("encoder", *self.heads, *self.others)


class Place(NamedTuple):
    """One array of theirs and its place in our tree.

    Attributes:
        theirs: its name there, e.g. "blocks.0.attn.qkv.weight".
        ours: the path of our leaf, e.g. "params/encoder/blocks/attn/qkv/kernel".
        row: index into the leaf's first axis, the stacked blocks; -1 means the whole leaf.
        reorder: the conversion between the two layouts.
        shape: of their array.
    """

    theirs: str
    ours: str
    row: int
    reorder: Reorder
    shape: tuple[int, ...]

    def __str__(self) -> str:
        row = f"[{self.row}]" if self.row >= 0 else ""
        return f"{self.theirs} {list(self.shape)} -> {self.ours}{row}"


def places(like: Pytree, family: Family) -> list[Place]:
    """List every array that a file for this network has.

    Args:
        like: {"params": ..., "model_state": ...}, arrays or shapes. Only the family's parts are read.
        family: the network's names there.
    """
    found = []
    for path, leaf in flatten_dict(like, sep="/").items():
        _, part, below = f"{path}/".split("/", 2)
        below = below.rstrip("/")
        if part == "encoder":
            theirs, reorder = family.rename(below)
        elif part in family.heads:
            theirs, reorder = _linear(family.heads[part], below)
        elif part in family.others:
            theirs, reorder = family.others[part](below)
        else:
            continue

        stacked = "{}" in theirs
        rows = range(leaf.shape[0]) if stacked else (-1,)
        one = leaf.shape[1:] if stacked else leaf.shape
        shape = reorder.theirs(np.broadcast_to(np.float32(0), one)).shape
        found += [Place(theirs.format(row), path, row, reorder, shape) for row in rows]
    return found


def _linear(name: str, below: str) -> tuple[str, Reorder]:
    leaf = below.split("/")[-1]
    return f"{name}.{LEAVES[leaf]}", LINEAR if leaf == "kernel" else SAME


def load(state: Arrays, like: Pytree, family: Family) -> Pytree:
    """Convert a state dict to our tree, in float32.

    Args:
        state: the state dict.
        like: our tree, see `places`. Leaves outside of the family's parts stay as they are.
        family: the network's names there.

    Raises:
        ValueError: an array is missing, has no place, has another shape, or holds a number that no network
            can compute with. The message names it and the likely cause.
    """
    wanted = places(like, family)
    state = {name: array for name, array in state.items() if not name.endswith("num_batches_tracked")}
    fixed = {name: values for name, values in family.fixed.items() if name in state or INDEX not in name}
    _check_names(state, [place.theirs for place in wanted] + list(fixed))
    for place in wanted:
        if state[place.theirs].shape != place.shape:
            raise ValueError(_shape_error(place, state[place.theirs].shape, family))
        _check_values(place.theirs, state[place.theirs])
    for name, values in fixed.items():
        if state[name].shape != values.shape or not np.allclose(state[name], values, rtol=0, atol=1e-6):
            raise ValueError(f"{name} in the file is not what {family.fixed_hint}")

    rows: dict[str, list[np.ndarray]] = {}
    for place in wanted:
        array = np.asarray(state[place.theirs], np.float32)
        rows.setdefault(place.ours, []).append(place.reorder.ours(array))
    stacked = {place.ours for place in wanted if place.row >= 0}
    ours = {path: np.stack(arrays) if path in stacked else arrays[0] for path, arrays in rows.items()}
    flat = flatten_dict(like, keep_empty_nodes=True, sep="/")
    return unflatten_dict(flat | ours, sep="/")


def dump(tree: Pytree, family: Family) -> dict[str, np.ndarray]:
    """Convert our tree to their state dict, in float32."""
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}
    state = {}
    for place in places(tree, family):
        leaf = flat[place.ours]
        array = leaf if place.row < 0 else leaf[place.row]
        state[place.theirs] = place.reorder.theirs(array)
    state.update(family.fixed)
    # safetensors writes an array's memory as it is, which is wrong for a transposed one (safetensors #825).
    return {name: np.ascontiguousarray(array) for name, array in state.items()}


def _check_names(found: Arrays, wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in found]
    left = sorted(set(found) - set(wanted))
    cause = (
        "config.model (name, distillation, ...) describes another network, or the names are those of another "
        "program"
    )
    if missing:
        near = difflib.get_close_matches(missing[0], left, 1, 0.5)
        hint = f"; the nearest there is {near[0]!r}" if near else ""
        raise ValueError(
            f"the file has no {missing[0]!r} ({len(missing)} of {len(wanted)} names are missing{hint}): "
            f"{cause}"
        )
    if left:
        raise ValueError(f"{left[0]!r} of the file has no place here ({len(left)} such names): {cause}")


def _check_values(name: str, array: np.ndarray) -> None:
    """Raise a ValueError if a number is NaN, infinite or larger than LARGEST."""
    bad = ~(np.abs(array.astype(np.float64)) <= LARGEST)
    if bad.any():
        first = array[bad][0]
        raise ValueError(
            f"{bad.sum()} of {bad.size} numbers of {name} in the file are NaN, infinite or above "
            f"{LARGEST:.3g}, the largest of bfloat16 (first: {first}). The file is damaged or its training "
            "diverged: download it again, or export an earlier checkpoint"
        )


def _shape_error(place: Place, shape: tuple[int, ...], family: Family) -> str:
    text = f"{place.theirs} is {list(shape)} in the file and {list(place.shape)} here"
    if place.theirs.rpartition(".")[0] in family.heads.values() and shape[1:] == place.shape[1:]:
        return (
            f"{text}: its head has {shape[0]} classes, this configuration {place.shape[0]}. Read it into a "
            f"folder of its own with --config.data.num_classes={shape[0]} and start from that folder with "
            "init_from, which takes only the encoder"
        )
    return f"{text}: config.model or config.data.image_size describes another network"


def read(file: str) -> dict[str, np.ndarray]:
    """Read the state dict in a .safetensors file, or in a .pth or .pt file if PyTorch is installed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or another kind of file, or the package that reads it is not installed.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in (".pth", ".pt"):
        raise ValueError(f"{path} is neither .safetensors nor .pth")
    return dict(_pytorch(path))


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    numpy = _safetensors()
    from safetensors import SafetensorError

    try:
        return numpy.load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged, incomplete or no safetensors file ({error}). Download or export it again, "
            "then: ssljax convert --from=FILE.safetensors"
        ) from error
    except (AttributeError, KeyError, TypeError) as error:  # NumPy has no such numbers
        raise ValueError(
            f"{path} holds numbers of a kind that is not read ({error}): save them as float32 or bfloat16"
        ) from error


def _pytorch(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path} is in PyTorch's format, which only PyTorch reads, and PyTorch is not installed. "
            'Convert it where PyTorch is installed: python -c "import torch, safetensors.torch as s; '
            f"d = torch.load('{path.name}', map_location='cpu'); d = d.get('model', d); "
            f"s.save_file({{k: v.contiguous() for k, v in d.items()}}, '{path.stem}.safetensors')\""
        ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than arrays, and reading it could run code that is in it: save only its "
            "state dict"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} is damaged, incomplete or no file of PyTorch ({error}). Download or export it again, "
            "then: ssljax convert --from=FILE.pth"
        ) from error
    for wrapper in ("model", "state_dict"):
        state = state.get(wrapper, state)
    for name, tensor in state.items():
        if torch.is_tensor(tensor):
            yield name, (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def write(state: Arrays, file: str) -> None:
    """Write a state dict as .safetensors.

    Raises:
        ValueError: the file name ends otherwise, or safetensors is not installed.
    """
    if not file.endswith(".safetensors"):
        raise ValueError(f"{file} does not end in .safetensors, the only format that can be written")
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    _safetensors().save_file(dict(state), file, metadata={"format": "pt"})


def _safetensors() -> Any:
    try:
        from safetensors import numpy
    except ImportError as error:
        raise ValueError(
            "reading and writing .safetensors needs a package: pip install 'ssljax[convert]'"
        ) from error
    return numpy
