"""Training on images with several labels: PASCAL VOC classification, from any pretrained encoder.

    o = head(f(view))
    L = mean over the images of  sum over the classes of  -y log s(o) - (1 - y) log(1 - s(o))

with s the logistic function. A class that an image shows only as "difficult" (-1) has no part in the loss.
Where images have one label each, every class is told from all others.

DeepCluster's FC6-8 and ALL (section 4.5; facebookresearch/deepcluster, eval_voc_classif.py) are
configs/multilabel.py. They begin the fully connected layers anew, with every bias at 0.1, and normalise by
the running statistics of the pretraining, while dropout is on. In FC6-8 the convolutions stand still, and so
do the gains and offsets of their norms unless `tune.gains` says otherwise: the paper's 72.0 trained them,
without it is 70.4. SimCLR's and BYOL's fine-tuning on VOC2007 is configs/transfer.py:voc2007.

Differences from the released code:
- Images are drawn anew every epoch, and its last, incomplete batch is dropped; the code shuffles once. [X]
- ALL starts from the pretrained convolutions, as the paper says; the code's --fc6_8 0 begins them anew. [P]
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssljax import models
from ssljax.data import views
from ssljax.losses.classification import binary_cross_entropy
from ssljax.types import Batch, Facts, LoadFn, Method, Out, Pytree, TrainState


def multilabel(config: ConfigDict, facts: Facts) -> Method:
    """Build training on several labels per image as pure functions.

    `params` holds encoder and head; there is no extra state.
    """
    size = config.data.image_size
    image_shape = (size, size, config.data.channels)

    encoder = models.backbone(config.model)
    head = models.LinearClassifier(facts.num_classes, scheme=config.head.scheme, bias=config.tune.bias)
    anew = tuple(config.tune.anew)

    def rectified(h: jax.Array) -> jax.Array:
        """AlexNet and VGG-16 end before the ReLU of their last layer."""
        return jax.nn.relu(h) if isinstance(encoder, models.ConvNet) else h

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, tuple]:
        del batch
        keys = jax.random.split(key, 3)
        f, f_state, h = models.initialise(encoder, keys[0], image_shape)
        params = {"encoder": begun(f, keys[2]), "head": head.init(keys[1], h)["params"]}
        return params, {"encoder": f_state}, ()

    def begun(f: Pytree, key: jax.Array) -> Pytree:
        """The encoder with the layers of `tune.anew` from N(0, 0.01^2), and their biases at `tune.bias`."""
        absent = [name for name in anew if name not in f]
        if absent:
            raise ValueError(
                f"config.tune.anew names {absent[0]!r}, and {config.model.name} has {', '.join(f)}: name "
                "some of these"
            )
        fresh = {}
        for i, name in enumerate(anew):
            kernel = 0.01 * jax.random.normal(jax.random.fold_in(key, i), f[name]["kernel"].shape)
            fresh[name] = {"kernel": kernel, "bias": jnp.full_like(f[name]["bias"], config.tune.bias)}
        return {**f, **fresh}

    def still(params: Pytree) -> Pytree:
        """The leaves that are not trained: the encoder's, but for the new layers (and the norms' gains)."""

        def rule(path: tuple, leaf: jax.Array) -> bool:
            names = [entry.key for entry in path]
            norm = config.tune.gains and len(names) > 2 and names[1].startswith("norm")
            return names[0] == "encoder" and names[1] not in anew and not norm

        if config.tune.layers == "all":
            return jax.tree.map(lambda _: False, params)
        return jax.tree_util.tree_map_with_path(rule, params)

    def loss(
        params: Pytree, model_state: Pytree, extra: tuple, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        # 1. Logits of one crop. What stands still has no gradient, which clipping would count.
        x = views.stacked(batch, key, config)[:, 0]
        params = jax.tree.map(
            lambda w, fixed: jax.lax.stop_gradient(w) if fixed else w, params, still(params)
        )
        h, f_state = models.forward(
            encoder,
            params["encoder"],
            model_state["encoder"],
            x,
            key=jax.random.fold_in(key, 1),
            running=config.tune.norms == "running",
        )
        logits = models.logits(params["head"], rectified(h))

        # 2. A decision for each class, but for difficult ones.
        y = batch["labels"] if "labels" in batch else jax.nn.one_hot(batch["label"], facts.num_classes)
        y = y.astype(jnp.int32)
        sure = y >= 0
        right = sure & ((logits > 0) == (y == 1))
        metrics = {"accuracy": jnp.sum(right) / jnp.maximum(jnp.sum(sure), 1)}
        return jnp.mean(binary_cross_entropy(logits, y)), Out({"encoder": f_state}, (), metrics)

    def classify(params: Pytree, extra: tuple, features: jax.Array) -> dict[str, jax.Array]:
        return {"classifier": models.logits(params["head"], rectified(features))}

    def adopt(state: TrainState, load: LoadFn) -> TrainState:
        """Begin layers anew that `config.init_from` brought along."""
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        places = jax.tree.map(lambda leaf: leaf.sharding, state.params["encoder"])
        fresh = jax.jit(begun, out_shardings=places)(state.params["encoder"], key)
        return state.replace(params={**state.params, "encoder": fresh})

    return Method(
        init=init,
        loss=loss,
        classify=classify,
        adopt=adopt if anew else None,
        still=still if config.tune.layers != "all" else None,
        num_views=1,
        needs_labels=True,
        several_labels=True,
        separable=not models.draws(config.model),
    )
