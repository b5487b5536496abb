"""Semantic segmentation, fine-tuned from any network: the transfer of MoCo, BYOL and DeepCluster, mIoU.

    ssljax train --config configs/segmentation.py:digits --workdir runs/masks
    ssljax train --config configs/segmentation.py:coco_small --config.data.source=coco:FOLDER \\
        --config.data.train_split='train[:40]' --config.data.test_split='train[:40]' --workdir runs/40
    ssljax train --config configs/segmentation.py:voc --config.data.source=voc:VOCdevkit \\
        --config.init_from=RUN --workdir gs://bucket/voc
    ssljax evaluate --config configs/segmentation.py:voc --config.data.source=voc:VOCdevkit \\
        --workdir gs://bucket/voc

RUN is the folder of a run, or of weights that `ssljax convert` read; without init_from the network starts
from random weights, as a baseline. `--config.model...` must be that of RUN, but for `last_stride` and
`last_dilation`: `voc` expects torchvision's ResNet-50 (MoCo, converted weights), a network of SimCLR needs
--config.model.shortcut=simclr, and one of BYOL's ImageNet presets --config.model.padding=same as well.
`voc_alexnet_*` expect the AlexNet of configs/deepcluster.py, and `coco_small` the ResNet-10 of `folder_small`
presets.

mIoU of the papers' tables on VOC 2012 val, all from memory [R]:

    voc                 random 39.5, ImageNet labels 74.4, MoCo 72.5 (1B images: 73.6), BYOL 76.3
    voc_alexnet_fc6_8   best before 35.8, DeepCluster 43.2 (YFCC: 39.2)
    voc_alexnet_all     best before 37.7, DeepCluster 45.1 (YFCC: 42.2), ImageNet labels 48.0

Sources of the numbers: [C] shelhamer/fcn.berkeleyvision.org at 1305c73, voc-fcn-alexnet; [R] recalled from
papers without released code; [X] chosen here.
"""

from ml_collections import ConfigDict

from ssljax import config

PRESETS = ("digits", "voc", "voc_alexnet_fc6_8", "voc_alexnet_all", "coco_small")


def segmentation(c: ConfigDict) -> ConfigDict:
    """What all presets share."""
    c.method = c.name = "segmentation"
    config.annotated(c, "masks")
    c.augment.update(config.IMAGENET)
    c.evaluate.protocols = ("segmentation",)
    c.evaluate.batch_size = 16
    return c


def voc() -> ConfigDict:
    """MoCo's and BYOL's: a dilated ResNet-50, 30,000 steps on the 10,582 images of train_aug [R].

    Those are VOC 2012's and the Semantic Boundaries Dataset's. All norms are trained, over the global batch.
    The rate falls at 70 and 90 % of the steps, and norms are not decayed [X].
    """
    c = segmentation(config.base())
    c.data.update(source="voc:VOCdevkit", train_split="2012/train_aug", test_split="2012/val")
    c.annotated = dict(scales=(0.5, 2.0), crop=513, test_side=513)
    c.steps = 30_000
    c.epochs = 45
    c.batch_size = 16
    c.model.update(name="resnet50", shortcut="torchvision", last_stride=1, last_dilation=2, remat="blocks")
    c.fcn = dict(mean_over="pixels", channels=256, dilation=6)
    c.optim = dict(
        name="detectron_sgd",
        learning_rate=0.003,
        scaling="none",
        momentum=0.9,
        weight_decay=1e-4,
        warmup_steps=0,
        step_milestones=(21_000, 27_000),
    )
    return c


def voc_alexnet_all() -> ConfigDict:
    """DeepCluster's AlexNet as FCN-32s, every layer trained [C].

    100,000 steps of 20 images, a constant rate, images at their own size and never mirrored, the loss a mean
    over images. Trained on the 8,498 images of SBD's train there; here on VOC 2012's `train_aug`, which has
    them all [X]. DeepCluster's own settings were not released.
    """
    c = segmentation(config.base())
    c.data.update(source="voc:VOCdevkit", train_split="2012/train_aug", test_split="2012/val")
    c.annotated = dict(scales=(1.0, 1.0), crop=500, test_side=500)
    c.augment.flip = False
    c.steps = 100_000
    c.epochs = 189
    c.batch_size = 20
    c.model = dict(name="alexnet_bn", sobel=True, dropout=0.5, shortcut="torchvision")
    c.fcn = dict(mean_over="images", trained="all", side=224)
    c.optim = dict(
        name="deepcluster_sgd", learning_rate=1e-4, scaling="none", momentum=0.9, weight_decay=5e-4
    )
    return c


def voc_alexnet_fc6_8() -> ConfigDict:
    """The same with the convolutions as they are: fc6, fc7 and the scores are trained."""
    c = voc_alexnet_all()
    c.fcn.trained = "fc"
    return c


def small(c: ConfigDict) -> ConfigDict:
    """A ResNet of base width 16 on a CPU, whose map has a quarter of the image's side."""
    c = segmentation(c)
    c.model.update(
        width=0.25, stem="cifar", shortcut="simclr", dtype="float32", last_stride=1, last_dilation=2
    )
    c.optim = dict(
        name="sgd",
        nesterov=True,
        learning_rate=0.5,
        scaling="none",
        momentum=0.9,
        weight_decay=1e-4,
    )
    c.log_every = 20
    c.checkpoint.every_steps = 200
    return c


def coco_small() -> ConfigDict:
    """VOC's classes in a few images of COCO at 96 pixels, five minutes on two CPU cores [X].

    For --config.data.train_split='train[:40]' it learns its training images by heart: a mIoU of 87 on them,
    from random weights.
    """
    c = small(config.base())
    c.data.update(source="coco:coco_small", categories=config.VOC_IN_COCO)
    c.annotated = dict(long_side=96, scales=(1.0, 1.0), crop=96, test_side=96)
    c.augment.flip = False
    c.steps = 1200
    c.epochs = 240
    c.batch_size = 8
    c.model.name = "resnet10"
    c.fcn = dict(mean_over="pixels", channels=64, dilation=2)
    c.optim.warmup_epochs = 5
    return c


def digits() -> ConfigDict:
    """Scenes of up to three of scikit-learn's digits, on the ResNet-8 of the presets for small images [X].

    It takes three minutes on two CPU cores, and has a mIoU of 70 on the held-out scenes. After ten epochs it
    is still 10.
    """
    c = small(config.base())
    c.data.update(source="digits")
    c.annotated = dict(scales=(1.0, 1.0), crop=48, test_side=48)
    c.augment.flip = False
    c.epochs = 30
    c.batch_size = 16
    c.model.name = "resnet8"
    c.fcn = dict(mean_over="pixels", channels=64, dilation=2)
    c.optim.warmup_epochs = 1
    return c


def get_config(preset: str = "digits") -> ConfigDict:
    """The locked configuration of one preset.

    Raises:
        ValueError: the preset is not one of PRESETS.
    """
    config.choose(preset, PRESETS, "configs/segmentation.py")
    return config.named(globals()[preset](), preset)
