"""Penalties on the weights, the ``g`` of ``min g(W) + f(Z)``, known by their prox.

A penalty is a frozen record of its own data. Users give it for ``W`` as a layer has
it, ``[d_in, d_out]``; ``T`` is the same penalty with one unit per row, ``[d_out,
d_in]``, which is how programs hold it. It has three pure methods:

- ``value(W)``;
- ``prox(W, step)``, the minimiser of ``g(V) + sum (V - W)^2 / (2 step)``, with
  positive steps that broadcast to ``W``;
- ``conjugate(A)``, with one unit per row, which shrinks the rows of ``A`` until
  ``g*`` is finite there and returns the shrinkage, ``[d_out]``, and ``g*`` at the
  shrunk matrix, so that any dual is turned into a bound.

Knows nothing of responses, programs or solvers.
"""

import dataclasses

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from nettrim_jax._jaxopt import prox as jaxopt_prox
from nettrim_jax.typing import Array, ArrayLike


@register_dataclass
@dataclasses.dataclass(frozen=True)
class L1:
    r"""Weighted sum of magnitudes, :math:`g(W) = \sum_{ij} \lambda_{ij} |W_{ij}|`.

    The penalty of Net-Trim (Aghasi et al., 2017, eq. 2).

    Attributes:
      weight: positive; one number, or an array that broadcasts to
        ``[d_in, d_out]`` (``[d_in, 1]`` weighs inputs, ``[1, d_out]`` units).

    Example:
      >>> import jax.numpy as jnp
      >>> from nettrim_jax import L1
      >>> float(L1().value(jnp.array([[1.0, -2.0]])))
      3.0
    """

    weight: ArrayLike = 1.0

    @property
    def T(self) -> "L1":
        """The same penalty for one unit per row."""
        weight = jnp.asarray(self.weight)
        return L1(weight[:, None] if weight.ndim == 1 else weight.T)

    def value(self, W: Array) -> Array:
        """The penalty of ``W``, a scalar."""
        return jnp.sum(self._weight(W) * jnp.abs(W))

    def prox(self, W: Array, step: Array) -> Array:
        """Soft thresholding by ``weight * step``."""
        return jaxopt_prox.prox_lasso(W, self._weight(W) * step)

    def conjugate(self, A: Array) -> tuple[Array, Array]:
        """Shrinkage per row until ``|A| <= weight``; ``g*`` is zero there."""
        weight = self._weight(A)
        over = jnp.abs(A) > weight
        ratio = jnp.where(over, weight / jnp.where(over, jnp.abs(A), 1), 1)
        return jnp.min(ratio, axis=1, initial=1), jnp.zeros((), A.dtype)

    def slope(self, W: Array) -> Array:
        """The size of a subgradient at ``W``, in its shape."""
        return self._weight(W)

    def scaled(self, factor: Array) -> "L1":
        """The same penalty with its weight multiplied by ``factor``."""
        weight = jnp.asarray(self.weight, factor.dtype)
        if weight.ndim == 1:  # per unit, the last axis
            weight = weight[None, :]
        return L1(weight * factor)

    def reweighted(self, W: Array, floor: float) -> "L1":
        r"""The next weights of a log-sum penalty whose first weights are these.

        .. math::
            \lambda_{ij} \mapsto \lambda_{ij} \frac{\delta}
            {\lambda_{ij} |W_{ij}| + \delta}

        with :math:`\delta` the share ``floor`` of the root mean square of the
        non-zeros. (Candès, Wakin and Boyd, 2008, sec. 2.2.)
        """
        size = self._weight(W) * jnp.abs(W)
        count = jnp.maximum(jnp.sum(size > 0), 1).astype(W.dtype)
        delta = floor * jnp.sqrt(jnp.sum(size**2) / count)
        delta = jnp.where(delta > 0, delta, 1)  # all zero: the weights stay
        return self.scaled(delta / (size + delta))

    def _weight(self, W: Array) -> Array:
        weight = jnp.asarray(self.weight, W.dtype)
        if weight.ndim < W.ndim:  # under strict rank promotion a vector is per unit
            weight = weight.reshape((1,) * (W.ndim - weight.ndim) + weight.shape)
        return jnp.broadcast_to(weight, W.shape)


Penalty = L1
