"""A network that follows another: the exponential moving average of parameters, and its decay schedule."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Pytree = Any


class Ema(NamedTuple):
    """The moving average of a whole network, parameters and running statistics (DeiT, Noisy Student)."""

    params: Pytree
    model_state: Pytree


def follow(params: Pytree, model_state: Pytree) -> Ema:
    """Start a moving average at the network itself. It holds copies, because the train step donates both."""
    return jax.tree.map(jnp.copy, Ema(params, model_state))


def backbone(average: Ema | tuple[()], params: Pytree, model_state: Pytree) -> tuple[Pytree, Pytree]:
    """The `evaluated` of a method that may keep an average: its encoder, or the network's own without one."""
    if isinstance(average, Ema):
        params, model_state = average
    return params["encoder"], model_state["encoder"]


def update(target: Pytree, online: Pytree, decay: jax.Array | float) -> Pytree:
    """Move a target towards the online network: decay * target + (1 - decay) * online, leaf by leaf.

    This is equation 2 of MoCo (arXiv 1911.05722) and equation 1 of BYOL (arXiv 2006.07733). Every parameter
    takes part, biases and the gains of normalisation too. Running statistics do not: they come from the
    target's own forward passes, so keep them out of both trees.

    Args:
        target: the target's parameters. Keep them float32: late in a run 1 - decay falls to 1e-10, which
            bfloat16 would round away.
        online: the same tree. The caller leaves out all other branches of the online network.
        decay: float32 scalar; 1 keeps the target as it is, 0 makes it equal to `online`.

    Returns:
        The new target. It is computed in float32 and has the target's dtypes.

    Raises:
        ValueError: the two trees differ.
    """
    decay = jnp.asarray(decay, jnp.float32)

    def one(old: jax.Array, new: jax.Array) -> jax.Array:
        return (decay * old.astype(jnp.float32) + (1.0 - decay) * new.astype(jnp.float32)).astype(old.dtype)

    return jax.tree.map(one, target, online)


def warmed_up(step: jax.Array | int, decay: float) -> jax.Array:
    """TensorFlow's decay with `num_updates`: min(decay, (1 + step) / (10 + step)), 0.1 at step 0.

    Args:
        step: int scalar, counted from 0.
        decay: the decay that it rises to.

    Returns:
        float32 scalar.
    """
    step = jnp.asarray(step).astype(jnp.float32)
    return jnp.minimum(jnp.float32(decay), (1.0 + step) / (10.0 + step))


def decay(step: jax.Array | int, *, schedule: str, base: float, total: int) -> jax.Array:
    """The decay at a step.

    Args:
        step: int scalar, counted from 0.
        schedule: "constant" (MoCo v1 and v2, ablations) or "cosine" (BYOL, MoCo v3), see `cosine_decay`.
        base: the constant decay, or the value that the cosine starts from.
        total: the number of steps in the run; ignored if the schedule is constant.

    Returns:
        float32 scalar.

    Raises:
        ValueError: an unknown schedule, or a cosine over no steps.
    """
    if schedule == "constant":
        return jnp.float32(base)
    if schedule == "cosine":
        return cosine_decay(step, total, base)
    raise ValueError(
        f"config.target.schedule={schedule!r} is unknown. "
        "Use 'constant' (MoCo v1, v2) or 'cosine' (MoCo v3, BYOL)."
    )


def cosine_decay(step: jax.Array | int, total: int, base: float) -> jax.Array:
    """1 - (1 - base) * (1 + cos(pi * step / total)) / 2: `base` at step 0, 1 from step `total` on.

    BYOL, section 3.2 (there tau), and the released code of MoCo v3 (there m, with a fraction of an epoch in
    place of the step).

    Args:
        step: int or float, scalar or array.
        total: the number of steps in the run.
        base: the decay at the beginning.

    Returns:
        float32, shaped like `step`.

    Raises:
        ValueError: a run without steps.
    """
    if total < 1:
        raise ValueError(
            f"cosine_decay: a run of total={total} steps has no schedule. It needs at least one batch of "
            "training images, and config.epochs of at least 1."
        )
    progress = jnp.clip(jnp.asarray(step).astype(jnp.float32) / jnp.float32(total), 0.0, 1.0)
    return 1.0 - (1.0 - jnp.float32(base)) * 0.5 * (1.0 + jnp.cos(jnp.float32(math.pi) * progress))
