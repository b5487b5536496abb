"""MoCo's contract: a queue of three steps, and v1's temperature, at which forty updates are felt."""

import numpy as np

from tests.contract.case import carries, close, follows

SMALL = {"queue.size": 96, "loss.temperature": 0.07}


def oracle(case):
    """Momentum towards the new parameters, the step's keys in the next rows of the ring, the key network's own statistics."""
    pointer, size = 0, case.config.queue.size
    for before, carry, after in carries(case):
        follows(before.extra.key_params, after.params, case.config.target.momentum, after.extra.key_params)
        rows = (pointer + np.arange(len(carry.keys))) % size
        expected = before.extra.queue.keys.copy()
        expected[rows] = carry.keys
        np.testing.assert_allclose(after.extra.queue.keys, expected, rtol=1e-4, atol=1e-5)
        pointer = (pointer + len(rows)) % size
        assert after.extra.queue.pointer == pointer
        close(after.extra.key_stats, carry.key_stats)
