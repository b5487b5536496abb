"""The starting points of every config, and the table of keys that checks and completes it.

    from ssljax import config

    def get_config(preset="digits"):
        c = config.digits()                  # or config.base(), with nothing chosen
        c.method = "simclr"
        c.optim = dict(name="sgd", learning_rate=0.3)
        return config.named(c, preset)

A config states what its recipe changes, key by key or in whole sections. `named` then adds the defaults of
all other keys that the recipe reads, and removes those that it does not. Nothing here imports JAX, so that
the answer to a wrong setting comes at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict

from ssljax.config import multiview
from ssljax.config.keys import FACTS, KEYS
from ssljax.config.leaves import changed, differences, flat, hashed, modern, public, stages, view_names
from ssljax.config.reference import reference
from ssljax.config.rows import METHODS
from ssljax.config.rules import check, cut, nearest, needed, put, resolve, shown, unknown, unread, widen
from ssljax.config.tokenizer import DALLE_CROPS, dvae, short_dvae

__all__ = [
    "CIFAR10",
    "DALLE_CROPS",
    "FACTS",
    "IMAGENET",
    "KEYS",
    "METHODS",
    "TORCHVISION_COLOURS",
    "TORCHVISION_CROPS",
    "VOC_IN_COCO",
    "annotated",
    "base",
    "changed",
    "check",
    "choose",
    "cifar10",
    "cifar10_lightly",
    "cifar10_small",
    "crops_alone",
    "cut",
    "differences",
    "digits",
    "dvae",
    "fashion_mnist",
    "finetune",
    "flat",
    "folder",
    "folder_small",
    "hashed",
    "imagenet",
    "linear",
    "modern",
    "multiview",
    "named",
    "nearest",
    "needed",
    "public",
    "put",
    "reference",
    "resolve",
    "short_dvae",
    "shown",
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

# Crops, colours and blur of code that uses torchvision on images read from files: Pillow resizes and blurs.
TORCHVISION_CROPS = dict(crop="torchvision", resize="pillow", interpolation="bilinear")
TORCHVISION_COLOURS = dict(jitter="torchvision", blur_border="pillow")

# The classes of PASCAL VOC in its order, as COCO names them.
VOC_IN_COCO = (
    *("airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table"),
    *("dog", "horse", "motorcycle", "person", "potted plant", "sheep", "couch", "train", "tv"),
)

# The protocols on features that are fast enough to run by default on small data sets.
ALL_FEATURES = ("knn", "linear", "label_fraction")


def base() -> ConfigDict:
    """The neutral recipe: one view by crops and flips, a ResNet-50 and SGD, but no method and no data."""
    return resolve(ConfigDict())


# -------------------------------------------------------------------------------------------------- data sets
# Each comes with a network, an evaluation and logging intervals that suit its size.


def imagenet(epochs: int, batch_size: int) -> ConfigDict:
    """ImageNet at 224 pixels, decoded and cropped on the host; a ResNet-50 in bfloat16."""
    c = base()
    c.epochs = epochs
    c.batch_size = batch_size
    c.data.update(source="tfds:imagenet2012", test_split="validation")
    return c


def folder() -> ConfigDict:
    """Your own photographs at 224 pixels.

    Set --config.data.source=folder:PATH. PATH has the folders train/ and test/, or one sub-folder per class.
    """
    c = base()
    c.epochs = 200
    c.batch_size = 256
    c.data.update(source="folder:images")
    c.log_every = 20
    c.checkpoint.every_steps = 200
    c.evaluate.update(linear="lbfgs", protocols=ALL_FEATURES, knn_k=0)
    return c


def folder_small() -> ConfigDict:
    """Your own images at 32 pixels on two CPU cores, a few thousand of them in ten minutes.

    Set --config.data.source=folder:PATH, as for `folder`. The network is a ResNet-10 of base width 16.
    """
    c = _small(base(), 32, 3)
    c.epochs = 40
    c.batch_size = 128
    c.data.update(source="folder:images")
    c.model.update(name="resnet10", width=0.25)
    c.log_every = 20
    c.eval_every_epochs = 10
    c.checkpoint.every_steps = 200
    c.evaluate.update(knn_k=0)
    return c


def _small(c: ConfigDict, size: int, channels: int) -> ConfigDict:
    """What all data sets of small images share.

    The images are held in memory and cropped on the device. Evaluation sees the whole image. Networks compute
    in float32.
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
    c.epochs = epochs
    c.batch_size = batch_size
    c.data.update(source="tfds:cifar10")
    return c


def cifar10_lightly() -> ConfigDict:
    """CIFAR-10 by the recipe of lightly's benchmark, 200 epochs at batch size 512.

    Source: lightly-ai/lightly at e8d317f, docs/source/getting_started/benchmarks/cifar10_benchmark.py. It is
    a ResNet-18 without the strided stem, SGD at 0.06 B / 128 with a cosine by whole epochs, and
    torchvision's views without blur. It reports the best kNN of all epochs on the test set; a run here
    reports its last. lightly computes in float32 and initialises as PyTorch does by default [X].
    """
    c = cifar10(epochs=200, batch_size=512)
    c.augment.update(crop="torchvision", interpolation="bilinear", min_area=0.08, **IMAGENET)
    c.augment.update(
        jitter="torchvision", jitter_probability=0.8, jitter_strength=0.5, grayscale_probability=0.2
    )
    c.model.update(shortcut="torchvision", dtype="bfloat16")
    c.optim = dict(
        name="torch_sgd", learning_rate=0.12, scaling="linear", momentum=0.9, weight_decay=5e-4, milestones=()
    )
    c.checkpoint.best = ""
    return c


