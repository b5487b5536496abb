"""Noisy Student's contract: a student on hard labels of a teacher of random weights."""

import chex
import numpy as np

from tests.contract.case import carries, follows

SMALL = {
    "model.name": "resnet8",  # its preset has an EfficientNet
    "model.width": 0.125,
    "teacher.name": "resnet8",
    "teacher.width": 0.125,
    "teacher.stem": "imagenet",
    "pseudo.ratio": 3,
    "pseudo.kind": "hard",
    "pseudo.label_smoothing": 0.0,
    "augment.policy": "none",
    "ema.decay": 0.9999,  # not reached in a few steps
}


def oracle(case):
    """The teacher and its labels do not change by a bit; the average follows the parameters more and more
    slowly."""
    for step, (before, _, after) in enumerate(carries(case)):
        chex.assert_trees_all_equal(before.extra.teacher, after.extra.teacher)
        chex.assert_trees_all_equal(before.extra.labels, after.extra.labels)
        decay = (1 + step) / (10 + step)
        follows(before.extra.ema.params, after.params, decay, after.extra.ema.params)
        follows(before.extra.ema.model_state, after.model_state, decay, after.extra.ema.model_state)
    labelled = case.source.labels >= 0
    probabilities = np.asarray(case.initial.extra.labels.probabilities)[case.source.index]
    np.testing.assert_allclose(probabilities.sum(1), np.where(labelled, 0.0, 1.0), atol=1e-5)
    for batch in case.batches:  # a quarter of every batch has labels, and it comes first
        assert (np.asarray(batch["label"])[:4] >= 0).all() and (np.asarray(batch["label"])[4:] < 0).all()
