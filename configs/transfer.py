"""Fine-tuning on the twelve data sets of Kornblith et al. (2019), as SimCLR and BYOL do.

    ssljax finetune --run RUN --sets pets,flowers --data-root DIR --workdir runs/transfer

searches 7 learning rates and 8 weight decays on the validation split of each data set, and trains the best
again on training and validation images. A preset is that last run. By itself:

    ssljax train --config configs/transfer.py:pets --config.init_from=RUN --config.data.data_dir=DIR \\
        --config.optim.learning_rate=0.01 --workdir runs/pets

DIR/pets has class folders, or TFDS has prepared the data set (docs/transfer.md). `own` is for a folder of any
other name: --config.data.source=transfer:NAME, for the epochs of 20,000 steps on 5,000 images. The network
must be that of RUN; `ssljax finetune` sees to it.

Sources of the numbers: [P] SimCLR, appendix B.8; [X] chosen here.
"""

from ml_collections import ConfigDict

from ssljax import config

STEPS = 20_000  # [P]
BATCH = 256  # [P]
# Training and validation images.
IMAGES = {
    "food101": 75_750,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "birdsnap": 47_386,
    "sun397": 19_850,
    "cars": 8_144,
    "aircraft": 6_667,
    "voc2007": 5_011,
    "dtd": 3_760,
    "pets": 3_680,
    "caltech101": 3_060,
    "flowers": 2_040,
    "own": 5_000,
}

PRESETS = tuple(IMAGES)


def transfer(name: str) -> ConfigDict:
    """SGD with Nesterov momentum and a cosine to zero, without warm-up.

    The weight decay is the paper's divided by the learning rate, so that one step shrinks the weights by the
    paper's value [P]. It applies to kernels alone, and crops have at least 8 % of the image [X].
    """
    c = config.imagenet(epochs=round(STEPS * BATCH / IMAGES[name]), batch_size=BATCH)
    if name != "own":
        c.steps = STEPS
    c.name = "transfer"
    c.method = "multilabel" if name == "voc2007" else "supervised"
    config.crops_alone(c)
    source = "NAME" if name == "own" else name
    c.data.update(source=f"transfer:{source}", train_split="train+validation", test_split="test")
    c.augment.update(crop="tf", min_area=0.08)
    c.model.bn_momentum = max(1 - 10 / (IMAGES[name] // BATCH), 0.9)  # [P]
    if name == "voc2007":
        c.head = dict(scheme="zeros")
    c.optim = dict(  # in the middle of the grid
        name="sgd", nesterov=True, learning_rate=0.01, scaling="none", momentum=0.9, weight_decay=1e-4
    )
    c.eval_every_epochs = 0
    c.checkpoint.best = ""
    c.evaluate.protocols = ("finetuned",)
    return c


def get_config(preset: str = "pets") -> ConfigDict:
    """The locked configuration of one preset.

    Raises:
        ValueError: the preset is not one of PRESETS.
    """
    config.choose(preset, PRESETS, "configs/transfer.py")
    return config.named(transfer(preset), preset)
