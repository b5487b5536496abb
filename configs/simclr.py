"""SimCLR: A Simple Framework for Contrastive Learning of Visual Representations (Chen et al., ICML 2020, arXiv 2002.05709).

    ssljax train --config configs/simclr.py:digits --workdir runs/digits              # a laptop, under a minute
    ssljax train --config configs/simclr.py:cifar10_r18 --workdir runs/cifar10        # one accelerator
    ssljax train --config configs/simclr.py:imagenet_r50 --workdir gs://bucket/r50    # a TPU v4-128 or v5e-64 slice

`imagenet_r50_e100_b4096` and its siblings name the epochs and the batch of the paper's tables; `imagenet_r50` is the headline
(1000 epochs, batch 4096: 69.3 / 89.0 top-1 / top-5 with a linear probe). Sources of the numbers: [P] the paper, [C] the released
code (google-research/simclr, commit 383d414), [X] chosen here.
"""

from ml_collections import ConfigDict

# Linear-probe top-1 of the paper (table of batch sizes and epochs, appendix), for ResNet-50 with square-root learning-rate scaling.
EPOCHS = (100, 200, 400, 800, 1000)
BATCHES = (256, 512, 1024, 2048, 4096, 8192)
IMAGENET_TABLE = {f"imagenet_r50_e{epochs}_b{batch}": (epochs, batch) for epochs in EPOCHS for batch in BATCHES}

PRESETS = ("digits", "digits_finetune", "fashion_mnist", "cifar10_r18", "cifar10_small", "folder",
           "imagenet_r50", "imagenet_r50_x2", "imagenet_r50_x4", "imagenet_r50_finetune_1pct", "imagenet_r50_finetune_10pct",
           *IMAGENET_TABLE)


def imagenet(epochs: int = 1000, batch: int = 4096, width: float = 1.0) -> ConfigDict:
    """The paper's ImageNet recipe; every other preset is a change to it."""
    return ConfigDict(dict(
        method="simclr",
        name="simclr",                       # the folder of experiments/ this run belongs to
        preset="imagenet_r50",
        seed=0,
        epochs=epochs,
        batch_size=batch,
        accumulate=1,                        # micro-batches a step; batch statistics are then those of a micro-batch
        sharding=dict(fsdp=1),               # devices that share one copy of the big parameters; 1 = a whole copy on each
        init_from="",                        # an earlier stage's name or a checkpoint folder; "" = random initialisation
        data=dict(
            source="tfds:imagenet2012",      # digits | fashion_mnist | folder:PATH | tfds:NAME
            data_dir="",                     # where prepared data lives; "" = the source's usual place
            train_split="train",
            test_split="validation",
            holdout=0.1,                     # share of each class held out where the source has no test split
            train_per_class=0,               # the first n training images of each class; 0 = all
            label_fraction=1.0,              # supervised methods: the share of the labels used (balanced, drawn with subset_seed)
            labels_per_class=0,              # or so many labels a class; 0 = label_fraction decides
            subset_seed=0,
            num_classes=1000,                # 0 = read from the data
            image_size=224,
            channels=3,
            crop_on="host",                  # host: decoded and cropped to uint8 views by tf.data; device: cropped inside the step
            eval_crop=0.875,                 # share of the shorter side kept at evaluation [C]
            on_bad_image="error",            # error | skip (skipped images are counted and named)
            repeats=1,                       # copies of an image, one after the other, each with views of its own; epochs keep their length
        ),
        views=dict(one=dict(), two=dict()),
        augment=dict(
            crop="tf",                       # tf: sample_distorted_bounding_box [C]; torchvision: RandomResizedCrop; affine; none
            min_area=0.08,                   # [P] appendix A; the TF op's min_object_covered makes 0.10 of it [C]
            max_area=1.0, aspect=(3 / 4, 4 / 3), interpolation="bicubic",
            jitter="tensorflow", jitter_order="random", jitter_saturation=0.8, solarize_probability=0.0, solarize_threshold=0.5,
            blur_border="zero", blur_kernel=0,
            flip=True,                       # [P]
            jitter_probability=0.8,          # [P] appendix A
            jitter_strength=1.0,             # [P] ImageNet 1.0, CIFAR-10 0.5; times 0.8 for brightness, contrast and saturation
            jitter_hue=0.2,                  # and times this for the hue [P]
            brightness="multiply",           # multiply [C] | add [P]
            grayscale_probability=0.2,       # [P]
            blur_probability=0.5,            # [P]; 0 for CIFAR-10
            blur_sigma=(0.1, 2.0),           # [P]
            blur_sigma_per="image",          # image [P] | batch [C]
            rotate=0.0, shift=0.0, zoom=0.0, shear=0.0,   # crop="affine": degrees, share of the side, share, degrees
            antialias=False,                 # of the host's bicubic, at evaluation too. False: TensorFlow's [C]; True: Pillow's, nearly
            policy="none",                   # randaugment | randaugment_plain | autoaugment_original | autoaugment_v0; without the jitter
            policy_magnitude=9.0, policy_std=0.5, policy_ops=2,    # of RandAugment; AutoAugment's tables have their own
            erasing_probability=0.0,         # random erasing, after the normalisation
            mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0),    # none: the network sees [0, 1] [C]
        ),
        model=dict(
            name="resnet50",
            width=width,
            stem="imagenet",                 # imagenet: 7x7/2 and max-pool; cifar: one 3x3/1
            shortcut="simclr",               # simclr: a projection in the first block of every group [C]; torchvision: where shapes change
            sk_ratio=0.0,                    # selective kernels (SimCLRv2); 0 = none
            bn_momentum=0.9, bn_epsilon=1e-5,    # [C]
            dtype="bfloat16",
            remat="none",                    # blocks: keep only the blocks' inputs for the backward pass and compute the rest again
        ),
        head=dict(layers=2, hidden=0, dim=128),   # hidden 0 = as wide as the features [C]; 2 layers [P], 128 [C]
        loss=dict(temperature=0.1),          # [P] table of temperatures
        optim=dict(
            name="lars", learning_rate=0.075, scaling="sqrt",    # 0.075 sqrt(B) = 4.8 at 4096 [P] appendix B.1
            momentum=0.9, trust_coefficient=0.001, lr_in_momentum=True, nesterov=False,   # [C]
            weight_decay=1e-6,               # [P]; the README's 1e-4 is SimCLRv2's
            warmup_epochs=10,                # [P]
        ),
        online_probe=True,                   # a linear classifier on stop-gradient features, trained beside the network [C]
        log_every=100,
        eval_every_epochs=10,                # kNN on the held-out split while training; 0 = never
        checkpoint=dict(every_steps=1000, keep=3, best="knn"),
        evaluate=dict(
            protocols=("knn", "linear"),
            batch_size=256,
            knn_k=200, knn_temperature=0.1,  # neighbours and softmax temperature of the vote
            label_counts=(1, 2, 5, 10), label_draws=5,
            linear="sgd",                    # sgd [P]: Nesterov 0.9, 90 epochs, 0.1 B/256, no decay | lbfgs: logistic regression
            linear_l2=0.0,                   # lbfgs: lambda in mean loss + lambda/2 |W|^2; 0 chooses it on held-out training images
        ),
    ))


