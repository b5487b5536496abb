"""The keys of the data and of the views: `data`, `augment` and `views`. See `keys`."""

from __future__ import annotations

from ssljax.config.rows import (
    BELOW_ONE,
    BETWEEN_0_AND_1,
    NATURAL,
    POSITIVE,
    SHARE,
    UNIT,
    Entries,
    Key,
    OneOf,
    Range,
    Text,
    When,
    above,
    equal,
    other_than,
)

# ------------------------------------------------------------------------------------------------------- data

SECOND = When("data.unlabelled is set", lambda read: read("data.unlabelled") != "")
STORED = When("data.source is not digits", lambda read: read("data.source") != "digits") | SECOND
HELD_OUT = When(
    "data.source is folder:PATH, views:PATH, hf:NAME or transfer:NAME",
    lambda read: read("data.source").startswith(("folder:", "views:", "hf:", "transfer:")),
)
VIEW_FOLDERS = When("data.source is views:PATH", lambda read: read("data.source").startswith("views:"))
VIEW_FOLDER = Text(
    "a folder's name and a number of channels, such as depth:1", r"[^/:\x00-\x1f]{1,200}:[123]"
)
PART = When("data.label_fraction is below 1", lambda read: read("data.label_fraction") < 1)
SIDE = Range(1, 2**14, whole=True)
FEW = above("data.labels_per_class", 0) | PART

DATA = (
    Key(
        "data.source",
        "",
        "digits, fashion_mnist, folder:PATH, views:PATH, tfds:NAME, transfer:NAME, hf:NAME, coco:PATH or "
        "voc:PATH",
    ),
    Key(
        "data.view_folders",
        (),
        "the folder of each view of an image, and how many channels are read (3: colour; 2: red and green; "
        "1: grey), in the order in which they are stacked",
        Entries(VIEW_FOLDER),
        VIEW_FOLDERS,
    ),
    Key("data.data_dir", "", "folder of the prepared data; empty: the source's default", None, STORED),
    Key("data.train_split", "train", "stored split, or sub-folder, to train on", None, STORED),
    Key("data.test_split", "test", "stored split, or sub-folder, to evaluate on", None, STORED),
    Key(
        "data.holdout",
        0.1,
        "fraction of each class held out for testing if there is no test split",
        BETWEEN_0_AND_1,
        HELD_OUT,
    ),
    Key(
        "data.labels",
        "folders",
        "folders: a folder's sub-folders are its classes; none: no labels, images at any depth of the folder",
        OneOf(("folders", "none")),
    ),
    Key(
        "data.on_bad_image",
        "error",
        "error: stop at an unreadable image; skip: leave it out and report it",
        OneOf(("error", "skip")),
        STORED,
    ),
    Key(
        "data.background",
        "white",
        "what shows through transparent pixels of images in folders, in hf:NAME and given to `encode`",
        OneOf(("white", "black")),
    ),
    Key("data.train_per_class", 0, "use only the first n training images of each class; 0: all", NATURAL),
    Key("data.label_fraction", 1.0, "fraction of the training images to use, balanced over classes", SHARE),
    Key("data.labels_per_class", 0, "training images to use per class; 0: label_fraction decides", NATURAL),
    Key(
        "data.label_list",
        "balanced",
        "images of a label_fraction; papers: the published lists of 1 % and 10 % of ImageNet, from TFDS",
        OneOf(("balanced", "papers")),
        PART & equal("data.source", "tfds:imagenet2012") & equal("data.keep_unlabelled", False),
    ),
    Key("data.subset_seed", 0, "seed of the draw of that subset", NATURAL, FEW),
    Key(
        "data.keep_unlabelled",
        False,
        "keep the training images outside that subset, without their labels",
        None,
        FEW,
    ),
    Key(
        "data.unlabelled",
        "",
        "further training images, used without labels: folder:PATH, tfds:NAME or hf:NAME",
    ),
    Key(
        "data.unlabelled_split",
        "train",
        "their stored split",
        None,
        When(
            "data.unlabelled is tfds:NAME or hf:NAME",
            lambda read: read("data.unlabelled").startswith(("tfds:", "hf:")),
        ),
    ),
    Key("data.num_classes", 0, "classes; 0: read from the data, otherwise checked against them", NATURAL),
    Key(
        "data.num_examples",
        0,
        "training images; 0: read from the data, otherwise checked against them",
        NATURAL,
    ),
    Key("data.image_size", 224, "side of the network's input, in pixels", SIDE),
    Key(
        "data.channels", 3, "3: colour; 1: grey; of views:PATH the sum over data.view_folders", OneOf((1, 3))
    ),
    Key(
        "data.crop_on",
        "host",
        "host: tf.data crops to uint8 views; device: the training step crops images held in memory",
        OneOf(("host", "device")),
    ),
    Key(
        "data.eval_crop",
        0.875,
        "fraction of the shorter side kept at evaluation, if image_size is above 32",
        Range(0.05, 1),
    ),
    Key(
        "data.repeats",
        1,
        "consecutive copies of each image in an epoch, each with its own views",
        Range(1, 1000, whole=True),
    ),
)

