"""CPC v2: Data-Efficient Image Recognition with Contrastive Predictive Coding (Henaff et al., 1905.09272).

    ssljax train --config configs/cpc.py:digits --workdir runs/cpc                     # a laptop, two minutes
    ssljax train --config configs/cpc.py:imagenet_r161_linear --workdir gs://bucket/r161      # 71.5 / 90.1
    ssljax train --config configs/cpc.py:imagenet_r50_linear --workdir gs://bucket/r50        # 63.8 / 85.3
    ssljax train --config configs/cpc.py:imagenet_r161_finetune_1pct --workdir gs://bucket/1  # 52.7 / 78.3

The figures are top-1 / top-5 on ImageNet. `imagenet_r161_finetune_{1,2,5,10,20,50,100}pct` is the paper's
efficient classification: pretraining, a residual classifier on the frozen encoder, then both. They can share
their pretraining: --config.frozen.init_from=RUN --stage=frozen. `imagenet_r200_supervised_{...}pct` is what
the paper compares it with. `imagenet_r161_one_direction` predicts down only, `_color_drop` drops two channels
of every patch: steps of the paper's ladder.

Sources of the numbers: [P] the paper, [X] chosen here, because the paper does not say.
"""

from ml_collections import ConfigDict

from ssljax import config

PERCENT = (1, 2, 5, 10, 20, 50, 100)
NETWORKS = {"imagenet_r161": "cpc_r161", "imagenet_r50": "cpc_r50"}
ABLATIONS = ("imagenet_r161_one_direction", "imagenet_r161_color_drop")
FINETUNE = {f"imagenet_r161_finetune_{percent}pct": percent / 100 for percent in PERCENT}
SUPERVISED = {f"imagenet_r200_supervised_{percent}pct": percent / 100 for percent in PERCENT}
FEW = {  # labels per class
    f"fashion_mnist_{kind}_{labels}": labels for kind in ("finetune", "scratch") for labels in (5, 50, 250)
}
LINEAR = {f"{name}_linear": name for name in (*NETWORKS, *ABLATIONS, "digits")}

PRESETS = (
    "digits",
    "digits_finetune",
    "fashion_mnist",
    "fashion_mnist_finetune",
    "fashion_mnist_scratch",
    *FEW,
    "cifar10_small",
    "cifar10_small_finetune",
    "cifar10_small_scratch",
    "folder",
    "folder_small",
    *NETWORKS,
    *ABLATIONS,
    *LINEAR,
    *FINETUNE,
    *SUPERVISED,
)

# What step 2 of the paper's list needs and does not say: parameters of the operations that it cites [X].
PATCHES = dict(
    policy_ops=2,  # [P]
    deform_probability=0.2,  # [P]
    elastic_spacing=20 / 80,
    elastic_sigma=3 / 80,
    shear=0.1,
    histogram_probability=0.2,  # [P]
    slopes=(0.5, 2.0),
    ends=0.1,
    color_probability=0.8,  # [P]
    grayscale_probability=0.25,  # [P]
    drop_probability=0.0,  # [P] not in the final list; 1.0 in the ladder and in detection
)


def cpc(c: ConfigDict, name: str, *, patch: int, stride: int, width: float = 1.0) -> ConfigDict:
    """The paper's method on a data set: network, patches, context networks and optimizer."""
    c.method = c.name = "cpc"
    c.task = "pretrain"
    channels = c.data.channels
    # The view is cut into patches before it is normalised.
    c.views = dict(one=dict(mean=(0.0,) * channels, std=(1.0,) * channels))
    c.model = dict(
        name=name,
        width=width,
        patch=patch,
        stride=stride,
        whole=False,
        stem="imagenet",
        preact=False,  # [X]
        remat="none",
        dtype=c.model.dtype,
    )
    c.cpc = dict(
        directions=4,  # [P]
        step_indices=(2,),  # [P], as the pseudo-code is printed
        scale=0.1,  # [P]
        negatives="local",  # [X]
        local_images=16,  # 512 images on 32 workers [P]
    )
    c.context = dict(blocks=5, hidden=256, target_dim=64)  # [P]
    c.patches = dict(PATCHES)
    c.ema = dict(decay=0.9999)  # [P]
    c.optim = dict(
        name="adam",
        learning_rate=4e-4,  # [P]
        scaling="none",
        weight_decay=0.0,
        b1=0.8,  # [P]
        b2=0.999,  # [P]
        epsilon=1e-8,  # [P]
        clip=0.01,  # [P]
    )
    return c


def imagenet(name: str = "cpc_r161") -> ConfigDict:
    """The paper's pretraining."""
    c = config.imagenet(epochs=200, batch_size=512)  # [P]
    c.data.update(image_size=260, eval_crop=260 / 300)  # [P]
    c.augment.update(
        crop="squash",
        min_area=(260 / 300) ** 2,  # [P]
        interpolation="bilinear",  # [X]
        antialias=True,  # [X]
        **config.IMAGENET,  # [X]
    )
    c = cpc(c, name, patch=80, stride=36)  # [P]
    c.model.remat = "blocks"
    return c


