"""Train and write the small networks that come with ssljax, ssljax/weights/*.npz.

    python experiments/weights.py --runs FOLDER [--only simclr-digits,...]

Each is the digits preset of a paper, narrowed so that its file has 26 to 55 KB. A network takes one to three
minutes on two cores. Started again, it goes on where it stopped; a network whose file is there is left alone.
It prints held-out kNN (k = 20) of the run and of the file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ssljax
from ssljax import results, weights
from ssljax.data import sources
from ssljax.protocols.knn import knn
from ssljax.run.folder import facts_of

RESNET = ("--config.model.width=0.125",)
VIT = ("--config.student.model.name=vit_xxs",)
BEIT = ("--config.pretrain.model.name=beit_xxs", "--config.finetune.model.name=beit_xxs")
EFFICIENTNET = ("teacher.model", "student.model", "student.teacher")

# Name of the config -> what is changed in its preset `digits`.
NETWORKS = {
    "simclr": RESNET,
    "moco": RESNET,
    "byol": RESNET,
    "deepcluster": RESNET,
    "deit": VIT,
    "simclr_v2": RESNET,
    "cmc": ("--config.model.width=0.09375",),
    "cpc": ("--config.model.width=0.1875",),
    "beit": BEIT,
    "noisy_student": tuple(f"--config.{section}.width=0.25" for section in EFFICIENTNET),
}


def accuracy(network: ssljax.network.Network) -> float:
    """Held-out kNN of a network on the digits, in percent."""
    features, labels = [], []
    for split in ("train", "test"):
        data = network.config.data.copy_and_resolve_references().unlock()
        data.update(labels_per_class=0, label_fraction=1.0, keep_unlabelled=False)
        source = sources.load(data, split)
        features.append(network.encode(source.images))
        labels.append(source.labels)
    found = knn(features[0], labels[0], features[1], labels[1], k=20, temperature=0.07, num_classes=10)
    return round(found["top1"], 1)


def make(config: str, overrides: tuple[str, ...], runs: Path) -> None:
    """Train one network and write its file, unless it is there."""
    name = f"{config}-digits"
    file = weights.FOLDER / f"{name}.npz"
    if file.exists():
        return
    words = ["--config", f"{config}:digits", *overrides]
    workdir = runs / name
    subprocess.run([sys.executable, "-m", "ssljax", "train", *words, "--workdir", str(workdir)], check=True)

    run = ssljax.load(str(workdir))
    facts = facts_of(run.workdir)
    assert facts is not None
    about = {
        "command": " ".join(["ssljax train", *words]),
        "commit": results.commit(),
        "data": "scikit-learn's digits, 1,500 to train on and 297 held out",
        "licence": "Apache-2.0",
        "knn": accuracy(run),
    }
    weights.pack(run.evaluated, facts, about, file)
    about["knn_of_the_file"] = accuracy(ssljax.load(f"ssljax://{name}"))
    weights.pack(run.evaluated, facts, about, file)
    print(
        f"{name}: {file.stat().st_size:,} bytes, kNN {about['knn']}, of the file {about['knn_of_the_file']}"
    )


def main() -> None:
    """Make all, or those of --only."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", required=True, type=Path, help="where the runs' folders lie")
    parser.add_argument("--only", default="", help="names, with commas between them")
    flags = parser.parse_args()
    for config, overrides in NETWORKS.items():
        if not flags.only or f"{config}-digits" in flags.only.split(","):
            make(config, overrides, flags.runs)


if __name__ == "__main__":
    main()
