"""CMC's contract: the rows of the batch, and no others, move; the constants are those of the first batch."""

import numpy as np

from tests.contract.case import carries

# At the paper's temperature of 0.07 bfloat16 would show in the loss.
SMALL = {
    "contrast.name": "nce",
    "bank.negatives": 32,
    "loss.temperature": 0.5,
    "model.split": ("luminance", "gradient"),
}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def oracle(case):
    """mu M + (1 - mu) v, scaled, in float64. The ids are those of the training split."""
    mu = case.config.bank.momentum
    split = case.config.model.split
    first = None
    for before, carry, after in carries(case):
        np.testing.assert_array_equal(after.extra.ids, case.source.index)
        for view in range(len(split)):
            old = before.extra.rows[view].astype(np.float64)
            v = carry.v[view].astype(np.float64)
            np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1.0, rtol=1e-5)
            index = carry.index[view]
            assert len(set(index.tolist())) == len(index)
            expected = old.copy()
            expected[index] = unit(mu * old[index] + (1 - mu) * v)
            np.testing.assert_allclose(after.extra.rows[view], expected, rtol=1e-4, atol=1e-5)
        off = ~np.eye(len(split), dtype=bool)
        assert (after.extra.z[off] > 0).all() and (np.diag(after.extra.z) == -1).all()
        if first is None:
            first = after.extra.z
            assert (before.extra.z == -1).all()
        np.testing.assert_array_equal(after.extra.z, first)
