"""The keys of detectors: how many anchors, proposals and regions there are. See `keys`."""

from __future__ import annotations

from ssljax.config.rows import COUNT, NATURAL, POSITIVE, UNIT, Entries, Key, method

DETECTION = method("detection")

DETECTION_KEYS = (
    Key(
        "detector.anchor_sizes",
        (32.0, 64.0, 128.0, 256.0, 512.0),
        "square roots of the anchors' areas, in pixels; each comes with height / width of 1/2, 1 and 2",
        Entries(POSITIVE),
        DETECTION,
    ),
    Key(
        "detector.anchors",
        256,
        "anchors per image that the proposals learn from, at most half of them objects",
        COUNT,
        DETECTION,
    ),
    Key(
        "detector.regions",
        512,
        "regions per image that the box head learns from, at most a quarter of them objects",
        COUNT,
        DETECTION,
    ),
    Key("detector.train_before", 12000, "proposals before the suppression, in training", COUNT, DETECTION),
    Key("detector.train_after", 2000, "proposals after it, in training", COUNT, DETECTION),
    Key("detector.test_before", 6000, "proposals before the suppression, at test", COUNT, DETECTION),
    Key("detector.test_after", 1000, "proposals after it, at test", COUNT, DETECTION),
    Key("detector.score", 0.05, "what is less probable is no detection", UNIT, DETECTION),
    Key("detector.keep", 100, "detections per image, at most", COUNT, DETECTION),
    Key(
        "detector.precise_bn",
        200,
        "batches that the norms' statistics are computed from after the last step; 0: the running ones stay",
        NATURAL,
        DETECTION,
    ),
)
