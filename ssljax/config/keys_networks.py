"""The keys of the networks and of the methods: `model`, `head`, `loss`, `queue`, ... See `keys`."""

from __future__ import annotations

from ssljax.config.rows import (
    ALWAYS,
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
    Text,
    When,
    above,
    equal,
    method,
    network,
    other_than,
)

# --------------------------------------------------------------------------------------------------- networks

VIEW = Text(
    "luminance, chrominance, gradient, low, all, or channels such as 0:3 or depth=3:4",
    r"luminance|chrominance|gradient|low|all|([A-Za-z]\w{0,39}=)?\d{1,4}:\d{1,4}",
)
DEEPCLUSTER_V1 = method("deepcluster") & equal("clusters.version", 1)
DEEPCLUSTER_V2 = method("deepcluster") & equal("clusters.version", 2)
PRETRAIN_V2 = method("simclr_v2") & equal("task", "pretrain")
MEMORY = PRETRAIN_V2 & above("queue.size", 0)
FINETUNE_V2 = method("simclr_v2") & equal("task", "finetune")
DISTILL_V2 = method("simclr_v2") & equal("task", "distill")
LAYERS_V2 = PRETRAIN_V2 | FINETUNE_V2 | DISTILL_V2 & above("distill.finetune_from", 0)
HEADS = method("simclr", "moco", "byol") | LAYERS_V2 | DEEPCLUSTER_V2
FULL_HEADS = method("moco", "byol") | DEEPCLUSTER_V2
PREDICTOR = method("moco", "byol") & above("predictor.layers", 0)
DISTILLED = DISTILL_V2 | method("deit") & other_than("distill.name", "none")

CMC = method("cmc")
SEVERAL_VIEWS = method("cmc", "predictive")
PSEUDO = method("noisy_student") & above("pseudo.ratio", 0)


def _norms(read: Read) -> bool:
    """Whether a head of the run has batch normalisation, as SimCLR's always has."""
    heads = ["head"] if read("predictor.layers") == 0 else ["head", "predictor"]
    flags = [f"{head}.{key}" for head in heads for key in ("norm", "last_norm")]
    return read("method") in ("simclr", "simclr_v2") or any(read(flag) for flag in flags)


NORMED = HEADS & When("a head has batch normalisation", _norms)


