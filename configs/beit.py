"""BEiT (Bao et al., ICLR 2022, arXiv 2106.08254): predict the visual tokens of masked patches.

    ssljax train --config configs/beit.py:digits --workdir runs/beit     # tokenizer, BEiT, fine-tuning
    ssljax train --config configs/beit.py:cifar10 --workdir runs/beit               # the same, and a probe
    ssljax train --config configs/beit.py:imagenet_b --workdir gs://bucket/b                   # 83.2 top-1
    ssljax train --config configs/beit.py:imagenet_b_plus --workdir gs://bucket/plus   # loss 6.299 [C]
    ssljax train --config configs/beit.py:imagenet_b_linear --workdir gs://bucket/probe        # 56.7 top-1

Every preset is a list of stages; a finished stage is skipped. `imagenet_{b,l}` is the network of the paper's
tables 1 to 4 (absolute positions) with 800 epochs, `_e300` the same with 300, `_384` fine-tunes for ten more
epochs at 384 pixels. `_plus` is the released code's default, with relative positions and LayerScale.
`imagenet_b_cifar100` and `_intermediate_cifar100` are the lecture's other column. `imagenet_b_ablation_...`
are the rows of table 4, and of table 5. The tokenizer is trained on the same images; for another, such as a
converted DALL-E, start with --stage=pretrain and --config.pretrain.recover.tokenizer=RUN.

A run has examples * epochs // batch + 1 updates: 500,456 in 800 epochs, 500,000 in the released code [X].

Sources of the numbers: [P] the paper, [C] the released code (microsoft/unilm at 768a3c8, beit/), [X] chosen
here.
"""

from ml_collections import ConfigDict

from ssljax import config

# Table 4 (300 epochs) and the two networks of table 5: what changes in pretraining.
ABLATIONS: dict[str, dict] = {
    "scattered": {"masking.name": "scattered"},
    "pixels": {"recover.what": "pixels"},
    "pixels_scattered": {"recover.what": "pixels", "masking.name": "scattered"},
    "recover_all": {"recover.where": "all"},
    "unmasked": {"recover.where": "all", "masking.name": "none"},
    "layer_scale": {"model.layer_scale": 0.1},
    "relative": {"model.layer_scale": 0.1, "model.absolute": False, "model.relative": "shared"},
    "algorithm_1": {"masking.name": "algorithm_1"},  # not in the paper's tables
}

SIZES = ("b", "l")
# Epochs of pretraining.
PRETRAINED = {f"imagenet_{size}": (size, 800) for size in SIZES} | {
    f"imagenet_{size}_e300": (size, 300) for size in SIZES
}
AT_384 = {f"imagenet_{size}_384": size for size in SIZES}
PLUS = {f"imagenet_{size}_plus": size for size in SIZES}
PROBED = {f"imagenet_{size}_linear": size for size in SIZES}
TRANSFERRED = ("imagenet_b_cifar100", "imagenet_b_intermediate_cifar100")
ABLATED = {f"imagenet_b_ablation_{name}": name for name in ABLATIONS}
SMALL = (
    "digits",
    "fashion_mnist",
    "cifar10",
    "folder",
    "folder_small",
    "digits_scratch",
    "fashion_mnist_scratch",
    "cifar10_scratch",
)
SMALL_ABLATED = {f"cifar10_{name}": name for name in ABLATIONS if name not in ("layer_scale", "relative")}

# +-0.4 of brightness, contrast and saturation, the hue as it is [C]
COLOURS = dict(
    jitter="torchvision",
    jitter_on="image",
    jitter_probability=1.0,
    jitter_strength=0.5,
    jitter_saturation=0.8,
    jitter_hue=0.0,
)

PRESETS = (
    *SMALL,
    *SMALL_ABLATED,
    *PRETRAINED,
    *AT_384,
    *PLUS,
    *PROBED,
    *TRANSFERRED,
    *ABLATED,
)


def staged(**parts: ConfigDict) -> ConfigDict:
    """A config of named stages, in this order."""
    return ConfigDict({"stages": tuple(parts), **parts})


def network(name: str, patch: int, dtype: str) -> ConfigDict:
    """The backbone in pretraining, as in the paper's tables 1 to 4."""
    return ConfigDict(
        dict(
            name=name,
            patch=patch,
            absolute=True,
            relative="none",
            layer_scale=0.0,
            pooling="mean",
            drop_path=0.1,  # [P]
            remat="none",
            dtype=dtype,
        )
    )


def plus(c: ConfigDict) -> ConfigDict:
    """The backbone of the released code's default: relative positions and LayerScale."""
    c.model.update(absolute=False, relative="shared", layer_scale=1e-5 if c.model.name == "beit_l" else 0.1)
    return c


