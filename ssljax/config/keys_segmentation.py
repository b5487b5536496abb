"""The keys of the method `segmentation`. See `keys`."""

from __future__ import annotations

from ssljax.config.rows import COUNT, Key, OneOf, Range, method, network

DILATED = method("segmentation") & network("model", "resnet")
FCN_32S = method("segmentation") & network("model", "alexnet_vgg")

SEGMENTATION_KEYS = (
    Key(
        "fcn.mean_over",
        "pixels",
        "pixels: the loss is the mean over the pixels of the batch; images: over the means of its images",
        OneOf(("pixels", "images")),
        method("segmentation"),
    ),
    Key("fcn.channels", 256, "channels of the head's convolutions", COUNT, DILATED),
    Key("fcn.dilation", 6, "dilation of the head's convolutions", Range(1, 64, whole=True), DILATED),
    Key(
        "fcn.trained",
        "all",
        "all: every layer is trained (ALL); fc: the convolutions stay as they are (FC6-8)",
        OneOf(("all", "fc")),
        FCN_32S,
    ),
    Key("fcn.side", 224, "side of the images that fc6 was trained on, in pixels", COUNT, FCN_32S),
)
