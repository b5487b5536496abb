"""BEiT's optimizer, AdamW with a rate per layer (microsoft/unilm at 768a3c8, beit/optim_factory.py).

    g      <- g min(1, clip / |g|)                                global norm
    w      <- w - lr d^(L + 1 - layer) (Adam(g) + weight_decay w)

Layer 0 has the patch projection, the class and mask tokens and the positions; block i (from 1 to L) is layer
i; all else (the last norm, the head, a table that all blocks share) is layer L + 1. The rate multiplies the
decoupled weight decay too.
"""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import optax

from ssljax.types import Pytree

FIRST = ("patch", "class_token", "mask_token", "positions")  # names of layer 0
NOT_DECAYED = ("positions", "class_token")
TABLES = "relative_bias"  # the tables of all blocks are one leaf [L, ...], or one table that they share


def adamw(
    schedule: optax.Schedule, *, b2: float, weight_decay: float, clip: float, layer_decay: float
) -> optax.GradientTransformation:
    """Build the optimizer.

    Args:
        schedule: step -> learning rate of the last layer.
        b2: decay of the squared gradients.
        weight_decay: of the leaves named by `decayed`.
        clip: largest global norm of the gradient; 0: any.
        layer_decay: d, between neighbouring layers; 1: one rate for all.
    """
    parts = [optax.clip_by_global_norm(clip)] if clip else []
    parts += [optax.scale_by_adam(b2=b2), optax.add_decayed_weights(weight_decay, mask=decayed)]
    if layer_decay != 1.0:
        parts.append(_by_layer(layer_decay))
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule))


def decayed(params: Pytree) -> Pytree:
    """Mark the leaves that BEiT's code decays: all but vectors, positions and the class token.

    The mask token and the tables of relative positions are decayed.

    Returns:
        A tree of bools like `params`.
    """

    def rule(path: tuple, leaf: jax.Array) -> bool:
        name = path[-1].key
        return name not in NOT_DECAYED and leaf.ndim > 1

    return jax.tree_util.tree_map_with_path(rule, params)


def scales(params: Pytree, layer_decay: float) -> Pytree:
    """The factor of the learning rate of every leaf, float32: a scalar, or [L, 1, ...] for stacked tables.

    Args:
        params: the parameters; `block0`, `block1`, ... are the blocks.
        layer_decay: d.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    blocks = 1 + max((_block(path) for path in paths), default=-1)

    def factor(path: tuple, leaf: jax.Array) -> jax.Array:
        names = {entry.key for entry in path}
        if names & set(FIRST):
            layer = jnp.float32(0)
        elif _block(path) >= 0:
            layer = jnp.float32(_block(path) + 1)
        elif TABLES in names and leaf.ndim == 3:
            layer = jnp.arange(1, blocks + 1, dtype=jnp.float32)[:, None, None]
        else:
            layer = jnp.float32(blocks + 1)
        return jnp.float32(layer_decay) ** (blocks + 1 - layer)

    return jax.tree_util.tree_map_with_path(factor, params)


def _block(path: tuple) -> int:
    """The number of the block that a leaf belongs to, from 0; -1 for none."""
    for entry in path:
        match = re.fullmatch(r"block(\d+)", str(entry.key))
        if match:
            return int(match[1])
    return -1


def _by_layer(layer_decay: float) -> optax.GradientTransformation:
    def update(updates: Pytree, params: Pytree | None = None) -> Pytree:
        assert params is not None
        return jax.tree.map(lambda u, factor: u * factor, updates, scales(params, layer_decay))

    return optax.stateless(update)


def cosine(
    peak: float, *, warmup_steps: int, total_steps: int, start: float, end: float, share: float
) -> optax.Schedule:
    """BEiT's learning rate: a warm-up that reaches the peak, then half a cosine that begins with it again.

        step i of W warm-up steps   start + (peak - start) i / (W - 1)
        step W + i of T more        end + (peak - end) (1 + cos(pi i / T)) / 2

    Args:
        peak: the largest learning rate.
        warmup_steps: W; 0 starts at the peak.
        total_steps: length of the run, W + T.
        start: the learning rate at step 0, if there is a warm-up.
        end: what the cosine approaches.
        share: the part of the run after which the learning rate stays at `end`; 1 for BEiT.

    Raises:
        ValueError: the warm-up is longer than the cosine leaves room for.
    """
    length = round(share * total_steps) - warmup_steps
    if length < 0:
        raise ValueError(
            f"warm-up of {warmup_steps} steps does not fit a run of {total_steps}: "
            "lower optim.warmup_epochs, train longer (epochs, or steps where set), or use a smaller batch"
        )

    def schedule(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        warm = start + (peak - start) * step / max(warmup_steps - 1, 1)
        progress = jnp.clip((step - warmup_steps) / max(length, 1), 0.0, 1.0)
        falling = end + 0.5 * (peak - end) * (1.0 + jnp.cos(jnp.float32(math.pi) * progress))
        return jnp.where(step < warmup_steps, warm, falling)

    return schedule
