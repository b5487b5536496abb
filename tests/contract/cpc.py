"""CPC's contract: pretraining with a moving average that is seen to move."""

import chex

from tests.contract.case import carries, follows

SMALL = {
    "model.name": "cpc_one_block",
    "model.width": 0.25,
    "context.blocks": 1,
    "context.hidden": 64,
    "context.target_dim": 64,
    "data.image_size": 12,
    "cpc.local_images": 2,
    "cpc.scale": 1.0,
    "optim.learning_rate": 0.001,
    "ema.decay": 0.9,
}


def oracle(case):
    """The average of the encoder follows the new parameters; the directions have none."""
    for before, carry, after in carries(case):
        assert carry == ()
        follows(before.extra.params, after.params, 0.9, after.extra.params)
        assert set(after.extra.params) == {"encoder"}
        chex.assert_trees_all_equal_shapes(before.extra, after.extra)
