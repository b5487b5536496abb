"""A convolution that is quick on a CPU too: elsewhere XLA's own, on CPUs the quickest form we know for its shape, equal but for rounding.

    3x3, stride 1, 32 channels or more     Winograd's F(2x2, 3x3): 4 of 9 multiplications (Lavin & Gray, arXiv 1509.09308); float32 only
    1x1                                    a matrix product
    depthwise                              shifted multiply-adds
    grouped                                some groups at a time, as one of the others with zeros between the groups
    up to 16 features, stride 1            one matrix product for all taps, then shifted sums; so are strided input gradients
    others                                 XLA's forward; kernel gradients from patches, a few images at a time

XLA's CPU back end is slow at the gradient of a narrow convolution with respect to its kernel, at that of a strided one with respect to
its input, and at all that is grouped: seconds where milliseconds do. The sums before and after Winograd's products are of four numbers at
most, with weights 1 and 1/2, so that it rounds like the direct sum; F(4x4, 3x3), which multiplies less, loses digits.
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
PIXELS = 2048  # of the smaller image at a time: what is made of them stays in the cache
WIDE = 32  # channels from which Winograd's pays
NARROW = 9 * 16  # taps times features up to which shifted products pay


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: Padding,
    *,
    feature_group_count: int = 1,
    **options: Any,
) -> jax.Array:
    """`[B, H, W, C]` with `kernel [h, w, C / groups, D]` -> `[B, H', W', D]`; the `conv_general_dilated` of a `flax.linen.Conv`.

    The other `options` of that argument are the defaults (no dilation). The choice falls when the program is lowered, so that compiling
    for a TPU on a CPU is right. Reverse-mode differentiation only.
    """
    del options
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
        if form := _composed(kernel, padding, groups):
            return form(x, kernel, strides, padding, groups)
        return _dense(x, kernel, strides, padding)

    return lax.platform_dependent(
        x, kernel, cpu=by_hand, default=partial(_xla, strides=strides, padding=padding, groups=groups)
    )


def _forward(
    x: jax.Array, kernel: jax.Array, *settings: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv2d(x, kernel, *settings), (x, kernel)


def _backward(
    strides: tuple[int, int], padding: Padding, groups: int, saved: tuple, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def automatic(form: Any, x: jax.Array, kernel: jax.Array, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vjp(lambda x, kernel: form(x, kernel, strides, padding, groups), x, kernel)[1](grad)

    def by_hand(x: jax.Array, kernel: jax.Array, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
        if _suits_winograd(x, kernel, strides, padding, groups):
            return _winograd(grad, kernel, _around(kernel, padding), flipped=True), _winograd_kernel_gradient(
                x, grad, padding
            )
        form = _composed(kernel, padding, groups)
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
    """XLA's, or with few features the sums of shifted products: the input gradient of the convolution that has this one for its own."""
    if strides != (1, 1) or math.prod(kernel.shape[:2]) * kernel.shape[-1] > NARROW:
        return _xla(x, kernel, strides, padding)
    size = tuple(x.shape[1 + axis] + sum(padding[axis]) - kernel.shape[axis] + 1 for axis in range(2))
    return _input_gradient(_reversed(kernel), x, size, strides, _around(kernel, padding))


