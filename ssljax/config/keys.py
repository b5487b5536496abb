"""The one table of keys: what a config may say, and under which other settings it is read. No JAX, no NumPy.

A new method, network or optimizer needs no row here: what the table does not know is taken as the config
states it. A row gives its key a default, so that runs from before the key resume, a type, a range and a line
in docs/config.md (`ssljax config --keys`).
"""

from __future__ import annotations

from ssljax.config.rows import (
    ALWAYS,
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
    other_than,
)

COUNT, NATURAL = Range(1), Range(0)
POSITIVE, NOT_NEGATIVE = Range(0, open_low=True), Range(0)
UNIT, SHARE = Range(0, 1), Range(0, 1, open_low=True)
BELOW_ONE = Range(0, 1, open_high=True)

# Read from the data; what a config states is checked against them. They are in no hash and make no run
# another.
FACTS = ("data.num_classes", "data.num_examples", "data.num_ids")

RUN = (
    Key("method", "", "a key of METHODS, ssljax/methods/__init__.py"),
    Key("name", "", "the folder of experiments/ that results belong to"),
    Key("preset", "", "the preset's name, for tables and logs"),
    Key("seed", 0, "of the initialisation, the order of the data and every draw", NATURAL),
    Key("epochs", 100, "passes over the training images", COUNT),
    Key("batch_size", 256, "images a step, over all devices", COUNT),
    Key("accumulate", 1, "micro-batches a step; batch statistics are then those of a micro-batch", COUNT),
    Key(
        "sharding.fsdp",
        1,
        "devices that share one copy of the big parameters; 1: a whole copy on each",
        COUNT,
    ),
    Key("init_from", "", "an earlier stage's name or a run's folder; empty: random initialisation"),
    Key(
        "init_branches",
        ("encoder",),
        "the branches of its parameters to start from, running statistics included",
        None,
        other_than("init_from", ""),
    ),
    Key("log_every", 100, "steps between two lines of the log", COUNT),
    Key("eval_every_epochs", 10, "epochs between two kNN evaluations while training; 0: never", NATURAL),
    Key("checkpoint.every_steps", 1000, "steps between two checkpoints", COUNT),
    Key("checkpoint.keep", 3, "checkpoints that stay", COUNT),
    Key("checkpoint.best", "knn", "the metric whose best checkpoint stays as well; empty: none"),
)

STORED = When("data.source is not digits", lambda read: read("data.source") != "digits")
FOLDER = When("data.source is folder:PATH", lambda read: read("data.source").startswith("folder:"))
PART = When("data.label_fraction is below 1", lambda read: read("data.label_fraction") < 1)
FEW = above("data.labels_per_class", 0) | PART

DATA = (
    Key("data.source", "", "digits, fashion_mnist, folder:PATH or tfds:NAME"),
    Key("data.data_dir", "", "where prepared data lies; empty: the source's usual place", None, STORED),
    Key("data.train_split", "train", "the stored split, or sub-folder, to train on", None, STORED),
    Key("data.test_split", "test", "the stored split, or sub-folder, to evaluate on", None, STORED),
    Key(
        "data.holdout",
        0.1,
        "share of each class held out where there is no test split",
        Range(0, 1, open_low=True, open_high=True),
        FOLDER,
    ),
    Key(
        "data.labels",
        "folders",
        "none: the images alone, a folder's anywhere below it; folders: its sub-folders are the classes",
        OneOf(("folders", "none")),
    ),
    Key(
        "data.on_bad_image",
        "error",
        "skip: unreadable images are left out, counted and named",
        OneOf(("error", "skip")),
        STORED,
    ),
    Key("data.train_per_class", 0, "only the first n training images per class; 0: all", NATURAL),
    Key("data.label_fraction", 1.0, "share of the training images to use, balanced over classes", SHARE),
    Key("data.labels_per_class", 0, "or so many per class; 0: label_fraction decides", NATURAL),
    Key("data.subset_seed", 0, "of that choice", NATURAL, FEW),
    Key("data.num_classes", 0, "0: read from the data; else checked against it", NATURAL),
    Key("data.num_examples", 0, "training images, likewise", NATURAL),
    Key("data.image_size", 224, "side of what the network sees, in pixels", COUNT),
    Key("data.channels", 3, "1: grey", OneOf((1, 3))),
    Key(
        "data.crop_on",
        "host",
        "host: cropped to uint8 views by tf.data; device: in the step, of images in memory",
        OneOf(("host", "device")),
    ),
    Key(
        "data.eval_crop",
        0.875,
        "share of the shorter side kept at evaluation, for images above 32 pixels",
        SHARE,
    ),
    Key("data.repeats", 1, "copies of an image, one after the other, each with views of its own", COUNT),
)


