"""Learning-rate schedules, LARS in both momentum forms, TensorFlow's RMSProp, decay masks, and OPTIMIZERS."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ssljax import layerwise
from ssljax.types import Pytree

Schedule = Callable[[jax.Array], jax.Array]


# ------------------------------------------------------------------------------------------------- schedules


def warmup_cosine(
    peak: float,
    *,
    warmup_steps: int,
    total_steps: int,
    start: float = 0.0,
    end: float = 0.0,
    shift: bool = True,
) -> Schedule:
    """Linear warm-up, then half a cosine down to `end`.

    Step 0 gives `start`, step `warmup_steps` gives `peak`, and `total_steps` and later steps give `end`.

    Args:
        peak: the learning rate at the end of the warm-up.
        warmup_steps: length of the warm-up; 0 starts at the peak.
        total_steps: length of the run, warm-up included.
        start: the learning rate at step 0.
        end: the learning rate at the end of the run.
        shift: True starts the cosine when the warm-up ends (google-research/simclr). False lets it run from
            step 0 underneath the warm-up (timm's scheduler, DeiT), so the peak is never quite reached.

    Raises:
        ValueError: the warm-up is longer than the run.
    """
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"warm-up of {warmup_steps} steps does not fit a run of {total_steps}: "
            "lower optim.warmup_epochs, train longer (epochs, or steps where set), or use a smaller batch"
        )
    begin = warmup_steps if shift else 0

    def schedule(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        warm = start + (peak - start) * step / max(warmup_steps, 1)
        progress = jnp.clip((step - begin) / max(total_steps - begin, 1), 0.0, 1.0)
        cosine = end + 0.5 * (peak - end) * (1.0 + jnp.cos(jnp.float32(math.pi) * progress))
        return jnp.where(step < warmup_steps, warm, cosine)

    return schedule


def by_epoch(
    peak: float,
    *,
    steps_per_epoch: int,
    epochs: int,
    milestones: tuple[int, ...] = (),
    factor: float = 0.1,
) -> Schedule:
    """A learning rate that changes only between epochs, without warm-up (facebookresearch/moco).

    This is `adjust_learning_rate` of that repository. Epoch e = step // steps_per_epoch counts from 0.

    Args:
        peak: the learning rate of the first epoch.
        steps_per_epoch: whole batches per epoch.
        epochs: length of the run.
        milestones: epochs at which the rate is multiplied by `factor` (MoCo v1: 120 and 160 of 200). Without
            any, the rate is peak * (1 + cos(pi e / epochs)) / 2 (MoCo v2), so the last epoch is not at 0.
    """

    def schedule(step: jax.Array) -> jax.Array:
        epoch = jnp.minimum(jnp.asarray(step, jnp.int32) // max(steps_per_epoch, 1), epochs)
        epoch = epoch.astype(jnp.float32)
        if milestones:
            passed = sum((epoch >= at).astype(jnp.float32) for at in milestones)
            return jnp.float32(peak) * factor**passed
        return 0.5 * peak * (1.0 + jnp.cos(jnp.float32(math.pi) * epoch / max(epochs, 1)))

    return schedule


def inverse_sqrt(peak: float, *, weight_decay: float) -> Schedule:
    """A learning rate of peak / sqrt(1 + peak * weight_decay * step).

    This is `learning_rate_decay` of facebookresearch/deepcluster, util.py, for its linear probes.

    Args:
        peak: the learning rate at step 0.
        weight_decay: that of the optimizer; 0 keeps the rate constant.
    """

    def schedule(step: jax.Array) -> jax.Array:
        return peak / jnp.sqrt(1.0 + peak * weight_decay * jnp.asarray(step, jnp.float32))

    return schedule


def timm_cosine(
    peak: float, *, steps_per_epoch: int, epochs: int, warmup_epochs: int, start: float, end: float, lag: int
) -> Schedule:
    """timm's cosine as DeiT calls it: constant within an epoch, the cosine running underneath the warm-up.

    Args:
        peak: the rate that the cosine starts from; never quite reached.
        steps_per_epoch: whole batches per epoch.
        epochs: length of the run.
        warmup_epochs: length of the warm-up.
        start: the learning rate of the first epoch.
        end: the rate that the last epoch approaches.
        lag: 1 = every epoch uses the value of the epoch before, as in the released code, whose first two
            epochs both train at `start`.
    """
    value = warmup_cosine(
        peak, warmup_steps=warmup_epochs, total_steps=epochs, start=start, end=end, shift=False
    )

    def schedule(step: jax.Array) -> jax.Array:
        epoch = jnp.asarray(step, jnp.int32) // max(steps_per_epoch, 1)
        return value(jnp.maximum(epoch - lag, 0))

    return schedule


def staircase(
    peak: float,
    *,
    steps_per_epoch: float,
    warmup_epochs: float,
    decay_epochs: float,
    offset_epochs: float = 0.0,
) -> Schedule:
    """A linear warm-up from 0, then 0.97 of the rate every `decay_epochs` (EfficientNet, Noisy Student).

    The decay counts from step 0 under the warm-up, so the rate falls when the warm-up ends.

    Args:
        peak: the learning rate that the warm-up aims at.
        steps_per_epoch: examples / batch size, not rounded.
        warmup_epochs: length of the warm-up.
        decay_epochs: length of a stair.
        offset_epochs: epochs of the schedule that lie behind step 0: where a fine-tuning goes on.
    """
    # The small term keeps a stair from beginning a step late by a float that is one ulp short.
    warmup_steps = int(warmup_epochs * steps_per_epoch + 1e-9)
    stair = decay_epochs * steps_per_epoch
    offset = round(offset_epochs * steps_per_epoch)

    def schedule(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32) + offset
        warm = peak * step / max(warmup_steps, 1)
        stairs = jnp.floor(step / stair + 1e-6)
        return jnp.where(step < warmup_steps, warm, peak * jnp.float32(0.97) ** stairs)

    return schedule


def by_step(
    peak: float, *, milestones: tuple[int, ...], warmup_steps: int, warmup_factor: float, factor: float = 0.1
) -> Schedule:
    """A learning rate that falls at given steps, with a linear warm-up (facebookresearch/detectron2).

    Args:
        peak: the learning rate after the warm-up.
        milestones: steps at which the rate is multiplied by `factor`. The step itself has the lower rate.
        warmup_steps: length of the warm-up; 0 starts at the peak.
        warmup_factor: the share of the rate at step 0.
        factor: see `milestones`.
    """

    def schedule(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        share = jnp.clip(step / max(warmup_steps, 1), 0.0, 1.0) if warmup_steps else 1.0
        passed = sum(((step >= at).astype(jnp.float32) for at in milestones), jnp.zeros(()))
        return peak * (warmup_factor * (1.0 - share) + share) * factor**passed

    return schedule


def train_steps(num_examples: int, epochs: int, batch_size: int) -> int:
    """Optimizer updates of a run: examples * epochs // batch + 1 (`get_train_steps` of SimCLR's code)."""
    return num_examples * epochs // batch_size + 1


def scaled_learning_rate(learning_rate: float, scaling: str, batch_size: int) -> float:
    """Scale a base learning rate to the batch size (SimCLR, appendix B.1).

    Args:
        learning_rate: lr, the base learning rate.
        scaling: "linear" gives lr * B / 256, "sqrt" gives lr * sqrt(B), "none" gives lr.
        batch_size: B, the global batch size.

    Raises:
        ValueError: an unknown scaling.
    """
    scales = {"linear": batch_size / 256, "sqrt": math.sqrt(batch_size), "none": 1.0}
    if scaling not in scales:
        raise ValueError(f"optim.scaling={scaling!r} is not one of {', '.join(scales)}")
    return learning_rate * scales[scaling]


# ---------------------------------------------------------------------------------------------- weight decay


def decayed(params: Pytree, probes: Collection[str] = ()) -> Pytree:
    """Mark the leaves that weight decay and layer-wise adaptation apply to: kernels, except a probe's.

    Biases, the scales and offsets of normalisation and the supervised head are left out. In google-research/
    simclr these are the names batch_normalization, bias and head_supervised. Here they are the leaves that
    are not called `kernel` or that lie in a branch of `probes`.

    Args:
        params: the parameters.
        probes: names of top-level branches.

    Returns:
        A tree of bools like `params`.
    """

    def rule(path: tuple, leaf: jax.Array) -> bool:
        names = [getattr(entry, "key", getattr(entry, "name", "")) for entry in path]
        return names[-1] == "kernel" and names[0] not in probes

    return jax.tree_util.tree_map_with_path(rule, params)


def timm_decayed(params: Pytree, *, distillation_token: bool) -> Pytree:
    """Mark the leaves that DeiT's code decays: kernels, and the distillation token.

    Biases, gains, positions and the class token are left out.

    Args:
        params: the parameters.
        distillation_token: whether that token is decayed. True is the released code, whose list of exceptions
            forgot it; newer timm leaves it out as well (False).

    Returns:
        A tree of bools like `params`.
    """

    def rule(path: tuple, leaf: jax.Array) -> bool:
        name = path[-1].key
        return name == "kernel" or (distillation_token and name == "distillation_token")

    return jax.tree_util.tree_map_with_path(rule, params)


def not_norms(params: Pytree) -> Pytree:
    """Mark every leaf outside the normalisation layers, biases too.

    These are the leaves that the code of Noisy Student and detectron2 decays.

    Args:
        params: the parameters.

    Returns:
        A tree of bools like `params`.
    """

    def rule(tree: Pytree) -> Pytree:
        if not isinstance(tree, dict):
            return True
        if "scale" in tree:  # a normalisation layer
            return jax.tree.map(lambda _: False, tree)
        return {name: rule(branch) for name, branch in tree.items()}

    return rule(params)


# ------------------------------------------------------------------------------------------------------ LARS


def lars(
    learning_rate: float | Schedule,
    *,
    lr_in_momentum: bool,
    weight_decay: float,
    momentum: float,
    trust_coefficient: float,
    mask: Pytree | Callable[[Pytree], Pytree],
) -> optax.GradientTransformation:
    """LARS (You et al., arXiv 1708.03888), in the two forms that papers shipped under one name.

        g     <- g + weight_decay * w                                        where mask
        ratio  = trust_coefficient * |w| / |g|, or 1 where a norm is 0       where mask, else 1

        lr_in_momentum=True (SimCLR's released code)
            v <- momentum * v + learning_rate * ratio * g
            w <- w - v
        lr_in_momentum=False (BYOL, MoCo v3)
            v <- momentum * v + ratio * g
            w <- w - learning_rate * v

    The two differ as soon as the learning rate changes.

    Args:
        learning_rate: a number, or a schedule of the update count.
        lr_in_momentum: which of the two forms.
        weight_decay: added to the gradient before the ratio is taken.
        momentum: decay of the velocity v.
        trust_coefficient: scales the ratio of the norms.
        mask: tree of bools like the parameters, or a function that makes one. True means decayed and adapted.
            `decayed` is SimCLR's.
    """
    decay = optax.add_decayed_weights(weight_decay, mask=mask)
    adapt = optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient), mask)
    rate = optax.scale_by_learning_rate(learning_rate)
    velocity = optax.trace(decay=momentum)
    if lr_in_momentum:
        return optax.chain(decay, adapt, rate, velocity)
    return optax.chain(decay, adapt, velocity, rate)


