"""The notebooks are those that their generator writes, and they run from the first cell to the last."""

import base64
import importlib.util
import os

import jax
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from jupyter_client import KernelManager
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell
from PIL import Image
from sklearn.datasets import load_digits

from tests.processes import QUICK, ROOT

pytestmark = pytest.mark.slow

# Ten seconds instead of minutes: a network of one block and base width 8, one epoch of 20 images per class,
# one and two labels per class.
SMALL = (
    "epochs=1",
    "batch_size=64",
    "data.train_per_class=20",
    "optim.warmup_epochs=0",
    "model.width=0.125",
    "model.stem=imagenet",
    "eval_every_epochs=0",
    "checkpoint.best=",
    "evaluate.label_counts=(1,2)",
    "evaluate.label_draws=2",
    "evaluate.linear_l2=0.01",
)
CHANGES = " ".join(f"--config.{change}" for change in (*SMALL, "head.dim=16"))


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("colab_notebooks", ROOT / "colabs" / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name",
    (
        *(
            "simclr",
            "simclr_v2",
            "moco",
            "byol",
            "deit",
            "deepcluster",
            "beit",
            "noisy_student",
            "cmc",
            "cpc",
        ),
        "own_images",
    ),
)
def test_a_notebook_is_what_the_generator_writes(generator, name):
    assert generator.file(name).read_text() == generator.notebook(name), "run `python colabs/notebooks.py`"
    assert generator.notebook(name) == generator.notebook(name)


def first_cell(generator, folder, monkeypatch):
    """Runs the first cell in a folder without ssljax; returns what it gives to %pip, with names filled in."""
    (cell,) = [x for x in nbformat.reads(generator.notebook("simclr"), 4).cells if x.id == "install"]
    asked = []

    class Shell:
        def run_line_magic(self, name, line):
            asked.append(f"{name} {line}")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    names = {"get_ipython": Shell}
    exec(TransformerManager().transform_cell(cell.source), names)
    return asked[0].format(**names), names["KEPT"].read_text().split("\n")


def test_a_notebook_without_an_address_asks_for_it(generator, tmp_path, monkeypatch):
    monkeypatch.setattr(generator, "REPOSITORY", "")
    assert generator.badge("simclr") == ""
    with pytest.raises(ValueError, match=r"Set SOURCE .*git\+https://.*checkout; .*uploaded archive"):
        first_cell(generator, tmp_path, monkeypatch)


def test_a_notebook_with_an_address_installs_it_and_keeps_jax(generator, tmp_path, monkeypatch):
    monkeypatch.setattr(generator, "REPOSITORY", "https://github.com/OWNER/ssljax")
    asked, kept = first_cell(generator, tmp_path, monkeypatch)
    assert asked.startswith("pip install") and asked.endswith('"git+https://github.com/OWNER/ssljax"')
    assert f"jax=={jax.__version__}" in kept and any(x.startswith("jaxlib==") for x in kept)
    opens = "(https://colab.research.google.com/github/OWNER/ssljax/blob/main/colabs/own_images.ipynb)"
    assert opens in nbformat.reads(generator.notebook("own_images"), 4).cells[0].source


def test_a_notebook_of_a_checkout_installs_the_checkout(generator, tmp_path, monkeypatch):
    (tmp_path / "colabs").mkdir()
    (tmp_path / "ssljax").mkdir()
    (tmp_path / "ssljax/__init__.py").touch()
    asked, _ = first_cell(generator, tmp_path / "colabs", monkeypatch)
    assert asked.endswith('".."')


