"""What stands on a backbone: the multi-layer perceptrons that are projectors and predictors, and a linear classifier."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssljax.models.norm import BatchNorm

# What the papers' code starts a linear layer from: PyTorch's U(+-1/sqrt(fan_in)), Haiku's normal of 1/sqrt(fan_in) cut at two sigma, and
# SimCLR's N(0, 0.01^2).
SCHEMES = {
    "uniform": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    "truncated_normal": nn.initializers.lecun_normal(),
    "normal_0.01": nn.initializers.normal(0.01),
}


class MLP(nn.Module):
    """Dense - (BN) - ReLU a hidden layer, then Dense - (BN without offset).

                            layers  hidden_bias  last_bias  norm   last_norm
        SimCLR              1 to 3  False        False      True   True, with a gain
        MoCo v1             1       -            True       -      False
        MoCo v2             2       True         True       False  False
        MoCo v3             2 or 3  False        False      True   True, but not in the predictor on a ResNet
        BYOL                2       True         False      True   False

    SimCLR's norms are not in the paper but in its code (google-research/simclr, tf2/model.py); one layer is the paper's linear head, two
    its non-linear one, three SimCLRv2's.

    Attributes:
        layers: number of Dense layers; 0 returns the input.
        hidden: width of the hidden layers; 0 = as wide as the input.
        dim: width of the output.
        hidden_bias, last_bias: whether the Dense layers have one.
        norm: batch normalisation behind the hidden layers.
        last_norm: batch normalisation behind the last one, without offset.
        last_gain: whether that one has a gain to learn.
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
    last_gain: bool = False
    scheme: str = "uniform"
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    unbiased: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, h: jax.Array, *, train: bool, every_layer: bool = False
    ) -> jax.Array | list[jax.Array]:
        """Features `[B, D]` -> float32 `[B, dim]`.

        Args:
            h: features.
            train: statistics of the batch rather than the running ones.
            every_layer: return `[h, a1, ..., z]` with the hidden layers after their ReLU; SimCLRv2 fine-tunes from a1.
        """
        outputs = [h]
        for layer in range(1, self.layers + 1):
            last = layer == self.layers
            x = nn.Dense(
                self.dim if last else self.hidden or h.shape[-1],
                use_bias=self.last_bias if last else self.hidden_bias,
                dtype=self.dtype,
                kernel_init=SCHEMES[self.scheme],
                name=f"dense{layer}",
            )(outputs[-1])
            if last and self.last_norm and not self.last_gain:
                x = self._standardize(x, f"norm{layer}", train)
            elif self.last_norm if last else self.norm:
                x = BatchNorm(
                    self.bn_momentum,
                    self.bn_epsilon,
                    self.unbiased,
                    use_bias=not last,
                    dtype=self.dtype,
                    name=f"norm{layer}",
                )(x, train=train)
            outputs.append(x if last else nn.relu(x))
        outputs = [x.astype(jnp.float32) for x in outputs]
        return outputs if every_layer else outputs[-1]

    def _standardize(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        """BatchNorm with the constant gain 1 and no offset: PyTorch's `affine=False`."""
        norm = BatchNorm(
            self.bn_momentum, self.bn_epsilon, self.unbiased, use_bias=False, dtype=self.dtype, parent=None
        )
        fresh = lambda: {
            "mean": jnp.zeros(x.shape[-1], jnp.float32),
            "var": jnp.ones(x.shape[-1], jnp.float32),
        }
        running = self.variable("batch_stats", name, fresh)
        variables = {"params": {"scale": jnp.ones(x.shape[-1], jnp.float32)}, "batch_stats": running.value}
        y, after = norm.apply(variables, x, train=train, mutable=["batch_stats"])
        if train and not self.is_initializing():
            running.value = after["batch_stats"]
        return y


class LinearClassifier(nn.Module):
    """Logits in float32. Weights N(0, std^2): 0.01, DeiT's 0.02, or 0 (SimCLR's `zero_init_logits_layer`, for fine-tuning)."""

    num_classes: int
    std: float = 0.01

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """Features `[B, D]` -> logits `[B, num_classes]`."""
        return nn.Dense(
            self.num_classes,
            kernel_init=nn.initializers.normal(self.std),
            precision=jax.lax.Precision.HIGHEST,
            name="dense",
        )(h.astype(jnp.float32))