def small(c: ConfigDict, preset: str, source: str, size: int, channels: int) -> ConfigDict:
    """What all data sets of small images share: in memory, cropped on the device, no blur, the CIFAR stem, float32."""
    c.preset = preset
    c.data.update(source=source, num_classes=10, test_split="test", image_size=size, channels=channels, crop_on="device", eval_crop=1.0)
    c.augment.update(jitter_strength=0.5, blur_probability=0.0)      # [P] appendix B.9
    c.augment.update(mean=(0.0,) * channels, std=(1.0,) * channels)
    c.model.update(name="resnet18", stem="cifar", dtype="float32")
    c.evaluate.update(linear="lbfgs", protocols=("knn", "linear", "label_fraction"))
    return c


def cifar10_r18() -> ConfigDict:
    """The released README's CIFAR-10 recipe (about 91 % with a linear probe) [C]."""
    c = small(imagenet(epochs=1000, batch=512), "cifar10_r18", "tfds:cifar10", 32, 3)
    c.head.layers = 3
    c.loss.temperature = 0.5
    c.optim.update(learning_rate=1.0, scaling="linear", weight_decay=1e-4)
    return c


def cifar10_small() -> ConfigDict:
    """ResNet-18 of base width 16 for ten epochs: what two CPU cores do in twenty minutes [X].

    For a folder of CIFAR-10 images: --config.data.source=folder:PATH --config.data.train_per_class=2000
    """
    c = small(imagenet(epochs=10, batch=256), "cifar10_small", "tfds:cifar10", 32, 3)
    c.model.width = 0.25
    c.loss.temperature = 0.2
    c.optim.update(name="sgd", learning_rate=0.12, scaling="linear", weight_decay=5e-4, warmup_epochs=1)
    c.log_every, c.eval_every_epochs, c.checkpoint.every_steps = 20, 5, 100
    return c