def linear(pretrain: ConfigDict, epochs: int = 90) -> ConfigDict:
    """A preset, then the paper's linear evaluation, on patches changed as in pretraining."""
    c = pretrain.copy_and_resolve_references()
    c.task = "linear"
    c.init_from = "pretrain"
    c.epochs = epochs  # [X]
    c.eval_every_epochs = 0
    c.checkpoint.best = ""
    c.evaluate.protocols = ("classifier",)
    c.optim.update(learning_rate=5e-4, b1=0.9, clip=0.0)  # [P], [X], [X]
    return config.two_stages("pretrain", pretrain, "linear", c)


def classify(pretrain: ConfigDict, *, blocks: int, bottleneck: int) -> ConfigDict:
    """The residual classifier on maps of whole images, trained alone."""
    c = pretrain.copy_and_resolve_references()
    c.task = "classify"
    c.init_from = "pretrain"
    c.model.whole = True
    c.classifier = dict(frozen=True, blocks=blocks, bottleneck=bottleneck, dropout=0.0)
    c.eval_every_epochs = 0
    c.checkpoint.best = ""
    c.evaluate.protocols = ("classifier",)
    c.optim = dict(
        name="sgd",
        learning_rate=0.1,  # [P] of 0.05, 0.1 and 0.2
        scaling="none",
        momentum=0.9,
        nesterov=False,
        weight_decay=1e-4,  # [P] of 1e-5 to 1e-2
        warmup_epochs=0,
    )
    return c


def staged(pretrain: ConfigDict, frozen: ConfigDict, epochs: int) -> ConfigDict:
    """Three stages: pretraining, the classifier on the frozen encoder, then both [P].

    The paper chooses the learning rates, the epochs and when to stop on 10,000 training images that it holds
    out. These are ours [X].
    """
    c = frozen.copy_and_resolve_references()
    c.init_from = "frozen"
    c.init_branches = ("classifier", "head")  # and the encoder
    c.classifier.frozen = False
    c.epochs = epochs
    c.optim = dict(
        name="sgd_and_adam",  # [P]
        learning_rate=0.02,
        scaling="none",
        momentum=0.9,
        weight_decay=1e-4,
        warmup_epochs=0,
        encoder_rate=0.005,
        b1=0.9,
        b2=0.999,
        epsilon=1e-8,
        clip=0.0,
    )
    return ConfigDict(
        dict(stages=("pretrain", "frozen", "finetune"), pretrain=pretrain, frozen=frozen, finetune=c)
    )


