"""The vocabulary of the house: Facts, Batch, Out, Method, TrainState, Protocol."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from flax import struct

Pytree = Any
Batch = Mapping[str, jax.Array]
"""A dict of globally sharded arrays.

    image  uint8 [B, H, W, C] (cropped on the device, or not at all), or [B, V, S, S, C], V views of one size
           cropped on the host; where their sizes differ there is one entry per view name instead, uint8
           [B, count, S, S, C]
    label  int32 [B]
    labels int8 [B, classes], where an image may have several: 1, 0, or -1 (not to be learned from)
    index  int32 [B], the stable id of the example in its split
    copy   int32 [B], how often the example came before in its epoch, where it comes several times

Annotated images (`data.annotations`) come once each, at their own size, padded with zeros on the right and at
the bottom:

    image       uint8 [B, H, W, 3]
    size        int32 [B, 2], height and width of the image within H and W
    original    int32 [B, 2], its height and width before it was resized
    boxes       float32 [B, G, 4], x1, y1, x2, y2 in pixels of `image`
    classes     int32 [B, G], -1 where there are fewer than G objects
    difficult   bool [B, G], objects that the metric leaves out (difficult ones of VOC, crowds of COCO)
    mask        uint8 [B, H, W], the class of every pixel; 255 is left out (and is what padding has)
"""


SHARES = 2048  # the cores of the largest TPU v3


class Facts(NamedTuple):
    """What only the data know, read from a training split once.

    Attributes:
        num_examples: of the training split; how long an epoch is.
        num_classes: 0 where nothing is labelled.
        num_ids: the stable ids of examples lie in 0..num_ids-1; a selection may have fewer examples.
        num_unlabelled: of the examples, how many have no label where others do.
    """

    num_examples: int
    num_classes: int
    num_ids: int
    num_unlabelled: int = 0

    @property
    def rows(self) -> int:
        """Rows of a large table by id: up to SHARES devices get equally many, the last are of no image."""
        return -(-self.num_ids // SHARES) * SHARES


class Out(NamedTuple):
    """What `Method.loss` returns beside the scalar loss.

    Attributes:
        model_state: running statistics after the forward pass, the same tree as went in.
        carry: what `Method.update` needs from the forward pass: keys to enqueue, features for a memory bank.
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


class InitFn(typing.Protocol):
    """`Method.init`."""

    def __call__(self, key: jax.Array, batch: Batch, /) -> tuple[Pytree, Pytree, Pytree]:
        """Fresh (params, model_state, extra). Works under `jax.eval_shape`; `batch` may be empty."""


class LossFn(typing.Protocol):
    """`Method.loss`."""

    def __call__(
        self,
        params: Pytree,
        model_state: Pytree,
        extra: Pytree,
        batch: Batch,
        key: jax.Array,
        step: jax.Array,
        /,
    ) -> tuple[jax.Array, Out]:
        """(Scalar float32, Out). The gradient is taken with respect to `params`, and to nothing else."""


class UpdateFn(typing.Protocol):
    """`Method.update`."""

    def __call__(self, extra: Pytree, params: Pytree, carry: Pytree, step: jax.Array, /) -> Pytree:
        """`extra` after the optimizer step, inside the same jit; `params` are those after it too."""


class RefreshFn(typing.Protocol):
    """`Method.refresh` and `Method.finish`."""

    def __call__(self, state: TrainState, run: Any, /) -> TrainState:
        """The state after a look at the training data, on the host. `run` is a `run.refresh.Run`."""


class EvaluatedFn(typing.Protocol):
    """`Method.evaluated`."""

    def __call__(self, params: Pytree, model_state: Pytree, extra: Pytree, /) -> tuple[Pytree, Pytree]:
        """(Parameters, running statistics) of the backbone that evaluation reads."""


class EncodeFn(typing.Protocol):
    """`Method.encode`."""

    def __call__(self, params: Pytree, model_state: Pytree, extra: Pytree, image: jax.Array, /) -> jax.Array:
        """Features float32 [B, D] of `image`, uint8 [B, H, W, C], already resized."""


class ClassifyFn(typing.Protocol):
    """`Method.classify`."""

    def __call__(self, params: Pytree, extra: Pytree, features: jax.Array, /) -> dict[str, jax.Array]:
        """Logits [B, classes] per head, by name; the first is the one that counts."""