def test_own_images(kernel, generator, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i, digit in enumerate(load_digits().images[:64]):
        Image.fromarray((digit * 16).clip(0, 255).astype("uint8")).save(images / f"{i}.png")
    changes = "--config.epochs=1 --config.batch_size=16 --config.model.width=0.125 --config.head.dim=16"
    changes += " --config.optim.warmup_epochs=0 --config.model.name=resnet8"
    outputs, printed = executed(kernel, generator, tmp_path, "own_images", changes, SSLJAX_IMAGES=str(images))
    assert "64 images, 8 features each" in printed["embed"]
    assert "network.stablehlo" in printed["export"]
    assert float(printed["export"].split(" or more")[0].split()[-1]) > 0.9
    shows(outputs, tmp_path, preview="preview.png", neighbours="neighbours.png")


@pytest.mark.parametrize(
    ("name", "title", "changes"),
    (
        ("simclr", "SimCLR", ""),
        ("moco", "MoCo", ""),
        ("byol", "BYOL", "--config.head.hidden=32 --config.predictor.hidden=32"),
    ),
)
def test_from_the_first_cell_to_the_figure(kernel, generator, tmp_path, name, title, changes):
    outputs, printed = executed(kernel, generator, tmp_path, name, f"{CHANGES} {changes}")
    assert "step 4/4" in printed["train"]  # 200 // 64 + 1
    assert "random_init  knn, k=20: top-1" in printed["evaluate"]
    for text in ("raw pixels", "random network", title, "1 label per class", "2 labels per class"):
        assert text in printed["report"]
    shows(outputs, tmp_path, preview="preview.png", report="labels-digits.png")


def test_labels_that_the_network_gives_itself(kernel, generator, tmp_path):
    # DeepCluster's optimizer has no warm-up.
    changes = " ".join(f"--config.{change}" for change in SMALL if "warmup" not in change)
    changes += " --config.clusters.dim=8"
    outputs, printed = executed(kernel, generator, tmp_path, "deepcluster", changes)
    assert "refresh at step 0  kmeans_objective" in printed["train"] and "step 4/4" in printed["train"]
    assert "deepcluster  clusters: NMI" in printed["evaluate"]
    assert "NMI of clusters with labels" in printed["report"]
    shows(outputs, tmp_path, preview="preview.png", report="clusters-digits.png")


def test_views_with_a_network_each(kernel, generator, tmp_path):
    # CMC's optimizer has no warm-up.
    changes = " ".join(f"--config.{change}" for change in SMALL if "warmup" not in change)
    outputs, printed = executed(kernel, generator, tmp_path, "cmc", f"{changes} --config.bank.negatives=32")
    assert "step 4/4" in printed["train"]
    assert "cmc          knn, k=20: top-1" in printed["evaluate"]
    for text in ("raw pixels", "random network", "CMC", "2 labels per class"):
        assert text in printed["report"]
    shows(outputs, tmp_path, preview="preview.png", report="labels-digits.png")


def test_a_teacher_and_its_student(kernel, generator, tmp_path):
    resnet = ("model.width=0.125", "model.stem=imagenet")  # the student, a ViT, has neither
    changes = " ".join(f"--config.teacher.{change}" for change in SMALL)
    for change in SMALL:
        if change not in resnet:
            changes += f" --config.student.{change}"
    changes += " --config.student.teacher.width=0.125"
    outputs, printed = executed(kernel, generator, tmp_path, "deit", changes)
    assert printed["train"].count("step 4/4") == 2
    assert "classifier_distillation_token: top-1" in printed["evaluate"]
    for text in ("raw pixels", "DeiT", "own head", "distillation token's head"):
        assert text in printed["report"]
    shows(outputs, tmp_path, preview="student/preview.png", report="student/attention-digits.png")


def test_a_teacher_of_few_labels_and_its_student(kernel, generator, tmp_path):
    stages = ("pretrain", "finetune", "distill")
    changes = " ".join(f"--config.{stage}.{change}" for stage in stages for change in SMALL)
    changes += " --config.pretrain.head.dim=16 --config.finetune.head.dim=16"
    changes += " --config.distill.head.dim=16 --config.distill.teacher.width=0.125"
    outputs, printed = executed(kernel, generator, tmp_path, "simclr_v2", changes)
    assert printed["train"].count("step 4/4") == 2 and "step 2/2" in printed["train"]
    assert printed["evaluate"].count("simclr_v2    classifier: top-1") == 2
    for text in ("digits_self, stage pretrain", "digits_self, stage finetune", "raw pixels", "own head"):
        assert text in printed["report"]
    shows(outputs, tmp_path, preview="pretrain/preview.png", report="labels-digits_self-pretrain.png")


def test_a_tokenizer_and_a_transformer(kernel, generator, tmp_path):
    changes = "--config.tokenizer.epochs=1 --config.tokenizer.model.hidden=8 --config.tokenizer.batch_size=64"
    changes += " --config.pretrain.tokenizer.hidden=8 --config.pretrain.epochs=1 --config.finetune.epochs=1"
    changes += " --config.pretrain.eval_every_epochs=0 --config.pretrain.checkpoint.best="
    changes += " --config.pretrain.optim.warmup_epochs=0 --config.finetune.optim.warmup_epochs=0"
    changes += " --config.tokenizer.data.train_per_class=40 --config.pretrain.data.train_per_class=20"
    outputs, printed = executed(kernel, generator, tmp_path, "beit", changes)
    assert printed["train"].count("done: ") == 1
    assert "dvae         reconstruction: mean absolute error" in printed["evaluate"]
    assert "deit         classifier: top-1" in printed["evaluate"]
    for text in ("bits per token", "own head"):
        assert text in printed["report"]
    picture = "tokenizer/reconstruction-digits-tokenizer.png"
    shows(outputs, tmp_path, preview="pretrain/preview.png", report=picture)


def test_a_noised_student(kernel, generator, tmp_path):
    changes = "--config.teacher.epochs=2 --config.student.epochs=1 --config.student.augment.policy=none"
    small = ("name=resnet8", "width=0.125", "stem=imagenet")
    for section in ("teacher.model", "student.model", "student.teacher"):
        changes += "".join(f" --config.{section}.{setting}" for setting in small)
    for stage in ("teacher", "student"):
        changes += f" --config.{stage}.evaluate.corruption_images=16"
    outputs, printed = executed(kernel, generator, tmp_path, "noisy_student", changes)
    assert "refresh at step 0  pseudo_confidence" in printed["train"]
    assert printed["evaluate"].count("noisy_student classifier: top-1") == 2
    assert printed["evaluate"].count("noisy_student corruptions: mean error") == 2
    for text in ("stage teacher", "own head", "mean error under corruptions"):
        assert text in printed["report"]
    shows(outputs, tmp_path, preview="student/preview.png", report="corruptions-digits.png")


def test_patches_that_predict_each_other(kernel, generator, tmp_path):
    # CPC's optimizer has no warm-up.
    changes = " ".join(f"--config.{change}" for change in SMALL if "warmup" not in change)
    changes += " --config.context.blocks=1"
    outputs, printed = executed(kernel, generator, tmp_path, "cpc", changes)
    assert "step 4/4" in printed["train"] and "loss" in printed["train"]
    assert "random_init  knn, k=20: top-1" in printed["evaluate"]
    for text in ("raw pixels", "random network", "CPC v2", "2 labels per class"):
        assert text in printed["report"]
    shows(outputs, tmp_path, preview="preview.png", report="labels-digits.png")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """One kernel for all notebooks: each begins without names, but what is imported and compiled stays.

    The networks of the digits have one block each there.
    """
    manager = KernelManager(kernel_name="python3")
    environment = {
        **os.environ,
        "XLA_FLAGS": QUICK,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("xla")),
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(tmp_path_factory.mktemp("ipython")),
    }
    manager.start_kernel(env=environment, cwd=str(ROOT / "colabs"))
    yield manager
    manager.shutdown_kernel(now=True)


