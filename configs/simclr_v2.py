"""SimCLRv2 (Chen et al., NeurIPS 2020, arXiv 2006.10029): pretrain a big network, fine-tune it, distil it.

    ssljax train --config configs/simclr_v2.py:digits_self --workdir runs/digits-self     # a laptop, a minute
    ssljax train --config configs/simclr_v2.py:imagenet_r50_1pct --workdir gs://bucket/r50-1pct
    ssljax train --config configs/simclr_v2.py:imagenet_r50_distilled_1pct --workdir gs://bucket/r50-student

NAME alone, e.g. imagenet_r101_x2_sk, is the pretraining. With one of these endings it goes on:

    _linear                         a linear classifier on the frozen network
    _1pct, _10pct, _100pct          fine-tuning with that part of the labels
    _self_1pct, _self_10pct         and then self-distillation: a new network of the same size learns from it
    _distilled_1pct, ..._10pct      a network of the size NAME learns from the largest one of its data set,
                                    which was pretrained, fine-tuned and distilled into itself: four stages

`--stage STAGE` trains one stage alone. It starts from the folder of any run: of a pretraining with
--config.finetune.init_from=FOLDER, of a teacher with --config.distill.distill.teacher=FOLDER.

Sources of the numbers: [P] the paper, [C] the released code (google-research/simclr, commit 383d414) and its
authors' replies in issues 77, 109 and 115, [R] from memory, [X] chosen here.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from ssljax import config

# Depth, width and selective kernels of ImageNet's networks, as in the released table.
IMAGENET = {
    "imagenet_r50": (50, 1.0, False),
    "imagenet_r50_sk": (50, 1.0, True),
    "imagenet_r50_x2": (50, 2.0, False),
    "imagenet_r50_x2_sk": (50, 2.0, True),
    "imagenet_r101": (101, 1.0, False),
    "imagenet_r101_sk": (101, 1.0, True),
    "imagenet_r101_x2": (101, 2.0, False),
    "imagenet_r101_x2_sk": (101, 2.0, True),
    "imagenet_r152": (152, 1.0, False),
    "imagenet_r152_sk": (152, 1.0, True),
    "imagenet_r152_x2": (152, 2.0, False),
    "imagenet_r152_x2_sk": (152, 2.0, True),
    "imagenet_r152_x3_sk": (152, 3.0, True),
}
SMALL = ("fashion_mnist", "fashion_mnist_big", "cifar10_small", "cifar10_big")
# The network that teaches the others of its data set.
TEACHERS = {
    "imagenet": "imagenet_r152_x3_sk",
    "fashion": "fashion_mnist_big",
    "cifar10": "cifar10_big",
    "digits": "digits",
}

# Fraction of the labels, and epochs of fine-tuning [P].
PARTS = {"1pct": (0.01, 60), "10pct": (0.1, 30), "100pct": (1.0, 30)}
ENDINGS = (
    "linear",
    "1pct",
    "10pct",
    "100pct",
    "self_1pct",
    "self_10pct",
    "distilled_1pct",
    "distilled_10pct",
)

# Preset -> network and ending. Digits are too few for a hundredth of their labels: "1pct" is ten per class.
VARIANTS = {
    f"{network}_{ending}": (network, ending)
    for network in (*IMAGENET, *SMALL)
    for ending in ENDINGS
    if not (ending.startswith("distilled") and network in TEACHERS.values())
}
VARIANTS["imagenet_r50_memory_linear"] = ("imagenet_r50_memory", "linear")
VARIANTS["digits_linear"] = ("digits", "linear")
VARIANTS["digits_finetune"] = ("digits", "1pct")
VARIANTS["digits_self"] = ("digits", "self_1pct")

PRESETS = ("digits", "folder", "folder_small", *SMALL, *IMAGENET, "imagenet_r50_memory", *VARIANTS)

# ------------------------------------------------------------------------------------------------ pretraining


def simclr_v2(c: ConfigDict) -> ConfigDict:
    """The paper's pretraining on a data set."""
    c.method = c.name = "simclr_v2"
    c.task = "pretrain"
    c.views = dict(one=dict(), two=dict())
    c.augment.update(
        crop="tf",  # sample_distorted_bounding_box [C]
        min_area=0.08,  # of SimCLR [P]; min_object_covered of the TF op makes it 0.10 [C]
        jitter_probability=0.8,  # [C]
        jitter_strength=1.0,  # [C]; times 0.8: brightness, contrast, saturation
        jitter_hue=0.2,  # [C]
        brightness="multiply",  # the form that the code calls simclrv2 [C]
        grayscale_probability=0.2,  # [C]
    )
    c.head = dict(
        layers=3,  # [P]
        hidden=0,  # as wide as the features [C]
        dim=128,  # [C]
    )
    c.loss = dict(temperature=0.1)  # [C]
    c.queue = dict(size=0)  # no memory
    c.online_probe = False  # the released code's probe is not in the paper
    return c


