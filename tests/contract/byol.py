"""BYOL's contract: narrow heads."""

import numpy as np

from tests.contract.case import carries, close, follows

SMALL = {"head.hidden": 32, "predictor.hidden": 32}


def oracle(case):
    """tau on its cosine from the step's own number, towards the new parameters; the target's own statistics."""
    base, total = case.config.target.momentum, len(case.source) * case.config.epochs // case.config.batch_size
    for step, (before, carry, after) in enumerate(carries(case)):
        tau = 1 - (1 - base) * (1 + np.cos(np.pi * step / total)) / 2
        follows(before.extra.target_params, after.params, tau, after.extra.target_params)
        close(after.extra.target_stats, carry)