class ReconstructFn(typing.Protocol):
    """`Method.reconstruct`."""

    def __call__(
        self, params: Pytree, model_state: Pytree, extra: Pytree, image: jax.Array, /
    ) -> tuple[jax.Array, jax.Array]:
        """Codes int [B, h, w] of `image`, uint8 [B, H, W, C], and images made of them, float32 in [0, 1]."""


class PredictFn(typing.Protocol):
    """`Method.predict`."""

    def __call__(
        self, params: Pytree, model_state: Pytree, extra: Pytree, batch: Batch, /
    ) -> dict[str, jax.Array]:
        """What the network finds in the images of a batch, one row per image.

        A detector: `boxes` float32 [B, K, 4] (x1, y1, x2, y2 in pixels of `image`), `scores` float32 [B, K]
        and `classes` int32 [B, K], -1 where there are fewer than K. A segmentation network: `mask` uint8
        [B, H, W], the class of every pixel of `image`.
        """


class MasksFn(typing.Protocol):
    """`Method.masks`."""

    def __call__(self, key: jax.Array, index: jax.Array, /) -> jax.Array:
        """bool [B, h, w], the patches masked in the step with this key; `index` int32 [B] are images' ids."""


class LabelsFn(typing.Protocol):
    """`Method.assignment` and `Method.balance`."""

    def __call__(self, extra: Pytree, /) -> jax.Array:
        """int32 [ids], or [ids, clusterings]; -1 for none."""


class LoadFn(typing.Protocol):
    """What `Method.adopt` reads other runs with: `run.checkpoint.load_parts` for this config's stages."""

    def __call__(self, run: str, like: Mapping[str, Pytree], /) -> dict[str, Pytree]:
        """Branches of one checkpoint by their paths, e.g. "params/encoder".

        They have the shapes, dtypes and shardings of `like`. `run` is the name of an earlier stage, or the
        folder of a finished run. The parts "evaluated/params" and "evaluated/model_state" are the backbone
        that the run's own `Method.evaluated` names, and "evaluated/head" is the classifier beside it.
        """


class AdoptFn(typing.Protocol):
    """`Method.adopt`."""

    def __call__(self, state: TrainState, load: LoadFn, /) -> TrainState:
        """The fresh state with the weights of other runs in it."""


class EmbedFn(typing.Protocol):
    """`TwoPass.embed`."""

    def __call__(
        self,
        params: Pytree,
        model_state: Pytree,
        extra: Pytree,
        batch: Batch,
        key: jax.Array,
        step: jax.Array,
        /,
    ) -> tuple[Pytree, Pytree]:
        """(Embeddings, model_state); embeddings are a dict of arrays with one row per example."""


