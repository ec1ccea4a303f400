r"""Derivatives of a fixed point, by the implicit function theorem.

The fixed points are those of the Douglas-Rachford map: with an orthogonal projection
:math:`\Pi` onto a subspace, its reflection :math:`S = 2 \Pi - I` and a prox :math:`P`,

.. math:: F(u) = P(S u) - \Pi u = 0

Where :math:`P` has the derivative :math:`D`, symmetric as for every prox,
:math:`F' = D S - \Pi = (D - \Pi) S` is a symmetric map after a reflection.
Knows functions of arrays; knows no program and no solver.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from nettrim_jax.typing import Array

Point = Any  # a pytree of arrays
Map = Callable[[Point], Point]

STEPS = 20000  # most steps of MINRES
ROUNDINGS = 50  # of the right side: a residual at which MINRES stops
# eps to this power counts as zero, for the residual of the normal equations and, at the
# end, for that of the system
FLAT = 0.5


def root(residual: Map, at: Point, reflect: Map) -> Point:
    """``at``, a root of ``residual``, with the derivatives that a root has.

    They are with respect to all that ``residual`` closes over, forward and in reverse,
    and of every order that ``residual`` has. Each takes one linear solve, which needs
    products only.

    Args:
      residual: ``F`` of the module's docstring.
      at: a point where it is zero; its own derivative is ignored.
      reflect: ``S``, linear, symmetric and its own inverse.

    Returns:
      The values of ``at``.
    """

    def tangent(linear: Map, right: Point) -> Point:
        flat, unravel = ravel_pytree(right)

        def symmetric(v: Array) -> Array:
            return ravel_pytree(linear(reflect(unravel(v))))[0]

        found = jax.lax.custom_linear_solve(symmetric, flat, minres, symmetric=True)
        return reflect(unravel(found))

    at = jax.lax.stop_gradient(at)
    return jax.lax.custom_root(residual, at, lambda _, guess: guess, tangent)


class _Lanczos(NamedTuple):
    x: Array
    w: Array  # the last direction, and the one before
    w_old: Array
    v: Array  # the last Lanczos vector, not normalised, and the one before
    v_old: Array
    beta: Array  # norm of v
    beta_old: Array
    cosine: Array  # the last rotation
    sine: Array
    corner: Array  # its entry of the next column
    above: Array
    left: Array  # norm of the residual
    slope: Array  # size of the normal equations' residual, relative to that of A
    norm: Array  # an estimate of the norm of A
    steps: Array


def minres(matvec: Callable[[Array], Array], b: Array) -> Array:
    r"""The minimum-norm least-squares solution of a symmetric system, definite or not.

    .. math:: x = A^+ b

    It is found by MINRES (Paige and Saunders, 1975, sec. 6) and, where ``b`` is not in
    the range of ``A``, the correction of Liu, Milzarek and Roosta (2023).

    Args:
      matvec: the product with ``A``.
      b: the right side, of any shape.

    Returns:
      ``x``, in the shape of ``b``; NaN if the steps allowed were too few.
    """
    # of size one, since squares of very large or small numbers leave the range
    most = jnp.max(jnp.abs(b), initial=0)
    b = jnp.where(most > 0, b / jnp.where(most > 0, most, 1), b)
    length = jnp.sqrt(jnp.sum(b**2))
    b = jnp.where(length > 0, b / jnp.where(length > 0, length, 1), b)
    size, zero = jnp.sqrt(jnp.sum(b**2)), jnp.zeros((), b.dtype)
    eps = jnp.finfo(b.dtype).eps
    tol, flat = ROUNDINGS * eps, eps**FLAT

    def divided(a: Array, by: Array) -> Array:
        return jnp.where(by > 0, a / jnp.where(by > 0, by, 1), 0)

    def running(k: _Lanczos) -> Array:
        return (
            (k.left > tol * size)
            & (k.slope > flat)
            & (k.beta > tol * k.norm)
            & (k.steps < STEPS)
        )

    def body(k: _Lanczos) -> _Lanczos:
        v = divided(k.v, k.beta)
        y = matvec(v) - divided(k.beta, k.beta_old) * k.v_old
        alpha = jnp.sum(v * y)
        y = y - divided(alpha, k.beta) * k.v
        beta = jnp.sqrt(jnp.sum(y**2))
        # the last rotation turns the new column, and the next one removes beta
        delta = k.cosine * k.corner + k.sine * alpha
        bar = k.sine * k.corner - k.cosine * alpha
        corner = -k.cosine * beta
        gamma = jnp.hypot(bar, beta)
        cosine = divided(bar, gamma)
        sine = jnp.where(gamma > 0, divided(beta, gamma), 1)
        w = divided(v - k.above * k.w_old - delta * k.w, gamma)
        # the norm of a column of the tridiagonal matrix; the first has nothing above
        over = jnp.where(k.steps > 0, k.beta, 0)
        norm = jnp.maximum(k.norm, jnp.sqrt(over**2 + alpha**2 + beta**2))
        slope = divided(jnp.hypot(bar, corner), norm)
        # the last x is the solution, and gamma may be rounding
        done = slope <= flat
        return _Lanczos(
            x=jnp.where(done, k.x, k.x + cosine * k.left * w),
            w=w,
            w_old=k.w,
            v=y,
            v_old=k.v,
            beta=beta,
            beta_old=k.beta,
            cosine=cosine,
            sine=sine,
            corner=corner,
            above=k.sine * beta,
            left=jnp.where(done, k.left, sine * k.left),
            slope=slope,
            norm=norm,
            steps=k.steps + 1,
        )

    nothing = jnp.zeros_like(b)
    start = _Lanczos(
        *(nothing, nothing, nothing, b, nothing),
        *(size, zero, zero - 1, zero, zero, zero, size, zero + 1, zero),
        steps=jnp.zeros((), jnp.int32),
    )
    found = jax.lax.while_loop(running, body, start)
    x, solved = found.x, found.left <= flat * size
    # the solution has no part outside the range of A
    off = b - matvec(x)
    lifted = x - divided(jnp.sum(off * x), jnp.sum(off**2)) * off
    x = jnp.where(solved, x, lifted)
    return jnp.where(solved | (found.steps < STEPS), most * length * x, jnp.nan)
