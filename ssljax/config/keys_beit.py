"""The keys of BEiT and of its tokenizer: `tokenizer`, `dvae`, `masking`, `recover`, ... See `keys`."""

from __future__ import annotations

from ssljax.config.rows import (
    BETWEEN_0_AND_1,
    COUNT,
    NATURAL,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Key,
    OneOf,
    Range,
    When,
    equal,
    method,
    network,
    optimizer,
)

DVAE = method("dvae")
BEIT = method("beit")
BEIT_NETWORK = network("model", "beit")
TOKENS = BEIT & equal("recover.what", "tokens")
MASKED = BEIT & equal("masking.name", "blockwise", "scattered")
ADAMW = optimizer("beit_adamw")
ADAM = optimizer("beit_adamw", "adam", "sgd_and_adam")
CLIPPED = ADAM | optimizer("halving_sgd")
BLOCKS = BEIT & equal("masking.name", "blockwise", "algorithm_1")


def _tokenizer(section: str, when: When) -> tuple[Key, ...]:
    """The rows of a dVAE's encoder. `section` is "model" or "tokenizer"."""
    return (
        Key(
            f"{section}.groups",
            4,
            "groups of blocks; the grid of codes is 2^(groups - 1) times smaller than the image",
            Range(1, 8, whole=True),
            when,
        ),
        Key(
            f"{section}.hidden",
            256,
            "channels of the group at full resolution",
            Range(4, 2**14, whole=True),
            when,
        ),
        Key(f"{section}.blocks", 2, "residual blocks per group", Range(1, 64, whole=True), when),
        Key(f"{section}.vocabulary", 8192, "number of codes", Range(2, 2**20, whole=True), when),
    )


BEIT_KEYS = (
    *_tokenizer("model", DVAE),
    Key(
        "model.pixels",
        "dall-e",
        "map of pixels to the tokenizer's input; dall-e: to [0.1, 0.9]; customized: to [-1, 1]",
        OneOf(("dall-e", "customized")),
        DVAE,
    ),
    Key("model.codebook", 128, "width of the codebook, the decoder's first layer", COUNT, DVAE),
    Key(
        "dvae.loss",
        "logit_laplace",
        "reconstruction loss: DALL-E's density, or squared error (l2)",
        OneOf(("logit_laplace", "l2")),
        DVAE,
    ),
    Key(
        "dvae.kl_weight", 6.6, "beta, the weight of the KL term, at the end of its cosine", NOT_NEGATIVE, DVAE
    ),
    Key("dvae.kl_share", 1 / 600, "part of the run in which beta rises from 0", Range(0, 1), DVAE),
    Key(
        "dvae.temperature",
        1 / 16,
        "temperature of the relaxed codes, at the end of its cosine",
        POSITIVE,
        DVAE,
    ),
    Key(
        "dvae.temperature_share",
        0.05,
        "part of the run in which the temperature falls from 1",
        Range(0, 1),
        DVAE,
    ),
    Key(
        "model.absolute",
        False,
        "learned absolute positions",
        None,
        BEIT_NETWORK,
    ),
    Key(
        "model.relative",
        "shared",
        "relative position bias: one table for all blocks, one per block, or none",
        OneOf(("none", "shared", "blocks")),
        BEIT_NETWORK,
    ),
    Key(
        "model.layer_scale",
        0.1,
        "initial scale of the residual branches; 0: no LayerScale",
        Range(0, 1),
        BEIT_NETWORK,
    ),
    Key(
        "model.pooling",
        "mean",
        "features; mean: of the normalised patch tokens; mean_then_norm: a norm of its own after the mean",
        OneOf(("mean", "mean_then_norm")),
        BEIT_NETWORK,
    ),
    Key(
        "masking.name",
        "blockwise",
        "blockwise: BEiT's code; algorithm_1: the paper's sketch, masking more; scattered: single patches",
        OneOf(("blockwise", "algorithm_1", "scattered", "none")),
        BEIT,
    ),
    Key("masking.patches", 75, "patches to mask in each image", COUNT, MASKED),
    Key("masking.min_block", 16, "smallest area that is drawn for a block, in patches", COUNT, BLOCKS),
    Key(
        "masking.max_block",
        0,
        "largest area of a block; 0: masking.patches",
        NATURAL,
        BEIT & equal("masking.name", "blockwise"),
    ),
    Key("masking.min_aspect", 0.3, "smallest aspect ratio of a block", BETWEEN_0_AND_1, BLOCKS),
    Key(
        "recover.what",
        "tokens",
        "what is predicted: visual tokens, or the normalised pixels of a patch",
        OneOf(("tokens", "pixels")),
        BEIT,
    ),
    Key(
        "recover.where",
        "masked",
        "patches in the loss: the masked ones, or all",
        OneOf(("masked", "all")),
        BEIT,
    ),
    Key("recover.tokenizer", "", "an earlier stage's name or a run's folder of method dvae", None, TOKENS),
    *_tokenizer("tokenizer", TOKENS),
    Key(
        "tokenizer.dtype",
        "float32",
        "dtype of the tokenizer's computation before its last layer",
        OneOf(("float32", "bfloat16")),
        TOKENS,
    ),
    Key(
        "head.std",
        0.02,
        "standard deviation of the classifier's initial weights",
        Range(0, 1),
        method("deit"),
    ),
    Key(
        "optim.b2",
        0.999,
        "decay of the squared gradients",
        Range(0, 1, open_high=True),
        ADAM,
    ),
    Key(
        "optim.clip",
        0.0,
        "largest global norm of the gradient; 0: any",
        NOT_NEGATIVE,
        CLIPPED,
    ),
    Key(
        "optim.layer_decay",
        1.0,
        "factor between the learning rates of neighbouring blocks; 1: the same for all",
        SHARE,
        ADAMW,
    ),
    Key(
        "optim.cosine_share",
        1.0,
        "part of the run after which the learning rate stays at its end",
        SHARE,
        ADAMW,
    ),
)
