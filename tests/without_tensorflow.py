"""What promises to do without TensorFlow, where there is none; test_without_tensorflow.py runs it and looks at what it leaves.

python -m tests.without_tensorflow FOLDER        # reads FOLDER/sorted (class folders) and FOLDER/loose, writes beside
"""

import importlib
import sys
from importlib.machinery import PathFinder
from pathlib import Path

BLOCKED = ("tensorflow", "tensorflow_datasets", "clu", "tensorboard")

# Two steps and a kNN of networks of one block: nearly all of the time goes into compiling.
STEPS = {
    "batch_size": 64,
    "epochs": 1,
    "log_every": 1,
    "eval_every_epochs": 0,
    "checkpoint.every_steps": 1,
    "data.train_per_class": 12,
    "evaluate.knn_k": 5,
}
SLOW = {"optim.warmup_epochs": 0}  # a warm-up would be longer than the run; DeepCluster has none
RESNET = {"model.name": "one_block", "model.width": 0.125, "model.stem": "imagenet"}
OWN = {
    "moco": {"queue.size": 128},
    "deepcluster": {"clusters.k": 16, "clusters.dim": 8, "clusters.iterations": 2},
    "deit": {"student.model.name": "vit_one_block"}
    | {
        f"{stage}.{part}.{setting.split('.')[1]}": value
        for stage, part in (("teacher", "model"), ("student", "teacher"))
        for setting, value in RESNET.items()
    },
}
# Larger than 32 pixels, so that evaluation crops.
PHOTOGRAPHS = (
    STEPS
    | RESNET
    | SLOW
    | {
        "batch_size": 16,
        "eval_every_epochs": 1,
        "data.train_per_class": 0,
        "data.crop_on": "device",
        "data.image_size": 40,
        "data.eval_crop": 0.875,
    }
)


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
    shared = shared if method == "deepcluster" else shared | SLOW
    settings = {f"{stage}{name}": value for stage in stages for name, value in shared.items()} | OWN.get(
        method, {}
    )
    argv = [f"--config=configs/{method}.py:digits", f"--workdir={workdir}", *flags(settings)]
    train.main(argv)
    evaluate.main([*argv, "--protocols=knn"])


def photographs(root: Path) -> None:
    """Trained on images without labels, judged on labelled ones, decoded by Pillow; what needs labels or TensorFlow says so."""
    from ssljax import evaluate, preview, train

    def argv(
        source: str, labels: str = "folders", run: str = "photographs", paper: str = "simclr", **more: str
    ) -> list[str]:
        settings = (
            PHOTOGRAPHS
            | {"data.source": source, "data.labels": labels}
            | {k.replace("__", "."): v for k, v in more.items()}
        )
        return [
            f"--config=configs/{paper}.py:cifar10_small",
            f"--workdir={root / 'runs' / run}",
            *flags(settings),
        ]

    loose, classes = f"folder:{root / 'loose'}", f"folder:{root / 'sorted'}"
    train.main(argv(loose, "none"))
    evaluate.main([*argv(classes), "--protocols=knn"])
    preview.main(argv(loose, "none"))
    refused = (
        (evaluate.main, [*argv(loose, "none"), "--protocols=knn"]),
        (train.main, argv(loose, "none", "refused", "supervised")),
        (train.main, argv(classes, run="refused", data__crop_on="host")),
        (train.main, argv("tfds:cifar10", run="refused")),
    )
    for verb, arguments in refused:
        try:
            verb(arguments)
        except SystemExit as error:
            print(f"refused: {error}", flush=True)


def flags(settings: dict) -> list[str]:
    return [f"--config.{name}={value}" for name, value in settings.items()]


def main(root: Path) -> None:
    sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
    from ssljax import report
    from ssljax.methods import METHODS
    from ssljax.models import vit
    from tests.methods.small import one_block

    vit.SIZES["vit_one_block"] = (16, 1, 2)
    with one_block():
        for method in METHODS:
            digits(method, root / "runs" / method)
        photographs(root)
    report.main([str(root / "runs" / "simclr")])
    print("imported:", [name for name in sys.modules if name.split(".")[0] in BLOCKED])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
