"""Training, evaluation and reports work where TensorFlow, clu and TensorBoard are not installed.

One process on one CPU device does everything; the tests check its results.
"""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ssljax.results import read
from tests.processes import ROOT, environment, logged
from tests.without_tensorflow import METHODS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder and what was printed, for 40 images of noise in two classes and the same without classes."""
    root = tmp_path_factory.mktemp("without")
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 100, (48, 50, 3)) + 150 * (i % 2)
        for path in (root / "sorted" / ("dark", "light")[i % 2], root / "loose" / ("", "2019/summer")[i % 2]):
            path.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path / f"{i:02}.png")
    process = subprocess.run(
        [sys.executable, "-m", "tests.without_tensorflow", str(root)],
        cwd=ROOT,
        env=environment(root / "xla") | {"PYTHONPATH": ""},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert process.returncode == 0, process.stdout
    return root, process.stdout


@pytest.mark.parametrize("method", [*METHODS, "photographs"])
def test_a_method_of_each_kind_trains_and_is_evaluated(done, method):
    root, printed = done
    run = root / "runs" / method / ("student" if method == "deit" else "")
    losses = [row["loss"] for row in logged(run) if "loss" in row]
    assert len(losses) >= 2 and np.isfinite(losses).all()
    found = {row["metric"]: row for row in read(run / "results.jsonl")}
    assert "tensorflow" not in printed.split("imported:")[1]
    assert (run / "metrics.jsonl").exists() and not (run / "tensorboard").exists()
    if method == "detection":
        assert {(row["protocol"], row["n"]) for row in found.values()} == {("detection", 99)}
        return
    assert found["top1"]["protocol"] == "knn"
    assert found["top1"]["n"] == (4 if method == "photographs" else 297)
    assert found["top1"]["value"] > 5


def test_images_without_labels_train_and_are_not_judged(done):
    root, _ = done
    run = root / "runs" / "photographs"
    rows = logged(run)
    assert len(rows) >= 2 and not any("knn" in row for row in rows)
    # config.checkpoint.best="knn" keeps the last checkpoint nevertheless.
    assert (run / "checkpoints" / "2").is_dir() and (run / "preview.png").exists()
    assert "no labels, so without knn, linear, label_fraction; neighbours of held-out" in done[1]
    assert [file.name for file in (root / "unlabelled").iterdir()] == ["gallery-cifar10_small.npz"]


def test_what_lacks_labels_or_tensorflow_says_so(done):
    refused = [line for line in done[1].splitlines() if line.startswith("refused:")]
    assert len(refused) == 4
    assert "knn judges by labels, and none of 36 train images has one" in refused[0]
    assert "supervised learns from labels" in refused[1] and "has none" in refused[1]
    for line in refused[2:]:
        assert "TensorFlow cannot be imported" in line
        assert "pip install" in line and "data.crop_on='device'" in line


def test_a_report_needs_no_tensorflow(done):
    folder = done[0] / "runs" / "simclr"
    assert "SimCLR" in (folder / "report.md").read_text() and (folder / "neighbours-digits.png").exists()
