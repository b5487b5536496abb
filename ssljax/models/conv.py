"""A convolution that is fast on CPUs too.

On other devices it is XLA's own convolution. On a CPU it is the fastest form that we know for its shape,
equal to XLA's up to rounding:

    3x3, stride 1, at least 32 channels    Winograd's F(2x2, 3x3): 4 of 9 multiplications (Lavin & Gray,
                                           arXiv 1509.09308); float32 only
    1x1                                    a matrix product
    depthwise                              shifted multiply-adds; a kernel gradient from products of a few
                                           images
    grouped                                several groups at a time, as one of the other forms with zeros
                                           between the groups
    few features, stride 1                 one matrix product for all taps, then shifted sums; up to 16
                                           features for a 3x3 kernel
    others                                 XLA's forward pass, an input gradient of shifted sums where there
                                           are strides, a kernel gradient from patches of a few images

XLA's CPU backend is slow at three things: the kernel gradient of a narrow convolution, the input gradient
of a strided one, and everything that is grouped. It takes seconds where milliseconds are enough.

The sums before and after Winograd's products have at most three terms along each axis, with weights of
magnitude 1 and 1/2, so the result rounds like the direct sum. F(4x4, 3x3) needs fewer multiplications but
loses digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], ...]
Size = tuple[int, ...]  # rows and columns
Grid = Sequence[Sequence[jax.Array]]

PIXELS = (
    2048  # how many pixels of the smaller image to work on at a time, so that intermediates stay in the cache
)
NUMBERS = 2**16  # how many numbers of a depthwise output gradient to work on at a time, for the same reason
WIDE = 32  # Winograd's form pays off from this many channels
NARROW = 9 * 16  # shifted products pay off up to this many taps times features


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: Padding | str,
    *,
    feature_group_count: int = 1,
    **options: Any,
) -> jax.Array:
    """Convolve; this is the `conv_general_dilated` of a `flax.linen.Conv`.

    The form is chosen when the program is lowered, so compiling for a TPU on a CPU gives the TPU's form. Only
    reverse-mode differentiation works.

    Args:
        x: `[B, H, W, C]`.
        kernel: `[h, w, C / groups, D]`.
        strides: of rows and columns.
        padding: before and after the rows, before and after the columns; or "SAME".
        feature_group_count: number of groups.
        options: the other arguments that Flax passes; they must be its defaults (no dilation).

    Returns:
        `[B, H', W', D]`.
    """
    del options
    if isinstance(padding, str):
        padding = tuple(lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding))
    return _conv2d(x, kernel, tuple(strides), tuple(map(tuple, padding)), feature_group_count)


def _xla(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding, groups: int = 1
) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv2d(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding, groups: int
) -> jax.Array:
    def by_hand(x: jax.Array, kernel: jax.Array) -> jax.Array:
        if _suits_winograd(x, kernel, strides, padding, groups):
            return _winograd(x, kernel, padding)
        form = _composed(kernel, padding, groups)
        if form:
            return form(x, kernel, strides, padding, groups)
        return _dense(x, kernel, strides, padding)

    xla = partial(_xla, strides=strides, padding=padding, groups=groups)
    if not isinstance(x.shape[0], int):  # an exported network takes any number of images
        return xla(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=by_hand, default=xla)


def _forward(
    x: jax.Array, kernel: jax.Array, *settings: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv2d(x, kernel, *settings), (x, kernel)


def _backward(
    strides: tuple[int, int], padding: Padding, groups: int, saved: tuple, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def automatic(form: Any, x: jax.Array, kernel: jax.Array, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, vjp = jax.vjp(lambda x, kernel: form(x, kernel, strides, padding, groups), x, kernel)
        return vjp(grad)

    def by_hand(x: jax.Array, kernel: jax.Array, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
        if _suits_winograd(x, kernel, strides, padding, groups):
            grad_x = _winograd(grad, kernel, _around(kernel, padding), flipped=True)
            return grad_x, _winograd_kernel_gradient(x, grad, padding)

        form = _composed(kernel, padding, groups)
        if groups == x.shape[-1] == kernel.shape[-1]:
            grad_x = _depthwise_input_gradient(x, kernel, grad, strides, padding)
            return grad_x, _depthwise_kernel_gradient(x, grad, kernel.shape[:2], strides, padding)
        if groups > 1:
            return automatic(form, x, kernel, grad)

        if form:
            grad_x, _ = automatic(form, x, kernel, grad)
        elif strides == (1, 1):
            grad_x = _dense(grad, _reversed(kernel), strides, _around(kernel, padding))
        else:
            grad_x = _input_gradient(kernel, grad, x.shape[1:3], strides, padding)
        return grad_x, _kernel_gradient(x, grad, kernel.shape[:2], strides, padding)

    return lax.platform_dependent(*saved, grad, cpu=by_hand, default=partial(automatic, _xla))


_conv2d.defvjp(_forward, _backward)


def _dense(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding) -> jax.Array:
    """XLA's convolution, or with few features the sums of shifted products.

    The latter is written as an input gradient: that of the convolution whose input gradient is this one.
    """
    if strides != (1, 1) or math.prod(kernel.shape[:2]) * kernel.shape[-1] > NARROW:
        return _xla(x, kernel, strides, padding)
    size = _output_size(x, kernel.shape[:2], strides, padding)
    return _input_gradient(_reversed(kernel), x, size, strides, _around(kernel, padding))


def _reversed(kernel: jax.Array) -> jax.Array:
    """The kernel of the input gradient: `[h, w, C, D] -> [h, w, D, C]`, both axes reversed."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _around(kernel: jax.Array, padding: Padding) -> Padding:
    """The padding of the input gradient of a convolution without strides."""
    return tuple(
        (extent - 1 - before, extent - 1 - after)
        for extent, (before, after) in zip(kernel.shape[:2], padding, strict=True)
    )


