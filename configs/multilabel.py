"""Training on several labels per image: DeepCluster's PASCAL VOC 2007 classification (methods/multilabel.py).

    ssljax train --config configs/multilabel.py:voc_alexnet_fc6_8 --config.init_from=RUN \\
        --config.data.data_dir=DIR --workdir runs/voc                                   # 70.4; 72.0 with
    ssljax evaluate --workdir runs/voc                                      # --config.tune.gains=True

RUN is a run of configs/deepcluster.py:imagenet_alexnet or imagenet_vgg16, or converted weights. DIR/voc2007
is the unpacked VOCdevkit/VOC2007, or TFDS has prepared voc/2007. Training is on trainval, the test on test:
ten random crops of each image, whose logits are summed.

Sources of the numbers: [C] facebookresearch/deepcluster, eval_voc_classif.py and, for ALL, its Caffe scripts
(philkr/voc-classification, src/train_cls.py); [X] chosen here.
"""

from ml_collections import ConfigDict

from ssljax import config

FULL = ("fc6", "fc7")
VOC = {
    f"voc_{network}_{part}": (network, part) for network in ("alexnet", "vgg16") for part in ("fc6_8", "all")
}

PRESETS = ("digits", *VOC)


def multilabel(c: ConfigDict) -> ConfigDict:
    """One decision per class; crops and flips."""
    c.method = c.name = "multilabel"
    config.crops_alone(c)
    c.evaluate.protocols = ("finetuned",)
    return c


def voc(network: str, part: str) -> ConfigDict:
    """80,000 steps at batch size 16, in which the rate halves every 5,000; 150,000 and 20,000 for ALL [C].

    ALL has the steps and rates of the Caffe scripts and otherwise the settings of the PyTorch code, which has
    no command for it: crops of 0.1 to 0.5 of the area, where Caffe's images are scaled by 0.5 to 2, and one
    rate, where Caffe's biases have twice that of the kernels [X].
    """
    whole = part == "all"
    c = multilabel(config.imagenet(epochs=480 if whole else 256, batch_size=16))  # of 313 steps
    c.data.update(source="transfer:voc2007", train_split="train+validation", test_split="test")
    c.augment.update(**config.TORCHVISION_CROPS, **config.IMAGENET)
    c.augment.update(min_area=0.1, max_area=0.5, aspect=(1.0, 1.0))
    c.model.update(name=f"{network}_bn", shortcut="torchvision", sobel=True, dropout=0.5)
    c.head = dict(scheme="uniform")
    c.tune = dict(anew=FULL, bias=0.1, layers="all" if whole else "anew", norms="running", gains=False)
    c.optim = dict(
        name="halving_sgd",
        learning_rate=0.001 if whole else 0.003,
        scaling="none",
        momentum=0.9,
        weight_decay=1e-6,
        halve_every=20_000 if whole else 5_000,
        clip=10.0,
    )
    c.eval_every_epochs = 0
    c.checkpoint.best = ""
    c.evaluate.random_crops = 10
    return c


def digits() -> ConfigDict:
    """Each of the ten digits against all others [X]."""
    c = multilabel(config.digits())
    c.epochs = 20
    c.head = dict(scheme="zeros")
    c.optim = dict(
        name="sgd", nesterov=True, learning_rate=0.1, scaling="none", momentum=0.9, weight_decay=1e-4
    )
    return c


def get_config(preset: str = "digits") -> ConfigDict:
    """The locked configuration of one preset.

    Raises:
        ValueError: the preset is not one of PRESETS.
    """
    config.choose(preset, PRESETS, "configs/multilabel.py")
    return config.named(voc(*VOC[preset]) if preset in VOC else digits(), preset)