# --------------------------------------------------------------------------------------------------- RMSProp


def tf_rmsprop(
    learning_rate: float | Schedule, *, decay: float = 0.9, momentum: float = 0.9, epsilon: float = 1e-3
) -> optax.GradientTransformation:
    """TensorFlow's RMSPropOptimizer.

        m <- decay * m + (1 - decay) * g^2                    m starts at 1
        v <- momentum * v + learning_rate * g / sqrt(m + epsilon)
        w <- w - v

    `optax.rmsprop` starts m at 0 and adds epsilon outside of the root.

    Args:
        learning_rate: a number, or a schedule of the update count.
        decay: of the mean square m.
        momentum: of the velocity v.
        epsilon: added inside the root.
    """
    return optax.chain(
        optax.scale_by_rms(decay=decay, eps=epsilon, initial_scale=1.0, eps_in_sqrt=True),
        optax.scale_by_learning_rate(learning_rate),
        optax.trace(decay=momentum),
    )


# ---------------------------------------------------------------------------------------- optimizers by name


class Horizon(NamedTuple):
    """What an optimizer needs to know about the run besides its own settings.

    Attributes:
        peak: the learning rate, scaled to the batch size.
        steps_per_epoch: examples / batch size, not rounded.
        total_steps: optimizer updates of the whole run.
        probes: see `Method.probes`.
        restarted: see `Method.restarted`.
    """

    peak: float
    steps_per_epoch: float
    total_steps: int
    probes: tuple[str, ...]
    restarted: tuple[str, ...]

    @property
    def whole_steps(self) -> int:
        """Whole batches per epoch."""
        return int(self.steps_per_epoch + 1e-9)

    @property
    def epochs(self) -> int:
        """Epochs of the whole run."""
        return round((self.total_steps - 1) / self.steps_per_epoch)

    def warmed_up(self, epochs: float, *, start: float = 0.0, end: float = 0.0) -> Schedule:
        """`warmup_cosine` over the run, from `start` to the peak to `end`.

        The warm-up lasts examples * epochs // batch steps (google-research/simclr).
        """
        # The small term keeps 0.1 * 10 epochs from being floored to 0 by a float that is one ulp short.
        warmup_steps = int(self.steps_per_epoch * epochs + 1e-9)
        return warmup_cosine(
            self.peak, warmup_steps=warmup_steps, total_steps=self.total_steps, start=start, end=end
        )

    def mask(self) -> Callable[[Pytree], Pytree]:
        """`decayed` with the probes of the run."""
        return functools.partial(decayed, probes=self.probes)