def _network(section: str, also: When, norms: When | None) -> tuple[Key, ...]:
    """The rows of a network's section.

    Args:
        section: "model" or "teacher".
        also: a condition for every row.
        norms: when heads read the settings of batch normalisation, too; None for a network without heads.
    """

    def of(*families: str) -> When:
        return also & network(section, *families) if also.text else network(section, *families)

    any_norm = of("resnet", "alexnet_vgg", "regnet", "efficientnet", "alexnet_half")
    unbiased = of("resnet", "alexnet_vgg")
    if norms is not None:
        any_norm |= norms
        unbiased |= norms
    return (
        Key(
            f"{section}.name",
            "resnet50",
            "backbone: resnet8 to resnet200, regnety_*gf, efficientnet_*, vit_*, beit_*, cpc_*, dvae, "
            "alexnet_bn, alexnet_half or vgg16_bn",
            None,
            also,
        ),
        Key(
            f"{section}.dtype",
            "bfloat16",
            "dtype of the computation; parameters are float32",
            OneOf(("float32", "bfloat16")),
            also,
        ),
        Key(
            f"{section}.width",
            1.0,
            "multiplier of every layer's width",
            Range(0, 64, open_low=True),
            of("resnet", "alexnet_vgg", "efficientnet", "cpc"),
        ),
        Key(
            f"{section}.depth",
            1.0,
            "multiplier of the number of blocks",
            Range(0, 64, open_low=True),
            of("efficientnet"),
        ),
        Key(
            f"{section}.stem",
            "imagenet",
            "imagenet: 7x7 convolution of stride 2 and max-pool; cifar: one 3x3 convolution of stride 1 "
            "(EfficientNet: stages 2 and 3 without stride)",
            OneOf(("imagenet", "cifar")),
            of("resnet", "efficientnet", "cpc"),
        ),
        Key(
            f"{section}.stem_width",
            0,
            "channels of the stem; 0: 64 times width",
            NATURAL,
            of("resnet"),
        ),
        Key(
            f"{section}.padding",
            "symmetric",
            "zeros around strided convolutions; symmetric: as many before as after; same: as SAME in XLA and "
            "Haiku, which at an even side puts one less before",
            OneOf(("symmetric", "same")),
            of("resnet"),
        ),
        Key(
            f"{section}.kernel_init",
            "fan_in",
            "initialisation of the convolutions; fan_in: as SimCLR's; truncated_normal: Haiku's; he_fan_out: "
            "He's normal by outputs",
            OneOf(("fan_in", "truncated_normal", "he_fan_out")),
            of("resnet"),
        ),
        Key(
            f"{section}.last_stride",
            2,
            "stride of the last group; 1 for segmentation",
            OneOf((1, 2)),
            of("resnet"),
        ),
        Key(
            f"{section}.last_dilation",
            1,
            "dilation of the 3x3 convolutions of the last group; 2 for segmentation",
            Range(1, 64, whole=True),
            of("resnet"),
        ),
        Key(
            f"{section}.split",
            (),
            "views with a network each: luminance, chrominance, gradient, low, all, or channels such as 0:3 "
            "or, with a name, depth=3:4; empty: one network for all channels",
            Entries(VIEW),
            of("resnet", "alexnet_half"),
        ),
        Key(
            f"{section}.shortcut",
            "simclr",
            "simclr: a projection in the first block of every group; torchvision: only where shapes change, "
            "and unbiased running variances",
            OneOf(("simclr", "torchvision")),
            unbiased,
        ),
        Key(f"{section}.sk_ratio", 0.0, "ratio of the selective kernels; 0: none", UNIT, of("resnet")),
        Key(
            f"{section}.sobel",
            False,
            "replace the colours of the input by Sobel edges",
            None,
            of("resnet", "alexnet_vgg"),
        ),
        Key(
            f"{section}.bn_momentum",
            0.9,
            "decay of batch normalisation's running statistics; PyTorch's 0.1 is 0.9 here",
            UNIT,
            any_norm,
        ),
        Key(f"{section}.bn_epsilon", 1e-5, "added to the variance in batch normalisation", SHARE, any_norm),
        Key(
            f"{section}.remat",
            "none",
            "what the backward pass recomputes; blocks: all but each block's input; "
            "dots (ViT): all but matrix products",
            OneOf(("none", "blocks", "dots")),
            of("resnet", "regnet", "efficientnet", "vit", "beit", "cpc"),
        ),
        Key(f"{section}.patch", 16, "side of a patch, in pixels", COUNT, of("vit", "beit", "cpc")),
        Key(
            f"{section}.positions",
            "learned",
            "position embedding: learned, or fixed sines and cosines",
            OneOf(("learned", "sincos")),
            of("vit"),
        ),
        Key(
            f"{section}.scheme",
            "deit",
            "paper whose initialisation is used",
            OneOf(("deit", "moco_v3")),
            of("vit"),
        ),
        Key(
            f"{section}.frozen_patch",
            False,
            "keep the patch projection at its random initialisation",
            None,
            of("vit"),
        ),
        Key(f"{section}.scan", False, "loop over the blocks: compiles faster, runs slower", None, of("vit")),
        Key(f"{section}.distillation", False, "add a distillation token to the class token", None, of("vit")),
        Key(
            f"{section}.drop_path",
            0.0,
            "stochastic-depth rate of the last block; grows linearly from 0 in the first",
            BELOW_ONE,
            of("vit", "regnet", "efficientnet", "beit"),
        ),
        Key(
            f"{section}.dropout",
            0.0,
            "dropout rate: throughout a ViT, before the fully connected layers of AlexNet and VGG, on an "
            "EfficientNet's features",
            BELOW_ONE,
            of("vit", "alexnet_vgg", "efficientnet"),
        ),
        Key(
            f"{section}.frozen_blocks",
            0,
            "the stem and this many blocks are not trained; 0: all are",
            NATURAL,
            of("efficientnet"),
        ),
    )


