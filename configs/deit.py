"""DeiT (Touvron et al., ICML 2021, arXiv 2012.12877): data-efficient transformers and their distillation.

    ssljax train --config configs/deit.py:digits --workdir runs/deit                  # a teacher, its student
    ssljax train --config configs/deit.py:imagenet_s --workdir gs://bucket/deit_s             # 79.8 top-1
    ssljax train --config configs/deit.py:imagenet_regnety_16gf --workdir gs://bucket/teacher         # 82.9
    ssljax train --config configs/deit.py:imagenet_b_distilled --workdir gs://bucket/b \\
        --config.distill.teacher=gs://bucket/teacher                                          # 83.4

Names follow the paper's tables. `imagenet_{ti,s,b}` has no teacher. `_soft` and `_hard` distil into the class
token, `_distilled` into a distillation token (table 3). `_e500`, `_e800` and `_e1000` train longer.
`imagenet_b..._384` fine-tune at 384 pixels, `_160` and `_320` likewise (table 10); the best of all is
`imagenet_b_distilled_e1000_384` (85.2). `imagenet_b_ablation_...` are the rows of table 8, each in two
stages. For another teacher (table 2) train, for example, `imagenet_regnety_4gf` and set
`--config.teacher.name` as well.

A run has examples * epochs // batch + 1 updates: 375,342 in 300 epochs, 375,300 in the released code [X].

Sources of the numbers: [P] the paper, [C] the released code (facebookresearch/deit, timm 0.3.2), [X] chosen
here.
"""

from ml_collections import ConfigDict

from ssljax import config

MODELS = {"ti": "vit_ti", "s": "vit_s", "b": "vit_b"}
# The kind of distillation, and whether there is a token for it.
KINDS = {
    "": ("none", False),
    "_soft": ("soft", False),
    "_hard": ("hard", False),
    "_distilled": ("hard", True),
}
TEACHERS = ("regnety_4gf", "regnety_8gf", "regnety_12gf", "regnety_16gf")
RESOLUTIONS = (160, 320, 384)

# Table 8, DeiT-B without a teacher: what changes in training ("train"), in fine-tuning ("finetune"), or in
# both stages.
ABLATIONS: dict[str, dict[str, dict]] = {
    "sgd": {"train": {"optim.name": "timm_sgd"}},
    "sgd_finetune": {"finetune": {"optim.name": "timm_sgd"}},
    # Without a policy the colour jitter is on [C].
    "no_randaugment": {"both": {"augment.policy": "none", "augment.jitter_probability": 1.0}},
    "autoaugment": {"both": {"augment.policy": "autoaugment_original"}},
    "no_mixup": {"both": {"mix.mixup_alpha": 0.0}},
    "no_cutmix": {"both": {"mix.cutmix_alpha": 0.0}},
    "no_mixing": {"both": {"mix.mixup_alpha": 0.0, "mix.cutmix_alpha": 0.0}},
    "no_erasing": {"both": {"augment.erasing_probability": 0.0}},
    "no_drop_path": {"both": {"model.drop_path": 0.0}},
    "no_repeats": {"both": {"data.repeats": 1}},
    "dropout": {"both": {"model.dropout": 0.1}},
    "ema": {"both": {"ema.decay": 0.99996}},
}

IMAGENET = {f"imagenet_{size}{kind}": (size, kind) for size in MODELS for kind in KINDS}
FINETUNED = {f"imagenet_b{kind}_{side}": (kind, side) for kind in KINDS for side in RESOLUTIONS}
# Epochs. DeiT-B: 84.1, 84.2 and 84.2 at 224 pixels; 84.9, 85.1 and 85.2 fine-tuned at 384 [P].
LONG = {
    **{f"imagenet_{size}_distilled_e1000": (size, 1000) for size in MODELS},
    "imagenet_b_distilled_e500": ("b", 500),
    "imagenet_b_distilled_e800": ("b", 800),
}
LONG_FINETUNED = {f"imagenet_b_distilled_e{epochs}_384": epochs for epochs in (500, 800, 1000)}
ABLATED = {f"imagenet_b_ablation_{name}": name for name in ABLATIONS}
SMALL = {f"cifar10_small{kind}": kind for kind in KINDS}
SMALL_ABLATED = {f"cifar10_small_{name}": name for name in ABLATIONS if name != "sgd_finetune"}

PRESETS = (
    "digits",
    "folder",
    "folder_small",
    "cifar10_teacher",
    *SMALL,
    *SMALL_ABLATED,
    *IMAGENET,
    *LONG,
    *FINETUNED,
    *LONG_FINETUNED,
    *ABLATED,
    *(f"imagenet_{name}" for name in TEACHERS),
)


