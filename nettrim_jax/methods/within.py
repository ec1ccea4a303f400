"""A pattern within a mask: the choice is among the weights that the mask allows.

Knows arrays and patterns; knows no method and no network.
"""

import dataclasses
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax._numerics import numpy_of
from nettrim_jax._trees import known
from nettrim_jax.methods.base import LayerData, LayerKind, by_layer
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


def within(pattern: Pattern, data: LayerData, kind: LayerKind) -> Any:
    """The pattern of some layers within what may be left of their lanes.

    A lane that no row reached is left out, with its part of the layer's number. It is
    the pattern itself if there is nothing to leave out.
    """
    allowed = data.allowed
    if kind.routed:
        live = data.live(kind)
        if not (known(live) and bool(live.all())):
            reached = numpy_of(live).broadcast_to(live[:, None, None], kind.shape)
            allowed = reached if allowed is None else allowed & reached
            pattern = _shared(pattern, by_layer(live, kind.layers))
    if allowed is None:
        return pattern
    return Within(pattern, by_layer(allowed, kind.layers))


def _shared(pattern: Pattern, live: Array) -> Pattern:
    """The pattern with the part of its number that falls to the live lanes."""
    left = getattr(pattern, "left", None)
    if left is None or getattr(pattern, "scope", "layer") != "layer":
        return pattern  # each unit has a number of its own
    lanes, count = live.shape[1], live.sum(1, dtype=np.int32)
    # the product of a count and a number of lanes would overflow 32 bits
    left = left // lanes * count + (left % lanes * count + lanes // 2) // lanes
    return dataclasses.replace(pattern, left=left.astype(np.int32))


def apart(pattern: Any) -> tuple[Any, Array | None]:
    """A pattern, and the mask that it is within; None if all weights are allowed."""
    if isinstance(pattern, Within):
        return pattern.pattern, pattern.allowed
    return pattern, None
