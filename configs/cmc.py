"""CMC (Tian, Krishnan, Isola, arXiv 1906.05849): contrast the views of an image.

    ssljax train --config configs/cmc.py:digits --workdir runs/cmc                  # a laptop, two minutes
    ssljax train --config configs/cmc.py:cifar10_small --workdir runs/cifar --config.data.source=folder:PATH
    ssljax train --config configs/cmc.py:imagenet_alexnet --workdir gs://bucket/cmc-alexnet
    ssljax train --config configs/cmc.py:imagenet_r50_v3_linear --workdir gs://bucket/cmc       # 68.4

`imagenet_r50_v1`, `_v2` and `_v3` have a ResNet-50 of half, single and double width for each view. Every
ImageNet preset NAME is also there as NAME_linear, which goes on to a linear probe; imagenet_alexnet_linear
probes conv5, imagenet_alexnet_linear_conv1 to _conv4 the other layers.

`cmc_pycontrast` is the later recipe of the same authors (HobbitLong/PyContrast): other colours, jitter,
softmax and schedule. It is never mixed with the others.

Which views: --config.model.split=luminance,chrominance,gradient, the first is the core; all pairs
with --config.contrast.graph=full. Views from folders, such as a depth: `views` and `views_small`, see
docs/views.md. One view alone in an evaluation: --config.evaluate.view=luminance.

Sources of the numbers: [P] the paper, [C] the released code (HobbitLong/CMC at 7b227be,
HobbitLong/PyContrast at 84f94ea), [X] chosen here.
"""

from ml_collections import ConfigDict

from ssljax import config

# Name -> width of each view's ResNet-50, and the learning rate of the linear probe [C].
RESNETS = {"imagenet_r50_v1": (0.5, 30.0), "imagenet_r50_v2": (1.0, 30.0), "imagenet_r50_v3": (2.0, 50.0)}
# Linear evaluation: the first stage of each, and the layer that is probed.
LINEAR = {
    "imagenet_alexnet_linear": ("imagenet_alexnet", "conv5"),
    **{f"imagenet_alexnet_linear_conv{i}": ("imagenet_alexnet", f"conv{i}") for i in range(1, 5)},
    **{f"{name}_linear": (name, "") for name in RESNETS},
    "cmc_pycontrast_linear": ("cmc_pycontrast", ""),
}

PRESETS = (
    "digits",
    "digits_linear",
    "fashion_mnist",
    "cifar10_small",
    "cifar10_views",
    "fashion_views",
    "folder",
    "folder_small",
    "views",
    "views_small",
    "imagenet_alexnet",
    *RESNETS,
    "cmc_pycontrast",
    *LINEAR,
)


def cmc(c: ConfigDict) -> ConfigDict:
    """CMC on a data set of colour images: L and ab, one crop. Each preset chooses its own optimizer."""
    c = config.multiview.colours(c, "cmc")
    c.head = dict(dim=128)  # [C]
    c.loss = dict(temperature=0.07)  # [C]
    c.contrast = dict(
        name="nce",  # [C]
        graph="core",  # first view with every other; full: all pairs
    )
    c.bank = dict(
        negatives=4096,  # of the released weights [C]; the code's default is 16384
        draw="per_image",
        momentum=0.5,  # [C]
        z="first_batch",  # [C]
    )
    return c


def released(c: ConfigDict) -> ConfigDict:
    """CMC with the optimizer and the pixels of the released code [C]."""
    return config.multiview.released(cmc(c))


def imagenet_alexnet() -> ConfigDict:
    """Half an AlexNet per view, one device of 256 images [C]."""
    c = released(config.imagenet(epochs=240, batch_size=256))
    c.model.update(name="alexnet_half", dtype="float32")
    return c


def imagenet_resnet(width: float) -> ConfigDict:
    """A ResNet-50 per view, four devices of 32 images [C]."""
    c = config.multiview.resnet(released(config.imagenet(epochs=240, batch_size=128)), width)
    c.bn.groups = 4
    return c


def cmc_pycontrast() -> ConfigDict:
    """PyContrast's CMC: two ResNet-50 of half width as one network of two groups; 58.6 after 200 epochs [C].

    Its convolutions count the outputs of both groups when they are initialised, so that their weights are
    smaller by the square root of two, its cosine ends at 3e-5 and is one epoch ahead, and its banks begin
    with Gaussian rows of unit length, where these have a length of 1 +- 0.04 [X]. Eight devices of 32 images
    [X].
    """
    c = config.multiview.resnet(released(config.imagenet(epochs=200, batch_size=256)), 0.5)
    c.augment.update(
        **config.TORCHVISION_COLOURS,
        color_space="ydbdr",
        jitter_probability=1.0,
        jitter_strength=0.5,  # brightness and contrast 0.4, as below times this
        jitter_saturation=0.8,
        jitter_hue=0.2,
    )
    c.contrast.name = "softmax"
    c.bank.negatives = 65536
    c.bn.groups = 8
    c.optim.milestones = ()
    return c


def linear(pretrain: ConfigDict, rate: float, layer: str) -> ConfigDict:
    """A preset, then the released linear probe [C]; `rate` and `layer` are those of `multiview.probe`."""
    return config.linear(pretrain, **config.multiview.probe(rate, layer))


