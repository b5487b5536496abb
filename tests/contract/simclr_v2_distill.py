"""The contract of SimCLRv2's distillation: a teacher of random weights, so labels carry most of the loss."""

import chex

from tests.contract.case import carries

SMALL = {"teacher.width": 0.125, "distill.alpha": 0.1, "optim.learning_rate": 6e-3}


def oracle(case):
    """The teacher does not change by a bit, statistics included."""
    for before, carry, after in carries(case):
        chex.assert_trees_all_equal(before.extra, after.extra, strict=True)
        assert carry == ()
