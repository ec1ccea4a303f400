"""Patterns with their number as an array, so that another level compiles nothing.

``counted`` makes them of the user's patterns, once the layer's shape is known.

Knows patterns; knows no method and no network.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax._trees import STATIC
from nettrim_jax.methods.patterns import (
    NM,
    Blocks,
    Inputs,
    Neurons,
    Pattern,
    Shape,
    Sparsity,
)
from nettrim_jax.methods.ranking import about_highest
from nettrim_jax.methods.within import Within
from nettrim_jax.typing import Array

SLACK = 1 / 512  # share of a count by which it may be off while a solver runs


def counted(pattern: Pattern, shape: Shape, layers: int) -> Pattern:
    """The pattern for the lanes of some layers, ``[b, d_in, d_out]``.

    Its number has one entry per layer. A pattern of the network as a whole, and one of
    the user's own, stays as it is.
    """
    number = NUMBERS.get(type(pattern))
    if number is None or getattr(pattern, "scope", None) == "network":
        return pattern
    return number(pattern, (shape[0] // layers, *shape[1:]), layers)


def roughly(pattern: Pattern, score: Array) -> Array:
    """What the pattern keeps, ``[b, d_in, d_out]`` bool, in less time.

    Among all weights of a large layer the number that is left may be off by ``SLACK``.
    """
    if isinstance(pattern, Within):
        return roughly(pattern.pattern, pattern.lowered(score)) & pattern.allowed
    if isinstance(pattern, Sparsity) and pattern.scope == "layer":
        return about_highest(score, pattern.nonzeros(score.shape), SLACK)
    return pattern.keep(score)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Count(Sparsity):
    """A number of weights of a layer is left, and the number may be traced.

    Attributes:
      level: not used.
      scope: ``"layer"``.
      left: number of weights that are left, int32.
      shape: shape of the layer; a smaller one leaves a proportional number.
    """

    level: float = dataclasses.field(default=0.0, metadata=STATIC)
    left: Any = 0
    shape: Shape = dataclasses.field(default=(1, 1, 1), metadata=STATIC)

    def nonzeros(self, shape: Shape) -> Any:
        """The number of weights left of a layer, or of some of its inputs and units."""
        if shape == self.shape:
            return self.left
        b, d_in, d_out = self.shape
        # the product of a count and a size would overflow 32 bits
        whole, rest = self.left // d_in, self.left % d_in
        left = whole * shape[1] + (rest * shape[1] + d_in // 2) // d_in
        if shape[::2] == self.shape[::2]:
            return left
        part = np.float32(shape[0] * shape[2] / (b * d_out))
        return jnp.round(jnp.asarray(left, jnp.float32) * part).astype(jnp.int32)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Columns(Sparsity):
    level: float = dataclasses.field(default=0.0, metadata=STATIC)
    scope: str = dataclasses.field(default="column", metadata=STATIC)
    left: Any = 0  # number of weights of a unit
    d_in: int = dataclasses.field(default=1, metadata=STATIC)

    def nonzeros(self, shape: Shape) -> Any:
        b, part, d_out = shape
        return b * d_out * ((self.left * part + self.d_in // 2) // self.d_in)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Groups(NM):
    n: Any = dataclasses.field()

    def __post_init__(self):
        pass  # the number may be traced


class _Left:
    """A pattern whose number is given, rather than found from a level."""

    left: Any

    def number(self, count: int) -> Any:
        return self.left


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Blocks(_Left, Blocks):
    left: Any = 0


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Neurons(_Left, Neurons):
    left: Any = 0


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Inputs(_Left, Inputs):
    left: Any = 0


def _each(number: int, layers: int) -> np.ndarray:
    return np.full(layers, number, np.int32)


def _weights(pattern: Sparsity, shape: Shape, layers: int) -> Pattern:
    left = pattern.nonzeros(shape)
    if pattern.scope == "column":
        b, d_in, d_out = shape
        return _Columns(left=_each(left // (b * d_out), layers), d_in=d_in)
    return Count(left=_each(left, layers), shape=shape)


def _groups(pattern: NM, shape: Shape, layers: int) -> Pattern:
    return _Groups(_each(pattern.n, layers), pattern.m, pattern.pad)


def _blocks(pattern: Blocks, shape: Shape, layers: int) -> Pattern:
    left = _each(pattern.number(shape[0] * math.prod(_grid(pattern, shape))), layers)
    return _Blocks(0.0, pattern.shape, pattern.pad, left)


def _grid(pattern: Blocks, shape: Shape) -> list[int]:
    sizes = zip(shape[1:], pattern.shape, strict=True)
    return [-(-size // own) for size, own in sizes]


def _neurons(pattern: Neurons, shape: Shape, layers: int) -> Pattern:
    return _Neurons(0.0, _each(pattern.number(shape[0] * shape[2]), layers))


def _inputs(pattern: Inputs, shape: Shape, layers: int) -> Pattern:
    return _Inputs(0.0, _each(pattern.number(shape[0] * shape[1]), layers))


NUMBERS: dict[type, Callable[[Any, Shape, int], Pattern]] = {
    Sparsity: _weights,
    NM: _groups,
    Blocks: _blocks,
    Neurons: _neurons,
    Inputs: _inputs,
}


# of how many weights, blocks or lines a level is a share, and the field of their number
WHOLES: dict[type, Callable[[Any, Shape], int]] = {
    Count: lambda p, shape: math.prod(shape),
    _Columns: lambda p, shape: shape[1],
    _Groups: lambda p, shape: p.m,
    _Blocks: lambda p, shape: shape[0] * math.prod(_grid(p, shape)),
    _Neurons: lambda p, shape: shape[0] * shape[2],
    _Inputs: lambda p, shape: shape[0] * shape[1],
}


def of_how_many(pattern: Pattern, shape: Shape) -> int:
    """The number of weights, blocks or lines of which a counted pattern leaves some.

    Args:
      pattern: what :func:`counted` makes.
      shape: of one layer.
    """
    return WHOLES[type(pattern)](pattern, shape)


def number_left(pattern: Any) -> Any:
    """The number that a counted pattern leaves, one entry per layer."""
    return pattern.n if isinstance(pattern, _Groups) else pattern.left


def leaving(pattern: Any, left: Any) -> Any:
    """The same counted pattern with another number left."""
    name = "n" if isinstance(pattern, _Groups) else "left"
    return dataclasses.replace(pattern, **{name: left})


def is_counted(pattern: Pattern) -> bool:
    """Whether it is a pattern of this library with its number as an array.

    Such a pattern also takes NumPy's arrays.
    """
    return isinstance(pattern, Count | _Columns | _Groups | _Left)
