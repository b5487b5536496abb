"""Where every config starts, and what the table of keys says of one.

    from ssljax import config

    def get_config(preset="digits"):
        c = config.digits()                  # or config.base(), with nothing chosen
        c.method = "simclr"
        c.optim = dict(name="sgd", learning_rate=0.3)
        return config.named(c, preset)

A config states what its recipe changes, in whole sections where it likes; `named` adds the defaults of what
else the recipe reads and takes out what it does not. Nothing here imports JAX, so that a wrong setting is
answered at once.
"""

from __future__ import annotations

from collections.abc import Collection

from ml_collections import ConfigDict

from ssljax.config.keys import KEYS
from ssljax.config.leaves import changed, differences, flat, hashed, modern, public, stages, view_names
from ssljax.config.reference import reference
from ssljax.config.rows import METHODS
from ssljax.config.rules import check, nearest, put, resolve, unknown, unread, widen

__all__ = [
    "CIFAR10",
    "IMAGENET",
    "KEYS",
    "METHODS",
    "base",
    "changed",
    "check",
    "choose",
    "cifar10",
    "cifar10_small",
    "crops_alone",
    "differences",
    "digits",
    "fashion_mnist",
    "finetune",
    "flat",
    "folder",
    "hashed",
    "imagenet",
    "modern",
    "named",
    "nearest",
    "public",
    "put",
    "reference",
    "resolve",
    "stages",
    "two_stages",
    "unknown",
    "unread",
    "view_names",
    "vit",
    "widen",
]

