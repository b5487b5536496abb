"""The networks of a two-stage detector: Faster R-CNN on a residual network (C4), or on an AlexNet or VGG-16.

    image -> body -> map (stride 16 for most networks)
    map   -> proposal head -> a logit and four deltas per anchor
    box   -> body, on the cells of the map that the box covers -> features -> box head

             map                         features of a box                             box head
    C4       all groups but the last     RoIAlign, 14 x 14 -> last group               norm, mean, linear
    Plain    all before the last pool    RoI max-pool, 6 x 6 or 7 x 7 -> fc6 -> fc7    linear

A whole pretrained network is the body of a detector as it is. Faster R-CNN: Ren et al., 2015, arXiv
1506.01497; conventions and initialisation are those of facebookresearch/detectron2 at 02b5c4e, the norm after
the last group is that of facebookresearch/moco, detection/train_net.py. Plain is the network of Fast R-CNN:
Girshick, 2015, arXiv 1504.08083, rbgirshick/fast-rcnn at b612190, models/.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssljax.models.alexnet_vgg import ConvNet, stride_of_map
from ssljax.models.apply import forward, infer, initialise
from ssljax.models.boxes import anchors
from ssljax.models.norm import BatchNorm
from ssljax.models.resnet import ResNet, mean_of_valid, stride_of, valid_pixels
from ssljax.models.roi import roi_align, roi_pool

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


class LinearHead(nn.Module):
    """Two linear layers on the features of regions: classes, and a box per class.

    Attributes:
        classes: K, without the background.
    """

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> dict[str, jax.Array]:
        """Features `[R, D]` -> what a BoxHead gives."""
        del train, mask
        return _linear(self.classes, x)


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
        return _linear(self.classes, x)


def _linear(classes: int, x: jax.Array) -> dict[str, jax.Array]:
    """The layers `classes` and `boxes` of the module that calls this in its `__call__`."""
    dense = partial(nn.Dense, precision=jax.lax.Precision.HIGHEST)
    normal = nn.initializers.normal
    logits = dense(classes + 1, kernel_init=normal(0.01), name="classes")(x)
    deltas = dense(4 * classes, kernel_init=normal(0.001), name="boxes")(x)
    return {"logits": logits, "deltas": deltas.reshape(len(x), -1, 4)}


def _run(
    module: nn.Module, params: Pytree, statistics: Pytree, x: jax.Array, train: bool, **call: Any
) -> tuple[Any, Pytree]:
    """What a network gives, and its running statistics after it."""
    if not train:
        return infer(module, params, statistics, x, **call), statistics
    return forward(module, params, statistics, x, **call)


class C4(NamedTuple):
    """A ResNet as a body: its last group runs on regions, and those before it on images.

    Attributes:
        encoder: the network.
        cells: side of a region's map.
        trained: "all".
    """

    encoder: ResNet
    cells: int = 14
    trained: str = "all"

    @property
    def stride(self) -> int:
        """Pixels of the image per cell of the map."""
        return stride_of(self.encoder, len(self.encoder.layers) - 1)

    @property
    def channels(self) -> int:
        """Of the map."""
        return self.encoder.widths[len(self.encoder.layers) - 2] * self.encoder.block.expansion

    @property
    def side(self) -> int:
        """Of the images that initialise the network; any size would do."""
        return 4 * stride_of(self.encoder, len(self.encoder.layers))

    def map_of(
        self, params: Pytree, state: Pytree, x: jax.Array, valid: jax.Array, *, train: bool
    ) -> tuple[jax.Array, Pytree]:
        """The map of images whose padding is 0, and the encoder's statistics; see `feature_map`."""
        part = (0, len(self.encoder.layers) - 1)
        return _run(self.encoder, params, state, x, train, size=valid, part=part)

    def features_of(
        self,
        params: Pytree,
        state: Pytree,
        maps: jax.Array,
        extent: jax.Array,
        boxes: jax.Array,
        exists: jax.Array,
        keys: jax.Array | None,
    ) -> tuple[jax.Array, Pytree]:
        """Maps of regions `[B T, h, w, C]`, and the encoder's statistics; see `at_regions`."""
        pooled = partial(roi_align, size=self.cells, scale=1 / self.stride, sampling=0, aligned=True)
        regions = jax.vmap(pooled)(maps, boxes, extent).reshape(-1, self.cells, self.cells, maps.shape[-1])
        exists = exists.reshape(-1)
        size = jnp.where(exists[:, None], jnp.full((1, 2), self.cells, jnp.int32), 0)
        last = len(self.encoder.layers)
        train = keys is not None
        return _run(self.encoder, params, state, regions, train, size=size, part=(last, last))


