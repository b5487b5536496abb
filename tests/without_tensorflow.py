"""What promises to do without TensorFlow, where there is none; test_without_tensorflow.py runs it and looks at what it leaves.

    python tests/without_tensorflow.py FOLDER        # reads FOLDER/sorted (class folders) and FOLDER/loose, writes beside
"""

import importlib
import sys
from importlib.machinery import PathFinder
from pathlib import Path

BLOCKED = ("tensorflow", "tensorflow_datasets", "clu", "tensorboard")

# Two steps and a kNN; a network of 8 channels where it is a ResNet.
STEPS = {"batch_size": 64, "epochs": 1, "log_every": 1, "eval_every_epochs": 0, "checkpoint.every_steps": 1, "data.train_per_class": 12,
         "optim.warmup_epochs": 0, "evaluate.knn_k": 5}
RESNET = {"model.name": "resnet8", "model.width": 0.125, "model.stem": "imagenet"}
OWN = {"moco": {"queue.size": 128}, "deepcluster": {"clusters.k": 16, "clusters.dim": 8, "clusters.iterations": 2},
       "deit": {"teacher.model.width": 0.125, "student.teacher.width": 0.125, "student.model.scan": True}}
# Larger than 32 pixels, so that evaluation crops.
PHOTOGRAPHS = STEPS | RESNET | {"batch_size": 16, "eval_every_epochs": 1, "data.train_per_class": 0, "data.crop_on": "device",
                                "data.num_classes": 0, "data.image_size": 40, "data.eval_crop": 0.875}


class Without(PathFinder):
    """Finds what an installation without BLOCKED has."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in BLOCKED else super().find_spec(name, path, target)


def digits(method: str, workdir: Path) -> None:
    """Every stage of the method's digits preset, and kNN on the last."""
    from ssljax import evaluate, train

    config = importlib.import_module(f"configs.{method}").get_config("digits")
    stages = [f"{name}." for name in config.stages] if "stages" in config else [""]
    shared = STEPS if method == "deit" else STEPS | RESNET
    settings = {f"{stage}{name}": value for stage in stages for name, value in shared.items()} | OWN.get(method, {})
    argv = [f"--config=configs/{method}.py:digits", f"--workdir={workdir}", *flags(settings)]
    train.main(argv)
    evaluate.main([*argv, "--protocols=knn"])


def photographs(root: Path) -> None:
    """A folder of classes and one without, decoded by Pillow; what needs labels or TensorFlow and has none says so."""
    from ssljax import evaluate, preview, train

    def argv(name: str, **changes: str) -> list[str]:
        settings = PHOTOGRAPHS | {"data.source": f"folder:{root / name}"} | {k.replace("__", "."): v for k, v in changes.items()}
        return ["--config=configs/simclr.py:cifar10_small", f"--workdir={root / 'runs' / name}", *flags(settings)]
    for name, labels in (("sorted", "folders"), ("loose", "none")):
        train.main(argv(name, data__labels=labels))
    evaluate.main([*argv("sorted"), "--protocols=knn"])
    preview.main(argv("loose", data__labels="none"))
    refused = ((evaluate, "loose", {"data__labels": "none"}), (train, "loose", {"data__labels": "none", "method": "supervised"}),
               (train, "sorted", {"data__crop_on": "host"}), (train, "sorted", {"data__source": "tfds:cifar10"}))
    for verb, name, changes in refused:
        try:
            verb.main([*argv(name, **changes), *(["--protocols=knn"] if verb is evaluate else [f"--workdir={root / 'runs' / 'refused'}"])])
        except SystemExit as error:
            print(f"refused: {error}", flush=True)


def flags(settings: dict) -> list[str]:
    return [f"--config.{name}={value}" for name, value in settings.items()]


def main(root: Path) -> None:
    sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
    from ssljax import report
    from ssljax.methods import METHODS

    for method in METHODS:
        digits(method, root / "runs" / method)
    photographs(root)
    report.main([str(root / "runs" / "simclr")])
    print("imported:", [name for name in sys.modules if name.split(".")[0] in BLOCKED])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