# Mean and standard deviation per channel, of pixels in [0, 1].
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CIFAR10 = dict(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
GREY = dict(mean=(0.0,), std=(1.0,))

ALL_FEATURES = ("knn", "linear", "label_fraction")  # the protocols that small data sets have time for


def base() -> ConfigDict:
    """The neutral recipe: one view by crops and flips alone, a ResNet-50, SGD; no method and no data."""
    return resolve(ConfigDict())


# -------------------------------------------------------------------------------------------------- data sets
# With the network, the evaluation and the logging that suit their size.


def imagenet(epochs: int, batch_size: int) -> ConfigDict:
    """ImageNet at 224 pixels, decoded and cropped on the host; a ResNet-50 in bfloat16."""
    c = base()
    c.epochs, c.batch_size = epochs, batch_size
    c.data.update(source="tfds:imagenet2012", test_split="validation")
    return c


def folder() -> ConfigDict:
    """Your own photographs at 224 pixels.

    --config.data.source=folder:PATH, with train/ and test/ or one sub-folder per class.
    """
    c = base()
    c.epochs, c.batch_size = 200, 256
    c.data.update(source="folder:images")
    c.log_every, c.checkpoint.every_steps = 20, 200
    c.evaluate.update(linear="lbfgs", protocols=ALL_FEATURES)
    return c


def _small(c: ConfigDict, size: int, channels: int) -> ConfigDict:
    """What all data sets of small images share.

    They are in memory, cropped on the device and seen whole at evaluation; networks compute in float32.
    """
    c.data.update(image_size=size, channels=channels, crop_on="device", eval_crop=1.0)
    c.model.update(name="resnet18", stem="cifar", dtype="float32")
    c.evaluate.update(linear="lbfgs", protocols=ALL_FEATURES)
    if channels == 1:
        c.augment.update(GREY)
    return c


def cifar10(epochs: int, batch_size: int) -> ConfigDict:
    """CIFAR-10 on an accelerator: ResNet-18 without the strided stem."""
    c = _small(base(), 32, 3)
    c.epochs, c.batch_size = epochs, batch_size
    c.data.update(source="tfds:cifar10")
    return c


def cifar10_small() -> ConfigDict:
    """CIFAR-10 on two CPU cores: ResNet-18 of base width 16 for ten epochs.

    For a folder of CIFAR-10 images: --config.data.source=folder:PATH --config.data.train_per_class=2000
    """
    c = cifar10(epochs=10, batch_size=256)
    c.model.width = 0.25
    c.log_every, c.eval_every_epochs, c.checkpoint.every_steps = 20, 5, 100
    return c


def fashion_mnist() -> ConfigDict:
    """Fashion-MNIST on a CPU: grey images of 28 pixels; ResNet-10 of base width 16.

    Crops have a fifth of the area at least.
    """
    c = _small(base(), 28, 1)
    c.epochs, c.batch_size = 5, 256
    c.data.update(source="fashion_mnist")
    c.augment.min_area = 0.2
    c.model.update(name="resnet10", width=0.25)
    c.log_every, c.eval_every_epochs, c.checkpoint.every_steps = 50, 1, 300
    return c


def digits() -> ConfigDict:
    """scikit-learn's 1,797 scanned digits at 16 pixels: small warps, never flips; ResNet-8 of base width 16.

    The strided stem takes a fifth of the time of CIFAR's.
    """
    c = _small(base(), 16, 1)
    c.epochs, c.batch_size = 40, 128
    c.data.update(source="digits")
    c.augment.update(crop="affine", flip=False, rotate=25.0, shift=0.15, zoom=0.2, shear=15.0)
    c.model.update(name="resnet8", width=0.25, stem="imagenet")
    c.evaluate.update(knn_k=20, label_draws=3)  # 150 images per class; the demo's three minutes
    c.log_every, c.eval_every_epochs, c.checkpoint.every_steps = 50, 20, 200
    return c


# ---------------------------------------------------------------------------------------------- shared pieces


def vit(name: str, patch: int, dtype: str = "bfloat16") -> ConfigDict:
    """DeiT's vision transformer as a `model` section, without stochastic depth."""
    return ConfigDict(
        dict(
            name=name,
            patch=patch,
            positions="learned",
            scheme="deit",
            frozen_patch=False,
            scan=False,
            distillation=False,
            drop_path=0.0,
            dropout=0.0,
            dtype=dtype,
            remat="none",
        )
    )


def crops_alone(c: ConfigDict) -> None:
    """Leaves one view by crops and flips: no other colours, no blur."""
    c.views = dict(one=dict())
    c.augment.update(
        jitter_probability=0.0, grayscale_probability=0.0, blur_probability=0.0, solarize_probability=0.0
    )


def two_stages(first: str, before: ConfigDict, second: str, after: ConfigDict) -> ConfigDict:
    """A config of two stages, by name and in this order."""
    return ConfigDict({"stages": (first, second), first: before, second: after})


def finetune(pretrain: ConfigDict) -> ConfigDict:
    """Two stages: `pretrain`, then the whole network and a linear head on labels.

    By SimCLR's recipe, section 4.2 and appendix B.5.
    """
    c = pretrain.copy_and_resolve_references()
    c.method, c.init_from = "supervised", "pretrain"
    crops_alone(c)  # [P]
    # [P]
    c.optim = dict(
        name="sgd", nesterov=True, learning_rate=0.05, scaling="linear", weight_decay=0.0, warmup_epochs=0
    )
    c.evaluate.protocols = ("classifier",)
    return two_stages("pretrain", pretrain, "finetune", c)


# ---------------------------------------------------------------------------------------- what presets end in


def choose(preset: str, presets: Collection[str], file: str) -> None:
    """Refuses a preset that a file of configs does not have.

    Args:
        preset: what was asked for.
        presets: the file's PRESETS.
        file: its name, e.g. configs/simclr.py.

    Raises:
        ValueError: lists the valid presets.
    """
    if preset not in presets:
        raise ValueError(f"{file} has no preset {preset!r}. Valid presets: {', '.join(presets)}")


def named(config: ConfigDict, preset: str) -> ConfigDict:
    """The resolved, checked and locked configuration, its name in every stage.

    Raises:
        ValueError: a value is out of its range, see `check`.
    """
    config = resolve(config)
    for stage in stages(config).values():
        stage.preset = preset
    check(config)
    return config.lock()
