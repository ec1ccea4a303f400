"""A pattern within a mask: the choice is among the weights that the mask allows.

Knows arrays and patterns; knows no method and no network.
"""

import dataclasses
from typing import Any

from jax.tree_util import register_dataclass

from nettrim_jax._numerics import numpy_of
from nettrim_jax.methods.base import by_layer
from nettrim_jax.methods.patterns import NM, Pattern, Shape, Sparsity
from nettrim_jax.typing import Array


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Within:
    """What a pattern keeps of the weights that may be left, and no other weight.

    Attributes:
      pattern: the pattern.
      allowed: bool, ``[b, d_in, d_out]``.
    """

    pattern: Any
    allowed: Array

    def check(self, shape: Shape) -> None:
        """Raises MethodError if the pattern does not fit a layer."""
        self.pattern.check(shape)

    def keep(self, score: Array) -> Array:
        """The weights to keep, ``[b, d_in, d_out]`` bool."""
        return self.pattern.keep(self.lowered(score)) & self.allowed

    def lowered(self, score: Array) -> Array:
        """The scores, in which weights that are not allowed have the lowest rank."""
        # the score of a group is the sum of what may be left of it
        low = -1 if isinstance(self.pattern, Sparsity | NM) else 0
        return numpy_of(score).where(self.allowed, score, low)


def within(pattern: Pattern, allowed: Array | None, layers: int) -> Any:
    """The pattern of some layers within a mask of their lanes ``[b, d_in, d_out]``.

    It is the pattern itself if all weights are allowed.
    """
    return pattern if allowed is None else Within(pattern, by_layer(allowed, layers))


def apart(pattern: Any) -> tuple[Any, Array | None]:
    """A pattern, and the mask that it is within; None if all weights are allowed."""
    if isinstance(pattern, Within):
        return pattern.pattern, pattern.allowed
    return pattern, None
