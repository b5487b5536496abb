"""Schedules, LARS in both momentum forms, the parameters they leave alone, and OPTIMIZERS. Everything else is optax."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ssljax.types import Pytree

Schedule = Callable[[jax.Array], jax.Array]


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

    Step 0 gives `start`, step `warmup_steps` gives `peak`, `total_steps` and later give `end`.

    Args:
        peak: the learning rate at the end of the warm-up.
        warmup_steps: 0 starts at the peak.
        total_steps: warm-up included.
        shift: True starts the cosine when the warm-up ends (google-research/simclr); False lets it run from step 0 under the
            warm-up (timm's scheduler, DeiT), so the peak itself is never quite reached.

    Raises:
        ValueError: the warm-up is longer than the run.
    """
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"warm-up of {warmup_steps} steps does not fit a run of {total_steps}: "
            "lower optim.warmup_epochs, train for more epochs, or use a smaller batch"
        )
    begin = warmup_steps if shift else 0

    def schedule(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        warm = start + (peak - start) * step / max(warmup_steps, 1)
        progress = jnp.clip((step - begin) / max(total_steps - begin, 1), 0.0, 1.0)
        cosine = end + 0.5 * (peak - end) * (1.0 + jnp.cos(jnp.float32(math.pi) * progress))
        return jnp.where(step < warmup_steps, warm, cosine)

    return schedule


def train_steps(num_examples: int, epochs: int, batch_size: int) -> int:
    """Optimizer updates of a run: examples * epochs // batch + 1 (google-research/simclr, get_train_steps)."""
    return num_examples * epochs // batch_size + 1


def scaled_learning_rate(learning_rate: float, scaling: str, batch_size: int) -> float:
    """The peak learning rate of a batch: linear = lr * B / 256, sqrt = lr * sqrt(B), none = lr (SimCLR, appendix B.1)."""
    scales = {"linear": batch_size / 256, "sqrt": math.sqrt(batch_size), "none": 1.0}
    if scaling not in scales:
        raise ValueError(f"optim.scaling={scaling!r} is not one of {', '.join(scales)}")
    return learning_rate * scales[scaling]


def decayed(params: Pytree, probes: Collection[str] = ()) -> Pytree:
    """True for the leaves that weight decay and layer-wise adaptation apply to: the kernels, without those of a linear probe.

    Left out are biases, the scales and offsets of normalisation, and the supervised head (google-research/simclr: the names
    batch_normalization, bias, head_supervised; here the leaf is not called `kernel`, or lies in a branch of `probes`).
    """

    def rule(path: tuple, leaf: jax.Array) -> bool:
        names = [getattr(entry, "key", getattr(entry, "name", "")) for entry in path]
        return names[-1] == "kernel" and names[0] not in probes

    return jax.tree_util.tree_map_with_path(rule, params)


def timm_decayed(params: Pytree, *, distillation_token: bool) -> Pytree:
    """True for the leaves that DeiT's code decays: kernels, and the distillation token, which its list of exceptions forgot.

    Biases, gains, positions and the class token are left out. Newer timm leaves out the distillation token too (False).
    """

    def rule(path: tuple, leaf: jax.Array) -> bool:
        return path[-1].key == "kernel" or (distillation_token and path[-1].key == "distillation_token")

    return jax.tree_util.tree_map_with_path(rule, params)


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

        g     <- g + weight_decay * w                                    where mask
        ratio  = trust_coefficient * |w| / |g|, 1 where a norm is 0      where mask, else 1
        True:  v <- momentum * v + learning_rate * ratio * g;   w <- w - v                     SimCLR's released code
        False: v <- momentum * v + ratio * g;                   w <- w - learning_rate * v     BYOL, MoCo v3

    The two part as soon as the learning rate moves.

    Args:
        learning_rate: a number or a schedule of the update count.
        lr_in_momentum: which of the two forms.
        mask: tree of bools like the parameters (or a function that makes one): True = decayed and adapted. `decayed` is SimCLR's.
    """
    adapt = [
        optax.add_decayed_weights(weight_decay, mask=mask),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient), mask),
    ]
    rate = optax.scale_by_learning_rate(learning_rate)
    trace = optax.trace(decay=momentum)
    return optax.chain(*adapt, rate, trace) if lr_in_momentum else optax.chain(*adapt, trace, rate)


def by_epoch(peak: float, *, steps_per_epoch: int, epochs: int, milestones: tuple[int, ...] = ()) -> Schedule:
    """A learning rate that changes between epochs only, without warm-up (facebookresearch/moco, adjust_learning_rate).

    Epoch e = step // steps_per_epoch, counted from 0. With milestones the peak is divided by ten at each of them (MoCo v1: 120 and 160 of
    200); without, it is peak * (1 + cos(pi e / epochs)) / 2 (v2), so the last epoch is not at 0.
    """

    def schedule(step: jax.Array) -> jax.Array:
        epoch = jnp.minimum(jnp.asarray(step, jnp.int32) // max(steps_per_epoch, 1), epochs).astype(
            jnp.float32
        )
        if milestones:
            return jnp.float32(peak) * 0.1 ** sum((epoch >= at).astype(jnp.float32) for at in milestones)
        return 0.5 * peak * (1.0 + jnp.cos(jnp.float32(math.pi) * epoch / max(epochs, 1)))

    return schedule


def timm_cosine(
    peak: float, *, steps_per_epoch: int, epochs: int, warmup_epochs: int, start: float, end: float, lag: int
) -> Schedule:
    """timm's cosine as DeiT calls it: constant within an epoch, the cosine running under the warm-up.

    Args:
        peak: never quite reached.
        start: in the first epoch.
        end: approached by the last.
        lag: 1 = every epoch uses the value of the one before, as the released code does: its first two epochs both train at `start`.
    """
    value = warmup_cosine(
        peak, warmup_steps=warmup_epochs, total_steps=epochs, start=start, end=end, shift=False
    )

    def schedule(step: jax.Array) -> jax.Array:
        return value(jnp.maximum(jnp.asarray(step, jnp.int32) // max(steps_per_epoch, 1) - lag, 0))

    return schedule


# ------------------------------------------------------------------------------------------------------------- by their names


class Horizon(NamedTuple):
    """What an optimizer is told of the run beside its own settings.

    Attributes:
        peak: the learning rate, scaled by the batch.
        steps_per_epoch: examples / batch, not rounded.
        total_steps: of the whole run.
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
        """Whole batches in an epoch."""
        return int(self.steps_per_epoch + 1e-9)

    @property
    def epochs(self) -> int:
        """Of the whole run."""
        return round((self.total_steps - 1) / self.steps_per_epoch)

    def warmed_up(self, epochs: float) -> Schedule:
        """`warmup_cosine` over the run; the warm-up is examples * epochs // batch steps (google-research/simclr)."""
        # The small term keeps 0.1 * 10 epochs from being floored to 0 by a float that is one ulp short.
        return warmup_cosine(
            self.peak, warmup_steps=int(self.steps_per_epoch * epochs + 1e-9), total_steps=self.total_steps
        )

    def mask(self) -> Callable[[Pytree], Pytree]:
        """`decayed` with the run's probes."""
        return functools.partial(decayed, probes=self.probes)


