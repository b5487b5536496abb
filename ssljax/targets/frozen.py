"""Networks that stay as they are: a teacher, a tokenizer. They live in a method's `extra`, so no gradient can reach them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Pytree = Any


class Frozen(NamedTuple):
    """A frozen network.

    Attributes:
        params: its branches by name, `{"encoder": ..., "head": ...}` for one with a classifier.
        model_state: the running statistics of those that have any.
    """

    params: Pytree
    model_state: Pytree


def adopt(frozen: Frozen, run: str, load: Callable[..., Pytree], *, setting: str) -> Frozen:
    """The same network with the weights of a finished run.

    Args:
        frozen: its shapes, dtypes and shardings, as `Method.init` made it.
        run: the name of an earlier stage, or the folder of a finished run that has these branches.
        load: (run, like, part) -> one branch of a checkpoint, as `Method.adopt` is given it.
        setting: where `run` stands in the config, for the message.

    Raises:
        ValueError: `run` is empty, or the run has no such branches.
    """
    if not run:
        raise ValueError(
            f"config.{setting} is empty, but this method looks at a frozen network with {', '.join(frozen.params)}: name the "
            "folder of a finished run that has these, or an earlier stage"
        )
    params = {name: load(run, branch, f"params/{name}") for name, branch in frozen.params.items()}
    model_state = {
        name: load(run, branch, f"model_state/{name}") for name, branch in frozen.model_state.items()
    }
    return Frozen(params, model_state)
