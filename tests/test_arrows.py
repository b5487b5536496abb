"""Which part of the package may import which, checked on the import statements of the source."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ssljax"
STANDARD = set(sys.stdlib_module_names) | {"__future__"}
LIGHT = {"absl", "ml_collections", "jax", "numpy"}

# Part of the package -> (packages from outside, other parts) that it may import. Each may import itself.
ROOMS = {
    "losses": ({"jax", "optax"}, set()),
    "targets": ({"jax", "optax"}, {"losses"}),
    "models": ({"jax", "flax", "ml_collections"}, set()),
    "data": (
        LIGHT | {"tensorflow", "tensorflow_datasets", "array_record", "sklearn", "PIL", "tqdm", "pyarrow"},
        {"types", "config"},
    ),
    "methods": ({"jax", "ml_collections", "optax"}, {"types", "losses", "targets", "models", "data"}),
    "protocols": (LIGHT | {"optax", "sklearn", "threadpoolctl"}, {"types", "losses", "models", "data"}),
    "run": (
        LIGHT | {"orbax", "etils", "tqdm", "clu", "wandb", "mlflow"},
        {"types", "config", "results", "data", "protocols", "program", "sharding"},
    ),
    "compiler": (LIGHT | {"libtpu"}, set()),
    "pictures": (
        LIGHT | {"etils", "matplotlib", "PIL", "sklearn", "threadpoolctl"},
        {"types", "results", "models", "data", "protocols", "program"},
    ),
    "config": ({"ml_collections"}, {"cli"}),
    "convert": (
        LIGHT | {"flax", "safetensors", "torch"},
        {"types", "models", "data", "program", "run", "cli"},
    ),
    "results.py": ({"etils"}, {"config"}),
    "step.py": (LIGHT | {"optax"}, {"types", "accumulate"}),
    "types.py": (LIGHT | {"flax"}, set()),
}
VERBS = {"prepare", "train", "evaluate", "plan", "report", "preview", "embed", "compare", "sweep", "finetune"}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("ssljax.")}


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(file):
    names = imports(file)
    outside = {name.split(".")[0] for name in names} - STANDARD - {"ssljax"}
    room = file.relative_to(PACKAGE).parts[0]
    if room != "convert":
        assert "torch" not in outside
    if room != "models":
        assert not any(name.startswith(("flax.linen", "flax.nnx")) for name in names)
    if room not in ("data", "prepare.py"):
        assert not outside & {"tensorflow", "tensorflow_datasets"}
    assert not ours(names) & VERBS, "nothing imports a verb"
    if room in ROOMS:
        packages, rooms = ROOMS[room]
        assert outside <= packages, f"{outside - packages} may not be imported in {room}/"
        assert ours(names) <= rooms | {room}, (
            f"{room}/ may import {rooms}, not {ours(names) - rooms - {room}}"
        )


@pytest.mark.parametrize("file", sorted((PACKAGE / "methods").glob("*.py")), ids=lambda f: f.name)
def test_methods_see_only_the_augmentation_of_the_data_room_and_no_other_method(file):
    names = {name for name in imports(file) if name.startswith("ssljax.")}
    data = {name for name in names if name.startswith("ssljax.data")} - {"ssljax.data"}
    assert data <= {f"ssljax.data.{name}" for name in ("augment", "views", "mixing", "masking", "patches")}, (
        data
    )
    if file.name != "__init__.py":
        others = {name for name in names if name.startswith("ssljax.methods.")}
        builds_on = {"ssljax.methods.simclr", "ssljax.methods.simclr.simclr"}  # as its paper does
        assert others <= (builds_on if file.name == "simclr_v2.py" else set()), others


@pytest.mark.parametrize("file", sorted((PACKAGE.parent / "configs").glob("*.py")), ids=lambda f: f.name)
def test_configs_import_nothing_but_ml_collections_and_the_base(file):
    names = imports(file)
    assert {name.split(".")[0] for name in names} - STANDARD <= {"ml_collections", "ssljax"}
    assert {name for name in names if name.startswith("ssljax.")} <= {"ssljax.config"}
