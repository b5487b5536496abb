"""Half of AlexNet for one view of an image (CMC, HobbitLong/CMC at 7b227be, models/alexnet.py).

    11x11/4 48, pool | 5x5 128, pool | 3x3 192 | 3x3 192 | 3x3 128, pool | fc 2048 | fc 2048

Batch normalisation and a ReLU follow every layer. Convolutions have no bias. All weights start as PyTorch
draws them by default, U(+-1/sqrt(inputs)), the biases of the fully connected layers too.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssljax.models.conv import conv2d
from ssljax.models.heads import SCHEMES
from ssljax.models.norm import BatchNorm
from ssljax.models.placement import along_batch

FULL = 2048
# Channels, side of the kernel, stride, padding, and whether a 3x3/2 max-pool follows.
CONVS = (
    (48, 11, 4, 2, True),
    (128, 5, 1, 2, True),
    (192, 3, 1, 1, False),
    (192, 3, 1, 1, False),
    (128, 3, 1, 1, True),
)


def torch_dense(features: int, inputs: int, *, name: str, dtype: jnp.dtype = jnp.float32) -> nn.Dense:
    """A linear layer that starts as PyTorch's does, its bias included."""
    bound = inputs**-0.5

    def bias(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(features, dtype=dtype, kernel_init=SCHEMES["uniform"], bias_init=bias, name=name)


class HalfAlexNet(nn.Module):
    """The network of one view, without its embedding.

    Attributes:
        bn_momentum, bn_epsilon: see BatchNorm; running variances are unbiased, as PyTorch's.
        dtype: of the computation; parameters and running statistics are float32.
    """

    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images `[B, H, W, C]` -> the second fully connected layer after its ReLU `[B, 2048]`, float32.

        The output of each convolution's block, after the pool if there is one, is sown in the collection
        "intermediates" as `after_conv1`, ... `after_conv5`, that of the first fully connected layer as
        `after_fc6`.
        """
        if min(x.shape[1:3]) < 63:
            raise ValueError(
                f"images of {x.shape[1]}x{x.shape[2]} pixels do not reach the last pool of AlexNet: set "
                "config.data.image_size to 63 or more, or use a ResNet"
            )
        for number, (features, size, stride, padding, pool) in enumerate(CONVS, start=1):
            conv = nn.Conv(
                features,
                (size, size),
                stride,
                padding=((padding, padding),) * 2,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=SCHEMES["uniform"],
                conv_general_dilated=conv2d if jax.device_count() == 1 else None,
                name=f"conv{number}",
            )
            x = nn.relu(self._norm(number)(conv(x), train=train))
            if pool:
                x = nn.max_pool(x, (3, 3), (2, 2))
            x = along_batch(x)
            self.sow("intermediates", f"after_conv{number}", x)

        x = x.reshape(x.shape[0], -1)
        for number in (6, 7):
            dense = torch_dense(FULL, x.shape[1], dtype=self.dtype, name=f"fc{number}")
            x = nn.relu(self._norm(number)(dense(x), train=train))
            if number == 6:
                self.sow("intermediates", "after_fc6", x)
        return x.astype(jnp.float32)

    def _norm(self, number: int) -> BatchNorm:
        return BatchNorm(
            self.bn_momentum, self.bn_epsilon, unbiased=True, dtype=self.dtype, name=f"norm{number}"
        )