def lars(learning_rate: float, weight_decay: float, warmup_epochs: int) -> ConfigDict:
    """SimCLR's LARS, at a rate times the square root of the batch size."""
    return ConfigDict(
        dict(
            name="lars",
            learning_rate=learning_rate,
            scaling="sqrt",
            momentum=0.9,  # [C]
            trust_coefficient=0.001,  # [C]
            lr_in_momentum=True,  # [C]
            weight_decay=weight_decay,
            warmup_epochs=warmup_epochs,
        )
    )


def photographs(c: ConfigDict) -> ConfigDict:
    """The pretraining with blur."""
    c = simclr_v2(c)
    c.augment.update(
        blur_probability=0.5,  # [C]
        blur_sigma=(0.1, 2.0),  # [C]
        blur_sigma_per="image",  # image [P] | batch [C]
    )
    return c


def imagenet(depth: int, width: float, sk: bool) -> ConfigDict:
    """800 epochs at batch size 4096 [P]."""
    c = photographs(config.imagenet(epochs=800, batch_size=4096))
    c.model.update(name=f"resnet{depth}", width=width, sk_ratio=0.0625 if sk else 0.0)  # [C]
    c.optim = lars(
        0.1,  # 6.4 at 4096, issue 77 [C]
        weight_decay=1e-4,  # [C]
        warmup_epochs=40,  # 5 % of the epochs, issue 77 [C]
    )
    return c


def imagenet_r50_memory() -> ConfigDict:
    """ResNet-50 with a memory: 64K embeddings of a moving average [P]."""
    c = imagenet(50, 1.0, False)
    c.queue.size = 65536  # [P]
    c.target = dict(momentum=0.999)  # [P]
    return c


def small(c: ConfigDict) -> ConfigDict:
    """Small images: half the jitter, as SimCLR on CIFAR-10, and SGD [X]."""
    c = simclr_v2(c)
    c.augment.jitter_strength = 0.5
    c.loss.temperature = 0.2
    c.optim = dict(
        name="sgd", learning_rate=0.12, scaling="linear", momentum=0.9, weight_decay=5e-4, warmup_epochs=0
    )
    return c


def on_a_cpu(c: ConfigDict) -> ConfigDict:
    """Ten epochs of ResNet-10 of base width 16 on 1,000 images per class [X].

    ImageNet's stem, at a quarter of the resolution, takes a tenth of the time of CIFAR's.
    """
    c = small(c)
    c.epochs = 10
    c.data.train_per_class = 1000
    c.model.update(name="resnet10", width=0.25, stem="imagenet")
    c.eval_every_epochs = 5
    return c


def fashion_mnist() -> ConfigDict:
    """Fashion-MNIST on a CPU: 10,000 of its images; crops cover at least a fifth of them [X]."""
    c = on_a_cpu(config.fashion_mnist())
    c.augment.min_area = 0.2
    return c


def fashion_mnist_big() -> ConfigDict:
    """The same with twice the width [X]."""
    c = fashion_mnist()
    c.model.width = 0.5
    return c


def cifar10_small() -> ConfigDict:
    """CIFAR-10 on a CPU: 10,000 of its images [X].

    For a folder of CIFAR-10 images: --config.data.source=folder:PATH.
    """
    return on_a_cpu(config.cifar10_small())


def cifar10_big() -> ConfigDict:
    """The same with twice the width [X]."""
    c = cifar10_small()
    c.model.width = 0.5
    return c


def folder() -> ConfigDict:
    """Your own photographs, --config.data.source=folder:PATH: a ResNet-50 is pretrained [X]."""
    c = photographs(config.folder())
    c.optim = lars(0.1, weight_decay=1e-4, warmup_epochs=10)
    return c


def folder_small() -> ConfigDict:
    """Your own images at 32 pixels: pretraining of a small network, on two CPU cores [X]."""
    c = small(config.folder_small())
    c.optim.warmup_epochs = 1
    return c


def digits() -> ConfigDict:
    """scikit-learn's scanned digits, for the demo: small affine and intensity changes, no flips [X]."""
    warps = config.digits().augment
    c = small(config.digits())
    c.augment.update(crop=warps.crop, grayscale_probability=0.0)
    c.head.dim = 64
    c.loss.temperature = 0.35
    c.optim.update(learning_rate=0.3, weight_decay=1e-4, warmup_epochs=2)
    return c


# ----------------------------------------------------------------------------------------------- later stages


def linear(pretrain: ConfigDict) -> ConfigDict:
    """A pretraining, then the linear evaluation of the released README [C].

    The code decays the classifier's bias, too; here its kernel alone, at 1e-6 [X].
    """
    return config.linear(
        pretrain,
        batch_size=4096 if on_imagenet(pretrain) else 64,
        epochs=90 if on_imagenet(pretrain) else 30,
        optim=dict(
            name="sgd",
            nesterov=True,
            learning_rate=0.1,  # 1.6 at 4096
            scaling="linear",
            momentum=0.9,
            weight_decay=1e-6,
            warmup_epochs=0,
        ),
        head=dict(scheme="zeros"),
    )


def on_imagenet(c: ConfigDict) -> bool:
    """Whether the recipe of a data set is the paper's."""
    return c.data.source == "tfds:imagenet2012"


