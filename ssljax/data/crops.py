"""Host crops in TensorFlow's C++ threads: decode once, draw and resize every view, flip, hand out uint8.

A view depends on (seed, epoch, index, number of the view) alone, through stateless draws, so it is the same
whatever thread, process or device asks. An image is decoded once for all its views (measured on 110 KB
photographs: no slower than `decode_and_crop_jpeg` a view, from two views on), with the accurate DCT (no
slower than TensorFlow's fast default).

Resizing is TensorFlow 2's (half-pixel centres; bicubic has Keys a = -0.5), clipped, rounded: without
antialiasing like google-research/simclr, or, with `augment.antialias`, Pillow's to within a grey level or so
(DeiT; measured mean difference 0.2 of 255, without it 2 to 8).
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from ssljax.data import policies, recipes

if TYPE_CHECKING:
    import tensorflow as tf

ATTEMPTS_TF, ATTEMPTS_TORCHVISION = 100, 10


@functools.cache
def tensorflow() -> Any:
    """TensorFlow, imported on first use and kept off accelerators, which belong to JAX.

    Raises:
        ImportError: it is not installed, or cannot be loaded; says what does without it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            f"TensorFlow cannot be imported ({error}), but data.crop_on='host' and tfds: sources are read "
            "with it: pip install tensorflow (tensorflow-cpu on Linux). Digits, Fashion-MNIST and a folder "
            "with data.crop_on='device' do without"
        ) from error

    tf.config.set_visible_devices([], "GPU")
    return tf


def decode(encoded: tf.Tensor, channels: int) -> tf.Tensor:
    """JPEG or PNG bytes (grey, palette, alpha, CMYK, ...) -> uint8 [H, W, channels].

    One channel is the ITU-R 601 grey level.
    """
    tf = tensorflow()
    image = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")  # the op reads PNG as well
    return image if channels == 3 else tf.image.rgb_to_grayscale(image)


def box_tf(
    height: tf.Tensor,
    width: tf.Tensor,
    seed: tf.Tensor,
    *,
    min_area: float,
    max_area: float = 1.0,
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> tf.Tensor:
    """The Inception crop as google-research/simclr draws it (data_util.py, distorted_bounding_box_crop).

    The op draws the aspect ratio and the integer height uniformly, and rejects crops that cover less than 10
    % of the whole-image box, so small areas are commoner than in `box_torchvision` and `min_area` below 0.1
    has no effect. After 100 attempts: the whole image.

    Args:
        height, width: int32 scalars, pixels.
        seed: int64 [2].
        min_area: smallest share of the image's area.
        max_area: largest share.
        aspect: smallest and largest width over height.

    Returns:
        int32 [4]: top, left, height, width.
    """
    tf = tensorflow()
    whole = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.stack([height, width, 3]),
        whole,
        seed=seed,
        min_object_covered=0.1,
        aspect_ratio_range=aspect,
        area_range=(min_area, max_area),
        max_attempts=ATTEMPTS_TF,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], 0)


