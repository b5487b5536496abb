"""The table of keys: resolving recipes, comparing runs, and messages about wrong settings."""

import importlib
import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from ssljax import config
from ssljax.config.keys import FACTS, KEYS, VIEW_COUNTS, row
from ssljax.config.rules import live, reader
from tests import old_configs

ROOT = Path(__file__).parent.parent
PAPERS = [path.stem for path in sorted((ROOT / "configs").glob("*.py"))]
OLD_RUNS = old_configs.read()


def get(paper: str, preset: str) -> ConfigDict:
    return importlib.import_module(f"configs.{paper}").get_config(preset)


def digits(**changes) -> ConfigDict:
    """SimCLR's digits preset with some keys set, `__` for the dot; neither resolved nor checked."""
    c = get("simclr", "digits").unlock()
    for name, value in changes.items():
        config.put(c, name.replace("__", "."), value)
    return c


# ----------------------------------------------------------------------------------------------- every preset


@pytest.mark.parametrize("paper", PAPERS)
def test_every_preset_is_resolved_locked_and_says_its_name(paper):
    for preset in importlib.import_module(f"configs.{paper}").PRESETS:
        c = get(paper, preset)
        assert c.is_locked, preset
        assert config.resolve(c).to_json() == c.to_json(), preset
        for stage in config.stages(c).values():
            assert (stage.name, stage.preset) == (paper, preset)
            leaves = config.flat(stage)
            assert all(row(name) for name in leaves), preset  # the table knows every key of these papers
            assert all(live(name, leaves) for name in leaves), preset


@pytest.mark.parametrize(("paper", "times"), [("simclr", 2), ("moco", 2), ("byol", 4)])
def test_lightlys_recipe_makes_lightlys_updates(paper, times):
    """`times` is our loss over lightly's, which is a mean over both views, directions or cosines.

    lightly's cifar10_benchmark.py: SGD at 0.06 B / 128, a weight decay of 5e-4, on all parameters.
    """
    c = get(paper, "cifar10_lightly")
    assert c.optim.scaling == "linear"  # B / 256
    assert c.optim.learning_rate * times == pytest.approx(0.06 * 256 / 128)
    assert c.optim.weight_decay / times == pytest.approx(5e-4)


@pytest.mark.parametrize("name", OLD_RUNS)
def test_runs_of_older_versions_resume(name):
    """A config.json of commit 95830fc, or of its preset's first, differs only where a setting is changed."""
    old = OLD_RUNS[name]
    stages = config.stages(get(name.split("-")[0], old["preset"]))
    new = stages[name.split("-")[2] if "" not in stages else ""]
    assert config.differences(old, new) == []
    again = json.loads(new.to_json())
    assert config.differences(again, new) == []
    changed = new.copy_and_resolve_references().unlock()
    changed.optim.learning_rate = 0.123
    changed.augment.min_area = 0.5  # nothing reads it: the digits are warped, not cropped
    found = config.differences(old, config.resolve(changed))
    assert found == [("optim.learning_rate", old["optim"]["learning_rate"], 0.123)]


def test_all_digits_presets_are_among_the_older_runs():
    stages = set()
    for paper in PAPERS:
        presets = importlib.import_module(f"configs.{paper}").PRESETS
        for preset in (name for name in presets if name.startswith("digits")):
            names = config.stages(get(paper, preset))
            stages |= {"-".join(filter(None, (paper, preset, stage))) for stage in names}
    assert stages == set(OLD_RUNS)


# ---------------------------------------------------------------------------------------------------- resolve


def test_resolve_adds_what_is_read_and_drops_what_is_not():
    c = config.resolve(digits(optim__name="lars", augment__jitter_probability=0.0))
    assert (c.optim.trust_coefficient, c.optim.lr_in_momentum, c.optim.momentum) == (0.001, True, 0.9)
    assert "nesterov" not in c.optim
    assert "jitter_strength" not in c.augment
    assert "blur_sigma" not in c.augment


def test_one_view_may_switch_on_an_operation_that_is_off_for_the_others():
    c = digits(views={"one": {}, "two": {"blur_probability": 0.1, "solarize_threshold": 0.3}})
    c = config.resolve(c)
    assert c.augment.blur_sigma == (0.1, 2.0)  # view two blurs with these
    assert c.views.to_dict() == {"one": {}, "two": {"blur_probability": 0.1}}  # it does not solarise


