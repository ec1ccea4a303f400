"""Requirements on the response: the ``f`` of ``min g(W) + f(Z)``, known by its prox.

A requirement is a frozen record with one unit per row and pure methods. ``prox(Z)`` is
the nearest point that meets it, and ``distance(Z)`` the distance to that point, which
is relative to ``scale()``. ``dual(L, free_bias)`` is the nearest dual with finite
``f*`` and, for a free bias, with rows that sum to zero; ``bound(L, t)`` is ``<L, t> -
f*(L)``. ``residual(Z)`` is the error of ``Z`` that the network sees, and ``moves(Z)``
says where it changes with ``Z``.

Knows arrays; knows no penalty, program or solver.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from nettrim_jax._numerics import norm
from nettrim_jax.typing import Array

NEWTON = 10  # steps, which reach rounding


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Match:
    r"""The Net-Trim set: near ``Y`` where a unit is on, within limits elsewhere.

    .. math::
        f(Z) = 0 \;\text{if}\; \|(Z - Y)_\Omega\|_F \le \epsilon
        \;\text{and}\; U_{ij} \le Z_{ij} \le V_{ij} \;\text{off}\; \Omega,
        \quad \infty \;\text{otherwise}

    If :math:`\Omega` holds all entries, this is the ball of a linear layer. Behind a
    ReLU there is no lower limit (Aghasi et al., 2017, eqs. 4 and 6); where a clip holds
    a unit at its highest value that value is the lower limit, and no other is there. An
    entry off :math:`\Omega` without a limit is free, as in a row that does not count.

    Attributes:
      Y: trained response, as it is clipped, ``[d_out, n]``.
      on: the set :math:`\Omega`, ``[d_out, n]`` bool.
      V: upper limit off :math:`\Omega`; broadcasts to ``[d_out, n]``.
      epsilon: budget, a scalar, in units of ``Y`` (Frobenius norm).
      lower: lower limit :math:`U` off :math:`\Omega`, ``[d_out, n]``; None if there is
        none.
    """

    Y: Array
    on: Array
    V: Array
    epsilon: Array
    lower: Array | None = None

    def within(self, Z: Array) -> Array:
        r"""``Z`` within the limits that hold off :math:`\Omega`."""
        Z = jnp.minimum(Z, self.V)
        return Z if self.lower is None else jnp.maximum(Z, self.lower)

    def prox(self, Z: Array, rows: Array | None = None) -> Array:
        """The nearest point of the set, ``[d_out, n]``; samples may have weights."""
        R = jnp.where(self.on, Z - self.Y, 0)
        if rows is not None:
            R = R * _shares(jnp.sum(R**2, axis=0), rows, self.epsilon)[None, :]
        return jnp.where(self.on, self.Y + _ball(R, self.epsilon), self.within(Z))

    def distance(self, Z: Array) -> Array:
        """Distance to the set (Frobenius), a scalar."""
        return norm(Z - self.prox(Z))

    def residual(self, Z: Array) -> Array:
        """``Z - Y`` where on, and elsewhere where it is clipped less, ``[d_out, n]``.

        A limit beyond ``Y`` does not count: a program allows it but does not aim at it.
        """
        return jnp.where(self.moves(Z), Z - self.Y, 0)

    def moves(self, Z: Array) -> Array:
        """Where :meth:`residual` has slope one rather than zero, ``[d_out, n]``."""
        moves = self.on | ((Z > self.Y) & (self.V < jnp.inf))
        if self.lower is None:
            return moves
        return moves | ((Z < self.Y) & (self.lower > -jnp.inf))

    def finite(self) -> Array:
        """Whether the data is finite; a limit may be infinite."""
        numbers = jnp.all(jnp.isfinite(self.Y)) & jnp.isfinite(self.epsilon)
        limits = self.V > -jnp.inf
        if self.lower is not None:
            limits &= self.lower < jnp.inf
        return numbers & jnp.all(limits)

    def scale(self) -> Array:
        """Norm of the trained response where it is on; one if that is zero."""
        size = norm(jnp.where(self.on, self.Y, 0))
        return jnp.where(size > 0, size, 1)

    def dual(self, L: Array, free_bias: bool) -> Array:
        """Clips ``L`` to finite ``f*``; a free bias makes its rows sum to zero."""
        off = jnp.where(self.V < jnp.inf, jnp.maximum(L, 0), 0)
        if self.lower is not None:
            off += jnp.where(self.lower > -jnp.inf, jnp.minimum(L, 0), 0)
        L = jnp.where(self.on, L, off)
        if not free_bias:
            return L
        count = jnp.sum(self.on, axis=1, keepdims=True).astype(L.dtype)
        shift = jnp.sum(L, axis=1, keepdims=True) / jnp.maximum(count, 1)
        # the duals of a unit that is never on are of one sign: only zeros sum to zero
        L = jnp.where(self.on, L - shift, L)
        return jnp.where(count > 0, L, 0)

    def bound(self, L: Array, t: Array) -> Array:
        """``<L, t> - f*(L)`` for a dual that :meth:`dual` returned, a scalar."""
        limit = jnp.where(self.V < jnp.inf, self.V, 0)
        if self.lower is not None:  # a dual below zero pulls to it
            lower = jnp.where(self.lower > -jnp.inf, self.lower, 0)
            limit = jnp.where(L < 0, lower, limit)
        limit = jnp.where(self.on, self.Y, limit)
        reach = self.epsilon * norm(jnp.where(self.on, L, 0))
        return jnp.sum(L * (t - limit)) - reach


Response = Match


def _shares(norm2: Array, rows: Array, radius: Array) -> Array:
    r"""By what the samples of a point are multiplied to be nearest to it in a ball.

    .. math::
        \min_P \; \sum_k d_k \|P_{:k} - R_{:k}\|^2 \;\text{s.t.}\; \|P\|_F \le \epsilon,
        \qquad P_{:k} = \frac{d_k}{d_k + \mu} R_{:k}

    One over the norm of ``P`` is concave in :math:`\mu`, so Newton's method approaches
    the root from below. ``norm2`` has the squared norms of the samples, ``[n]``.
    """
    outside = jnp.sum(norm2) > radius**2
    radius = jnp.where(radius > 0, radius, 1)

    def newton(_: int, mu: Array) -> Array:
        left = norm2 * (rows / (rows + mu)) ** 2
        square, slope = jnp.sum(left), jnp.sum(left / (rows + mu))
        rise = (jnp.sqrt(square) / radius - 1) * square / slope
        return jnp.where(outside & (slope > 0), jnp.maximum(mu + rise, 0), 0)

    mu = jax.lax.fori_loop(0, NEWTON, newton, jnp.zeros((), norm2.dtype))
    return rows / (rows + mu)


def _ball(R: Array, radius: Array) -> Array:
    # jaxopt's projection_l2_ball divides by the norm, so its gradient at zero is NaN
    norm2 = jnp.sum(R**2)
    outside = norm2 > radius**2
    factor = jnp.where(outside, radius / jnp.sqrt(jnp.where(outside, norm2, 1)), 1)
    return factor * R
