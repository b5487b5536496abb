"""BYOL: Bootstrap Your Own Latent (Grill et al., NeurIPS 2020, arXiv 2006.07733).

    ssljax train --config configs/byol.py:digits --workdir runs/byol                # a laptop, two minutes
    ssljax train --config configs/byol.py:imagenette_r18 --workdir runs/imagenette  # one accelerator
    ssljax train --config configs/byol.py:imagenet_r50_e300 --workdir gs://bucket/byol      # 72.5 / 90.8
    ssljax train --config configs/byol.py:imagenet_r50_e1000 --workdir gs://bucket/byol     # 74.3 / 91.6

The figures are top-1 / top-5 of a linear probe; imagenette is the released code's small run. Every ImageNet
preset NAME is also there as NAME_linear, which goes on to that probe.

`imagenet_r50_finetune_1pct` and `_10pct`, and the same for larger networks, go on to fine-tune on a part of
the labels, `imagenet_r50_finetune_100pct` on all. Ablations of the paper at 300 epochs: `_no_predictor`
(0.2), `_tau_0` (0.3), `_tau_1` (a random target: 18.8), `_symmetric` (both views by one recipe: no change).
For another fixed tau use `--config.target.schedule=constant --config.target.momentum=0.99`. The paper's
smaller batches of 4096 / N images are --config.accumulate=N (N = 16: 71.8, N = 64: 59.7), with the rate and
steps of 4096 images [P].

Sources of the numbers: [P] the paper, [C] the released code (deepmind-research, byol, commit f5de0ed),
[X] chosen here.
"""

from ml_collections import ConfigDict

from ssljax import config

# Epochs, batch size, base learning rate, weight decay, tau at the start [C].
IMAGENET_TABLE = {
    "imagenet_r50_e40": (40, 4096, 0.45, 1e-6, 0.97),
    "imagenet_r50_e100": (100, 4096, 0.45, 1e-6, 0.99),
    "imagenet_r50_e300": (300, 4096, 0.3, 1e-6, 0.99),
    "imagenet_r50_e1000": (1000, 4096, 0.2, 1.5e-6, 0.996),
    "imagenet_r50_e1000_b512": (1000, 512, 0.4, 1.5e-6, 0.9995),
}
# Network and width. Linear probe after 1000 epochs [P]: 77.4, 78.2, 78.6; 76.4, 77.3, 77.8; 79.6.
LARGER = {
    "imagenet_r50_x2": ("resnet50", 2.0),
    "imagenet_r50_x3": ("resnet50", 3.0),
    "imagenet_r50_x4": ("resnet50", 4.0),
    "imagenet_r101": ("resnet101", 1.0),
    "imagenet_r152": ("resnet152", 1.0),
    "imagenet_r200": ("resnet200", 1.0),
    "imagenet_r200_x2": ("resnet200", 2.0),
}
ABLATIONS: dict[str, str | float] = {
    "imagenet_r50_e300_no_predictor": "predictor",
    "imagenet_r50_e300_tau_0": 0.0,
    "imagenet_r50_e300_tau_1": 1.0,
    "imagenet_r50_e300_symmetric": "views",
}

# Linear evaluation of every pretraining preset: the first stage of each.
LINEAR = {f"{name}_linear": name for name in (*IMAGENET_TABLE, *LARGER, *ABLATIONS)}
FINETUNED = ("imagenet_r50", "imagenet_r50_x2", "imagenet_r50_x4", "imagenet_r200_x2")
FINETUNE = {
    f"{name}_finetune_{percent}pct": (name, percent / 100) for name in FINETUNED for percent in (1, 10)
}
FINETUNE["imagenet_r50_finetune_100pct"] = ("imagenet_r50", 1.0)