def tokens_view(c: ConfigDict, size: int) -> dict:
    """The tokenizer's view: the crop of the patches at another size, and not normalised."""
    channels = c.data.channels
    return dict(
        size=size, of="patches", interpolation="lanczos3", mean=(0.0,) * channels, std=(1.0,) * channels
    )


# ----------------------------------------------------------------------------------------------- pretraining


def beit(c: ConfigDict, tokenizer: ConfigDict, *, tokens_size: int, patches: int) -> ConfigDict:
    """Pretraining on a data set, after a stage `tokenizer`.

    Args:
        c: the data set, its network and views.
        tokenizer: the config of that stage.
        tokens_size: side of the tokenizer's view.
        patches: how many to mask.
    """
    c.method = "beit"
    c.views = dict(patches=dict(), tokens=tokens_view(c, tokens_size))
    c.masking = dict(name="blockwise", patches=patches, min_block=16, max_block=0, min_aspect=0.3)  # [C]
    c.recover = dict(what="tokens", where="masked", tokenizer="tokenizer")
    shape = {name: tokenizer.model[name] for name in ("groups", "hidden", "blocks", "vocabulary")}
    c.tokenizer = dict(dtype="float32", **shape)
    c.optim = dict(
        name="beit_adamw",
        learning_rate=1.5e-3,  # [P]
        scaling="none",
        weight_decay=0.05,  # [P]
        warmup_epochs=10,  # [P]
        end=1e-5,  # [P]
        clip=3.0,  # [P]; 1.0 for L
    )
    return c


def imagenet_tokenizer() -> ConfigDict:
    """The tokenizer of table 8's last row: trained on ImageNet, without labels."""
    c = config.imagenet(epochs=1199, batch_size=512)
    c.data.image_size = 256
    c.augment.update(config.DALLE_CROPS)
    return config.dvae(c, epochs=1199, batch_size=512)


def imagenet(size: str, epochs: int, tokenizer: ConfigDict) -> ConfigDict:
    """Table 12."""
    c = config.imagenet(epochs=epochs, batch_size=2048)
    c.model = network(f"beit_{size}", 16, "bfloat16")
    c.augment.update(  # [C]
        crop="torchvision",
        resize="pillow",
        min_area=0.08,
        **COLOURS,
        **config.IMAGENET,
    )
    c = beit(c, tokenizer, tokens_size=112, patches=75)
    if size == "l":
        c.optim.clip = 1.0  # [P]
    return c


# ----------------------------------------------------------------------------------------------- fine-tuning


def finetuned(pretrain: ConfigDict, init_from: str = "pretrain") -> ConfigDict:
    """Fine-tuning of the network of a stage: mean of the patches, a fresh norm and head, a rate per layer."""
    c = pretrain.copy_and_resolve_references()
    c.method = "deit"
    for section in ("masking", "recover", "tokenizer"):
        del c[section]
    c.init_from = init_from
    c.init_branches = ("encoder",)
    config.crops_alone(c)
    c.model.pooling = "mean_then_norm"
    if c.model.relative == "shared":
        c.model.relative = "blocks"
    c.head = dict(std=2e-5)  # 0.02 / 1000 [C]
    c.mix = dict(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1)  # [P]
    c.distill = dict(name="none")
    c.optim = dict(
        name="beit_adamw",
        learning_rate=4e-3,  # [C]; the best of 2, 3, 4 and 5e-3 in the paper
        scaling="none",
        weight_decay=0.05,  # [P]
        warmup_epochs=20,  # [P]
        end=1e-6,  # [C]
        layer_decay=0.65,  # [P]
    )
    c.evaluate.protocols = ("classifier",)
    return c


def imagenet_finetuned(pretrain: ConfigDict) -> ConfigDict:
    """Table 13 at 224 pixels."""
    c = finetuned(pretrain)
    c.batch_size = 1024  # [P]
    c.augment.update(policy="randaugment", erasing_probability=0.25)  # [P]
    c.epochs = 100
    c.data.repeats = 3  # [P]
    if c.model.name == "beit_l":
        c.epochs = 50  # [P]
        c.data.repeats = 1  # [P]
        c.optim.update(learning_rate=1e-3, warmup_epochs=5, layer_decay=0.75)  # [C], [P], [P]
    return c


def at_384(finetune: ConfigDict) -> ConfigDict:
    """Ten more epochs at 384 pixels [P], by DeiT's settings for that [C].

    There is no warm-up, and the layers' rates are as before [X].
    """
    c = finetune.copy_and_resolve_references()
    c.init_from = "finetune"
    c.init_branches = ("encoder", "head")
    c.epochs = 10
    c.batch_size = 512
    c.data.image_size = 384
    c.data.eval_crop = 1.0  # [C]
    c.optim.update(learning_rate=2e-5, weight_decay=1e-8, warmup_epochs=0)
    return c


