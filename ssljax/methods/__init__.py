"""The table of contents: `METHODS[config.method](config, facts)` builds a paper as pure functions."""

from collections.abc import Callable

from ml_collections import ConfigDict

from ssljax.methods.beit import beit
from ssljax.methods.byol import byol
from ssljax.methods.cmc import cmc
from ssljax.methods.cpc import cpc
from ssljax.methods.deepcluster import deepcluster
from ssljax.methods.deit import deit
from ssljax.methods.detection import detection
from ssljax.methods.dvae import dvae
from ssljax.methods.linear import linear
from ssljax.methods.moco import moco
from ssljax.methods.multilabel import multilabel
from ssljax.methods.noisy_student import noisy_student
from ssljax.methods.predictive import predictive
from ssljax.methods.segmentation import segmentation
from ssljax.methods.simclr import simclr
from ssljax.methods.simclr_v2 import simclr_v2
from ssljax.methods.supervised import supervised
from ssljax.types import Facts, Method

METHODS: dict[str, Callable[[ConfigDict, Facts], Method]] = {
    "simclr": simclr,
    "moco": moco,
    "byol": byol,
    "deepcluster": deepcluster,
    "deit": deit,
    "simclr_v2": simclr_v2,
    "supervised": supervised,
    "linear": linear,
    "dvae": dvae,
    "beit": beit,
    "noisy_student": noisy_student,
    "cmc": cmc,
    "cpc": cpc,
    "multilabel": multilabel,
    "detection": detection,
    "segmentation": segmentation,
    "predictive": predictive,
}
