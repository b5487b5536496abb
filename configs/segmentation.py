"""Semantic segmentation, fine-tuned from the backbone of any run; mIoU on the test split.

    ssljax train --config configs/segmentation.py:voc --config.init_from=RUN --workdir runs/voc
    ssljax evaluate --config configs/segmentation.py:voc --workdir runs/voc

RUN is the folder of a run, or of weights that `ssljax convert` read; `--config.model...` must be that of RUN
but for `last_stride` and `last_dilation`. Without init_from the network is random, the baseline.

    voc                 MoCo's and BYOL's table: random 39.5, labels 74.4, MoCo 72.5, BYOL 76.3        [R]
    voc_alexnet_fc6_8   DeepCluster's table: convolutions as they are, 43.2                            [R]
    voc_alexnet_all     the same, all layers, 45.1; labels 48.0                                        [R]
    coco_small          a ResNet-10 of base width 16 on 40 photographs at 96 pixels, on a CPU

Sources: [V] shelhamer/fcn.berkeleyvision.org at 1305c73, voc-fcn-alexnet; [R] from memory of the papers, no
code was released; [X] chosen here.
"""

from ml_collections import ConfigDict

from ssljax import config

PRESETS = ("voc", "voc_alexnet_fc6_8", "voc_alexnet_all")


def segmentation(c: ConfigDict) -> ConfigDict:
    """What all presets share."""
    c.method = c.name = "segmentation"
    c.views = dict(one=dict())
    c.eval_every_epochs = 0
    c.checkpoint.best = ""
    return c


def voc() -> ConfigDict:
    """ResNet-50 with dilation on PASCAL VOC 2012 with SBD's masks (train_aug, 10,582 images) [R]."""
    c = segmentation(config.base())
    c.epochs = 46
    c.batch_size = 16
    c.data.update(source="voc_seg:PATH", image_size=513)
    c.augment.update(**config.IMAGENET)
    c.model.update(name="resnet50", shortcut="torchvision", last_stride=1, last_dilation=2)
    c.fcn = dict(mean_over="pixels", channels=256, dilation=6)
    c.optim = dict(
        name="torch_sgd",
        learning_rate=0.003,
        scaling="none",
        momentum=0.9,
        weight_decay=1e-4,
        milestones=(32, 41),
    )
    return c


def get_config(preset: str = "voc") -> ConfigDict:
    """The locked configuration of one preset.

    Raises:
        ValueError: the preset is not one of PRESETS.
    """
    config.choose(preset, PRESETS, "configs/segmentation.py")
    return config.named(globals()[preset](), preset)