def deit(c: ConfigDict) -> ConfigDict:
    """DeiT's training from scratch (table 9) on a data set, with the network and views of that data set."""
    c.method = c.name = "deit"
    c.views = dict(one=dict())
    c.mix = dict(
        mixup_alpha=0.8,  # of Beta(alpha, alpha); 0: never [P]
        cutmix_alpha=1.0,  # if both are on, a fair coin chooses one [C]
        label_smoothing=0.1,  # [P]
    )
    c.distill = dict(
        name="none",  # none | soft | hard
        teacher="",  # the name of an earlier stage, or the folder of a run of `supervised` or `deit`
        alpha=0.5,  # weight of the teacher: hard 1/2 [P], soft 0.1 [P]
        temperature=3.0,  # soft only [P]
        normalization="code",  # soft only: code divides the KL by the number of classes | paper
    )
    c.evaluation_mode = False  # True: no stochastic depth, and without a teacher the mean of two heads
    c.inference = "code"  # of two heads: code averages logits | paper averages probabilities
    c.ema = dict(decay=0.0)  # a moving average of the weights, evaluated in their place; 0: none [P]
    c.optim = dict(
        name="timm_adamw",
        learning_rate=2.5e-4,
        scaling="linear",  # 5e-4 B/512 [P]
        weight_decay=0.05,
        warmup_epochs=5,  # [P]
        start=1e-6,
        end=1e-5,  # not scaled [C]
        lag=0,  # 1: every epoch has the learning rate of the one before [C]
        decay_distillation_token=True,  # [C]
    )
    c.evaluate.protocols = ("classifier",)
    return c


def augmented(c: ConfigDict) -> ConfigDict:
    """Repeated augmentation, RandAugment and erasing. TensorFlow resizes with antialiasing."""
    c.data.repeats = 3  # each epoch takes a third of the images, each of them three times [C]
    c.augment.update(  # [C]
        crop="torchvision",
        min_area=0.08,
        antialias=True,
        jitter_strength=0.375,  # +-0.3; used only without a policy
        jitter_hue=0.0,  # likewise
        policy="randaugment",
        erasing_probability=0.25,  # [P]
        **config.IMAGENET,
    )
    return c


def photographs(c: ConfigDict) -> ConfigDict:
    """The same on photographs read from files, by Pillow and torchvision as in the released code [C]."""
    c = augmented(c)
    c.augment.update(resize="pillow", jitter="torchvision")
    return c


def student(c: ConfigDict, name: str, patch: int, kind: str) -> ConfigDict:
    """The student, and how it is taught (`kind`, a key of KINDS)."""
    c.model = config.vit(name, patch, dtype=c.model.dtype)
    c.model.drop_path = 0.1
    c.distill.name, c.model.distillation = KINDS[kind]
    c.distill.alpha = 0.1 if c.distill.name == "soft" else 0.5
    return c


def imagenet(size: str, kind: str, epochs: int = 300) -> ConfigDict:
    """Table 3."""
    c = photographs(deit(config.imagenet(epochs, 1024)))
    c = student(c, MODELS[size], 16, kind)
    c.teacher = dict(name="regnety_16gf", drop_path=0.0, dtype="bfloat16")
    return c


def teacher(name: str) -> ConfigDict:
    """A RegNetY by the same recipe (section 5.3)."""
    c = photographs(deit(config.imagenet(300, 1024)))
    c.model = dict(name=name, drop_path=0.1, dtype="bfloat16")
    c.head = dict(std=0.01)  # [C]
    return c


def at_resolution(train: ConfigDict, side: int) -> ConfigDict:
    """Two stages: `train`, then 30 epochs at another resolution, positions resized (section 3, and [C]).

    The second stage trains in evaluation mode, as in the released code of the paper; later versions of it
    have a switch, and so has this: --config.finetune.evaluation_mode=False. It has a teacher where the first
    stage has one [P]. The released code refuses that: --config.finetune.distill.name=none is what it does
    instead.
    """
    c = train.copy_and_resolve_references()
    c.init_from = "train"
    c.evaluation_mode = True
    c.init_branches = ("encoder", "head")
    if c.model.distillation:
        c.init_branches += ("distillation_head",)
    c.epochs = 30
    c.batch_size = 512
    c.data.image_size = side
    c.optim.update(learning_rate=2.5e-6, end=5e-6, weight_decay=1e-8)  # a constant 5e-6 after warm-up [C]
    return config.two_stages("train", train, "finetune", c)


def ablation(name: str) -> ConfigDict:
    """A row of table 8, whose two columns are the two stages."""
    changes = ABLATIONS[name]
    c = at_resolution(imagenet("b", ""), 384)
    c.train.update_from_flattened_dict(changes.get("both", changes.get("train", {})))
    c.finetune.update_from_flattened_dict(changes.get("both", changes.get("finetune", {})))
    return c