# These read a view's own recipe: `augment` with what the view overrides.
JITTER, BLUR = above("augment.jitter_probability", 0), above("augment.blur_probability", 0)
SOLARIZE = above("augment.solarize_probability", 0)
AFFINE, BOX = equal("augment.crop", "affine"), equal("augment.crop", "tf", "torchvision")
RESIZED = equal("augment.crop", "tf", "torchvision", "none")
RANDAUGMENT = equal("augment.policy", "randaugment", "randaugment_plain")
POLICIES = ("none", "randaugment", "randaugment_plain", "autoaugment_original", "autoaugment_v0")

AUGMENT = (
    Key(
        "augment.crop",
        "torchvision",
        "tf: sample_distorted_bounding_box; torchvision: RandomResizedCrop; affine; none",
        OneOf(("tf", "torchvision", "affine", "none")),
    ),
    Key("augment.min_area", 0.08, "smallest share of the image's area in a crop", SHARE, BOX),
    Key("augment.max_area", 1.0, "largest share of the image's area in a crop", SHARE, BOX),
    Key("augment.aspect", (3 / 4, 4 / 3), "smallest and largest width over height of a crop", POSITIVE, BOX),
    Key("augment.interpolation", "bicubic", "how a crop is resized", OneOf(("bicubic", "bilinear")), RESIZED),
    Key(
        "augment.antialias",
        False,
        "of the host's resizing, at evaluation too; the device's: not for crop tf, always for torchvision",
    ),
    Key("augment.flip", True, "mirrored half of the time"),
    Key("augment.rotate", 0.0, "largest rotation in degrees", NOT_NEGATIVE, AFFINE),
    Key("augment.shift", 0.0, "largest shift as a share of the side", NOT_NEGATIVE, AFFINE),
    Key("augment.zoom", 0.0, "largest change of scale", BELOW_ONE, AFFINE),
    Key("augment.shear", 0.0, "largest shear in degrees", NOT_NEGATIVE, AFFINE),
    Key("augment.jitter_probability", 0.0, "of the colour jitter", UNIT),
    Key("augment.jitter_strength", 1.0, "times 0.8 for brightness and contrast", NOT_NEGATIVE, JITTER),
    Key("augment.jitter_saturation", 0.8, "times the strength for saturation", NOT_NEGATIVE, JITTER),
    Key(
        "augment.jitter_hue",
        0.2,
        "times the strength for hue, as a share of the circle",
        NOT_NEGATIVE,
        JITTER,
    ),
    Key("augment.jitter", "tensorflow", "whose operations", OneOf(("tensorflow", "torchvision")), JITTER),
    Key("augment.jitter_order", "random", "of the four operations", OneOf(("random", "fixed")), JITTER),
    Key("augment.brightness", "multiply", "or add", OneOf(("multiply", "add")), JITTER),
    Key("augment.grayscale_probability", 0.0, "of losing the colours", UNIT),
    Key("augment.blur_probability", 0.0, "of a Gaussian blur", UNIT),
    Key("augment.blur_sigma", (0.1, 2.0), "smallest and largest width in pixels", POSITIVE, BLUR),
    Key(
        "augment.blur_sigma_per",
        "image",
        "one width an image, or one for each view of a batch",
        OneOf(("image", "batch")),
        BLUR,
    ),
    Key("augment.blur_border", "zero", "what lies beyond the border", OneOf(("zero", "reflect")), BLUR),
    Key("augment.blur_kernel", 0, "taps of the kernel; 0: a tenth of the side", NATURAL, BLUR),
    Key("augment.solarize_probability", 0.0, "of inverting the bright pixels", UNIT),
    Key("augment.solarize_threshold", 0.5, "from which on they are inverted", UNIT, SOLARIZE),
    Key("augment.policy", "none", "RandAugment or AutoAugment on the host's crops", OneOf(POLICIES)),
    Key(
        "augment.policy_magnitude",
        9.0,
        "mean magnitude of RandAugment's operations",
        Range(0, 10),
        RANDAUGMENT,
    ),
    Key("augment.policy_std", 0.5, "its standard deviation", NOT_NEGATIVE, RANDAUGMENT),
    Key("augment.policy_ops", 2, "operations an image", COUNT, RANDAUGMENT),
    Key("augment.erasing_probability", 0.0, "of random erasing, after the normalisation", UNIT),
    Key("augment.mean", (0.0, 0.0, 0.0), "per channel, subtracted from pixels in [0, 1]"),
    Key("augment.std", (1.0, 1.0, 1.0), "per channel, divided by", POSITIVE),
)

