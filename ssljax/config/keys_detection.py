"""The keys of detectors: how many anchors, proposals and regions there are. See `keys`."""

from __future__ import annotations

from ssljax.config.rows import COUNT, NATURAL, POSITIVE, UNIT, Entries, Key, OneOf, Range, method, network

DETECTION = method("detection")
C4 = DETECTION & network("model", "resnet")
PLAIN = DETECTION & network("model", "alexnet_vgg")

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
        C4,
    ),
    Key(
        "detector.background",
        0.0,
        "a region that overlaps every true box by less is not learned from; from 0.5 on it is an object",
        Range(0, 0.5),
        DETECTION,
    ),
    Key(
        "detector.overlap",
        0.5,
        "at test, what overlaps a more probable detection of its class by more is dropped",
        UNIT,
        DETECTION,
    ),
    Key(
        "detector.trained",
        "all",
        "all: every layer is trained (ALL); fc: the convolutions stay as they are (FC6-8)",
        OneOf(("all", "fc")),
        PLAIN,
    ),
    Key("detector.side", 224, "side of the images that fc6 was trained on, in pixels", COUNT, PLAIN),
)
