"""DeiT's contract: a transformer of the smallest size under a teacher of random weights; nothing that smooths the labels."""

import numpy as np

from tests.contract.case import carries, follows, leaves

SMALL = {
    "model.name": "vit_xs",
    "model.scan": True,
    "teacher.width": 0.125,
    "ema.decay": 0.9,
    "mix.label_smoothing": 0.0,
    "mix.mixup_alpha": 0.0,
    "distill.alpha": 0.1,
}


def oracle(case):
    """The teacher stays to the bit; the average follows parameters and running statistics."""
    for before, _, after in carries(case):
        for (name, old), (_, new) in zip(
            leaves(before.extra.teacher), leaves(after.extra.teacher), strict=True
        ):
            np.testing.assert_array_equal(old, new, err_msg=name)
        follows(before.extra.ema.params, after.params, case.config.ema.decay, after.extra.ema.params)