def finetune(fraction: float) -> ConfigDict:
    """Efficient classification on a part of ImageNet's labels. Fewer labels are seen more often [X]."""
    pretrain = imagenet()
    frozen = classify(pretrain, blocks=11, bottleneck=1024)  # [P]
    frozen.data.update(image_size=224, eval_crop=0.875, label_fraction=fraction)
    frozen.augment.update(crop="tf", min_area=0.05, aspect=(0.75, 1.33))  # [P]
    frozen.augment.antialias = False  # as TF-slim resizes that crop
    frozen.batch_size = 512  # [P] 16 or 32 per worker
    frozen.epochs = min(round(30 / fraction), 600) if fraction < 0.2 else 60
    frozen.classifier.dropout = 0.5 if fraction < 0.2 else 0.0
    return staged(pretrain, frozen, epochs=max(frozen.epochs // 6, 10))


def supervised(fraction: float) -> ConfigDict:
    """ResNet-200 from pixels on a part of the labels, what the paper compares with.

    The paper's is pre-activated and has dropout; this one has neither [X].
    """
    c = config.imagenet(epochs=min(round(90 / fraction), 1800), batch_size=512)
    c.method = "supervised"
    c.name = "cpc"
    c.model.update(name="resnet200", remat="blocks")
    c.data.label_fraction = fraction
    c.augment.update(
        crop="tf", min_area=0.05, aspect=(0.75, 1.33), interpolation="bilinear", **config.IMAGENET
    )
    c.augment.update(jitter_probability=0.8, jitter_strength=0.5, grayscale_probability=0.25)
    c.optim = dict(
        name="sgd", learning_rate=0.1, scaling="linear", momentum=0.9, weight_decay=1e-4, warmup_epochs=5
    )
    c.evaluate.protocols = ("classifier",)
    return c


def ablation(preset: str) -> ConfigDict:
    """A step of the paper's ladder."""
    c = imagenet()
    if preset == "imagenet_r161_one_direction":
        c.cpc.directions = 1
    else:
        c.patches.drop_probability = 1.0
    return c


# --------------------------------------------------------------------------------------------- small presets


def small(c: ConfigDict, name: str, *, patch: int, stride: int, width: float) -> ConfigDict:
    """A small network on small patches, and a moving average over some hundred steps [X]."""
    c = cpc(c, name, patch=patch, stride=stride, width=width)
    c.context = dict(blocks=3, hidden=32, target_dim=32)
    c.patches.policy_ops = 0  # on a CPU, where each patch gets all sixteen, they take two thirds of a step
    c.batch_size = 64
    c.optim.update(learning_rate=2e-3)
    c.ema.decay = 0.99
    return c


def few_labels(pretrain: ConfigDict, *, labels: int, epochs: int) -> ConfigDict:
    """Efficient classification of small images on some labels per class [X]."""
    frozen = classify(pretrain, blocks=2, bottleneck=32)
    frozen.data.labels_per_class = labels
    frozen.batch_size = 50
    frozen.epochs = epochs
    return staged(pretrain, frozen, epochs=epochs)


def scratch(c: ConfigDict) -> ConfigDict:
    """The last stage alone, from random weights and for the epochs of both [X]."""
    last = c.finetune
    last.init_from = ""
    last.epochs += c.frozen.epochs
    last.optim.encoder_rate = 0.1
    return last


def digits() -> ConfigDict:
    """scikit-learn's digits: 6 x 6 patches of 6 of the 16 pixels [X]."""
    c = config.digits()
    c.augment.update(rotate=10.0, shift=0.1, zoom=0.1, shear=5.0)
    c.epochs = 20
    return small(c, "cpc_r8", patch=6, stride=2, width=0.25)


def digits_finetune() -> ConfigDict:
    """Efficient classification with ten labels of each digit [X]."""
    return few_labels(digits(), labels=10, epochs=150)


def fashion_mnist() -> ConfigDict:
    """Fashion-MNIST: 6 x 6 patches of 8 of the 28 pixels [X]."""
    c = config.fashion_mnist()
    c.augment.update(crop="tf", min_area=0.5)
    return small(c, "cpc_r8", patch=8, stride=4, width=0.25)


def fashion_mnist_finetune(labels: int = 10) -> ConfigDict:
    """Efficient classification with some labels per class; fewer labels are seen more often [X]."""
    return few_labels(fashion_mnist(), labels=labels, epochs=max(1500 // labels, 5))


def cifar10_small() -> ConfigDict:
    """CIFAR-10 on two CPU cores: 6 x 6 patches of 12 of the 32 pixels [X].

    For a folder of CIFAR-10 images: --config.data.source=folder:PATH --config.data.train_per_class=1000
    """
    c = config.cifar10_small()
    c.augment.update(crop="tf", min_area=0.5, **config.CIFAR10)
    return small(c, "cpc_r8", patch=12, stride=4, width=0.25)


def folder_small() -> ConfigDict:
    """Your own images at 32 pixels: 6 x 6 patches of 12 pixels, on two CPU cores [X]."""
    c = config.folder_small()
    c.augment.update(crop="tf", min_area=0.5, **config.CIFAR10)
    return small(c, "cpc_r8", patch=12, stride=4, width=0.25)


def cifar10_small_finetune() -> ConfigDict:
    """Efficient classification with a hundred labels per class [X]."""
    return few_labels(cifar10_small(), labels=100, epochs=30)


def folder() -> ConfigDict:
    """Your own photographs, --config.data.source=folder:PATH: the ResNet-50 on the paper's patches [X]."""
    large = imagenet("cpc_r50")
    c = config.folder()
    c.data.update(image_size=260, eval_crop=large.data.eval_crop)
    c.augment = large.augment
    c = cpc(c, "cpc_r50", patch=80, stride=36)
    c.model.remat = "blocks"
    c.ema.decay = 0.999
    return c


def get_config(preset: str = "digits") -> ConfigDict:
    """The locked configuration of one preset.

    Raises:
        ValueError: the preset is not one of PRESETS.
    """
    config.choose(preset, PRESETS, "configs/cpc.py")
    if preset in LINEAR:
        c = linear(recipe(LINEAR[preset]), **({"epochs": 30} if preset == "digits_linear" else {}))
    else:
        c = recipe(preset)
    return config.named(c, preset)


def recipe(preset: str) -> ConfigDict:
    """A preset that is not in LINEAR, before it is finished."""
    if preset in NETWORKS:
        return imagenet(NETWORKS[preset])
    if preset in ABLATIONS:
        return ablation(preset)
    if preset in FINETUNE:
        return finetune(FINETUNE[preset])
    if preset in SUPERVISED:
        return supervised(SUPERVISED[preset])
    if preset in FEW:
        c = fashion_mnist_finetune(FEW[preset])
        return scratch(c) if "_scratch_" in preset else c
    if preset.endswith("_scratch"):
        return scratch(recipe(preset.removesuffix("_scratch") + "_finetune"))
    return globals()[preset]()