def _output_size(x: jax.Array, size: Size, strides: tuple[int, int], padding: Padding) -> Size:
    """Rows and columns that a kernel of `size` makes of `x`."""
    return tuple(
        (length + before + after - extent) // stride + 1
        for length, extent, stride, (before, after) in zip(x.shape[1:3], size, strides, padding, strict=True)
    )


def _input_gradient(
    kernel: jax.Array, grad: jax.Array, size: Size, strides: tuple[int, int], padding: Padding
) -> jax.Array:
    """The input gradient `[B, *size, C]`: the products of all taps at once, then their sums.

    XLA puts zeros between the pixels of `grad` and convolves those too. Pixel s q + r of the input meets
    tap t of output pixel q + a where s a = r + before - t, so each of the s x s phases r is a sum of shifted
    products.
    """
    *extent, channels, features = kernel.shape
    axes = zip(size, grad.shape[1:3], extent, strides, padding, strict=True)
    rows, columns = (_phases(*axis) for axis in axes)
    pads = (rows.pads, columns.pads)
    matrix = kernel.transpose(3, 0, 1, 2).reshape(features, -1)

    def gradient(grad: jax.Array) -> jax.Array:
        # Without strides pad `grad`, which is smaller than its products: worth a few products of zeros.
        if strides == (1, 1):
            grad = _pad(grad, pads)
        y = jnp.matmul(grad, matrix, preferred_element_type=jnp.float32)
        y = y.reshape(*grad.shape[:3], *extent, channels)
        if strides != (1, 1):
            y = _pad(y, pads)

        zeros = jnp.zeros((y.shape[0], rows.length, columns.length, channels), y.dtype)

        def phase(row_taps: Taps, column_taps: Taps) -> jax.Array:
            total = zeros
            for t, a in row_taps:
                for u, b in column_taps:
                    total = total + y[:, a : a + rows.length, b : b + columns.length, t, u]
            return total

        phases = [[phase(row, column) for column in columns.taps] for row in rows.taps]
        whole = _interleaved(phases).astype(grad.dtype)
        whole = whole.reshape(whole.shape[0], whole.shape[1] * strides[0], -1, channels)
        return whole[:, : size[0], : size[1]]

    return _in_chunks(gradient, _images(grad), grad)


Taps = list[tuple[int, int]]


class Phases(NamedTuple):
    """The phases of an input gradient along one axis.

    Attributes:
        pads: padding of `grad`, before and after.
        length: pixels in a phase.
        taps: for each phase its taps, each with the first padded pixel that it meets.
    """

    pads: tuple[int, int]
    length: int
    taps: list[Taps]