def box_torchvision(
    height: tf.Tensor,
    width: tf.Tensor,
    seed: tf.Tensor,
    *,
    min_area: float,
    max_area: float = 1.0,
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> tf.Tensor:
    """torchvision's RandomResizedCrop.get_params.

    The area is uniform, the aspect ratio log-uniform; after 10 attempts a central crop. Arguments and result
    as for `box_tf`.
    """
    tf = tensorflow()
    h, w = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    u = tf.random.stateless_uniform([ATTEMPTS_TORCHVISION, 4], seed)
    area = h * w * (min_area + u[:, 0] * (max_area - min_area))
    low, high = tf.math.log(aspect[0]), tf.math.log(aspect[1])
    ratio = tf.exp(low + u[:, 1] * (high - low))
    crop_h, crop_w = tf.round(tf.sqrt(area / ratio)), tf.round(tf.sqrt(area * ratio))
    top, left = tf.floor(u[:, 2] * (h - crop_h + 1)), tf.floor(u[:, 3] * (w - crop_w + 1))
    fits = (crop_h >= 1) & (crop_h <= h) & (crop_w >= 1) & (crop_w <= w)

    # All failed: the largest central crop with an allowed aspect ratio.
    central_h, central_w = tf.minimum(h, tf.round(w / aspect[0])), tf.minimum(w, tf.round(h * aspect[1]))
    central = tf.stack([(h - central_h) // 2, (w - central_w) // 2, central_h, central_w])
    first = tf.stack([top, left, crop_h, crop_w], 1)[tf.argmax(tf.cast(fits, tf.int32))]
    return tf.cast(tf.where(tf.reduce_any(fits), first, central), tf.int32)


def resize(
    image: tf.Tensor, height: int, width: int, method: str = "bicubic", *, antialias: bool = False
) -> tf.Tensor:
    """[H, W, C] -> float32 [height, width, C] by tf.image.resize; bicubic may overshoot the input's range."""
    return tensorflow().image.resize(image, (height, width), method, antialias=antialias)


def to_uint8(image: tf.Tensor) -> tf.Tensor:
    """Clips to [0, 255], rounds."""
    tf = tensorflow()
    return tf.cast(tf.round(tf.clip_by_value(image, 0.0, 255.0)), tf.uint8)


def training_views(
    image: tf.Tensor, key: tf.Tensor, config: ConfigDict, copy: tf.Tensor | int = 0
) -> dict[str, tf.Tensor]:
    """All training views of one image.

    An image that comes several times in an epoch (`data.repeats`) has views 0..V-1 at its first coming,
    V..2V-1 at its second, ... A view that shares the crop of another has its number, so crop, flip and policy
    are the same.

    Args:
        image: uint8 [H, W, C].
        key: int64 [2], epoch and index.
        config: reads `seed`, `views`, `augment`, `data.image_size` and `data.channels`.
        copy: which coming of the image in this epoch, from 0.

    Returns:
        uint8, in the entries and of the shapes that `recipes.host_shapes` says.

    Raises:
        ValueError: a view's `crop` cannot be done here.
    """
    tf = tensorflow()
    epoch, index = key[0], key[1]
    # one pair of words for every (seed, epoch, index, view, purpose)
    stream = tf.constant(config.seed << 32, tf.int64) + epoch
    words = lambda number: tf.stack([stream, index * (1 << 16) + number])
    total, made = recipes.total(config), {}
    for view in recipes.resolved(config):
        crops = []
        for place in range(view.first, view.first + view.count):
            number = tf.cast(copy, tf.int64) * total + place
            crop = _view(image, words(2 * number), words(2 * number + 1), view, config.data.channels)
            if view.augment.policy != "none":
                crop = _policy(crop, tf.stack([epoch, index, number]), config.seed, view.augment)
            crops.append(crop)
        made[view.name] = tf.stack(crops)
    if made.keys() == recipes.host_shapes(config).keys():
        return made
    return {"image": tf.concat(list(made.values()), 0)}


def _view(
    image: tf.Tensor, crop_seed: tf.Tensor, flip_seed: tf.Tensor, view: recipes.View, channels: int
) -> tf.Tensor:
    """One crop, uint8 [size, size, C]."""
    tf = tensorflow()
    size, augment = view.size, view.augment
    shape = tf.shape(image)
    if augment.crop == "none":
        crop = central_crop(image, size, size, 1.0, augment.interpolation, antialias=augment.antialias)
    elif augment.crop in ("tf", "torchvision"):
        draw = box_tf if augment.crop == "tf" else box_torchvision
        box = draw(
            shape[0],
            shape[1],
            crop_seed,
            min_area=augment.min_area,
            max_area=augment.max_area,
            aspect=augment.aspect,
        )
        top, left, height, width = tf.unstack(box)
        crop = image[top : top + height, left : left + width]
        crop = resize(crop, size, size, augment.interpolation, antialias=augment.antialias)
    else:
        raise ValueError(
            f"augment.crop={augment.crop!r} cannot be done with data.crop_on='host': use 'tf', "
            "'torchvision' or 'none', or crop on the device"
        )
    crop = to_uint8(crop)
    if augment.flip:
        # tf.reverse: a strided slice of -1 was measured to cost as much as the resize
        mirrored = tf.random.stateless_uniform([], flip_seed) < 0.5
        crop = tf.cond(mirrored, lambda: tf.reverse(crop, [1]), lambda: crop)
    crop.set_shape([size, size, channels])
    return crop


def _policy(crop: tf.Tensor, place: tf.Tensor, seed: int, augment: ConfigDict) -> tf.Tensor:
    """`policies.policy` as a node of the pipeline; `place` is epoch, index and the view's number."""
    tf = tensorflow()

    def changed(crop: np.ndarray, place: np.ndarray) -> np.ndarray:
        return policies.policy(crop, (seed, *place), augment)

    out = tf.numpy_function(changed, [crop, place], tf.uint8, stateful=False)
    out.set_shape(crop.shape)
    return out


def central_crop(
    image: tf.Tensor,
    height: int,
    width: int,
    proportion: float,
    method: str = "bicubic",
    *,
    antialias: bool = False,
) -> tf.Tensor:
    """The central crop of google-research/simclr (data_util.py, center_crop).

    The largest box with the result's aspect ratio, its sides times `proportion` and rounded (to even at .5);
    offset (side - crop + 1) // 2; unclipped.

    Args:
        image: [H, W, C].
        height, width: of the result.
        proportion: e.g. 0.875.
        method: "bicubic" or "bilinear".
        antialias: as for `resize`.

    Returns:
        float32 [height, width, C].
    """
    tf = tensorflow()
    shape = tf.shape(image)
    h, w, aspect = tf.cast(shape[0], tf.float32), tf.cast(shape[1], tf.float32), width / height
    wide = aspect > w / h
    crop_h = tf.cast(tf.where(wide, tf.round(proportion / aspect * w), tf.round(proportion * h)), tf.int32)
    crop_w = tf.cast(tf.where(wide, tf.round(proportion * w), tf.round(proportion * aspect * h)), tf.int32)
    top, left = (shape[0] - crop_h + 1) // 2, (shape[1] - crop_w + 1) // 2
    return resize(image[top : top + crop_h, left : left + crop_w], height, width, method, antialias=antialias)


def eval_image(image: tf.Tensor, config: ConfigDict) -> tf.Tensor:
    """What an evaluator sees: the central crop of `eval_crop` times the shorter side.

    Up to 32 pixels it is the whole shorter side.

    Returns:
        uint8 [S, S, C], S = data.image_size.
    """
    data, augment = config.data, config.augment
    proportion = data.eval_crop if data.image_size > 32 else 1.0
    size = data.image_size
    method = recipes.evaluation_resize(augment)
    out = to_uint8(central_crop(image, size, size, proportion, method, antialias=augment.antialias))
    out.set_shape([size, size, data.channels])
    return out
