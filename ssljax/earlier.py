"""What a run takes from earlier runs: branches of its network, a frozen backbone, a teacher."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from ssljax import models
from ssljax.config import differences
from ssljax.config.stored import restored
from ssljax.program import Program, fresh_shapes, method_of
from ssljax.run import files
from ssljax.run.checkpoint import load_parts
from ssljax.run.folder import facts_of
from ssljax.run.reading import Mismatch
from ssljax.types import Facts, Pytree, TrainState

EVALUATED = "evaluated"  # as the first word of a part: what `Method.evaluated` names, see `types.LoadFn`
# Settings of a network that say nothing about the shapes of its weights.
SHAPELESS = (
    *("model.dtype", "model.remat", "model.bn_momentum", "model.bn_epsilon", "model.dropout"),
    *("model.drop_path", "model.kernel_init", "model.last_stride", "model.last_dilation"),
)


def start_from(program: Program, earlier: Mapping[str, str]) -> Callable[[TrainState], TrainState]:
    """Return a function that puts the weights of earlier runs into a fresh state.

    These are the branches of `config.init_from`, and then whatever the method adopts.

    Args:
        program: the program of the new run.
        earlier: name -> folder of the stages before this one; any other name is taken to be a folder.
    """
    config = program.config
    method = program.method

    def load(
        run: str,
        like: Mapping[str, Pytree],
        resize: Mapping[str, Callable] = types.MappingProxyType({}),
        optional: Collection[str] = (),
    ) -> dict[str, Pytree]:
        folder = earlier.get(run, run)
        places = {part: place_of(folder, part) for part in like}
        wanted = {places[part]: branch for part, branch in like.items()}
        found = load_parts(folder, wanted, resize, optional)
        return {part: found[places[part]] for part in like}

    def start(state: TrainState) -> TrainState:
        if config.init_from and not method.frozen:
            folder = earlier.get(config.init_from, config.init_from)
            try:
                state = with_branches(state, functools.partial(load, config.init_from), config)
            except (FileNotFoundError, Mismatch) as error:
                raise type(error)(f"{error}{differing(folder, config)}") from error
        if method.adopt is not None:
            state = method.adopt(state, load)
        return state

    return start


def with_branches(
    state: TrainState, load: Callable[..., dict[str, Pytree]], config: ConfigDict
) -> TrainState:
    """Take `config.init_branches` from another run, running statistics included.

    The position embeddings of a ViT are resized to the new image size. What `models.begun_anew` names stays
    fresh where the other run does not have it.

    Args:
        state: a fresh state.
        load: (like, resize, optional) -> branches by their paths, see `checkpoint.load_parts`.
        config: the config of the new run.

    Raises:
        ValueError: the new network has no such branch, or the other run has none or one of another shape.
    """
    net = models.backbone(config.model)
    resize = models.resizable(net, config.data.image_size)
    optional = models.begun_anew(net)
    like = {}
    for name in config.init_branches:
        if name not in state.params:
            raise ValueError(
                f"config.init_branches names {name!r}, and this network has {', '.join(state.params)}: "
                "name some of these"
            )
        like[f"params/{name}"] = state.params[name]
        if name in state.model_state:
            like[f"model_state/{name}"] = state.model_state[name]

    params = dict(state.params)
    model_state = dict(state.model_state)
    for path, branch in load(like, resize, optional).items():
        root, name = path.split("/")
        if root == "params":
            params[name] = dict(state.params[name]) | branch
        else:
            model_state[name] = branch
    return state.replace(params=params, model_state=model_state)


def differing(folder: str, config: ConfigDict) -> str:
    """Why a run cannot give its weights, and what to type, as far as its config says; else "".

    Args:
        folder: of the run that `config.init_from` names.
        config: the config of the new run.
    """
    file = epath.Path(folder) / "config.json"
    if not file.exists():
        return ""
    stored = files.read_config(file)
    if "stages" in stored:
        refuse_stages(folder, stored)
    other = [
        (key, theirs, ours)
        for key, theirs, ours in differences(stored, config)
        if (key.startswith("model.") or key == "data.channels") and key not in SHAPELESS
    ]
    if not other:
        return ""
    there = " ".join(f"--config.{key}={theirs}" for key, theirs, _ in other)
    here = " ".join(f"--config.{key}={ours}" for key, _, ours in other)
    return f". Train with its settings, {there}, or that run with {here}"


def refuse_stages(folder: str, stored: Mapping[str, Any]) -> None:
    """Refuse a run of several stages, by the config.json of its folder, with a ValueError."""
    raise ValueError(
        f"config.init_from: {folder} holds the stages {', '.join(stored['stages'])}; name the folder of "
        f"one of them, e.g. {epath.Path(folder) / stored['stages'][0]}"
    )


def place_of(workdir: str, part: str) -> str:
    """Where a run's checkpoint has a part: at its own path, unless it begins with EVALUATED."""
    branch, _, below = part.partition("/")
    return evaluated_part(workdir, below) if branch == EVALUATED else part


def evaluated_part(workdir: str, part: str) -> str:
    """The place of a run's evaluated backbone in its checkpoint: "params/encoder" for most methods.

    Args:
        workdir: the folder of the run, of one stage.
        part: "params", or "model_state", the running statistics, or "head", the classifier beside the former.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: the run has stages, or its config.json is damaged.
    """
    if part == "head":
        return evaluated_part(workdir, "params").removesuffix("encoder") + "head"
    file = epath.Path(workdir) / "config.json"
    if not file.exists():
        raise FileNotFoundError(
            f"there is no run in {workdir} (no config.json): train it first, or correct config.init_from, "
            "which names an earlier stage or the folder of a run"
        )
    stored = files.read_config(file)
    if "stages" in stored:
        refuse_stages(workdir, stored)
    config = restored(stored)
    # Heads and labels may be of any size here; only the places of the leaves count.
    facts = facts_of(workdir) or Facts(config.batch_size, 1, config.batch_size)
    method = method_of(config, facts)
    places = jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), fresh_shapes(method)
    )
    weights, statistics = method.evaluated(places.params, places.model_state, places.extra)
    branch = weights if part == "params" else statistics
    for path, place in jax.tree_util.tree_leaves_with_path(branch):
        below = jax.tree_util.keystr(path, simple=True, separator="/")
        return place.removesuffix(f"/{below}")
    return f"{part}/encoder"  # without leaves, such as the statistics of a ViT