PRESETS = (
    "digits",
    "digits_collapse",
    "digits_linear",
    "fashion_mnist",
    "cifar10_r18",
    "cifar10_lightly",
    "cifar10_small",
    "folder",
    "folder_small",
    "imagenette_r18",
    *IMAGENET_TABLE,
    *LARGER,
    *ABLATIONS,
    *FINETUNE,
    *LINEAR,
)


def byol(c: ConfigDict) -> ConfigDict:
    """The paper's method on a data set, with views for photographs. Each preset chooses its own optimizer."""
    c.method = c.name = "byol"
    c.views = dict(one=dict(), two=dict(blur_probability=0.1, solarize_probability=0.2))  # [C]
    c.augment.update(  # [C]
        crop="byol",
        min_area=0.08,
        jitter_probability=0.8,
        jitter_strength=0.5,
        jitter_saturation=0.4,  # times the strength: 0.8 to 1.2
        brightness="add",
        grayscale_probability=0.2,
        blur_probability=1.0,
    )
    c.zero_init_residual = True  # False: the last gain of a residual branch starts from 1
    c.head = dict(  # [C]
        layers=2,
        hidden=4096,
        dim=256,
        hidden_bias=True,
        last_bias=False,
        norm=True,
        last_norm=False,
        scheme="truncated_normal",
    )
    c.predictor = dict(
        layers=2,  # 0: an ablation
        hidden=4096,
        hidden_bias=True,
        last_bias=False,
        norm=True,
        last_norm=False,
        scheme="truncated_normal",
    )
    c.target = dict(
        momentum=0.996,  # tau at the start
        schedule="cosine",  # of tau, up to 1; "constant" for the ablations
        init="independent",  # independent [C] | copy
    )
    c.online_probe = True  # a linear classifier on stop-gradient features of view 1 [C]
    return c


def symmetric() -> dict[str, dict]:
    """Two views by one recipe."""
    return dict(one=dict(), two=dict())


def lars(learning_rate: float, weight_decay: float) -> ConfigDict:
    """LARS as in the released code, with ten epochs of warm-up [C]."""
    return ConfigDict(
        dict(
            name="lars",
            learning_rate=learning_rate,
            scaling="linear",
            lr_in_momentum=False,
            momentum=0.9,
            trust_coefficient=0.001,
            weight_decay=weight_decay,
            warmup_epochs=10,
        )
    )


def imagenet(
    epochs: int = 1000, batch: int = 4096, rate: float = 0.2, decay: float = 1.5e-6, tau: float = 0.996
) -> ConfigDict:
    """The paper's recipe; the defaults are its headline."""
    c = byol(config.imagenet(epochs, batch))
    c.augment.update(config.IMAGENET)  # [C]
    c.model.update(kernel_init="truncated_normal", padding="same")  # Haiku's defaults [C]
    c.optim = lars(rate, decay)
    c.zero_init_residual = False  # as for the paper's results [C]
    c.target.momentum = tau
    return c


def ablation(what: str | float) -> ConfigDict:
    """A row of the paper's ablations, at 300 epochs."""
    c = imagenet(*IMAGENET_TABLE["imagenet_r50_e300"])
    if what == "predictor":
        c.predictor.layers = 0
    elif what == "views":
        c.views = symmetric()
        c.augment.update(blur_probability=0.5, solarize_probability=0.2)  # appendix [P]
    else:
        c.target.update(momentum=what, schedule="constant")
    return c


def larger(name: str) -> ConfigDict:
    """The headline recipe on one of LARGER, or on the ResNet-50."""
    c = imagenet()
    if name in LARGER:
        c.model.name, c.model.width = LARGER[name]
    return c


