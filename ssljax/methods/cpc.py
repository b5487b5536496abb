"""CPC v2: predict the patches that lie below from those above, among the patches of all images.

Henaff et al.: Data-Efficient Image Recognition with Contrastive Predictive Coding, arXiv 1905.09272 (v3).

    z[b, r, c]   = mean over the places of f(patch (r, c) of image b),  each patch changed for itself
    c[b, r, .]   = g(z[b, rows <= r])                      a masked convolutional network over the grid
    p_i[b, r, c] = s W_i c[b, r, c],   t[b, r, c] = V z[b, r, c]

    L = sum over directions d and step indices i of the mean over b, r, c of
            - log  exp(p_i[b, r, c] . t[b, r + i + 1, c]) / sum_j exp(p_i[b, r, c] . t_j)

j runs over all patches of a group of images. Every direction turns the grid and has networks of its own. The
printed code predicts with i = 2 alone, three rows below, where an 80-pixel patch shares no pixel with its
source; the names of its parameters allow i = 2, 3, 4 (`cpc.step_indices`). `config.task` says what a run is:

    pretrain   the above
    linear     y = mean over the grid of W BN(z) + b, on the frozen encoder and patches changed as before
    classify   y = W pool(h(f(image))) + b, f on the whole image; h is a residual network of 11 blocks. First
               with f frozen (`classifier.frozen`), then of all, or from scratch without `init_from`

There is no released code: the appendix's pseudo-code is the source. Chosen here [X]:
- Layer normalisation is over height, width and channels of a patch, with a gain and an offset per channel.
- Blocks are post-activation (`model.preact`), He initialisation by fan-out, all gains start from 1.
- Candidates are those of 16 images (`cpc.negatives="local"`), as if a batch of 512 lay on 32 workers.
- The moving average starts from the initialisation, without correction; it keeps the encoder alone.
- The gradient is clipped to a global norm, before Adam. The rate is constant, without weight decay.
- Unknown numbers of the patches' changes: see `data/patches.py`, `data/distort.py` and configs/cpc.py.
- lightning-bolts has one direction and one prediction for all steps, counts large offsets several times and
  changes whole images; CPCV2-PyTorch draws negatives with replacement, averages over steps and takes
  log(p + 1e-11). Neither is this loss.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssljax import models
from ssljax.data import patches, views
from ssljax.losses.classification import accuracy, cross_entropy
from ssljax.losses.contrastive import cpc_info_nce, cpc_labels
from ssljax.losses.similarity import dot
from ssljax.targets import ema
from ssljax.targets.ema import Ema
from ssljax.targets.frozen import Frozen
from ssljax.types import Batch, Facts, LoadFn, Method, Out, Pytree, TrainState

DIRECTIONS = {1: ("down",), 2: ("down", "up"), 4: models.DIRECTIONS}


def cpc(config: ConfigDict, facts: Facts) -> Method:
    """Build the stage of CPC that `config.task` names.

    Raises:
        ValueError: the task is unknown, or a setting of its does not fit.
    """
    if config.task == "pretrain":
        return pretrain(config)
    if config.task == "linear":
        return linear(config, facts)
    if config.task == "classify":
        return classifier(config, facts)
    raise ValueError(f"config.task={config.task!r} is unknown. Use 'pretrain', 'linear' or 'classify'.")


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
    """The shape of the network's input."""
    return (config.data.image_size, config.data.image_size, config.data.channels)


def changed_patches(batch: Batch, key: jax.Array, config: ConfigDict) -> jax.Array:
    """The patches of one crop of each image, each changed for itself: [B, G, G, P, P, C].

    With `model.whole` the crop is the only one.
    """
    x = views.stacked(batch, key, config)[:, 0]
    grid = x[:, None, None] if config.model.whole else models.cut(x, config.model.patch, config.model.stride)
    return patches.changed(grid, batch, key, config)


# ------------------------------------------------------------------------------------------------ pretraining