# A view states what differs from `augment`; what it leaves out is as there.
VIEWS = (
    Key("views", ("one",), "the views of an image by name, in order; each holds what differs from `augment`"),
    Key("views.*.size", 0, "side in pixels instead of data.image_size", COUNT),
    Key("views.*.count", 1, "so many views of this kind", COUNT),
    Key("views.*.of", "", "shares the crop of the view of this name"),
    *(key._replace(name=key.name.replace("augment.", "views.*.", 1)) for key in AUGMENT),
)

HEADS = method("simclr", "moco", "byol") | (method("deepcluster") & equal("clusters.version", 2))
FULL_HEADS = method("moco", "byol") | (method("deepcluster") & equal("clusters.version", 2))
PREDICTOR = method("moco", "byol") & above("predictor.layers", 0)


def _norms(read: Read) -> bool:
    """Whether a head of the run normalises: SimCLR's always does."""
    heads = ["head"] if read("predictor.layers") == 0 else ["head", "predictor"]
    flags = [f"{head}.{key}" for head in heads for key in ("norm", "last_norm")]
    return read("method") == "simclr" or any(read(flag) for flag in flags)


NORMED = HEADS & When("a head has batch normalisation", _norms)


def _network(section: str, also: When, norms: When | None) -> tuple[Key, ...]:
    """The rows of a network's section, read when `also` holds; heads read its norms' when `norms` does."""

    def of(*families: str) -> When:
        return also & network(section, *families) if also.text else network(section, *families)

    any_norm, unbiased = of("resnet", "alexnet_vgg", "regnet"), of("resnet", "alexnet_vgg")
    if norms is not None:
        any_norm, unbiased = any_norm | norms, unbiased | norms
    return (
        Key(
            f"{section}.name",
            "resnet50",
            "resnet8 to resnet200, regnety_*gf, vit_*, alexnet_bn or vgg16_bn",
            None,
            also,
        ),
        Key(
            f"{section}.dtype",
            "bfloat16",
            "of the computation; parameters are float32",
            OneOf(("float32", "bfloat16")),
            also,
        ),
        Key(f"{section}.width", 1.0, "scales every layer", POSITIVE, of("resnet", "alexnet_vgg")),
        Key(
            f"{section}.stem",
            "imagenet",
            "imagenet: 7x7/2 and max-pool; cifar: one 3x3/1",
            OneOf(("imagenet", "cifar")),
            of("resnet"),
        ),
        Key(
            f"{section}.shortcut",
            "simclr",
            "simclr: a projection in the first block of every group; torchvision: where shapes change, "
            "and the unbiased running variance",
            OneOf(("simclr", "torchvision")),
            unbiased,
        ),
        Key(f"{section}.sk_ratio", 0.0, "selective kernels; 0: none", UNIT, of("resnet")),
        Key(f"{section}.sobel", False, "edges instead of colours", None, of("resnet", "alexnet_vgg")),
        Key(f"{section}.bn_momentum", 0.9, "of the running statistics", UNIT, any_norm),
        Key(f"{section}.bn_epsilon", 1e-5, "added to the variance", POSITIVE, any_norm),
        Key(
            f"{section}.remat",
            "none",
            "blocks, dots: keep less for the backward pass and compute the rest again",
            OneOf(("none", "blocks", "dots")),
            of("resnet", "regnet", "vit"),
        ),
        Key(f"{section}.patch", 16, "side of a patch in pixels", COUNT, of("vit")),
        Key(f"{section}.positions", "learned", "or sincos, fixed", OneOf(("learned", "sincos")), of("vit")),
        Key(f"{section}.scheme", "deit", "whose initialisation", OneOf(("deit", "moco_v3")), of("vit")),
        Key(f"{section}.frozen_patch", False, "the patch projection stays as it was drawn", None, of("vit")),
        Key(f"{section}.scan", False, "blocks in a loop: compiles faster, runs slower", None, of("vit")),
        Key(f"{section}.distillation", False, "a distillation token beside the class token", None, of("vit")),
        Key(
            f"{section}.drop_path", 0.0, "stochastic depth of the last block", BELOW_ONE, of("vit", "regnet")
        ),
        Key(
            f"{section}.dropout",
            0.0,
            "in the blocks, or before the classifier",
            BELOW_ONE,
            of("vit", "alexnet_vgg"),
        ),
    )