def finetune(name: str, fraction: float) -> ConfigDict:
    """Semi-supervised, in two stages: the headline recipe, then the whole network on a part of the labels.

    The batch size is 1024 [P]. The paper selects the learning rate (0.005, 0.01, 0.02, 0.05, 0.1) and the
    epochs (30, 50) on local validation images. Here they are the middle one and the last one [X]; try the
    others with --config.finetune.optim.learning_rate and --config.finetune.epochs. The rates are those at a
    batch size of 256: the schedule of the released code, for fine-tuning too, multiplies every base rate by
    B / 256 (schedules.py, `learning_schedule`) [C]. The text of the paper does not say.
    """
    c = config.finetune(larger(name))
    c.finetune.data.update(label_fraction=fraction, label_list="papers")
    c.finetune.update(batch_size=1024, epochs=50)
    c.finetune.optim.learning_rate = 0.02
    return c


def linear(pretrain: ConfigDict) -> ConfigDict:
    """A preset, then the paper's linear evaluation at the learning rate of the released code.

    The paper chooses the rate from 0.4, 0.3, 0.2, 0.1 and 0.05 on the last 10,009 training images, which it
    holds out, and then trains on all of them [P]. The released code has 0.2, at a batch size of 4096 by
    default [C]. docs/running.md has the command that tries another rate on those images.
    """
    return config.linear(
        pretrain,
        batch_size=1024,  # [P]
        epochs=80,
        optim=dict(
            name="sgd",
            nesterov=True,
            learning_rate=0.2,
            scaling="linear",
            momentum=0.9,
            weight_decay=0.0,
            warmup_epochs=0,
        ),
        head=dict(scheme="truncated_normal"),  # Haiku's default [C]
    )


def imagenette_r18() -> ConfigDict:
    """The released code's run on one accelerator: online probe at about 92.3 [C]."""
    c = imagenet(1000, 256, 2.0, 1e-6, 0.996)
    c.data.update(source="tfds:imagenette/160px-v2", image_size=128)
    c.model.name = "resnet18"
    return c


def folder() -> ConfigDict:
    """Your own photographs, --config.data.source=folder:PATH: ResNet-50 at 224 pixels [X]."""
    c = byol(config.folder())
    c.augment.update(config.IMAGENET)
    c.optim = lars(0.4, 1.5e-6)
    return c


def cifar10_r18() -> ConfigDict:
    """CIFAR-10, which is not in the paper: imagenette's optimizer, SimCLR's stem, crops without blur [X]."""
    c = byol(config.cifar10(epochs=1000, batch_size=512))
    c.views.two = dict(solarize_probability=0.2)
    c.augment.blur_probability = 0.0
    c.optim = lars(2.0, 1e-6)
    return c


def cifar10_lightly() -> ConfigDict:
    """lightly's benchmark: kNN at most 86.8 on the test set within 200 epochs [C].

    lightly's loss is the mean of two negative cosines, a quarter of ours up to a constant. A quarter of the
    learning rate with four times the weight decay gives the same updates.
    """
    recipe = config.cifar10_lightly()
    c = byol(recipe.copy_and_resolve_references())
    c.augment = recipe.augment
    c.augment.jitter_saturation = 0.4
    c.views.two = dict(solarize_probability=0.2)
    c.optim = recipe.optim
    c.optim.learning_rate /= 4
    c.optim.weight_decay *= 4
    c.zero_init_residual = False
    c.head.update(hidden=1024, hidden_bias=False, last_bias=True, scheme="uniform")
    c.predictor.update(hidden=1024, hidden_bias=False, last_bias=True, scheme="uniform")
    c.target.update(momentum=0.99, schedule="constant", init="copy")
    return c


def short(c: ConfigDict, hidden: int) -> ConfigDict:
    """A run of a few thousand steps: views of SimCLR's small presets, and a target that moves fast [X]."""
    own_views = c.augment.copy_and_resolve_references()
    c = byol(c)
    c.views = symmetric()
    c.augment = own_views
    c.augment.update(
        jitter_probability=0.8,
        jitter_strength=0.5,
        brightness="multiply",
        grayscale_probability=0.2,
    )
    c.zero_init_residual = False
    c.head.hidden = hidden
    c.predictor.hidden = hidden
    c.target.momentum = 0.8
    c.batch_size = 128
    return c


