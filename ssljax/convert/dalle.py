"""The released weights of DALL-E's dVAE (openai/DALL-E at 5be4b23): its encoder and its decoder.

The released files are two pickled modules, and `torch.load(file).state_dict()` has the names read here, such
as `blocks.group_1.block_2.res_path.conv_3.w`. Both files have the same names, so they are read together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from ssljax.convert.weights import CONV, SAME, Arrays, Family, Reorder

Pytree = Any
NAMES = {"input": "blocks.input", "output": "blocks.output.conv"}
LAYERS = {"identity": "id_path"} | {f"conv{i}": f"res_path.conv_{i}" for i in (1, 2, 3, 4)}
MOST = range(1, 10)  # groups, and blocks of a group; DALL-E has 4 and 2
FIRST = "blocks.input.w"  # 7x7 in the encoder, 1x1 in the decoder


def rename(path: str) -> tuple[str, Reorder]:
    """The name of a leaf of the encoder or the decoder, and the conversion of its layout.

    "group1_2/conv3/kernel" is "blocks.group_1.block_2.res_path.conv_3.w".
    """
    layer, leaf = path.rsplit("/", 1)
    if layer in NAMES:
        name = NAMES[layer]
    else:
        block, layer = layer.split("/")
        group, number = block.removeprefix("group").split("_")
        name = f"blocks.group_{group}.block_{number}.{LAYERS[layer]}"
    return (f"{name}.w", CONV) if leaf == "kernel" else (f"{name}.b", SAME)


def family(model: ConfigDict) -> Family:
    """The Family of a dVAE whose two files are read together, see `together`.

    Raises:
        ValueError: the network maps pixels in another way than DALL-E's.
    """
    if model.pixels != "dall-e":
        raise ValueError(
            f"config.model.pixels={model.pixels!r}, but DALL-E's networks were trained on pixels mapped to "
            "[0.1, 0.9], and their files do not record it. Their weights need --config.model.pixels=dall-e"
        )

    def part(name: str, path: str) -> tuple[str, Reorder]:
        theirs, reorder = rename(path)
        return f"{name}.{theirs}", reorder

    return Family(
        lambda path: part("encoder", path), {}, others={"decoder": lambda path: part("decoder", path)}
    )


def together(states: Sequence[Arrays], files: Sequence[str]) -> Arrays:
    """One state dict of the encoder's and the decoder's, in either order.

    The names begin with "encoder." and "decoder.". One file that already has such names is returned as it is.

    Args:
        states: what the files hold.
        files: their names, for the messages.

    Raises:
        ValueError: they are not one encoder and one decoder.
    """
    if len(states) == 1 and FIRST not in states[0]:
        return states[0]
    found: dict[str, Arrays] = {}
    for state, file in zip(states, files, strict=True):
        if FIRST not in state:
            raise ValueError(
                f"{file} has no {FIRST!r}, so it is neither DALL-E's encoder nor its decoder: save "
                "torch.load('encoder.pkl').state_dict() and the decoder's, each as .safetensors"
            )
        found["encoder" if state[FIRST].shape[-1] > 1 else "decoder"] = state
    for name in ("encoder", "decoder"):
        if name not in found:
            raise ValueError(
                f"{' and '.join(files)} hold no {name} of DALL-E's, and a tokenizer needs both: "
                "--from=ENCODER.safetensors,DECODER.safetensors"
            )
    return {f"{name}.{theirs}": array for name, state in found.items() for theirs, array in state.items()}


def encoder(state: Mapping[str, np.ndarray]) -> Pytree:
    """The parameters of `models.dvae.Encoder` from the state dict of DALL-E's encoder.

    Args:
        state: name -> array.

    Raises:
        ValueError: a name is not one of that network's.
    """
    layers = [*NAMES, *(f"group{g}_{b}/{layer}" for g in MOST for b in MOST for layer in LAYERS)]
    paths = {
        rename(f"{layer}/{leaf}")[0]: f"{layer}/{leaf}" for layer in layers for leaf in ("kernel", "bias")
    }
    params = {}
    for name, array in state.items():
        if name not in paths:
            raise ValueError(
                f"{name!r} is no name of DALL-E's encoder or decoder, such as {FIRST}: pass the "
                "state_dict() of one of them"
            )
        _, reorder = rename(paths[name])
        params[paths[name]] = reorder.ours(np.asarray(array, np.float32))
    return unflatten_dict(params, sep="/")


def decoder(state: Mapping[str, np.ndarray]) -> Pytree:
    """The parameters of `models.dvae.Decoder` from the state dict of DALL-E's decoder; see `encoder`."""
    return encoder(state)
