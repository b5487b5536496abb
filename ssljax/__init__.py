"""ssljax: data-efficient and self-supervised image learning in JAX, one readable file per paper.

network = ssljax.load("runs/digits")                  # a run's folder
features = network.encode(["a.png", "b.png"])         # float32 [2, D]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssljax.network import Network

__version__ = "0.1.0"
__all__ = ["load"]


def load(workdir: str, stage: str = "") -> Network:
    """The trained network in a run's folder, see `ssljax.network.load`."""
    from ssljax import network  # JAX is imported here, not with ssljax

    return network.load(workdir, stage)