def on_labels(pretrain: ConfigDict, task: str) -> ConfigDict:
    """What fine-tuning and distillation share: one view by crops and flips [P], the classifier evaluated."""
    c = pretrain.copy_and_resolve_references()
    c.task = task
    config.crops_alone(c)
    c.eval_every_epochs = 0
    c.checkpoint.best = ""
    c.evaluate.protocols = ("classifier",)
    return c


def finetune(pretrain: ConfigDict, part: str) -> ConfigDict:
    """Training the whole network on a part of the labels, from the first layer of the head.

    With all labels it starts from the features [P].
    """
    c = on_labels(pretrain, "finetune")
    fraction, c.epochs = PARTS[part]
    c.init_from = "pretrain"
    c.init_branches = ("encoder", "projector") if fraction < 1 else ("encoder",)
    c.head.finetune_from = 1 if fraction < 1 else 0
    c.data.update(label_fraction=fraction, label_list="papers")
    if on_imagenet(c):
        plain = c.model.width == 1 and c.model.sk_ratio == 0
        c.batch_size = 1024  # [P]
        # 0.16 at 1024 [C], and 0.064 for networks that are wide or have selective kernels [R]
        c.optim = lars(0.005 if plain else 0.002, weight_decay=0.0, warmup_epochs=0)
        return c

    c.batch_size = 50
    c.optim = dict(
        name="sgd", nesterov=True, learning_rate=0.1, scaling="linear", weight_decay=0.0, warmup_epochs=0
    )
    c.log_every = 20
    if c.data.source == "digits":
        c.data.update(label_fraction=1.0, labels_per_class=10)
        c.epochs = 20
    return c


def distill(student: ConfigDict, teacher: ConfigDict, stage: str) -> ConfigDict:
    """Training a new network on what a teacher says of all images.

    Args:
        student: the pretraining of a network of the student's size.
        teacher: the stage that trains the teacher.
        stage: its name.
    """
    c = on_labels(student, "distill")
    c.teacher = teacher.model
    alike = c.model == teacher.model and on_imagenet(c)
    c.distill = dict(
        teacher=stage,
        finetune_from=teacher.head.finetune_from if teacher.task == "finetune" else 0,
        alpha=1.0,  # the teacher's word alone [P]
        # 0.1 for self-distillation, 1 into a smaller network [P]; SGD, unlike LARS, feels the factor 1 / 0.1
        temperature=0.1 if alike else 1.0,
        tau_squared=False,  # [P]; the released notebook: True
    )
    if on_imagenet(c):
        c.epochs = 400  # [P]
        c.optim = lars(
            0.1, weight_decay=1e-4, warmup_epochs=20
        )  # as in pretraining [R]; 5 % of the epochs [P]
    return c


def self_distilled(network: str, part: str) -> dict[str, ConfigDict]:
    """The stages of a network that is pretrained, fine-tuned and distilled into a new one of its size."""
    pretrain = pretraining(network)
    tuned = finetune(pretrain, part)
    return dict(pretrain=pretrain, finetune=tuned, distill=distill(pretrain, tuned, "finetune"))


def distilled(network: str, part: str) -> dict[str, ConfigDict]:
    """The stages of a student of the largest network, itself distilled before."""
    teacher = self_distilled(TEACHERS[network.split("_")[0]], part)
    teacher["self_distill"] = teacher.pop("distill")
    student = distill(pretraining(network), teacher["self_distill"], "self_distill")
    return dict(teacher, distill=student)


# ---------------------------------------------------------------------------------------------------- presets

RECIPES: dict[str, Callable[[], ConfigDict]] = {
    "digits": digits,
    "folder": folder,
    "folder_small": folder_small,
    "fashion_mnist": fashion_mnist,
    "fashion_mnist_big": fashion_mnist_big,
    "cifar10_small": cifar10_small,
    "cifar10_big": cifar10_big,
    "imagenet_r50_memory": imagenet_r50_memory,
}


def pretraining(network: str) -> ConfigDict:
    """The pretraining of a network."""
    return imagenet(*IMAGENET[network]) if network in IMAGENET else RECIPES[network]()


def variant(network: str, ending: str) -> ConfigDict:
    """The stages of a network with one of ENDINGS."""
    how, _, part = ending.rpartition("_")
    if ending == "linear":
        return linear(pretraining(network))
    if how == "self":
        parts = self_distilled(network, part)
    elif how == "distilled":
        parts = distilled(network, part)
    else:
        pretrain = pretraining(network)
        parts = dict(pretrain=pretrain, finetune=finetune(pretrain, part))
    return ConfigDict({"stages": tuple(parts), **parts})


def get_config(preset: str = "digits") -> ConfigDict:
    """The locked configuration of one preset.

    Raises:
        ValueError: the preset is not one of PRESETS.
    """
    config.choose(preset, PRESETS, "configs/simclr_v2.py")
    c = variant(*VARIANTS[preset]) if preset in VARIANTS else pretraining(preset)
    return config.named(c, preset)
