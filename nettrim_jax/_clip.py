"""Limits within which a response passes, as a ReLU and ReLU6 have them.

Knows arrays; knows no layer.
"""

import math
from typing import NamedTuple

from nettrim_jax._numerics import numpy_of
from nettrim_jax.typing import Array


class Clip(NamedTuple):
    r"""The function :math:`z \mapsto \min(\max(z, l), u)`; hashable."""

    low: float = -math.inf
    high: float = math.inf

    @property
    def linear(self) -> bool:
        """Whether all passes."""
        return self == NO_CLIP

    @property
    def name(self) -> str:
        """What a report calls it."""
        return {NO_CLIP: "linear", RELU: "relu"}.get(self, "clip")

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """Its limits; None where there is none."""
        low, high = (end if math.isfinite(end) else None for end in self)
        return low, high

    def __call__(self, Z: Array) -> Array:
        """The clipped values."""
        xp = numpy_of(Z)
        Z = xp.maximum(Z, self.low) if self.low > -math.inf else Z
        return xp.minimum(Z, self.high) if self.high < math.inf else Z

    def passes(self, P: Array) -> Array:
        """Where a value lies between the limits."""
        if self.linear:
            return numpy_of(P).ones(P.shape, bool)
        inside = P > self.low
        return inside & (P < self.high) if self.high < math.inf else inside

    def like(self, Z: Array, P: Array) -> Array:
        """The nearest to ``Z`` that is clipped as ``P`` is, where ``P`` is clipped."""
        xp = numpy_of(Z)
        if self.high == math.inf:
            return xp.minimum(Z, self.low)
        above = xp.maximum(Z, self.high)
        if self.low == -math.inf:
            return above
        return xp.where(P <= self.low, xp.minimum(Z, self.low), above)

    def sides(self, P: Array, Z: Array) -> tuple[Array | None, Array]:
        """Where ``P`` is clipped, the range of what is clipped no less than ``Z`` is.

        Returns the lower limits, None if there are none, and the upper ones.
        """
        xp = numpy_of(Z)
        upper = xp.maximum(Z, self.low)
        if self.high == math.inf:
            return None, upper
        above = P >= self.high
        lower = xp.where(above, xp.minimum(Z, self.high), -xp.inf)
        return lower, xp.where(above, xp.inf, upper)

    def then(self, other: "Clip") -> "Clip | None":
        """This clip and another one behind it; None if nothing passes both."""
        low, high = (min(max(end, other.low), other.high) for end in self)
        return Clip(low, high) if low < high else None


NO_CLIP = Clip()
RELU = Clip(0.0)
