"""SimCLRv2's contract: pretraining with a memory of three steps, which moves fast enough to be seen."""

import chex
import numpy as np

from tests.contract.case import carries, follows

SMALL = {"queue.size": 96, "target": {"momentum": 0.9}}


def oracle(case):
    """The average follows the new parameters; its embeddings of both views fill the ring, oldest first."""
    pointer = 0
    size = case.config.queue.size
    for before, carry, after in carries(case):
        follows(before.extra.params, after.params, case.config.target.momentum, after.extra.params)
        np.testing.assert_allclose(np.linalg.norm(carry.keys, axis=1), 1.0, rtol=1e-5)
        rows = (pointer + np.arange(2 * case.config.batch_size)) % size
        expected = before.extra.queue.keys.copy()
        expected[rows] = carry.keys
        np.testing.assert_allclose(after.extra.queue.keys, expected, rtol=1e-4, atol=1e-5)
        pointer = (pointer + len(rows)) % size
        assert after.extra.queue.pointer == pointer
        chex.assert_trees_all_close(after.extra.stats, carry.stats, rtol=1e-4, atol=1e-5)
