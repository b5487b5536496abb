"""SimCLR (Chen et al., ICML 2020, arXiv 2002.05709): contrastive learning of visual representations.

    ssljax train --config configs/simclr.py:digits --workdir runs/digits              # a laptop, a minute
    ssljax train --config configs/simclr.py:cifar10_r18 --workdir runs/cifar10        # one accelerator
    ssljax train --config configs/simclr.py:imagenet_r50 --workdir gs://bucket/r50    # TPU v4-128 or v5e-64

`imagenet_r50_e100_b4096` and its siblings name the epochs and the batch size of the paper's tables.
`imagenet_r50` is the headline: 1000 epochs at batch size 4096, 69.3 / 89.0 top-1 / top-5 with a linear probe.
Every ImageNet preset NAME is also there as NAME_linear, which goes on to that probe.

Sources of the numbers: [P] the paper, [C] the released code (google-research/simclr, commit 383d414),
[X] chosen here.
"""

from ml_collections import ConfigDict

from ssljax import config

# The paper's table of epochs and batch sizes (appendix): ResNet-50, square-root learning-rate scaling.
EPOCHS = (100, 200, 400, 800, 1000)
BATCHES = (256, 512, 1024, 2048, 4096, 8192)
IMAGENET_TABLE = {
    f"imagenet_r50_e{epochs}_b{batch}": (epochs, batch) for epochs in EPOCHS for batch in BATCHES
}
WIDTHS = {"imagenet_r50": 1.0, "imagenet_r50_x2": 2.0, "imagenet_r50_x4": 4.0}
# Linear evaluation of every pretraining preset: the first stage of each.
LINEAR = {f"{name}_linear": name for name in (*WIDTHS, *IMAGENET_TABLE)}
# Fraction of the labels, and epochs of the second stage [P].
FINETUNED = {"imagenet_r50_finetune_1pct": (0.01, 60), "imagenet_r50_finetune_10pct": (0.1, 30)}

PRESETS = (
    "digits",
    "digits_finetune",
    "digits_linear",
    "fashion_mnist",
    "cifar10_r18",
    "cifar10_r18_linear",
    "cifar10_lightly",
    "cifar10_small",
    "folder",
    "folder_small",
    *WIDTHS,
    *FINETUNED,
    *IMAGENET_TABLE,
    *LINEAR,
)


def simclr(c: ConfigDict) -> ConfigDict:
    """The paper's recipe on a data set."""
    c.method = c.name = "simclr"
    c.views = dict(one=dict(), two=dict())
    c.augment.update(
        jitter_probability=0.8,  # appendix A [P]
        jitter_strength=1.0,  # ImageNet 1.0, CIFAR-10 0.5; times 0.8: brightness, contrast, saturation [P]
        jitter_hue=0.2,  # times the strength: hue [P]
        brightness="multiply",  # the released code's default, for CIFAR-10 too [C]; photographs: add
        grayscale_probability=0.2,  # [P]
    )
    c.head = dict(
        layers=2,  # [P]
        hidden=0,  # as wide as the features [C]
        dim=128,  # [C]
    )
    c.loss = dict(temperature=0.1)  # table of temperatures [P]
    c.optim = dict(
        name="lars",
        learning_rate=0.075,
        scaling="sqrt",  # 0.075 sqrt(B) = 4.8 at 4096, appendix B.1 [P]
        momentum=0.9,
        trust_coefficient=0.001,
        lr_in_momentum=True,  # [C]
        weight_decay=1e-6,  # [P]; the 1e-4 of the released README is that of SimCLRv2
        warmup_epochs=10,  # [P]
    )
    c.online_probe = True  # a linear classifier on stop-gradient features, trained beside the network [C]
    return c


def photographs(c: ConfigDict) -> ConfigDict:
    """Crops and blur as in the released code; pixels stay in [0, 1] and are not normalised [C].

    Brightness adds up to 0.8, as in the paper. The released code multiplies by default, which it calls the
    form of SimCLRv2.
    """
    c.augment.update(
        brightness="add",  # [P]
        crop="tf",  # sample_distorted_bounding_box [C]
        min_area=0.08,  # appendix A [P]; min_object_covered of the TF op makes it 0.10 [C]
        blur_probability=0.5,  # [P]
        blur_sigma=(0.1, 2.0),  # [P]
        blur_sigma_per="image",  # image [P] | batch [C]
    )
    return c


def imagenet(epochs: int = 1000, batch: int = 4096, width: float = 1.0) -> ConfigDict:
    """The paper's ImageNet recipe."""
    c = photographs(simclr(config.imagenet(epochs, batch)))
    c.model.width = width
    return c


def imagenet_finetune(fraction: float, epochs: int) -> ConfigDict:
    """The headline recipe, then the whole network on a part of the labels."""
    c = config.finetune(imagenet())
    c.finetune.epochs = epochs
    c.finetune.data.update(label_fraction=fraction, label_list="papers")
    return c


