"""Host crops in TensorFlow's C++ threads: decode an image once, then crop, resize and flip every view.

Views are uint8. Draws are stateless: a view depends only on (seed, epoch, index, number of the view), so it
is the same in every thread and process and on every device.

An image is decoded once for all its views. On 110 KB photographs this was measured to be no slower than one
`decode_and_crop_jpeg` per view, from two views on. The accurate DCT is used; it is no slower than
TensorFlow's fast default.

Resizing is TensorFlow 2's (half-pixel centres; bicubic uses Keys a = -0.5), then clipped and rounded. By
default there is no antialiasing, as in google-research/simclr and BYOL's code. With `augment.resize="pillow"`
Pillow resizes, exactly as for torchvision. docs/resizing.md says how much these and `augment.antialias`
differ.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from ssljax.data import damage, geometry, pillow, policies, recipes
from ssljax.data.quiet import without_notes

if TYPE_CHECKING:
    import tensorflow as tf

ATTEMPTS_TF = 100
ATTEMPTS_TORCHVISION = 10


@functools.cache
def tensorflow() -> Any:
    """Import TensorFlow on first use and hide the accelerators from it, which belong to JAX.

    Raises:
        ImportError: TensorFlow is not installed or cannot be loaded. The message says what works without it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with without_notes():
            import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            f"TensorFlow cannot be imported ({error}), and data.crop_on='host' and tfds: sources need it: "
            "pip install tensorflow (tensorflow-cpu on Linux). Digits, Fashion-MNIST and a folder with "
            "data.crop_on='device' work without it"
        ) from error

    tf.config.set_visible_devices([], "GPU")
    return tf


def decode(encoded: tf.Tensor, channels: int) -> tf.Tensor:
    """Decode JPEG or PNG bytes (grey, palette, alpha, CMYK, ...) to uint8 [H, W, channels].

    A single channel is the ITU-R 601 grey level. A JPEG that ends before its last pixel is an error.
    """
    tf = tensorflow()
    image = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")  # the op reads PNG as well
    # TensorFlow fills what is missing with grey and does not say so.
    grey = tf.reduce_any(tf.reduce_all(image[-1, -1] == tf.constant(damage.GREY, tf.uint8)[:, None], 1))
    image = tf.cond(grey, lambda: _with_end(encoded, image), lambda: image)
    return image if channels == 3 else tf.image.rgb_to_grayscale(image)


