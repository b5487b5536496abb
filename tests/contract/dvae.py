"""The contract of the dVAE: a small network, few codes, and temperatures that change within the steps."""

import chex
import numpy as np

from tests.contract.case import carries, follows

SMALL = {
    "model.name": "dvae",
    "model.groups": 2,
    "model.hidden": 8,
    "model.blocks": 1,
    "model.vocabulary": 16,
    "model.codebook": 8,
    "ema.decay": 0.9,
}


def oracle(case):
    """The average follows encoder and decoder; the map of pixels is that of DALL-E and stays."""
    for before, carry, after in carries(case):
        assert carry == ()
        follows(before.extra.ema.params, after.params, case.config.ema.decay, after.extra.ema.params)
        np.testing.assert_allclose(after.extra.input["pixels"], [0.8, 0.1], rtol=1e-6)
        chex.assert_trees_all_equal(before.extra.input, after.extra.input)