def _reversed(kernel: jax.Array) -> jax.Array:
    """`[h, w, C, D] -> [h, w, D, C]`, read backwards: the kernel of the input gradient."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _around(kernel: jax.Array, padding: Padding) -> Padding:
    """The padding of the input gradient, without strides."""
    return tuple(
        (extent - 1 - before, extent - 1 - after)
        for extent, (before, after) in zip(kernel.shape[:2], padding, strict=True)
    )


def _input_gradient(
    kernel: jax.Array, grad: jax.Array, size: tuple[int, int], strides: tuple[int, int], padding: Padding
) -> jax.Array:
    """The input gradient `[B, *size, C]`: the products of all taps at once, then their sums.

    XLA spreads `grad` with zeros between its pixels and convolves those too. Pixel s q + r of the input meets tap t of output pixel
    q + a where s a = r + before - t: so each of the s x s phases r is a sum of shifted products.
    """
    (*extent, channels, features), dtype = kernel.shape, grad.dtype
    rows, columns = (
        _phases(*axis) for axis in zip(size, grad.shape[1:3], extent, strides, padding, strict=True)
    )
    pads = rows.pads, columns.pads
    matrix = kernel.transpose(3, 0, 1, 2).reshape(features, -1)

    def some(grad: jax.Array) -> jax.Array:
        if strides == (1, 1):  # pads the smaller: worth a few products too many unless the map is small
            grad = _pad(grad, pads)
        y = jnp.matmul(grad, matrix, preferred_element_type=jnp.float32).reshape(
            *grad.shape[:3], *extent, channels
        )
        if strides != (1, 1):
            y = _pad(y, pads)
        nothing = jnp.zeros((y.shape[0], rows.count, columns.count, channels), y.dtype)
        phases = [
            [
                sum(
                    (
                        y[:, a : a + rows.count, b : b + columns.count, t, u]
                        for t, a in row
                        for u, b in column
                    ),
                    start=nothing,
                )
                for column in columns.taps
            ]
            for row in rows.taps
        ]
        y = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2).astype(
            dtype
        )  # [n, q, r, q', r', C]
        return y.reshape(y.shape[0], y.shape[1] * strides[0], -1, channels)[:, : size[0], : size[1]]

    return _in_chunks(some, _images(grad), grad)


class Phases(NamedTuple):
    """Along one axis: how `grad` is padded, the length of a phase, and of each phase its taps with the first padded pixel they meet."""

    pads: tuple[int, int]
    count: int
    taps: list[list[tuple[int, int]]]


def _phases(length: int, out: int, extent: int, stride: int, padding: tuple[int, int]) -> Phases:
    before, count = padding[0], -(-length // stride)
    first, last = (before - extent) // stride + 1, (stride - 1 + before) // stride  # of all a with a tap
    taps = [
        [(t, (r + before - t) // stride - first) for t in range(extent) if (r + before - t) % stride == 0]
        for r in range(stride)
    ]
    return Phases((-first, count - 1 + last - (out - 1)), count, taps)


def _kernel_gradient(
    x: jax.Array, grad: jax.Array, size: tuple[int, int], strides: tuple[int, int], padding: Padding
) -> jax.Array:
    """Output gradient times patches, a few images at a time, summed in float32: `[h, w, C, D]`."""
    channels, features = x.shape[-1], grad.shape[-1]

    def product(x: jax.Array, grad: jax.Array) -> jax.Array:
        patches = jnp.concatenate(
            [tap for _, _, tap in _taps(x, size, strides, padding)], axis=-1
        )  # [n, H', W', h*w*C]
        # The long side is the matrix product's columns: quicker than its transpose.
        return jnp.matmul(
            grad.reshape(-1, features).T,
            patches.reshape(-1, patches.shape[-1]),
            preferred_element_type=jnp.float32,
        )

    return _summed(product, x, grad).T.reshape(*size, channels, features).astype(x.dtype)


def _pad(x: jax.Array, padding: Padding) -> jax.Array:
    """Rows and columns, the second and third axis of `x`; a negative padding cuts."""
    return lax.pad(
        x,
        jnp.zeros((), x.dtype),
        ((0, 0, 0), *((*pair, 0) for pair in padding), *((0, 0, 0),) * (x.ndim - 3)),
    )


def _images(x: jax.Array) -> int:
    """The largest divisor of the batch with up to PIXELS pixels, at least 1: so many images at a time."""
    most = PIXELS // math.prod(x.shape[1:3])
    return max(n for n in range(1, x.shape[0] + 1) if x.shape[0] % n == 0 and (n == 1 or n <= most))


def _chunks(x: jax.Array, n: int) -> jax.Array:
    return x.reshape(-1, n, *x.shape[1:])


def _in_chunks(some: Callable[[jax.Array], jax.Array], n: int, x: jax.Array) -> jax.Array:
    """`some` of `n` images at a time."""
    if n == x.shape[0]:
        return some(x)
    y = lax.map(some, _chunks(x, n))
    return y.reshape(-1, *y.shape[2:])


def _summed(some: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, grad: jax.Array) -> jax.Array:
    """The sum in float32 of `some` of a few images at a time."""
    n = _images(grad)
    zeros = jnp.zeros(jax.eval_shape(some, x[:n], grad[:n]).shape, jnp.float32)
    return lax.scan(
        lambda total, chunk: (total + some(*chunk), None), zeros, (_chunks(x, n), _chunks(grad, n))
    )[0]


def _composed(kernel: jax.Array, padding: Padding, groups: int) -> Callable[..., jax.Array] | None:
    """The form that is made of other operations, if the shape has one; all its gradients but `_pointwise`'s to the kernel are quick."""
    if groups > 1:
        return _depthwise if kernel.shape[2] == 1 else _grouped
    return _pointwise if kernel.shape[:2] == (1, 1) and not any(map(any, padding)) else None


