r"""Penalties of groups of weights: norms, which make whole groups zero.

.. math:: g(W) = \sum_G \lambda_G \|\omega_G \circ W_G\|_2 + \sum_{ij} \mu_{ij} |W_{ij}|

The groups tile the layer. Scales of its inputs or units become :math:`\omega`, the
factors of single entries within a group's norm.

Knows arrays; knows no response and no program.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from nettrim_jax._numerics import norm
from nettrim_jax._trees import STATIC
from nettrim_jax._values import whole
from nettrim_jax.convex._jaxopt import prox as jaxopt_prox
from nettrim_jax.convex.entrywise import (
    POSITIVE,
    Box,
    all_positive,
    full,
    misfit,
    per_entry,
    reweighted_by,
)
from nettrim_jax.typing import Array, ArrayLike

NAMES = ("inputs", "neurons", "channels")
# of Newton's method for the norm of a group, from below; two to six are enough
STEPS = 10


@dataclasses.dataclass(frozen=True)
class _Groups:
    """The fields and methods that the penalties of groups share."""

    groups: str | tuple[int, int] = dataclasses.field(metadata=STATIC)
    weight: ArrayLike = 1.0
    channels: int | None = dataclasses.field(
        default=None, kw_only=True, metadata=STATIC
    )
    # the factors within the norms, and whether W has one unit per row
    entries: ArrayLike = dataclasses.field(default=1.0, kw_only=True, repr=False)
    turned: bool = dataclasses.field(
        default=False, kw_only=True, repr=False, metadata=STATIC
    )

    @property
    def magnitudes(self) -> ArrayLike:
        """The penalty weights of single magnitudes, beside the norms."""
        return 0.0

    @property
    def T(self) -> Any:
        """The same penalty for one unit per row."""
        return dataclasses.replace(self, turned=not self.turned)

    def box(self) -> Box:
        """Its penalty of single weights, as a box."""
        weight = jnp.asarray(self.magnitudes)
        return Box(weight=weight.T if self.turned and weight.ndim == 2 else weight)

    def of_channels(self, channels: int) -> Any:
        """The same penalty for inputs of so many channels, unless it has its own."""
        return dataclasses.replace(self, channels=self.channels or channels)

    def fits(self) -> dict[str, Array]:
        """Requirements on its values, and whether they are met."""
        magnitudes = jnp.asarray(self.magnitudes)
        return {
            POSITIVE: all_positive(self.weight) & all_positive(self.entries),
            "finite penalty weights of at least 0 of single magnitudes": jnp.all(
                jnp.isfinite(magnitudes) & (magnitudes >= 0)
            ),
        }

    def misfit(self, shape: tuple[int, ...]) -> str:
        """The requirement that a ``W`` of this shape fails; empty if it fits."""
        shape = shape[::-1] if self.turned else shape
        pair = isinstance(self.groups, tuple) and len(self.groups) == 2
        if not pair and self.groups not in NAMES:
            return (
                f"groups that are one of {NAMES} or (rows, columns), got "
                f"{self.groups!r}"
            )
        if self.groups == "channels" and self.channels is None:
            return "how many channels the inputs come from, by channels="
        sides = self._sides(shape)
        for side, size in zip(sides, shape, strict=True):
            if not whole(side) or side < 1 or size % side:
                return (
                    f"whole groups of {self._named(sides)} in W {list(shape)}; choose "
                    "groups whose sides divide those of W (a bias that is penalised "
                    "is one more input)"
                )
        grid = tuple(size // side for size, side in zip(shape, sides, strict=True))
        return misfit([self.weight], grid, "the groups") or misfit(
            [self.entries, self.magnitudes], shape, "W"
        )

    def value(self, W: Array) -> Array:
        """The penalty of ``W``, a scalar."""
        size = jnp.abs(W)
        sizes = _norm(self._split(self._entries(W) * W))
        total = jnp.sum(self._lambda(W, sizes) * sizes)
        return total + jnp.sum(self._magnitudes(W) * size)

    def prox(self, W: Array, step: Array) -> Array:
        r"""Soft thresholding, then shrinkage of every group towards zero.

        Where steps differ within a group, it shrinks to
        :math:`a_i / (1 + \lambda \tau_i / r)` with the root :math:`r` of
        :math:`\sum_i a_i^2 / (r + \lambda \tau_i)^2 = 1`, which has no closed form.
        """
        W = jaxopt_prox.prox_lasso(W, self._magnitudes(W) * step)
        omega = self._entries(W)
        a = self._split(omega * W)
        limit = self._split(jnp.broadcast_to(step, W.shape) * omega**2)
        limit = limit * self._lambda(W, limit)
        most = jnp.max(limit, axis=(1, 3), keepdims=True)
        radius, left = _radius(a / most, limit / most)
        share = jnp.where(left, radius / (radius + limit / most), 0)
        return W * self._join(share, W)

    def conjugate(self, A: Array) -> tuple[Array, Array]:
        """The shrinkage per unit that makes ``g*`` zero, and that zero."""
        a, omega = jnp.abs(A), self._entries(A)
        magnitudes = self._split(self._magnitudes(A))
        a, omega = self._split(a), self._split(omega)
        limit = self._lambda(A, a)

        def excess(s: Array) -> Array:
            return jnp.maximum(s * a - magnitudes, 0) / omega

        def smaller(s: Array) -> Array:
            # the norm is convex in s and zero at zero, so this scaling is enough
            size = _norm(excess(s))
            return s * jnp.where(size > limit, limit / jnp.where(size > 0, size, 1), 1)

        def newton(_: int, s: Array) -> Array:
            over = excess(s)
            size = _norm(over)
            slope = jnp.sum(over * a / omega, axis=(1, 3), keepdims=True)
            turn = (size - limit) * size / jnp.where(slope > 0, slope, 1)
            return jnp.where(size > limit, s - turn, s)

        s = jax.lax.fori_loop(0, STEPS, newton, jnp.ones_like(limit))
        shrink = self._join(jnp.broadcast_to(smaller(s), a.shape), A)
        return jnp.min(shrink, axis=1), jnp.zeros((), A.dtype)

    def slope(self, W: Array) -> Array:
        """The size of a subgradient at ``W``, in its shape."""
        a = self._split(W)
        spread = self._lambda(W, a) / math.sqrt(a.shape[1] * a.shape[3])
        spread = self._join(jnp.broadcast_to(spread, a.shape), W)
        return spread * self._entries(W) + self._magnitudes(W)

    def scaled(self, factor: Array) -> Any:
        """The penalty of ``factor * W``, as one of ``W``."""
        factor = jnp.abs(factor)
        entries = per_entry(self.entries, factor) * factor
        magnitudes = per_entry(self.magnitudes, factor) * factor
        return self._with(magnitudes, entries=entries)

    def reweighted(self, W: Array, floor: float) -> Any:
        """The next weights of a log-sum penalty of groups, as in ``L1``."""
        sizes = _norm(self._split(self._entries(W) * W))[:, 0, :, 0]
        weight = reweighted_by(full(self.weight, sizes), sizes, floor)
        magnitudes = reweighted_by(self._magnitudes(W), W, floor)
        magnitudes = magnitudes.T if self.turned else magnitudes
        return self._with(magnitudes, weight=weight)

    def members(self, shape: tuple[int, ...]) -> np.ndarray:
        """The index of every weight's group, in the shape of ``W``."""
        with jax.ensure_compile_time_eval():
            like = jnp.zeros(shape)
            a, _, b, _ = self._split(like).shape
            number = jnp.arange(a * b).reshape(a, 1, b, 1)
            number = jnp.broadcast_to(number, self._split(like).shape)
            return np.asarray(self._join(number, like))

    def norms(self, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """The weight of every group, by its index, and the factors of all entries."""
        like = jnp.zeros(shape)
        weight = self._lambda(like, self._split(like))
        return np.ravel(weight), np.asarray(self._entries(like))

    def _with(self, magnitudes: Array, **changes: Any) -> Any:
        """The same penalty with other weights; this one has no ``magnitudes``."""
        del magnitudes
        return dataclasses.replace(self, **changes)

    def _sides(self, shape: tuple[int, ...]) -> tuple[Any, ...]:
        """The rows and columns of a group; zero rows if the channels do not fit."""
        d_in, d_out = shape
        if isinstance(self.groups, str):
            places = d_in // self.channels if self.channels else 1
            if self.groups == "channels" and places * (self.channels or 1) != d_in:
                return 0, d_out
            return {
                "inputs": (1, d_out),
                "neurons": (d_in, 1),
                "channels": (places, d_out),
            }[self.groups]
        return self.groups

    def _named(self, sides: tuple[Any, ...]) -> str:
        if self.groups == "channels":
            return f"{self.channels} channels"
        return f"{sides[0]} x {sides[1]}"

    def _split(self, A: Array) -> Array:
        """Groups along axes 0 and 2, their entries along axes 1 and 3."""
        A = A.T if self.turned else A
        d_in, d_out = A.shape
        rows, columns = self._sides(A.shape)
        if self.groups == "channels":  # which lie side by side at every place
            A = A.reshape(rows, d_in // rows, d_out).transpose(1, 0, 2)
        return A.reshape(d_in // rows, rows, d_out // columns, columns)

    def _join(self, A: Array, like: Array) -> Array:
        """The inverse of ``_split``, for a matrix of the shape of ``like``."""
        d_in, d_out = like.shape[::-1] if self.turned else like.shape
        a, rows, _, _ = A.shape
        if self.groups == "channels":
            A = A.reshape(a, rows, d_out).transpose(1, 0, 2)
        A = A.reshape(d_in, d_out)
        return A.T if self.turned else A

    def _lambda(self, W: Array, like: Array) -> Array:
        """The weights of the norms, ``[a, 1, b, 1]``."""
        grid = jnp.zeros((like.shape[0], like.shape[2]), W.dtype)
        return full(self.weight, grid)[:, None, :, None]

    def _entries(self, W: Array) -> Array:
        return self._oriented(self.entries, W)

    def _magnitudes(self, W: Array) -> Array:
        return self._oriented(self.magnitudes, W)

    def _oriented(self, value: ArrayLike, W: Array) -> Array:
        return full(value, W.T).T if self.turned else full(value, W)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupL1(_Groups):
    r"""Norms of groups, which make whole inputs, neurons, channels or blocks zero.

    .. math:: g(W) = \sum_G \lambda_G \|W_G\|_2

    (Yuan and Lin, 2006, eq. 2.4.) The groups of a layer have one size, so no factor
    accounts for it.

    Attributes:
      groups: ``"inputs"``: a row of ``W``, the weights of one input. ``"neurons"``: a
        column, the weights of one unit or filter. ``"channels"``: the rows of one input
        channel of a convolution, at all places of its window. Or ``(rows, columns)`` of
        a block.
      weight: :math:`\lambda`, positive; one number, or an array that broadcasts to the
        grid of the groups (``[d_in, 1]``, ``[1, d_out]``, ``[channels, 1]``).
      channels: for ``"channels"``, the number of input channels, which lie side by side
        at every place of the window; :func:`nettrim_jax.prune` takes the layer's.

    Example:
      >>> import jax.numpy as jnp
      >>> from nettrim_jax import GroupL1
      >>> W = jnp.array([[3.0, 4.0], [0.3, 0.4]])
      >>> V = GroupL1("inputs").prox(W, jnp.ones((1, 1)))
      >>> [round(float(v), 2) for v in V.ravel()]
      [2.4, 3.2, 0.0, 0.0]
    """


@register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseGroup(_Groups):
    r"""Norms and magnitudes, which make whole groups zero, and weights within groups.

    .. math::
        g(W) = \sum_G \lambda_G \|W_G\|_2 + \sum_{ij} \mu_{ij} |W_{ij}|

    (Simon, Friedman, Hastie and Tibshirani, 2013, eq. 3.)

    Attributes:
      groups: as for :class:`GroupL1`.
      weight: :math:`\lambda`, as for :class:`GroupL1`.
      magnitude: :math:`\mu`, at least 0; one number, or an array that broadcasts to
        ``[d_in, d_out]``.
      channels: as for :class:`GroupL1`.

    Example:
      >>> import jax.numpy as jnp
      >>> from nettrim_jax import SparseGroup
      >>> W = jnp.array([[3.0, 4.0], [0.3, 0.4]])
      >>> V = SparseGroup("inputs", magnitude=2.0).prox(W, jnp.ones((1, 1)))
      >>> [round(float(v), 2) for v in V.ravel()]
      [0.55, 1.11, 0.0, 0.0]
    """

    magnitude: ArrayLike = 1.0

    @property
    def magnitudes(self) -> ArrayLike:
        """The penalty weights of single magnitudes, beside the norms."""
        return self.magnitude

    def _with(self, magnitudes: Array, **changes: Any) -> "SparseGroup":
        return dataclasses.replace(self, magnitude=magnitudes, **changes)


def _norm(A: Array) -> Array:
    """The norm of every group, ``[a, 1, b, 1]``."""
    return norm(A, axis=(1, 3), keepdims=True)


def _radius(a: Array, limit: Array) -> tuple[Array, Array]:
    r"""The root ``r`` of :math:`\sum_i a_i^2 / (r + l_i)^2 = 1`, and if there is one.

    The power -1/2 of the left side is concave in ``r``, so Newton's method approaches
    the root from below and never passes it. The last two steps are differentiated: each
    doubles the order up to which the derivatives of the root are right.
    """
    left = jnp.sum((a / limit) ** 2, axis=(1, 3), keepdims=True) > 1
    a = jnp.where(left, a, 1)  # a number with a root, and no division by zero

    def step(r: Array, a: Array, limit: Array) -> Array:
        over = a / (r + limit)
        square = jnp.sum(over**2, axis=(1, 3), keepdims=True)
        slope = jnp.sum(over**2 / (r + limit), axis=(1, 3), keepdims=True)
        return r + (jnp.sqrt(square) - 1) * square / slope

    fixed = jax.lax.stop_gradient((a, limit))
    first = jnp.maximum(_norm(fixed[0]) - 1, 0)
    r = jax.lax.fori_loop(0, STEPS - 2, lambda _, r: step(r, *fixed), first)
    for _ in range(2):
        r = step(r, a, limit)
    return r, left
