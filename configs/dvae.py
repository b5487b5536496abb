"""The dVAE of DALL-E (Ramesh et al., arXiv 2102.12092), the tokenizer that BEiT predicts the tokens of.

    ssljax train --config configs/dvae.py:digits --workdir runs/dvae
    ssljax train --config configs/dvae.py:imagenet --workdir gs://bucket/dvae
    ssljax train --config configs/dvae.py:folder --config.data.source=folder:PATH --workdir runs/dvae

BEiT trains on such a run with --config.recover.tokenizer=gs://bucket/dvae, or trains its own in its first
stage (configs/beit.py). `imagenet_112` trains at the size at which BEiT tokenizes. The paper trains on 250
million pairs of images and texts from the internet, which are not public; BEiT's table 8 has a tokenizer
trained on ImageNet, .16 top-1 below.

Sources of the numbers: [P] the paper, [X] chosen here.
"""

from ml_collections import ConfigDict

from ssljax import config

PRESETS = (
    "digits",
    "fashion_mnist",
    "cifar10",
    "cifar10_small",
    "folder",
    "folder_small",
    "imagenet",
    "imagenet_112",
)


def squares(c: ConfigDict, size: int) -> ConfigDict:
    """Crops of the paper's kind at another size [P, appendix A]."""
    c.data.image_size = size
    c.augment.update(config.DALLE_CROPS)
    return c


def imagenet(size: int = 256) -> ConfigDict:
    """The paper's network and schedules on ImageNet's images: 3 million updates of 512."""
    c = squares(config.imagenet(epochs=1199, batch_size=512), size)
    return config.dvae(c, epochs=1199, batch_size=512)


def folder() -> ConfigDict:
    """Your own photographs at 112 pixels, by a quarter of the width and 2,048 codes [X]."""
    c = squares(config.folder(), 112)
    c = config.dvae(c, epochs=100, batch_size=64, hidden=64, vocabulary=2048)
    c.optim.learning_rate = 3e-4
    return c


def digits() -> ConfigDict:
    """scikit-learn's digits at 16 pixels: 4 x 4 codes of 64 [X]."""
    c = config.dvae(
        config.digits(), epochs=20, batch_size=64, groups=3, hidden=16, blocks=1, vocabulary=64, codebook=32
    )
    c.augment.update(rotate=10.0, shift=0.1, zoom=0.1, shear=5.0)
    return config.short_dvae(c)


def fashion_mnist() -> ConfigDict:
    """Fashion-MNIST at 28 pixels: 7 x 7 codes of 256 [X]."""
    c = config.fashion_mnist()
    c.augment.min_area = 0.5
    c = config.dvae(c, epochs=5, batch_size=128, groups=3, hidden=32, blocks=1, vocabulary=256, codebook=32)
    return config.short_dvae(c)


def cifar10() -> ConfigDict:
    """CIFAR-10 at 32 pixels on an accelerator: 8 x 8 codes of 1,024 [X]."""
    c = config.cifar10(epochs=60, batch_size=256)
    c.augment.min_area = 0.5
    return config.short_dvae(config.dvae(c, epochs=60, batch_size=256, groups=3, hidden=128, vocabulary=1024))


def cifar10_small() -> ConfigDict:
    """CIFAR-10 on two CPU cores: 8 x 8 codes of 256 [X]."""
    c = config.cifar10_small()
    c.augment.min_area = 0.5
    c = config.dvae(c, epochs=10, batch_size=128, groups=3, hidden=32, blocks=1, vocabulary=256, codebook=32)
    return config.short_dvae(c)


def folder_small() -> ConfigDict:
    """Your own images at 32 pixels: 8 x 8 codes of 256, on two CPU cores [X]."""
    c = config.folder_small()
    c.augment.min_area = 0.5
    c = config.dvae(c, epochs=30, batch_size=128, groups=3, hidden=32, blocks=1, vocabulary=256, codebook=32)
    return config.short_dvae(c)


def get_config(preset: str = "digits") -> ConfigDict:
    """The locked configuration of one preset.

    Raises:
        ValueError: the preset is not one of PRESETS.
    """
    config.choose(preset, PRESETS, "configs/dvae.py")
    if preset.startswith("imagenet"):
        c = imagenet(112 if preset == "imagenet_112" else 256)
    else:
        c = globals()[preset]()
    c.name = "dvae"
    return config.named(c, preset)
