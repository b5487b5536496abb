"""Networks that are never trained: a teacher, a tokenizer.

They live in a method's `extra`, so no gradient can reach them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Pytree = Any


class Frozen(NamedTuple):
    """A frozen network.

    Attributes:
        params: its branches by name, `{"encoder": ..., "head": ...}` for one with a classifier.
        model_state: the running statistics of the branches that have any.
    """

    params: Pytree
    model_state: Pytree


def adopt(frozen: Frozen, run: str, load: Callable[..., dict[str, Pytree]], *, setting: str) -> Frozen:
    """Load the weights of a finished run into a frozen network.

    Args:
        frozen: the shapes, dtypes and shardings, as `Method.init` made them.
        run: the name of an earlier stage, or the folder of a finished run that has these branches.
        load: (run, like) -> branches of a checkpoint by their paths, as `Method.adopt` receives it.
        setting: the name of the setting that holds `run`, for the error message.

    Raises:
        ValueError: `run` is empty, or the run does not have these branches.
    """
    if not run:
        raise ValueError(
            f"config.{setting} is empty, but this method needs a frozen network with "
            f"{', '.join(frozen.params)}. Name the folder of a finished run that has these, or an earlier "
            "stage."
        )
    like = {f"params/{name}": branch for name, branch in frozen.params.items()}
    like |= {f"model_state/{name}": branch for name, branch in frozen.model_state.items()}
    found = load(run, like)
    return Frozen(
        params={name: found[f"params/{name}"] for name in frozen.params},
        model_state={name: found[f"model_state/{name}"] for name in frozen.model_state},
    )


def adopt_evaluated(
    frozen: Frozen, run: str, load: Callable[..., dict[str, Pytree]], *, setting: str
) -> Frozen:
    """Load the classifier that evaluation of a finished run reads: the moving average, where it keeps one.

    Args:
        frozen: an encoder and a head, as for `adopt`.
        run: the name of an earlier stage, or the folder of a finished run of a method with a classifier.
        load: as for `adopt`.
        setting: the name of the setting that holds `run`, for the error message.

    Raises:
        ValueError: `run` is empty, or the run does not have these branches.
    """
    if not run:
        raise ValueError(
            f"config.{setting} is empty, but this method needs a trained classifier: name the folder of a "
            "finished run, or an earlier stage"
        )
    like = {
        "evaluated/params": frozen.params["encoder"],
        "evaluated/head": frozen.params["head"],
        "evaluated/model_state": frozen.model_state["encoder"],
    }
    found = load(run, like)
    return Frozen(
        params={"encoder": found["evaluated/params"], "head": found["evaluated/head"]},
        model_state={"encoder": found["evaluated/model_state"]},
    )
