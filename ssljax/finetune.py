"""`ssljax finetune`: fine-tune a run on data sets of the papers' transfer tables, rate and decay searched.

    ssljax finetune --run runs/mine --sets pets,flowers --data-root DIR --workdir runs/transfer \\
        [--rates 0.01,0.1] [--decays 0,1e-4] [--steps 20000] [--results FILE] [--config.batch_size=256 ...]

`all` stands for the twelve of docs/transfer.md; those that are not there are left out and named, and a folder
of another name in DIR is a data set of your own. For each, SimCLR's 7 learning rates and 8 weight decays are
tried on the validation split: the decays are divided by the rate. The best pair is trained again on training
and validation images, and that run alone sees the test images.

The recipe is configs/transfer.py, on the network, the image size and the pixels of the run. Every run has a
folder of its own, runs/transfer/pets/rate=0.01,decay=0.0001 and runs/transfer/pets/best, and after an
interruption the same command goes on. A run that fails is named, and the others go on. Accuracies on the
validation split are in runs/transfer/pets/results.jsonl, those on the test split in
runs/transfer/results.jsonl or FILE.

Without --run a random network is trained, the paper's baseline: 40,000 steps, and other rates and decays.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from ssljax import cli, results
from ssljax.config import flat
from ssljax.config.stored import of_run
from ssljax.data import sources, transfer
from ssljax.run.files import read_config
from ssljax.series import Asked, Interrupted, Steps, sweep

RATES = tuple(10.0**e for e in np.linspace(-4, -1, 7))  # SimCLR, appendix B.8; BYOL too
DECAYS = (0.0, *(10.0**e for e in np.linspace(-6, -3, 7)))
STEPS = 20_000

# The same for random weights.
RANDOM = (
    tuple(10.0**e for e in np.linspace(-3, 0, 7)),
    tuple(10.0**e for e in np.linspace(-5, -1.5, 8)),
    40_000,
)

# What the fine-tuned network must share with the run, besides `model`: how it sees an image.
PIXELS = (
    "data.image_size",
    "data.channels",
    "data.crop_on",
    "data.eval_crop",
    "augment.mean",
    "augment.std",
    "augment.color_space",
    "augment.resize",
    "augment.interpolation",
    "augment.antialias",
)


class Pair(NamedTuple):
    """A point of the grid.

    Attributes:
        rate: the learning rate.
        decay: the weight decay before it is divided by the rate.
    """

    rate: float
    decay: float

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"rate={self.rate:.3g},decay={self.decay:.3g}"

    def words(self) -> list[str]:
        """The flags of `ssljax train` that set it."""
        rate, decay = float(self.rate), float(self.decay / self.rate)
        return [f"--config.optim.learning_rate={rate!r}", f"--config.optim.weight_decay={decay!r}"]


def shared(run: str, preset: ConfigDict) -> list[str]:
    """The overrides that give a preset the network and the pixels of a run.

    Raises:
        ValueError: the folder holds no run, or one of several stages.
    """
    if not run:
        return []
    file = epath.Path(run) / "config.json"
    if not file.exists():
        raise ValueError(f"--run {run}: there is no run in this folder (no config.json)")
    trained = of_run(read_config(file))
    if "stages" in trained:
        names = ", ".join(os.path.join(run, name) for name in trained.stages)
        raise ValueError(f"--run {run} has stages: name the folder of one, {names}")
    theirs, ours = flat(trained), flat(preset)
    wanted = [key for key in theirs if key.startswith("model.") or key in PIXELS]
    words = []
    for key in wanted:
        value = tuple(theirs[key]) if isinstance(theirs[key], list) else theirs[key]
        if key != "model.bn_momentum" and ours.get(key) != theirs[key]:
            words.append(f"--config.{key}={value}".replace(" ", ""))
    return words


def recipe(name: str, run: str, root: str, words: Sequence[str], steps: int, split: str) -> list[str]:
    """The flags of `ssljax train` for a data set and one of its training splits, but for the pair.

    Args:
        name: of the data set.
        run: the folder of the pretrained network; "" for a random one.
        root: the folder of the data sets.
        words: overrides of the user.
        steps: how many.
        split: "train", which is judged on the validation split, or "train+validation".
    """
    preset = f"transfer:{name if name in transfer.SETS else 'own'}"
    data = [f"--config.data.source=transfer:{name}", f"--config.data.data_dir={root}"]
    data += [f"--config.data.train_split={split}"]
    data += [f"--config.data.test_split={'validation' if split == 'train' else 'test'}"]
    network = shared(run, cli.preset_of(preset))
    begin = ["--config", preset, *data, f"--config.init_from={run}", *network]
    config, _, _ = cli.load("finetune", [*begin, *words])  # a wrong setting is answered before the first run

    images = len(sources.load(config.data, "train"))
    per_epoch = images // config.batch_size
    if not per_epoch:
        raise ValueError(
            f"{name} has fewer training images than a batch of {config.batch_size}: lower --config.batch_size"
        )
    epochs = max(1, round(steps * config.batch_size / images))  # tables name them
    length = [f"--config.steps={steps}", f"--config.epochs={epochs}"]
    momentum = max(1 - 10 / per_epoch, 0.9)
    norms = [f"--config.model.bn_momentum={momentum!r}"] if "bn_momentum" in config.model else []
    return [*begin, *length, *norms, *words]


def best(file: epath.Path, grid: Sequence[Pair], name: str) -> tuple[Pair, results.Row]:
    """The pair with the best number on the validation split, the first of equals, and that number.

    Raises:
        ValueError: none was measured.
    """
    rows, _ = results.latest(results.read(file)) if file.exists() else ([], [])
    metric = transfer.SETS[name].metric if name in transfer.SETS else ""
    found: dict[Pair, results.Row] = {}
    for row in rows:
        if row["protocol"] != f"finetuned_{name}" or metric not in ("", row["metric"]):
            continue
        metric = row["metric"]
        at = row["settings"]["learning_rate"], row["settings"]["weight_decay"]
        for pair in grid:
            if at == (float(pair.rate), float(pair.decay / pair.rate)):
                found[pair] = row
    if not found:
        raise ValueError(
            f"no run of {name} was measured on its validation split (see {file.parent}/*/train.log)"
        )
    pair = max((pair for pair in grid if pair in found), key=lambda pair: found[pair]["value"])
    return pair, found[pair]


def one(name: str, flags: argparse.Namespace, words: Sequence[str], grid: Sequence[Pair]) -> list[str]:
    """Search, refit and judge on one data set.

    Returns:
        The names of the runs that failed.
    """
    search = recipe(name, flags.run, flags.data_root, words, flags.steps, "train")
    again = recipe(name, flags.run, flags.data_root, words, flags.steps, "train+validation")
    below = os.path.join(flags.workdir, name)
    results_of_all = flags.results or os.path.join(flags.workdir, "results.jsonl")
    failed = sweep(Steps(below, True, [], []), [Asked(p.name, [*search, *p.words()]) for p in grid])
    pair, row = best(epath.Path(below) / "results.jsonl", grid, name)
    print(f"{name}: best on {row['n']} validation images: {pair.name}, {row['metric']} {row['value']:.1f} %")
    final = Asked(os.path.join(name, "best"), [*again, *pair.words()])
    failed += sweep(Steps(flags.workdir, True, [], [], results_of_all), [final])
    if final.name not in failed:
        for found in results.latest(results.read(epath.Path(results_of_all)))[0]:
            if found["protocol"] == f"finetuned_{name}":
                print(
                    f"{name}: {found['metric']} {found['value']:.1f} % of {found['n']} test images",
                    flush=True,
                )
    return [each if each == final.name else os.path.join(name, each) for each in failed]


def numbers(text: str, flag: str, usual: Sequence[float]) -> Sequence[float]:
    """The numbers between the commas of a flag; the usual ones if it is empty."""
    try:
        return [float(each) for each in text.split(",")] if text else usual
    except ValueError:
        raise ValueError(f"--{flag} {text}: write numbers with commas between them, e.g. 0.01,0.1") from None


def asked(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the overrides of the recipe."""
    parser = argparse.ArgumentParser(prog="ssljax finetune", allow_abbrev=False)
    parser.add_argument("--run", default="", help="the folder of a run, of any method")
    parser.add_argument("--sets", required=True, help="data sets, with commas between them; all: the twelve")
    parser.add_argument("--data-root", default="", help="folder with a folder for each data set")
    parser.add_argument("--workdir", required=True, help="the folder of all runs")
    parser.add_argument("--rates", default="", help="learning rates")
    parser.add_argument("--decays", default="", help="weight decays, before they are divided by the rate")
    parser.add_argument("--results", default="", help="file of the measurements on the test splits")
    parser.add_argument("--steps", type=int, default=0, help="of every run, if not the paper's")
    return parser.parse_known_args(argv)


def main(argv: list[str] | None = None) -> None:
    """`ssljax finetune`."""
    flags, words = asked(argv)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    failed = []
    try:
        with cli.answered("finetune"):
            usual = (RATES, DECAYS, STEPS) if flags.run else RANDOM
            rates = numbers(flags.rates, "rates", usual[0])
            decays = numbers(flags.decays, "decays", usual[1])
            flags.steps = flags.steps or usual[2]
            grid = [Pair(rate, decay) for rate in rates for decay in decays]
            names = list(transfer.SETS) if flags.sets == "all" else flags.sets.split(",")
            absent = {name: why for name in names if (why := transfer.missing(name, flags.data_root))}
            for name, why in absent.items():
                print(f"leaves out {name}: {why}", flush=True)
            if len(absent) == len(names):
                raise ValueError("none of these data sets is there")
            for name in names:
                if name not in absent:
                    failed += one(name, flags, words, grid)
    except (KeyboardInterrupt, Interrupted):
        print("\nssljax finetune: stopped; the same command goes on", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    if failed:
        raise SystemExit(f"ssljax finetune: {len(failed)} runs failed: {'; '.join(failed)}")


if __name__ == "__main__":
    cli.run(main)