def _pointwise(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding, groups: int
) -> jax.Array:
    del padding, groups
    return x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]


def _depthwise(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding, groups: int
) -> jax.Array:
    x = jnp.repeat(x, kernel.shape[-1] // groups, axis=-1)  # several outputs of a channel lie side by side
    return reduce(
        jnp.add,
        (tap * kernel[i : i + 1, j : j + 1] for i, j, tap in _taps(x, kernel.shape[:2], strides, padding)),
    )


def _grouped(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding, groups: int
) -> jax.Array:
    """Convolutions of neighbouring groups together, up to WIDE channels at a time; the zeros between groups cost less than narrow ones."""
    *size, narrow, features = kernel.shape
    together = max(n for n in range(1, groups + 1) if groups % n == 0 and (n == 1 or n * narrow <= WIDE))
    parts = groups // together
    kernel = kernel.reshape(*size, narrow, parts, together, features // groups)
    diagonal = jnp.eye(together, dtype=kernel.dtype)
    kernel = jnp.einsum("hwcpgd,fg->phwfcgd", kernel, diagonal).reshape(
        parts, *size, together * narrow, features // parts
    )
    return jnp.concatenate(
        [
            _conv2d(part, kernel[i], strides, padding, 1)
            for i, part in enumerate(jnp.split(x, parts, axis=-1))
        ],
        axis=-1,
    )


def _taps(
    x: jax.Array, size: tuple[int, int], strides: tuple[int, int], padding: Padding
) -> Iterator[tuple[int, int, jax.Array]]:
    """What every tap `i, j` of a kernel meets: `[B, H', W', C]`."""
    x = _pad(x, padding)
    rows, columns = ((x.shape[1 + axis] - size[axis]) // strides[axis] + 1 for axis in range(2))
    for i in range(size[0]):
        for j in range(size[1]):
            yield (
                i,
                j,
                x[
                    :,
                    i : i + (rows - 1) * strides[0] + 1 : strides[0],
                    j : j + (columns - 1) * strides[1] + 1 : strides[1],
                ],
            )


# Winograd's: with d 4x4 pixels of the input and g the kernel, 2x2 pixels of the output are OUT (KERNEL g KERNEL' * IN d IN') OUT'.
IN = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
KERNEL = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
OUT = ((1, 1, 1, 0), (0, 1, -1, -1))
FLIPPED = (3, 1, 2, 0)  # rows of KERNEL for a kernel read backwards

Grid = Sequence[Sequence[jax.Array]]


def _suits_winograd(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding, groups: int
) -> bool:
    """Its sums before and after the products cost more than they save where there are few channels."""
    usual = (
        kernel.shape[:2] == (3, 3)
        and strides == (1, 1)
        and groups == 1
        and all(0 <= p <= 2 for pair in padding for p in pair)
    )
    return usual and min(kernel.shape[2:]) >= WIDE and x.dtype == jnp.float32


def _winograd(x: jax.Array, kernel: jax.Array, padding: Padding, *, flipped: bool = False) -> jax.Array:
    """`[B, H, W, C]` with `[3, 3, C, D]` -> `[B, H', W', D]`; `flipped`, with `[3, 3, D, C]` read backwards: the input gradient."""
    rows, columns = (x.shape[1 + axis] + sum(padding[axis]) - 2 for axis in range(2))
    order = FLIPPED if flipped else range(4)
    sums = _sandwich(KERNEL, kernel)
    kernels = [sums[i][j] for i in order for j in order]

    def some(x: jax.Array) -> jax.Array:
        products = [
            lax.dot_general(tile, kernel, (((3,), (1 if flipped else 0,)), ((), ())))
            for tile, kernel in zip(_input_tiles(x, padding), kernels, strict=True)
        ]
        y = _sandwich(OUT, [products[i : i + 4] for i in range(0, 16, 4)])
        y = jnp.stack([jnp.stack(row, axis=3) for row in y], axis=2)  # [n, h, 2, w, 2, D]
        return y.reshape(y.shape[0], 2 * y.shape[1], 2 * y.shape[3], -1)[:, :rows, :columns]

    return _in_chunks(some, _images(x), x)


def _winograd_kernel_gradient(x: jax.Array, grad: jax.Array, padding: Padding) -> jax.Array:
    """`[3, 3, C, D]`: the transpose of `_winograd` with respect to its kernel."""

    def some(x: jax.Array, grad: jax.Array) -> jax.Array:
        n, rows, columns, features = grad.shape
        grad = _pad(grad, ((0, rows % 2), (0, columns % 2)))
        grad = grad.reshape(n, grad.shape[1] // 2, 2, grad.shape[2] // 2, 2, features)
        outputs = _sandwich(_transposed(OUT), [[grad[:, :, i, :, j] for j in range(2)] for i in range(2)])
        tiles = jnp.stack(_input_tiles(x, padding)).reshape(16, -1, x.shape[-1])
        return jnp.einsum("ktc,ktd->kcd", tiles, jnp.stack(sum(outputs, [])).reshape(16, -1, features))

    total = _summed(some, x, grad)
    return jnp.stack(
        [jnp.stack(row) for row in _sandwich(_transposed(KERNEL), total.reshape(4, 4, *total.shape[1:]))]
    )


def _input_tiles(x: jax.Array, padding: Padding) -> list[jax.Array]:
    """IN d IN' of overlapping 4x4 squares two pixels apart: sixteen `[B, h, w, C]`."""
    rows, columns = (-(-(x.shape[1 + axis] + sum(padding[axis]) - 2) // 2) for axis in range(2))
    height, width = (
        (padding[axis][0], 2 * tiles + 2 - x.shape[1 + axis] - padding[axis][0])
        for axis, tiles in enumerate((rows, columns))
    )
    x = _pad(x, (height, width))
    x = x.reshape(x.shape[0], rows + 1, 2, columns + 1, 2, -1)
    tiles = [
        [x[:, i // 2 : i // 2 + rows, i % 2, j // 2 : j // 2 + columns, j % 2] for j in range(4)]
        for i in range(4)
    ]
    return sum(_sandwich(IN, tiles), [])


def _sandwich(matrix: tuple[tuple[float, ...], ...], grid: Grid | jax.Array) -> list[list[jax.Array]]:
    """`matrix grid matrix'`, where the elements of `grid` are arrays."""

    def times(column: Sequence[jax.Array]) -> list[jax.Array]:
        weighted = (
            [x if weight == 1 else weight * x for weight, x in zip(row, column, strict=True) if weight]
            for row in matrix
        )
        return [reduce(jnp.add, terms) for terms in weighted]

    return [times(row) for row in zip(*(times(column) for column in zip(*grid, strict=True)), strict=True)]


def _transposed(matrix: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
    return tuple(zip(*matrix, strict=True))