Optimizer = tuple[optax.GradientTransformation, Schedule]


def _lars(optim: ConfigDict, run: Horizon) -> Optimizer:
    """SimCLR, BYOL, MoCo v3 on a ResNet, DeepCluster-v2."""
    schedule = run.warmed_up(optim.warmup_epochs, start=optim.start, end=optim.end)
    tx = lars(
        schedule,
        lr_in_momentum=optim.lr_in_momentum,
        weight_decay=optim.weight_decay,
        momentum=optim.momentum,
        trust_coefficient=optim.trust_coefficient,
        mask=run.mask(),
    )
    return tx, schedule


def _sgd(optim: ConfigDict, run: Horizon) -> Optimizer:
    """SGD that decays kernels only."""
    schedule = run.warmed_up(optim.warmup_epochs)
    decay = optax.add_decayed_weights(optim.weight_decay, mask=run.mask())
    sgd = optax.sgd(schedule, momentum=optim.momentum, nesterov=optim.nesterov)
    return optax.chain(decay, sgd), schedule


def _adamw(optim: ConfigDict, run: Horizon) -> Optimizer:
    """AdamW that decays kernels only."""
    schedule = run.warmed_up(optim.warmup_epochs)
    return optax.adamw(schedule, weight_decay=optim.weight_decay, mask=run.mask()), schedule


