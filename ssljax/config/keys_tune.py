"""The keys of training on several labels per image, and of its evaluation. See `keys`."""

from __future__ import annotations

from ssljax.config.rows import COUNT, NATURAL, Key, OneOf, Range, equal, method, optimizer

MULTILABEL = method("multilabel")
HALVING = optimizer("halving_sgd")
SOME = MULTILABEL & equal("tune.layers", "anew")

TUNE_KEYS = (
    Key("tune.anew", (), "layers of the backbone that begin anew, as the classifier does", None, MULTILABEL),
    Key("tune.bias", 0.0, "initial bias of these layers and of the classifier", Range(-10, 10), MULTILABEL),
    Key(
        "tune.layers",
        "all",
        "what is trained: all layers, or those that begin anew and the classifier",
        OneOf(("all", "anew")),
        MULTILABEL,
    ),
    Key(
        "tune.norms",
        "batch",
        "statistics that normalise in training: of the batch, or the running ones, which then stay",
        OneOf(("batch", "running")),
        MULTILABEL,
    ),
    Key("tune.gains", False, "train the gains and offsets of the norms of all layers too", None, SOME),
    Key("optim.halve_every", 5000, "steps after which the learning rate is halved", COUNT, HALVING),
    Key(
        "evaluate.random_crops",
        0,
        "a run's own heads: sum the logits of so many random crops of each image; 0: of the centre crop",
        NATURAL,
    ),
)
