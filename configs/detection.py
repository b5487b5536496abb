"""Faster R-CNN fine-tuned from any network: the transfer to detection of MoCo (He et al., arXiv 1911.05722)
and, on the network of Fast R-CNN, of DeepCluster (Caron et al., arXiv 1807.05520).

    ssljax train --config configs/detection.py:digits --workdir runs/boxes
    ssljax train --config configs/detection.py:coco_small --config.data.source=coco:FOLDER \\
        --workdir runs/coco
    ssljax train --config configs/detection.py:voc --config.data.source=voc:VOCdevkit \\
        --config.init_from=RUN --workdir gs://bucket/voc
    ssljax train --config configs/detection.py:voc_alexnet_fc6_8 --config.data.source=voc:VOCdevkit \\
        --config.init_from=RUN --workdir runs/fast
    ssljax evaluate --config configs/detection.py:voc --config.data.source=voc:VOCdevkit \\
        --workdir gs://bucket/voc

RUN is the folder of a run, or of weights that `ssljax convert` read; without init_from the network starts
from random weights, as a baseline. `--config.model...` must be that of RUN: `voc` and `coco` expect
torchvision's ResNet-50 (MoCo, DeepCluster-v2, converted weights), a network of SimCLR needs
--config.model.shortcut=simclr, and one of BYOL's ImageNet presets --config.model.padding=same as well.
`coco_small` has the network of configs/simclr.py:cifar10_small. Those of `voc_alexnet_*` and `voc_vgg16_*`
are configs/deepcluster.py:imagenet_alexnet's and imagenet_vgg16's.

With B images per step instead of 16, on fewer devices: --config.batch_size=8
--config.optim.learning_rate=0.01 --config.steps=48000 --config.optim.step_milestones='(36000,44000)'.

Sources of the numbers: [P] the paper, [C] facebookresearch/moco at 132aea9, detection/, and the defaults of
facebookresearch/detectron2 at 02b5c4e; for AlexNet and VGG-16 rbgirshick/fast-rcnn at b612190; [R] recalled,
[X] chosen here.
"""

from ml_collections import ConfigDict

from ssljax import config

PLAIN = {
    f"voc_{network}_{part}": (network, part) for network in ("alexnet", "vgg16") for part in ("fc6_8", "all")
}

PRESETS = ("digits", "voc", "coco", "coco_small", *PLAIN)

# Classes of COCO whose objects are mostly larger than ten pixels in images of 128.
LARGE = (
    *("bicycle", "motorcycle", "airplane", "bus", "train", "bird", "dog", "horse", "elephant", "zebra"),
    *("giraffe", "umbrella", "sandwich", "hot dog", "pizza", "donut", "cake", "couch", "potted plant", "bed"),
    *("laptop", "microwave", "oven", "refrigerator", "vase", "teddy bear"),
)


def faster_rcnn(c: ConfigDict) -> ConfigDict:
    """The recipe of detectron2, R50-C4 with MoCo's norm; all norms trained, over the global batch."""
    c.method = c.name = "detection"
    config.annotated(c, "boxes")
    c.augment.update(config.IMAGENET)
    c.model.update(shortcut="torchvision", remat="blocks")
    c.evaluate.protocols = ("detection",)
    c.evaluate.batch_size = 16
    return c


def voc() -> ConfigDict:
    """MoCo's 24,000 steps on VOC07+12 trainval, for VOC07 test [C].

    AP50 / AP / AP75 there, the mean of five runs: random 60.2 / 33.8 / 33.1, ImageNet labels 81.3 / 53.5 /
    58.8, MoCo v1 81.5 / 55.9 / 62.6, MoCo v2 82.5 / 57.4 / 64.0 after 800 epochs. One run says little: their
    standard deviations are 0.2 to 0.4. Computed in bfloat16 [X].
    """
    c = faster_rcnn(config.base())
    c.data.update(source="voc:VOCdevkit", train_split="2007/trainval+2012/trainval", test_split="2007/test")
    c.steps = 24_000
    c.epochs = 23  # 16,551 images: 23.2 [C]
    c.batch_size = 16
    c.optim = dict(
        name="detectron_sgd",
        learning_rate=0.02,
        scaling="none",
        momentum=0.9,
        weight_decay=1e-4,
        warmup_steps=100,
        warmup_factor=0.001,
        step_milestones=(18_000, 22_000),
    )
    return c


