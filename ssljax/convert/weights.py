"""A foreign state dict (name -> array) in our tree and back, bit for bit; a name or shape that does not match is an error.

Which of their names a leaf of ours has, and how the array lies there, is a Family: one file each in this room. BatchNorm's
`num_batches_tracked` is passed over and not written: PyTorch then starts it at 0.
"""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

Pytree = Any
Arrays = Mapping[str, np.ndarray]
PARTS = ("encoder", "head", "distillation_head")  # of `params` that another framework's file can hold
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


class Reorder(NamedTuple):
    """How one array is turned, without a loss, into ours and into theirs."""

    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]


SAME = Reorder(lambda x: x, lambda x: x)
LINEAR = Reorder(np.transpose, np.transpose)  # [out, in] -> [in, out]
CONV = Reorder(
    lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1)
)  # [out, in, h, w] -> [h, w, in, out]


def patches(side: int) -> Reorder:
    """A convolution [D, C, side, side] as the matrix [side * side * C, D] that multiplies a patch read row by row, channels innermost."""
    return Reorder(
        lambda w: CONV.ours(w).reshape(-1, w.shape[0]),
        lambda w: CONV.theirs(w.reshape(side, side, -1, w.shape[-1])),
    )


class Family(NamedTuple):
    """The names of a kind of networks in another framework.

    Attributes:
        rename: the path of a leaf below `encoder` -> its name there and how the array is turned; `{}` in the name counts stacked blocks.
        heads: `head` and `distillation_head` -> the linear layer's name there.
        fixed: what their file holds and our network computes.
    """

    rename: Callable[[str], tuple[str, Reorder]]
    heads: Mapping[str, str]
    fixed: Arrays = {}


class Place(NamedTuple):
    """One array of theirs and where it lies in our tree.

    Attributes:
        theirs: "blocks.0.attn.qkv.weight".
        ours: "params/encoder/blocks/attn/qkv/kernel".
        row: of the leaf's first axis, the stacked blocks; -1 is the whole leaf.
        reorder: between the two.
        shape: there.
    """

    theirs: str
    ours: str
    row: int
    reorder: Reorder
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.theirs} {list(self.shape)} -> {self.ours}" + (f"[{self.row}]" if self.row >= 0 else "")


def places(like: Pytree, family: Family) -> list[Place]:
    """Every array that a file for this network has.

    Args:
        like: {"params": ..., "model_state": ...}, arrays or shapes. Only PARTS are looked at.
        family: the network's names elsewhere.
    """
    found = []
    for path, leaf in flatten_dict(like, sep="/").items():
        _, part, *below = path.split("/", 2)
        if part not in PARTS:
            continue
        theirs, reorder = family.rename(*below) if part == "encoder" else _linear(family.heads[part], *below)
        stacked = "{}" in theirs
        for row in range(leaf.shape[0]) if stacked else (-1,):
            shape = reorder.theirs(np.broadcast_to(np.float32(0), leaf.shape[stacked:])).shape
            found.append(Place(theirs.format(row), path, row, reorder, shape))
    return found


def _linear(name: str, below: str) -> tuple[str, Reorder]:
    leaf = below.split("/")[-1]
    return f"{name}.{LEAVES[leaf]}", LINEAR if leaf == "kernel" else SAME