DISTILLED = method("deit") & other_than("distill.name", "none")
SOFT = method("deit") & equal("distill.name", "soft")
TWO_TOKENS = method("deit") & network("model", "vit") & equal("model.distillation", True)
SCHEMES = OneOf(("uniform", "truncated_normal", "normal_0.01"))

NETWORKS = (
    *_network("model", ALWAYS, NORMED),
    *_network("teacher", DISTILLED, None),
)


def _head(section: str, layers: int, when: When, sized: When, full: When) -> tuple[Key, ...]:
    """The rows of a projector or predictor: when its layers, their width and the rest are read."""
    return (
        Key(f"{section}.layers", layers, "linear layers", NATURAL, when),
        Key(
            f"{section}.hidden", 0, "width of the hidden layers; 0: as wide as what comes in", NATURAL, sized
        ),
        Key(f"{section}.hidden_bias", False, "in the hidden layers", None, full),
        Key(f"{section}.last_bias", False, "in the last layer", None, full),
        Key(f"{section}.norm", True, "batch normalisation behind the hidden layers", None, full),
        Key(f"{section}.last_norm", False, "and behind the last, without gain and offset", None, full),
        Key(f"{section}.scheme", "uniform", "initialisation of the kernels", SCHEMES, full),
    )


V1, V2 = (method("deepcluster") & equal("clusters.version", version) for version in (1, 2))
LLOYD = V1 & equal("clusters.algorithm", "lloyd")
QUEUE = method("moco") & above("queue.size", 0)
TARGET = method("moco", "byol")

