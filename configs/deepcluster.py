"""DeepCluster (Caron et al., arXiv 1807.05520) and DeepCluster-v2 (Caron et al., arXiv 2006.09882).

    ssljax train --config configs/deepcluster.py:digits --workdir runs/deepcluster    # a laptop, two minutes
    ssljax train --config configs/deepcluster.py:fashion_mnist --workdir runs/deepcluster-fashion
    ssljax train --config configs/deepcluster.py:imagenet_alexnet --workdir gs://bucket/deepcluster
    ssljax train --config configs/deepcluster.py:imagenet_r50_v2 --workdir gs://bucket/v2           # 75.2
    ssljax train --config configs/deepcluster.py:imagenet_r50_v2_e400 --workdir gs://bucket/v2-two  # 70.2

`imagenet_r50_v2` is the headline: 800 epochs with two views of 224 pixels and six of 96. `_v2_e400` has two
of 224, `_v2_e400_multicrop` two of 160 and four of 96 (74.3).

The small presets have variants. `_shuffled` is the control, whose images learn the clusters of other images;
`_weights` weights the clusters in the loss instead of drawing evenly from them; `_plain` does neither;
`_repaired` starts with nine tenths of its clusters empty.

Every ImageNet preset NAME is also there as NAME_linear, which goes on to a linear probe; for AlexNet
NAME_linear_conv1 to _conv5 probe each layer.

Sources of the numbers: [P] the paper, [C] the released code (facebookresearch/deepcluster;
facebookresearch/swav for v2), [X] chosen here.
"""

from ml_collections import ConfigDict

from ssljax import config

VARIANTS: dict[str, dict] = {
    "": {},
    "_shuffled": {"shuffled": True},
    "_weights": {"sampler": "weights"},
    "_plain": {"sampler": "none"},
    "_repaired": {"distinct": 10},
}
# Epochs between two clusterings. An epoch of cifar10_small is 78 steps.
EVERY = {"fashion_mnist": 1, "cifar10_small": 2}
SMALL = {f"{data}{variant}": (data, variant) for data in EVERY for variant in VARIANTS}

# Version 2 on ImageNet: epochs, and the views [C].
LARGE = dict(min_area=0.14)
SMALL_CROPS = dict(size=96, min_area=0.05, max_area=0.14)
V2: dict[str, tuple[int, dict]] = {
    "imagenet_r50_v2": (800, dict(large=dict(count=2, **LARGE), small=dict(count=6, **SMALL_CROPS))),
    "imagenet_r50_v2_e400": (400, dict(one=dict(), two=dict())),
    "imagenet_r50_v2_e400_multicrop": (
        400,
        dict(large=dict(count=2, size=160), small=dict(count=4, **SMALL_CROPS)),
    ),
}

IMAGENET = ("imagenet_alexnet", "imagenet_alexnet_rgb", "imagenet_vgg16", "imagenet_r50")
ALEXNETS = ("imagenet_alexnet", "imagenet_alexnet_rgb")
# Linear evaluation of every pretraining preset: the first stage of each, and the layer that is probed. For
# AlexNet NAME_linear probes conv3, as the released script does, and NAME_linear_conv1 to _conv5 are the rows
# of the paper's tables [C]. The layers of the other networks are chosen here [X]. v2 probes the features [C].
LINEAR = {
    "imagenet_alexnet_linear": ("imagenet_alexnet", "conv3"),
    "imagenet_alexnet_rgb_linear": ("imagenet_alexnet_rgb", "conv3"),
    **{f"{name}_linear_conv{i}": (name, f"conv{i}") for name in ALEXNETS for i in range(1, 6)},
    "imagenet_vgg16_linear": ("imagenet_vgg16", "conv5_3"),
    "imagenet_r50_linear": ("imagenet_r50", "group4"),
    **{f"{name}_linear": (name, "") for name in V2},
}

PRESETS = (
    "digits",
    "digits_v2",
    "digits_linear",
    *SMALL,
    "cifar10_lightly_v2",
    "folder",
    "folder_small",
    *IMAGENET,
    *V2,
    *LINEAR,
)


def deepcluster(c: ConfigDict, k: int, dim: int) -> ConfigDict:
    """The paper's recipe on a data set: one view by crops and flips, and edges instead of colours."""
    c.method = c.name = "deepcluster"
    c.views = dict(one=dict())
    c.augment.update(crop="torchvision", min_area=0.08)  # [C]
    c.model.update(shortcut="torchvision", sobel=True, dropout=0.0)
    c.clusters = dict(
        version=1,
        k=k,  # clusters; about ten times the classes one expects [P]
        dim=dim,  # components after whitening; 256 [P]
        every=1,  # epochs between two clusterings [C]
        iterations=20,  # of k-means [C]
        algorithm="lloyd",  # minibatch: for features that do not fit; the network sees the data three times
        repair="faiss",  # of empty clusters: faiss [C] | additive | none
        sampler="uniform",  # evenly over clusters [P] | weights in the loss instead [P] | none
        distinct=0,  # how many first centroids differ, the others start empty; 0: all differ
        shuffled=False,  # True: the control
    )
    c.optim = dict(  # [C]
        name="deepcluster_sgd",
        learning_rate=0.05,
        scaling="none",
        momentum=0.9,
        weight_decay=1e-5,
    )
    return c


