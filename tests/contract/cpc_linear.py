"""CPC's linear evaluation: the encoder stands still, and the running statistics follow the grid."""

import chex

from tests.contract.case import carries

SMALL = {"model.name": "cpc_r8", "model.width": 0.0625, "optim.trust_coefficient": 0.1}


def oracle(case):
    """The statistics are those that the step computed; nothing else changes."""
    for before, carry, after in carries(case):
        chex.assert_trees_all_equal(before.extra.frozen, after.extra.frozen, strict=True)
        chex.assert_trees_all_close(after.extra.statistics, carry, rtol=1e-4, atol=1e-5)
        moved = after.extra.statistics["norm"]["mean"] - before.extra.statistics["norm"]["mean"]
        assert abs(moved).max() > 0
