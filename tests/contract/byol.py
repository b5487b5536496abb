"""BYOL's contract: narrow heads."""

import chex
import numpy as np

from tests.contract.case import carries, follows

SMALL = {"head.hidden": 32, "predictor.hidden": 32, "epochs": 2}  # in which tau moves


def oracle(case):
    """tau follows the cosine, the target moves towards the new parameters and keeps its own statistics."""
    base = case.config.target.momentum
    total = len(case.source) * case.config.epochs // case.config.batch_size
    for step, (before, carry, after) in enumerate(carries(case)):
        tau = 1 - (1 - base) * (1 + np.cos(np.pi * step / total)) / 2
        follows(before.extra.target_params, after.params, tau, after.extra.target_params)
        chex.assert_trees_all_close(after.extra.target_stats, carry, rtol=1e-4, atol=1e-5)