NETWORKS = (
    *_network("model", ALWAYS, NORMED),
    *_network("teacher", DISTILLED | PSEUDO, None),
)

# ---------------------------------------------------------------------------------------------------- methods

SCHEMES = OneOf(("uniform", "truncated_normal", "normal_0.01", "zeros"))


WIDEST = 2**20  # numbers in a layer


def _head(
    section: str, layers: int, when: When, sized: When, full: When, drawn: When, *, fewest: int
) -> tuple[Key, ...]:
    """The rows of a projector or predictor.

    Args:
        section: "head" or "predictor".
        layers: the default number of layers.
        fewest: the smallest number of layers.
        when: when that number is read.
        sized: when the width of the layers is read.
        full: when its biases and norms are read.
        drawn: when the initialisation is read.
    """
    return (
        Key(f"{section}.layers", layers, "number of linear layers", Range(fewest, 16, whole=True), when),
        Key(
            f"{section}.hidden",
            0,
            "width of the hidden layers; 0: as wide as the input",
            Range(0, WIDEST, whole=True),
            sized,
        ),
        Key(f"{section}.hidden_bias", False, "bias in the hidden layers", None, full),
        Key(f"{section}.last_bias", False, "bias in the last layer", None, full),
        Key(f"{section}.norm", True, "batch normalisation after the hidden layers", None, full),
        Key(
            f"{section}.last_norm",
            False,
            "batch normalisation after the last layer, without scale and offset",
            None,
            full,
        ),
        Key(f"{section}.scheme", "uniform", "initialisation of the kernels", SCHEMES, drawn),
    )


TARGET = method("moco", "byol")
QUEUE = method("moco") & above("queue.size", 0)
LLOYD = DEEPCLUSTER_V1 & equal("clusters.algorithm", "lloyd")
SOFT = method("deit") & equal("distill.name", "soft")
TWO_TOKENS = method("deit") & network("model", "vit") & equal("model.distillation", True)

