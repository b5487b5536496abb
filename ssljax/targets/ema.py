"""A network that follows another: the exponential moving average of parameters, and the schedule of its decay."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Pytree = Any


class Ema(NamedTuple):
    """The moving average of a whole network: parameters and running statistics alike (DeiT, Noisy Student)."""

    params: Pytree
    model_state: Pytree


def follow(params: Pytree, model_state: Pytree) -> Ema:
    """A follower that begins as the network itself: copies, because the train step donates both."""
    return jax.tree.map(jnp.copy, Ema(params, model_state))


def update(target: Pytree, online: Pytree, decay: jax.Array | float) -> Pytree:
    """decay * target + (1 - decay) * online, leaf by leaf, in float32 and returned in the target's dtype.

    MoCo's equation 2 (arXiv 1911.05722) and BYOL's equation 1 (arXiv 2006.07733): every parameter takes part, biases and the gains of
    normalisation too. Running statistics do not: they come from the target's own forward passes, so keep them out of both trees.

    Args:
        target: the follower's parameters. Keep them float32: 1 - decay falls to 1e-10 late in a run, which bfloat16 would round away.
        online: the same tree; other branches of the online network must be left out by the caller.
        decay: float32 scalar; 1 keeps the target as it is, 0 makes it equal to `online`.

    Raises:
        ValueError: the two trees differ.
    """
    decay = jnp.asarray(decay, jnp.float32)

    def one(old: jax.Array, new: jax.Array) -> jax.Array:
        return (decay * old.astype(jnp.float32) + (1.0 - decay) * new.astype(jnp.float32)).astype(old.dtype)

    return jax.tree.map(one, target, online)


def decay(step: jax.Array | int, *, schedule: str, base: float, total: int) -> jax.Array:
    """The decay of a step, counted from 0, float32.

    Args:
        step: int scalar.
        schedule: "constant" (MoCo v1 and v2, ablations) or "cosine" (BYOL, MoCo v3), see `cosine_decay`.
        base: the decay, or what it starts from.
        total: the steps of the run; not looked at when constant.

    Raises:
        ValueError: an unknown schedule, or a cosine over no steps.
    """
    if schedule == "constant":
        return jnp.float32(base)
    if schedule == "cosine":
        return cosine_decay(step, total, base)
    raise ValueError(
        f"config.target.schedule={schedule!r} is unknown. Use 'constant' (MoCo v1, v2) or 'cosine' (MoCo v3, BYOL)."
    )


def cosine_decay(step: jax.Array | int, total: int, base: float) -> jax.Array:
    """1 - (1 - base) * (1 + cos(pi * step / total)) / 2, float32: `base` at step 0, 1 at `total` and from then on.

    BYOL, section 3.2 (there tau), and MoCo v3's released code (there m, with a fraction of an epoch for the step).

    Args:
        step: int or float scalar or array.
        total: the steps of the run.
        base: the decay at the beginning.

    Raises:
        ValueError: a run without steps.
    """
    if total < 1:
        raise ValueError(
            f"cosine_decay: a run of total={total} steps has no schedule: it needs at least one batch of training "
            "images, and config.epochs of at least 1"
        )
    progress = jnp.clip(jnp.asarray(step).astype(jnp.float32) / jnp.float32(total), 0.0, 1.0)
    return 1.0 - (1.0 - jnp.float32(base)) * 0.5 * (1.0 + jnp.cos(jnp.float32(math.pi) * progress))
