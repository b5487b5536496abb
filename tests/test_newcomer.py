"""docs/newcomer.sh, as a newcomer runs it: a new environment, a folder of pictures, two small networks.

The pictures have 16 bits, and one is damaged.
"""

import json
import os
import re
import subprocess
import sysconfig

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.processes import BARE, QUICK, ROOT

SMALL = (
    *("--config.epochs=1", "--config.batch_size=16", "--config.data.image_size=16", "--config.head.dim=16"),
    *("--config.model.name=resnet8", "--config.model.width=0.125", "--config.model.stem=imagenet"),
    *("--config.eval_every_epochs=0", "--config.optim.warmup_epochs=0"),
    "--config.data.on_bad_image=skip",
)


@pytest.mark.slow
def test_from_a_folder_of_pictures_to_a_comparison_of_two_methods(tmp_path):
    digits = load_digits()
    for i in range(60):
        folder = tmp_path / "pictures" / str(digits.target[i] % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[i] * 15 * 257).astype("uint16")).save(folder / f"{i}.png")
    (folder / "damaged.png").write_text("no image")
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
    assert "60 images, 32 features each, 1 of 61 files left out" in done.stdout
    assert float(re.search(r"npz: (\S+) or more", done.stdout)[1]) > 0.9
    shown = np.asarray(Image.open(out / "neighbours.png").convert("L"))
    assert shown.size > 5000 and (shown < 50).mean() > 0.1  # the digits are bright on black
    for method in ("simclr", "moco"):
        lines = (out / method / "results.jsonl").read_text().splitlines()
        assert {json.loads(line).get("protocol") for line in lines} >= {"knn"}
        assert method in (out / "comparison" / "comparison.md").read_text()
