"""Penalties of single weights: magnitudes, squares and limits.

Each is a box: a penalty weight, a ridge and two limits per entry. ``L1``, which needs
one of the four, is written out, since most solves take its prox at every step.

Knows arrays; knows no response and no program.
"""

import dataclasses
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax._numerics import norm
from nettrim_jax.convex._jaxopt import prox as jaxopt_prox
from nettrim_jax.typing import Array, ArrayLike

POSITIVE = (
    "positive, finite penalty weights; a weight that is free to move is a bias, see "
    "bias='free'"
)


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
        return L1(transposed(self.weight))

    def box(self) -> "Box":
        """The same penalty as a box."""
        return Box(weight=self.weight)

    def fits(self) -> dict[str, Array]:
        """Requirements on its values, and whether they are met."""
        return {POSITIVE: all_positive(self.weight)}

    def misfit(self, shape: tuple[int, ...]) -> str:
        """The requirement that a ``W`` of this shape fails; empty if it fits."""
        return misfit(jax.tree.leaves(self), shape, "W")

    def value(self, W: Array) -> Array:
        """The penalty of ``W``, a scalar."""
        return jnp.sum(full(self.weight, W) * jnp.abs(W))

    def prox(self, W: Array, step: Array) -> Array:
        """Soft thresholding by ``weight * step``."""
        return jaxopt_prox.prox_lasso(W, full(self.weight, W) * step)

    def conjugate(self, A: Array) -> tuple[Array, Array]:
        """The shrinkage per row to ``|A| <= weight``, and ``g*`` there, zero."""
        weight = full(self.weight, A)
        over = jnp.abs(A) > weight
        ratio = jnp.where(over, weight / jnp.where(over, jnp.abs(A), 1), 1)
        return jnp.min(ratio, axis=1, initial=1), jnp.zeros((), A.dtype)

    def slope(self, W: Array) -> Array:
        """The size of a subgradient at ``W``, in its shape."""
        return full(self.weight, W)

    def scaled(self, factor: Array) -> "L1":
        """The penalty of ``factor * W``, as one of ``W``."""
        return L1(per_entry(self.weight, factor) * jnp.abs(factor))

    def reweighted(self, W: Array, floor: float) -> "L1":
        r"""The next penalty weights for a log-sum penalty that starts from these.

        .. math::
            \lambda_{ij} \mapsto \lambda_{ij} \frac{\delta}
            {\lambda_{ij} |W_{ij}| + \delta}

        where :math:`\delta` is ``floor`` times the root mean square of the non-zero
        :math:`\lambda_{ij} |W_{ij}|` (Candès, Wakin and Boyd, 2008, sec. 2.2).
        """
        return L1(reweighted_by(self.weight, W, floor))


