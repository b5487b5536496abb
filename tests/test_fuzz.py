"""Random and nonsensical settings: a message that names the key and what is valid, or a sound program.

`python -m benchmarks.faults settings` tries more of them, and trains.
"""

import re

import pytest

from ssljax import cli, models
from ssljax.models import vit
from ssljax.models.resnet import Basic
from tests import fuzz


def short(value: object) -> str:
    """A test's id without blanks, which tests/mutations.py reads."""
    return re.sub(r"\W+", "_", str(value))[:30]


SHARE = 20  # mutations of each preset: 12 presets take 20 seconds


@pytest.mark.slow
@pytest.mark.parametrize("preset", fuzz.presets())
def test_random_settings_are_refused_clearly_or_built(preset, monkeypatch):
    """Networks of one or two blocks."""
    monkeypatch.setitem(models.BACKBONES, "resnet8", (Basic, (1, 1)))
    monkeypatch.setitem(vit.SIZES, "vit_xs", (64, 1, 4))
    found = [(words, fuzz.tried(preset, words).wrong) for words in fuzz.mutations(preset, 0, SHARE)]
    assert [(words, wrong) for words, wrong in found if wrong] == []


def test_the_fuzzer_notices_what_is_ignored_and_what_is_unclear():
    words = ["--config.optim.momentum=0.5"]
    config = cli.parse("train", ["--config=simclr:digits", "--workdir=x", *words]).config
    assert fuzz._ignored(config, words) == ""
    assert fuzz._ignored(config, ["--config.optim.momentum=0.6"]) == "config.optim.momentum is 0.5"
    assert "is not in the config" in fuzz._ignored(config, ["--config.optim.lag=1"])
    assert fuzz._unclear("momentum must be below 1", words) == ""
    assert "does not name the key" in fuzz._unclear("it must be below 1", words)
    assert "another library's" in fuzz._unclear("momentum: Python int too large to convert", words)


@pytest.mark.parametrize(
    "word, message",
    [
        ("augment.jitter_probability=1e99", r"jitter_probability=1e\+99 .* in \[0, 1\] and finite"),
        ("augment.erasing_probability=-1", r"erasing_probability=-1.0 .* in \[0, 1\]"),
        ("model.bn_momentum=-0.5", r"bn_momentum=-0.5 .* in \[0, 1\]"),
        ("optim.weight_decay=nan", r"weight_decay=nan .* at least 0 and finite, up to 3.4e\+38"),
        ("optim.weight_decay=inf", r"weight_decay=inf .* at least 0 and finite"),
        ("optim.learning_rate=1e39", r"learning_rate=1e\+39 .* at least 0 and finite"),
        ("loss.temperature=1e-300", r"temperature=1e-300 .* above 0 and at least 1.2e-38"),
        ("epochs=1180591620717411303424", r"epochs=1180591620717411303424 .* at most 2147483647"),
        ("seed=4294967296", r"seed=4294967296 .* in \[0, 4294967295\]"),
        ("evaluate.protocols=(1,)", r"protocols=\[1\] .* text without line breaks"),
        ("evaluate.label_counts=(1.5,)", r"label_counts=\[1.5\] .* at least 1 in every entry"),
        ("augment.mean=('x',)", r"mean=\['x'\] .* in \[0, 1\] in every entry"),
        ("augment.mean=(True,)", r"mean=\[True\] .* in \[0, 1\] in every entry"),
        ("augment.mean=((1,),)", r"mean=\(\(1,\),\): the entries must be numbers, words, True or False"),
        ("augment.mean=(None,)", r"mean=\(None,\): the entries must be numbers"),
        ("preset=a/b", r"preset='a/b' .* a name without / and line breaks"),
        ("init_from=a\nb", r"init_from='a\\nb' .* one line of text"),
        ("head.layers=0", r"head.layers=0 .* in \[1, 16\]"),
        ("evaluate.batch_size=2147483647", r"evaluate.batch_size=2147483647 .* in \[1, 65536\]"),
        ("optim.learning_rate=x", r"learning_rate=x: invalid literal; it must be a number \(peak learning"),
        ("augment.flip=yes", r"--config.augment.flip=yes: invalid literal; it must be True or False"),
        ("optim.scaling=" + "a" * 999, r"scaling='aaa.*\(1001 characters\) is not valid"),
        ("=1", r"--config. names no setting"),
        ("optim.learning_rate", r"--config.optim.learning_rate has no value"),
        ("stages=pretrain", r"--config.stages: no such setting"),
    ],
    ids=short,
)
def test_nonsense_is_answered_with_what_is_valid(word, message):
    with pytest.raises(SystemExit, match=message):
        cli.parse("train", ["--config=simclr:digits", "--workdir=x", f"--config.{word}"])


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["--config.augment.crop=tf", "--config.augment.min_area=0.9", "--config.augment.max_area=0.5"],
            "at most",
        ),
        (["--config.augment.crop=tf", "--config.augment.aspect=(2.0,0.5)"], "with 2 entries in rising order"),
        (["--config.augment.flip", "yes"], "write --config.augment.flip=True or --config.augment.flip=False"),
        (["--config.optim.learning_rate", "--config.seed=1"], "learning_rate has no value"),
        (["--noconfig.optim.momentum"], "momentum is not True or False: write --config.optim.momentum=VALUE"),
    ],
    ids=short,
)
def test_words_that_do_not_go_together_are_answered(words, message):
    with pytest.raises(SystemExit, match=message):
        cli.parse("train", ["--config=simclr:digits", "--workdir=x", *words])


@pytest.mark.parametrize(
    "word, message",
    [
        ("epochs=2147483647", r"config.epochs=2147483647 are \d+ steps, .* epochs must be at most"),
        (
            "evaluate.protocols=('knnn',)",
            r"config.evaluate.protocols names 'knnn': the protocols are knn, linear",
        ),
        ("augment.mean=(0.5,0.5)", r"mean=\(0.5, 0.5\) has 2 entries, and data.channels=1"),
        (
            "data.image_size=4096",
            r"1500 images of 4096x4096x1 would take 23.4 GiB .* a smaller data.image_size",
        ),
        ("data.crop_on=host", r"^augment.crop='affine' does not work with data.crop_on='host': use 'tf'"),
        ("data.train_per_class=147", r"ask for at most 146 \(data.train_per_class"),
    ],
    ids=short,
)
def test_what_only_the_data_and_the_program_show_is_answered_too(word, message):
    refused = fuzz.tried("configs/simclr.py:digits", [f"--config.{word}"]).refused
    assert re.search(message, refused), refused
