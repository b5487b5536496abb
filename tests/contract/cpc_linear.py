"""CPC's linear evaluation: the encoder stands still, and the running statistics follow the grid."""

import chex

from tests.contract.case import carries

SMALL = {"model.name": "cpc_one_block", "model.width": 0.25}


def oracle(case):
    """The statistics are those that the step computed; nothing else changes."""
    for before, carry, after in carries(case):
        chex.assert_trees_all_equal(before.extra.params, after.extra.params, strict=True)
        chex.assert_trees_all_close(after.extra.model_state["head"], carry, rtol=1e-4, atol=1e-5)
        moved = (
            after.extra.model_state["head"]["norm"]["mean"] - before.extra.model_state["head"]["norm"]["mean"]
        )
        assert abs(moved).max() > 0