class Plain(NamedTuple):
    """An AlexNet or VGG-16 as a body: fc6 and fc7 run on regions, and the convolutions on images.

    Norms always use the running statistics: those of two images would be of little worth, and DeepCluster
    trains its classifiers of PASCAL VOC so.

    Attributes:
        encoder: the network.
        side: of the square images that fc6 was trained on.
        trained: "all", or "fc": all but the convolutions and their norms.
    """

    encoder: ConvNet
    side: int = 224
    trained: str = "all"

    @property
    def stride(self) -> int:
        """Pixels of the image per cell of the map."""
        return stride_of_map(self.encoder.architecture)

    @property
    def channels(self) -> int:
        """Of the map."""
        return round(self.encoder.architecture.convs[-1].features * self.encoder.width)

    def map_of(
        self, params: Pytree, state: Pytree, x: jax.Array, valid: jax.Array, *, train: bool
    ) -> tuple[jax.Array, Pytree]:
        """As `C4.map_of`."""
        del train
        return infer(self.encoder, params, state, x, size=valid, part="map"), state

    def features_of(
        self,
        params: Pytree,
        state: Pytree,
        maps: jax.Array,
        extent: jax.Array,
        boxes: jax.Array,
        exists: jax.Array,
        keys: jax.Array | None,
    ) -> tuple[jax.Array, Pytree]:
        """fc7 of regions, float32 `[B T, D]`, and the encoder's statistics; see `at_regions`."""
        del extent, exists  # the zeros beyond an image are no maximum: the map has nothing below them
        cells = math.isqrt(params["fc6"]["kernel"].shape[0] // self.channels)

        def of_image(one: jax.Array, of: jax.Array, key: jax.Array | None = None) -> jax.Array:
            regions = roi_pool(one, of, size=cells, scale=1 / self.stride)
            if key is None:
                return infer(self.encoder, params, {}, regions, part="regions")
            return forward(self.encoder, params, {}, regions, key=key, part="regions")[0]

        images = (maps, boxes) if keys is None else (maps, boxes, keys)
        features = jax.vmap(of_image)(*images)
        return features.reshape(-1, features.shape[-1]), state


class Detector(NamedTuple):
    """The networks of a detector and how they are put together.

    `params` and `model_state` have the branches encoder (the whole pretrained network), rpn and head.

    Attributes:
        body: gives maps of images and features of regions.
        rpn: the proposal head.
        head: the box head.
        sizes: of the anchors, square roots of their areas in pixels.
        ratios: of the anchors, height over width.
    """

    body: C4 | Plain
    rpn: ProposalHead
    head: BoxHead | LinearHead
    sizes: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def stride(self) -> int:
        """Pixels of the image per cell of the map."""
        return self.body.stride


def initialise_detector(net: Detector, key: jax.Array, channels: int) -> tuple[Pytree, Pytree]:
    """Fresh (params, model_state)."""
    keys = jax.random.split(key, 3)
    side = net.body.side
    encoder, statistics, features = initialise(net.body.encoder, keys[0], (side, side, channels))
    rpn = net.rpn.init(keys[1], jnp.zeros((1, 2, 2, net.body.channels), jnp.float32), train=False)
    head = net.head.init(keys[2], features[:, None, None], train=False)
    params = {"encoder": encoder, "rpn": rpn["params"], "head": head["params"]}
    return params, {"encoder": statistics, "rpn": {}, "head": head.get("batch_stats", {})}


def stands_still(net: Detector, params: Pytree) -> Pytree:
    """True for the leaves that are not trained: convolutions and their norms, of a body trained as "fc"."""

    def one(path: tuple, leaf: jax.Array) -> bool:
        branch, layer = (entry.key for entry in path[:2])
        return net.body.trained == "fc" and branch == "encoder" and layer not in ("fc6", "fc7")

    return jax.tree_util.tree_map_with_path(one, params)


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
    maps, encoder = net.body.map_of(params["encoder"], state["encoder"], x, valid, train=train)
    return maps, {**state, "encoder": encoder}


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
    valid: jax.Array,
    boxes: jax.Array,
    exists: jax.Array,
    *,
    keys: jax.Array | None,
) -> tuple[jax.Array, jax.Array, Pytree]:
    """Run what is left of the body, and the box head, on regions of a map.

    Args:
        net: the networks.
        params: their parameters.
        state: their running statistics.
        maps: [B, h, w, C], from `feature_map`.
        valid: int32 [B, 2], as in `feature_map`.
        boxes: float32 [B, T, 4] in pixels of the image.
        exists: bool [B, T]. Of the other boxes the result means nothing, and no statistics count them.
        keys: training, with a key [B] of each image for dropout; None: inference.

    Returns:
        logits float32 [B, T, K + 1], deltas float32 [B, T, K, 4], and the state.
    """
    batch, places = exists.shape
    extent = -(-valid // net.stride)  # cells of each image
    x, encoder = net.body.features_of(params["encoder"], state["encoder"], maps, extent, boxes, exists, keys)
    mask = exists.reshape(-1)[:, None, None, None]
    found, head = _run(net.head, params["head"], state["head"], x, keys is not None, mask=mask)
    shaped = {name: value.reshape(batch, places, *value.shape[1:]) for name, value in found.items()}
    return shaped["logits"], shaped["deltas"], {**state, "encoder": encoder, "head": head}