def test_what_the_table_does_not_know_stays_as_it_is():
    """A new method, network and optimizer need no rows: their own keys and the known keys stay."""
    c = digits(
        method="new",
        bank={"size": 7},
        head={"layers": 1, "mine": 2},
        model={"name": "convnext", "width": 2.0, "kernel": 7},
        optim={"name": "shampoo", "momentum": 0.5, "block": 128},
    )
    c = config.resolve(c)
    assert c.bank.to_dict() == {"size": 7}
    assert c.head.to_dict() == {"layers": 1, "mine": 2}
    assert c.model.to_dict() == {"name": "convnext", "width": 2.0, "kernel": 7, "dtype": "bfloat16"}
    assert c.optim.to_dict() == {
        "name": "shampoo",
        "momentum": 0.5,
        "block": 128,
        "learning_rate": 0.1,
        "scaling": "linear",
        "weight_decay": 0.0,
    }
    config.check(c)


def test_views_keep_their_order_through_copies_and_json():
    """A ConfigDict iterates in the order of the names, but views keep the order of the config."""
    c = digits(views={"two": {}, "one": {"min_area": 0.3}}, augment__crop="torchvision")
    c = config.resolve(c).lock()
    assert config.view_names(c) == config.view_names(c.copy_and_resolve_references()) == ("two", "one")
    assert config.flat(json.loads(c.to_json()))["views"] == config.flat(c)["views"] == ["two", "one"]
    other = config.resolve(digits(views={"one": {"min_area": 0.3}, "two": {}}, augment__crop="torchvision"))
    assert config.differences(json.loads(c.to_json()), other) == [("views", ["two", "one"], ["one", "two"])]
    assert config.hashed(c) != config.hashed(other)


# ----------------------------------------------------------------------------------- differences and the hash


def test_a_new_option_at_its_default_changes_no_hash_and_no_run(monkeypatch):
    c = get("simclr", "digits")
    old = json.loads(c.to_json())
    before = config.hashed(c)
    monkeypatch.setitem(KEYS, "optim.clip", KEYS["optim.momentum"]._replace(name="optim.clip", default=0.0))

    new = config.resolve(c)
    assert new.optim.clip == 0.0
    assert config.hashed(new) == before
    assert config.differences(old, new) == []

    new.optim.clip = 0.5
    assert config.hashed(new) != before
    assert config.differences(old, new) == [("optim.clip", 0.0, 0.5)]


def test_the_hash_covers_what_results_depend_on():
    before = config.hashed(digits())
    for same in (
        dict(seed=3),
        dict(log_every=7),
        dict(data__data_dir="/x"),
        dict(data__num_classes=10),
        dict(checkpoint__keep=9),
    ):
        assert config.hashed(digits(**same)) == before, same
    for other in (
        dict(epochs=41),
        dict(data__source="folder:/a/b"),
        dict(own={"key": 1}),
        dict(views={"one": {}}),
    ):
        assert config.hashed(digits(**other)) != before, other
    here, there = (digits(data__source=f"folder:/{place}/photos") for place in "ab")
    assert config.hashed(here) == config.hashed(there)


def test_keys_of_older_versions_are_translated():
    old = {
        "data": {"views": 2, "num_ids": 9, "num_classes": 10, "num_examples": 5, "source": "digits"},
        "init_head": True,
    }
    assert config.modern(old) == {
        "data.source": "digits",
        "views": ["one", "two"],
        "init_branches": ["encoder", "head"],
    }
    student = {"init_head": True, "model": {"distillation": True}}
    assert config.modern(student)["init_branches"] == ["encoder", "head", "distillation_head"]
    assert config.modern({"init_head": False}) == {"init_branches": ["encoder"]}


def test_a_key_that_only_the_old_run_has_counts_unless_nothing_reads_it_today():
    c = config.resolve(digits())
    old = json.loads(c.to_json())
    old["optim"]["trust_coefficient"] = 0.5  # a key of another optimizer
    assert config.differences(old, c) == []
    old["bank"] = {"size": 4}
    old["views"]["two"]["min_area"] = 0.2
    assert config.differences(old, c) == [("bank.size", 4, "absent"), ("views.two.min_area", 0.2, "absent")]
    assert not {name for name, *_ in config.differences({}, c)} & set(FACTS)


