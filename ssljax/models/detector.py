"""The networks of a two-stage detector on a residual network: Faster R-CNN with a C4 backbone.

    image -> all groups of the ResNet but the last -> map (stride 16 for a ResNet-50)
    map   -> proposal head -> a logit and four deltas per anchor
    box   -> RoIAlign, 14 x 14 cells of the map -> last group of the ResNet -> norm -> mean -> box head

The last group runs on regions, so a whole ResNet is the backbone of a detector as it is. Faster R-CNN: Ren et
al., 2015, arXiv 1506.01497; conventions and initialisation are those of facebookresearch/detectron2 at
02b5c4e, the norm after the last group is that of facebookresearch/moco, detection/train_net.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssljax.models.apply import forward, infer, initialise
from ssljax.models.boxes import anchors
from ssljax.models.norm import BatchNorm
from ssljax.models.resnet import ResNet, mean_of_valid, stride_of, valid_pixels
from ssljax.models.roi import roi_align

Pytree = Any


class ProposalHead(nn.Module):
    """The region proposal network: a 3x3 convolution as wide as its input, and two 1x1 convolutions.

    Attributes:
        anchors: per cell.
        dtype: of the first convolution; logits and deltas are computed in float32.
    """

    anchors: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """A map `[B, h, w, C]` -> `logits` [B, N] and `deltas` [B, N, 4], float32.

        The N = h w A anchors are ordered by row, column and anchor of the cell, as those of `boxes.anchors`.
        """
        del train
        normal = nn.initializers.normal(0.01)
        same = ((1, 1), (1, 1))
        x = nn.Conv(x.shape[-1], (3, 3), padding=same, dtype=self.dtype, kernel_init=normal, name="conv")(x)
        x = nn.relu(x).astype(jnp.float32)
        last = partial(nn.Conv, kernel_size=(1, 1), kernel_init=normal, precision=jax.lax.Precision.HIGHEST)
        logits = last(self.anchors, name="objectness")(x)
        deltas = last(4 * self.anchors, name="deltas")(x)
        return {"logits": logits.reshape(len(x), -1), "deltas": deltas.reshape(len(x), -1, 4)}


class BoxHead(nn.Module):
    """What follows the last group of the ResNet: a norm, the mean over the region, two linear layers.

    Attributes:
        classes: K, without the background.
        bn_momentum, bn_epsilon, unbiased: see BatchNorm.
        dtype: of the norm; logits and deltas are computed in float32.
    """

    classes: int
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    unbiased: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> dict[str, jax.Array]:
        """Maps of regions `[R, h, w, C]` -> `logits` [R, K + 1] and `deltas` [R, K, 4], float32.

        The background is the last class. `mask` bool [R, 1, 1, 1] is False for regions that do not exist.
        """
        norm = BatchNorm(self.bn_momentum, self.bn_epsilon, self.unbiased, dtype=self.dtype, name="norm")
        x = mean_of_valid(norm(x, train=train, mask=mask), None)
        dense = partial(nn.Dense, precision=jax.lax.Precision.HIGHEST)
        normal = nn.initializers.normal
        logits = dense(self.classes + 1, kernel_init=normal(0.01), name="classes")(x)
        deltas = dense(4 * self.classes, kernel_init=normal(0.001), name="boxes")(x)
        return {"logits": logits, "deltas": deltas.reshape(len(x), -1, 4)}


class Detector(NamedTuple):
    """The networks of a detector and how they are put together.

    `params` and `model_state` have the branches encoder (the whole ResNet), rpn and head.

    Attributes:
        encoder: the backbone.
        rpn: the proposal head.
        head: the box head.
        sizes: of the anchors, square roots of their areas in pixels.
        ratios: of the anchors, height over width.
        cells: side of a region's map.
    """

    encoder: ResNet
    rpn: ProposalHead
    head: BoxHead
    sizes: tuple[float, ...]
    ratios: tuple[float, ...]
    cells: int = 14

    @property
    def stride(self) -> int:
        """Pixels of the image per cell of the map."""
        return stride_of(self.encoder, len(self.encoder.layers) - 1)


def initialise_detector(net: Detector, key: jax.Array, channels: int) -> tuple[Pytree, Pytree]:
    """Fresh (params, model_state)."""
    keys = jax.random.split(key, 3)
    side = 4 * stride_of(net.encoder, len(net.encoder.layers))  # any size would do
    encoder, statistics, features = initialise(net.encoder, keys[0], (side, side, channels))
    body = len(net.encoder.layers) - 1
    width = net.encoder.widths[body - 1] * net.encoder.block.expansion
    rpn = net.rpn.init(keys[1], jnp.zeros((1, 2, 2, width), jnp.float32), train=False)
    head = net.head.init(keys[2], features[:, None, None], train=False)
    params = {"encoder": encoder, "rpn": rpn["params"], "head": head["params"]}
    return params, {"encoder": statistics, "rpn": {}, "head": head["batch_stats"]}


def _run(
    module: nn.Module, name: str, params: Pytree, state: Pytree, x: jax.Array, train: bool, **call: Any
) -> tuple[Any, Pytree]:
    """One network of the detector, and the state of all after it."""
    if not train:
        return infer(module, params[name], state[name], x, **call), state
    y, statistics = forward(module, params[name], state[name], x, **call)
    return y, {**state, name: statistics}


def feature_map(
    net: Detector, params: Pytree, state: Pytree, x: jax.Array, valid: jax.Array, *, train: bool
) -> tuple[jax.Array, Pytree]:
    """The map that anchors lie on and regions are taken from.

    Args:
        net: the networks.
        params: their parameters.
        state: their running statistics.
        x: normalised images [B, H, W, C].
        valid: int32 [B, 2], height and width of each image; what lies outside has no influence.
        train: normalise by the statistics of the batch, and update the running ones.

    Returns:
        [B, h, w, C] with h = ceil(H / stride), and the state.
    """
    x = jnp.where(valid_pixels(valid, *x.shape[1:3]), x, 0.0)
    part = (0, len(net.encoder.layers) - 1)
    return _run(net.encoder, "encoder", params, state, x, train, size=valid, part=part)


class Anchors(NamedTuple):
    """The anchors of a batch, and what the proposal head says of them.

    Attributes:
        boxes: float32 [N, 4], the same for all images.
        inside: bool [B, N], whether the centre of an anchor lies in the image.
        logits: float32 [B, N].
        deltas: float32 [B, N, 4].
    """

    boxes: jax.Array
    inside: jax.Array
    logits: jax.Array
    deltas: jax.Array


def at_anchors(net: Detector, params: Pytree, maps: jax.Array, valid: jax.Array) -> Anchors:
    """Run the proposal head on a map [B, h, w, C]; `valid` is as in `feature_map`."""
    height, width = maps.shape[1:3]
    found = infer(net.rpn, params["rpn"], {}, maps)
    boxes = anchors(height, width, stride=net.stride, sizes=net.sizes, ratios=net.ratios)
    cells = valid_pixels(-(-valid // net.stride), height, width).reshape(len(maps), -1)
    return Anchors(boxes, jnp.repeat(cells, net.rpn.anchors, axis=1), found["logits"], found["deltas"])


def at_regions(
    net: Detector,
    params: Pytree,
    state: Pytree,
    maps: jax.Array,
    boxes: jax.Array,
    exists: jax.Array,
    *,
    train: bool,
) -> tuple[jax.Array, jax.Array, Pytree]:
    """Run the last group and the box head on regions of a map.

    Args:
        net: the networks.
        params: their parameters.
        state: their running statistics.
        maps: [B, h, w, C], from `feature_map`.
        boxes: float32 [B, T, 4] in pixels of the image.
        exists: bool [B, T]. Of the other boxes the result means nothing, and no statistics count them.
        train: as in `feature_map`.

    Returns:
        logits float32 [B, T, K + 1], deltas float32 [B, T, K, 4], and the state.
    """
    batch, places = exists.shape

    def pooled(one: jax.Array, of: jax.Array) -> jax.Array:
        return roi_align(one, of, size=net.cells, scale=1 / net.stride, sampling=0, aligned=True)

    regions = jax.vmap(pooled)(maps, boxes).reshape(-1, net.cells, net.cells, maps.shape[-1])
    exists = exists.reshape(-1)
    size = jnp.where(exists[:, None], jnp.full((1, 2), net.cells, jnp.int32), 0)
    last = len(net.encoder.layers)
    x, state = _run(net.encoder, "encoder", params, state, regions, train, size=size, part=(last, last))
    mask = exists[:, None, None, None]
    found, state = _run(net.head, "head", params, state, x, train, mask=mask)
    shaped = {name: value.reshape(batch, places, *value.shape[1:]) for name, value in found.items()}
    return shaped["logits"], shaped["deltas"], state
