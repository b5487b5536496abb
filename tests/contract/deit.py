"""DeiT's contract: a transformer of the smallest size, a teacher of random weights, unsmoothed labels."""

import chex

from tests.contract.case import carries, follows

SMALL = {
    "model.name": "vit_one_block",
    "model.scan": True,
    "teacher.name": "one_block",
    "teacher.width": 0.125,
    "ema.decay": 0.9,
    "mix.label_smoothing": 0.0,
    "mix.mixup_alpha": 0.0,
    "distill.alpha": 0.1,
}


def oracle(case):
    """The teacher does not change by a bit; the average follows the parameters."""
    for before, _, after in carries(case):
        chex.assert_trees_all_equal(before.extra.teacher, after.extra.teacher)
        follows(before.extra.ema.params, after.params, case.config.ema.decay, after.extra.ema.params)
