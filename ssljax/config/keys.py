"""The one table of config keys: every setting, its default, and when it is read.

A new method, network or optimizer needs no row here: keys that the table does not know are taken as the
config states them. A row gives its key a default (so that runs older than the key can resume), a type, a
range, and a line in docs/config.md (`ssljax config --keys`).

This file has the keys of the run, the optimizer and the evaluation. `keys_images` has those of the data and
the views, `keys_networks` those of the networks and the methods. None of them imports JAX or NumPy.
"""

from __future__ import annotations

from ssljax.config.keys_annotated import ANNOTATED_EVALUATE, ANNOTATED_KEYS
from ssljax.config.keys_beit import BEIT_KEYS, TOKENS
from ssljax.config.keys_cmc import CMC_KEYS
from ssljax.config.keys_cpc import CPC_KEYS, TRAINS
from ssljax.config.keys_detection import DETECTION_KEYS
from ssljax.config.keys_images import AUGMENT, DATA, VIEWS
from ssljax.config.keys_networks import (
    DEEPCLUSTER_V1,
    DISTILL_V2,
    FINETUNE_V2,
    METHOD,
    NETWORKS,
    PRETRAIN_V2,
)
from ssljax.config.keys_segmentation import SEGMENTATION_KEYS
from ssljax.config.keys_tune import TUNE_KEYS
from ssljax.config.rows import (
    BELOW_ONE,
    COUNT,
    FILE_NAME,
    NATURAL,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    UNIT,
    Entries,
    Key,
    OneOf,
    Range,
    equal,
    method,
    optimizer,
    other_than,
)

# Read from the data. What a config states is only checked against them: they are left out of hashes and of
# comparisons between runs.
FACTS = ("data.num_classes", "data.num_examples", "data.num_ids")

# ---------------------------------------------------------------------------------------------------- the run

SEED = Range(0, 2**32 - 1, whole=True)

RUN = (
    Key("method", "", "the method: a key of ssljax.methods.METHODS"),
    Key("name", "", "the folder of experiments/ that the results belong to", FILE_NAME),
    Key("preset", "", "the preset's name, shown in tables and logs", FILE_NAME),
    Key("seed", 0, "seed of the initialisation, the order of the data and every random draw", SEED),
    Key("epochs", 100, "passes over the training images", COUNT),
    Key(
        "steps",
        0,
        "length of the run in steps instead, for recipes that state it so; 0: epochs say. Tables still name "
        "epochs",
        NATURAL,
    ),
    Key("batch_size", 256, "images per step, over all devices", COUNT),
    Key("accumulate", 1, "micro-batches per step; batch statistics are then those of a micro-batch", COUNT),
    Key(
        "sharding.fsdp",
        1,
        "devices that share one copy of the large parameters; 1: each device has its own",
        COUNT,
    ),
    Key("init_from", "", "an earlier stage's name or a run's folder; empty: random initialisation"),
    Key(
        "init_branches",
        ("encoder",),
        "branches of the parameters to load from init_from, with their running statistics",
        None,
        other_than("init_from", "") & other_than("method", "linear") & TRAINS,
    ),
    Key("log_every", 100, "steps between log lines", COUNT),
    Key("eval_every_epochs", 10, "epochs between kNN evaluations during training; 0: never", NATURAL),
    Key("checkpoint.every_steps", 1000, "steps between checkpoints", COUNT),
    Key("checkpoint.keep", 3, "number of latest checkpoints to keep", COUNT),
    Key("checkpoint.best", "knn", "metric whose best checkpoint is kept as well; empty: none"),
    Key(
        "checkpoint.digest",
        True,
        "write a digest of every leaf with each checkpoint, by which damage is noticed (0.3 s per GB)",
    ),
)

# ---------------------------------------------------------------------------------------------- the optimizer

WARMED_UP = optimizer(
    "lars",
    "sgd",
    "adamw",
    "torch_adamw",
    "timm_adamw",
    "timm_sgd",
    "beit_adamw",
    "tf_rmsprop",
    "sgd_and_adam",
)
WITH_MOMENTUM = optimizer(
    "lars",
    "sgd",
    "torch_sgd",
    "deepcluster_sgd",
    "deepcluster_probe_sgd",
    "timm_sgd",
    "tf_rmsprop",
    "sgd_and_adam",
    "halving_sgd",
    "detectron_sgd",
)
TIMM = optimizer("timm_adamw", "timm_sgd")
DETECTRON = optimizer("detectron_sgd")