METHOD = (
    *_head("head", 2, HEADS, HEADS, FULL_HEADS),
    Key("head.dim", 128, "of the embeddings", COUNT, HEADS),
    *_head("predictor", 0, TARGET, PREDICTOR, PREDICTOR),
    Key("loss.temperature", 0.1, "of the similarities", POSITIVE, method("simclr", "moco")),
    Key("loss.symmetric", False, "both directions, twice the keys", None, QUEUE),
    Key(
        "online_probe",
        False,
        "a linear classifier on features without gradient, trained beside the network",
        None,
        method("simclr", "byol"),
    ),
    Key("zero_init_residual", True, "the last gain of a residual branch starts from 0", None, TARGET),
    Key("queue.size", 65536, "keys; 0: negatives from the batch", NATURAL, method("moco")),
    Key("target.momentum", 0.99, "of the slow network, at the start", UNIT, TARGET),
    Key("target.schedule", "constant", "cosine: up to 1", OneOf(("constant", "cosine")), TARGET),
    Key(
        "target.init",
        "independent",
        "a draw of its own, or a copy",
        OneOf(("independent", "copy")),
        method("byol"),
    ),
    Key(
        "bn.groups",
        1,
        "groups of images with statistics of their own; 1: of the whole batch",
        COUNT,
        method("moco"),
    ),
    Key("bn.shuffle", False, "keys are shuffled over the groups", None, QUEUE),
    Key("clusters.version", 1, "of DeepCluster", OneOf((1, 2)), method("deepcluster")),
    Key(
        "clusters.k",
        1000,
        "clusters; about ten times the classes that one expects",
        COUNT,
        method("deepcluster"),
    ),
    Key("clusters.every", 1, "epochs between two clusterings", COUNT, method("deepcluster")),
    Key("clusters.iterations", 20, "of k-means", COUNT, LLOYD | V2),
    Key("clusters.dim", 256, "components after whitening", COUNT, V1),
    Key(
        "clusters.algorithm",
        "lloyd",
        "minibatch: for features that do not fit",
        OneOf(("lloyd", "minibatch")),
        V1,
    ),
    Key("clusters.repair", "faiss", "of empty clusters", OneOf(("faiss", "additive", "none")), V1),
    Key(
        "clusters.sampler",
        "uniform",
        "evenly over clusters, by weights in the loss, or neither",
        OneOf(("uniform", "weights", "none")),
        V1,
    ),
    Key(
        "clusters.distinct",
        0,
        "only so many first centroids differ, the rest start empty; 0: all differ",
        NATURAL,
        LLOYD,
    ),
    Key("clusters.shuffled", False, "the control: images learn the clusters of others", None, V1),
    Key("clusters.heads", 3, "sets of prototypes", COUNT, V2),
    Key("clusters.temperature", 0.1, "of the similarities to prototypes", POSITIVE, V2),
    Key("mix.mixup_alpha", 0.0, "of Beta(alpha, alpha); 0: never", NOT_NEGATIVE, method("deit")),
    Key("mix.cutmix_alpha", 0.0, "likewise; both: either, by a fair coin", NOT_NEGATIVE, method("deit")),
    Key("mix.label_smoothing", 0.0, "spread over all classes", BELOW_ONE, method("deit")),
    Key("distill.name", "none", "kind of distillation", OneOf(("none", "soft", "hard")), method("deit")),
    Key("distill.teacher", "", "an earlier stage's name or a run's folder", None, DISTILLED),
    Key("distill.alpha", 0.5, "weight of the teacher", UNIT, DISTILLED),
    Key("distill.temperature", 3.0, "of both softmaxes", POSITIVE, SOFT),
    Key(
        "distill.normalization",
        "code",
        "code: the KL is divided by the classes too",
        OneOf(("code", "paper")),
        SOFT,
    ),
    Key(
        "inference",
        "code",
        "of two heads: code averages logits, paper probabilities",
        OneOf(("code", "paper")),
        TWO_TOKENS,
    ),
    Key("ema.decay", 0.0, "of the weights, then evaluated instead of them; 0: none", UNIT, method("deit")),
)

TIMM = optimizer("timm_adamw", "timm_sgd")

