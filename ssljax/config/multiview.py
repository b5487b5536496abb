"""The recipe of several views as pieces of a config, for configs/cmc.py and configs/predictive.py.

Sources: [C] the released code of CMC (HobbitLong/CMC at 7b227be), [X] chosen here.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

LAB = ("luminance", "chrominance")


def colours(c: ConfigDict, method: str) -> ConfigDict:
    """L and ab of one crop of each colour image, each with a network of its own [C]."""
    c.method = c.name = method
    c.views = dict(one=dict())
    c.augment.update(
        crop="torchvision",
        min_area=0.2,  # [C]; 0.08 for ResNets on ImageNet
        color_space="lab",  # [C]
    )
    c.model.update(split=LAB)
    c.zero_init_residual = False
    c.bn = dict(groups=1)
    return c


def sgd(c: ConfigDict, rate: float, decay: float = 1e-4) -> ConfigDict:
    """Momentum 0.9, weight decay of every parameter, and a rate as it stands that falls by a cosine."""
    c.optim = dict(
        name="torch_sgd",
        learning_rate=rate,
        scaling="none",
        momentum=0.9,
        weight_decay=decay,
        milestones=(),
    )
    return c


def released(c: ConfigDict) -> ConfigDict:
    """Optimizer and pixels of the released code: a tenth of the rate after 120, 160 and 200 epochs [C]."""
    c = sgd(c, 0.03)
    c.optim.milestones = (120, 160, 200)
    c.augment.update(crop="torchvision", resize="pillow", interpolation="bilinear")
    return c


def resnet(c: ConfigDict, width: float) -> ConfigDict:
    """A ResNet-50 per view, with a stem of 64 channels whatever the width is [C].

    The released weights were trained in float16; here it is bfloat16 [X].
    """
    c.model.update(name="resnet50", width=width, stem_width=64, shortcut="torchvision")
    c.model.kernel_init = "he_fan_out"
    c.augment.min_area = 0.08
    return c


def probe(rate: float, layer: str) -> dict[str, Any]:
    """The second stage for `config.linear`, as LinearProbing.py: views side by side, 60 epochs [C].

    Maps are reduced by maxima to at most 9,600 numbers. The code reports the best epoch on the validation
    images, here it is the last [X].

    Args:
        rate: the learning rate, not scaled.
        layer: its maps are probed; empty: the features.
    """
    return dict(
        batch_size=256,
        epochs=60,
        optim=dict(
            name="torch_sgd",
            learning_rate=rate,
            scaling="none",
            momentum=0.9,
            weight_decay=0.0,
            milestones=(30, 40, 50),
            milestone_factor=0.2,
        ),
        probe=dict(layer=layer, layer_dim=9600, pool="adaptive_max") if layer else dict(layer=""),
    )


def grey(c: ConfigDict, *split: str) -> ConfigDict:
    """Grey images have no colours: the views are intensity, gradient and others of one channel [X]."""
    c.augment.color_space = "rgb"
    c.model.split = split
    return c


def few_minutes(c: ConfigDict) -> ConfigDict:
    """What compares views in experiments/cmc: a ResNet-8 per view, 10,000 images, 20 epochs [X]."""
    c.model.update(name="resnet8", stem="imagenet")
    c.data.train_per_class = 1000
    c.epochs = 20
    c.batch_size = 128
    c.eval_every_epochs = 0
    c.checkpoint.best = ""
    c.evaluate.protocols = ("knn", "linear")
    return c
