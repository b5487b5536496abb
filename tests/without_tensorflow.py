"""Run what promises to work without TensorFlow in a process that cannot import it.

Of the methods only one of each kind: tests/test_arrows.py sees that no method imports TensorFlow.

    python -m tests.without_tensorflow FOLDER

Reads FOLDER/sorted (class folders) and FOLDER/loose, and writes FOLDER/runs. test_without_tensorflow.py runs
this program and checks its results.
"""

import importlib
import sys
from importlib.machinery import PathFinder
from pathlib import Path

BLOCKED = ("tensorflow", "tensorflow_datasets", "clu", "tensorboard")

# Two steps and a kNN evaluation of one-block networks. Nearly all of the time goes into compilation.
STEPS = {
    "batch_size": 64,
    "epochs": 1,
    "log_every": 1,
    "eval_every_epochs": 0,
    "checkpoint.every_steps": 1,
    "data.train_per_class": 12,
    "evaluate.knn_k": 5,
}
SLOW = {"optim.warmup_epochs": 0}  # a warm-up would be longer than the run
RESNET = {"model.name": "one_block", "model.width": 0.125, "model.stem": "imagenet"}
# A method that learns from annotated images: two steps, judged by what it finds.
BOXES = {"annotated.long_side": 32, "detector.precise_bn": 1}
FEW = {"batch_size": 8, "steps": 2, "log_every": 1, "checkpoint.every_steps": 1, "model.width": 0.125}
METHODS = ("simclr", "deit", "detection")
DEIT = {"student.model.name": "vit_one_block"} | {
    f"{stage}.{part}.{setting.split('.')[1]}": value
    for stage, part in (("teacher", "model"), ("student", "teacher"))
    for setting, value in RESNET.items()
}
# Images larger than 32 pixels, so that evaluation crops them.
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
    """A finder of modules that does not find the packages in BLOCKED."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            return None
        return super().find_spec(name, path, target)


def digits(method: str, workdir: Path) -> None:
    """Train every stage of the method's digits preset, and evaluate the last, by kNN if it can be."""
    from ssljax import evaluate, train

    config = importlib.import_module(f"configs.{method}").get_config("digits")
    stages = [f"{name}." for name in config.stages] if "stages" in config else [""]
    shared = STEPS if method == "deit" else STEPS | RESNET
    settings = {f"{stage}{name}": value for stage in stages for name, value in (shared | SLOW).items()}
    if method == "deit":
        settings |= DEIT
    if method == "detection":
        settings = FEW | SLOW | BOXES
    argv = [f"--config=configs/{method}.py:digits", f"--workdir={workdir}", *flags(settings)]
    train.main(argv)
    evaluate.main([*argv, f"--protocols={'detection' if method == 'detection' else 'knn'}"])


def photographs(root: Path) -> None:
    """Train on images without labels and evaluate on labelled ones, decoded by Pillow.

    Then try what needs labels or TensorFlow, and print how it is refused.
    """
    from ssljax import evaluate, preview, train

    def argv(
        source: str, labels: str = "folders", run: str = "photographs", paper: str = "simclr", **more: str
    ) -> list[str]:
        settings = PHOTOGRAPHS | {"data.source": source, "data.labels": labels}
        settings |= {key.replace("__", "."): value for key, value in more.items()}
        config = f"--config=configs/{paper}.py:cifar10_small"
        return [config, f"--workdir={root / 'runs' / run}", *flags(settings)]

    loose = f"folder:{root / 'loose'}"
    classes = f"folder:{root / 'sorted'}"
    train.main(argv(loose, "none"))
    evaluate.main([*argv(classes), "--protocols=knn"])
    evaluate.main([*argv(loose, "none"), f"--results={root / 'unlabelled' / 'results.jsonl'}"])
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
    from tests.methods.small import one_block

    with one_block():
        for method in METHODS:
            digits(method, root / "runs" / method)
        photographs(root)
    report.main([str(root / "runs" / "simclr")])
    print("imported:", [name for name in sys.modules if name.split(".")[0] in BLOCKED])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