class _Entrywise:
    """A penalty whose methods are those of its box."""

    def box(self) -> "Box":
        """The same penalty as a box."""
        raise NotImplementedError

    @property
    def T(self) -> "Box":
        """The same penalty for one unit per row."""
        box = self.box()
        return Box(*map(transposed, box.terms()))

    def fits(self) -> dict[str, Array]:
        """Requirements on its values, and whether they are met."""
        box = self.box()
        lower, upper, ridge = map(jnp.asarray, (box.lower, box.upper, box.ridge))
        return {
            POSITIVE: all_positive(box.weight),
            "a finite ridge of at least 0": jnp.all(jnp.isfinite(ridge) & (ridge >= 0)),
            "lower <= 0 <= upper, so that a weight may be zero": jnp.all(lower <= 0)
            & jnp.all(upper >= 0),
        }

    def misfit(self, shape: tuple[int, ...]) -> str:
        """The requirement that a ``W`` of this shape fails; empty if it fits."""
        return misfit(jax.tree.leaves(self), shape, "W")

    def value(self, W: Array) -> Array:
        """The penalty of a ``W`` within the limits, a scalar."""
        box = self.box()
        size, ridge = jnp.abs(W), full(box.ridge, W)
        return jnp.sum(full(box.weight, W) * size + ridge / 2 * size**2)

    def prox(self, W: Array, step: Array) -> Array:
        """Soft thresholding, shrinkage by the ridge, projection on the limits."""
        box = self.box()
        W = jaxopt_prox.prox_lasso(W, full(box.weight, W) * step)
        W = W / (1 + full(box.ridge, W) * step)
        lower, upper = full(box.lower, W), full(box.upper, W)
        # a clip would split the derivative at a limit that is met but does not bind
        return jnp.where(W < lower, lower, jnp.where(W > upper, upper, W))

    def conjugate(self, A: Array) -> tuple[Array, Array]:
        """The shrinkage per row that makes ``g*`` finite, and ``g*`` there."""
        box = self.box()
        lower, upper, weight, ridge = (full(a, A) for a in box.terms())
        limit = jnp.where(A > 0, upper, -lower)
        endless = (limit == jnp.inf) & (ridge == 0)
        over = endless & (jnp.abs(A) > weight)
        ratio = jnp.where(over, weight / jnp.where(over, jnp.abs(A), 1), 1)
        shrink = jnp.min(ratio, axis=1, initial=1)
        gain = jnp.maximum(jnp.abs(A) * shrink[:, None] - weight, 0)
        gain = jnp.where(endless, 0, gain)
        best = jnp.where(ridge > 0, gain / jnp.where(ridge > 0, ridge, 1), jnp.inf)
        best = jnp.where(gain > 0, jnp.minimum(best, limit), 0)
        return shrink, jnp.sum(best * (gain - ridge / 2 * best))

    def slope(self, W: Array) -> Array:
        """The size of a subgradient at ``W``, in its shape."""
        box = self.box()
        return full(box.weight, W) + full(box.ridge, W) * jnp.abs(W)

    def scaled(self, factor: Array) -> "Box":
        """The penalty of ``factor * W``, as one of ``W``; a factor may be negative."""
        box = self.box()
        lower, upper, weight, ridge = (per_entry(a, factor) for a in box.terms())
        ends = lower / factor, upper / factor
        return Box(
            jnp.minimum(*ends),
            jnp.maximum(*ends),
            weight * jnp.abs(factor),
            ridge * factor**2,
        )

    def reweighted(self, W: Array, floor: float) -> "Box":
        """The same box with the next weights of a log-sum penalty, as in ``L1``."""
        box = self.box()
        return dataclasses.replace(box, weight=reweighted_by(box.weight, W, floor))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Box(_Entrywise):
    r"""Magnitudes and squares of weights that stay within limits.

    .. math::
        g(W) = \sum_{ij} \lambda_{ij} |W_{ij}| + \frac{\mu_{ij}}{2} W_{ij}^2
        \quad\text{if}\quad l_{ij} \le W_{ij} \le u_{ij}, \qquad
        \infty \;\text{otherwise}

    Each attribute is one number, or an array that broadcasts to ``[d_in, d_out]``. If
    the trained weights exceed the limits, perhaps no weights meet the budget, and the
    result is ``infeasible``. A limit of one number applies to a penalised bias, too.

    Attributes:
      lower: :math:`l`, at most 0, in units of the weights.
      upper: :math:`u`, at least 0.
      weight: :math:`\lambda`, positive.
      ridge: :math:`\mu`, at least 0.

    Example:
      >>> import jax.numpy as jnp
      >>> from nettrim_jax import Box
      >>> W = jnp.array([[-2.0, 0.3, 2.0]])
      >>> Box(-1.0, 1.0, weight=0.5).prox(W, jnp.ones((1, 1))).tolist()
      [[-1.0, 0.0, 1.0]]
    """

    lower: ArrayLike = -math.inf
    upper: ArrayLike = math.inf
    weight: ArrayLike = 1.0
    ridge: ArrayLike = 0.0

    def box(self) -> "Box":
        """Itself."""
        return self

    def terms(self) -> tuple[ArrayLike, ...]:
        """Lower and upper limits, weight and ridge."""
        return self.lower, self.upper, self.weight, self.ridge


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ElasticNet(_Entrywise):
    r"""Magnitudes and squares; squares spread weight over correlated inputs.

    .. math::
        g(W) = \sum_{ij} \lambda_{ij} |W_{ij}| + \frac{\mu_{ij}}{2} W_{ij}^2

    (Zou and Hastie, 2005, eq. 3, whose ridge is half of :math:`\mu`.)

    Attributes:
      ridge: :math:`\mu`, at least 0; one number, or an array that broadcasts to
        ``[d_in, d_out]``.
      weight: :math:`\lambda`, positive; one number or such an array.

    Example:
      >>> import jax.numpy as jnp
      >>> from nettrim_jax import ElasticNet
      >>> float(ElasticNet(ridge=2.0).value(jnp.array([[1.0, -2.0]])))
      8.0
    """

    ridge: ArrayLike
    weight: ArrayLike = 1.0

    def box(self) -> Box:
        """The same penalty as a box."""
        return Box(weight=self.weight, ridge=self.ridge)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Nonnegative(_Entrywise):
    r"""Magnitudes of weights that are never negative.

    .. math::
        g(W) = \sum_{ij} \lambda_{ij} W_{ij} \;\text{if}\; W \ge 0, \qquad
        \infty \;\text{otherwise}

    Attributes:
      weight: :math:`\lambda`, positive; one number, or an array that broadcasts to
        ``[d_in, d_out]``.

    Example:
      >>> import jax.numpy as jnp
      >>> from nettrim_jax import Nonnegative
      >>> W = jnp.array([[-2.0, 3.0]])
      >>> Nonnegative().prox(W, jnp.ones((1, 1))).tolist()
      [[0.0, 2.0]]
    """

    weight: ArrayLike = 1.0

    def box(self) -> Box:
        """The same penalty as a box."""
        return Box(lower=0.0, weight=self.weight)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Sign(_Entrywise):
    r"""Magnitudes of weights with given signs, such as those of the trained weights.

    .. math::
        g(W) = \sum_{ij} \lambda_{ij} |W_{ij}| \;\text{if}\; S_{ij} W_{ij} \ge 0,
        \qquad \infty \;\text{otherwise}

    Attributes:
      signs: :math:`S`, an array that broadcasts to ``[d_in, d_out]``; only its signs
        count, and zero allows both.
      weight: :math:`\lambda`, positive; one number or such an array.

    Example:
      >>> import jax.numpy as jnp
      >>> from nettrim_jax import Sign
      >>> W = jnp.array([[-2.0, -2.0]])
      >>> Sign(jnp.array([[1.0, -0.3]])).prox(W, jnp.ones((1, 1))).tolist()
      [[0.0, -1.0]]
    """

    signs: ArrayLike
    weight: ArrayLike = 1.0

    def box(self) -> Box:
        """The same penalty as a box."""
        signs = jnp.asarray(self.signs)
        return Box(
            jnp.where(signs > 0, 0.0, -math.inf),
            jnp.where(signs < 0, 0.0, math.inf),
            self.weight,
        )