def linear(pretrain: ConfigDict) -> ConfigDict:
    """A preset, then the linear evaluation of section 2.3 and appendix B.6 [P].

    The released README trains at a weight decay of 1e-6 [C]; the paper says that there is none.
    """
    return config.linear(
        pretrain,
        batch_size=4096,  # [P]
        epochs=90,  # [P]
        optim=dict(
            name="sgd",
            nesterov=True,
            learning_rate=0.1,  # 1.6 at 4096 [P]
            scaling="linear",
            momentum=0.9,
            weight_decay=0.0,  # [P]
            warmup_epochs=0,
        ),
        head=dict(scheme="zeros"),  # zero_init_logits_layer of the README [C]
    )


def folder() -> ConfigDict:
    """Your own photographs, --config.data.source=folder:PATH: ResNet-50 at 224 pixels [X].

    PATH holds train/ and test/, or one sub-folder per class.
    """
    return photographs(simclr(config.folder()))


def folder_small() -> ConfigDict:
    """Your own images at 32 pixels, a small network, on two CPU cores [X]. See `folder` for PATH."""
    return on_a_cpu(config.folder_small(), warmup_epochs=1)


def small_images(c: ConfigDict) -> ConfigDict:
    """Half the jitter and no blur, appendix B.9 [P]."""
    c = simclr(c)
    c.augment.update(crop="tf", jitter_strength=0.5)
    return c


def on_a_cpu(c: ConfigDict, warmup_epochs: int) -> ConfigDict:
    """Some epochs of small images: SGD, and a higher temperature [X]."""
    c = small_images(c)
    c.loss.temperature = 0.2
    c.optim = dict(
        name="sgd",
        learning_rate=0.12,
        scaling="linear",
        momentum=0.9,
        weight_decay=5e-4,
        warmup_epochs=warmup_epochs,
    )
    return c


def cifar10_r18() -> ConfigDict:
    """The released README's CIFAR-10 recipe (about 91 % with a linear probe) [C]."""
    c = small_images(config.cifar10(epochs=1000, batch_size=512))
    c.head.layers = 3
    c.loss.temperature = 0.5
    c.optim.update(learning_rate=1.0, scaling="linear", weight_decay=1e-4)
    return c


def cifar10_r18_linear() -> ConfigDict:
    """The same, then the README's linear evaluation: 100 epochs at batch size 512 [C]."""
    c = linear(cifar10_r18())
    c.linear.update(batch_size=512, epochs=100)
    return c


def cifar10_lightly() -> ConfigDict:
    """lightly's benchmark: kNN at most 84.8 on the test set within 200 epochs [C].

    lightly's loss is the mean over both views, half of ours. Half the learning rate with twice the weight
    decay gives the same updates. lightly encodes the two views one after the other, with batch statistics of
    their own; here they are one batch [X].
    """
    recipe = config.cifar10_lightly()
    c = simclr(recipe.copy_and_resolve_references())
    c.augment = recipe.augment
    c.optim = recipe.optim
    c.optim.learning_rate /= 2
    c.optim.weight_decay *= 2
    c.loss.temperature = 0.5
    return c


def cifar10_small() -> ConfigDict:
    """ResNet-18 of base width 16 for ten epochs, twenty minutes on two CPU cores [X].

    For a folder of CIFAR-10 images: --config.data.source=folder:PATH --config.data.train_per_class=2000
    """
    return on_a_cpu(config.cifar10_small(), warmup_epochs=1)


def fashion_mnist() -> ConfigDict:
    """Fashion-MNIST on a CPU. Images are grey, so the colour jitter is only brightness and contrast [X]."""
    return on_a_cpu(config.fashion_mnist(), warmup_epochs=0)


def digits() -> ConfigDict:
    """scikit-learn's scanned digits, for the demo: small affine and intensity changes, no flips [X]."""
    c = simclr(config.digits())
    c.augment.update(jitter_strength=0.5, grayscale_probability=0.0)
    c.head.dim = 64
    c.loss.temperature = 0.35
    c.optim = dict(
        name="sgd", learning_rate=0.3, scaling="linear", momentum=0.9, weight_decay=1e-4, warmup_epochs=2
    )
    return c


def digits_finetune() -> ConfigDict:
    """The semi-supervised protocol in miniature: ten labels per class [X]."""
    c = config.finetune(digits())
    c.finetune.update(epochs=20, batch_size=50, log_every=20, eval_every_epochs=0)
    c.finetune.data.labels_per_class = 10
    return c


def digits_linear() -> ConfigDict:
    """The linear evaluation in miniature: the same recipe at batch size 64, warps instead of crops [X]."""
    c = linear(digits())
    c.linear.update(batch_size=64, epochs=30)
    return c


def get_config(preset: str = "digits") -> ConfigDict:
    """The locked configuration of one preset.

    Raises:
        ValueError: the preset is not one of PRESETS.
    """
    config.choose(preset, PRESETS, "configs/simclr.py")
    c = linear(recipe(LINEAR[preset])) if preset in LINEAR else recipe(preset)
    return config.named(c, preset)


def recipe(preset: str) -> ConfigDict:
    """A preset that is not in LINEAR, before it is finished."""
    if preset in IMAGENET_TABLE:
        return imagenet(*IMAGENET_TABLE[preset])
    if preset in FINETUNED:
        return imagenet_finetune(*FINETUNED[preset])
    if preset in WIDTHS:
        return imagenet(width=WIDTHS[preset])
    return globals()[preset]()