# ----------------------------------------------------------------------------------------------- augmentation
# These conditions read a view's own recipe: `augment` with what the view overrides.

JITTER = above("augment.jitter_probability", 0)
BLUR = above("augment.blur_probability", 0)
SOLARIZE = above("augment.solarize_probability", 0)
AFFINE = equal("augment.crop", "affine")
GRAYSCALE = above("augment.grayscale_probability", 0)
BOX = equal("augment.crop", "tf", "torchvision", "byol")
DALLE = equal("augment.crop", "dalle")
SQUARE = equal("augment.crop", "square", "squash", "dalle")
RESIZED = equal("augment.crop", "tf", "torchvision", "byol", "none") | SQUARE
RANDAUGMENT = equal("augment.policy", "randaugment", "randaugment_plain")
PAIR = Entries(POSITIVE, count=2, rising=True)
FACTOR = Range(0, 10)
TENSORFLOW = equal("augment.policy", "randaugment_tf")
POLICIES = (
    "none",
    "randaugment",
    "randaugment_plain",
    "autoaugment_original",
    "autoaugment_v0",
    "randaugment_tf",
)

AUGMENT = (
    Key(
        "augment.crop",
        "torchvision",
        "tf: sample_distorted_bounding_box; torchvision: RandomResizedCrop; byol: cut down where it does not "
        "fit; affine: random warp; none; square: a random square within the central one; dalle: within any "
        "largest one; squash: within the whole image, resized to a square",
        OneOf(("tf", "torchvision", "byol", "affine", "none", "square", "dalle", "squash")),
    ),
    Key(
        "augment.min_area",
        0.08,
        "smallest area of a crop, as a share of the image's; square, dalle, squash: of the larger square's",
        SHARE,
        BOX | SQUARE,
    ),
    Key(
        "augment.max_area",
        1.0,
        "largest area of a crop, as a fraction of the image's; dalle: of the larger square's",
        SHARE,
        BOX | DALLE,
    ),
    Key("augment.aspect", (3 / 4, 4 / 3), "smallest and largest width / height of a crop", PAIR, BOX),
    Key(
        "augment.interpolation",
        "bicubic",
        "interpolation that resizes a crop; area: the mean over a new pixel",
        OneOf(("bicubic", "bilinear", "lanczos3", "area")),
        RESIZED,
    ),
    Key(
        "augment.resize",
        "tensorflow",
        "library that resizes host crops and evaluation images; pillow: exactly as torchvision reads files",
        OneOf(("tensorflow", "pillow")),
        RESIZED,
    ),
    Key(
        "augment.antialias",
        False,
        "antialias host crops and evaluation images; device crops: tf and byol never do, the others always",
        None,
        other_than("augment.resize", "pillow"),
    ),
    Key("augment.flip", True, "mirror horizontally with probability 0.5"),
    Key("augment.rotate", 0.0, "largest rotation, in degrees", Range(0, 180), AFFINE),
    Key("augment.shift", 0.0, "largest shift, as a fraction of the side", UNIT, AFFINE),
    Key("augment.zoom", 0.0, "largest relative change of scale", BELOW_ONE, AFFINE),
    Key("augment.shear", 0.0, "largest shear, in degrees", Range(0, 89), AFFINE),
    Key("augment.jitter_probability", 0.0, "probability of colour jitter", UNIT),
    Key(
        "augment.jitter_strength",
        1.0,
        "strength of the jitter; brightness and contrast vary by 0.8 times this",
        FACTOR,
        JITTER,
    ),
    Key("augment.jitter_saturation", 0.8, "saturation varies by this times the strength", FACTOR, JITTER),
    Key(
        "augment.jitter_hue",
        0.2,
        "hue varies by this times the strength, as a fraction of the colour circle",
        UNIT,
        JITTER,
    ),
    Key(
        "augment.jitter",
        "tensorflow",
        "library whose colour operations are reproduced",
        OneOf(("tensorflow", "torchvision")),
        JITTER,
    ),
    Key(
        "augment.jitter_order",
        "random",
        "order of the operations; fixed: brightness, contrast, saturation, hue",
        OneOf(("random", "fixed")),
        JITTER,
    ),
    Key(
        "augment.jitter_on",
        "crop",
        "what the jitter changes: the crop, or the whole image before it is cropped",
        OneOf(("crop", "image")),
        JITTER,
    ),
    Key(
        "augment.brightness",
        "multiply",
        "multiply pixels by a random factor, or add a random offset (not with torchvision)",
        OneOf(("multiply", "add")),
        JITTER,
    ),
    Key("augment.grayscale_probability", 0.0, "probability of conversion to grayscale", UNIT),
    Key(
        "augment.grayscale_order",
        "after",
        "convert to grayscale after the colour jitter or before it",
        OneOf(("after", "before")),
        GRAYSCALE & JITTER,
    ),
    Key("augment.blur_probability", 0.0, "probability of Gaussian blur", UNIT),
    Key(
        "augment.blur_sigma",
        (0.1, 2.0),
        "smallest and largest standard deviation of the blur, in pixels",
        PAIR,
        BLUR,
    ),
    Key(
        "augment.blur_sigma_per",
        "image",
        "draw the blur's standard deviation for each image, or once per view for the whole batch",
        OneOf(("image", "batch")),
        BLUR,
    ),
    Key(
        "augment.blur_border",
        "zero",
        "padding at the image border; pillow: Pillow's blur, which repeats the border",
        OneOf(("zero", "reflect", "pillow")),
        BLUR,
    ),
    Key(
        "augment.blur_kernel",
        0,
        "taps of the blur kernel; 0: a tenth of the side",
        Range(0, 1023, whole=True),
        BLUR & other_than("augment.blur_border", "pillow"),
    ),
    Key("augment.solarize_probability", 0.0, "probability of solarisation", UNIT),
    Key("augment.solarize_threshold", 0.5, "pixels from this value on are inverted", UNIT, SOLARIZE),
    Key(
        "augment.policy",
        "none",
        "RandAugment or AutoAugment, applied to the host's crops; randaugment_tf: as in TensorFlow, on the "
        "device",
        OneOf(POLICIES),
    ),
    Key(
        "augment.policy_magnitude",
        9.0,
        "mean magnitude of RandAugment's operations",
        Range(0, 10),
        RANDAUGMENT,
    ),
    Key("augment.policy_std", 0.5, "standard deviation of the magnitude", FACTOR, RANDAUGMENT),
    Key(
        "augment.policy_ops",
        2,
        "operations per image",
        Range(1, 16, whole=True),
        RANDAUGMENT | TENSORFLOW,
    ),
    Key(
        "augment.policy_level",
        10.0,
        "magnitude of all operations of randaugment_tf; it may be above 10",
        Range(0, 30),
        TENSORFLOW,
    ),
    Key(
        "augment.policy_translate",
        100,
        "pixels of a translation at level 10",
        Range(0, 4096, whole=True),
        TENSORFLOW,
    ),
    Key(
        "augment.policy_cutout",
        40,
        "half the side of the box that is cut out at level 10, in pixels",
        Range(0, 4096, whole=True),
        TENSORFLOW,
    ),
    Key("augment.erasing_probability", 0.0, "probability of random erasing, after normalisation", UNIT),
    Key(
        "augment.color_space",
        "rgb",
        "colour space of the network's input; lab, ycbcr, ydbdr: luminance and two colours, scaled",
        OneOf(("rgb", "lab", "ycbcr", "ydbdr")),
    ),
    Key("augment.mean", (0.0, 0.0, 0.0), "mean per channel, subtracted from pixels in [0, 1]", Entries(UNIT)),
    Key(
        "augment.std",
        (1.0, 1.0, 1.0),
        "standard deviation per channel, which pixels are then divided by",
        Entries(POSITIVE),
    ),
)

# A view states only what differs from `augment`.
VIEWS = (
    Key("views", ("one",), "the views of an image by name, in order; each holds what differs from `augment`"),
    Key("views.*.size", 0, "side of the view in pixels, instead of data.image_size", SIDE),
    Key("views.*.count", 1, "number of views of this kind", Range(1, 64, whole=True)),
    Key("views.*.of", "", "name of the view whose crop this view shares"),
    *(key._replace(name=key.name.replace("augment.", "views.*.", 1)) for key in AUGMENT),
)
