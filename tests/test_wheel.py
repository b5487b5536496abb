"""What `pip install` of the wheel brings: the package, its types, its configs, its licence."""

import os
import subprocess
import sys
import zipfile

import pytest

from tests.processes import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel of this checkout, unpacked into an empty folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools leaves its build folder beside setup.py
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in files.stdout.split("\n"):
        if name.startswith(("ssljax/", "configs/", "setup.py", "pyproject.toml", "README.md", "LICENSE")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), "."]
    subprocess.run(build, cwd=source, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_everything(installed):
    have = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "ssljax").rglob("*.py")}
    configs = {f"ssljax/{path.relative_to(ROOT)}" for path in (ROOT / "configs").glob("*.py")}
    assert package | configs | {"ssljax/py.typed"} <= have
    assert any(name.endswith("LICENSE") for name in have)
    top = {name.split("/")[0] for name in have}
    assert {name for name in top if not name.endswith(".dist-info")} == {"ssljax"}


def test_a_config_is_found_by_name_outside_the_repository(installed, tmp_path):
    def ssljax(*words):
        return subprocess.run(
            [sys.executable, "-m", "ssljax", *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
        )

    for name in ("simclr:digits", "configs/simclr.py:digits"):
        done = ssljax("config", "--config", name)
        assert done.returncode == 0, done.stderr
        assert "method = 'simclr'" in done.stdout
    done = ssljax("config", "--config", "simclrr:digits")
    assert done.returncode == 1
    names = "beit, byol, cmc, cpc, deepcluster, deit, detection, dvae, linear, moco"
    assert f"did you mean simclr? The names that it knows: {names}" in done.stderr
