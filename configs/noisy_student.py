"""Noisy Student (Xie et al., CVPR 2020, arXiv 1911.04252): a teacher, a noised student, and again.

    ssljax train --config configs/noisy_student.py:digits --workdir runs/noisy        # a teacher, its student
    ssljax train --config configs/noisy_student.py:cifar10_small_1pct --workdir runs/c10 \\
        --config.teacher.data.source=folder:cifar10 --config.student.data.source=folder:cifar10 ...
    ssljax train --config configs/noisy_student.py:imagenet_b5_10pct --workdir gs://bucket/b5

Stages are the turns of the algorithm: `teacher` learns from the labels alone, `student` from the labels and
from what the teacher says about the other images, `student2` from what `student` says. All but the first
stage mix labelled and unlabelled images in one batch.

`imagenet_<net>_10pct` has 10 % of ImageNet's labels, and the other images stand for JFT-300M, which is not
public [X]. `imagenet_<net>_teacher` is the first turn on all labels.

Images of your own, labelled or not, are unlabelled images of the student with
--config.student.data.unlabelled=folder:PATH, tfds:NAME or hf:NAME. They come after those of data.source, all
of which keep their labels with --config.student.data.label_fraction=1. The teacher can be the folder of a
finished run, with --config.student.pseudo.teacher.

Sources of the numbers: [P] the paper, [C] the released code (google-research/noisystudent), [X] chosen here.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from ssljax import config


class Net(NamedTuple):
    """How a network is trained: the code's settings and its scripts'.

    Attributes:
        size: side of the training images, in pixels.
        test_size: side of the test images.
        dropout: rate before the classifier.
        ratio: unlabelled images for each labelled one.
        level: magnitude of RandAugment; 0: none.
        epochs: over the labelled images.
    """

    size: int
    test_size: int
    dropout: float
    ratio: int
    level: int
    epochs: int


NETS = {  # [C]; L2 [P]
    "b0": Net(224, 224, 0.2, 1, 0, 700),
    "b1": Net(240, 240, 0.2, 3, 0, 700),
    "b2": Net(260, 260, 0.3, 3, 6, 700),
    "b3": Net(300, 300, 0.3, 3, 12, 700),
    "b4": Net(380, 380, 0.4, 3, 15, 700),
    "b5": Net(456, 456, 0.4, 3, 18, 350),
    "b6": Net(528, 528, 0.5, 3, 24, 350),
    "b7": Net(600, 600, 0.5, 3, 27, 350),
    "l2": Net(475, 800, 0.5, 14, 27, 350),
}
FRACTIONS = {"1pct": 0.01, "10pct": 0.1}

IMAGENET_TEACHERS = {f"imagenet_{net}_teacher": net for net in NETS}
IMAGENET = {f"imagenet_{net}_10pct": net for net in NETS}
SMALL = {
    f"{data}_{part}": (data, fraction)
    for data in ("fashion_mnist", "cifar10_small")
    for part, fraction in FRACTIONS.items()
}
# What a run changes in the student: the ablations of table 6 and of section 4.
ABLATIONS: dict[str, dict] = {
    "no_noise": {"augment.policy": "none", "model.dropout": 0.0, "model.drop_path": 0.0},
    "no_augmentation": {"augment.policy": "none"},
    "hard": {"pseudo.kind": "hard"},
    "mean": {"pseudo.weighting": "mean"},
}
ABLATED = {f"{preset}_{name}": (preset, name) for preset in SMALL for name in ABLATIONS}

PRESETS = (
    "digits",
    "folder",
    "folder_small",
    *SMALL,
    *ABLATED,
    *(f"{preset}_two_rounds" for preset in SMALL),
    *IMAGENET_TEACHERS,
    *IMAGENET,
    "imagenet_l2_10pct_800",
)


def noisy_student(c: ConfigDict) -> ConfigDict:
    """The first turn on a data set: a noised network on the labels alone."""
    c.method = c.name = "noisy_student"
    c.views = dict(one=dict())
    c.pseudo = dict(ratio=0, label_smoothing=0.1)  # [C]
    c.ema = dict(decay=0.9999)  # from 0.1 on, as min(decay, (1 + t) / (10 + t)) [C]
    c.evaluate.protocols = ("classifier",)
    return c


def student(first: ConfigDict, teacher: str, ratio: int) -> ConfigDict:
    """A turn with unlabelled images, by the same network [P]."""
    c = first.copy_and_resolve_references()
    c.data.keep_unlabelled = True
    c.teacher = c.model.copy_and_resolve_references()
    c.pseudo.update(
        ratio=ratio,
        teacher=teacher,  # the name of an earlier stage, or the folder of a run
        teacher_size=0,
        kind="soft",  # soft | hard [C]: every script
        temperature=1.0,  # [C]
        threshold=0.0,  # 0.3 for JFT [C]
        per_class=0,  # 130000 for JFT [C]
        weighting="ratio",  # ratio [C] | mean [P]
        epochs_of="unlabelled",
    )
    return c


def rmsprop(c: ConfigDict, decay_epochs: float) -> ConfigDict:
    """The paper's optimizer."""
    c.optim = dict(
        name="tf_rmsprop",
        learning_rate=0.016,
        scaling="linear",
        momentum=0.9,
        weight_decay=1e-5,
        warmup_epochs=5,
        decay_epochs=decay_epochs,
        offset_epochs=0.0,
    )
    return c


