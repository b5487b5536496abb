"""Runs the cheapest mutations, and checks that all of them fit the source. `make mutations` runs the rest."""

import re
import subprocess
import sys

import pytest

from tests import mutations

CHEAP = (
    "positive_is_the_next_row",
    "local_negatives",
    "gathered_side_without_gradient",
    "weight_decay_after_the_ratio",
    "seed_plus_epoch",
)


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda m: m.name)
def test_a_mutation_changes_the_source_and_names_tests_that_exist(mutation):
    assert mutations.mutated(mutation) != (mutations.ROOT / mutation.file).read_text()
    for test in mutation.tests.split():
        file, _, function = test.partition("::")
        text = (mutations.ROOT / file).read_text()
        assert not function or re.search(
            rf"^def {re.escape(function.partition('[')[0])}\(", text, re.MULTILINE
        ), test


def test_names_are_unique():
    names = [mutation.name for mutation in mutations.MUTATIONS]
    assert len(names) == len(set(names)) and set(CHEAP) < set(names)


def test_an_edit_that_does_not_fit_is_refused():
    mutation = mutations.MUTATIONS[0]
    with pytest.raises(ValueError, match="0 times, not once: 'absent'"):
        mutations.mutated(mutation._replace(old="absent"))
    with pytest.raises(ValueError, match="unreadable"):
        mutations.mutated(mutation._replace(new="- ("))


@pytest.mark.slow
@pytest.mark.parametrize("name", CHEAP)
def test_caught(name):
    (mutation,) = (m for m in mutations.MUTATIONS if m.name == name)
    assert mutations.survivor(mutation) == ""


@pytest.mark.slow
def test_a_survivor_and_a_crash_are_told_apart():
    harmless = mutations.MUTATIONS[0]._replace(new="- 1.0 * jnp.diagonal(positives)")
    assert mutations.survivor(harmless).startswith("SURVIVED")
    crash = mutations.MUTATIONS[0]._replace(new="- jnp.diagnoal(positives)")
    assert mutations.survivor(crash).startswith("crashed instead of computing something wrong")


@pytest.mark.slow
def test_an_unknown_name_lists_the_known_ones():
    done = subprocess.run(
        [sys.executable, "tests/mutations.py", "--only=typo"],
        cwd=mutations.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "no mutation 'typo'" in done.stderr and "mean_for_sum" in done.stderr
