"""Heads on a backbone: multi-layer perceptrons as projectors and predictors, and a linear classifier."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssljax.models.norm import BatchNorm

TRUNCATED_STD = 0.87962566103423978  # of N(0, 1) that is cut at +-2

# Initialisations of a layer in the papers' code: PyTorch's U(+-1/sqrt(fan_in)), Haiku's N(0, 1/fan_in) cut at
# +-2/sqrt(fan_in), SimCLR's N(0, 0.01^2), and zeros for its linear classifiers. JAX gives a truncated normal
# the variance asked for, while Haiku lets the cut reduce it.
SCHEMES = {
    "uniform": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    "truncated_normal": nn.initializers.variance_scaling(TRUNCATED_STD**2, "fan_in", "truncated_normal"),
    "normal_0.01": nn.initializers.normal(0.01),
    "zeros": nn.initializers.zeros,
    "fan_out_uniform": nn.initializers.variance_scaling(
        1 / 3, "fan_out", "uniform"
    ),  # EfficientNet's classifier
}


class MLP(nn.Module):
    """Dense - (BN) - ReLU per hidden layer, then Dense - (BN without offset).

                            layers  hidden_bias  last_bias  norm   last_norm
        SimCLR              1 to 3  False        False      True   True, with a gain
        MoCo v1             1       -            True       -      False
        MoCo v2             2       True         True       False  False
        MoCo v3             2 or 3  False        False      True   True, but not in the predictor on a ResNet
        BYOL                2       True         False      True   False

    SimCLR's norms are not in the paper but in its code (google-research/simclr, tf2/model.py). One layer is
    the paper's linear head, two its non-linear one, three SimCLRv2's.

    Attributes:
        layers: number of Dense layers; 0 returns the input.
        hidden: width of the hidden layers; 0 means as wide as the input.
        dim: width of the output.
        hidden_bias, last_bias: whether the hidden and the last Dense layers have a bias.
        norm: batch normalisation after the hidden layers.
        last_norm: batch normalisation without offset after the last layer.
        last_gain: whether that last norm learns a gain.
        scheme: initialisation of the kernels, a key of SCHEMES.
        built: how many layers there are, from the first; -1: all. With fewer, the output is that of a hidden
            layer after its ReLU, and `dim` and the last norm play no part.
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
    built: int = -1
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    unbiased: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, h: jax.Array, *, train: bool, every_layer: bool = False
    ) -> jax.Array | list[jax.Array]:
        """Features `[B, D]` -> float32 `[B, dim]`, or `[B, hidden]` of the last hidden layer that is built.

        Args:
            h: features.
            train: normalise with the statistics of the batch rather than the running ones.
            every_layer: return `[h, a1, ..., z]` with the hidden layers after their ReLU; SimCLRv2 fine-tunes
                from a1.
        """
        hidden = self.hidden or h.shape[-1]
        built = self.layers if self.built < 0 else self.built
        outputs = [h]
        for layer in range(1, min(built + 1, self.layers)):
            x = self._dense(layer, hidden, self.hidden_bias)(outputs[-1])
            if self.norm:
                x = self._batch_norm(layer, use_bias=True)(x, train=train)
            outputs.append(nn.relu(x))

        if built == self.layers > 0:
            x = self._dense(self.layers, self.dim, self.last_bias)(outputs[-1])
            if self.last_norm and self.last_gain:
                x = self._batch_norm(self.layers, use_bias=False)(x, train=train)
            elif self.last_norm:
                x = self._standardize(x, f"norm{self.layers}", train)
            outputs.append(x)

        outputs = [x.astype(jnp.float32) for x in outputs]
        return outputs if every_layer else outputs[-1]

    def _dense(self, layer: int, features: int, use_bias: bool) -> nn.Dense:
        return nn.Dense(
            features,
            use_bias=use_bias,
            dtype=self.dtype,
            kernel_init=SCHEMES[self.scheme],
            name=f"dense{layer}",
        )

    def _batch_norm(self, layer: int, *, use_bias: bool) -> BatchNorm:
        return BatchNorm(
            self.bn_momentum,
            self.bn_epsilon,
            self.unbiased,
            use_bias=use_bias,
            dtype=self.dtype,
            name=f"norm{layer}",
        )

    def _standardize(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        """BatchNorm with the constant gain 1 and no offset: PyTorch's `affine=False`."""
        norm = BatchNorm(
            self.bn_momentum, self.bn_epsilon, self.unbiased, use_bias=False, dtype=self.dtype, parent=None
        )
        channels = x.shape[-1]
        fresh = lambda: {"mean": jnp.zeros(channels, jnp.float32), "var": jnp.ones(channels, jnp.float32)}
        running = self.variable("batch_stats", name, fresh)
        gain = {"scale": jnp.ones(channels, jnp.float32)}
        variables = {"params": gain, "batch_stats": running.value}
        y, after = norm.apply(variables, x, train=train, mutable=["batch_stats"])
        if train and not self.is_initializing():
            running.value = after["batch_stats"]
        return y


class LinearClassifier(nn.Module):
    """A linear layer that gives logits in float32.

    Attributes:
        num_classes: number of logits.
        std: of the initial weights N(0, std^2): 0.01, DeiT's 0.02, or 0 for fine-tuning (SimCLR's
            `zero_init_logits_layer`).
        scheme: initialisation of the weights instead, a key of SCHEMES; "" for N(0, std^2).
        bias: the initial bias.
    """

    num_classes: int
    std: float = 0.01
    scheme: str = ""
    bias: float = 0.0

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """Features `[B, D]` -> logits `[B, num_classes]`."""
        dense = nn.Dense(
            self.num_classes,
            kernel_init=SCHEMES[self.scheme] if self.scheme else nn.initializers.normal(self.std),
            bias_init=nn.initializers.constant(self.bias),
            precision=jax.lax.Precision.HIGHEST,
            name="dense",
        )
        return dense(h.astype(jnp.float32))