def plain(network: str, part: str) -> ConfigDict:
    """Fast R-CNN's network on VOC07 trainval, for VOC07 test: DeepCluster's table.

    **Its regions are proposals of an RPN, and not the boxes of selective search** [X]; methods/detection.py
    has the other differences. The table's mAP is AP50 here: 51.4 (FC6-8) and 55.4 (ALL) for DeepCluster's
    AlexNet, 65.9 (ALL) for its VGG-16. A step of two images fits on one or two devices. For eight [X]:
    --config.batch_size=8 --config.optim.learning_rate=0.004 --config.steps=37500
    --config.optim.step_milestones='(28125,)'.
    """
    c = faster_rcnn(config.base())
    c.data.update(source="voc:VOCdevkit", train_split="2007/trainval", test_split="2007/test")
    # Five sizes of up to 2000 pixels [C], in training alone [R]; a test of one size has up to 1000 [C].
    c.annotated = dict(
        short_sides=(480, 576, 688, 864, 1200), test_short_side=600, long_side=2000, test_long_side=1000
    )
    c.steps = 150_000  # [R]
    c.epochs = 60  # of 2501 steps; 5,011 images
    c.batch_size = 2  # [C]
    c.model = dict(name=f"{network}_bn", sobel=True, dropout=0.5, shortcut="torchvision")
    c.detector = dict(
        regions=64,  # [C], per image
        background=0.1,  # [C]
        overlap=0.3,  # [C]
        trained="all" if part == "all" else "fc",
    )
    c.optim = dict(
        name="detectron_sgd",
        learning_rate=0.001,  # [C]
        scaling="none",
        momentum=0.9,  # [C]
        weight_decay=5e-4,  # [C]
        warmup_steps=0,
        step_milestones=(112_500,),  # as 30,000 of the 40,000 steps there [X]
    )
    return c


def coco() -> ConfigDict:
    """MoCo's 2x schedule on COCO 2017 [C], without the masks that it learns beside the boxes [X]."""
    c = voc()
    c.data.update(source="coco:coco", train_split="train", test_split="test")
    c.annotated = dict(short_sides=(640, 672, 704, 736, 768, 800))
    c.steps = 180_000
    c.epochs = 25  # 117,266 images with objects: 24.6
    c.optim.update(warmup_steps=1000, step_milestones=(120_000, 160_000))
    return c


def coco_small() -> ConfigDict:
    """Large things in a few images of COCO at 128 pixels, a small network [X].

    --config.data.train_split='train[:54]' is the first 40 images with an object of these classes, and
    --config.data.test_split='train[:54]' measures on them: without flips it knows them by heart after 800
    steps from random weights, AP 79.0 and AP50 99.4.
    """
    c = faster_rcnn(config.base())
    c.data.update(source="coco:coco_small", categories=LARGE)
    c.annotated = dict(short_sides=(128,), test_short_side=128, long_side=128)
    c.steps = 800
    c.epochs = 160
    c.batch_size = 8
    c.model.update(
        name="resnet18", width=0.25, stem="cifar", shortcut="simclr", dtype="float32", remat="none"
    )
    c.detector = dict(
        anchor_sizes=(8.0, 16.0, 32.0, 64.0, 96.0),
        anchors=128,
        regions=32,
        train_before=500,
        train_after=100,
        test_before=500,
        test_after=100,
        precise_bn=20,
    )
    c.optim = dict(name="adamw", learning_rate=2e-3, scaling="none", weight_decay=1e-4, warmup_epochs=2)
    c.log_every = 20
    c.checkpoint.every_steps = 100
    c.evaluate.batch_size = 8
    return c


def digits() -> ConfigDict:
    """Scenes of up to three of scikit-learn's digits, on the ResNet-8 of the presets for small images [X]."""
    c = faster_rcnn(config.base())
    c.data.update(source="digits")
    c.annotated = dict(short_sides=(32,), test_short_side=32, long_side=48)
    c.epochs = 10
    c.batch_size = 16
    c.model.update(name="resnet8", width=0.25, stem="cifar", shortcut="simclr", dtype="float32", remat="none")
    c.augment.flip = False
    c.detector = dict(
        anchor_sizes=(8.0, 12.0, 16.0),
        anchors=64,
        regions=32,
        train_before=300,
        train_after=40,
        test_before=300,
        test_after=40,
        keep=10,
        precise_bn=10,
    )
    c.optim = dict(
        name="sgd", learning_rate=1.0, scaling="linear", momentum=0.9, weight_decay=1e-4, warmup_epochs=1
    )
    c.log_every = 20
    c.checkpoint.every_steps = 200
    c.evaluate.batch_size = 32
    return c


def get_config(preset: str = "digits") -> ConfigDict:
    """The locked configuration of one preset.

    Raises:
        ValueError: the preset is not one of PRESETS.
    """
    config.choose(preset, PRESETS, "configs/detection.py")
    return config.named(plain(*PLAIN[preset]) if preset in PLAIN else globals()[preset](), preset)
