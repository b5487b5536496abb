"""The notebooks are what their generator writes, and they run from the first cell to the figure."""

import base64
import importlib.util
import os

import nbformat
import pytest
from nbclient import NotebookClient

from tests.processes import QUICK, ROOT

# Half a minute instead of a few: a network of 8 channels, one epoch, one and two labels a class.
CHANGES = ("--config.epochs=1 --config.batch_size=64 --config.optim.warmup_epochs=0 --config.model.width=0.125 "
           "--config.model.stem=imagenet --config.head.dim=16 --config.eval_every_epochs=0 --config.checkpoint.best= "
           "--config.evaluate.label_counts=(1,2) --config.evaluate.label_draws=2 --config.evaluate.linear_l2=0.01")


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("colab_notebooks", ROOT / "colabs" / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ("simclr", "moco", "byol"))
def test_the_notebook_is_the_generators(generator, name):
    assert generator.file(name).read_text() == generator.notebook(name), "run `python colabs/notebooks.py`"
    assert generator.notebook(name) == generator.notebook(name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "title", "changes"), (
    ("simclr", "SimCLR", ""), ("moco", "MoCo", ""), ("byol", "BYOL", "--config.head.hidden=32 --config.predictor.hidden=32")))
def test_from_the_first_cell_to_the_figure(generator, tmp_path, name, title, changes):
    book = nbformat.reads(generator.notebook(name), as_version=4)
    environment = {**os.environ, "SSLJAX_RUN": str(tmp_path / "run"), "SSLJAX_CHANGES": f"{CHANGES} {changes}", "XLA_FLAGS": QUICK,
                   "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"), "PYTHONPATH": str(ROOT),
                   "IPYTHONDIR": str(tmp_path / "ipython")}
    client = NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT / "colabs")}})
    client.execute(env=environment)
    outputs = {cell.id: cell.get("outputs", []) for cell in book.cells}
    printed = {name: "".join(out.get("text", "") for out in found) for name, found in outputs.items()}
    assert printed["install"] == ""                                             # ssljax is importable: nothing was installed
    assert "step 24/24" in printed["train"]                                     # 1,500 // 64 + 1
    assert "random_init  knn: top-1" in printed["evaluate"]
    for text in ("raw pixels", "random network", title, "1 label a class", "2 labels a class"):
        assert text in printed["report"]
    for cell, file in (("preview", "preview.png"), ("report", "labels-digits.png")):
        shown = [base64.b64decode(out["data"]["image/png"]) for out in outputs[cell] if "image/png" in out.get("data", {})]
        assert shown == [(tmp_path / "run" / file).read_bytes()] and len(shown[0]) > 10_000