def _torch_sgd(optim: ConfigDict, run: Horizon) -> Optimizer:
    """SGD that decays every parameter, biases and norms too, as PyTorch does by default (MoCo v1, v2)."""
    schedule = by_epoch(
        run.peak,
        steps_per_epoch=run.whole_steps,
        epochs=run.epochs,
        milestones=tuple(optim.milestones),
        factor=optim.milestone_factor,
    )
    decay = optax.add_decayed_weights(optim.weight_decay)
    sgd = optax.sgd(schedule, momentum=optim.momentum)
    return optax.chain(decay, sgd), schedule


def _halving_sgd(optim: ConfigDict, run: Horizon) -> Optimizer:
    """SGD that decays every parameter; the gradient is clipped first (DeepCluster's VOC classification)."""

    def schedule(step: jax.Array) -> jax.Array:
        halvings = jnp.asarray(step, jnp.int32) // optim.halve_every
        return jnp.float32(run.peak) * 0.5 ** halvings.astype(jnp.float32)

    clip = [optax.clip_by_global_norm(optim.clip)] if optim.clip else []
    sgd = optax.sgd(schedule, momentum=optim.momentum)
    return optax.chain(*clip, optax.add_decayed_weights(optim.weight_decay), sgd), schedule


def _torch_adamw(optim: ConfigDict, run: Horizon) -> Optimizer:
    """AdamW that decays every parameter (MoCo v3 on vision transformers)."""
    schedule = run.warmed_up(optim.warmup_epochs)
    return optax.adamw(schedule, weight_decay=optim.weight_decay), schedule