def cifar10_small() -> ConfigDict:
    """CIFAR-10 on two CPU cores: ResNet-18 of base width 16 for ten epochs.

    For a folder of CIFAR-10 images: --config.data.source=folder:PATH --config.data.train_per_class=2000
    """
    c = cifar10(epochs=10, batch_size=256)
    c.model.width = 0.25
    c.log_every = 20
    c.eval_every_epochs = 5
    c.checkpoint.every_steps = 100
    return c


def fashion_mnist() -> ConfigDict:
    """Fashion-MNIST on a CPU: grey images of 28 pixels; ResNet-10 of base width 16.

    Crops cover at least a fifth of the image.
    """
    c = _small(base(), 28, 1)
    c.epochs = 5
    c.batch_size = 256
    c.data.update(source="fashion_mnist")
    c.augment.min_area = 0.2
    c.model.update(name="resnet10", width=0.25)
    c.log_every = 50
    c.eval_every_epochs = 1
    c.checkpoint.every_steps = 300
    return c


def digits() -> ConfigDict:
    """scikit-learn's 1,797 scanned digits at 16 pixels: small warps, no flips; ResNet-8 of base width 16.

    The strided stem takes a fifth of the time that CIFAR's stem takes.
    """
    c = _small(base(), 16, 1)
    c.epochs = 40
    c.batch_size = 128
    c.data.update(source="digits")
    c.augment.update(crop="affine", flip=False, rotate=25.0, shift=0.15, zoom=0.2, shear=15.0)
    c.model.update(name="resnet8", width=0.25, stem="imagenet")
    c.evaluate.update(knn_k=20, label_draws=3)  # only 150 images per class; the demo takes three minutes
    c.log_every = 50
    c.eval_every_epochs = 20
    c.checkpoint.every_steps = 200
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


def annotated(c: ConfigDict, what: str) -> None:
    """Sets a config to images with "boxes" or "masks": Pillow resizes them, and nothing else but flips.

    The section `annotated` says to which sizes.
    """
    crops_alone(c)
    c.data.annotations = what
    c.augment.update(crop="none", resize="pillow", interpolation="bilinear")
    c.eval_every_epochs = 0
    c.checkpoint.best = ""


def crops_alone(c: ConfigDict) -> None:
    """Reduces a config to one view by crops and flips, without colour changes or blur."""
    c.views = dict(one=dict())
    c.augment.update(
        jitter_probability=0.0, grayscale_probability=0.0, blur_probability=0.0, solarize_probability=0.0
    )


def two_stages(first: str, before: ConfigDict, second: str, after: ConfigDict) -> ConfigDict:
    """A config of two named stages, in this order."""
    return ConfigDict({"stages": (first, second), first: before, second: after})


def finetune(pretrain: ConfigDict) -> ConfigDict:
    """Two stages: `pretrain`, then training the whole network and a linear head on labels.

    The recipe is SimCLR's, section 4.2 and appendix B.5.
    """
    c = pretrain.copy_and_resolve_references()
    c.method = "supervised"
    c.init_from = "pretrain"
    crops_alone(c)  # [P]
    # [P]
    c.optim = dict(
        name="sgd", nesterov=True, learning_rate=0.05, scaling="linear", weight_decay=0.0, warmup_epochs=0
    )
    c.evaluate.protocols = ("classifier",)
    return two_stages("pretrain", pretrain, "finetune", c)


def linear(pretrain: ConfigDict, **recipe: Any) -> ConfigDict:
    """Two stages: `pretrain`, then a linear classifier on its frozen backbone under random crops and flips.

    Network, data and pixels stay as they are; kNN during training would always be the same, and is off.

    Args:
        pretrain: the config of the first stage.
        recipe: what the paper says of the second: `batch_size`, `epochs`, `optim`, and sections such as
            `head`, `probe` and `augment`, in which other keys stay.
    """
    c = pretrain.copy_and_resolve_references()
    c.method = "linear"
    c.init_from = "pretrain"
    crops_alone(c)
    c.accumulate = 1
    c.eval_every_epochs = 0
    c.checkpoint.best = ""
    c.evaluate.protocols = ("classifier",)
    c.head = dict(scheme="normal_0.01")
    c.optim = {}
    for name, value in recipe.items():
        if isinstance(value, dict) and name in c:
            c[name].update(value)
        else:
            c[name] = value
    return two_stages("pretrain", pretrain, "linear", c)


# ----------------------------------------------------------------------------------------- finishing a preset


def choose(preset: str, presets: Collection[str], file: str) -> None:
    """Checks that a config file has a preset.

    Args:
        preset: the preset that was asked for.
        presets: the file's PRESETS.
        file: the file's name, e.g. configs/simclr.py.

    Raises:
        ValueError: there is no such preset; the message lists the valid ones, and then the nearest.
    """
    if preset not in presets:
        near = difflib.get_close_matches(preset, presets, 2, 0.7)
        guess = f". Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"{file} has no preset {preset!r}. Valid presets: {', '.join(presets)}{guess}")


def named(config: ConfigDict, preset: str) -> ConfigDict:
    """Finishes a preset: resolves, checks and locks the config, and sets the preset's name in every stage.

    Raises:
        ValueError: a value is not valid, see `check`.
    """
    config = resolve(config)
    for stage in stages(config).values():
        stage.preset = preset
    check(config)
    return config.lock()
