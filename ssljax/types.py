"""The vocabulary: Batch, Out, Method, TrainState. Everything else in the house is written with these words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import struct

Pytree = Any
Batch = Mapping[str, jax.Array]
"""A dict of globally sharded arrays.

    image  uint8 [B, V, H, W, C] (V views cropped on the host) or [B, H, W, C] (cropped on the device, or not at all)
    label  int32 [B]
    index  int32 [B], the stable id of the example in its split
"""


class Out(NamedTuple):
    """What `Method.loss` returns beside the scalar loss.

    Attributes:
        model_state: running statistics after the forward pass, the same tree as went in.
        carry: whatever `Method.update` needs from the forward pass (keys to enqueue, features of a memory bank).
        metrics: dict of scalars (float32); they stay on the device until they are logged.
    """

    model_state: Pytree
    carry: Pytree
    metrics: dict[str, jax.Array]


def keep_extra(extra: Pytree, params: Pytree, carry: Pytree, step: jax.Array) -> Pytree:
    """The `update` of a method whose state does not follow the network."""
    del params, carry, step
    return extra


class TwoPass(NamedTuple):
    """A loss over a whole batch, cut where every example has become a few numbers, so that a batch may be worked through in pieces.

    Attributes:
        embed: (params, model_state, extra, batch, key, step) -> (embeddings, model_state). A dict of arrays, one row an example.
        objective: (params, embeddings, batch, step) -> (scalar float32, metrics). `loss` is the one after the other.
    """

    embed: Callable[..., tuple[Pytree, Pytree]]
    objective: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


class Method(NamedTuple):
    """A paper as pure functions. `METHODS[config.method](config)` builds one.

    Attributes:
        init: (key, batch) -> (params, model_state, extra). Works under `jax.eval_shape`; reads only shapes of the batch.
        loss: (params, model_state, extra, batch, key, step) -> (scalar float32, Out). `params` is all that is differentiated.
        encode: (params, model_state, extra, image) -> float32 [B, D]. `image` is uint8 [B, H, W, C], already resized;
            normalisation and inference-mode statistics are the method's business.
        update: (extra, params, carry, step) -> extra, called after the optimizer step inside the same jit.
        refresh: (state, run) -> state on the host before the first epoch and between epochs, or None. `run` is a `refresh.Run`.
        balance: extra -> int32 [ids], what training draws evenly from: each epoch takes as many images of every value, -1 is left out.
            Read after every refresh. None: every image once an epoch.
        classify: (params, extra, features) -> {name: logits [B, classes]}, the run's own heads on what `encode` gave; the first is the one
            that counts. None for a method that learns no classes.
        adopt: (state, load) -> state, on the host before the first step: puts the weights of earlier runs into a fresh state.
            `load(run, like, part, resize={})` reads one branch, see `checkpoint.load_part`; `run` is the name of a stage or a folder.
            None: the encoder comes from `config.init_from`, if that is set.
        separable: the loss is a mean over examples (given the batch statistics) and carries nothing, so micro-batches may be averaged.
        two_pass: for a loss that is not; None where neither holds, and `config.accumulate` is refused.
        needs_labels: every training image must have a label; THE loop refuses a source where one has none.
    """

    init: Callable[..., tuple[Pytree, Pytree, Pytree]]
    loss: Callable[..., tuple[jax.Array, Out]]
    encode: Callable[..., jax.Array]
    update: Callable[..., Pytree] = keep_extra
    refresh: Callable[..., Any] | None = None
    classify: Callable[..., dict[str, jax.Array]] | None = None
    adopt: Callable[..., TrainState] | None = None
    balance: Callable[..., jax.Array] | None = None
    separable: bool = False
    two_pass: TwoPass | None = None
    needs_labels: bool = False


@struct.dataclass
class TrainState:
    """All that a run is, as arrays. No key (`fold_in(key(seed), step)`), no optimizer object, no apply function.

    Attributes:
        step: int32 scalar, the number of optimizer updates done.
        params: what is differentiated; `params["encoder"]` is the backbone without a head.
        model_state: running statistics.
        opt_state: the state of the optax transformation.
        extra: the paper's own typed NamedTuple, or `()`.
    """

    step: jax.Array
    params: Pytree
    model_state: Pytree
    opt_state: Pytree
    extra: Pytree
