"""Host crops in TensorFlow's C++ threads: decode once, draw and resize every view, flip, hand out uint8.

A view depends on (seed, epoch, index, view) alone, through stateless draws, so it is the same whatever thread, process or device asks.
An image is decoded once for all its views (measured on 110 KB photographs: no slower than `decode_and_crop_jpeg` a view, from two views
on), with the accurate DCT (no slower than TensorFlow's fast default).

Resizing is TensorFlow 2's bicubic (half-pixel centres, Keys a = -0.5, no antialiasing) like google-research/simclr, clipped, rounded.
With `augment.antialias` it is Pillow's to within a grey level or so (DeiT; measured mean difference 0.2 of 255, without it 2 to 8).
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from ssljax.data import policies

if TYPE_CHECKING:
    import tensorflow as tf

ASPECT = (3 / 4, 4 / 3)
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
            "with data.crop_on='device' do without") from error

    tf.config.set_visible_devices([], "GPU")
    return tf


def decode(encoded: tf.Tensor, channels: int) -> tf.Tensor:
    """JPEG or PNG bytes (grey, palette, alpha, CMYK, ...) -> uint8 [H, W, channels]; one channel is the ITU-R 601 grey level."""
    tf = tensorflow()
    image = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")     # the op reads PNG as well
    return image if channels == 3 else tf.image.rgb_to_grayscale(image)


def box_tf(height: tf.Tensor, width: tf.Tensor, seed: tf.Tensor, *, min_area: float) -> tf.Tensor:
    """The Inception crop as google-research/simclr draws it (data_util.py, distorted_bounding_box_crop).

    The op draws the aspect ratio and the integer height uniformly, and rejects crops that cover less than 10 % of the whole-image box,
    so small areas are commoner than in `box_torchvision` and `min_area` below 0.1 has no effect. After 100 attempts: the whole image.

    Args:
        height, width: int32 scalars, pixels.
        seed: int64 [2].
        min_area: smallest share of the image's area.

    Returns:
        int32 [4]: top, left, height, width.
    """
    tf = tensorflow()
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.stack([height, width, 3]), tf.constant([[[0.0, 0.0, 1.0, 1.0]]]), seed=seed, min_object_covered=0.1,
        aspect_ratio_range=ASPECT, area_range=(min_area, 1.0), max_attempts=ATTEMPTS_TF, use_image_if_no_bounding_boxes=True)
    return tf.concat([begin[:2], size[:2]], 0)


def box_torchvision(height: tf.Tensor, width: tf.Tensor, seed: tf.Tensor, *, min_area: float) -> tf.Tensor:
    """torchvision's RandomResizedCrop.get_params: area uniform, aspect ratio log-uniform, 10 attempts, else a central crop.

    Arguments and result as for `box_tf`.
    """
    tf = tensorflow()
    h, w = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    u = tf.random.stateless_uniform([ATTEMPTS_TORCHVISION, 4], seed)
    area = h * w * (min_area + u[:, 0] * (1.0 - min_area))
    low, high = tf.math.log(ASPECT[0]), tf.math.log(ASPECT[1])
    ratio = tf.exp(low + u[:, 1] * (high - low))
    crop_h, crop_w = tf.round(tf.sqrt(area / ratio)), tf.round(tf.sqrt(area * ratio))
    top, left = tf.floor(u[:, 2] * (h - crop_h + 1)), tf.floor(u[:, 3] * (w - crop_w + 1))
    fits = (crop_h >= 1) & (crop_h <= h) & (crop_w >= 1) & (crop_w <= w)

    # All failed: the largest central crop with an allowed aspect ratio.
    central_h, central_w = tf.minimum(h, tf.round(w / ASPECT[0])), tf.minimum(w, tf.round(h * ASPECT[1]))
    central = tf.stack([(h - central_h) // 2, (w - central_w) // 2, central_h, central_w])
    first = tf.stack([top, left, crop_h, crop_w], 1)[tf.argmax(tf.cast(fits, tf.int32))]
    return tf.cast(tf.where(tf.reduce_any(fits), first, central), tf.int32)


def resize(image: tf.Tensor, height: int, width: int, method: str = "bicubic", *, antialias: bool = False) -> tf.Tensor:
    """[H, W, C] -> float32 [height, width, C] by tf.image.resize; bicubic may overshoot the input's range."""
    return tensorflow().image.resize(image, (height, width), method, antialias=antialias)


