"""MoCo v1 (arXiv 1911.05722), v2 (arXiv 2003.04297) and v3 (arXiv 2104.02057): momentum contrast.

    ssljax train --config configs/moco.py:digits --workdir runs/moco                # a laptop, two minutes
    ssljax train --config configs/moco.py:cifar10_r18_sym_e200 --workdir runs/cifar     # the authors' demo
    ssljax train --config configs/moco.py:imagenet_r50_v2_e200 --workdir gs://bucket/v2         # 67.5
    ssljax train --config configs/moco.py:imagenet_r50_v3_e300 --workdir gs://bucket/v3         # 72.8
    ssljax train --config configs/moco.py:imagenet_vit_b_v3 --workdir gs://bucket/vit           # 76.5

The figures are those of a linear probe in the papers; the repository of v3 reports 76.7 for the last. Every
ImageNet preset NAME is also there as NAME_linear, which goes on to that probe. Two vision transformers go on
to fine-tuning by DeiT's recipe on all labels: `imagenet_vit_s_v3_finetune_100pct` (81.4) and `_b_` (83.2).

`imagenet_r50_v1_mlp`, `_aug` and `_mlp_aug` are the rows of v2's ablation between v1 and v2. For its other
temperatures and v1's other momenta set `--config.loss.temperature` and `--config.target.momentum`.

Sources of the numbers: [P] the papers, [C] the released code (facebookresearch/moco with its CIFAR-10
notebook, facebookresearch/moco-v3), [X] chosen here.
"""

from ml_collections import ConfigDict

from ssljax import config

# v3 on a ResNet-50: epochs -> base learning rate, weight decay, momentum at the start [C].
V3_RESNET = {100: (0.6, 1e-6, 0.99), 300: (0.3, 1e-6, 0.99), 1000: (0.3, 1.5e-6, 0.996)}
V3_VIT = {
    "imagenet_vit_s_v3": "vit_s_h12",
    "imagenet_vit_b_v3": "vit_b",
    "imagenet_vit_l_v3": "vit_l",
    "imagenet_vit_h_v3": "vit_h",
}
# Whether it has v2's MLP head, and v2's views. None has v2's cosine.
V1_ABLATION = {
    "imagenet_r50_v1": (False, False),
    "imagenet_r50_v1_mlp": (True, False),
    "imagenet_r50_v1_aug": (False, True),
    "imagenet_r50_v1_mlp_aug": (True, True),
}
# Epochs.
V2 = {"imagenet_r50_v2_e200": 200, "imagenet_r50_v2_e800": 800}
# v3 on a ResNet-50, by name.
V3 = {f"imagenet_r50_v3_e{epochs}": epochs for epochs in V3_RESNET}
# Linear evaluation of every pretraining preset: the first stage of each.
LINEAR = {f"{name}_linear": name for name in (*V1_ABLATION, *V2, *V3, *V3_VIT)}
# End-to-end fine-tuning on all labels: the first stage of each. The repository has figures for these two [C].
FINETUNED = {
    "imagenet_vit_s_v3_finetune_100pct": "imagenet_vit_s_v3",
    "imagenet_vit_b_v3_finetune_100pct": "imagenet_vit_b_v3",
}
# Whether the loss is symmetric, and the epochs.
DEMO = {
    f"cifar10_r18_{kind}_e{epochs}": (kind == "sym", epochs)
    for kind in ("asym", "sym")
    for epochs in (200, 400, 800)
}

PRESETS = (
    "digits",
    "digits_v3",
    "digits_vit_v3",
    "digits_linear",
    "digits_vit_v3_finetune_100pct",
    "fashion_mnist",
    "cifar10_lightly",
    "cifar10_small",
    "folder",
    "folder_small",
    *DEMO,
    *V1_ABLATION,
    *V2,
    *V3,
    *V3_VIT,
    *LINEAR,
    *FINETUNED,
)


