"""The vocabulary: Facts, Batch, Out, Method, TrainState, Protocol. Everything else in the house is written with these words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from flax import struct

Pytree = Any
Batch = Mapping[str, jax.Array]
"""A dict of globally sharded arrays.

    image  uint8 [B, H, W, C] (cropped on the device, or not at all), or [B, V, S, S, C], V views of one size cropped on the host;
           where their sizes differ there is one entry per view name instead, uint8 [B, count, S, S, C]
    label  int32 [B]
    index  int32 [B], the stable id of the example in its split
    copy   int32 [B], how often the example came before in its epoch, where it comes several times
"""


class Facts(NamedTuple):
    """What only the data know: read from a training split once, and given to `METHODS[name](config, facts)`.

    Attributes:
        num_examples: of the training split; how long an epoch is.
        num_classes: 0 where nothing is labelled.
        num_ids: the stable ids of examples lie in 0..num_ids-1; a selection may have fewer examples than that.
    """

    num_examples: int
    num_classes: int
    num_ids: int


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


def own_backbone(params: Pytree, model_state: Pytree, extra: Pytree) -> tuple[Pytree, Pytree]:
    """The `evaluated` of a method whose trained encoder is what evaluation looks at."""
    del extra
    return params["encoder"], model_state["encoder"]


class TwoPass(NamedTuple):
    """A loss over a whole batch, cut where every example has become a few numbers, so that a batch may be worked through in pieces.

    Attributes:
        embed: (params, model_state, extra, batch, key, step) -> (embeddings, model_state). A dict of arrays, one row an example.
        objective: (params, embeddings, batch, step) -> (scalar float32, metrics). `loss` is the one after the other.
    """

    embed: Callable[..., tuple[Pytree, Pytree]]
    objective: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


class Method(NamedTuple):
    """A paper as pure functions. `METHODS[config.method](config, facts)` builds one.

    Attributes:
        init: (key, batch) -> (params, model_state, extra). Works under `jax.eval_shape`; reads only shapes of the batch.
        loss: (params, model_state, extra, batch, key, step) -> (scalar float32, Out). `params` is all that is differentiated.
        update: (extra, params, carry, step) -> extra, called after the optimizer step inside the same jit.
        refresh: (state, run) -> state on the host before the first epoch and between epochs, or None. `run` is a `refresh.Run`.
        evaluated: (params, model_state, extra) -> (parameters, running statistics) of the backbone that evaluation looks at: the
            average's where the paper says so. `encode`, maps of layers, tokens and attention follow from it (`program.py`).
        encode: (params, model_state, extra, image) -> float32 [B, D], only where the features are not what the backbone gives.
            `image` is uint8 [B, H, W, C], already resized.
        classify: (params, extra, features) -> {name: logits [B, classes]}, the run's own heads on what `encode` gave; the first is
            the one that counts. None for a method that learns no classes.
        assignment: extra -> int32 [ids] or [ids, clusterings], the labels that the network gave itself, -1 for none. None: it gives none.
        balance: extra -> int32 [ids], what training draws evenly from: each epoch takes as many images of every value, -1 is left
            out. Read after every refresh. None: every image once an epoch.
        adopt: (state, load) -> state, on the host before the first step, after `config.init_from`: puts the weights of frozen
            networks into a fresh state. `load(run, like, part)` reads one branch, see `checkpoint.load_part`; `run` is the name of a
            stage or a folder.
        rows: fields of `extra` whose rows are examples or keys: they are split by rows over the devices.
        probes: branches of `params` that weight decay and layer-wise adaptation leave alone.
        restarted: branches of `params` that `refresh` begins anew: no momentum is kept for them where the optimizer makes a difference.
        num_views: how many views `config.views` must draw; 0: any number.
        needs_labels: every training image must have a label; a source where one has none is refused.
        separable: the loss is a mean over examples (given the batch statistics) and carries nothing, so micro-batches may be averaged.
        two_pass: for a loss that is not; None where neither holds, and `config.accumulate` is refused.
    """

    init: Callable[..., tuple[Pytree, Pytree, Pytree]]
    loss: Callable[..., tuple[jax.Array, Out]]
    update: Callable[..., Pytree] = keep_extra
    refresh: Callable[..., Any] | None = None
    evaluated: Callable[..., tuple[Pytree, Pytree]] = own_backbone
    encode: Callable[..., jax.Array] | None = None
    classify: Callable[..., dict[str, jax.Array]] | None = None
    assignment: Callable[..., jax.Array] | None = None
    balance: Callable[..., jax.Array] | None = None
    adopt: Callable[..., TrainState] | None = None
    rows: tuple[str, ...] = ()
    probes: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    num_views: int = 0
    needs_labels: bool = False
    separable: bool = False
    two_pass: TwoPass | None = None


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


Measurement = dict[str, Any]
"""What a protocol yields: `protocol` (its name in the results), `settings`, a value per metric, `n` images, and what it adds."""


def never(bench: Any) -> str:
    """The `refuse` of a protocol that can judge anything."""
    del bench
    return ""


class Protocol(NamedTuple):
    """A way to judge. `PROTOCOLS[name]` is one.

    Attributes:
        reads: "features" (judges pixels and a random network as well), "maps" (a random network as well), "predictions" (the run's own
            heads) or "state" (what the run knows beside its network).
        metrics: the keys of a measurement that are numbers to record; percent unless the protocol says otherwise.
        judge: a `protocols.bench.Bench` -> one dict per measurement.
        refuse: the same -> why this run or these data cannot be judged so, and what can be done; "" where they can.
    """

    reads: str
    metrics: tuple[str, ...]
    judge: Callable[[Any], Iterator[Measurement]]
    refuse: Callable[[Any], str] = never