def fashion_mnist() -> ConfigDict:
    """Fashion-MNIST on a CPU: grey images of 28 pixels, so the colour jitter is brightness and contrast alone [X]."""
    c = small(imagenet(epochs=5, batch=256), "fashion_mnist", "fashion_mnist", 28, 1)
    c.model.update(name="resnet10", width=0.25)
    c.loss.temperature = 0.2
    c.augment.min_area = 0.2
    c.optim.update(name="sgd", learning_rate=0.12, scaling="linear", weight_decay=5e-4, warmup_epochs=0)
    c.log_every, c.eval_every_epochs, c.checkpoint.every_steps = 50, 1, 300
    return c


def digits() -> ConfigDict:
    """scikit-learn's 1,797 scanned digits at 16 pixels, for the demo: views are small affine and intensity changes, never flips [X]."""
    c = small(imagenet(epochs=40, batch=128), "digits", "digits", 16, 1)
    c.augment.update(crop="affine", flip=False, rotate=25.0, shift=0.15, zoom=0.2, shear=15.0, grayscale_probability=0.0)
    c.model.update(name="resnet8", width=0.25, stem="imagenet")      # the strided stem: a fifth of the CIFAR stem's time
    c.head.dim = 64
    c.loss.temperature = 0.35
    c.optim.update(name="sgd", learning_rate=0.3, scaling="linear", weight_decay=1e-4, warmup_epochs=2)
    c.evaluate.update(knn_k=20, label_draws=3)                       # 150 images a class; the demo's three minutes
    c.log_every, c.eval_every_epochs, c.checkpoint.every_steps = 50, 20, 200
    return c


def folder() -> ConfigDict:
    """Your own photographs, --config.data.source=folder:PATH (train/ and test/, or one sub-folder a class): ResNet-50 at 224 pixels [X]."""
    c = imagenet(epochs=200, batch=256)
    c.preset = "folder"
    c.data.update(source="folder:images", test_split="test", num_classes=0)
    c.evaluate.update(linear="lbfgs", protocols=("knn", "linear", "label_fraction"))
    c.log_every, c.checkpoint.every_steps = 20, 200
    return c


def finetune(pretrain: ConfigDict) -> ConfigDict:
    """Two stages: `pretrain`, then the whole network and a linear head on a part of the labels (section 4.2, appendix B.5)."""
    c = pretrain.copy_and_resolve_references()             # ConfigDict(pretrain) would share its sections
    c.method, c.init_from = "supervised", "pretrain"
    c.views = ConfigDict(dict(one=dict()))
    c.augment.update(jitter_probability=0.0, grayscale_probability=0.0, blur_probability=0.0)      # crop and flip only [P]
    c.optim.update(name="sgd", nesterov=True, learning_rate=0.05, scaling="linear", weight_decay=0.0, warmup_epochs=0)   # [P]
    c.evaluate.protocols = ("classifier",)
    return ConfigDict(dict(stages=("pretrain", "finetune"), pretrain=pretrain, finetune=c))


def imagenet_finetune(fraction: float, epochs: int) -> ConfigDict:
    """1 % of the labels for 60 epochs, 10 % for 30 [P]."""
    c = finetune(imagenet())
    c.finetune.epochs, c.finetune.data.label_fraction = epochs, fraction
    return c


def digits_finetune() -> ConfigDict:
    """The semi-supervised protocol in miniature: ten labels a class [X]."""
    c = finetune(digits())
    c.finetune.update(epochs=20, batch_size=50, log_every=20, eval_every_epochs=0)
    c.finetune.data.labels_per_class = 10
    return c


def named(c: ConfigDict, preset: str) -> ConfigDict:
    """The locked configuration, its name in every stage."""
    for stage in [c[name] for name in c.stages] if "stages" in c else [c]:
        stage.preset = preset
    return c.lock()


def get_config(preset: str = "digits") -> ConfigDict:
    """The locked configuration of one preset.

    Raises:
        ValueError: the preset is not one of PRESETS.
    """
    if preset not in PRESETS:
        raise ValueError(f"configs/simclr.py has no preset {preset!r}. Valid presets: {', '.join(PRESETS)}")
    if preset in IMAGENET_TABLE:
        c = imagenet(*IMAGENET_TABLE[preset])
    elif preset in ("imagenet_r50_finetune_1pct", "imagenet_r50_finetune_10pct"):
        c = imagenet_finetune(*((0.01, 60) if preset.endswith("_1pct") else (0.1, 30)))
    elif preset.startswith("imagenet"):
        c = imagenet(width={"imagenet_r50": 1.0, "imagenet_r50_x2": 2.0, "imagenet_r50_x4": 4.0}[preset])
    else:
        c = globals()[preset]()
    return named(c, preset)