def cifar10_small() -> ConfigDict:
    """Network, views and epochs of configs/simclr.py:cifar10_small; the rest is that of fashion_mnist [X].

    For a folder of CIFAR-10 images: --config.data.source=folder:PATH --config.data.train_per_class=2000
    """
    c = short(config.cifar10_small(), hidden=512)
    c.augment.crop = "tf"
    c.optim = dict(name="adamw", learning_rate=3e-3, scaling="none", weight_decay=5e-4, warmup_epochs=1)
    return c


def folder_small() -> ConfigDict:
    """Your own images at 32 pixels, a small network, on two CPU cores [X]."""
    c = short(config.folder_small(), hidden=512)
    c.augment.crop = "tf"
    c.optim = dict(name="adamw", learning_rate=3e-3, scaling="none", weight_decay=5e-4, warmup_epochs=1)
    return c


def fashion_mnist() -> ConfigDict:
    """Network, views and epochs of configs/simclr.py:fashion_mnist [X].

    It has half the batch size, AdamW, and a target that follows at once. These were chosen by held-out kNN
    (k=20, 20,000 training images) of seed 3 after 2 epochs (commit 985fb14):

        this preset                               79.0
        tau from 0.6                              78.9
        tau from 0.9                              77.8
        batch size 256                            75.2
        batch size 256 and tau from 0.9           70.6
        crops from 0.08 of the area               77.4
        a random network                          78.1

    SimCLR's SGD at batch size 256 with tau from 0.98 was no better than a random network after 5 epochs
    (seed 0).
    """
    c = short(config.fashion_mnist(), hidden=512)
    c.augment.crop = "tf"
    c.optim = dict(name="adamw", learning_rate=3e-3, scaling="none", weight_decay=5e-4, warmup_epochs=0)
    return c


def digits() -> ConfigDict:
    """Network, views, batch size and epochs of configs/simclr.py:digits [X].

    It has AdamW, and a target that follows within five steps. These were chosen by held-out kNN of seeds 3
    and 4 (commit 166b42d):

        this preset                                          90.9 and 87.2
        tau from 0.9                                         88.9 and 81.1
        tau from 0.96                                        78.8 and 68.7
        tau from 0.9, a third of the learning rate           83.5 and 80.8
        tau from 0.9, SimCLR's SGD at twice its rate         71.7 and 75.4
    """
    c = short(config.digits(), hidden=256)
    c.augment.grayscale_probability = 0.0
    c.head.dim = 64
    c.optim = dict(name="adamw", learning_rate=3e-3, scaling="none", weight_decay=1e-4, warmup_epochs=2)
    return c


def digits_collapse() -> ConfigDict:
    """Without predictor and target network: it collapses, and the monitor reports it [X].

    tau = 0 makes the target the online network itself.
    """
    c = digits()
    c.predictor.layers = 0
    c.target.update(momentum=0.0, schedule="constant", init="copy")
    return c


def digits_linear() -> ConfigDict:
    """The linear evaluation in miniature [X]."""
    c = linear(digits())
    c.linear.update(batch_size=64, epochs=30)
    return c


def get_config(preset: str = "digits") -> ConfigDict:
    """The locked configuration of one preset.

    Raises:
        ValueError: the preset is not one of PRESETS.
    """
    config.choose(preset, PRESETS, "configs/byol.py")
    c = linear(recipe(LINEAR[preset])) if preset in LINEAR else recipe(preset)
    return config.named(c, preset)


def recipe(preset: str) -> ConfigDict:
    """A preset that is not in LINEAR, before it is finished."""
    if preset in IMAGENET_TABLE:
        return imagenet(*IMAGENET_TABLE[preset])
    if preset in LARGER:
        return larger(preset)
    if preset in FINETUNE:
        return finetune(*FINETUNE[preset])
    if preset in ABLATIONS:
        return ablation(ABLATIONS[preset])
    return globals()[preset]()
