"""The heads of MoCo and BYOL: a multi-layer perceptron, with or without batch normalisation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssljax.models.norm import BatchNorm

# What the papers' frameworks start a linear layer from: PyTorch U(+-1/sqrt(fan_in)), Haiku a normal of 1/sqrt(fan_in) cut at two sigma.
SCHEMES = {"uniform": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), "truncated_normal": nn.initializers.lecun_normal()}


class MLP(nn.Module):
    """Dense - (BN) - ReLU a hidden layer, then Dense - (BN without gain and offset).

                            layers  hidden_bias  last_bias  norm   last_norm
        MoCo v1             1       -            True       -      False
        MoCo v2             2       True         True       False  False
        MoCo v3             2 or 3  False        False      True   True, but not in the predictor on a ResNet
        BYOL                2       True         False      True   False

    Attributes:
        layers: number of Dense layers; 0 returns the input.
        hidden: width of the hidden layers; 0 = as wide as the input.
        dim: width of the output.
        hidden_bias, last_bias: whether the Dense layers have one.
        norm: batch normalisation behind the hidden layers.
        last_norm: batch normalisation behind the last one, without parameters.
        scheme: a key of SCHEMES, the initialisation of the kernels.
        unbiased: see BatchNorm.
        dtype: of the computation.
    """

    layers: int
    hidden: int
    dim: int
    hidden_bias: bool
    last_bias: bool
    norm: bool
    last_norm: bool
    scheme: str = "uniform"
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    unbiased: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array, *, train: bool) -> jax.Array:
        """Features `[B, D]` -> float32 `[B, dim]`."""
        x = h
        for layer in range(1, self.layers + 1):
            last = layer == self.layers
            x = nn.Dense(self.dim if last else self.hidden or h.shape[-1], use_bias=self.last_bias if last else self.hidden_bias,
                         dtype=self.dtype, kernel_init=SCHEMES[self.scheme], name=f"dense{layer}")(x)
            if self.norm and not last:
                x = BatchNorm(self.bn_momentum, self.bn_epsilon, self.unbiased, dtype=self.dtype, name=f"norm{layer}")(x, train=train)
            if self.last_norm and last:
                x = self._standardize(x, f"norm{layer}", train)
            x = x if last else nn.relu(x)
        return x.astype(jnp.float32)

    def _standardize(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        """BatchNorm with the constant gain 1 and no offset: PyTorch's `affine=False`."""
        norm = BatchNorm(self.bn_momentum, self.bn_epsilon, self.unbiased, use_bias=False, dtype=self.dtype, parent=None)
        fresh = lambda: {"mean": jnp.zeros(x.shape[-1], jnp.float32), "var": jnp.ones(x.shape[-1], jnp.float32)}
        running = self.variable("batch_stats", name, fresh)
        variables = {"params": {"scale": jnp.ones(x.shape[-1], jnp.float32)}, "batch_stats": running.value}
        y, after = norm.apply(variables, x, train=train, mutable=["batch_stats"])
        if train and not self.is_initializing():
            running.value = after["batch_stats"]
        return y
