"""One network per view of an image, as a single encoder (CMC, arXiv 1906.05849).

A view is some channels of the input, or what a fixed filter makes of them:

    luminance     the first channel
    chrominance   the second and the third channel
    all           all channels
    FIRST:END     the channels from FIRST up to and without END; NAME=FIRST:END gives them a name
    gradient      both Sobel gradients of the first channel
    low           all channels, averaged over squares of 4x4 pixels

All views keep the size of the image, so that their networks are equal but for the first layer.
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from ssljax.models.alexnet_half import torch_dense
from ssljax.models.sobel import sobel

SQUARE = 4  # pixels per side that the view `low` averages over


def view_name(view: str) -> str:
    """The name of a view among parameters and metrics: "0:3" becomes "channels_0_to_3", "rgb=0:3" "rgb"."""
    name, named, _ = view.partition("=")
    if named:
        return name
    found = re.fullmatch(r"(\d+):(\d+)", view)
    return f"channels_{found[1]}_to_{found[2]}" if found else view


def view_of(x: jax.Array, view: str) -> jax.Array:
    """The pixels of one view.

    Args:
        x: normalised images [B, H, W, C].
        view: its name, see the top of this file.

    Returns:
        [B, H, W, channels of the view].

    Raises:
        ValueError: the name is unknown, or the images do not have these channels or this size.
    """
    channels = x.shape[-1]
    if view == "luminance":
        return x[..., :1]
    if view == "chrominance":
        if channels < 2:
            raise ValueError(
                "config.model.split has the view 'chrominance', and the images are grey: use luminance, "
                "gradient and low for them"
            )
        return x[..., 1:3]
    if view == "all":
        return x
    if view == "gradient":
        return sobel(x[..., :1])
    if view == "low":
        return _low(x)
    found = re.fullmatch(r"(?:\w+=)?(\d+):(\d+)", view)
    if found is None:
        raise ValueError(
            f"config.model.split has the view {view!r}: it must be luminance, chrominance, gradient, low, "
            "all, or channels such as 0:3 or depth=3:4"
        )
    first = int(found[1])
    end = int(found[2])
    if not first < end <= channels:
        raise ValueError(
            f"config.model.split has the channels {view}, and images have {channels}: use FIRST:END with "
            f"FIRST < END <= {channels}"
        )
    return x[..., first:end]


def _low(x: jax.Array) -> jax.Array:
    batch, height, width, channels = x.shape
    if height % SQUARE or width % SQUARE:
        raise ValueError(
            f"config.model.split has the view 'low', which averages squares of {SQUARE} pixels: "
            f"config.data.image_size={height} must be a multiple of {SQUARE}"
        )
    squares = x.reshape(batch, height // SQUARE, SQUARE, width // SQUARE, SQUARE, channels)
    mean = squares.mean((2, 4), keepdims=True)
    return jnp.broadcast_to(mean, squares.shape).reshape(x.shape)


def pairs_of(count: int, graph: str) -> list[tuple[int, int]]:
    """The pairs (i, j), i < j, of `count` views: the first with every other ("core"), or all ("full")."""
    return [(i, j) for i in range(count) for j in range(i + 1, count) if graph == "full" or i == 0]


def both_ways(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The directions of the pairs."""
    return [*pairs, *((j, i) for i, j in pairs)]


def features_of(h: jax.Array, config: ConfigDict) -> jax.Array:
    """The features that evaluation reads: those of `evaluate.view`, or of all views side by side.

    Args:
        h: features of a MultiView `[B, V * D]`.
        config: of the run.
    """
    split = tuple(config.model.split)
    if not config.evaluate.view:
        return h
    names = [view_name(view) for view in split]
    return jnp.split(h, len(split), axis=-1)[names.index(view_name(config.evaluate.view))]


def check_views(config: ConfigDict) -> None:
    """Refuse settings that a method of several views cannot be trained with.

    Raises:
        ValueError: names the setting and the values that fit.
    """
    split = tuple(config.model.split)
    if len(split) < 2:
        raise ValueError(
            f"config.model.split={split}: {config.method} relates views, and needs at least two. Set "
            "--config.model.split=luminance,chrominance, or luminance,gradient for grey images"
        )
    names = {view_name(view) for view in split}
    if config.evaluate.view and view_name(config.evaluate.view) not in names:
        raise ValueError(
            f"config.evaluate.view={config.evaluate.view!r} is not one of config.model.split: use one of "
            f"{', '.join(split)}, or leave it empty for all side by side"
        )
    if config.batch_size % config.bn.groups:
        raise ValueError(
            f"config.bn.groups={config.bn.groups} does not divide batch_size={config.batch_size}: choose a "
            "divisor, or 1 for statistics of the whole batch"
        )


class MultiView(nn.Module):
    """A network per view. Each has parameters and batch statistics of its own.

    Attributes:
        net: the network of a view; it is built anew for every view.
        split: the names of the views.
    """

    net: nn.Module
    split: tuple[str, ...]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images `[B, H, W, C]` -> the features of all views side by side `[B, V * D]`, float32."""
        parts = []
        for view in self.split:
            net = self.net.clone(parent=self, name=view_name(view))
            parts.append(net(view_of(x, view), train=train))
        return jnp.concatenate(parts, axis=-1)


class ViewHeads(nn.Module):
    """A linear embedding of each view's features, with PyTorch's default initialisation.

    Attributes:
        split: the names of the views.
        dim: of an embedding.
    """

    split: tuple[str, ...]
    dim: int

    @nn.compact
    def __call__(self, h: jax.Array, *, train: bool) -> jax.Array:
        """Features of a MultiView `[B, V * D]` -> float32 `[B, V, dim]`, not normalised."""
        del train
        parts = jnp.split(h, len(self.split), axis=-1)
        embedded = [
            torch_dense(self.dim, part.shape[-1], name=view_name(view))(part)
            for view, part in zip(self.split, parts, strict=True)
        ]
        return jnp.stack(embedded, axis=1)