class ObjectiveFn(typing.Protocol):
    """`TwoPass.objective`."""

    def __call__(
        self, params: Pytree, embeddings: Pytree, batch: Batch, step: jax.Array, /
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(Scalar float32, metrics)."""


class TwoPass(NamedTuple):
    """A loss over a whole batch, cut in two, so that a batch may be worked through in pieces.

    The cut is where every example has become a few numbers: `loss` is `objective` of what `embed` gives.

    Attributes:
        embed: from a batch to embeddings, one example at a time but for the batch statistics.
        objective: from the embeddings of the whole batch to the loss.
    """

    embed: EmbedFn
    objective: ObjectiveFn


# (state, batch, the run's key) -> (state, metrics)
Step = Callable[["TrainState", Batch, jax.Array], tuple["TrainState", dict[str, jax.Array]]]


class Method(NamedTuple):
    """A paper as pure functions. `METHODS[config.method](config, facts)` builds one.

    Attributes:
        init: makes a fresh network and state.
        loss: the paper's objective on one batch.
        update: what follows the network inside the step: a momentum encoder, a queue.
        refresh: called on the host before the first epoch and between epochs. None for most.
        finish: called on the host once, after the last step and before its checkpoint: statistics that are
            computed anew for the final weights. None for most.
        evaluated: the backbone that evaluation reads: the moving average where the paper says so.
            Maps of layers, tokens and attention follow from it, see `program.py`.
        encode: features, only where they are not what the backbone gives.
        classify: the run's own heads, on what `encode` gives. None for a method that learns no classes.
        predict: what a network for annotated images finds: boxes, or a class per pixel. None for all others.
        reconstruct: the codes of images, and images made of them. None for a method without a decoder.
        masks: the patches that are hidden from the network in training. None if it sees all.
        assignment: the labels that the network gave the training images. None if it gives none.
        balance: what training draws evenly from: each epoch takes as many images of every value and leaves
            out -1. Read after every refresh. None: every image once per epoch.
        ratio: images without a label for each one with a label in every batch, see `sampler.mixed`; 0: images
            are drawn alike. With a ratio, `balance` says how often an image without a label is taken.
        epochs_of: what an epoch is one pass over: all "images", or with a ratio those "labelled" or
            "unlabelled".
        adopt: called on the host before the first step, after `config.init_from`; puts the weights of frozen
            networks into a fresh state.
        frozen: the backbone is never trained: it lies in `extra`, where `adopt` puts that of
            `config.init_from`, and `config.init_branches` is not read.
        rows: fields of `extra` whose rows are examples or keys: they are split by rows over the devices.
        probes: branches of `params` that weight decay and layer-wise adaptation leave alone.
        restarted: branches of `params` that `refresh` begins anew: the optimizer keeps no momentum for them,
            where it can tell the difference.
        still: params -> a tree of bools: the leaves that the optimizer leaves as they are, decay included.
            None: it moves all of them.
        num_views: how many views `config.views` must draw; 0: any number.
        needs_labels: every training image must have a label; a source where one has none is refused.
        several_labels: it also learns from images with several labels each, `labels` of a batch.
        separable: the loss is a mean over examples (given the batch statistics) and carries nothing but
            running statistics, so micro-batches may be averaged.
        two_pass: for a loss that is not separable. Where a method is neither, `config.accumulate` is refused.
    """

    init: InitFn
    loss: LossFn
    update: UpdateFn = keep_extra
    refresh: RefreshFn | None = None
    finish: RefreshFn | None = None
    evaluated: EvaluatedFn = own_backbone
    encode: EncodeFn | None = None
    classify: ClassifyFn | None = None
    predict: PredictFn | None = None
    reconstruct: ReconstructFn | None = None
    masks: MasksFn | None = None
    assignment: LabelsFn | None = None
    balance: LabelsFn | None = None
    ratio: int = 0
    epochs_of: str = "images"
    adopt: AdoptFn | None = None
    frozen: bool = False
    rows: tuple[str, ...] = ()
    probes: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    still: Callable[[Pytree], Pytree] | None = None
    num_views: int = 0
    needs_labels: bool = False
    several_labels: bool = False
    separable: bool = False
    two_pass: TwoPass | None = None


class TrainState(struct.PyTreeNode):
    """All that a run is, as arrays: no key (`fold_in(key(seed), step)`), no optimizer, no apply function.

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
"""What a protocol yields: `protocol` (its name in the results), `settings`, a value per metric, `n` images,
and what it adds; `shown`, arrays by name, is for pictures and is not recorded."""


class JudgeFn(typing.Protocol):
    """`Protocol.judge`."""

    def __call__(self, bench: Any, /) -> Iterator[Measurement]:
        """One dict per measurement. `bench` is a `protocols.bench.Bench`."""


class RefuseFn(typing.Protocol):
    """`Protocol.refuse`."""

    def __call__(self, bench: Any, /) -> str:
        """Why this run or these data cannot be judged so, and what can be done; "" where they can."""


def never(bench: Any) -> str:
    """The `refuse` of a protocol that can judge anything."""
    del bench
    return ""


class Protocol(NamedTuple):
    """A way to judge a network. `PROTOCOLS[name]` is one.

    Attributes:
        reads: "features", or "images" of its own (both judge pixels and a random network as well), "maps" (a
            random network as well), "predictions" (the run's own heads), "annotations" (what its network
            finds in images with boxes or masks) or "state" (what the run knows beside its network).
        metrics: the keys of a measurement that are numbers to record; percent unless the protocol says
            otherwise.
        judge: makes the measurements.
        refuse: says why it cannot, before anything is computed.
    """

    reads: str
    metrics: tuple[str, ...]
    judge: JudgeFn
    refuse: RefuseFn = never