def to_uint8(image: tf.Tensor) -> tf.Tensor:
    """Clips to [0, 255], rounds."""
    tf = tensorflow()
    return tf.cast(tf.round(tf.clip_by_value(image, 0.0, 255.0)), tf.uint8)


def views(image: tf.Tensor, key: tf.Tensor, config: ConfigDict, copy: tf.Tensor | int = 0) -> tf.Tensor:
    """All training views of one image.

    An image that comes several times in an epoch (`data.repeats`) has views 0..V-1 at its first coming, V..2V-1 at its second, ...

    Args:
        image: uint8 [H, W, C].
        key: int64 [2], epoch and index.
        config: reads `seed`, `views`, `data.image_size`, `augment.crop`, `.min_area`, `.flip`, `.antialias` and the policy.
        copy: which coming of the image in this epoch, from 0.

    Returns:
        uint8 [V, S, S, C].

    Raises:
        ValueError: `augment.crop` cannot be done here.
    """
    if config.augment.crop not in ("tf", "torchvision", "none"):
        raise ValueError(f"augment.crop={config.augment.crop!r} cannot be done with data.crop_on='host': use 'tf', 'torchvision' or "
                         "'none', or crop on the device")
    tf = tensorflow()
    epoch, index = key[0], key[1]
    stream = tf.constant(config.seed << 32, tf.int64) + epoch        # one pair of words for every (seed, epoch, index, view, purpose)
    words = lambda number: tf.stack([stream, index * (1 << 16) + number])
    numbers = [tf.cast(copy, tf.int64) * len(config.views) + view for view in range(len(config.views))]
    made = [_view(image, words(2 * number), words(2 * number + 1), config) for number in numbers]
    if config.augment.policy == "none":
        return tf.stack(made)
    return tf.stack([_policy(view, tf.stack([epoch, index, number]), config) for view, number in zip(made, numbers, strict=True)])


def _view(image: tf.Tensor, crop_seed: tf.Tensor, flip_seed: tf.Tensor, config: ConfigDict) -> tf.Tensor:
    tf = tensorflow()
    size, augment = config.data.image_size, config.augment
    shape = tf.shape(image)
    if augment.crop == "none":
        view = to_uint8(central_crop(image, size, size, 1.0, antialias=augment.antialias))
    else:
        draw = box_tf if augment.crop == "tf" else box_torchvision
        top, left, height, width = tf.unstack(draw(shape[0], shape[1], crop_seed, min_area=augment.min_area))
        view = to_uint8(resize(image[top:top + height, left:left + width], size, size, antialias=augment.antialias))
    if augment.flip:
        # tf.reverse: a strided slice of -1 was measured to cost as much as the resize
        view = tf.cond(tf.random.stateless_uniform([], flip_seed) < 0.5, lambda: tf.reverse(view, [1]), lambda: view)
    view.set_shape([size, size, config.data.channels])
    return view


def _policy(view: tf.Tensor, place: tf.Tensor, config: ConfigDict) -> tf.Tensor:
    """`policies.policy` as a node of the pipeline; `place` is epoch, index and the view's number."""
    tf = tensorflow()

    def changed(view: np.ndarray, place: np.ndarray) -> np.ndarray:
        return policies.policy(view, (config.seed, *place), config.augment)

    out = tf.numpy_function(changed, [view, place], tf.uint8, stateful=False)
    out.set_shape(view.shape)
    return out


def central_crop(image: tf.Tensor, height: int, width: int, proportion: float, *, antialias: bool = False) -> tf.Tensor:
    """The central crop of google-research/simclr (data_util.py, center_crop).

    The largest box with the result's aspect ratio, its sides times `proportion` and rounded (to even at .5); offset
    (side - crop + 1) // 2; bicubic, unclipped.

    Args:
        image: [H, W, C].
        height, width: of the result.
        proportion: e.g. 0.875.
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
    return resize(image[top:top + crop_h, left:left + crop_w], height, width, antialias=antialias)


def eval_image(image: tf.Tensor, config: ConfigDict) -> tf.Tensor:
    """What an evaluator sees: the central crop of `eval_crop` times the shorter side; the whole shorter side up to 32 pixels.

    Returns:
        uint8 [S, S, C], S = data.image_size.
    """
    data = config.data
    proportion = data.eval_crop if data.image_size > 32 else 1.0
    out = to_uint8(central_crop(image, data.image_size, data.image_size, proportion, antialias=config.augment.antialias))
    out.set_shape([data.image_size, data.image_size, data.channels])
    return out