Optimizer = tuple[optax.GradientTransformation, Schedule]


def _lars(optim: ConfigDict, run: Horizon) -> Optimizer:
    """SimCLR, BYOL, MoCo v3."""
    schedule = run.warmed_up(optim.warmup_epochs)
    return lars(
        schedule,
        lr_in_momentum=optim.lr_in_momentum,
        weight_decay=optim.weight_decay,
        momentum=optim.momentum,
        trust_coefficient=optim.trust_coefficient,
        mask=run.mask(),
    ), schedule


def _sgd(optim: ConfigDict, run: Horizon) -> Optimizer:
    """Decays kernels alone."""
    schedule = run.warmed_up(optim.warmup_epochs)
    decay = optax.add_decayed_weights(optim.weight_decay, mask=run.mask())
    return optax.chain(decay, optax.sgd(schedule, momentum=optim.momentum, nesterov=optim.nesterov)), schedule


def _adamw(optim: ConfigDict, run: Horizon) -> Optimizer:
    """Decays kernels alone."""
    schedule = run.warmed_up(optim.warmup_epochs)
    return optax.adamw(schedule, weight_decay=optim.weight_decay, mask=run.mask()), schedule


def _torch_sgd(optim: ConfigDict, run: Horizon) -> Optimizer:
    """Decays every parameter, biases and norms too, as PyTorch does unless told otherwise (MoCo v1, v2)."""
    schedule = by_epoch(
        run.peak, steps_per_epoch=run.whole_steps, epochs=run.epochs, milestones=tuple(optim.milestones)
    )
    decay = optax.add_decayed_weights(optim.weight_decay)
    return optax.chain(decay, optax.sgd(learning_rate=schedule, momentum=optim.momentum)), schedule