OPTIM = (
    Key(
        "optim.name", "sgd", "lars, sgd, adamw; torch_sgd, torch_adamw; deepcluster_sgd; timm_adamw, timm_sgd"
    ),
    Key("optim.learning_rate", 0.1, "at the peak, before the scaling", NOT_NEGATIVE),
    Key(
        "optim.scaling",
        "linear",
        "linear: times B / 256; sqrt: times the root of B; none",
        OneOf(("linear", "sqrt", "none")),
    ),
    Key("optim.weight_decay", 0.0, "which parameters: see ssljax/optim.py", NOT_NEGATIVE),
    Key(
        "optim.warmup_epochs",
        0,
        "of a linear warm-up",
        NATURAL,
        optimizer("lars", "sgd", "adamw", "torch_adamw", "timm_adamw", "timm_sgd"),
    ),
    Key(
        "optim.momentum",
        0.9,
        "of the gradients",
        BELOW_ONE,
        optimizer("lars", "sgd", "torch_sgd", "deepcluster_sgd", "timm_sgd"),
    ),
    Key("optim.nesterov", False, "momentum", None, optimizer("sgd")),
    Key("optim.trust_coefficient", 0.001, "of the layer-wise adaptation", POSITIVE, optimizer("lars")),
    Key(
        "optim.lr_in_momentum",
        True,
        "True: SimCLR's released form; False: BYOL's and MoCo v3's",
        None,
        optimizer("lars"),
    ),
    Key(
        "optim.milestones",
        (),
        "epochs at which the rate is divided by ten; empty: a cosine by whole epochs",
        COUNT,
        optimizer("torch_sgd"),
    ),
    Key("optim.start", 0.0, "rate of the first epoch, not scaled", NOT_NEGATIVE, TIMM),
    Key("optim.end", 0.0, "rate that the last epoch approaches, not scaled", NOT_NEGATIVE, TIMM),
    Key("optim.lag", 0, "1: every epoch at the rate of the one before", NATURAL, TIMM),
    Key("optim.decay_distillation_token", True, "as the released code does", None, TIMM),
)

EVALUATE = (
    Key("evaluate.protocols", ("knn", "linear"), "what `ssljax evaluate` runs when not told otherwise"),
    Key("evaluate.batch_size", 256, "images encoded at once; batch of the linear probe", COUNT),
    Key("evaluate.knn_k", 200, "neighbours", COUNT),
    Key("evaluate.knn_temperature", 0.1, "softmax temperature of their votes", POSITIVE),
    Key("evaluate.label_counts", (1, 2, 5, 10), "labels per class in label_fraction", COUNT),
    Key("evaluate.label_draws", 5, "draws of the labelled images", COUNT),
    Key(
        "evaluate.linear",
        "sgd",
        "sgd: the papers' probe; lbfgs: logistic regression",
        OneOf(("sgd", "lbfgs")),
    ),
    Key(
        "evaluate.linear_l2",
        0.0,
        "lambda in mean loss + lambda/2 |W|^2; 0: chosen on held-out training images",
        NOT_NEGATIVE,
    ),
    Key(
        "evaluate.layers",
        (),
        "what the protocol layers probes, by the names that the network gives its layers",
    ),
    Key("evaluate.layer_dim", 9600, "average-pooled to so many numbers at most", COUNT),
)

KEYS = {key.name: key for key in (*RUN, *DATA, *VIEWS, *AUGMENT, *NETWORKS, *METHOD, *OPTIM, *EVALUATE)}


def row(name: str) -> Key | None:
    """The row of a key, None where the table does not know it.

    "views.two.min_area" has the row of "views.*.min_area".
    """
    words = name.split(".")
    if words[0] == "views" and len(words) == 3:
        name = f"views.*.{words[2]}"
    return KEYS.get(name)


# How many views a method takes, as its `Method.num_views` says; others take what they are given.
VIEW_COUNTS = ((method("simclr", "moco", "byol"), 2), (method("supervised", "deit") | V1, 1))

__all__ = ["FACTS", "KEYS", "Key", "VIEW_COUNTS", "row"]
