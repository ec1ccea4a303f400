"""Any penalty, with some weights that have to be zero.

Knows penalties; knows no response, program or solver.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from nettrim_jax.convex.entrywise import Box, full
from nettrim_jax.typing import Array


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Masked:
    r"""A penalty of weights that are zero outside a mask.

    .. math::
        g_M(W) = g(W) \quad\text{if}\quad W_{ij} = 0 \;\text{off}\; M, \qquad
        \infty \;\text{otherwise}

    No penalty here becomes larger where a weight becomes zero. So its prox is that of
    the weights within the mask, and its conjugate that of the duals there.

    Attributes:
      penalty: :math:`g`.
      mask: :math:`M`, in the shape of the weights.
    """

    penalty: Any
    mask: Array

    @property
    def T(self) -> "Masked":
        """The same penalty for one unit per row."""
        return Masked(self.penalty.T, self.mask.T)

    def box(self) -> Box:
        """Its penalty of single weights, as a box."""
        box, mask = self.penalty.box(), jnp.asarray(self.mask)
        like = mask if jnp.issubdtype(mask.dtype, jnp.floating) else mask * 1.0
        lower, upper = (self._only(full(a, like)) for a in (box.lower, box.upper))
        return dataclasses.replace(box, lower=lower, upper=upper)

    def fits(self) -> dict[str, Array]:
        """Requirements on its values, and whether they are met."""
        return self.penalty.fits()

    def misfit(self, shape: tuple[int, ...]) -> str:
        """The requirement that a ``W`` of this shape fails; empty if it fits."""
        return self.penalty.misfit(shape)

    def value(self, W: Array) -> Array:
        """The penalty of a ``W`` within the mask, a scalar."""
        return self.penalty.value(W)

    def prox(self, W: Array, step: Array) -> Array:
        """The penalty's prox of the weights within the mask."""
        return self._only(self.penalty.prox(self._only(W), step))

    def conjugate(self, A: Array) -> tuple[Array, Array]:
        """The shrinkage per row that makes ``g*`` finite, and ``g*`` there."""
        return self.penalty.conjugate(self._only(A))

    def slope(self, W: Array) -> Array:
        """The size of a subgradient at ``W``, in its shape."""
        return self.penalty.slope(W)

    def scaled(self, factor: Array) -> "Masked":
        """The penalty of ``factor * W``, as one of ``W``."""
        return dataclasses.replace(self, penalty=self.penalty.scaled(factor))

    def reweighted(self, W: Array, floor: float) -> "Masked":
        """The next penalty weights for a log-sum penalty, within the same mask."""
        return dataclasses.replace(self, penalty=self.penalty.reweighted(W, floor))

    def _only(self, W: Array) -> Array:
        # a program casts the values of its penalty to its dtype
        return jnp.where(self.mask.astype(bool), W, 0)
