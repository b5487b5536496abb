"""Predictive learning, the baseline of CMC (arXiv 1906.05849): predict the pixels of one view from another.

    ssljax train --config configs/predictive.py:digits --workdir runs/predictive    # a laptop, two minutes
    ssljax train --config configs/predictive.py:cifar10_small --workdir runs/l2 \\
        --config.data.source=folder:PATH --config.predict.loss=l2                   # l1 if it is not set
    ssljax train --config configs/predictive.py:imagenet_r50_v1_linear --workdir gs://bucket/predictive

A preset has the data, network, optimizer, batch size and epochs of the preset of this name in configs/cmc.py,
so that a run of each compares the objectives. Views: --config.model.split=luminance,chrominance,gradient;
all predict all with --config.predict.graph=full. One view alone: --config.evaluate.view=luminance.

Sources of the numbers: [C] the released code of CMC (HobbitLong/CMC at 7b227be), [X] chosen here: the
released code has no predictive learning.
"""

from ml_collections import ConfigDict

from ssljax import config

PRESETS = (
    "digits",
    "fashion_mnist",
    "cifar10_small",
    "cifar10_views",
    "folder",
    "folder_small",
    "imagenet_r50_v1",
    "imagenet_r50_v1_linear",
)


def predictive(c: ConfigDict, width: int) -> ConfigDict:
    """Views and networks of CMC, with decoders that begin at `width` channels [X]."""
    c = config.multiview.colours(c, "predictive")
    c.predict = dict(loss="l1", graph="core", width=width)
    return c


def small(c: ConfigDict, decay: float = 5e-4) -> ConfigDict:
    """Small images: the optimizer of CMC's small presets [X]."""
    return config.multiview.sgd(predictive(c, width=64), 0.12, decay)


def digits() -> ConfigDict:
    """Intensity and gradient of scikit-learn's digits predict each other [X]."""
    c = config.multiview.grey(small(config.digits(), 1e-4), "luminance", "gradient")
    c.augment.crop = "affine"
    return c


def fashion_mnist() -> ConfigDict:
    """Intensity, gradient and low resolution of Fashion-MNIST [X]."""
    return config.multiview.grey(small(config.fashion_mnist()), "luminance", "gradient", "low")


def cifar10_small() -> ConfigDict:
    """Luminance and colours of CIFAR-10 predict each other [X].

    For a folder of CIFAR-10 images: --config.data.source=folder:PATH --config.data.train_per_class=2000
    """
    return small(config.cifar10_small())


def cifar10_views() -> ConfigDict:
    """The comparison of experiments/cmc in a few minutes: a ResNet-8 per view, 10,000 images, 20 epochs."""
    return config.multiview.few_minutes(cifar10_small())


def folder_small() -> ConfigDict:
    """Your own colour images at 32 pixels, a small network per view, on two CPU cores [X]."""
    return small(config.folder_small())


def released(c: ConfigDict) -> ConfigDict:
    """A ResNet-50 of half width per view, with the optimizer and the pixels of CMC's released code [C]."""
    return config.multiview.resnet(config.multiview.released(predictive(c, width=256)), 0.5)


def folder() -> ConfigDict:
    """Your own photographs, --config.data.source=folder:PATH: a ResNet-50 of half width per view [X]."""
    c = released(config.folder())
    c.optim.milestones = ()
    c.augment.min_area = 0.2
    return c


def imagenet_r50_v1() -> ConfigDict:
    """ImageNet with the network and the budget of CMC's imagenet_r50_v1; four devices of 32 images [C]."""
    c = released(config.imagenet(epochs=240, batch_size=128))
    c.bn.groups = 4
    return c


def imagenet_r50_v1_linear() -> ConfigDict:
    """The same, then CMC's linear probe of the features of both views [C]."""
    return config.linear(imagenet_r50_v1(), **config.multiview.probe(30.0, ""))


def get_config(preset: str = "digits") -> ConfigDict:
    """The locked configuration of one preset.

    Raises:
        ValueError: the preset is not one of PRESETS.
    """
    config.choose(preset, PRESETS, "configs/predictive.py")
    return config.named(globals()[preset](), preset)
