"""Noisy Student: a teacher labels what has no labels, and a noised student of the same size learns from both.

Xie, Luong, Hovy & Le: Self-training with Noisy Student improves ImageNet classification, CVPR 2020,
arXiv 1911.04252.

    1  the teacher minimises     1/n sum_i CE(y_i, f_noised(x_i))                         (`pseudo.ratio=0`)
    2  without noise it labels   q_j = f(x~_j)        soft, or hard: its most likely class
    3  an equal or larger student minimises

           1/n sum_i CE(y_i, f_noised(x_i)) + 1/m sum_j CE(q_j, f_noised(x~_j))

    4  the student becomes the teacher; again from 2

Every stage of a config is one turn of this. The noise is RandAugment, dropout and stochastic depth, the
recipe of a config. A batch has B images with labels and r B without, in one forward pass, so they share their
batch statistics:

    L = L_l + r L_u               `pseudo.weighting="ratio"`, the released code
    L = (L_l + r L_u) / (1 + r)   "mean", the mean over the concatenated batch, as the paper writes it

RMSProp does not see the factor between the two, except for weight decay.

Labels are made once, before the first step, and kept by the stable id of the image; an interrupted run goes
on labelling where it was. Images below `pseudo.threshold` of confidence are left out, and classes balanced to
`pseudo.per_class` images each.

Differences from the paper, after the released code (google-research/noisystudent at aac52bf) unless marked
[X]:
- The labels of a stage are those of its teacher at evaluation, from the moving average of its weights.
- Batch statistics are those of the whole batch, not of groups of devices. [X]
- JFT-300M is not public. The images without labels come from the labelled data set itself, with
  `data.keep_unlabelled`, or from any folder or TFDS data set, with `data.unlabelled`. [X]
- The probabilities of all classes are stored, with the state, split by rows over the devices. `pseudo.top`
  keeps the largest few: with 16 of 1,000 an image takes 132 bytes instead of 4,004, so the 81 million
  different images of the paper's selection take 11 GB. [X]
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssljax import models
from ssljax.data import views
from ssljax.losses.classification import accuracy, cross_entropy
from ssljax.targets import ema, frozen, pseudo
from ssljax.targets.ema import Ema
from ssljax.targets.frozen import Frozen
from ssljax.targets.pseudo import PseudoLabels
from ssljax.types import Batch, Facts, LoadFn, Method, Out, Pytree, TrainState


class NoisyState(NamedTuple):
    """What stands beside the student.

    Attributes:
        labels: those that the teacher gave; () without a teacher.
        teacher: the frozen teacher; () without one.
        ema: the moving average of the student; () if none is kept.
    """

    labels: PseudoLabels | tuple[()]
    teacher: Frozen | tuple[()]
    ema: Ema | tuple[()]


def noisy_student(config: ConfigDict, facts: Facts) -> Method:
    """Build one stage as pure functions: a teacher on labels (`pseudo.ratio=0`), or a student.

    `params` holds encoder and head; `extra` is a NoisyState.
    """
    size = config.data.image_size
    image_shape = (size, size, config.data.channels)
    classes = facts.num_classes
    settings = config.pseudo
    ratio = settings.ratio
    top = settings.top if ratio else 0
    _check(config, facts)

    encoder = models.backbone(config.model)
    head = models.LinearClassifier(classes, scheme="fan_out_uniform")
    teacher = models.backbone(config.teacher) if ratio else None
    averaged = config.ema.decay > 0

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, NoisyState]:
        del batch
        keys = jax.random.split(key, 4)
        f, f_state, h = models.initialise(encoder, keys[0], image_shape)
        params = {"encoder": f, "head": head.init(keys[1], h)["params"]}
        model_state = {"encoder": f_state}

        extra = NoisyState(labels=(), teacher=(), ema=())
        if teacher is not None:
            t, t_state, h = models.initialise(teacher, keys[2], image_shape)
            t_params = {"encoder": t, "head": head.init(keys[3], h)["params"]}
            extra = extra._replace(
                labels=pseudo.none(facts.rows, classes, top=top),
                teacher=Frozen(t_params, {"encoder": t_state}),
            )
        if averaged:
            extra = extra._replace(ema=ema.follow(params, model_state))
        return params, model_state, extra

    def loss(
        params: Pytree, model_state: Pytree, extra: NoisyState, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        # 1. One noised view of each image, labelled and unlabelled, in one pass of the noised student.
        x = views.stacked(batch, key, config)[:, 0]
        network_key = jax.random.fold_in(key, 1)
        h, f_state = models.forward(encoder, params["encoder"], model_state["encoder"], x, key=network_key)
        logits = models.logits(params["head"], h)

        # 2. Cross entropy with the smoothed label of those that have one.
        labelled = batch["label"] >= 0
        smoothing = settings.label_smoothing
        rows = cross_entropy(logits, jnp.maximum(batch["label"], 0), label_smoothing=smoothing)
        total = _mean(rows, labelled)
        metrics = {"accuracy": _mean(accuracy(logits, batch["label"]), labelled)}

        # 3. Cross entropy with the teacher's label of the others.
        if ratio:
            assert isinstance(extra.labels, PseudoLabels)
            q = pseudo.looked_up(extra.labels, batch["index"], classes)
            if settings.kind == "soft":
                target = pseudo.soft(q, temperature=settings.temperature)
            else:
                target = pseudo.hard(q, label_smoothing=smoothing)
            unlabelled = _mean(cross_entropy(logits, target), ~labelled)
            metrics["labelled_loss"] = total
            metrics["unlabelled_loss"] = unlabelled
            metrics["agreement"] = _mean(accuracy(logits, jnp.argmax(q, -1)), ~labelled)
            total = total + ratio * unlabelled
            if settings.weighting == "mean":
                total = total / (1 + ratio)

        model_state = {"encoder": f_state}
        return total, Out(model_state, model_state if averaged else (), metrics)

    def update(extra: NoisyState, params: Pytree, carry: Pytree, step: jax.Array) -> NoisyState:
        # 4. The moving average, of the running statistics too, which follows closely in the beginning.
        if not averaged:
            return extra
        decay = ema.warmed_up(step, config.ema.decay)
        return extra._replace(ema=ema.update(extra.ema, Ema(params, carry), decay))

    def labelled(state: TrainState, run: Any, positions: Any) -> PseudoLabels:
        """The teacher's probabilities, of all classes or of the likeliest, at its own image size."""
        assert teacher is not None, "without a teacher there is no refresh"

        @jax.jit
        def probabilities(weights: Frozen, image: jax.Array) -> jax.Array:
            x = views.for_network(image, config.augment)
            h = models.infer(teacher, weights.params["encoder"], weights.model_state["encoder"], x)
            q = jax.nn.softmax(models.logits(weights.params["head"], h))
            return pseudo.largest(q, top) if top else q

        def written(labels: PseudoLabels, rows: Any) -> PseudoLabels:
            found = labels.probabilities
            if not top:
                return labels._replace(probabilities=run.by_id(rows.features, rows, found))
            likeliest = rows.features[:, top:].astype(jnp.int32)
            return labels._replace(
                probabilities=run.by_id(rows.features[:, :top], rows, found),
                classes=run.by_id(likeliest, rows, labels.classes),
            )

        weights = state.extra.teacher
        return run.gathered(
            lambda image: probabilities(weights, image),
            positions,
            state.extra.labels,
            written,
            of=weights,
            size=settings.teacher_size,
        )

    def chosen(labels: PseudoLabels, ids: Any, key: jax.Array, run: Any) -> PseudoLabels:
        """Which images are taken, and how often, into `copies`."""
        label = jnp.asarray(labels.classes)[ids, 0] if top else jnp.argmax(labels.probabilities, -1)[ids]
        confidence = labels.probabilities.max(-1)[ids]
        taken = pseudo.copies(
            label,
            confidence,
            key,
            classes=classes,
            threshold=settings.threshold,
            per_class=settings.per_class,
        )
        if not int(taken.sum()):
            raise ValueError(
                f"config.pseudo.threshold={settings.threshold}: the teacher is that sure of none of "
                f"{len(ids)} images (its surest: {float(confidence.max()):.2f}); lower it"
            )
        run.log(
            {
                "pseudo_confidence": float(confidence.mean()),
                "pseudo_kept": float((taken > 0).mean()),
                "pseudo_images": float(taken.sum()),
            }
        )
        return labels._replace(copies=jnp.zeros(facts.rows, jnp.int32).at[ids].set(taken))

    def refresh(state: TrainState, run: Any) -> TrainState:
        """Label every unlabelled image with the teacher, before the first step and never again."""
        if int(state.step):
            return state
        positions = (run.labels < 0).nonzero()[0]
        labels = labelled(state, run, positions)
        labels = chosen(labels, run.ids[positions], run.key(state), run)
        return run.place(state.replace(extra=state.extra._replace(labels=labels)))

    def evaluated(params: Pytree, model_state: Pytree, extra: NoisyState) -> tuple[Pytree, Pytree]:
        """The moving average, if one is kept."""
        return ema.backbone(extra.ema, params, model_state)

    def classify(params: Pytree, extra: NoisyState, features: jax.Array) -> dict[str, jax.Array]:
        if isinstance(extra.ema, Ema):
            params = extra.ema.params
        return {"classifier": models.logits(params["head"], features)}

    def adopt(state: TrainState, load: LoadFn) -> TrainState:
        """Load the teacher; the moving average begins at the weights that training starts from."""
        extra = state.extra
        if teacher is not None:
            trained = frozen.adopt_evaluated(extra.teacher, settings.teacher, load, setting="pseudo.teacher")
            extra = extra._replace(teacher=trained)
        if averaged:
            extra = extra._replace(ema=ema.follow(state.params, state.model_state))
        return state.replace(extra=extra)

    frozen_layers = encoder.frozen if isinstance(encoder, models.EfficientNet) else frozenset()

    def still(params: Pytree) -> Pytree:
        """The first blocks, where the fine-tuning at another resolution freezes them."""

        def inside(path: tuple, leaf: jax.Array) -> bool:
            return path[0].key == "encoder" and path[1].key in frozen_layers

        return jax.tree_util.tree_map_with_path(inside, params)

    return Method(
        init=init,
        loss=loss,
        update=update,
        refresh=refresh if ratio else None,
        evaluated=evaluated,
        classify=classify,
        balance=(lambda extra: extra.labels.copies) if ratio else None,
        adopt=adopt,
        rows=("labels",) if ratio else (),
        ratio=ratio,
        epochs_of=settings.epochs_of if ratio else "images",
        still=still if frozen_layers else None,
        num_views=1,
        needs_labels=not ratio,
        separable=not ratio and not models.draws(config.model),
    )


def _mean(rows: jax.Array, which: jax.Array) -> jax.Array:
    """The mean of some rows; 0 of none."""
    return jnp.where(which, rows, 0.0).sum() / jnp.maximum(which.sum(), 1).astype(jnp.float32)


def _check(config: ConfigDict, facts: Facts) -> None:
    """Refuse settings that do not go together, with a ValueError."""
    settings = config.pseudo
    for name, valid in (
        ("kind", ("soft", "hard")),
        ("weighting", ("ratio", "mean")),
        ("epochs_of", ("unlabelled", "labelled")),
    ):
        if settings.ratio and settings[name] not in valid:
            raise ValueError(
                f"config.pseudo.{name}={settings[name]!r} is unknown. Use {valid[0]!r} or {valid[1]!r}."
            )
    if settings.ratio and settings.top > facts.num_classes:
        raise ValueError(
            f"config.pseudo.top={settings.top} is more than the {facts.num_classes} classes: 0 keeps them all"
        )
    if settings.ratio and config.batch_size % (1 + settings.ratio):
        raise ValueError(
            f"config.batch_size={config.batch_size} does not split into one labelled image for every "
            f"{settings.ratio} without (config.pseudo.ratio): choose a multiple of {1 + settings.ratio}"
        )
