"""A linear classifier on a frozen backbone: the linear evaluation of every paper, trained under random crops.

    h = f(view), or for a layer probe  h = pool(f_layer(view));   L = mean cross entropy of (W h + b)

f is frozen and in inference mode: batch normalisation uses the running statistics, which do not move, and
nothing is dropped. `params` holds only W and b. f and its statistics lie in `extra`, so that no gradient and
no optimizer can reach them. They are taken from `init_from`: an earlier stage, the folder of a run of any
method, or weights that `ssljax convert` read. What is probed is what evaluation reads of that run (its
`Method.evaluated`): the online network of BYOL, the query encoder of MoCo, the moving average of DeiT.
Without `init_from` a random network is probed, the baseline.

The presets `<pretraining preset>_linear` have the papers' recipes:

    SimCLR           google-research/simclr, run.py with --fine_tune_after_block=4
    MoCo v1, v2, v3  main_lincls.py of facebookresearch/moco and moco-v3
    BYOL             deepmind-research, byol/eval_experiment.py
    DeepCluster      facebookresearch/deepcluster, eval_linear.py: `probe.layer`, and ten crops at test
    DeepCluster-v2   facebookresearch/swav, eval_linear.py
    CMC              HobbitLong/CMC, LinearProbing.py: `probe.layer` of both views, pooled by maxima

Differences from the released code:
- Accuracy is that of the last epoch. MoCo, DeepCluster and swav report the best epoch on the test split. [X]
- The last, incomplete batch of an epoch is dropped. [X]
- The backbone computes in the dtype of its pretraining, bfloat16 on ImageNet; W and b are float32. [X]
- b starts from 0; DeepCluster's from PyTorch's U(+-1/sqrt(inputs)). [X]
- With a weight decay the SimCLRv2 presets decay W alone, the released code b too (both by 1e-6). [X]
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssljax import models
from ssljax.data import views
from ssljax.losses.classification import accuracy, cross_entropy
from ssljax.targets.frozen import Frozen
from ssljax.types import Batch, Facts, LoadFn, Method, Out, Pytree, TrainState


def linear(config: ConfigDict, facts: Facts) -> Method:
    """Build the linear evaluation as pure functions.

    `params` holds head; `extra` is the Frozen backbone, its one branch called encoder.
    """
    size = config.data.image_size
    image_shape = (size, size, config.data.channels)

    encoder = models.backbone(config.model)
    head = models.LinearClassifier(facts.num_classes, scheme=config.head.scheme)
    layer = config.probe.layer

    def probed(extra: Frozen, x: jax.Array) -> jax.Array:
        """h [B, D] of images x, by the running statistics."""
        weights = extra.params["encoder"]
        statistics = extra.model_state["encoder"]
        if not layer:
            return models.infer(encoder, weights, statistics, x)
        activation = models.activation(encoder, weights, statistics, x, layer)
        return models.pooled(activation, config.probe.layer_dim, config.probe.pool)

    def init(key: jax.Array, batch: Batch) -> tuple[Pytree, Pytree, Frozen]:
        del batch
        keys = jax.random.split(key)
        f, f_state, _ = models.initialise(encoder, keys[0], image_shape)
        # Of a random network every residual branch is switched on, so that it is as good as it can be.
        extra = Frozen({"encoder": models.unit_gains(f)}, {"encoder": f_state})
        h = jax.eval_shape(probed, extra, jnp.zeros((2, *image_shape), jnp.float32))
        return {"head": head.init(keys[1], jnp.zeros(h.shape, h.dtype))["params"]}, {}, extra

    def loss(
        params: Pytree, model_state: Pytree, extra: Frozen, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Out]:
        x = views.stacked(batch, key, config)[:, 0]
        logits = models.logits(params["head"], probed(extra, x))
        metrics = {"accuracy": jnp.mean(accuracy(logits, batch["label"]))}
        return jnp.mean(cross_entropy(logits, batch["label"])), Out(model_state, (), metrics)

    def evaluated(params: Pytree, model_state: Pytree, extra: Frozen) -> tuple[Pytree, Pytree]:
        return extra.params["encoder"], extra.model_state["encoder"]

    def encode(params: Pytree, model_state: Pytree, extra: Frozen, image: jax.Array) -> jax.Array:
        return probed(extra, views.for_network(image, config.augment))

    def classify(params: Pytree, extra: Frozen, features: jax.Array) -> dict[str, jax.Array]:
        return {"probe": models.logits(params["head"], features)}

    def adopt(state: TrainState, load: LoadFn) -> TrainState:
        """Put the backbone of `config.init_from` into a fresh state."""
        if not config.init_from:
            return state
        like = {
            "evaluated/params": state.extra.params["encoder"],
            "evaluated/model_state": state.extra.model_state["encoder"],
        }
        found = load(config.init_from, like)
        weights = found["evaluated/params"]
        statistics = found["evaluated/model_state"]
        return state.replace(extra=Frozen({"encoder": weights}, {"encoder": statistics}))

    return Method(
        init=init,
        loss=loss,
        evaluated=evaluated,
        encode=encode,
        classify=classify,
        adopt=adopt,
        frozen=True,
        num_views=1,
        needs_labels=True,
        separable=True,
    )