def _phases(size: int, out: int, extent: int, stride: int, padding: tuple[int, int]) -> Phases:
    before, _ = padding
    length = -(-size // stride)
    first = (before - extent) // stride + 1  # the smallest and the largest `a` that have a tap
    last = (stride - 1 + before) // stride
    taps = [
        [(t, (r + before - t) // stride - first) for t in range(extent) if (r + before - t) % stride == 0]
        for r in range(stride)
    ]
    return Phases((-first, length - 1 + last - (out - 1)), length, taps)


def _interleaved(grid: Grid) -> jax.Array:
    """The arrays `[n, h, w, D]` of a grid of R x S as one array `[n, h, R, w, S, D]`."""
    return jnp.stack([jnp.stack(row, axis=3) for row in grid], axis=2)


def _kernel_gradient(
    x: jax.Array, grad: jax.Array, size: Size, strides: tuple[int, int], padding: Padding
) -> jax.Array:
    """The output gradient times patches, a few images at a time, summed in float32: `[h, w, C, D]`."""
    channels = x.shape[-1]
    features = grad.shape[-1]

    def product(x: jax.Array, grad: jax.Array) -> jax.Array:
        taps = [tap for _, _, tap in _taps(x, size, strides, padding)]
        patches = jnp.concatenate(taps, axis=-1)  # [n, H', W', h * w * C]
        # The long side is the columns of the matrix product: faster than its transpose.
        grads = grad.reshape(-1, features).T
        patches = patches.reshape(-1, patches.shape[-1])
        return jnp.matmul(grads, patches, preferred_element_type=jnp.float32)

    total = _summed(product, x, grad)
    return total.T.reshape(*size, channels, features).astype(x.dtype)


def _pad(x: jax.Array, padding: Padding) -> jax.Array:
    """`x` with zeros around its rows and columns, the second and third axis; a negative padding crops."""
    untouched = (0, 0, 0)
    rows, columns = ((before, after, 0) for before, after in padding)
    return lax.pad(x, jnp.zeros((), x.dtype), (untouched, rows, columns, *(untouched,) * (x.ndim - 3)))


def _images(x: jax.Array) -> int:
    """How many images to work on at a time: the largest divisor of the batch within PIXELS pixels, or 1."""
    return _divisor(x, PIXELS // math.prod(x.shape[1:3]))


def _divisor(x: jax.Array, most: int) -> int:
    """The largest divisor of the batch that is at most `most`, or 1."""
    return max(n for n in range(1, x.shape[0] + 1) if x.shape[0] % n == 0 and (n == 1 or n <= most))


def _chunks(x: jax.Array, n: int) -> jax.Array:
    return x.reshape(-1, n, *x.shape[1:])


def _in_chunks(function: Callable[[jax.Array], jax.Array], n: int, x: jax.Array) -> jax.Array:
    """`function(x)`, computed for `n` images at a time."""
    if n == x.shape[0]:
        return function(x)
    y = lax.map(function, _chunks(x, n))
    return y.reshape(-1, *y.shape[2:])


def _summed(
    function: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, grad: jax.Array, n: int = 0
) -> jax.Array:
    """`function(x, grad)` of `n` images at a time, or of `_images`, summed in float32."""
    n = n or _images(grad)
    shape = jax.eval_shape(function, x[:n], grad[:n]).shape

    def add(total: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + function(*chunk), None

    total, _ = lax.scan(add, jnp.zeros(shape, jnp.float32), (_chunks(x, n), _chunks(grad, n)))
    return total


def _composed(kernel: jax.Array, padding: Padding, groups: int) -> Callable[..., jax.Array] | None:
    """The form that is made of other operations, if this shape has one.

    Automatic differentiation of it is fast, except for `_pointwise` with respect to the kernel.
    """
    if groups > 1:
        return _depthwise if kernel.shape[2] == 1 else _grouped
    padded = any(map(any, padding))
    return _pointwise if kernel.shape[:2] == (1, 1) and not padded else None


def _pointwise(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding, groups: int
) -> jax.Array:
    del padding, groups
    return x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]


def _depthwise(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding, groups: int
) -> jax.Array:
    x = jnp.repeat(x, kernel.shape[-1] // groups, axis=-1)  # the outputs of a channel lie side by side
    taps = _taps(x, kernel.shape[:2], strides, padding)
    return reduce(jnp.add, (tap * kernel[i : i + 1, j : j + 1] for i, j, tap in taps))


def _depthwise_input_gradient(
    x: jax.Array, kernel: jax.Array, grad: jax.Array, strides: tuple[int, int], padding: Padding
) -> jax.Array:
    """The input gradient where every channel has one output.

    Without strides it is such a convolution too: one pass, where automatic differentiation adds up the taps.
    """
    groups = x.shape[-1]
    if strides == (1, 1):
        return _depthwise(grad, kernel[::-1, ::-1], strides, _around(kernel, padding), groups)
    _, vjp = jax.vjp(lambda x: _depthwise(x, kernel, strides, padding, groups), x)
    return vjp(grad)[0]


def _depthwise_kernel_gradient(
    x: jax.Array, grad: jax.Array, size: Size, strides: tuple[int, int], padding: Padding
) -> jax.Array:
    """The kernel gradient where every channel has one output, `[h, w, 1, C]`.

    It sums the products of the output gradient with every tap. XLA's own sums over rows and columns are
    slow, so a matrix product with ones takes them.
    """
    channels = x.shape[-1]

    def product(x: jax.Array, grad: jax.Array) -> jax.Array:
        ones = jnp.ones((1, math.prod(grad.shape[:3])), grad.dtype)
        products = [(tap * grad).reshape(-1, channels) for _, _, tap in _taps(x, size, strides, padding)]
        sums = [jnp.matmul(ones, each, preferred_element_type=jnp.float32) for each in products]
        return jnp.concatenate(sums)

    images = _divisor(grad, NUMBERS // math.prod(grad.shape[1:]))
    total = _summed(product, x, grad, images)
    return total.reshape(*size, 1, channels).astype(x.dtype)


def _grouped(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding, groups: int
) -> jax.Array:
    """Neighbouring groups in one convolution of up to WIDE channels.

    The zeros between the groups cost less than narrow convolutions do.
    """
    *size, narrow, features = kernel.shape
    together = max(n for n in range(1, groups + 1) if groups % n == 0 and (n == 1 or n * narrow <= WIDE))
    parts = groups // together

    # [part, h, w, group * C, group * D]: block-diagonal in the groups of a part.
    kernel = kernel.reshape(*size, narrow, parts, together, features // groups)
    diagonal = jnp.eye(together, dtype=kernel.dtype)
    kernel = jnp.einsum("hwcpgd,fg->phwfcgd", kernel, diagonal)
    kernel = kernel.reshape(parts, *size, together * narrow, features // parts)

    outputs = [
        _conv2d(part, kernel[i], strides, padding, 1) for i, part in enumerate(jnp.split(x, parts, axis=-1))
    ]
    return jnp.concatenate(outputs, axis=-1)


def _taps(
    x: jax.Array, size: Size, strides: tuple[int, int], padding: Padding
) -> Iterator[tuple[int, int, jax.Array]]:
    """For every tap `i, j` of a kernel, the pixels that it meets: `[B, H', W', C]`."""
    rows, columns = _output_size(x, size, strides, padding)
    down, across = strides
    x = _pad(x, padding)
    for i in range(size[0]):
        for j in range(size[1]):
            met_rows = slice(i, i + (rows - 1) * down + 1, down)
            met_columns = slice(j, j + (columns - 1) * across + 1, across)
            yield i, j, x[:, met_rows, met_columns]


# Winograd's form. With 4x4 pixels d of the input and the kernel g, 2x2 pixels of the output are
# OUT (KERNEL g KERNEL' * IN d IN') OUT'.
IN = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
KERNEL = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
OUT = ((1, 1, 1, 0), (0, 1, -1, -1))
FLIPPED = (3, 1, 2, 0)  # the rows of KERNEL for a reversed kernel


def _suits_winograd(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding, groups: int
) -> bool:
    """Whether Winograd's form applies and pays off: with few channels its sums cost more than it saves."""
    usual = kernel.shape[:2] == (3, 3) and strides == (1, 1) and groups == 1
    padded_by_two_at_most = all(0 <= p <= 2 for pair in padding for p in pair)
    wide = min(kernel.shape[2:]) >= WIDE
    return usual and padded_by_two_at_most and wide and x.dtype == jnp.float32


def _winograd(x: jax.Array, kernel: jax.Array, padding: Padding, *, flipped: bool = False) -> jax.Array:
    """`[B, H, W, C]` with `[3, 3, C, D]` -> `[B, H', W', D]`.

    `flipped` takes a kernel `[3, 3, D, C]` and reverses it: the input gradient.
    """
    rows, columns = _output_size(x, (3, 3), (1, 1), padding)
    order = FLIPPED if flipped else range(4)
    channels = 1 if flipped else 0  # the axis of the kernel that meets the channels of `x`
    sums = _sandwich(KERNEL, kernel)
    kernels = [sums[i][j] for i in order for j in order]

    def convolved(x: jax.Array) -> jax.Array:
        products = [
            lax.dot_general(tile, kernel, (((3,), (channels,)), ((), ())))
            for tile, kernel in zip(_input_tiles(x, padding), kernels, strict=True)
        ]
        squares = _sandwich(OUT, [products[i : i + 4] for i in range(0, 16, 4)])
        y = _interleaved(squares)
        y = y.reshape(y.shape[0], 2 * y.shape[1], 2 * y.shape[3], -1)
        return y[:, :rows, :columns]

    return _in_chunks(convolved, _images(x), x)


def _winograd_kernel_gradient(x: jax.Array, grad: jax.Array, padding: Padding) -> jax.Array:
    """`[3, 3, C, D]`: the transpose of `_winograd` with respect to its kernel."""

    def products(x: jax.Array, grad: jax.Array) -> jax.Array:
        n, rows, columns, features = grad.shape
        grad = _pad(grad, ((0, rows % 2), (0, columns % 2)))
        grad = grad.reshape(n, grad.shape[1] // 2, 2, grad.shape[2] // 2, 2, features)
        squares = [[grad[:, :, i, :, j] for j in range(2)] for i in range(2)]
        outputs = _sandwich(_transposed(OUT), squares)

        tiles = jnp.stack(_input_tiles(x, padding)).reshape(16, -1, x.shape[-1])
        grads = jnp.stack(sum(outputs, [])).reshape(16, -1, features)
        return jnp.einsum("ktc,ktd->kcd", tiles, grads)

    total = _summed(products, x, grad)
    total = total.reshape(4, 4, *total.shape[1:])
    kernel = _sandwich(_transposed(KERNEL), total)
    return jnp.stack([jnp.stack(row) for row in kernel])


def _input_tiles(x: jax.Array, padding: Padding) -> list[jax.Array]:
    """IN d IN' of overlapping 4x4 squares two pixels apart: sixteen `[B, h, w, C]`."""
    sizes = _output_size(x, (3, 3), (1, 1), padding)
    rows, columns = (-(-size // 2) for size in sizes)  # of squares

    # Pad to whole squares.
    height, width = (
        (padding[axis][0], 2 * tiles + 2 - x.shape[1 + axis] - padding[axis][0])
        for axis, tiles in enumerate((rows, columns))
    )
    x = _pad(x, (height, width))
    x = x.reshape(x.shape[0], rows + 1, 2, columns + 1, 2, -1)

    def tap(i: int, j: int) -> jax.Array:
        first_row = i // 2
        first_column = j // 2
        return x[:, first_row : first_row + rows, i % 2, first_column : first_column + columns, j % 2]

    squares = [[tap(i, j) for j in range(4)] for i in range(4)]
    return sum(_sandwich(IN, squares), [])


def _sandwich(matrix: tuple[tuple[float, ...], ...], grid: Grid | jax.Array) -> list[list[jax.Array]]:
    """`matrix grid matrix'`, where the elements of `grid` are arrays."""

    def times(column: Sequence[jax.Array]) -> list[jax.Array]:
        sums = []
        for row in matrix:
            terms = [
                x if weight == 1 else weight * x for weight, x in zip(row, column, strict=True) if weight
            ]
            sums.append(reduce(jnp.add, terms))
        return sums

    columns = [times(column) for column in zip(*grid, strict=True)]
    return [times(row) for row in zip(*columns, strict=True)]


def _transposed(matrix: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
    return tuple(zip(*matrix, strict=True))
