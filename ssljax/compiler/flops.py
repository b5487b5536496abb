"""Floating-point operations of the matrix products and convolutions in a JAX program, counted from its jaxpr.

This is the count of the program as written, for the whole batch, with the body of a loop counted as often as
it runs and recomputation (remat) included. XLA's own count is per device, takes the body of a loop once and
leaves out custom calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax import lax

# The matrix unit multiplies bfloat16, so a float32 product takes this many bfloat16 products
# (jax.lax.Precision: HIGHEST is bf16_6x).
PASSES = {lax.Precision.HIGHEST: 6, lax.Precision.HIGH: 3}


class Flops(NamedTuple):
    """The operations of a program. A multiplication and an addition count as two.

    Attributes:
        written: of the program as written.
        on_mxu: the same, with each float32 product counted once per pass that the matrix unit makes for the
            requested precision.
    """

    written: int = 0
    on_mxu: int = 0

    def plus(self, other: Flops, times: int = 1) -> Flops:
        """The sum of this and `times` times `other`."""
        return Flops(self.written + times * other.written, self.on_mxu + times * other.on_mxu)


def count(function: Callable[..., Any], *args: Any) -> Flops:
    """The operations of one call. The arguments may be `jax.ShapeDtypeStruct`s."""
    return of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def of_jaxpr(jaxpr: Any) -> Flops:
    """The operations of a jaxpr, closed or open.

    Of the branches of a condition only the most expensive counts. A loop of unknown length counts once.
    """
    total = Flops()
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if eqn.primitive.name == "cond":
            branches = [of_jaxpr(branch) for branch in eqn.params["branches"]]
            total = total.plus(max(branches, key=lambda flops: flops.on_mxu))
        elif eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            total = total.plus(_product(eqn))
        else:
            times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            for inner in _inner(eqn):
                total = total.plus(of_jaxpr(inner), times)
    return total


def _product(eqn: Any) -> Flops:
    """The operations of a `dot_general` or `conv_general_dilated`."""
    left, right = (v.aval.shape for v in eqn.invars)
    outputs = math.prod(eqn.outvars[0].aval.shape)
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        flops = 2 * outputs * math.prod(left[axis] for axis in contracted)
    else:
        features = right[eqn.params["dimension_numbers"].rhs_spec[0]]
        # The input of a strided layer's gradient has zeros between its rows, which are not multiplied.
        dilation = math.prod(eqn.params["lhs_dilation"])
        flops = 2 * outputs * (math.prod(right) // features) // dilation

    precision = eqn.params["precision"]
    precision = precision[0] if isinstance(precision, tuple) else precision
    passes = PASSES.get(precision, 1) if eqn.invars[0].aval.dtype == "float32" else 1
    return Flops(flops, flops * passes)


def _inner(eqn: Any) -> Iterator[Any]:
    """The jaxprs among the parameters of an equation."""
    for value in eqn.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(getattr(part, "jaxpr", part), "eqns"):
                yield part
