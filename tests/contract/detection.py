"""Detection's contract: scenes in squares, so that all batches have one shape.

Every draw takes all of its candidates, and proposals are the sixteen that score best. Otherwise rounding
could decide what is drawn, and one device would not compute what eight compute.
"""

SMALL = {
    "model.name": "two_blocks",  # whose last group runs on regions
    "model.width": 0.125,
    "annotated.long_side": 32,
    "model.stem": "imagenet",
    "detector.anchor_sizes": (8.0, 12.0),
    "detector.anchors": 4096,
    "detector.regions": 32,
    "detector.train_before": 4096,
    "detector.train_after": 16,
}