def cifar10_teacher() -> ConfigDict:
    """The small teacher: SimCLR's ResNet-18 of base width 16, on labels with only crops and flips [X]."""
    c = deit(config.cifar10_small())
    c.augment.update(crop="torchvision", min_area=0.25, antialias=True, **config.IMAGENET)
    c.mix.update(mixup_alpha=0.0, cutmix_alpha=0.0)
    c.optim = dict(
        name="sgd",
        nesterov=True,
        learning_rate=0.1,
        scaling="linear",
        momentum=0.9,
        weight_decay=5e-4,
        warmup_epochs=1,
    )
    c.epochs = 15
    c.eval_every_epochs = 5
    return c


def cifar10_small(kind: str = "") -> ConfigDict:
    """A ViT of width 64 with 64 patches of 4 pixels [X].

    The teacher is a run of `cifar10_teacher`; name its folder with --config.distill.teacher.
    """
    c = augmented(deit(config.cifar10_small()))
    c.teacher = c.model
    c = student(c, "vit_xs", 4, kind)
    c.data.crop_on = "host"  # RandAugment works on the host
    c.augment.min_area = 0.25
    c.optim.update(learning_rate=1e-3, start=1e-5, end=1e-5, warmup_epochs=2)
    c.epochs = 10
    c.eval_every_epochs = 5
    c.checkpoint.every_steps = 200
    return c


def folder() -> ConfigDict:
    """Your own labelled photographs, --config.data.source=folder:PATH: DeiT-Ti at 224 pixels [X]."""
    c = config.folder()
    c.epochs = 300
    c = student(augmented(deit(c)), "vit_ti", 16, "")
    c.augment.update(crop="torchvision", resize="pillow", min_area=0.08)
    return c


def folder_small() -> ConfigDict:
    """Your own labelled images at 32 pixels: the ViT of `cifar10_small`, on two CPU cores [X]."""
    c = student(augmented(deit(config.folder_small())), "vit_xs", 4, "")
    c.data.crop_on = "host"  # RandAugment works on the host
    c.augment.min_area = 0.25
    c.optim.update(learning_rate=1e-3, start=1e-5, end=1e-5, warmup_epochs=4)
    return c


def digits() -> ConfigDict:
    """A small ResNet on labels, then a small ViT that learns from it and from the labels [X].

    The views were chosen by held-out accuracy (seed 0): 90.9 %, against 78.8 % with those of SimCLR's digits.
    """
    c = deit(config.digits())
    c.augment.update(rotate=10.0, shift=0.1, zoom=0.1, shear=5.0)
    c.augment.update(jitter_probability=0.8, jitter_strength=0.5)
    c.optim.update(learning_rate=2e-3, scaling="none", start=1e-5, warmup_epochs=5)
    first = c.copy_and_resolve_references()

    c.teacher = c.model
    second = student(c, "vit_xs", 4, "_distilled")
    second.distill.teacher = "teacher"

    first.epochs = 20
    first.mix.update(mixup_alpha=0.0, cutmix_alpha=0.0)
    first.optim = dict(
        name="sgd",
        nesterov=True,
        learning_rate=0.1,
        scaling="none",
        momentum=0.9,
        weight_decay=1e-4,
        warmup_epochs=2,
    )
    return config.two_stages("teacher", first, "student", second)


def get_config(preset: str = "digits") -> ConfigDict:
    """The locked configuration of one preset.

    Raises:
        ValueError: the preset is not one of PRESETS.
    """
    config.choose(preset, PRESETS, "configs/deit.py")
    network = preset.removeprefix("imagenet_")
    if preset in IMAGENET:
        size, kind = IMAGENET[preset]
        c = imagenet(size, kind)
    elif preset in LONG:
        size, epochs = LONG[preset]
        c = imagenet(size, "_distilled", epochs)
    elif preset in FINETUNED:
        kind, side = FINETUNED[preset]
        c = at_resolution(imagenet("b", kind), side)
    elif preset in LONG_FINETUNED:
        c = at_resolution(imagenet("b", "_distilled", LONG_FINETUNED[preset]), 384)
    elif preset in ABLATED:
        c = ablation(ABLATED[preset])
    elif preset in SMALL:
        c = cifar10_small(SMALL[preset])
    elif preset in SMALL_ABLATED:
        c = cifar10_small()
        for changes in ABLATIONS[SMALL_ABLATED[preset]].values():
            c.update_from_flattened_dict(changes)
    elif network in TEACHERS:
        c = teacher(network)
    else:
        c = globals()[preset]()
    return config.named(c, preset)