# ------------------------------------------------------------------------------------------------- the checks


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("batch_size", -8, r"config.batch_size=-8 is not valid; it must be at least 1"),
        ("batch_size", 0, r"batch_size=0 is not valid"),
        ("epochs", -3, r"epochs=-3 .* at least 1 \(passes over the training images\)"),
        ("epochs", 2.5, r"epochs=2.5 is of type float, but it must be a whole number"),
        ("accumulate", 0, r"accumulate=0 .* at least 1"),
        ("loss.temperature", -1.0, r"loss.temperature=-1.0 .* above 0"),
        ("data.label_fraction", 10.0, r"label_fraction=10.0 .* in \(0, 1\]"),
        ("data.channels", 2, r"channels=2 .* one of 1, 3"),
        ("model.dtype", "fp16", r"model.dtype='fp16' .* one of float32, bfloat16; did you mean bfloat16\?"),
        ("augment.flip", 1, r"augment.flip=1 is of type int, but it must be True or False"),
        ("augment.grayscale_probability", 1.5, r"grayscale_probability=1.5 .* in \[0, 1\]"),
        ("augment.std", (1.0, 0.0), r"augment.std=\[1.0, 0.0\] .* above 0 in every entry"),
        ("augment.jitter_strength", float("nan"), r"jitter_strength=nan is not valid"),
        ("seed", True, r"seed=True is of type bool"),
        ("evaluate.linear", "lbgfs", r"did you mean lbfgs\?"),
        ("views.three", {}, r"config.views has 3 views \(one, two, three\), but method 'simclr' takes 2"),
        ("views.two.count", 2, r"has 3 views .* takes 2"),
        (
            "views.two.blur_probabilty",
            0.5,
            r"views.two.blur_probabilty: a view has no such setting; did you mean blur_probability\?",
        ),
        ("views.two.of", "three", r"views.two.of='three' does not name another view; the views are one, two"),
        ("views.two.min_area", 2.0, r"views.two.min_area=2.0 .* in \(0, 1\]"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_valid(key, value, message):
    *sections, last = key.split(".")
    tree = section = json.loads(digits().to_json())  # a ConfigDict itself refuses some types
    for name in sections:
        section = section[name]
    section[last] = value
    with pytest.raises(ValueError, match=message):
        config.check(ConfigDict(tree))


def test_the_table_and_the_methods_agree_on_the_number_of_views():
    """The table checks it before JAX is imported, the methods when a program is built."""
    from ssljax.methods import METHODS
    from ssljax.types import Facts

    for paper in PAPERS:
        presets = importlib.import_module(f"configs.{paper}").PRESETS
        for preset in (name for name in presets if "digits" in name):
            for stage in config.stages(get(paper, preset)).values():
                read = reader(config.flat(stage), "")
                table = [count for when, count in VIEW_COUNTS if when.holds(read)] or [0]
                assert table == [METHODS[stage.method](stage, Facts(1500, 10, 1500)).num_views], preset


def test_a_stage_is_named_with_its_key():
    c = get("simclr", "digits_finetune").unlock()
    c.finetune.batch_size = 0
    with pytest.raises(ValueError, match="config.finetune.batch_size=0"):
        config.check(c)


def test_an_unknown_preset_is_answered_with_the_valid_ones():
    message = r"configs/moco.py has no preset 'v4'. Valid presets: digits, digits_v3"
    with pytest.raises(ValueError, match=message):
        get("moco", "v4")
    with pytest.raises(ValueError, match=r"Did you mean imagenet_r50_1pct or .*\?$"):
        get("simclr_v2", "imagenet_r50_1pc")


# -------------------------------------------------------------------------------------------------- the table


def test_the_page_is_written_from_the_table():
    page = (ROOT / "docs" / "config.md").read_text()
    assert page == config.reference(), "run `ssljax config --keys > docs/config.md`"


def test_the_base_has_every_key_that_is_always_read():
    c = config.base()
    always = {name for name, key in KEYS.items() if not key.when.text and not name.startswith("views.")}
    assert always <= set(config.flat(c))
    assert config.resolve(c).to_json() == c.to_json()
    assert config.changed(c) == {}
    for name, key in KEYS.items():
        if not name.startswith("views") and key.valid is not None:  # every default is itself valid
            config.check(digits(**{name.replace(".", "__"): key.default}))
