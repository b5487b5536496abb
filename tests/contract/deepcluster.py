"""DeepCluster's contract: sixteen clusters of few components."""

import chex

from tests.contract.case import carries

SMALL = {"clusters.k": 16, "clusters.dim": 8, "clusters.iterations": 2}


def oracle(case):
    """A step leaves the clusters alone; tests/methods/test_deepcluster.py checks what a clustering finds."""
    for before, _, after in carries(case):
        chex.assert_trees_all_equal(before.extra, after.extra)
    assert (case.states[0].extra.assignment >= 0).all()