OPTIM = (
    Key(
        "optim.name",
        "sgd",
        "lars, sgd, adamw, torch_sgd, torch_adamw, deepcluster_sgd, deepcluster_probe_sgd, timm_adamw, "
        "timm_sgd, beit_adamw, tf_rmsprop, adam, sgd_and_adam, halving_sgd or detectron_sgd",
    ),
    Key("optim.learning_rate", 0.1, "peak learning rate, before scaling", NOT_NEGATIVE),
    Key(
        "optim.scaling",
        "linear",
        "scaling of the learning rate; linear: times batch_size / 256; sqrt: times sqrt(batch_size)",
        OneOf(("linear", "sqrt", "none")),
    ),
    Key(
        "optim.weight_decay",
        0.0,
        "weight decay; ssljax/optim.py says which parameters it applies to",
        NOT_NEGATIVE,
    ),
    Key("optim.warmup_epochs", 0, "epochs of linear warm-up", NATURAL, WARMED_UP),
    Key("optim.momentum", 0.9, "momentum of the gradients", BELOW_ONE, WITH_MOMENTUM),
    Key("optim.nesterov", False, "use Nesterov momentum", None, optimizer("sgd")),
    Key(
        "optim.trust_coefficient",
        0.001,
        "coefficient of the layer-wise trust ratio",
        POSITIVE,
        optimizer("lars"),
    ),
    Key(
        "optim.lr_in_momentum",
        True,
        "True: learning rate inside the momentum (SimCLR's code); False: after it (BYOL, MoCo v3)",
        None,
        optimizer("lars"),
    ),
    Key(
        "optim.milestones",
        (),
        "epochs at which the learning rate is divided by ten; empty: a cosine that moves once per epoch",
        Entries(COUNT),
        optimizer("torch_sgd"),
    ),
    Key(
        "optim.milestone_factor",
        0.1,
        "what the learning rate is multiplied by at a milestone instead",
        SHARE,
        optimizer("torch_sgd"),
    ),
    Key(
        "optim.warmup_steps",
        100,
        "steps of linear warm-up, from warmup_factor times the rate",
        NATURAL,
        DETECTRON,
    ),
    Key("optim.warmup_factor", 0.001, "share of the rate that the warm-up begins with", UNIT, DETECTRON),
    Key(
        "optim.step_milestones",
        (),
        "steps at which the learning rate is divided by ten",
        Entries(COUNT, rising=True),
        DETECTRON,
    ),
    Key(
        "optim.start",
        0.0,
        "learning rate at the start of the warm-up, not scaled",
        NOT_NEGATIVE,
        optimizer("lars", "timm_adamw", "timm_sgd", "beit_adamw"),
    ),
    Key(
        "optim.end",
        0.0,
        "learning rate that the end of the run approaches, not scaled",
        NOT_NEGATIVE,
        optimizer("lars", "timm_adamw", "timm_sgd", "beit_adamw"),
    ),
    Key(
        "optim.decay_epochs",
        2.4,
        "epochs after which the learning rate is multiplied by 0.97, again and again",
        POSITIVE,
        optimizer("tf_rmsprop"),
    ),
    Key(
        "optim.offset_epochs",
        0.0,
        "epochs of the schedule that are taken to have passed before the first step",
        NOT_NEGATIVE,
        optimizer("tf_rmsprop"),
    ),
    Key(
        "optim.lag",
        0,
        "epochs by which the schedule lags; 1: each epoch uses the rate of the one before",
        NATURAL,
        TIMM,
    ),
    Key(
        "optim.decay_distillation_token",
        True,
        "apply weight decay to the distillation token, as DeiT's code does",
        None,
        TIMM,
    ),
)

# ------------------------------------------------------------------------------------------------- evaluation

