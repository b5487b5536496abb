"""The contract of the linear evaluation: the backbone is frozen, statistics included."""

import chex

from tests.contract.case import carries

# The map of a layer at many places: on the few features of the small network forty updates hardly show.
SMALL = {"probe.layer": "group1", "probe.layer_dim": 2048}


def oracle(case):
    """No leaf of the backbone changes by a bit, and what the step passes on is nothing."""
    for before, carry, after in carries(case):
        chex.assert_trees_all_equal(before.extra, after.extra, strict=True)
        assert carry == () and after.model_state == {}