def moco(c: ConfigDict) -> ConfigDict:
    """MoCo v2 on a data set, with views for photographs. Each preset chooses its own optimizer."""
    c.method = c.name = "moco"
    c.views = dict(one=dict(), two=dict())
    c.augment.update(
        crop="torchvision",
        min_area=0.2,
        jitter_probability=0.8,
        jitter_strength=0.5,  # v2 [C]
        grayscale_probability=0.2,
        blur_probability=0.5,
    )
    c.zero_init_residual = True  # False: the last gain of a residual branch starts from 1
    c.head = dict(  # v2 [C]
        layers=2,  # v1: 1
        hidden=0,
        dim=128,
        hidden_bias=True,
        last_bias=True,
        norm=False,
        last_norm=False,
        scheme="uniform",
    )
    c.predictor = dict(layers=0)  # only v3 has one
    c.loss = dict(
        temperature=0.2,  # v2 [P]; v1: 0.07
        symmetric=False,  # True, an option of the CIFAR-10 demo: both directions, twice the keys [C]
    )
    c.queue = dict(size=65536)  # [P]; 0: negatives from the batch (v3)
    c.target = dict(
        momentum=0.999,  # [P]
        schedule="constant",  # [P]; v3: cosine, up to 1
    )
    c.bn = dict(
        groups=8,  # of 32 images [P]; 1: statistics of the whole batch (v3)
        shuffle=True,
    )
    return c


def released(c: ConfigDict) -> ConfigDict:
    """Network and optimizer of the released code, v1 and v2 [C]."""
    c.model.shortcut = "torchvision"  # and the unbiased running variance
    c.zero_init_residual = False
    c.optim = dict(
        name="torch_sgd",
        learning_rate=0.03,
        scaling="linear",
        momentum=0.9,
        weight_decay=1e-4,
        milestones=(),  # none: a cosine by whole epochs (v2); v1 divides the rate by ten at each
    )
    return c


def photographs(c: ConfigDict) -> ConfigDict:
    """Views by torchvision on photographs read from files, as in the released code [C]."""
    c.augment.update(
        **config.TORCHVISION_CROPS,
        **config.TORCHVISION_COLOURS,
        **config.IMAGENET,
    )
    return c


def imagenet_v2(epochs: int = 200) -> ConfigDict:
    """MoCo v2 on a ResNet-50 [C]."""
    return photographs(released(moco(config.imagenet(epochs, 256))))


def imagenet_v1(mlp: bool, augmented: bool) -> ConfigDict:
    """MoCo v1, optionally with v2's head or views. tau is 0.07 with the linear head, 0.2 with the MLP [P]."""
    c = imagenet_v2()
    c.optim.milestones = (120, 160)  # [C]
    if not mlp:
        c.head.layers = 1
        c.loss.temperature = 0.07
    if not augmented:
        c.augment.update(  # [C]
            grayscale_order="before",
            jitter_probability=1.0,
            jitter_hue=0.8,  # times the strength: 0.4
            blur_probability=0.0,
        )
    return c


def v3(c: ConfigDict) -> ConfigDict:
    """What all of v3 shares: no queue, a predictor, statistics of the whole batch, m rising to 1."""
    c.zero_init_residual = True  # [C]
    c.queue = dict(size=0)
    c.bn = dict(groups=1)
    c.head.update(  # [C]
        layers=2,
        hidden=4096,
        dim=256,
        hidden_bias=False,
        last_bias=False,
        norm=True,
        last_norm=True,
    )
    c.predictor = dict(  # [C]
        layers=2,
        hidden=4096,
        hidden_bias=False,
        last_bias=False,
        norm=True,
        last_norm=False,
        scheme="uniform",
    )
    c.target.update(momentum=0.99, schedule="cosine")  # [C]
    return c


def imagenet_v3(epochs: int) -> ConfigDict:
    """What v3 shares on ImageNet: BYOL's two recipes of views, and the batch size [C]."""
    c = v3(imagenet_v2(epochs))
    c.views.two = dict(blur_probability=0.1, solarize_probability=0.2)
    c.augment.update(blur_probability=1.0, jitter_saturation=0.4)  # saturation: times the strength, 0.2
    c.batch_size = 4096
    return c