def _deepcluster_sgd(optim: ConfigDict, run: Horizon) -> Optimizer:
    """SGD at a constant rate that decays every parameter.

    A branch that each clustering initialises anew has no momentum.
    """
    schedule = optax.constant_schedule(run.peak)

    def lasting(params: Pytree) -> Pytree:
        """True for the leaves of the branches that last from one clustering to the next."""
        mask = {}
        for name, branch in params.items():
            lasts = name not in run.restarted
            mask[name] = jax.tree.map(lambda _, lasts=lasts: lasts, branch)
        return mask

    tx = optax.chain(
        optax.add_decayed_weights(optim.weight_decay),
        optax.masked(optax.trace(optim.momentum), lasting),
        optax.scale_by_learning_rate(schedule),
    )
    return tx, schedule


def _deepcluster_probe_sgd(optim: ConfigDict, run: Horizon) -> Optimizer:
    """SGD at a rate that the weight decay lowers; decays every parameter (DeepCluster's linear probes)."""
    schedule = inverse_sqrt(run.peak, weight_decay=optim.weight_decay)
    sgd = optax.sgd(schedule, momentum=optim.momentum)
    return optax.chain(optax.add_decayed_weights(optim.weight_decay), sgd), schedule


def _timm_adamw(optim: ConfigDict, run: Horizon) -> Optimizer:
    """DeiT."""
    schedule = _timm_schedule(optim, run)
    return optax.adamw(schedule, weight_decay=optim.weight_decay, mask=_timm_mask(optim)), schedule


def _timm_sgd(optim: ConfigDict, run: Horizon) -> Optimizer:
    """DeiT's ablation."""
    schedule = _timm_schedule(optim, run)
    decay = optax.add_decayed_weights(optim.weight_decay, mask=_timm_mask(optim))
    sgd = optax.sgd(schedule, momentum=optim.momentum, nesterov=True)
    return optax.chain(decay, sgd), schedule


def _timm_schedule(optim: ConfigDict, run: Horizon) -> Schedule:
    return timm_cosine(
        run.peak,
        steps_per_epoch=run.whole_steps,
        epochs=run.epochs,
        warmup_epochs=optim.warmup_epochs,
        start=optim.start,
        end=optim.end,
        lag=optim.lag,
    )


def _timm_mask(optim: ConfigDict) -> Callable[[Pytree], Pytree]:
    return functools.partial(timm_decayed, distillation_token=optim.decay_distillation_token)


def _beit_adamw(optim: ConfigDict, run: Horizon) -> Optimizer:
    """BEiT, in pretraining and with a rate per layer in fine-tuning, and the dVAE."""
    rate = layerwise.cosine(
        run.peak,
        warmup_steps=int(run.steps_per_epoch * optim.warmup_epochs + 1e-9),
        total_steps=max(run.total_steps - 1, 1),
        start=optim.start,
        end=optim.end,
        share=optim.cosine_share,
    )
    tx = layerwise.adamw(
        rate,
        b2=optim.b2,
        weight_decay=optim.weight_decay,
        clip=optim.clip,
        layer_decay=optim.layer_decay,
    )
    return tx, rate


def _tf_rmsprop(optim: ConfigDict, run: Horizon) -> Optimizer:
    """EfficientNet and Noisy Student: the decay is part of the loss, on all but the normalisation layers."""
    schedule = staircase(
        run.peak,
        steps_per_epoch=run.steps_per_epoch,
        warmup_epochs=optim.warmup_epochs,
        decay_epochs=optim.decay_epochs,
        offset_epochs=optim.offset_epochs,
    )
    decay = optax.add_decayed_weights(optim.weight_decay, mask=not_norms)
    return optax.chain(decay, tf_rmsprop(schedule, momentum=optim.momentum)), schedule


def _adam(optim: ConfigDict, run: Horizon) -> Optimizer:
    """CPC: Adam at a constant rate, after the gradient was clipped to a global norm."""
    schedule = optax.constant_schedule(run.peak)
    return _clipped_adam(schedule, optim, run), schedule