def executed(kernel, generator, folder, name, changes, **variables):
    """Runs a notebook. Returns the outputs of every cell, and what each cell printed."""
    book = nbformat.reads(generator.notebook(name), as_version=4)
    variables |= {"SSLJAX_RUN": str(folder / "run"), "SSLJAX_CHANGES": changes}
    fresh = ("%reset -f", "import os", "from tests.one_block import shrink", "shrink()")
    fresh = "\n".join((*fresh, f"os.environ.update({variables!r})"))
    book.cells.insert(0, new_code_cell(fresh, id="fresh"))
    NotebookClient(book, timeout=300, km=kernel).execute()
    outputs = {cell.id: cell.get("outputs", []) for cell in book.cells}
    printed = {name: "".join(out.get("text", "") for out in found) for name, found in outputs.items()}
    assert printed["install"] == ""  # ssljax is importable, so nothing was installed
    return outputs, printed


def shows(outputs, folder, **files):
    """Checks that each cell displays the picture that its verb wrote."""
    for cell, file in files.items():
        pictures = [out["data"] for out in outputs[cell] if "image/png" in out.get("data", {})]
        shown = base64.b64decode(pictures[0]["image/png"])
        assert shown == (folder / "run" / file).read_bytes()
        assert len(shown) > 10_000