def imagenet_v3_resnet(epochs: int) -> ConfigDict:
    """v3 on a ResNet-50, with LARS [C]."""
    rate, decay, m = V3_RESNET[epochs]
    c = imagenet_v3(epochs)
    c.loss.temperature = 1.0
    c.target.momentum = m
    c.optim = dict(
        name="lars",
        learning_rate=rate,
        scaling="linear",
        lr_in_momentum=False,
        momentum=0.9,
        trust_coefficient=0.001,
        weight_decay=decay,
        warmup_epochs=10,
    )
    return c


def with_vit(c: ConfigDict, name: str, patch: int) -> ConfigDict:
    """v3 on a vision transformer: three layers in the projector, a norm at the end of both heads [C].

    The blocks of S and B are unrolled, which takes 353 ms per step against 421 ms in a loop by the compiler's
    estimate (experiments/plans.md). L, H and the small one run in a loop, or they compile for many minutes.
    """
    c.model.update(
        name=name,
        patch=patch,
        positions="sincos",
        scheme="moco_v3",
        frozen_patch=True,
        distillation=False,
        drop_path=0.0,
        dropout=0.0,
        scan=name not in ("vit_s_h12", "vit_b"),
    )
    c.head.layers = 3
    c.predictor.last_norm = True
    return c


def imagenet_v3_vit(name: str) -> ConfigDict:
    """300 epochs; H has patches of 14 pixels [C].

    L and H keep less for the backward pass. Otherwise L would not fit on 64 TPU v3 chips.
    """
    patch = 14 if name == "vit_h" else 16
    c = with_vit(imagenet_v3(300), name, patch)
    c.model.remat = {"vit_l": "dots", "vit_h": "blocks"}.get(name, "none")
    c.augment.min_area = 0.08
    c.optim = dict(
        name="torch_adamw",
        learning_rate=1.5e-4,
        scaling="linear",
        weight_decay=0.1,
        warmup_epochs=40,
    )
    return c


def linear(pretrain: ConfigDict) -> ConfigDict:
    """A preset of v1 or v2, then main_lincls.py of facebookresearch/moco: a learning rate of 30 [C].

    The rate is not scaled with the batch size. The features are those after the ReLU and the average pool,
    whose small values need it; they are not normalised.
    """
    return config.linear(
        pretrain,
        batch_size=256,
        epochs=100,
        optim=dict(
            name="torch_sgd",
            learning_rate=30.0,
            scaling="none",
            momentum=0.9,
            weight_decay=0.0,
            milestones=(60, 80),
        ),
        augment=dict(min_area=0.08),  # RandomResizedCrop's default
    )


def linear_v3(pretrain: ConfigDict, rate: float) -> ConfigDict:
    """A preset of v3, then main_lincls.py of facebookresearch/moco-v3: a cosine by whole epochs [C].

    Args:
        pretrain: the preset.
        rate: the base learning rate: 0.1 for a ResNet-50, 3 for a vision transformer [C].
    """
    return config.linear(
        pretrain,
        batch_size=1024,
        epochs=90,
        optim=dict(
            name="torch_sgd",
            learning_rate=rate,
            scaling="linear",
            momentum=0.9,
            weight_decay=0.0,
            milestones=(),
        ),
        augment=dict(min_area=0.08),  # RandomResizedCrop's default
    )


def finetuned(pretrain: ConfigDict) -> ConfigDict:
    """A vision transformer of v3, then DeiT's recipe without a teacher, on all labels.

    The README of facebookresearch/moco-v3 runs facebookresearch/deit with all its defaults for 150 epochs, in
    training mode (`--resume`, not `--finetune`) [C]. The defaults are those of configs/deit.py [C]. The rate
    grows with the batch, for which DeiT's paper has 1024 [P].

    The released run goes on to train the positions, from the fixed ones, and the patch projection. Here both
    stay as they were in the first stage [X].
    """
    c = pretrain.copy_and_resolve_references()
    c.method = "deit"
    c.init_from = "pretrain"
    config.crops_alone(c)
    c.epochs = 150
    c.batch_size = 1024
    c.eval_every_epochs = 0
    c.checkpoint.best = ""
    c.model.drop_path = 0.1
    c.mix = dict(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1)
    c.distill = dict(name="none")
    c.optim = dict(
        name="timm_adamw",
        learning_rate=2.5e-4,
        scaling="linear",  # 5e-4 B/512
        weight_decay=0.05,
        warmup_epochs=5,
        start=1e-6,
        end=1e-5,
        lag=0,
    )
    c.evaluate.protocols = ("classifier",)
    return config.two_stages("pretrain", pretrain, "finetune", c)


