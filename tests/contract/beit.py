"""BEiT's contract: a small transformer, and a tokenizer of random weights."""

import chex

from tests.contract.case import carries

SMALL = {
    "model.name": "beit_one_block",
    "tokenizer.hidden": 8,
    "tokenizer.vocabulary": 16,
}


def oracle(case):
    """The tokenizer does not change by a bit."""
    for before, carry, after in carries(case):
        chex.assert_trees_all_equal(before.extra, after.extra, strict=True)
        assert carry == ()