METHOD = (
    Key(
        "task",
        "pretrain",
        "the stage of SimCLRv2 (pretrain, finetune, distill) or of CPC (pretrain, linear, classify)",
        OneOf(("pretrain", "finetune", "distill", "linear", "classify")),
        method("simclr_v2", "cpc"),
    ),
    *_head("head", 2, HEADS, HEADS, FULL_HEADS, FULL_HEADS | method("linear", "multilabel"), fewest=1),
    Key("head.dim", 128, "dimension of the embeddings", Range(1, WIDEST, whole=True), HEADS | CMC),
    Key(
        "head.finetune_from",
        1,
        "layer of the projection head that the classifier reads, with all layers before it; 0: the features",
        Range(0, 16, whole=True),
        FINETUNE_V2,
    ),
    *_head("predictor", 0, TARGET, PREDICTOR, PREDICTOR, PREDICTOR, fewest=0),
    Key(
        "loss.temperature",
        0.1,
        "temperature of the similarities",
        POSITIVE,
        method("simclr", "moco") | PRETRAIN_V2 | CMC,
    ),
    Key("loss.symmetric", False, "contrast in both directions, with twice the keys", None, QUEUE),
    Key(
        "online_probe",
        False,
        "train a linear classifier on stop-gradient features beside the network",
        None,
        method("simclr", "byol") | PRETRAIN_V2 & equal("queue.size", 0),
    ),
    Key(
        "zero_init_residual",
        True,
        "start the last scale of each residual branch at 0",
        None,
        TARGET | DEEPCLUSTER_V2 | SEVERAL_VIEWS,
    ),
    Key(
        "queue.size",
        65536,
        "keys in the queue; 0: negatives from the batch",
        NATURAL,
        method("moco") | PRETRAIN_V2,
    ),
    Key(
        "target.momentum",
        0.99,
        "momentum of the target encoder, at the start of training",
        UNIT,
        TARGET | MEMORY,
    ),
    Key(
        "target.schedule",
        "constant",
        "constant momentum, or cosine: it rises to 1",
        OneOf(("constant", "cosine")),
        TARGET,
    ),
    Key(
        "target.init",
        "independent",
        "independent: the target has its own random initialisation; copy: it starts as a copy",
        OneOf(("independent", "copy")),
        method("byol"),
    ),
    Key(
        "bn.groups",
        1,
        "groups of images with their own batch statistics; 1: statistics of the whole batch",
        COUNT,
        method("moco") | SEVERAL_VIEWS,
    ),
    Key("bn.shuffle", False, "shuffle the keys over the groups", None, QUEUE),
    Key("clusters.version", 1, "version of DeepCluster", OneOf((1, 2)), method("deepcluster")),
    Key(
        "clusters.k",
        1000,
        "number of clusters; about ten times the expected number of classes",
        COUNT,
        method("deepcluster"),
    ),
    Key("clusters.every", 1, "epochs between clusterings", COUNT, method("deepcluster")),
    Key("clusters.iterations", 20, "iterations of k-means", COUNT, LLOYD | DEEPCLUSTER_V2),
    Key("clusters.dim", 256, "number of components that the whitening keeps", COUNT, DEEPCLUSTER_V1),
    Key(
        "clusters.algorithm",
        "lloyd",
        "lloyd: all features at once; minibatch: for features that do not fit in memory",
        OneOf(("lloyd", "minibatch")),
        DEEPCLUSTER_V1,
    ),
    Key(
        "clusters.repair",
        "faiss",
        "repair of empty clusters: as faiss does, as DeeperCluster does (additive), or none",
        OneOf(("faiss", "additive", "none")),
        DEEPCLUSTER_V1,
    ),
    Key(
        "clusters.sampler",
        "uniform",
        "uniform: draw images evenly over clusters; weights: weight the loss instead; none: neither",
        OneOf(("uniform", "weights", "none")),
        DEEPCLUSTER_V1,
    ),
    Key(
        "clusters.distinct",
        0,
        "number of distinct initial centroids, the other clusters start empty; 0: all are distinct",
        NATURAL,
        LLOYD,
    ),
    Key(
        "clusters.shuffled",
        False,
        "negative control: permute the cluster labels over the images",
        None,
        DEEPCLUSTER_V1,
    ),
    Key("clusters.heads", 3, "number of sets of prototypes", Range(1, 64, whole=True), DEEPCLUSTER_V2),
    Key(
        "clusters.temperature", 0.1, "temperature of the similarities to prototypes", POSITIVE, DEEPCLUSTER_V2
    ),
    Key(
        "probe.layer",
        "",
        "layer whose pooled feature map is classified, by its name in the network; empty: the features",
        None,
        method("linear"),
    ),
    Key(
        "probe.layer_dim",
        9600,
        "largest number of features of that layer, after pooling",
        COUNT,
        method("linear") & other_than("probe.layer", ""),
    ),
    Key(
        "mix.mixup_alpha",
        0.0,
        "alpha of mixup's Beta(alpha, alpha); 0: no mixup",
        Range(0, 1000),
        method("deit"),
    ),
    Key(
        "mix.cutmix_alpha",
        0.0,
        "alpha of CutMix's Beta(alpha, alpha); 0: no CutMix; with mixup: one of the two per batch, at random",
        Range(0, 1000),
        method("deit"),
    ),
    Key("mix.label_smoothing", 0.0, "probability spread over all classes", BELOW_ONE, method("deit")),
    Key("distill.name", "none", "kind of distillation", OneOf(("none", "soft", "hard")), method("deit")),
    Key("distill.teacher", "", "an earlier stage's name or a run's folder", None, DISTILLED),
    Key("distill.alpha", 0.5, "weight of the teacher's part of the loss", UNIT, DISTILLED),
    Key(
        "distill.finetune_from",
        0,
        "layer of its projection head that the teacher's classifier reads; 0: its features",
        Range(0, 16, whole=True),
        DISTILL_V2,
    ),
    Key(
        "distill.tau_squared",
        False,
        "multiply the loss by the squared temperature, as SimCLRv2's notebook does and its paper does not",
        None,
        DISTILL_V2,
    ),
    Key("distill.temperature", 3.0, "temperature of both softmaxes", POSITIVE, SOFT | DISTILL_V2),
    Key(
        "distill.normalization",
        "code",
        "code: divide the KL divergence by the number of classes, too; paper: do not",
        OneOf(("code", "paper")),
        SOFT,
    ),
    Key(
        "evaluation_mode",
        False,
        "train as DeiT fine-tunes: no dropout or stochastic depth; without a teacher, the mean of two heads",
        None,
        method("deit"),
    ),
    Key(
        "inference",
        "code",
        "how two heads are averaged: code, their logits; paper, their probabilities",
        OneOf(("code", "paper")),
        TWO_TOKENS,
    ),
    Key(
        "ema.decay",
        0.0,
        "decay of the weights' moving average, which is evaluated instead of them; 0: none",
        UNIT,
        method("deit", "dvae", "noisy_student") | method("cpc") & equal("task", "pretrain"),
    ),
    Key(
        "pseudo.ratio",
        0,
        "unlabelled images for each labelled one in a batch; 0: only labelled images, the first teacher",
        Range(0, 1024, whole=True),
        method("noisy_student"),
    ),
    Key("pseudo.teacher", "", "an earlier stage's name or a run's folder", None, PSEUDO),
    Key(
        "pseudo.teacher_size",
        0,
        "side S of the images that the teacher labels, in pixels; 0: data.image_size, s. The teacher's crop "
        "leaves out as many pixels as data.eval_crop: of s / (s + 32) it is S / (S + 32)",
        NATURAL,
        PSEUDO,
    ),
    Key(
        "pseudo.kind",
        "soft",
        "soft: the teacher's probabilities; hard: its most likely class",
        OneOf(("soft", "hard")),
        PSEUDO,
    ),
    Key(
        "pseudo.temperature",
        1.0,
        "temperature of the soft labels",
        POSITIVE,
        PSEUDO & equal("pseudo.kind", "soft"),
    ),
    Key(
        "pseudo.top",
        0,
        "number of the teacher's largest probabilities that are kept, the rest spread evenly; 0: all",
        NATURAL,
        PSEUDO,
    ),
    Key(
        "pseudo.threshold",
        0.0,
        "smallest confidence of the teacher in an image that is learned from",
        BELOW_ONE,
        PSEUDO,
    ),
    Key(
        "pseudo.per_class",
        0,
        "unlabelled images per class, by thinning large classes and duplicating small ones; 0: as they are",
        NATURAL,
        PSEUDO,
    ),
    Key(
        "pseudo.weighting",
        "ratio",
        "ratio: labelled loss + ratio times unlabelled loss (code); mean: the mean over the batch (paper)",
        OneOf(("ratio", "mean")),
        PSEUDO,
    ),
    Key(
        "pseudo.epochs_of",
        "unlabelled",
        "which images an epoch passes over once",
        OneOf(("unlabelled", "labelled")),
        PSEUDO,
    ),
    Key(
        "pseudo.label_smoothing",
        0.1,
        "probability of a label that is spread over all classes; soft labels are not smoothed",
        BELOW_ONE,
        method("noisy_student"),
    ),
)