@register_dataclass
@dataclasses.dataclass(frozen=True)
class FixedPattern(_Entrywise):
    r"""Magnitudes of weights that are zero wherever a mask is zero.

    .. math::
        g(W) = \sum_{ij} \lambda_{ij} |W_{ij}| \;\text{if}\;
        M_{ij} = 0 \Rightarrow W_{ij} = 0, \qquad \infty \;\text{otherwise}

    Attributes:
      mask: :math:`M`, an array that broadcasts to ``[d_in, d_out]``; non-zero where a
        weight may move.
      weight: :math:`\lambda`, positive; one number or such an array.

    Example:
      >>> import jax.numpy as jnp
      >>> from nettrim_jax import FixedPattern
      >>> W = jnp.array([[-2.0, -2.0]])
      >>> FixedPattern(jnp.array([[False, True]])).prox(W, jnp.ones((1, 1))).tolist()
      [[0.0, -1.0]]
    """

    mask: ArrayLike
    weight: ArrayLike = 1.0

    def box(self) -> Box:
        """The same penalty as a box."""
        allowed = jnp.asarray(self.mask).astype(bool)
        return Box(
            jnp.where(allowed, -math.inf, 0.0),
            jnp.where(allowed, math.inf, 0.0),
            self.weight,
        )


def misfit(arrays: Iterable[ArrayLike], shape: tuple[int, ...], of: str) -> str:
    """The requirement that arrays broadcast to a shape; empty if they do."""
    for array in arrays:
        try:
            fits = np.broadcast_shapes(np.shape(array), shape) == shape
        except ValueError:
            fits = False
        if not fits:
            return (
                f"penalty weights that broadcast to {of} {list(shape)}, got "
                f"{list(np.shape(array))}"
            )
    return ""


def full(value: ArrayLike, W: Array) -> Array:
    """``value`` in the shape of ``W``; a vector has one number per column."""
    value = jnp.asarray(value, W.dtype)
    if value.ndim < W.ndim:  # strict rank promotion adds no axes; a vector is per unit
        value = value.reshape((1,) * (W.ndim - value.ndim) + value.shape)
    return jnp.broadcast_to(value, W.shape)


def per_entry(value: ArrayLike, factor: Array) -> Array:
    """``value`` in a shape that broadcasts with one factor per entry."""
    value = jnp.asarray(value, factor.dtype)
    return value[None, :] if value.ndim == 1 else value  # per unit, the last axis


def transposed(value: ArrayLike) -> Array:
    """The same numbers for the transposed weights."""
    value = jnp.asarray(value)
    return value[:, None] if value.ndim == 1 else value.T


def all_positive(weight: ArrayLike) -> Array:
    """Whether all are finite and positive."""
    weight = jnp.asarray(weight)
    return jnp.all(jnp.isfinite(weight) & (weight > 0))


def reweighted_by(weight: ArrayLike, W: Array, floor: float) -> Array:
    """The next weights of a log-sum penalty of ``weight |W|``, see ``L1``."""
    weight = full(weight, W)
    size = weight * jnp.abs(W)
    count = jnp.maximum(jnp.sum(size > 0), 1).astype(W.dtype)
    delta = floor * norm(size) / jnp.sqrt(count)
    delta = jnp.where(delta > 0, delta, 1)  # where all are zero the weights stay
    return weight * (delta / (size + delta))
