"""Floating-point operations of a JAX program, counted from its jaxpr: matrix products and convolutions, loops times their length.

XLA's own count takes the body of a loop once, is per device and leaves out what a custom call does; this one is of the program as written,
for the whole batch, recomputation (remat) included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax import lax

# A float32 product on the matrix unit, which multiplies bfloat16, is so many bfloat16 products (jax.lax.Precision: HIGHEST is bf16_6x).
PASSES = {lax.Precision.HIGHEST: 6, lax.Precision.HIGH: 3}


class Flops(NamedTuple):
    """Operations of a program; a multiplication and an addition are two.

    Attributes:
        written: as the program says.
        on_mxu: the same with each float32 product counted as often as the matrix unit runs it for the precision asked for.
    """

    written: int = 0
    on_mxu: int = 0

    def plus(self, other: Flops, times: int = 1) -> Flops:
        """The sum, `other` counted `times` times."""
        return Flops(self.written + times * other.written, self.on_mxu + times * other.on_mxu)


def count(function: Callable[..., Any], *args: Any) -> Flops:
    """The operations of one call; the arguments may be `jax.ShapeDtypeStruct`s."""
    return of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def of_jaxpr(jaxpr: Any) -> Flops:
    """Of a (closed or open) jaxpr. Of the branches of a condition the dearest counts, a loop of unknown length counts once."""
    total = Flops()
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if eqn.primitive.name == "cond":
            total = total.plus(
                max((of_jaxpr(branch) for branch in eqn.params["branches"]), key=lambda f: f.on_mxu)
            )
        elif eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            total = total.plus(_product(eqn))
        else:
            times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            for inner in _inner(eqn):
                total = total.plus(of_jaxpr(inner), times)
    return total


def _product(eqn: Any) -> Flops:
    left, right = (v.aval.shape for v in eqn.invars)
    outputs = math.prod(eqn.outvars[0].aval.shape)
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        flops = 2 * outputs * math.prod(left[axis] for axis in contracted)
    else:
        features = right[eqn.params["dimension_numbers"].rhs_spec[0]]
        dilation = math.prod(
            eqn.params["lhs_dilation"]
        )  # the zeros between the rows of a strided layer's gradient
        flops = 2 * outputs * (math.prod(right) // features) // dilation
    precision = eqn.params["precision"]
    precision = precision[0] if isinstance(precision, tuple) else precision
    passes = PASSES.get(precision, 1) if eqn.invars[0].aval.dtype == "float32" else 1
    return Flops(flops, flops * passes)


def _inner(eqn: Any) -> Iterator[Any]:
    for value in eqn.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(getattr(part, "jaxpr", part), "eqns"):
                yield part