def _with_end(encoded: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
    """Return the image. It is an error if it is a JPEG that ends before its last pixel."""
    tf = tensorflow()

    def check(encoded: bytes | np.ndarray) -> np.bool_:
        # It is an array outside of a pipeline.
        return np.bool_(not damage.ends_too_early(np.asarray(encoded, object).item()))

    whole = tf.numpy_function(check, [encoded], tf.bool)
    with tf.control_dependencies([tf.debugging.Assert(whole, [damage.TOO_EARLY])]):
        return tf.identity(image)


def decode_now(encoded: bytes, channels: int) -> np.ndarray:
    """Decode at once, outside of a pipeline.

    Returns:
        uint8 [H, W, channels].

    Raises:
        ValueError: the bytes are no readable image; says why.
    """
    tf = tensorflow()
    damage.check_header(io.BytesIO(encoded))
    try:
        return np.asarray(decode(tf.constant(encoded), channels))
    except tf.errors.InvalidArgumentError as error:
        text = error.message.rpartition("}} ")[2].partition(" [Op:")[0]
        raise ValueError(damage.TOO_EARLY if damage.TOO_EARLY in text else text) from error


def box_tf(
    height: tf.Tensor,
    width: tf.Tensor,
    seed: tf.Tensor,
    *,
    min_area: float,
    max_area: float = 1.0,
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> tf.Tensor:
    """Draw the Inception crop of google-research/simclr (data_util.py, distorted_bounding_box_crop).

    The op draws the aspect ratio and the integer height uniformly, so small areas are more frequent than in
    `box_torchvision`. It rejects crops that cover less than 10 % of the image, so a `min_area` below 0.1 has
    no effect. After 100 failed attempts the box is the whole image.

    Args:
        height, width: size of the image in pixels, int32 scalars.
        seed: int64 [2].
        min_area: smallest area, as a share of the image's area.
        max_area: largest area, as a share of the image's area.
        aspect: smallest and largest aspect ratio, width over height.

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
    """Draw the crop of torchvision's RandomResizedCrop.get_params.

    The area is uniform and the aspect ratio log-uniform. After 10 failed attempts the box is the largest
    central crop with an allowed aspect ratio. Arguments and result are those of `box_tf`.
    """
    tf = tensorflow()
    h = tf.cast(height, tf.float32)
    w = tf.cast(width, tf.float32)
    u = tf.random.stateless_uniform([ATTEMPTS_TORCHVISION, 4], seed)
    area = h * w * (min_area + u[:, 0] * (max_area - min_area))
    low = tf.math.log(aspect[0])
    high = tf.math.log(aspect[1])
    ratio = tf.exp(low + u[:, 1] * (high - low))

    # All attempts at once; the first that fits counts.
    crop_h = tf.round(tf.sqrt(area / ratio))
    crop_w = tf.round(tf.sqrt(area * ratio))
    top = tf.floor(u[:, 2] * (h - crop_h + 1))
    left = tf.floor(u[:, 3] * (w - crop_w + 1))
    fits = (crop_h >= 1) & (crop_h <= h) & (crop_w >= 1) & (crop_w <= w)
    boxes = tf.stack([top, left, crop_h, crop_w], 1)
    first = boxes[tf.argmax(tf.cast(fits, tf.int32))]

    central_h = tf.minimum(h, tf.round(w / aspect[0]))
    central_w = tf.minimum(w, tf.round(h * aspect[1]))
    central = tf.stack([(h - central_h) // 2, (w - central_w) // 2, central_h, central_w])
    return tf.cast(tf.where(tf.reduce_any(fits), first, central), tf.int32)


def box_square(height: tf.Tensor, width: tf.Tensor, seed: tf.Tensor, *, area: float) -> tf.Tensor:
    """Draw a square of fixed size within the central square of an image, see `geometry.crop_box_square`.

    Args:
        height, width: size of the image in pixels, int32 scalars.
        seed: int64 [2].
        area: of the box, as a share of the central square's area.

    Returns:
        int32 [4]: top, left, height, width.
    """
    tf = tensorflow()
    central = tf.minimum(height, width)
    side = tf.cast(tf.round(area**0.5 * tf.cast(central, tf.float32)), tf.int32)
    offset = tf.random.stateless_uniform([2], seed, 0, central - side + 1, tf.int32)
    corner = tf.stack([(height - central) // 2, (width - central) // 2]) + offset
    return tf.concat([corner, [side, side]], 0)


def box_byol(
    height: tf.Tensor,
    width: tf.Tensor,
    seed: tf.Tensor,
    *,
    min_area: float,
    max_area: float = 1.0,
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> tf.Tensor:
    """Draw the crop of BYOL's released code (dataset.py, `_decode_and_random_crop`).

    The area is uniform and the aspect ratio log-uniform, as for `box_torchvision`. A box that does not fit is
    cut down to the image instead of drawn again. Arguments and result are those of `box_tf`.
    """
    tf = tensorflow()
    u = tf.random.stateless_uniform([4], seed)
    area = tf.cast(height, tf.float32) * tf.cast(width, tf.float32)
    area = area * (min_area + u[0] * (max_area - min_area))
    low = tf.math.log(aspect[0])
    high = tf.math.log(aspect[1])
    ratio = tf.exp(low + u[1] * (high - low))
    crop_h = tf.clip_by_value(tf.cast(tf.round(tf.sqrt(area / ratio)), tf.int32), 1, height)
    crop_w = tf.clip_by_value(tf.cast(tf.round(tf.sqrt(area * ratio)), tf.int32), 1, width)
    top = tf.cast(tf.floor(u[2] * tf.cast(height - crop_h + 1, tf.float32)), tf.int32)
    left = tf.cast(tf.floor(u[3] * tf.cast(width - crop_w + 1, tf.float32)), tf.int32)
    # In single precision a product may reach its bound.
    top = tf.minimum(top, height - crop_h)
    left = tf.minimum(left, width - crop_w)
    return tf.stack([top, left, crop_h, crop_w])


def box_dalle(
    height: tf.Tensor, width: tf.Tensor, seed: tf.Tensor, *, size: int, min_area: float, max_area: float
) -> tf.Tensor:
    """Draw a square within any largest square, see `geometry.crop_box_dalle`; rest as for `box_tf`."""
    tf = tensorflow()
    u = tf.random.stateless_uniform([5], seed)
    below = lambda u, n: tf.minimum(tf.cast(u * tf.cast(n, tf.float32), tf.int32), n - 1)
    short = tf.minimum(height, width)
    low, high = (tf.minimum(short, geometry.squashed_side(size, area)) for area in (max_area, min_area))
    resized = low + below(u[0], high - low + 1)
    side = tf.minimum(tf.cast(tf.round(short * size / resized), tf.int32), short)
    corner = below(u[1:3], tf.stack([height, width]) - short + 1) + below(u[3:], short - side + 1)
    return tf.concat([corner, [side, side]], 0)


BOXES = {"tf": box_tf, "torchvision": box_torchvision, "byol": box_byol}


def resize(
    image: tf.Tensor, height: int, width: int, method: str = "bicubic", *, antialias: bool = False
) -> tf.Tensor:
    """Resize [H, W, C] to float32 [height, width, C] with tf.image.resize.

    Bicubic interpolation may overshoot the input's range.
    """
    return tensorflow().image.resize(image, (height, width), method, antialias=antialias)


def _resized(crop: tf.Tensor, size: int, how: recipes.Resizing) -> tf.Tensor:
    """Resize a crop, uint8 [H, W, C], to uint8 [size, size, C]."""
    if how.library == "tensorflow":
        return to_uint8(resize(crop, size, size, how.method, antialias=how.antialias))
    return _by_pillow(
        functools.partial(pillow.resize, height=size, width=size, method=how.method), crop, size
    )


def _by_pillow(function: Callable[[np.ndarray], np.ndarray], image: tf.Tensor, size: int) -> tf.Tensor:
    """Run a function from uint8 [H, W, C] to uint8 [size, size, C] as a node of the pipeline."""
    tf = tensorflow()
    image = tf.convert_to_tensor(image)
    out = tf.numpy_function(function, [image], tf.uint8, stateful=False)
    out.set_shape([size, size, image.shape[-1]])
    return out


def to_uint8(image: tf.Tensor) -> tf.Tensor:
    """Clip to [0, 255] and round."""
    tf = tensorflow()
    return tf.cast(tf.round(tf.clip_by_value(image, 0.0, 255.0)), tf.uint8)


def training_views(
    image: tf.Tensor, key: tf.Tensor, config: ConfigDict, copy: tf.Tensor | int = 0
) -> dict[str, tf.Tensor]:
    """Make all training views of one image.

    An image that occurs several times per epoch (`data.repeats`) gets views 0..V-1 as copy 0, V..2V-1 as copy
    1, and so on. A view that shares the crop of another has the same number, so it has the same crop, flip
    and policy.

    Args:
        image: uint8 [H, W, C].
        key: int64 [2], epoch and index.
        config: reads `seed`, `views`, `augment`, `data.image_size` and `data.channels`.
        copy: which copy of the image in this epoch, counted from 0.

    Returns:
        uint8 arrays, with the names and shapes given by `recipes.host_shapes`.

    Raises:
        ValueError: the host cannot make the `crop` of a view.
    """
    tf = tensorflow()
    epoch, index = key[0], key[1]
    stream = tf.constant(config.seed << 32, tf.int64) + epoch
    total = recipes.total(config)
    made = {}
    jittered: dict[int, Any] = {}  # views that share a crop share the jitter of the whole image
    for view in recipes.resolved(config):
        crops = []
        for place in range(view.first, view.first + view.count):
            number = tf.cast(copy, tf.int64) * total + place
            whole = image
            if pillow.jitters_image(view.augment):
                if place not in jittered:
                    drawn = tf.stack((epoch, index, number))
                    jittered[place] = _jittered(image, drawn, config.seed, view.augment)
                whole = jittered[place]
            crop_seed = _words(stream, index, 2 * number)
            flip_seed = _words(stream, index, 2 * number + 1)
            crop = _view(whole, crop_seed, flip_seed, view, config.data.channels)
            if view.augment.policy in policies.ON_HOST:
                crop = _policy(crop, tf.stack([epoch, index, number]), config.seed, view.augment)
            crops.append(crop)
        made[view.name] = tf.stack(crops)
    if made.keys() == recipes.host_shapes(config).keys():
        return made
    return {"image": tf.concat(list(made.values()), 0)}  # views of one size are one array


def _words(stream: tf.Tensor, index: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """Make a seed, int64 [2]: one pair of words for every (seed, epoch, index, view, purpose)."""
    return tensorflow().stack([stream, index * (1 << 16) + number])


def _view(
    image: tf.Tensor, crop_seed: tf.Tensor, flip_seed: tf.Tensor, view: recipes.View, channels: int
) -> tf.Tensor:
    """Make one view: crop, resize and flip. Returns uint8 [size, size, C]."""
    tf = tensorflow()
    size = view.size
    augment = view.augment
    shape = tf.shape(image)

    if augment.crop == "none":
        crop = _central(image, size, 1.0, augment)
    elif augment.crop in BOXES:
        box = BOXES[augment.crop](
            shape[0],
            shape[1],
            crop_seed,
            min_area=augment.min_area,
            max_area=augment.max_area,
            aspect=augment.aspect,
        )
        top, left, height, width = tf.unstack(box)
        crop = image[top : top + height, left : left + width]
        crop = _resized(crop, size, recipes.resizing(augment))
    elif augment.crop == "square":
        crop = _square(image, size, crop_seed, augment)
    elif augment.crop == "dalle":
        areas = {"min_area": augment.min_area, "max_area": augment.max_area}
        top, left, side, _ = tf.unstack(box_dalle(shape[0], shape[1], crop_seed, size=size, **areas))
        crop = _resized(image[top : top + side, left : left + side], size, recipes.resizing(augment))
    elif augment.crop == "squash":
        whole = geometry.squashed_side(size, augment.min_area)
        offset = tf.random.stateless_uniform([2], crop_seed, 0, whole - size + 1, tf.int32)
        crop = _resized(image, whole, recipes.resizing(augment))
        crop = crop[offset[0] : offset[0] + size, offset[1] : offset[1] + size]
    else:
        raise ValueError(
            f"augment.crop={augment.crop!r} does not work with data.crop_on='host': use 'tf', 'torchvision', "
            "'byol', 'square', 'dalle', 'squash' or 'none', or set data.crop_on='device'"
        )

    if augment.flip:
        # tf.reverse, because a slice with stride -1 was measured to cost as much as the resize
        mirrored = tf.random.stateless_uniform([], flip_seed) < 0.5
        crop = tf.cond(mirrored, lambda: tf.reverse(crop, [1]), lambda: crop)
    crop.set_shape([size, size, channels])
    return crop


def _jittered(image: tf.Tensor, place: tf.Tensor, seed: int, augment: ConfigDict) -> tf.Tensor:
    """Run `pillow.jitter` as a node of the pipeline. `place` is (epoch, index, number of the view)."""
    tf = tensorflow()

    def changed(image: np.ndarray, place: np.ndarray) -> np.ndarray:
        return pillow.jitter(image, (seed, *place), augment)

    out = tf.numpy_function(changed, [tf.convert_to_tensor(image), place], tf.uint8, stateful=False)
    out.set_shape(image.shape)
    return out


def _policy(crop: tf.Tensor, place: tf.Tensor, seed: int, augment: ConfigDict) -> tf.Tensor:
    """Run `policies.policy` as a node of the pipeline. `place` is (epoch, index, number of the view)."""
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
    whole: str = "round",
    place: geometry.Place = geometry.CENTRE,
) -> tf.Tensor:
    """Cut out and resize the central crop of google-research/simclr (data_util.py, center_crop).

    The box is the largest one with the aspect ratio of the result. Its sides are multiplied by `proportion`
    and rounded (to even at .5), or cut to whole pixels as in BYOL's code. Its offset is (side - crop + 1) //
    2. The result is not clipped.

    Args:
        image: [H, W, C].
        height, width: size of the result.
        proportion: e.g. 0.875.
        method: "bicubic", "bilinear", "lanczos3" or "area".
        antialias: as for `resize`.
        whole: "round" or "floor".
        place: where the box lies, if not in the centre.

    Returns:
        float32 [height, width, C].
    """
    tf = tensorflow()
    to_whole = tf.round if whole == "round" else tf.floor
    shape = tf.shape(image)
    h = tf.cast(shape[0], tf.float32)
    w = tf.cast(shape[1], tf.float32)
    aspect = width / height
    wide = aspect > w / h  # wider than the image: the box is as wide as the image allows
    crop_h = tf.cast(to_whole(tf.where(wide, proportion / aspect * w, proportion * h)), tf.int32)
    crop_w = tf.cast(to_whole(tf.where(wide, proportion * w, proportion * aspect * h)), tf.int32)
    top = geometry.offset(shape[0] - crop_h, place[0])
    left = geometry.offset(shape[1] - crop_w, place[1])
    crop = image[top : top + crop_h, left : left + crop_w]
    return resize(crop, height, width, method, antialias=antialias)


def eval_image(image: tf.Tensor, config: ConfigDict, place: geometry.Place = geometry.CENTRE) -> tf.Tensor:
    """Make the image that evaluation sees: a central crop of `data.eval_crop` times the shorter side.

    If `data.image_size` is at most 32, the crop has the whole shorter side. With `augment.resize="pillow"`
    the image is resized first and then cropped, see `pillow.central`.

    Args:
        image: [H, W, C].
        config: reads `data` and `augment`.
        place: where the crop lies, if not in the centre.

    Returns:
        uint8 [S, S, C], S = data.image_size.
    """
    data = config.data
    augment = config.augment
    proportion = data.eval_crop if data.image_size > 32 else 1.0
    size = data.image_size
    out = _central(image, size, proportion, augment, place)
    out.set_shape([size, size, data.channels])
    return out


def _central(
    image: tf.Tensor,
    size: int,
    share: float,
    augment: ConfigDict,
    place: geometry.Place = geometry.CENTRE,
) -> tf.Tensor:
    """Make the crop of evaluation by the recipe's way of resizing, uint8 [size, size, C]."""
    how = recipes.resizing(augment)
    if augment.crop == "squash":
        side = geometry.squashed_side(size, share**2)
        top, left = (int(geometry.offset(side - size, at)) for at in place)
        return _resized(image, side, how)[top : top + size, left : left + size]
    if how.library == "pillow":
        central = functools.partial(pillow.central, size=size, share=share, method=how.method, place=place)
        return _by_pillow(central, image, size)
    whole = "floor" if augment.crop == "byol" else "round"
    crop = central_crop(
        image, size, size, share, how.method, antialias=how.antialias, whole=whole, place=place
    )
    return to_uint8(crop)


def _square(image: tf.Tensor, size: int, seed: tf.Tensor, augment: ConfigDict) -> tf.Tensor:
    """Make a random square within the central one, uint8 [size, size, C].

    By Pillow this is torchvision's Resize, CenterCrop and RandomCrop, pixel for pixel.
    """
    tf = tensorflow()
    how = recipes.resizing(augment)
    if how.library == "pillow":
        share = augment.min_area**0.5
        offset = tf.random.stateless_uniform([2], seed, 0, int(size / share) - size + 1, tf.int32)
        cut = functools.partial(pillow.square, size=size, share=share, method=how.method)
        crop = tf.numpy_function(cut, [tf.convert_to_tensor(image), offset], tf.uint8, stateful=False)
        crop.set_shape([size, size, image.shape[-1]])
        return crop
    shape = tf.shape(image)
    top, left, side, _ = tf.unstack(box_square(shape[0], shape[1], seed, area=augment.min_area))
    return _resized(image[top : top + side, left : left + side], size, how)