def efficientnet(name: str) -> dict:
    """One of the paper's networks."""
    return dict(
        name=f"efficientnet_{name}",
        dtype="bfloat16",
        width=1.0,
        depth=1.0,
        stem="imagenet",
        drop_path=0.2,
        dropout=NETS[name].dropout,
        frozen_blocks=0,
        bn_momentum=0.99,
        bn_epsilon=1e-3,
        remat="blocks" if name in ("b7", "l2") else "none",
    )


def imagenet(name: str, fraction: float) -> ConfigDict:
    """One of the paper's networks on ImageNet at its own resolution s; test crops have s / (s + 32).

    The released code resizes as TensorFlow 1 and cuts off where this rounds: 5.5 grey levels in test crops,
    2.9 in training crops [X] (docs/resizing.md). Its fallback after 10 crops never came up in 12,000 draws.
    """
    net = NETS[name]
    c = noisy_student(config.imagenet(net.epochs, 2048))
    c.model = efficientnet(name)
    c.data.update(
        image_size=net.size,
        eval_crop=net.size / (net.size + 32),
        label_fraction=fraction,
        label_list="papers",
    )
    c.augment.update(crop="tf", min_area=0.08, **config.IMAGENET)
    if net.level:
        c.augment.update(policy="randaugment_tf", policy_level=float(net.level))
    # A stair is 2.4 epochs of 350, and as long a part of 700 [C].
    return rmsprop(c, 2.4 * net.epochs / 350)


def imagenet_rounds(name: str) -> ConfigDict:
    """10 % of the labels, the other images in JFT's place: a teacher and its student [X]."""
    first = imagenet(name, 0.1)
    net = NETS[name]
    second = student(first, "teacher", net.ratio)
    second.pseudo.epochs_of = "labelled"  # [C]
    second.batch_size = 2048 * (1 + net.ratio)
    second.optim.learning_rate = 0.016 / (1 + net.ratio)  # 0.016 for 256 labelled images
    return config.two_stages("teacher", first, "student", second)


def fix_resolution(name: str) -> ConfigDict:
    """The two turns, then the labels alone at the test images' resolution, with the first blocks frozen [P].

    The paper's 1.5 epochs are 2 here, its crops are the central square, and the moving average begins anew
    [X]. How many blocks it freezes it does not say: half of them [X].
    """
    c = imagenet_rounds(name)
    net = NETS[name]
    last = c.teacher.copy_and_resolve_references()
    last.init_from = "student"
    last.init_branches = ("encoder", "head")
    last.epochs = 2
    last.data.update(image_size=net.test_size, eval_crop=net.test_size / (net.test_size + 32))
    last.augment.update(crop="none", flip=False, policy="none")
    last.model.frozen_blocks = 44
    last.optim.update(warmup_epochs=0, offset_epochs=float(net.epochs - 2))  # the schedule goes on [C]
    c.stages = ("teacher", "student", "finetune")
    c.finetune = last
    return c


def small_network(c: ConfigDict, dropout: float, width: float) -> ConfigDict:
    """An EfficientNet of seven blocks for images of 16 to 32 pixels [X].

    With the strided stem a step takes a fifth of the time, and a teacher of 100 labels of Fashion-MNIST falls
    from 59 % to 42 %.
    """
    c.model = dict(
        name="efficientnet_xs",
        dtype="float32",
        width=width,
        depth=1.0,
        stem="cifar",
        drop_path=0.1,
        dropout=dropout,
        frozen_blocks=0,
        bn_momentum=0.9,
        bn_epsilon=1e-3,
        remat="none",
    )
    c.ema.decay = 0.99
    # Like RMSProp, Adam does not see the factor 1 + r between the two weightings of the loss.
    c.optim = dict(name="adamw", learning_rate=2e-3, scaling="none", weight_decay=1e-4, warmup_epochs=1)
    return c


