"""CPC's efficient classification, in the stage that trains all of it."""

SMALL = {
    "model.name": "cpc_one_block",
    "model.width": 0.125,
    "classifier.blocks": 1,
    "classifier.bottleneck": 4,
}
