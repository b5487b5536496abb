"""Semantic segmentation by a fully convolutional network on a pretrained backbone, all of it trained.

    s = upsample(head(f(image)));     L = mean over pixels with a class of cross entropy of s against the mask

With a ResNet, f gives the map of the last group, which has stride 1 and dilated convolutions
(`model.last_stride`, `model.last_dilation`), and the head is two dilated convolutions and a classifier: the
network of MoCo's and BYOL's tables (He et al., 2019, arXiv 1911.05722, appendix; Grill et al., 2020, arXiv
2006.07733, appendix E). With AlexNet it is FCN-32s (Long et al., 2015, arXiv 1411.4038), the network of
DeepCluster's table (Caron et al., 2018, arXiv 1807.05520), trained as a whole (ALL) or without its
convolutions (FC6-8, `fcn.trained="fc"`). `init_from` names a run of any method, or weights that `ssljax
convert` read.

`ssljax evaluate` counts the pixels of the test split into one confusion matrix: protocols/segmentation.py.

Differences from the papers:
- MoCo's and BYOL's code for segmentation was not released. Their recipe here is from the papers, and where
  those are silent from memory. [R]
- FCN-32s works on batches of 20 images of one size with zeros after them, where the released code adds up 20
  images of their own size. In evaluation an image has the scores that it has alone.
- The released FCN-32s has a learning rate twice as large for the bias of the scores, without decay. [X]
- The convolutions' norms of AlexNet use the running statistics, as in DeepCluster's classifiers of VOC. [X]
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssljax import models
from ssljax.data import views
from ssljax.losses.segmentation import pixel_accuracy, pixel_cross_entropy
from ssljax.types import Batch, Facts, Method, Out, Pytree


def segmentation(config: ConfigDict, facts: Facts) -> Method:
    """Build semantic segmentation as pure functions.

    `params` holds encoder and head; there is no extra state.

    Raises:
        ValueError: the images have no masks, or the backbone is of no family that has a segmentation network.
    """
    if config.data.annotations != "masks":
        raise ValueError(
            f"segmentation learns from masks, and config.data.annotations is {config.data.annotations!r}: "
            "set --config.data.annotations=masks, with a source that has them"
        )
    size = config.data.image_size
    image_shape = (size, size, config.data.channels)

    net = models.segmenter(config.model, config.fcn, facts.num_classes)
    per_image = config.fcn.mean_over == "images"
    some_stay = net.trained == "fc"

    def inputs(batch: Batch) -> jax.Array:
        """Normalised images [B, H, W, C], 0 outside of an image."""
        x = views.for_network(batch["image"], config.augment)
        return jnp.where(models.valid_pixels(batch["size"], *x.shape[1:3]), x, 0.0)

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, tuple]:
        del batch
        params, model_state, _ = models.initialise(net, key, image_shape)
        return params, model_state, ()

    def still(params: Pytree) -> Pytree:
        """True for the leaves that are not trained: the convolutions and their norms."""

        def one(path: tuple, leaf: jax.Array) -> bool:
            branch, layer = (entry.key for entry in path[:2])
            return some_stay and branch == "encoder" and layer not in ("fc6", "fc7")

        return jax.tree_util.tree_map_with_path(one, params)

    def loss(
        params: Pytree, model_state: Pytree, extra: tuple, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        # 1. Scores of every pixel, in training mode. Layers that stay as they are get no gradient.
        stopped = lambda leaf, fixed: jax.lax.stop_gradient(leaf) if fixed else leaf
        params = jax.tree.map(stopped, params, still(params))
        network_key = jax.random.fold_in(key, 1)
        scores, model_state = models.forward(net, params, model_state, inputs(batch), key=network_key)

        # 2. Cross entropy where the mask names a class.
        rows = pixel_cross_entropy(scores, batch["mask"], per_image=per_image)
        metrics = {"pixel_accuracy": pixel_accuracy(scores, batch["mask"])}
        return jnp.mean(rows), Out(model_state, (), metrics)

    def predict(params: Pytree, model_state: Pytree, extra: tuple, batch: Batch) -> dict[str, jax.Array]:
        scores = models.infer(net, params, model_state, inputs(batch), size=batch["size"])
        return {"mask": jnp.argmax(scores, axis=-1).astype(jnp.uint8)}

    return Method(
        init=init,
        loss=loss,
        predict=predict,
        still=still if some_stay else None,
        num_views=1,
        separable=per_image and not models.draws(config.model),
    )