def cifar100(finetune: ConfigDict, init_from: str) -> ConfigDict:
    """CIFAR-100 at 224 pixels (table 11, and the lecture's)."""
    c = finetune.copy_and_resolve_references()
    c.init_from = init_from
    c.init_branches = ("encoder",)
    c.data.update(source="tfds:cifar100", test_split="test")
    c.epochs = 150
    c.batch_size = 512
    c.augment.erasing_probability = 0.0
    c.optim.weight_decay = 0.3
    return c


def probed(pretrain: ConfigDict, layer: str, width: int, batch_size: int, epochs: int) -> ConfigDict:
    """The linear probe of one middle layer (appendix D): the mean of its patches."""
    found = config.linear(
        pretrain,
        batch_size=batch_size,
        epochs=epochs,
        views=dict(one=dict(interpolation="bilinear")),  # in training; evaluation is bicubic [C]
        probe=dict(layer=layer, layer_dim=width),
        optim=dict(
            name="adamw",
            learning_rate=4e-3,  # [P]
            scaling="none",
            weight_decay=1e-4,  # [P]
            warmup_epochs=0,
        ),
    )
    c = found.linear
    for section in ("masking", "recover", "tokenizer"):
        del c[section]
    return c


# --------------------------------------------------------------------------------------------- whole presets


def large(preset: str) -> ConfigDict:
    """A preset on ImageNet."""
    tokenizer = imagenet_tokenizer()
    size = preset.split("_")[1]
    if preset in PRETRAINED:
        pretrain = imagenet(size, PRETRAINED[preset][1], tokenizer)
    elif preset in ABLATED:
        pretrain = imagenet(size, 300, tokenizer)
        ablate(pretrain, ABLATED[preset])
    elif preset in PLUS:
        pretrain = plus(imagenet(size, 300, tokenizer))
    else:
        pretrain = imagenet(size, 800, tokenizer)

    before = dict(tokenizer=tokenizer, pretrain=pretrain)
    if pretrain.recover.what == "pixels":
        del before["tokenizer"]
    if preset in PROBED:
        layer, width = ("block8", 768) if size == "b" else ("block13", 1024)  # the 9th and the 14th [P]
        return staged(**before, linear=probed(pretrain, layer, width, 1024, 50))
    finetune = imagenet_finetuned(pretrain)
    if preset in AT_384:
        return staged(**before, finetune=finetune, finetune_384=at_384(finetune))
    if preset == "imagenet_b_cifar100":
        return staged(**before, finetune=cifar100(finetune, "pretrain"))
    if preset == "imagenet_b_intermediate_cifar100":
        return staged(**before, intermediate=finetune, finetune=cifar100(finetune, "intermediate"))
    return staged(**before, finetune=finetune)


def ablate(pretrain: ConfigDict, name: str) -> None:
    """Change pretraining as in a row of table 4 or 5."""
    pretrain.update_from_flattened_dict(ABLATIONS[name])
    if pretrain.recover.what == "pixels":
        pretrain.views = dict(patches=dict())


def small_tokenizer(c: ConfigDict, vocabulary: int) -> ConfigDict:
    """A small dVAE: one token for 4 x 4 pixels [X]."""
    shape = dict(groups=3, hidden=16, blocks=1, vocabulary=vocabulary, codebook=32)
    return config.short_dvae(config.dvae(c, epochs=c.epochs, batch_size=64, **shape))


def small_beit(c: ConfigDict, tokenizer: ConfigDict, size: int, patches: int) -> ConfigDict:
    """BEiT+ of width 64 with patches of 4 pixels, and absolute positions besides [X]."""
    c.model = network("beit_xs", 4, "float32")
    c.model.update(drop_path=0.0, relative="shared", layer_scale=0.1)
    c = beit(c, tokenizer, tokens_size=size, patches=patches)
    c.masking.update(min_block=4)
    c.optim.update(learning_rate=2e-3, warmup_epochs=2)
    c.evaluate.protocols = ("knn", "linear")
    return c


