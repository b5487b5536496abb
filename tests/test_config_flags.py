"""The command line: overrides, messages before any slow import, and the verb `config`."""

import os
import subprocess
import sys

import pytest

from ssljax import cli
from ssljax import config as configs
from ssljax.config.__main__ import main as verb
from tests.test_config import ROOT, get

DIGITS = ["--config", "configs/simclr.py:digits", "--workdir=x"]


def parse(*words: str):
    return cli.parse("train", [*DIGITS, *words])


def test_overrides_take_the_type_of_their_key():
    flags = parse(
        "--config.optim.learning_rate=1",
        "--config.augment.mean=(0.5,)",
        "--noconfig.online_probe",
        "--config.seed",
        "7",
        "--config.epochs=40",
    )
    c = flags.config
    found = (c.optim.learning_rate, c.augment.mean, c.online_probe, c.seed, flags.workdir)
    assert found == (1.0, (0.5,), False, 7, "x")
    assert isinstance(c.optim.learning_rate, float) and c.is_locked
    # epochs=40 is what the preset says, so it is no override
    assert flags.overrides == {
        "optim.learning_rate": 1.0,
        "augment.mean": (0.5,),
        "online_probe": False,
        "seed": 7,
    }


@pytest.mark.parametrize("words", ["knn,linear", "('knn','linear')", "knn, linear"])
def test_words_of_a_list_need_no_quotes(words):
    found = parse(f"--config.evaluate.protocols={words}")
    assert found.config.evaluate.protocols == ("knn", "linear")
    assert found.overrides == {"evaluate.protocols": ("knn", "linear")}


def test_keys_that_the_preset_does_not_read_come_with_what_reads_them():
    c = parse(
        "--config.optim.name=lars",
        "--config.optim.trust_coefficient=0.01",
        "--config.views.two.blur_probability=0.5",
    ).config
    assert (c.optim.trust_coefficient, c.optim.lr_in_momentum) == (0.01, True) and "nesterov" not in c.optim
    assert c.views.two.blur_probability == 0.5 and c.augment.blur_sigma == (0.1, 2.0)


def test_stages_are_overridden_by_name():
    flags = cli.parse(
        "train",
        [
            "--config=configs/simclr.py:digits_finetune",
            "--workdir=x",
            "--config.finetune.optim.learning_rate=0.5",
        ],
    )
    c = flags.config
    assert (c.finetune.optim.learning_rate, c.pretrain.optim.learning_rate) == (0.5, 0.3)
    assert flags.overrides == {"finetune.optim.learning_rate": 0.5}


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["--config.optim.learning_rte=1"],
            r"--config.optim.learning_rte: no such setting; did you mean optim.learning_rate\?",
        ),
        (["--config.learning_rate=1"], r"did you mean optim.learning_rate\?"),
        (
            ["--config.optim=1"],
            r"--config.optim is a section: set its keys one by one, e.g. --config.optim.name",
        ),
        (["--config.data.views=3"], r"--config.data.views: no such setting any more; views have names now"),
        (["--config.data.num_ids=3"], r"no such setting any more; it is read from the data"),
        (
            ["--config.method=byol"],
            r"--config.method=byol: a method's settings come with its own presets, "
            r"e.g. --config byol:digits",
        ),
        (
            ["--config.optim.trust_coefficient=0.1"],
            r"nothing reads it in this recipe; it is read when optim.name is lars",
        ),
        (
            ["--config.views.one.min_area=0.1"],
            r"nothing reads it in this recipe; it is read when augment.crop is tf or torchvision",
        ),
        (["--config.epochs=x"], r"--config.epochs=x: invalid literal"),
        (["--config.batch_size=0"], r"config.batch_size=0 is not valid; it must be at least 1"),
        (["seed=1"], r"'seed=1' is no flag; overrides look like --config.seed=1"),
    ],
)
def test_a_wrong_word_is_answered_with_what_is_right(words, message):
    with pytest.raises(SystemExit, match=message):
        parse(*words)


@pytest.mark.parametrize("preset", ["simclr:digits", "simclr_v2:digits_self", "beit:digits"])
def test_a_run_needs_no_config_for_its_folder_has_it(tmp_path, preset):
    started = cli.parse("train", ["--config", preset, f"--workdir={tmp_path}"]).config
    *stages, last = started.get("stages", [""])
    key = f"{last}.seed".lstrip(".")
    with started.unlocked():
        (started[last] if last else started).seed = 3
    (tmp_path / "config.json").write_text(started.to_json())

    found = cli.parse("evaluate", ["--workdir", str(tmp_path)])
    assert configs.flat(found.config) == configs.flat(started)
    assert found.config.is_locked and found.overrides == {key: 3}  # as if --config.seed=3 had been typed

    again = cli.parse("evaluate", [f"--workdir={tmp_path}", f"--config.{key}=4"])
    assert again.overrides == {key: 4}