EVALUATE = (
    Key("evaluate.protocols", ("knn", "linear"), "protocols that `ssljax evaluate` runs by default"),
    Key(
        "evaluate.batch_size",
        256,
        "images encoded at once; also the linear probe's batch size",
        Range(1, 2**16, whole=True),
    ),
    Key("evaluate.knn_k", 200, "number of neighbours; 0: by the size of the classes", NATURAL),
    Key(
        "evaluate.knn_temperature", 0.1, "softmax temperature of the neighbours' votes; DINO: 0.07", POSITIVE
    ),
    Key(
        "evaluate.label_counts",
        (1, 2, 5, 10),
        "labels per class in the label_fraction protocol",
        Entries(COUNT),
    ),
    Key("evaluate.label_draws", 5, "random draws of the labelled images", COUNT),
    Key(
        "evaluate.linear",
        "sgd",
        "linear probe; sgd: as in the papers; lbfgs: logistic regression",
        OneOf(("sgd", "lbfgs")),
    ),
    Key(
        "evaluate.linear_l2",
        0.0,
        "lambda in mean loss + lambda/2 W^2 (lbfgs); 0: chosen on held-out training images",
        NOT_NEGATIVE,
    ),
    Key(
        "evaluate.layers",
        (),
        "layers that the protocols `layers` and `best_layer` probe, by their names in the network",
    ),
    Key("evaluate.layer_dim", 9600, "largest number of features per layer, after average pooling", COUNT),
    Key(
        "evaluate.ten_crops",
        False,
        "classifier: average the predictions of four corners, the centre and their mirror images",
        None,
        method("linear"),
    ),
    Key(
        "evaluate.corruptions",
        "generated",
        "images of the protocol `corruptions`: generated from the test split, "
        "tfds:imagenet2012_corrupted, tfds:cifar10_corrupted, or folder:PATH with TYPE/SEVERITY/CLASS",
    ),
    Key("evaluate.corruption_images", 0, "test images to corrupt, the same for all runs; 0: all", NATURAL),
    Key("evaluate.imagenet_a", "tfds:imagenet_a", "ImageNet-A: tfds:imagenet_a, or folder:PATH of classes"),
    Key(
        "evaluate.perturbations",
        "",
        "images of the protocol `perturbations`: folder:PATH with TYPE/CLASS/SEQUENCE/FRAME",
    ),
    Key("evaluate.retrieval", "", "folders of the protocol `retrieval`, with commas between them"),
    Key(
        "evaluate.retrieval_pca",
        "train",
        "what whitening is learned on; train: the run's training images; another folder; none: no whitening",
    ),
    Key(
        "evaluate.retrieval_size",
        0,
        "longer side of the images in pixels; 0: 1024 for a network trained at 224, in proportion",
        NATURAL,
    ),
    Key(
        "evaluate.transfer", "", "data sets of the protocol `transfer`, with commas between them; all: the 12"
    ),
    Key("evaluate.transfer_root", "", "folder with a folder for each data set that does not come from TFDS"),
    Key(
        "evaluate.voc07",
        "tfds:voc/2007",
        "VOC2007: tfds:voc/2007, or folder:PATH with ImageSets and JPEGImages",
    ),
    Key(
        "evaluate.svm_costs",
        (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0),
        "values of C that voc07_svm chooses from",
        Entries(POSITIVE),
    ),
    Key("evaluate.low_shot", (), "voc07_svm: also with so many images per class, five draws", Entries(COUNT)),
)

# -------------------------------------------------------------------------------------------------- the table

KEYS = {
    key.name: key
    for key in (
        *RUN,
        *DATA,
        *ANNOTATED_KEYS,
        *VIEWS,
        *AUGMENT,
        *NETWORKS,
        *METHOD,
        *OPTIM,
        *EVALUATE,
        *ANNOTATED_EVALUATE,
        *BEIT_KEYS,
        *CMC_KEYS,
        *CPC_KEYS,
        *TUNE_KEYS,
        *DETECTION_KEYS,
        *SEGMENTATION_KEYS,
    )
}


def row(name: str) -> Key | None:
    """The row of a key, or None if the table does not know it.

    "views.two.min_area" has the row of "views.*.min_area".
    """
    words = name.split(".")
    if words[0] == "views" and len(words) == 3:
        name = f"views.*.{words[2]}"
    return KEYS.get(name)


# How many views a method takes, as its `Method.num_views` says. Other methods take any number.
VIEW_COUNTS = (
    (method("simclr", "moco", "byol") | PRETRAIN_V2, 2),
    (
        method("supervised", "multilabel", "deit", "linear", "noisy_student", "cmc")
        | DEEPCLUSTER_V1
        | FINETUNE_V2
        | DISTILL_V2,
        1,
    ),
    (TOKENS, 2),
    (method("cpc"), 1),
    (method("detection"), 1),
    (method("segmentation"), 1),
    (method("predictive"), 1),
    (method("dvae") | method("beit") & equal("recover.what", "pixels"), 1),
)

__all__ = ["FACTS", "KEYS", "Key", "VIEW_COUNTS", "row"]