def second(c: ConfigDict, k: int) -> ConfigDict:
    """Version 2 on a data set: two views with SimCLR's colours, and three sets of prototypes [C].

    Each preset chooses its own optimizer.
    """
    c.method = c.name = "deepcluster"
    c.views = dict(one=dict(), two=dict())
    c.augment.update(jitter_probability=0.8, jitter_strength=1.0, grayscale_probability=0.2)
    c.model.shortcut = "torchvision"
    c.head = dict(
        layers=2,
        hidden=0,
        dim=128,
        hidden_bias=True,
        last_bias=True,
        norm=True,
        last_norm=False,
        scheme="uniform",
    )
    c.clusters = dict(version=2, k=k, every=1, iterations=10, heads=3, temperature=0.1)
    return c


def imagenet(network: str) -> ConfigDict:
    """500 epochs, which the paper's tables need (the code's default is 200); 10,000 clusters, seed 31 [C]."""
    c = deepcluster(config.imagenet(epochs=500, batch_size=256), k=10_000, dim=256)
    c.model.name = network
    c.seed = 31
    c.augment.update(**config.TORCHVISION_CROPS, **config.IMAGENET)  # [C]
    return c


def imagenet_alexnet() -> ConfigDict:
    """The network of the paper's tables: linear probes of all layers, 38.2 to 41.0 from conv3 on [P]."""
    c = imagenet("alexnet_bn")
    c.model.dropout = 0.5
    c.evaluate.update(protocols=("layers",), layers=tuple(f"conv{i}" for i in range(1, 6)))
    return c


def imagenet_alexnet_rgb() -> ConfigDict:
    """Colours instead of edges."""
    c = imagenet_alexnet()
    c.model.sobel = False
    return c


def imagenet_vgg16() -> ConfigDict:
    """The network of the paper's detection and retrieval tables."""
    c = imagenet("vgg16_bn")
    c.model.dropout = 0.5
    c.evaluate.update(protocols=("layers",), layers=("conv3_3", "conv4_3", "conv5_3"))
    return c


def imagenet_r50() -> ConfigDict:
    """A ResNet-50 by the recipe of version 1 [X]."""
    return imagenet("resnet50")


def imagenet_v2(epochs: int, views: dict) -> ConfigDict:
    """Version 2, as in the scripts of the released code, with the views of one of V2 [C]."""
    c = second(config.imagenet(epochs=epochs, batch_size=4096), k=3_000)
    c.views = views
    c.augment.update(
        min_area=0.08,
        blur_probability=0.5,
        mean=(0.485, 0.456, 0.406),
        std=(0.228, 0.224, 0.225),
        **config.TORCHVISION_CROPS,
        **config.TORCHVISION_COLOURS,
    )
    c.zero_init_residual = False
    c.optim = dict(
        name="lars",
        learning_rate=0.3,
        scaling="linear",  # 4.8 at 4096
        start=0.3,
        end=0.0048,
        lr_in_momentum=False,
        momentum=0.9,
        trust_coefficient=0.001,
        weight_decay=1e-6,
        warmup_epochs=10,
    )
    return c


def linear(pretrain: ConfigDict, layer: str) -> ConfigDict:
    """A preset, then the released linear probe of one layer: eval_linear.py of facebookresearch/deepcluster.

    Crops are squares of 224 in the central 256 of an image resized to 256. The rate is 0.01 / sqrt(1 + 0.01
    wd t) at step t. Ten crops of a test image are averaged. [C]

    Args:
        pretrain: the preset.
        layer: its activations after the ReLU are averaged down to at most 9,600 numbers.
    """
    return config.linear(
        pretrain,
        batch_size=256,
        epochs=90,
        optim=dict(
            name="deepcluster_probe_sgd",
            learning_rate=0.01,
            scaling="none",
            momentum=0.9,
            weight_decay=1e-7 if layer == "conv3" else 1e-4,  # eval_linear.sh; the default
        ),
        head=dict(scheme="uniform"),  # PyTorch's default
        probe=dict(layer=layer, layer_dim=9600),
        augment=dict(crop="square", min_area=(224 / 256) ** 2),
        evaluate=dict(ten_crops=True),
    )