def test_a_missing_file_preset_or_flag_says_what_is_there():
    with pytest.raises(SystemExit, match="no file configs/simclrr.py .* did you mean configs/simclr.py"):
        cli.parse("train", ["--config=configs/simclrr.py:digits", "--workdir=x"])
    with pytest.raises(SystemExit, match="no preset 'digts'. Valid presets: digits"):
        cli.parse("train", ["--config=configs/simclr.py:digts", "--workdir=x"])
    with pytest.raises(SystemExit, match="--config is missing"):
        cli.parse("train", ["--workdir=x"])
    with pytest.raises(SystemExit, match="--config is missing, and x holds no run"):
        cli.parse("evaluate", ["--workdir", "x"])
    with pytest.raises(SystemExit, match="--workdir is missing"):
        cli.parse("train", DIGITS[:2])
    with pytest.raises(SystemExit, match="did you mean pretrain.optim.nesterov or finetune.optim.nesterov"):
        cli.parse(
            "train",
            ["--config=configs/simclr.py:digits_finetune", "--workdir=x", "--config.optim.nesterov=True"],
        )
    shared = ["--config.seed=7", "--config.data.source", "folder:x", "--config.finetune.seed=8"]
    words = ["--config=configs/simclr.py:digits_finetune", "--workdir=x", *shared]
    config = cli.parse("train", words).config
    assert (config.pretrain.seed, config.finetune.seed) == (7, 8)
    assert config.pretrain.data.source == config.finetune.data.source == "folder:x"


# Fails if a module that is slow to import is looked for before the answer is printed.
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        assert name.split(".")[0] not in ("jax", "flax", "numpy", "optax", "tensorflow"), name
sys.meta_path.insert(0, Blocked())
sys.argv = ["ssljax", *sys.argv[1:]]
from ssljax.__main__ import main
main()
"""


@pytest.mark.parametrize("name", ["train", "evaluate", "plan", "preview", "convert", "config"])
def test_a_wrong_value_is_answered_before_any_slow_import(name):
    words = [name, *DIGITS, "--config.batch_size=-8"]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *words],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    assert done.stderr.strip() == (
        f"ssljax {name}: config.batch_size=-8 is not valid; it must be at least 1 "
        "(images per step, over all devices)"
    )


def test_the_verb_prints_every_leaf_with_its_meaning(capsys):
    verb(["--config=configs/simclr.py:digits_finetune", "--config.pretrain.seed=3"])
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "[pretrain]" and "[finetune]" in out
    found = [line.split("   #")[0].rstrip() for line in out]
    assert "seed = 3" in found and "optim.learning_rate = 0.3" in found and "views = ('one', 'two')" in found
    temperature = next(line for line in out if line.startswith("loss.temperature = 0.35"))
    assert temperature.endswith("   # temperature of the similarities")


def test_the_verb_shows_how_two_configs_differ(capsys):
    verb(
        [
            "--config=configs/simclr.py:digits",
            "--diff=configs/simclr.py:digits_finetune",
            "--config.batch_size=50",
        ]
    )
    out = capsys.readouterr().out.splitlines()
    assert "epochs: 40 | 20" in out and "init_branches: absent | ('encoder',)" in out
    assert not any(line.startswith(("batch_size", "seed")) for line in out)
    verb(["--config=configs/simclr.py:digits", "--diff=configs/simclr.py:digits"])
    assert capsys.readouterr().out.strip() == ""
    with pytest.raises(SystemExit, match="--diff: .*no preset 'digts'"):
        verb(["--config=configs/simclr.py:digits", "--diff=configs/simclr.py:digts"])


MINE = """
from ssljax import config
def get_config():
    c = config.digits()
    c.method = "mine"
    c.bank = dict(size=4)
    return c
"""


def test_a_config_file_outside_the_repository_is_resolved_too(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    c = cli.parse("train", [f"--config={tmp_path}/mine.py", "--workdir=x", "--config.bank.size=8"]).config
    assert (c.method, c.bank.size, c.data.source) == ("mine", 8, "digits")
    assert c.model == get("simclr", "digits").model