def pretrain(config: ConfigDict) -> Method:
    """Build the pretraining.

    `params` holds encoder and, in `directions`, what each direction learns; `extra` is the moving average of
    the encoder.
    """
    _check(config)
    steps = tuple(config.cpc.step_indices)
    names = DIRECTIONS[config.cpc.directions]
    encoder = models.backbone(config.model)
    direction = models.cpc_direction(config.context, config.model, steps)

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, Ema]:
        del batch
        f_key, *keys = jax.random.split(key, 1 + len(names))
        f, f_state, h = models.initialise(encoder, f_key, image_shape(config))
        side = (config.data.image_size - config.model.patch) // config.model.stride + 1
        grid = jnp.zeros((1, side, side, h.shape[-1]), jnp.float32)
        learned = {name: direction.init(own, grid)["params"] for name, own in zip(names, keys, strict=True)}
        params = {"encoder": f, "directions": learned}
        return params, {"encoder": f_state}, ema.follow({"encoder": f}, {})

    def loss(
        params: Pytree, model_state: Pytree, extra: Ema, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        # 1. The patches of one crop of each image, each changed for itself.
        x = changed_patches(batch, key, config)

        # 2. One vector for each patch: z [B, G, G, D].
        z, f_state = models.forward(encoder, params["encoder"], model_state["encoder"], x, grid=True)
        images = config.cpc.local_images if config.cpc.negatives == "local" else len(z)
        _check_groups(len(z), images)

        total = jnp.float32(0.0)
        right = []
        metrics = {}
        for name in names:
            # 3. Turn the grid so that what is predicted lies below; context, targets and predictions.
            t, predictions = direction.apply({"params": params["directions"][name]}, models.turned(z, name))

            # 4. Every prediction against all patches of its group of images.
            rows = jnp.float32(0.0)
            for i, p in zip(steps, predictions, strict=True):
                own, hits = contrasted(config.cpc.scale * p, t, step=i, images=images)
                rows += jnp.mean(own)
                right.append(jnp.mean(hits))
            metrics[f"loss_{name}"] = rows
            total += rows
        candidates = images * z.shape[1] * z.shape[2]
        metrics |= {
            "prediction_accuracy": jnp.mean(jnp.stack(right)),
            "candidates": jnp.float32(candidates),
            "loss_per_term": total / len(right),  # ln(candidates) before anything is learned
        }
        return total, Out({"encoder": f_state}, (), metrics)

    def update(extra: Ema, params: Pytree, carry: Pytree, step: jax.Array) -> Ema:
        # 5. The moving average, towards the parameters that the optimizer has just made.
        return Ema(ema.update(extra.params, {"encoder": params["encoder"]}, config.ema.decay), {})

    def evaluated(params: Pytree, model_state: Pytree, extra: Ema) -> tuple[Pytree, Pytree]:
        """The moving average."""
        return extra.params["encoder"], model_state["encoder"]

    return Method(init=init, loss=loss, update=update, evaluated=evaluated, num_views=1)


def contrasted(p: jax.Array, t: jax.Array, *, step: int, images: int) -> tuple[jax.Array, jax.Array]:
    """The loss of one step index of one direction, within groups of images.

    Args:
        p: predictions [B, H - step - 1, W, T], scaled.
        t: targets [B, H, W, T].
        step: the step index.
        images: of a group; its members are neighbours in the batch.

    Returns:
        the loss and whether the right target is the most likely, float32 [B * (H - step - 1) * W] each.
    """
    _, height, width, dim = t.shape
    labels = cpc_labels(images, height, width, step)
    groups = len(t) // images
    p = p.reshape(groups, -1, dim)
    t = t.reshape(groups, -1, dim)

    def group(p: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        hits = accuracy(jax.lax.stop_gradient(dot(p, t)), labels)
        return cpc_info_nce(p, t, labels=labels), hits

    rows, hits = jax.vmap(group)(p, t)
    return rows.reshape(-1), hits.reshape(-1)


def _check(config: ConfigDict) -> None:
    """Refuse steps that the grid has no room for.

    Raises:
        ValueError: names the setting and what to type.
    """
    model = config.model
    if model.whole:
        raise ValueError(
            "config.model.whole=True: there is nothing to predict without patches; set it to False"
        )
    side = (config.data.image_size - model.patch) // model.stride + 1
    last = max(config.cpc.step_indices, default=-1)
    if not 0 <= last < side - 1:
        raise ValueError(
            f"config.cpc.step_indices={tuple(config.cpc.step_indices)} on a grid of {side} rows: index i "
            f"predicts the row i + 1 below, so use indices of 0 to {side - 2}, or a smaller model.stride"
        )


def _check_groups(rows: int, images: int) -> None:
    if rows % images:
        raise ValueError(
            f"config.cpc.local_images={images} does not divide the batch of {rows}: set batch_size to a "
            "multiple of it, or config.cpc.negatives=global"
        )


# ---------------------------------------------------------------------------------------------------- linear


def linear(config: ConfigDict, facts: Facts) -> Method:
    """Build the linear evaluation: batch normalisation without a gain and logits at every place.

    `params` holds head; `extra` is the Frozen encoder, which evaluation reads of `init_from`. The running
    statistics of the head's normalisation stand beside those of the encoder.
    """
    encoder = models.backbone(config.model)
    head = models.GridClassifier(facts.num_classes)

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, Frozen]:
        del batch
        keys = jax.random.split(key)
        f, f_state, h = models.initialise(encoder, keys[0], image_shape(config))
        w, statistics, _ = models.initialise_head(head, keys[1], h[:, None, None])
        return {"head": w}, {}, Frozen({"encoder": f}, {"encoder": f_state, "head": statistics})

    def loss(
        params: Pytree, model_state: Pytree, extra: Frozen, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        x = changed_patches(batch, key, config)
        weights, statistics = extra
        z = models.infer(encoder, weights["encoder"], statistics["encoder"], x, grid=True)
        logits, after = models.forward(head, params["head"], statistics["head"], z)
        metrics = {"accuracy": jnp.mean(accuracy(logits, batch["label"]))}
        return jnp.mean(cross_entropy(logits, batch["label"])), Out(model_state, after, metrics)

    def update(extra: Frozen, params: Pytree, carry: Pytree, step: jax.Array) -> Frozen:
        return extra._replace(model_state={**extra.model_state, "head": carry})

    def evaluated(params: Pytree, model_state: Pytree, extra: Frozen) -> tuple[Pytree, Pytree]:
        return extra.params["encoder"], extra.model_state["encoder"]

    def classify(params: Pytree, extra: Frozen, features: jax.Array) -> dict[str, jax.Array]:
        # The logits are linear in z, so the mean of the grid has the mean of their logits.
        return {
            "probe": models.infer(head, params["head"], extra.model_state["head"], features[:, None, None])
        }

    def adopt(state: TrainState, load: LoadFn) -> TrainState:
        return state.replace(extra=_adopted(state.extra, load, config))

    return Method(
        init=init,
        loss=loss,
        update=update,
        evaluated=evaluated,
        classify=classify,
        adopt=adopt,
        frozen=True,
        num_views=1,
        needs_labels=True,
    )


def _adopted(frozen: Frozen, load: LoadFn, config: ConfigDict) -> Frozen:
    """The encoder of `config.init_from` that evaluation reads there; without it, the random one."""
    if not config.init_from:
        return frozen
    part = "evaluated/params"
    found = load(config.init_from, {part: frozen.params["encoder"]})
    return Frozen({"encoder": found[part]}, frozen.model_state)


# ------------------------------------------------------------------------------------------ efficient classes


def classifier(config: ConfigDict, facts: Facts) -> Method:
    """Build the residual classifier on the feature maps of whole images.

    `params` holds classifier, head and, unless it is frozen, encoder. A frozen encoder is `extra`, which is
    () otherwise. Branches of `init_from` besides the encoder are those of `init_branches`.
    """
    if not config.model.whole:
        raise ValueError(
            "config.model.whole=False: the classifier reads maps of whole images; set it to True"
        )
    frozen = config.classifier.frozen
    encoder = models.backbone(config.model)
    network = models.cpc_classifier(config.classifier, config.model)
    head = models.LinearClassifier(facts.num_classes)

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, Frozen | tuple[()]]:
        del batch
        keys = jax.random.split(key, 3)
        f, f_state, h = models.initialise(encoder, keys[0], image_shape(config))
        g = network.init(keys[1], jnp.zeros((1, 2, 2, h.shape[-1]), jnp.float32), train=False)
        params = {"classifier": g.get("params", {}), "head": head.init(keys[2], h)["params"]}
        if frozen:
            return params, {}, Frozen({"encoder": f}, {"encoder": f_state})
        return {"encoder": f, **params}, {}, ()

    def weights_of(params: Pytree, extra: Frozen | tuple[()]) -> Pytree:
        return extra.params["encoder"] if isinstance(extra, Frozen) else params["encoder"]

    def loss(
        params: Pytree,
        model_state: Pytree,
        extra: Frozen | tuple[()],
        batch: Batch,
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, Out]:
        # 1. One crop of each image, changed as a patch is.
        x = changed_patches(batch, key, config)[:, 0, 0]

        # 2. Maps of the whole image, and the residual network on them.
        maps = models.infer(encoder, weights_of(params, extra), {}, x, grid=True)
        h, _ = models.forward(network, params["classifier"], {}, maps, key=jax.random.fold_in(key, 1))
        logits = models.logits(params["head"], h)
        metrics = {"accuracy": jnp.mean(accuracy(logits, batch["label"]))}
        return jnp.mean(cross_entropy(logits, batch["label"])), Out(model_state, (), metrics)

    def evaluated(params: Pytree, model_state: Pytree, extra: Frozen | tuple[()]) -> tuple[Pytree, Pytree]:
        return weights_of(params, extra), {}

    def encode(params: Pytree, model_state: Pytree, extra: Frozen | tuple[()], image: jax.Array) -> jax.Array:
        """What the last layer reads, [B, D]."""
        x = views.for_network(image, config.augment)
        maps = models.infer(encoder, weights_of(params, extra), {}, x, grid=True)
        return models.infer(network, params["classifier"], {}, maps)

    def classify(params: Pytree, extra: Frozen | tuple[()], features: jax.Array) -> dict[str, jax.Array]:
        return {"classifier": models.logits(params["head"], features)}

    def adopt(state: TrainState, load: LoadFn) -> TrainState:
        """Load the encoder that evaluation reads: after pretraining, that is the moving average."""
        if isinstance(state.extra, Frozen):
            return state.replace(extra=_adopted(state.extra, load, config))
        found = _adopted(Frozen({"encoder": state.params["encoder"]}, {}), load, config)
        return state.replace(params={**state.params, "encoder": found.params["encoder"]})

    return Method(
        init=init,
        loss=loss,
        evaluated=evaluated,
        encode=encode,
        classify=classify,
        adopt=adopt,
        frozen=frozen,
        num_views=1,
        needs_labels=True,
    )