def linear_v2(pretrain: ConfigDict) -> ConfigDict:
    """A preset of version 2, then eval_linear.py of facebookresearch/swav: a cosine by whole epochs [C]."""
    return config.linear(
        pretrain,
        batch_size=256,  # 8 x 32
        epochs=100,
        optim=dict(
            name="torch_sgd",
            learning_rate=0.3,
            scaling="none",
            momentum=0.9,
            weight_decay=1e-6,
            milestones=(),
        ),
        augment=dict(crop="torchvision", min_area=0.08),  # RandomResizedCrop's default
    )


def small(data: str, variant: str) -> ConfigDict:
    """Network, batch size and epochs of the same preset of configs/simclr.py; a hundred clusters [X].

    There are few steps between two clusterings. At the paper's learning rate (`fashion_mnist --config.seed=3
    --config.optim.learning_rate=0.05`) a new head learns next to nothing in them: the NMI with the labels is
    0.32 after the first epoch, and kNN at the end is 69.9, below the 72.1 of a random network. At 0.2 the NMI
    is 0.45 after the first epoch.
    """
    base = config.fashion_mnist() if data == "fashion_mnist" else config.cifar10_small()
    c = deepcluster(base, k=100, dim=64)
    c.augment.min_area = 0.2
    c.evaluate.update(layers=("stem", "group1", "group2", "group3", "group4"), layer_dim=1024)
    c.clusters.update(every=EVERY[data], **VARIANTS[variant])
    c.optim.learning_rate = 0.2
    return c


def digits() -> ConfigDict:
    """scikit-learn's digits with the small affine changes of SimCLR's preset; fifty clusters [X]."""
    c = deepcluster(config.digits(), k=50, dim=32)
    c.augment.crop = "affine"
    c.clusters.every = 5  # an epoch is eleven steps: too few for a new head
    c.optim.learning_rate = 0.1
    c.evaluate.update(layers=("stem", "group1", "group2", "group3"), layer_dim=1024)
    return c


def digits_linear() -> ConfigDict:
    """The probe of a layer in miniature: warps instead of crops, fewer features and a higher rate [X]."""
    c = linear(digits(), "group2")
    c.linear.update(batch_size=64, epochs=30)
    c.linear.augment.crop = "affine"
    c.linear.probe.layer_dim = 1024
    c.linear.evaluate.ten_crops = False  # a mirrored digit is none
    c.linear.optim.learning_rate = 0.1
    return c


def cifar10_lightly_v2() -> ConfigDict:
    """Version 2 by the recipe of lightly's CIFAR-10 benchmark, which has no DeepCluster; 500 clusters [X]."""
    recipe = config.cifar10_lightly()
    c = second(recipe.copy_and_resolve_references(), k=500)
    c.augment = recipe.augment
    c.optim = recipe.optim
    return c


def digits_v2() -> ConfigDict:
    """Version 2 on the digits, with the views and the optimizer of SimCLR's preset [X]."""
    c = second(config.digits(), k=50)
    c.augment.update(jitter_strength=0.5, grayscale_probability=0.0)
    c.head.dim = 64
    c.optim = dict(
        name="sgd", learning_rate=0.3, scaling="linear", momentum=0.9, weight_decay=1e-4, warmup_epochs=2
    )
    return c


def folder() -> ConfigDict:
    """Your own photographs, --config.data.source=folder:PATH: ResNet-50 at 224 pixels [X].

    --config.clusters.k should be ten times the number of classes you expect.
    """
    c = deepcluster(config.folder(), k=1_000, dim=256)
    c.augment.update(**config.TORCHVISION_CROPS, **config.IMAGENET)
    return c


def folder_small() -> ConfigDict:
    """Your own images at 32 pixels by version 2, a small network, on two CPU cores [X].

    --config.clusters.k should be ten times the number of classes you expect.
    """
    c = second(config.folder_small(), k=100)
    c.augment.update(crop="tf", jitter_strength=0.5)
    c.optim = dict(
        name="sgd", learning_rate=0.12, scaling="linear", momentum=0.9, weight_decay=5e-4, warmup_epochs=1
    )
    return c


def get_config(preset: str = "digits") -> ConfigDict:
    """The locked configuration of one preset.

    Raises:
        ValueError: the preset is not one of PRESETS.
    """
    config.choose(preset, PRESETS, "configs/deepcluster.py")
    if preset in LINEAR:
        first, layer = LINEAR[preset]
        c = linear(recipe(first), layer) if layer else linear_v2(recipe(first))
    else:
        c = recipe(preset)
    return config.named(c, preset)


def recipe(preset: str) -> ConfigDict:
    """A preset that is not in LINEAR, before it is finished."""
    if preset in SMALL:
        return small(*SMALL[preset])
    if preset in V2:
        return imagenet_v2(*V2[preset])
    return globals()[preset]()
