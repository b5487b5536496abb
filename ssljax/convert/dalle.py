"""The released weights of DALL-E's dVAE (openai/DALL-E at 5be4b23): its encoder and its decoder.

The released files are pickled modules; `torch.load(file).state_dict()` has the names read here, such as
`blocks.group_1.block_2.res_path.conv_3.w`. Convolutions are [out, in, h, w] there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ssljax.convert.weights import CONV

Pytree = Any
NAME = re.compile(
    r"blocks\.(?:(input|output)(?:\.conv)?"
    r"|group_(\d+)\.block_(\d+)\.(?:(id)|res)_path(?:\.conv_(\d+))?)\.([wb])"
)


def encoder(state: Mapping[str, np.ndarray]) -> Pytree:
    """The parameters of `models.dvae.Encoder` from the state dict of DALL-E's encoder.

    Args:
        state: name -> array.

    Raises:
        ValueError: a name is not one of that network's.
    """
    return _converted(state)


def decoder(state: Mapping[str, np.ndarray]) -> Pytree:
    """The parameters of `models.dvae.Decoder` from the state dict of DALL-E's decoder; see `encoder`."""
    return _converted(state)


def _converted(state: Mapping[str, np.ndarray]) -> Pytree:
    params: dict[str, Any] = {}
    for name, array in state.items():
        *modules, leaf = _place(name)
        inside = params
        for module in modules:
            inside = inside.setdefault(module, {})
        array = np.asarray(array, np.float32)
        inside[leaf] = CONV.ours(array) if leaf == "kernel" else array
    return params


def _place(name: str) -> tuple[str, ...]:
    """The path of our leaf for one of their names."""
    match = NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"{name!r} is no name of DALL-E's encoder or decoder, such as blocks.input.w: pass the "
            "state_dict() of one of them"
        )
    end, group, block, identity, conv, leaf = match.groups()
    leaf = {"w": "kernel", "b": "bias"}[leaf]
    if end:
        return end, leaf
    return f"group{group}_{block}", "identity" if identity else f"conv{conv}", leaf
