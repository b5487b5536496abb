"""Small trained networks that come with ssljax: `ssljax.load("ssljax://simclr-digits")`.

One file NAME.npz per network, in this folder. It holds what evaluation reads, and no projector, no queue and
no optimizer state; loaded, those are zero. Numbers keep six significant bits, so a file takes about a byte
and a half for each:

    high, low   uint8 [n]: the two bytes of each number as a bfloat16, leaf by leaf
    about       JSON in UTF-8: `config` and `facts` of the run, `step`, `leaves` (path and shape of each), and
                where the network comes from: `command`, `commit`, `data`, and held-out kNN before and after
                rounding

`experiments/weights.py` makes them.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from ssljax import sharding
from ssljax.config.stored import restored
from ssljax.program import Evaluated, encoder, evaluated, fresh_shapes, method_of, placed
from ssljax.types import Facts, Pytree, TrainState

SCHEME = "ssljax://"
FOLDER = Path(__file__).parent
BITS = 6  # significant bits of a number; bfloat16 has room for eight


class Shipped(NamedTuple):
    """A network that comes with ssljax.

    Attributes:
        network: as `program.open_run` gives it.
        about: where it comes from, see above.
    """

    network: Evaluated
    about: dict[str, Any]


def names() -> list[str]:
    """The names of the networks, as in `ssljax://NAME`."""
    return sorted(file.stem for file in FOLDER.glob("*.npz"))


def load(name: str) -> Shipped:
    """Read a network.

    Raises:
        FileNotFoundError: there is none of that name; lists those there are.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1, 0.4)
        hint = f"did you mean {SCHEME}{near[0]}? " if near else ""
        raise FileNotFoundError(
            f"no network {name!r} comes with ssljax: {hint}There are "
            f"{', '.join(SCHEME + each for each in names())}"
        )
    with np.load(FOLDER / f"{name}.npz") as file:
        about = json.loads(file["about"].tobytes())
        numbers = unpacked(file["high"], file["low"])
    config = restored(about["config"])
    method = method_of(config, Facts(**about["facts"]))
    mesh = sharding.make_mesh(fsdp=1)
    shapes, _ = placed(mesh, fresh_shapes(method), method)

    stored: dict[str, np.ndarray] = {}
    first = 0
    for path, shape in about["leaves"]:
        last = first + int(np.prod(shape))
        stored[path] = numbers[first:last].reshape(shape)
        first = last

    def value(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        array = stored.get(jax.tree_util.keystr(path))
        if array is None:
            array = np.zeros(leaf.shape, leaf.dtype)
        return jax.device_put(array.astype(leaf.dtype), leaf.sharding)

    read = (shapes.params, shapes.model_state, shapes.extra)  # by `encode` and `classify`
    params, model_state, extra = jax.tree_util.tree_map_with_path(value, read)
    state = TrainState(
        step=jnp.int32(about["step"]), params=params, model_state=model_state, opt_state=(), extra=extra
    )
    return Shipped(evaluated(config, Facts(**about["facts"]), state, mesh), about)


def pack(network: Evaluated, facts: Facts, about: Mapping[str, Any], file: Path) -> None:
    """Write a network's file.

    Args:
        network: of a run.
        facts: of its training data.
        about: where it comes from.
        file: FOLDER/NAME.npz.
    """
    config = network.config
    tree = (network.params, network.model_state, network.extra)
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    kept = [flat[i] for i in _needed(network)]
    high, low = packed(np.concatenate([np.asarray(leaf, np.float32).ravel() for _, leaf in kept]))
    said = {
        "config": json.loads(config.to_json()),
        "facts": facts._asdict(),
        "step": network.step,
        "leaves": [(jax.tree_util.keystr(path), leaf.shape) for path, leaf in kept],
        **about,
    }
    text = np.frombuffer(json.dumps(said).encode(), np.uint8)
    np.savez_compressed(file, high=high, low=low, about=text)


def packed(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two bytes of each number, uint8 [n] each, after rounding to BITS significant bits.

    Args:
        numbers: float32 [n].
    """
    mantissa, exponent = np.frexp(numbers)  # 0.5 <= |mantissa| < 1
    rounded = np.ldexp(np.rint(mantissa * 2**BITS) / 2**BITS, exponent).astype(np.float32)
    words = (rounded.view(np.uint32) >> 16).astype(np.uint16)
    return (words >> 8).astype(np.uint8), (words & 255).astype(np.uint8)


def unpacked(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """The inverse of `packed`, float32 [n]."""
    return ((high.astype(np.uint32) << 24) | (low.astype(np.uint32) << 16)).view(np.float32)


def _needed(network: Evaluated) -> tuple[int, ...]:
    """Which leaves of a network's params, model_state and extra `encode` or `classify` depends on."""
    method, data = network.method, network.config.data
    encode = encoder(method, network.config)

    def look(tree: tuple[Pytree, Pytree, Pytree], images: jax.Array) -> Any:
        features = encode(*tree, images)
        params, _, extra = tree
        return features, None if method.classify is None else method.classify(params, extra, features)

    tree = (network.params, network.model_state, network.extra)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    images = jax.ShapeDtypeStruct((2, data.image_size, data.image_size, data.channels), jnp.uint8)
    used = jax.export.export(jax.jit(look))(shapes, images).module_kept_var_idx
    leaves = len(jax.tree.leaves(tree))
    return tuple(i for i in used if i < leaves)