def imagenet_finetuned(pretrain: ConfigDict) -> ConfigDict:
    """The same with DeiT's crops, RandAugment, erasing and repeated augmentation [C]."""
    c = finetuned(pretrain)
    c.finetune.data.repeats = 3
    c.finetune.augment.update(
        min_area=0.08, interpolation="bicubic", policy="randaugment", erasing_probability=0.25
    )
    return c


def demo(symmetric: bool, epochs: int) -> ConfigDict:
    """The authors' CIFAR-10 notebook [C].

    Its kNN is 82.6, 86.3, 88.7 (asymmetric) and 85.3, 88.5, 89.7 (symmetric) after 200, 400, 800 epochs. Its
    learning rate counts epochs from 1, ours from 0. Its kNN uses the output of the head, ours that of the
    encoder.
    """
    c = released(moco(config.cifar10(epochs, batch_size=512)))
    c.augment.update(
        min_area=0.08,
        interpolation="bilinear",
        jitter="torchvision",
        blur_probability=0.0,
        **config.CIFAR10,
    )
    c.head.layers = 1
    c.loss.temperature = 0.1
    c.loss.symmetric = symmetric
    c.queue.size = 4096
    c.target.momentum = 0.99
    c.optim.update(learning_rate=0.06, scaling="none", weight_decay=5e-4)
    return c


def few_steps(c: ConfigDict, m: float) -> ConfigDict:
    """A run of some hundred steps: norms in the head, and a target that moves faster [X].

    Without the norms the run would be over before the embeddings have spread.
    """
    c = moco(c)
    c.augment.blur_probability = 0.0
    c.head.update(hidden_bias=False, last_bias=False, norm=True, last_norm=True)
    c.loss.symmetric = True
    c.queue.size = 4096
    c.target.momentum = m
    return c


def cifar10_lightly() -> ConfigDict:
    """lightly's benchmark: kNN at most 84.7 on the test set within 200 epochs [C].

    lightly enqueues the keys of the first direction before it computes the second; here both see the same
    queue [X]. Its loss is the mean of the two directions, half of ours: half the learning rate with twice the
    weight decay gives the same updates.
    """
    recipe = config.cifar10_lightly()
    c = moco(recipe.copy_and_resolve_references())
    c.augment = recipe.augment
    c.optim = recipe.optim
    c.optim.learning_rate /= 2
    c.optim.weight_decay *= 2
    c.zero_init_residual = False
    c.loss.update(temperature=0.1, symmetric=True)
    c.queue.size = 8192
    c.target.momentum = 0.99
    return c


def cifar10_small() -> ConfigDict:
    """Network, batch size and epochs of configs/simclr.py:cifar10_small; the rest follows the demo [X].

    For a folder of CIFAR-10 images: --config.data.source=folder:PATH --config.data.train_per_class=2000
    """
    c = few_steps(config.cifar10_small(), 0.97)
    c.optim = dict(
        name="sgd", learning_rate=0.12, scaling="linear", momentum=0.9, weight_decay=5e-4, warmup_epochs=1
    )
    return c


def fashion_mnist() -> ConfigDict:
    """Network, batch size and epochs of configs/simclr.py:fashion_mnist [X]."""
    c = few_steps(config.fashion_mnist(), 0.97)
    c.optim = dict(
        name="sgd", learning_rate=0.12, scaling="linear", momentum=0.9, weight_decay=5e-4, warmup_epochs=0
    )
    return c