def _clipped_adam(rate: Schedule, optim: ConfigDict, run: Horizon) -> optax.GradientTransformation:
    """Adam that decays kernels only. The gradient is clipped first, unless `clip` is 0."""
    adam = optax.adamw(
        rate,
        b1=optim.b1,
        b2=optim.b2,
        eps=optim.epsilon,
        weight_decay=optim.weight_decay,
        mask=run.mask(),
    )
    return optax.chain(optax.clip_by_global_norm(optim.clip), adam) if optim.clip else adam


def _sgd_and_adam(optim: ConfigDict, run: Horizon) -> Optimizer:
    """CPC's fine-tuning: Adam at a smaller rate for the encoder, SGD for all that lies on it."""
    schedule = run.warmed_up(optim.warmup_epochs)
    kernels = run.mask()
    decay = optax.add_decayed_weights(optim.weight_decay, mask=kernels)
    sgd = optax.chain(decay, optax.sgd(schedule, momentum=optim.momentum))
    adam = _clipped_adam(lambda step: optim.encoder_rate * schedule(step), optim, run)

    def parts(params: Pytree) -> Pytree:
        """The optimizer of every leaf, by its branch."""
        return {
            name: jax.tree.map(lambda _, name=name: "adam" if name == "encoder" else "sgd", branch)
            for name, branch in params.items()
        }

    return optax.multi_transform({"sgd": sgd, "adam": adam}, parts), schedule


def _detectron_sgd(optim: ConfigDict, run: Horizon) -> Optimizer:
    """Detectron2's: SGD that decays all but the normalisation layers, its schedule in steps."""
    schedule = by_step(
        run.peak,
        milestones=tuple(optim.step_milestones),
        warmup_steps=optim.warmup_steps,
        warmup_factor=optim.warmup_factor,
    )
    decay = optax.add_decayed_weights(optim.weight_decay, mask=not_norms)
    return optax.chain(decay, optax.sgd(schedule, momentum=optim.momentum)), schedule


def keeping(
    tx: optax.GradientTransformation, still: Callable[[Pytree], Pytree]
) -> optax.GradientTransformation:
    """The same optimizer, but some leaves never change: `still` marks them in a tree of bools."""
    return optax.chain(tx, optax.masked(optax.set_to_zero(), still))


OPTIMIZERS: dict[str, Callable[[ConfigDict, Horizon], Optimizer]] = {
    "lars": _lars,
    "sgd": _sgd,
    "adamw": _adamw,
    "torch_sgd": _torch_sgd,
    "torch_adamw": _torch_adamw,
    "deepcluster_sgd": _deepcluster_sgd,
    "deepcluster_probe_sgd": _deepcluster_probe_sgd,
    "timm_adamw": _timm_adamw,
    "timm_sgd": _timm_sgd,
    "beit_adamw": _beit_adamw,
    "tf_rmsprop": _tf_rmsprop,
    "adam": _adam,
    "sgd_and_adam": _sgd_and_adam,
    "halving_sgd": _halving_sgd,
    "detectron_sgd": _detectron_sgd,
}


def make_optimizer(
    optim: ConfigDict,
    *,
    batch_size: int,
    steps_per_epoch: float,
    total_steps: int,
    probes: tuple[str, ...] = (),
    restarted: tuple[str, ...] = (),
) -> Optimizer:
    """Build the optimizer of a config's `optim`, and its learning-rate schedule (for the logs).

    Args:
        optim: `name`, a key of OPTIMIZERS; `learning_rate`; `scaling`; and what that optimizer reads.
        batch_size: the global batch size, which scales the learning rate.
        steps_per_epoch: see Horizon.
        total_steps: see Horizon.
        probes: see Horizon.
        restarted: see Horizon.

    Raises:
        ValueError: an unknown name or scaling.
    """
    if optim.name not in OPTIMIZERS:
        raise ValueError(f"optim.name={optim.name!r} is not one of {', '.join(OPTIMIZERS)}")
    peak = scaled_learning_rate(optim.learning_rate, optim.scaling, batch_size)
    run = Horizon(peak, steps_per_epoch, total_steps, probes, restarted)
    return OPTIMIZERS[optim.name](optim, run)
