"""DeepCluster's contract: sixteen clusters of few components."""

import numpy as np

from tests.contract.case import carries, leaves

SMALL = {"clusters.k": 16, "clusters.dim": 8, "clusters.iterations": 2}


def oracle(case):
    """A step changes nothing of what the last clustering found; that is checked in tests/methods/test_deepcluster.py."""
    for before, _, after in carries(case):
        for (name, old), (_, new) in zip(leaves(before.extra), leaves(after.extra), strict=True):
            np.testing.assert_array_equal(old, new, err_msg=name)
    assert (case.states[0].extra.assignment >= 0).all()