def small_images(c: ConfigDict) -> ConfigDict:
    """Small images and short runs: softmax, a higher temperature, fewer negatives [X].

    On the digits (seed 3, 40 epochs, three views, a rate of 0.3) softmax at 0.2 gives kNN 80.5 and a linear
    probe 89.2, NCE at 0.07 gives 64.0 and 84.5.
    """
    c = cmc(c)
    c.head.dim = 64
    c.loss.temperature = 0.2
    c.contrast.name = "softmax"
    c.bank.negatives = 1024
    return c


def without_banks(c: ConfigDict) -> ConfigDict:
    """Contrast within the batch: the rows of banks are random for an epoch, and an epoch old after that [X].

    On `cifar10_views` (seed 0) banks after 20 epochs give kNN 38.6 and a linear probe 46.0; the images of the
    batch after 5 epochs 43.1 and 46.3, after 20 epochs 42.6 and 48.4. With banks again:
    --config.contrast.name=softmax --config.bank.negatives=1024
    """
    c.contrast.name = "in_batch"
    return config.multiview.sgd(c, 0.12, 5e-4)


def cifar10_small() -> ConfigDict:
    """Network, batch size and epochs of configs/simclr.py:cifar10_small, one network per view [X].

    For a folder of CIFAR-10 images: --config.data.source=folder:PATH --config.data.train_per_class=2000
    """
    return without_banks(small_images(config.cifar10_small()))


def folder_small() -> ConfigDict:
    """Your own colour images at 32 pixels, a small network per view, on two CPU cores [X]."""
    return without_banks(small_images(config.folder_small()))


def grey(c: ConfigDict) -> ConfigDict:
    """Grey images have no colours: the views are intensity, gradient and low resolution [X]."""
    return config.multiview.grey(small_images(c), "luminance", "gradient", "low")


def fashion_mnist() -> ConfigDict:
    """Network, batch size and epochs of configs/simclr.py:fashion_mnist, one network per view [X]."""
    return without_banks(grey(config.fashion_mnist()))


def cifar10_views() -> ConfigDict:
    """Luminance and colours of CIFAR-10; set --config.model.split for more views."""
    return config.multiview.few_minutes(cifar10_small())


def fashion_views() -> ConfigDict:
    """Intensity and gradient of Fashion-MNIST; set --config.model.split for more views."""
    c = config.multiview.few_minutes(fashion_mnist())
    c.model.split = ("luminance", "gradient")
    return c


def digits() -> ConfigDict:
    """Warps, batch size and epochs of configs/simclr.py:digits; the views are intensity and gradient [X].

    Contrast, temperature, rate and views were chosen among five variants with seed 3, on the held-out digits.
    """
    c = grey(config.digits())
    c.augment.crop = "affine"
    c.model.split = ("luminance", "gradient")
    c.bank.negatives = 256
    return config.multiview.sgd(c, 0.12)


def digits_linear() -> ConfigDict:
    """The linear evaluation in miniature: milestones at the same shares of a shorter run [X]."""
    c = linear(digits(), 10.0, "")
    c.linear.update(batch_size=64, epochs=30)
    c.linear.optim.milestones = (15, 20, 25)
    return c


def folder() -> ConfigDict:
    """Your own photographs, --config.data.source=folder:PATH: a ResNet-50 of half width per view [X]."""
    c = config.multiview.resnet(released(config.folder()), 0.5)
    c.optim.milestones = ()
    c.augment.min_area = 0.2
    c.bank.negatives = 1024
    return c


def views() -> ConfigDict:
    """Your own views, --config.data.source=views:PATH: L, ab and a depth, with the networks of `folder` [X].

    For others say which folders there are, and which channels each network sees, see docs/views.md.
    """
    return of_folders(folder())


def of_folders(c: ConfigDict) -> ConfigDict:
    """The images of a config become views from folders: colours in Lab and a depth [X]."""
    c.data.update(source="views:images", view_folders=("image:3", "depth:1"))
    c.model.split = ("luminance", "chrominance", "depth=3:4")
    c.augment.update(mean=(0.0,), std=(1.0,))
    return c


def views_small() -> ConfigDict:
    """The same for a few hundred images on a CPU: 64 pixels, a ResNet-8 of width 16 per view, softmax [X]."""
    c = config.multiview.sgd(small_images(config.cifar10_small()), 0.12, 5e-4)
    c.data.update(image_size=64)
    c.model.update(name="resnet8", stem="imagenet")
    c.bank.negatives = 64
    c.batch_size = 32
    c.epochs = 80
    c.eval_every_epochs = 0
    c.checkpoint.best = ""
    return of_folders(c)


def get_config(preset: str = "digits") -> ConfigDict:
    """The locked configuration of one preset.

    Raises:
        ValueError: the preset is not one of PRESETS.
    """
    config.choose(preset, PRESETS, "configs/cmc.py")
    if preset not in LINEAR:
        return config.named(recipe(preset), preset)
    first, layer = LINEAR[preset]
    rate = 0.1 if layer else 30.0  # AlexNet and ResNets [C]
    if first in RESNETS:
        _, rate = RESNETS[first]
    c = linear(recipe(first), rate, layer)
    if first == "cmc_pycontrast":
        c.linear.augment.min_area = 0.2  # [C]
    return config.named(c, preset)


def recipe(preset: str) -> ConfigDict:
    """A preset that is not in LINEAR, before it is finished."""
    if preset in RESNETS:
        width, _ = RESNETS[preset]
        return imagenet_resnet(width)
    return globals()[preset]()