def small(data: str, fraction: float) -> ConfigDict:
    """10,000 images of Fashion-MNIST or CIFAR-10, a part of them labelled.

    RandAugment has the magnitude of SVHN [C], the rest is [X].
    """
    c = config.fashion_mnist() if data == "fashion_mnist" else config.cifar10_small()
    c.data.train_per_class = 1000
    return in_miniature(c, fraction)


def in_miniature(c: ConfigDict, fraction: float) -> ConfigDict:
    """A teacher and a student on a data set of small images, a part of them labelled."""
    c = small_network(noisy_student(c), 0.2, 0.5)
    c.data.label_fraction = fraction
    side = c.data.image_size // 8
    c.augment.update(
        policy="randaugment_tf",
        policy_level=5.0,  # as for SVHN [C]
        policy_ops=1,  # of two; the smallest networks of the paper have none
        policy_translate=side,
        policy_cutout=side,
        crop="torchvision",
        min_area=0.5,
        jitter_probability=0.0,
        grayscale_probability=0.0,
        blur_probability=0.0,
    )
    c.batch_size = 32 if fraction == 0.01 else 64
    c.epochs = 60 if fraction == 0.01 else 30
    c.evaluate.update(protocols=("classifier", "corruptions"), corruption_images=400)
    second = student(c, "teacher", 7)
    second.batch_size = 128
    second.epochs = 4
    c.eval_every_epochs = second.eval_every_epochs = 0
    return config.two_stages("teacher", c, "student", second)


def two_rounds(c: ConfigDict) -> ConfigDict:
    """The student becomes the teacher of another."""
    c.stages = ("teacher", "student", "student2")
    c.student2 = c.student.copy_and_resolve_references()
    c.student2.pseudo.teacher = "student"
    return c


def folder_small() -> ConfigDict:
    """Your own images at 32 pixels, of which a tenth keep their labels, on two CPU cores [X].

    With a folder of unlabelled images: --config.teacher.data.label_fraction=1
    --config.student.data.label_fraction=1 --config.student.data.unlabelled=folder:PATH
    """
    c = in_miniature(config.folder_small(), 0.1)
    c.student.epochs = 20
    return c


def folder() -> ConfigDict:
    """Your own photographs at 224 pixels, of which a tenth keep their labels: EfficientNet-B0 twice [X].

    The paper's student is larger than its teacher: --config.student.model.name=efficientnet_b1. Unlabelled
    images come as with `folder_small`. They are resized as in `imagenet`.
    """
    c = noisy_student(config.folder())
    c.model = efficientnet("b0")
    c.data.label_fraction = 0.1
    c.augment.update(crop="tf", min_area=0.08, **config.IMAGENET)
    c.augment.update(policy="randaugment_tf", policy_level=5.0)  # as for SVHN [C]
    c = rmsprop(c, 2.4 * c.epochs / 350)
    second = student(c, "teacher", 3)
    second.epochs = 50
    return config.two_stages("teacher", c, "student", second)


def digits() -> ConfigDict:
    """A teacher on five labels of each digit, and its student on those and 1,450 images without [X]."""
    c = small_network(noisy_student(config.digits()), 0.2, 1.0)
    c.data.labels_per_class = 5
    c.augment.update(rotate=10.0, shift=0.1, zoom=0.1, shear=5.0, jitter_probability=0.0)
    c.batch_size = 50
    c.epochs = 60
    c.ema.decay = 0.95
    second = student(c, "teacher", 3)
    second.augment.update(policy="randaugment_tf", policy_level=5.0, policy_translate=2, policy_cutout=2)
    second.batch_size = 128
    second.epochs = 12
    return config.two_stages("teacher", c, "student", second)


def get_config(preset: str = "digits") -> ConfigDict:
    """The locked configuration of one preset.

    Raises:
        ValueError: the preset is not one of PRESETS.
    """
    config.choose(preset, PRESETS, "configs/noisy_student.py")
    if preset in SMALL:
        c = small(*SMALL[preset])
    elif preset in ABLATED:
        of, name = ABLATED[preset]
        c = small(*SMALL[of])
        c.student.update_from_flattened_dict(ABLATIONS[name])
    elif preset.endswith("_two_rounds"):
        c = two_rounds(small(*SMALL[preset.removesuffix("_two_rounds")]))
    elif preset in IMAGENET_TEACHERS:
        c = imagenet(IMAGENET_TEACHERS[preset], 1.0)
    elif preset == "imagenet_l2_10pct_800":
        c = fix_resolution("l2")
    elif preset in IMAGENET:
        c = imagenet_rounds(IMAGENET[preset])
    else:
        c = globals()[preset]()
    return config.named(c, preset)
