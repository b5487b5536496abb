"""CPC's efficient classification, in the stage that trains all of it."""

SMALL = {
    "model.name": "cpc_r8",
    "model.width": 0.0625,
    "classifier.blocks": 1,
    "classifier.bottleneck": 4,
}
