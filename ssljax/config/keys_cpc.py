"""The keys of CPC: networks, patches, classifier and optimizers. See `keys`."""

from __future__ import annotations

from ssljax.config.rows import (
    BELOW_ONE,
    COUNT,
    NATURAL,
    POSITIVE,
    SHARE,
    UNIT,
    Entries,
    Key,
    OneOf,
    Range,
    Read,
    When,
    above,
    equal,
    method,
    network,
    optimizer,
)

CPC = method("cpc")
PRETRAIN = CPC & equal("task", "pretrain")
CLASSIFY = CPC & equal("task", "classify")
NETWORK = network("model", "cpc")
ADAM = optimizer("adam", "sgd_and_adam")
DEFORMED = CPC & above("patches.deform_probability", 0)
STRETCHED = CPC & above("patches.histogram_probability", 0)


def _trains(read: Read) -> bool:
    """Whether the encoder is trained: not in CPC's linear evaluation, nor under a classifier alone."""
    if read("method") != "cpc" or read("task") == "pretrain":
        return True
    return read("task") == "classify" and not read("classifier.frozen")


TRAINS = When("the encoder is not frozen", _trains)

CPC_KEYS = (
    Key("model.stride", 8, "pixels between the left edges of neighbouring patches", COUNT, NETWORK),
    Key("model.whole", False, "run over the whole image instead of its patches", None, NETWORK),
    Key(
        "model.preact",
        False,
        "norm and ReLU before each convolution of a residual block instead of after it",
        None,
        NETWORK,
    ),
    Key(
        "cpc.directions",
        4,
        "directions that are predicted; 1: down; 2: up, too; 4: all",
        OneOf((1, 2, 4)),
        PRETRAIN,
    ),
    Key(
        "cpc.step_indices",
        (2,),
        "index i predicts the row i + 1 below; the paper's code has 2, its names allow 2, 3 and 4, too",
        Entries(NATURAL, rising=True),
        PRETRAIN,
    ),
    Key(
        "cpc.scale",
        0.1,
        "factor of the predictions before their products with the targets",
        POSITIVE,
        PRETRAIN,
    ),
    Key(
        "cpc.negatives",
        "local",
        "images whose patches are the candidates; local: groups of the batch; global: all of the batch",
        OneOf(("local", "global")),
        PRETRAIN,
    ),
    Key(
        "cpc.local_images",
        16,
        "images of a group",
        COUNT,
        PRETRAIN & equal("cpc.negatives", "local"),
    ),
    Key("context.blocks", 5, "residual blocks of a context network", COUNT, PRETRAIN),
    Key("context.hidden", 256, "channels inside those blocks", COUNT, PRETRAIN),
    Key("context.target_dim", 64, "dimension of targets and predictions", COUNT, PRETRAIN),
    Key(
        "patches.policy_ops",
        2,
        "operations of AutoAugment's set per patch, at a random level each",
        NATURAL,
        CPC,
    ),
    Key("patches.deform_probability", 0.2, "probability of an elastic deformation with a shear", UNIT, CPC),
    Key(
        "patches.elastic_spacing",
        0.25,
        "distance of the deformation's control points, as a share of the patch's side",
        SHARE,
        DEFORMED,
    ),
    Key(
        "patches.elastic_sigma",
        0.0375,
        "standard deviation of their offsets, as a share of the patch's side",
        UNIT,
        DEFORMED,
    ),
    Key("patches.shear", 0.1, "largest shear of that deformation", UNIT, DEFORMED),
    Key("patches.histogram_probability", 0.2, "probability of changed colour histograms", UNIT, CPC),
    Key(
        "patches.slopes",
        (0.5, 2.0),
        "smallest and largest slope of their lookup tables",
        Entries(POSITIVE, count=2, rising=True),
        STRETCHED,
    ),
    Key("patches.ends", 0.1, "largest shift of black and of white by those tables", UNIT, STRETCHED),
    Key("patches.color_probability", 0.8, "probability of Inception's colour changes", UNIT, CPC),
    Key("patches.grayscale_probability", 0.25, "probability of a conversion to grey", UNIT, CPC),
    Key("patches.drop_probability", 0.0, "probability that two of three channels are dropped", UNIT, CPC),
    Key(
        "classifier.frozen",
        False,
        "train the classifier alone, on the encoder of init_from",
        None,
        CLASSIFY,
    ),
    Key("classifier.blocks", 11, "residual blocks of the classifier; 0: none", NATURAL, CLASSIFY),
    Key("classifier.bottleneck", 1024, "channels inside those blocks", COUNT, CLASSIFY),
    Key("classifier.dropout", 0.0, "dropout rate of the pooled features", BELOW_ONE, CLASSIFY),
    Key("optim.b1", 0.9, "decay of Adam's momentum", BELOW_ONE, ADAM),
    Key("optim.epsilon", 1e-8, "added to the root of Adam's squared gradients", POSITIVE, ADAM),
    Key(
        "optim.encoder_rate",
        0.1,
        "learning rate of the encoder, as a share of the rate of the rest",
        Range(0),
        optimizer("sgd_and_adam"),
    ),
)
