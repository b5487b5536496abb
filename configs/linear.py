"""A linear classifier on the frozen network of any run, trained under random crops (methods/linear.py).

    ssljax train --config configs/linear.py:digits --config.init_from=runs/digits --workdir runs/digits-probe
    ssljax train --config configs/linear.py:folder --config.init_from=RUN --config.data.source=folder:PATH \\
        --workdir runs/photos-probe

RUN is the folder of a run, or of weights that `ssljax convert` read. `--config.model...` must be that of RUN.
Without init_from a random network is probed, which is the baseline. The papers' own recipes are the presets
`<pretraining preset>_linear` of simclr, simclr_v2, moco, byol and deepcluster.

The recipe is that of SimCLR's paper, with W from N(0, 0.01^2) [X].
"""

from ml_collections import ConfigDict

from ssljax import config

PRESETS = ("digits", "folder", "folder_small")


def probe(c: ConfigDict) -> ConfigDict:
    """The recipe on a data set and a network."""
    c.method = c.name = "linear"
    config.crops_alone(c)
    c.eval_every_epochs = 0  # the frozen network's kNN would always be the same
    c.checkpoint.best = ""
    c.evaluate.protocols = ("classifier",)
    c.head = dict(scheme="normal_0.01")
    c.optim = dict(
        name="sgd",
        nesterov=True,
        learning_rate=0.1,
        scaling="linear",
        momentum=0.9,
        weight_decay=0.0,
        warmup_epochs=0,
    )
    return c


def folder() -> ConfigDict:
    """Your own labelled photographs, --config.data.source=folder:PATH: ResNet-50 at 224 pixels."""
    c = probe(config.folder())
    c.epochs = 90
    c.augment.update(config.IMAGENET, min_area=0.08)
    return c


def folder_small() -> ConfigDict:
    """Your own labelled images at 32 pixels, on the network of the papers' `folder_small`."""
    return probe(config.folder_small())


def digits() -> ConfigDict:
    """scikit-learn's digits under small warps, on the network of configs/simclr.py:digits."""
    c = probe(config.digits())
    c.epochs = 30
    c.batch_size = 64
    return c


def get_config(preset: str = "digits") -> ConfigDict:
    """The locked configuration of one preset.

    Raises:
        ValueError: the preset is not one of PRESETS.
    """
    config.choose(preset, PRESETS, "configs/linear.py")
    return config.named(globals()[preset](), preset)