def digits() -> ConfigDict:
    """Network, views, batch size and epochs of configs/simclr.py:digits [X].

    The queue holds a sixth of the images. Groups have 32 images, as in the paper. The temperature is that of
    SimCLR's digits: held-out kNN of seeds 3 and 4 (commit 166b42d) is then 92.6 and 89.6, against 84.5 and
    84.8 at the demo's 0.1.
    """
    c = few_steps(config.digits(), 0.95)
    c.augment.update(crop="affine", grayscale_probability=0.0)
    c.head.dim = 64
    c.loss.temperature = 0.35
    c.queue.size = 256
    c.bn.groups = 4
    c.optim = dict(
        name="sgd", learning_rate=0.3, scaling="linear", momentum=0.9, weight_decay=1e-4, warmup_epochs=2
    )
    return c


def digits_v3() -> ConfigDict:
    """v3 on the ResNet of the digits [X]."""
    c = v3(digits())
    c.head.update(hidden=256, dim=64)
    c.predictor.hidden = 256
    c.loss.temperature = 0.2
    return c


def digits_vit_v3() -> ConfigDict:
    """v3 on a small vision transformer: 16 patches of 4 pixels [X]."""
    c = with_vit(digits_v3(), "vit_xs", 4)
    c.optim = dict(name="torch_adamw", learning_rate=2e-3, scaling="none", weight_decay=0.1, warmup_epochs=5)
    return c


def digits_linear() -> ConfigDict:
    """The linear evaluation in miniature: milestones at the same shares of a shorter run [X]."""
    c = linear(digits())
    c.linear.update(batch_size=64, epochs=30)
    c.linear.optim.milestones = (18, 24)
    return c


def digits_vit_v3_finetune_100pct() -> ConfigDict:
    """The fine-tuning in miniature, with the rate of configs/deit.py:digits and without mixing [X]."""
    c = finetuned(digits_vit_v3())
    c.finetune.update(batch_size=128, epochs=20)
    c.finetune.mix.update(mixup_alpha=0.0, cutmix_alpha=0.0)
    c.finetune.optim.update(learning_rate=2e-3, scaling="none", start=1e-5, warmup_epochs=5)
    return c


def folder() -> ConfigDict:
    """Your own photographs, --config.data.source=folder:PATH: ResNet-50 [X].

    The queue size K should stay below a quarter of the number of images.
    """
    c = photographs(released(moco(config.folder())))
    c.queue.size = 1024
    c.target.momentum = 0.99
    return c


def folder_small() -> ConfigDict:
    """Your own images at 32 pixels, a small network, on two CPU cores [X].

    The queue is short, so that a folder of some thousand images is large beside it.
    """
    c = few_steps(config.folder_small(), 0.97)
    c.queue.size = 512
    c.optim = dict(
        name="sgd", learning_rate=0.12, scaling="linear", momentum=0.9, weight_decay=5e-4, warmup_epochs=1
    )
    return c


def get_config(preset: str = "digits") -> ConfigDict:
    """The locked configuration of one preset.

    Raises:
        ValueError: the preset is not one of PRESETS.
    """
    config.choose(preset, PRESETS, "configs/moco.py")
    if preset in FINETUNED:
        return config.named(imagenet_finetuned(recipe(FINETUNED[preset])), preset)
    if preset not in LINEAR:
        return config.named(recipe(preset), preset)
    first = LINEAR[preset]
    c = recipe(first)
    if first in V3:
        c = linear_v3(c, 0.1)
    elif first in V3_VIT:
        c = linear_v3(c, 3.0)
    else:
        c = linear(c)
    return config.named(c, preset)


def recipe(preset: str) -> ConfigDict:
    """A preset that is neither in LINEAR nor in FINETUNED, before it is finished."""
    if preset in V1_ABLATION:
        return imagenet_v1(*V1_ABLATION[preset])
    if preset in V2:
        return imagenet_v2(V2[preset])
    if preset in V3:
        return imagenet_v3_resnet(V3[preset])
    if preset in V3_VIT:
        return imagenet_v3_vit(V3_VIT[preset])
    if preset in DEMO:
        return demo(*DEMO[preset])
    return globals()[preset]()
