"""MoCo's contract: a queue of three steps, and v1's temperature, at which forty updates show."""

import chex
import numpy as np

from tests.contract.case import carries, follows

SMALL = {"queue.size": 96, "loss.temperature": 0.07}


def oracle(case):
    """Momentum towards the new parameters, keys in the next rows of the ring, statistics of f_k itself."""
    pointer = 0
    size = case.config.queue.size
    for before, carry, after in carries(case):
        follows(before.extra.key_params, after.params, case.config.target.momentum, after.extra.key_params)
        rows = (pointer + np.arange(len(carry.keys))) % size
        expected = before.extra.queue.keys.copy()
        expected[rows] = carry.keys
        np.testing.assert_allclose(after.extra.queue.keys, expected, rtol=1e-4, atol=1e-5)
        pointer = (pointer + len(rows)) % size
        assert after.extra.queue.pointer == pointer
        chex.assert_trees_all_close(after.extra.key_stats, carry.key_stats, rtol=1e-4, atol=1e-5)
