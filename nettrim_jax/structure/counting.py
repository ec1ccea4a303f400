"""Multiply-adds and activations of a program.

Knows jaxprs; knows no groups of units.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nettrim_jax.tracing import jaxprs


class Work(NamedTuple):
    """What one run of a program takes.

    Attributes:
      multiply_adds: of all products and convolutions.
      activations: numbers that they make.
    """

    multiply_adds: int
    activations: int

    def __add__(self, other: Any) -> "Work":
        return Work(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: int) -> "Work":
        """The same so many times."""
        return Work(*(count * a for a in self))


def work(jaxpr: Any) -> Work:
    """The work of a jaxpr; of branches that of the most, of ``while`` one step."""
    total = Work(0, 0)
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        body = jaxprs.called(eqn)
        bodies = [body] if body is not None else jaxprs.branches(eqn)
        inner = [work(one.jaxpr) for one in bodies]
        if name == "scan":
            total += inner[0].times(eqn.params["length"])
        elif name == "cond":
            total += max(inner)
        elif inner:
            total += sum(inner[1:], inner[0])
        elif name in COUNTS:
            shapes = [var.aval.shape for var in (*eqn.invars, *eqn.outvars)]
            made = math.prod(shapes[-1])
            total += Work(COUNTS[name](eqn.params, shapes), made)
    return total


def multiply_adds(eqn: Any, shapes: Sequence[Any]) -> int:
    """Those of one product, whose operands and result have these shapes."""
    return COUNTS[eqn.primitive.name](eqn.params, shapes)


def _dot(params: Any, shapes: Sequence[Any]) -> int:
    return _sums(params["dimension_numbers"], shapes)


def _ragged(params: Any, shapes: Sequence[Any]) -> int:
    numbers = params["ragged_dot_dimension_numbers"]
    return _sums(numbers.dot_dimension_numbers, shapes)


def _sums(numbers: Any, shapes: Sequence[Any]) -> int:
    (summed, _), _ = numbers
    return math.prod(shapes[-1]) * math.prod(shapes[0][a] for a in summed)


def _conv(params: Any, shapes: Sequence[Any]) -> int:
    """Without what falls on padding, or between spread inputs."""
    numbers = params["dimension_numbers"]
    image, kernel, out = shapes
    pairs = 1
    for k, (low, _) in enumerate(params["padding"]):
        size, window = image[numbers.lhs_spec[k + 2]], kernel[numbers.rhs_spec[k + 2]]
        made = out[numbers.out_spec[k + 2]]
        starts = np.arange(made)[:, None] * params["window_strides"][k] - low
        at = starts + np.arange(window)[None, :] * params["rhs_dilation"][k]
        spread = params["lhs_dilation"][k]
        pairs *= int(((at >= 0) & (at % spread == 0) & (at // spread < size)).sum())
    count = out[numbers.out_spec[0]] * out[numbers.out_spec[1]]
    return pairs * count * kernel[numbers.rhs_spec[1]]


COUNTS = {
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "ragged_dot_general": _ragged,
}
