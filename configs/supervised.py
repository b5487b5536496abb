"""Supervised baselines: a ResNet or a ViT trained on labels alone, on all of them or on a few, with crops and flips.

    ssljax train --config configs/supervised.py:digits --workdir runs/supervised
    ssljax train --config configs/supervised.py:digits --workdir runs/ten --config.data.labels_per_class=10 --config.batch_size=50
    ssljax train --config configs/supervised.py:imagenet_r50_10pct --workdir gs://bucket/supervised    # the table's baseline: top-5 80.4
    ssljax train --config configs/supervised.py:imagenet_vit_b --workdir gs://bucket/vit                # a ViT without DeiT's recipe

The ResNets are those of the SimCLR presets, the ViTs those of the DeiT presets. Sources: [P] SimCLR (arXiv 2002.05709), [X] chosen here.
"""

import importlib.util
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

RESNETS = ("digits", "fashion_mnist", "cifar10_r18", "cifar10_small", "imagenet_r50", "imagenet_r50_1pct", "imagenet_r50_10pct")
# The DeiT preset whose network, optimizer and crops each has, without stochastic depth and the rest of the recipe.
VITS = {"digits_vit": "digits", "cifar10_small_vit": "cifar10_small", "imagenet_vit_s": "imagenet_s", "imagenet_vit_s_1pct": "imagenet_s",
        "imagenet_vit_s_10pct": "imagenet_s", "imagenet_vit_b": "imagenet_b"}
FRACTIONS = {"1pct": 0.01, "10pct": 0.1}

PRESETS = (*RESNETS, *VITS)


def beside(name: str) -> ModuleType:
    """Another file of presets in this folder."""
    spec = importlib.util.spec_from_file_location(f"{name}_config", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def get_config(preset: str = "digits") -> ConfigDict:
    """The locked configuration of one preset.

    Raises:
        ValueError: the preset is not one of PRESETS.
    """
    if preset not in PRESETS:
        raise ValueError(f"configs/supervised.py has no preset {preset!r}. Valid presets: {', '.join(PRESETS)}")
    fraction = FRACTIONS.get(preset.rpartition("_")[2], 1.0)
    c = beside("simclr").get_config("imagenet_r50" if preset.startswith("imagenet") else preset.removesuffix("_vit")).unlock()
    c.method, c.name, c.preset = "supervised", "supervised", preset
    c.evaluate.protocols = ("classifier",)
    c.views = ConfigDict(dict(one=dict()))
    c.data.update(label_fraction=fraction)
    if preset in VITS:                                                                          # [X]
        theirs = beside("deit").get_config(VITS[preset])
        theirs = theirs.student if "stages" in theirs else theirs
        c.model, c.optim, c.augment = (theirs[name].copy_and_resolve_references() for name in ("model", "optim", "augment"))
        c.model.update(distillation=False, drop_path=0.0)
        c.augment.update(policy="none", erasing_probability=0.0)
    else:
        c.optim.update(name="sgd", nesterov=True, learning_rate=0.05, scaling="linear", warmup_epochs=5,      # [X]
                       weight_decay=0.0 if fraction < 1 else 1e-4)
    c.augment.update(jitter_probability=0.0, grayscale_probability=0.0, blur_probability=0.0)   # crop and flip only [P]
    if preset.startswith("imagenet"):
        c.epochs, c.batch_size = (90 if fraction == 1 else 500), 1024                           # [X]
    return c.lock()
