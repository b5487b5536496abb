"""The keys of CMC and its predictive baseline, and how their views are evaluated. See `keys`."""

from __future__ import annotations

from ssljax.config.rows import BELOW_ONE, COUNT, Key, OneOf, equal, method, other_than

CMC = method("cmc")
BANKS = CMC & other_than("contrast.name", "in_batch")
PREDICTIVE = method("predictive")
NCE = CMC & equal("contrast.name", "nce")

CMC_KEYS = (
    Key(
        "contrast.name",
        "nce",
        "nce: noise-contrastive estimation against memory banks; softmax: cross entropy against them; "
        "in_batch: cross entropy against the batch",
        OneOf(("nce", "softmax", "in_batch")),
        CMC,
    ),
    Key(
        "contrast.graph",
        "core",
        "pairs of views that are contrasted; core: the first view with every other; full: all pairs",
        OneOf(("core", "full")),
        CMC,
    ),
    Key("bank.negatives", 16384, "rows of a bank that each image is contrasted with", COUNT, BANKS),
    Key(
        "bank.draw",
        "per_image",
        "per_image: each image has negatives of its own; shared: all images of a batch have the same ones",
        OneOf(("per_image", "shared")),
        BANKS,
    ),
    Key("bank.momentum", 0.5, "how much of a row stays when its image is seen", BELOW_ONE, BANKS),
    Key(
        "bank.z",
        "first_batch",
        "the constant Z of nce; first_batch: kept from there; ema: moving average with decay 0.99",
        OneOf(("first_batch", "ema")),
        NCE,
    ),
    Key(
        "evaluate.view",
        "",
        "view of model.split whose features alone are evaluated; empty: those of all views, side by side",
        None,
        method("cmc", "predictive"),
    ),
    Key(
        "predict.loss",
        "l1",
        "distance of predicted pixels from a view; l1: absolute error; l2: squared error",
        OneOf(("l1", "l2")),
        PREDICTIVE,
    ),
    Key(
        "predict.graph",
        "core",
        "which views predict which; core: the first every other, and every other the first; full: all all",
        OneOf(("core", "full")),
        PREDICTIVE,
    ),
    Key(
        "predict.width",
        256,
        "channels of a decoder's first map; they halve with each stage",
        COUNT,
        PREDICTIVE,
    ),
    Key(
        "probe.pool",
        "average",
        "how that layer's map is reduced; adaptive_max: maxima of about equal windows, as CMC does",
        OneOf(("average", "adaptive_max")),
        method("linear") & other_than("probe.layer", ""),
    ),
)
