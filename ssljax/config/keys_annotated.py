"""The keys of images with boxes or masks, see docs/annotated.md. See `keys`."""

from __future__ import annotations

from ssljax.config.rows import POSITIVE, Entries, Key, OneOf, Range, equal

BOXES = equal("data.annotations", "boxes")
MASKS = equal("data.annotations", "masks")
SIDE = Range(16, 2**13, whole=True)

ANNOTATED_KEYS = (
    Key(
        "data.annotations",
        "",
        "what lies over the images: boxes; masks, a class for every pixel; empty: nothing",
        OneOf(("", "boxes", "masks")),
    ),
    Key(
        "data.categories",
        (),
        "names of the classes to use, in this order; empty: all that the data have, in theirs",
        None,
        BOXES | MASKS,
    ),
    Key(
        "annotated.short_sides",
        (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
        "training: the shorter side of an image in pixels, one of these at random",
        Entries(SIDE, rising=True),
        BOXES,
    ),
    Key("annotated.test_short_side", 800, "evaluation: the shorter side of an image in pixels", SIDE, BOXES),
    Key(
        "annotated.long_side",
        1333,
        "the longer side is at most this; boxes: where it is the largest shorter side, all images are in "
        "squares",
        SIDE,
        BOXES | MASKS,
    ),
    Key(
        "annotated.test_long_side",
        0,
        "evaluation: the longer side is at most this; 0: as annotated.long_side",
        Range(0, 2**13, whole=True),
        BOXES,
    ),
    Key(
        "annotated.scales",
        (0.5, 2.0),
        "training: smallest and largest factor by which an image is resized before it is cropped",
        Entries(POSITIVE, count=2, rising=True),
        MASKS,
    ),
    Key("annotated.crop", 513, "training: the side of the square that is cut out, in pixels", SIDE, MASKS),
    Key(
        "annotated.test_side",
        513,
        "evaluation: the side of the square that whole images are padded to, in pixels",
        SIDE,
        MASKS,
    ),
)

ANNOTATED_EVALUATE = (
    Key(
        "evaluate.detection_rules",
        "data",
        "how the protocol `detection` measures; voc: 11 points, ten thresholds; coco: as pycocotools; "
        "data: voc if data.source is voc:PATH, else coco",
        OneOf(("data", "voc", "coco")),
        BOXES,
    ),
)
