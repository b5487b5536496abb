"""Supervised baselines: a ResNet or a ViT on all labels or on a few, with crops and flips.

    ssljax train --config configs/supervised.py:digits --workdir runs/supervised
    ssljax train --config configs/supervised.py:digits --workdir runs/ten \\
        --config.data.labels_per_class=10 --config.batch_size=50
    ssljax train --config configs/supervised.py:imagenet_r50_10pct --workdir gs://bucket/r50    # top-5 80.4
    ssljax train --config configs/supervised.py:imagenet_vit_b --workdir gs://bucket/vit        # plain

The ResNets are those of the SimCLR presets, the ViTs those of the DeiT presets.
Sources of the numbers: [P] SimCLR (arXiv 2002.05709), [X] chosen here.
"""

from ml_collections import ConfigDict

from ssljax import config

RESNETS = (
    "digits",
    "fashion_mnist",
    "cifar10_r18",
    "cifar10_small",
    "folder",
    "folder_small",
    "imagenet_r50",
    "imagenet_r50_1pct",
    "imagenet_r50_10pct",
)
# The DeiT preset whose network, optimizer and crops each ViT takes, without stochastic depth and the rest of
# DeiT's recipe.
VITS = {
    "digits_vit": "digits",
    "cifar10_small_vit": "cifar10_small",
    "imagenet_vit_s": "imagenet_s",
    "imagenet_vit_s_1pct": "imagenet_s",
    "imagenet_vit_s_10pct": "imagenet_s",
    "imagenet_vit_b": "imagenet_b",
}
FRACTIONS = {"1pct": 0.01, "10pct": 0.1}
SMALL_DATA = {
    "digits": config.digits,
    "fashion_mnist": config.fashion_mnist,
    "cifar10_small": config.cifar10_small,
    "folder": config.folder,
    "folder_small": config.folder_small,
}

PRESETS = (*RESNETS, *VITS)


def supervised(c: ConfigDict) -> ConfigDict:
    """Cross entropy on labels, crops and flips only [P]."""
    c.method = c.name = "supervised"
    c.views = dict(one=dict())
    c.evaluate.protocols = ("classifier",)
    return c


def resnet(c: ConfigDict, fraction: float) -> ConfigDict:
    """The ResNet of a data set, on a fraction of its labels [X]."""
    c = supervised(c)
    c.data.label_fraction = fraction
    c.augment.crop = "affine" if c.data.source == "digits" else "tf"
    c.optim = dict(
        name="sgd",
        nesterov=True,
        learning_rate=0.05,
        scaling="linear",
        momentum=0.9,
        warmup_epochs=5,
        weight_decay=0.0 if fraction < 1 else 1e-4,
    )
    return c


def timm_adamw(learning_rate: float, scaling: str, warmup_epochs: int, start: float) -> ConfigDict:
    """DeiT's optimizer."""
    return ConfigDict(
        dict(
            name="timm_adamw",
            learning_rate=learning_rate,
            scaling=scaling,
            weight_decay=0.05,
            warmup_epochs=warmup_epochs,
            start=start,
            end=1e-5,
            lag=0,
            decay_distillation_token=True,
        )
    )


def imagenet(fraction: float) -> ConfigDict:
    """90 epochs on all labels, 500 on a part of them [X]."""
    c = config.imagenet(epochs=90 if fraction == 1 else 500, batch_size=1024)
    c.data.update(label_fraction=fraction, label_list="papers")
    return c


def imagenet_vit(size: str, fraction: float) -> ConfigDict:
    """DeiT's network, optimizer and crops, without the rest of its recipe [X]."""
    c = supervised(imagenet(fraction))
    c.data.label_fraction = fraction
    c.model = config.vit(f"vit_{size}", 16)
    c.augment.update(crop="torchvision", min_area=0.08, resize="pillow", **config.IMAGENET)
    c.optim = timm_adamw(2.5e-4, "linear", warmup_epochs=5, start=1e-6)
    return c


def cifar10_small_vit() -> ConfigDict:
    """Network, optimizer and crops of configs/deit.py:cifar10_small, without the rest of its recipe [X]."""
    c = supervised(config.cifar10_small())
    c.model = config.vit("vit_xs", 4, dtype="float32")
    c.augment.update(crop="torchvision", min_area=0.25, antialias=True, **config.IMAGENET)
    c.optim = timm_adamw(1e-3, "linear", warmup_epochs=2, start=1e-5)
    return c


def digits_vit() -> ConfigDict:
    """Network, optimizer and crops of configs/deit.py:digits, without the rest of its recipe [X]."""
    c = supervised(config.digits())
    c.model = config.vit("vit_xs", 4, dtype="float32")
    c.augment.update(rotate=10.0, shift=0.1, zoom=0.1, shear=5.0)
    c.optim = timm_adamw(2e-3, "none", warmup_epochs=5, start=1e-5)
    return c


def get_config(preset: str = "digits") -> ConfigDict:
    """The locked configuration of one preset.

    Raises:
        ValueError: the preset is not one of PRESETS.
    """
    config.choose(preset, PRESETS, "configs/supervised.py")
    fraction = FRACTIONS.get(preset.rpartition("_")[2], 1.0)
    if preset.startswith("imagenet_vit"):
        c = imagenet_vit(preset.split("_")[2], fraction)
    elif preset.startswith("imagenet"):
        c = resnet(imagenet(fraction), fraction)
    elif preset in VITS:
        c = globals()[preset]()
    elif preset == "cifar10_r18":
        c = resnet(config.cifar10(epochs=1000, batch_size=512), fraction)
    else:
        c = resnet(SMALL_DATA[preset](), fraction)
    return config.named(c, preset)