def load(state: Arrays, like: Pytree, family: Family) -> Pytree:
    """Their arrays as float32 in our tree; what belongs to none of PARTS stays as it is in `like`.

    Args:
        state: the state dict.
        like: our tree, see `places`.
        family: the network's names elsewhere.

    Raises:
        ValueError: an array is missing, has no place or is of another shape; names it and the likely cause.
    """
    wanted = places(like, family)
    state = {name: array for name, array in state.items() if not name.endswith("num_batches_tracked")}
    _check_names(state, [place.theirs for place in wanted] + list(family.fixed))
    for place in wanted:
        if state[place.theirs].shape != place.shape:
            raise ValueError(_shape_error(place, state[place.theirs].shape, family))
    for name, values in family.fixed.items():
        if state[name].shape != values.shape or not np.allclose(state[name], values, rtol=0, atol=1e-6):
            raise ValueError(
                f"{name} in the file is not what config.model.positions='sincos' computes (MoCo v3's released networks have "
                "rows and columns the other way round): read it with --config.model.positions=learned"
            )
    rows: dict[str, list[np.ndarray]] = {}
    for place in wanted:
        rows.setdefault(place.ours, []).append(
            place.reorder.ours(np.asarray(state[place.theirs], np.float32))
        )
    stacked = {place.ours for place in wanted if place.row >= 0}
    ours = {path: np.stack(arrays) if path in stacked else arrays[0] for path, arrays in rows.items()}
    return unflatten_dict(flatten_dict(like, keep_empty_nodes=True, sep="/") | ours, sep="/")


def dump(tree: Pytree, family: Family) -> dict[str, np.ndarray]:
    """Our tree as their state dict, float32."""
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}
    state = {
        place.theirs: place.reorder.theirs(flat[place.ours] if place.row < 0 else flat[place.ours][place.row])
        for place in places(tree, family)
    }
    return {
        name: np.ascontiguousarray(array) for name, array in {**state, **family.fixed}.items()
    }  # safetensors #825


def _check_names(found: Arrays, wanted: Sequence[str]) -> None:
    missing, left = [name for name in wanted if name not in found], sorted(set(found) - set(wanted))
    cause = "config.model (name, distillation, ...) describes another network, or the names are those of another program"
    if missing:
        near = difflib.get_close_matches(missing[0], left, 1, 0.5)
        raise ValueError(
            f"the file has no {missing[0]!r} ({len(missing)} of {len(wanted)} names are missing"
            f"{f'; the nearest there is {near[0]!r}' if near else ''}): {cause}"
        )
    if left:
        raise ValueError(f"{left[0]!r} of the file has no place here ({len(left)} such names): {cause}")


def _shape_error(place: Place, shape: tuple[int, ...], family: Family) -> str:
    text = f"{place.theirs} is {list(shape)} in the file and {list(place.shape)} here"
    if place.theirs.rpartition(".")[0] in family.heads.values() and shape[1:] == place.shape[1:]:
        return (
            f"{text}: its head has {shape[0]} classes, this configuration {place.shape[0]}. Read it into a folder of its own with "
            f"--config.data.num_classes={shape[0]} and start from that with init_from, which takes the encoder alone"
        )
    return f"{text}: config.model or config.data.image_size describes another network"


def read(file: str) -> dict[str, np.ndarray]:
    """The state dict in a .safetensors file, or in a .pth or .pt if PyTorch is installed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: of another kind, or the package that reads it is not installed.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.suffix == ".safetensors":
        return _safetensors().load_file(path)
    if path.suffix not in (".pth", ".pt"):
        raise ValueError(f"{path} is neither .safetensors nor .pth")
    return dict(_pytorch(path))


def _pytorch(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path} is PyTorch's format, which PyTorch alone reads, and it is not installed. Where it is: python -c \"import torch, "
            f"safetensors.torch as s; d = torch.load('{path.name}', map_location='cpu'); d = d.get('model', d); "
            f"s.save_file({{k: v.contiguous() for k, v in d.items()}}, '{path.stem}.safetensors')\""
        ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than arrays, and reading it might run what is in it: save its state dict alone"
        ) from error
    for wrapper in ("model", "state_dict"):
        state = state.get(wrapper, state)
    for name, tensor in state.items():
        if torch.is_tensor(tensor):
            yield name, (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def write(state: Arrays, file: str) -> None:
    """Writes a state dict as .safetensors.

    Raises:
        ValueError: another ending, or safetensors is not installed.
    """
    if not file.endswith(".safetensors"):
        raise ValueError(f"{file} does not end in .safetensors, the one format that is written")
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
