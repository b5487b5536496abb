"""docs/newcomer.sh, as a newcomer runs it: a new environment, a folder of pictures, two small networks."""

import json
import os
import re
import subprocess
import sysconfig

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.processes import BARE, QUICK, ROOT

SMALL = (
    *("--config.epochs=1", "--config.batch_size=16", "--config.model.width=0.125", "--config.head.dim=16"),
    *("--config.eval_every_epochs=0", "--config.optim.warmup_epochs=0"),
)


@pytest.mark.slow
def test_from_a_folder_of_pictures_to_a_comparison_of_two_methods(tmp_path):
    digits = load_digits()
    for i in range(60):
        folder = tmp_path / "pictures" / str(digits.target[i] % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[i] * 15).astype("uint8")).save(folder / f"{i}.png")
    # ssljax is installed into the new environment; what it needs is that of this environment.
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(BARE), sysconfig.get_path("purelib")]),
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say: without isolation
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": QUICK,
    }
    done = subprocess.run(
        ["bash", str(ROOT / "docs" / "newcomer.sh"), "pictures", "out", *SMALL],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    (installed,) = out.glob("venv/lib/python*/site-packages/ssljax/__init__.py")
    assert "60 images, 64 features each" in done.stdout
    assert float(re.search(r"npz: (\S+) or more", done.stdout)[1]) > 0.9
    assert (out / "neighbours.png").stat().st_size > 5000
    for method in ("simclr", "moco"):
        lines = (out / method / "results.jsonl").read_text().splitlines()
        assert {json.loads(line).get("protocol") for line in lines} >= {"knn"}
        assert method in (out / "comparison" / "comparison.md").read_text()
