"""Supervised baselines: the network of a SimCLR preset trained on labels alone, on all of them or on a few.

    ssljax train --config configs/supervised.py:digits --workdir runs/supervised
    ssljax train --config configs/supervised.py:digits --workdir runs/ten --config.data.labels_per_class=10 --config.batch_size=50
    ssljax train --config configs/supervised.py:imagenet_r50_10pct --workdir gs://bucket/supervised    # the table's baseline: top-5 80.4

Sources: [P] SimCLR (arXiv 2002.05709), [X] chosen here.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

PRESETS = ("digits", "fashion_mnist", "cifar10_r18", "cifar10_small", "imagenet_r50", "imagenet_r50_1pct", "imagenet_r50_10pct")


def simclr_config(preset: str) -> ConfigDict:
    """The SimCLR preset, unlocked, from the file beside this one."""
    spec = importlib.util.spec_from_file_location("simclr_config", Path(__file__).with_name("simclr.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(preset).unlock()


def get_config(preset: str = "digits") -> ConfigDict:
    """The locked configuration of one preset.

    Raises:
        ValueError: the preset is not one of PRESETS.
    """
    if preset not in PRESETS:
        raise ValueError(f"configs/supervised.py has no preset {preset!r}. Valid presets: {', '.join(PRESETS)}")
    fraction = {"imagenet_r50_1pct": 0.01, "imagenet_r50_10pct": 0.1}.get(preset, 1.0)
    c = simclr_config("imagenet_r50" if preset.startswith("imagenet") else preset)
    c.method, c.name, c.preset = "supervised", "supervised", preset
    c.evaluate.protocols = ("classifier",)
    c.data.update(views=1, label_fraction=fraction)
    c.augment.update(jitter_probability=0.0, grayscale_probability=0.0, blur_probability=0.0)   # crop and flip only [P]
    c.optim.update(name="sgd", nesterov=True, learning_rate=0.05, scaling="linear", warmup_epochs=5,      # [X]
                   weight_decay=0.0 if fraction < 1 else 1e-4)
    if preset.startswith("imagenet"):
        c.epochs, c.batch_size = (90 if fraction == 1 else 500), 1024                           # [X]
    return c.lock()
