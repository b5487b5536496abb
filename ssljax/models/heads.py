"""What stands on a backbone: the projection head of SimCLR and a linear classifier."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssljax.models.norm import BatchNorm


class ProjectionHead(nn.Module):
    """SimCLR's g(h): Dense (no bias) - BN - ReLU a hidden layer, and Dense - BN without offset at the end.

    The norms are not in the paper but in its code (google-research/simclr, tf2/model.py). One layer is the paper's linear
    head, two its non-linear one, three SimCLRv2's; none returns h itself.

    Attributes:
        layers: number of Dense layers.
        hidden: width of the hidden layers; 0 = as wide as the input.
        dim: width of the output.
        unbiased: see BatchNorm.
        dtype: of the computation.
    """

    layers: int
    hidden: int
    dim: int
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    unbiased: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array, *, train: bool, every_layer: bool = False) -> jax.Array | list[jax.Array]:
        """Projects features `[B, D]` to `z [B, dim]` in float32.

        Args:
            h: features.
            train: statistics of the batch rather than the running ones.
            every_layer: return `[h, a1, ..., z]` with the hidden layers after their ReLU; SimCLRv2 fine-tunes from a1.
        """
        outputs = [h]
        for layer in range(1, self.layers + 1):
            last = layer == self.layers
            x = nn.Dense(self.dim if last else self.hidden or h.shape[-1], use_bias=False, dtype=self.dtype,
                         kernel_init=nn.initializers.normal(0.01), name=f"dense{layer}")(outputs[-1])
            x = BatchNorm(self.bn_momentum, self.bn_epsilon, self.unbiased, use_bias=not last, dtype=self.dtype, name=f"norm{layer}")(
                x, train=train)
            outputs.append(x if last else nn.relu(x))
        outputs = [x.astype(jnp.float32) for x in outputs]
        return outputs if every_layer else outputs[-1]


class LinearClassifier(nn.Module):
    """Logits in float32. Weights N(0, 0.01^2), or zero (SimCLR's `zero_init_logits_layer`, for fine-tuning and linear probes)."""

    num_classes: int
    zero_init: bool = False

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """Features `[B, D]` -> logits `[B, num_classes]`."""
        init = nn.initializers.zeros if self.zero_init else nn.initializers.normal(0.01)
        return nn.Dense(self.num_classes, kernel_init=init, name="dense")(h.astype(jnp.float32))