def _torch_adamw(optim: ConfigDict, run: Horizon) -> Optimizer:
    """Decays every parameter (MoCo v3 on vision transformers)."""
    schedule = run.warmed_up(optim.warmup_epochs)
    return optax.adamw(schedule, weight_decay=optim.weight_decay), schedule


def _deepcluster_sgd(optim: ConfigDict, run: Horizon) -> Optimizer:
    """A constant rate; every parameter decays, and what a clustering begins anew has no momentum."""
    schedule = optax.constant_schedule(run.peak)

    def lasting(params: Pytree) -> Pytree:
        return {
            name: jax.tree.map(lambda _, old=name not in run.restarted: old, branch)
            for name, branch in params.items()
        }

    return optax.chain(
        optax.add_decayed_weights(optim.weight_decay),
        optax.masked(optax.trace(optim.momentum), lasting),
        optax.scale_by_learning_rate(schedule),
    ), schedule


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


def _timm_adamw(optim: ConfigDict, run: Horizon) -> Optimizer:
    """DeiT."""
    schedule = _timm_schedule(optim, run)
    mask = functools.partial(timm_decayed, distillation_token=optim.decay_distillation_token)
    return optax.adamw(schedule, weight_decay=optim.weight_decay, mask=mask), schedule


def _timm_sgd(optim: ConfigDict, run: Horizon) -> Optimizer:
    """DeiT's ablation."""
    schedule = _timm_schedule(optim, run)
    mask = functools.partial(timm_decayed, distillation_token=optim.decay_distillation_token)
    decay = optax.add_decayed_weights(optim.weight_decay, mask=mask)
    return optax.chain(decay, optax.sgd(schedule, momentum=optim.momentum, nesterov=True)), schedule


OPTIMIZERS: dict[str, Callable[[ConfigDict, Horizon], Optimizer]] = {
    "lars": _lars,
    "sgd": _sgd,
    "adamw": _adamw,
    "torch_sgd": _torch_sgd,
    "torch_adamw": _torch_adamw,
    "deepcluster_sgd": _deepcluster_sgd,
    "timm_adamw": _timm_adamw,
    "timm_sgd": _timm_sgd,
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
    """The optimizer of a config's `optim`, and its learning-rate schedule (for the logs).

    Args:
        optim: `name`, a key of OPTIMIZERS, `learning_rate`, `scaling`, and what that optimizer reads.
        batch_size: the global batch, which scales the learning rate.
        steps_per_epoch, total_steps, probes, restarted: see Horizon.

    Raises:
        ValueError: an unknown name or scaling.
    """
    if optim.name not in OPTIMIZERS:
        raise ValueError(f"optim.name={optim.name!r} is not one of {', '.join(OPTIMIZERS)}")
    peak = scaled_learning_rate(optim.learning_rate, optim.scaling, batch_size)
    return OPTIMIZERS[optim.name](optim, Horizon(peak, steps_per_epoch, total_steps, probes, restarted))