def small_finetune(pretrain: ConfigDict, epochs: int, labels: int) -> ConfigDict:
    """Fine-tuning on a few labels per class [X]."""
    c = finetuned(pretrain)
    c.epochs = epochs
    c.data.labels_per_class = labels
    c.batch_size = 50
    c.mix.update(mixup_alpha=0.0, cutmix_alpha=0.0)
    c.optim.update(learning_rate=1e-3, warmup_epochs=epochs // 10, layer_decay=0.75)
    c.eval_every_epochs = 0
    c.checkpoint.best = ""
    return c


def digits() -> ConfigDict:
    """scikit-learn's digits: 16 tokens of 64 codes, then 10 labels per class [X]."""
    c = config.digits()
    c.augment.update(rotate=10.0, shift=0.1, zoom=0.1, shear=5.0)
    c.epochs = 20
    tokenizer = small_tokenizer(c.copy_and_resolve_references(), 64)
    c.epochs = 40
    pretrain = small_beit(c, tokenizer, 16, 6)
    pretrain.masking.min_block = 2
    return staged(tokenizer=tokenizer, pretrain=pretrain, finetune=small_finetune(pretrain, 60, 10))


def fashion_mnist() -> ConfigDict:
    """Fashion-MNIST on a CPU: 49 tokens of 256 codes, 500 images per class, then 10 labels of each [X]."""
    c = config.fashion_mnist()
    c.data.train_per_class = 500
    c.eval_every_epochs = 5
    c.augment.min_area = 0.5
    c.epochs = 10
    tokenizer = small_tokenizer(c.copy_and_resolve_references(), 256)
    c.epochs = 25
    c.batch_size = 128
    pretrain = small_beit(c, tokenizer, 28, 19)
    return staged(tokenizer=tokenizer, pretrain=pretrain, finetune=small_finetune(pretrain, 100, 10))


def cifar10() -> ConfigDict:
    """CIFAR-10 on a CPU: 64 tokens of 256 codes, 500 images per class, then 100 labels of each [X].

    For a folder of CIFAR-10 images give every stage --config.STAGE.data.source=folder:PATH.
    """
    c = config.cifar10_small()
    c.data.train_per_class = 500
    c.augment.min_area = 0.3
    c.epochs = 8
    tokenizer = small_tokenizer(c.copy_and_resolve_references(), 256)
    c.epochs = 20
    c.batch_size = 128
    c.augment.update(**COLOURS, **config.CIFAR10)
    pretrain = small_beit(c, tokenizer, 32, 25)
    return staged(
        tokenizer=tokenizer,
        pretrain=pretrain,
        finetune=small_finetune(pretrain, 30, 100),
        linear=probed(pretrain, "block2", 64, 256, 5),
    )


def folder_small() -> ConfigDict:
    """Your own images at 32 pixels: a tokenizer of 256 codes, then the pretraining, on two CPU cores [X]."""
    c = config.folder_small()
    c.augment.min_area = 0.3
    c.epochs = 20
    tokenizer = small_tokenizer(c.copy_and_resolve_references(), 256)
    c.epochs = 40
    return staged(tokenizer=tokenizer, pretrain=small_beit(c, tokenizer, 32, 25))


def folder() -> ConfigDict:
    """Your own photographs at 224 pixels: a tokenizer of 2,048 codes at 112 pixels, then BEiT-B on them [X].

    The tokenizer has a quarter of DALL-E's width. Instead of it, any tokenizer will do, such as a converted
    DALL-E: --stage=pretrain --config.pretrain.recover.tokenizer=RUN.
    """
    c = config.folder()
    c.augment.update(crop="torchvision", resize="pillow")
    tokenizer = c.copy_and_resolve_references()
    tokenizer.data.image_size = 112
    tokenizer.augment.min_area = 0.3
    shape = dict(hidden=64, vocabulary=2048)
    tokenizer = config.dvae(tokenizer, epochs=100, batch_size=64, **shape)
    tokenizer.optim.update(learning_rate=1e-3, end=1e-5, cosine_share=1.0)  # a hundredth of DALL-E's updates
    tokenizer.ema.decay = 0.99
    c.model = network("beit_b", 16, "bfloat16")
    c.augment.update(min_area=0.08, **config.IMAGENET, **COLOURS)
    c = beit(c, tokenizer, tokens_size=112, patches=75)
    c.epochs = 400
    c.optim.learning_rate = 1.5e-3 * c.batch_size / 2048
    c.evaluate.protocols = ("knn", "linear")
    return staged(tokenizer=tokenizer, pretrain=c)


def scratch(c: ConfigDict) -> ConfigDict:
    """The last stage of a chain alone, from random weights: what fine-tuning is compared with."""
    c = c.finetune
    c.init_from = ""
    return c


def small(preset: str) -> ConfigDict:
    """A preset on small images."""
    if preset in SMALL_ABLATED:
        c = cifar10()
        ablate(c.pretrain, SMALL_ABLATED[preset])
        if c.pretrain.recover.what == "pixels":
            del c["tokenizer"]
            c.stages = ("pretrain", "finetune", "linear")
        return c
    name = preset.removesuffix("_scratch")
    c = globals()[name]()
    return c if name == preset else scratch(c)


def get_config(preset: str = "digits") -> ConfigDict:
    """The locked configuration of one preset.

    Raises:
        ValueError: the preset is not one of PRESETS.
    """
    config.choose(preset, PRESETS, "configs/beit.py")
    c = large(preset) if preset.startswith("imagenet") else small(preset)
    for stage in config.stages(c).values():
        stage.name = "beit"
    return config.named(c, preset)
