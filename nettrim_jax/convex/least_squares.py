r"""A least-squares fit of the weights on a fixed support.

It undoes the shrinkage by an :math:`\ell_1` norm. The fit of each unit is convex and
independent of the others, so all units move at once: by a semi-smooth Newton step with
conjugate gradients, and a step length per unit.

Knows programs; knows no solver and no model.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg

from nettrim_jax._numerics import matmul
from nettrim_jax.convex.programs import Program, stacked
from nettrim_jax.typing import Array

ROUNDS = 10
INNER = 15  # steps of conjugate gradients in a round
STEPS = 1000  # most steps of conjugate gradients for a derivative
# a round that lowers the loss by less than this share is the last
GAIN = 1e-3


def refit(
    program: Program, W: Array, b: Array, support: Array | None = None
) -> tuple[Array, Array]:
    r"""Fits the values on the support of ``W`` to the trained response.

    .. math::
        \min_{W, b} \; \tfrac12 \|(Z - Y)_\Omega\|_F^2
        + \tfrac12 \|\max(Z, 0)_{\text{off}}\|_F^2
        \quad\text{s.t.}\quad W_{ij} = 0 \;\text{where it was}, \qquad
        Z = X W + b + t

    It stops when a round lowers the loss by less than a thousandth, which is within a
    per cent of the minimum where inputs are well conditioned. Twice the loss bounds the
    squared error after the ReLU, and the loss never grows, so the refit meets every
    bound that the solution meets. The derivatives are those of the minimum.

    Args:
      program: one program; its budget and penalty are not used.
      W: ``[d_in, d_out]``, as in a solution.
      b: ``[d_out]``; stays if the program's bias is fixed, or penalised and zero.
      support: where ``W`` may differ from zero, ``[d_in, d_out]`` bool; zeros of ``W``
        on it may move. By default it is where ``W`` is not zero.

    Returns:
      The new ``W``, zero off the support, and the new ``b``.
    """
    if support is None:
        return _refit(program, W, b)
    # the smallest number marks the zeros that may move
    least = jnp.finfo(W.dtype).tiny
    start = jnp.where(support, jnp.where(W == 0, least, W), 0)
    new, b = _refit(program, start, b)
    return jnp.where(support & (new == least), W, new), b


class _Fit(NamedTuple):
    """The fit ``Z = A X^T + still``, where ``A`` moves on its support only."""

    X: Array  # [n, k], with ones for a free bias
    A: Array  # [d_out, k]
    support: Array  # [d_out, k]
    still: Array  # [d_out, n]

    def response(self, A: Array) -> Array:
        return matmul(A, self.X.T) + self.still


def _fit(program: Program, W: Array, b: Array) -> _Fit:
    X, A = program.X, stacked(program, W, b)
    support, still = A != 0, program.t
    if program.bias == "free":
        A = jnp.concatenate([A, b[:, None]], axis=1)
        support = jnp.pad(support, ((0, 0), (0, 1)), constant_values=True)
        X = jnp.concatenate([X, jnp.ones((X.shape[0], 1), X.dtype)], axis=1)
    if program.bias == "fixed":
        still = still + b[:, None]
    return _Fit(X, A, support, still)


@jax.custom_jvp
def _refit(program: Program, W: Array, b: Array) -> tuple[Array, Array]:
    fit, response = _fit(program, W, b), program.response

    def losses(Z: Array) -> Array:
        return jnp.sum(response.residual(Z) ** 2, axis=1)

    def running(carry: tuple) -> Array:
        _, _, gain, done = carry
        return (done < ROUNDS) & (gain > GAIN)

    def body(carry: tuple) -> tuple:
        A, Z, _, done = carry
        off = response.residual(Z)
        direction = _newton(fit, response.moves(Z), matmul(off, fit.X))
        turn = matmul(direction, fit.X.T)
        before = losses(Z)

        def shorter(carry: tuple, length: Array) -> tuple:
            best, least = carry
            loss = losses(Z + length * turn)
            return (
                jnp.where(loss < least, length, best),
                jnp.minimum(loss, least),
            ), None

        lengths = 0.5 ** jnp.arange(6, dtype=Z.dtype)
        (best, least), _ = jax.lax.scan(
            shorter, (jnp.zeros_like(before), before), lengths
        )
        A = A + best[:, None] * direction
        total = jnp.sum(before)
        gain = jnp.where(total > 0, 1 - jnp.sum(least) / total, 0)
        # found anew from A, since a sum of steps drifts
        return A, fit.response(A), gain, done + 1

    start = jnp.ones((), W.dtype), jnp.zeros((), jnp.int32)
    carry = fit.A, fit.response(fit.A), *start
    A, _, _, _ = jax.lax.while_loop(running, body, carry)
    return _apart(program, A, W.shape[0], b)


@_refit.defjvp
def _refit_jvp(primals: tuple, tangents: tuple) -> tuple:
    """The derivative of the minimum, by one solve with the curvature of the loss."""
    program, W, b = primals
    new = _refit(program, W, b)
    A = _fit(program, *new).A

    def slope(program: Program, b: Array) -> Array:
        fit = _fit(program, W, b)
        off = program.response.residual(fit.response(A))
        return jnp.where(fit.support, matmul(off, fit.X), 0)

    _, turn = jax.jvp(slope, (program, b), (tangents[0], tangents[2]))
    fit = _fit(program, W, b)
    moves = program.response.moves(fit.response(A))
    # every unit has its own system, of unit diagonal since inputs have any size
    diagonal = matmul(moves.astype(A.dtype), fit.X**2)
    usable = fit.support & (diagonal > 0)
    scale = jnp.where(usable, diagonal, 1) ** -0.5

    def unit(X: Array, support: Array, moves: Array, scale: Array, right: Array):
        def system(p: Array) -> Array:  # the identity where nothing moves
            q = matmul(X, jnp.where(support, scale * p, 0))
            return jnp.where(support, scale * matmul(moves * q, X), p)

        def solver(system: Callable[[Array], Array], right: Array) -> Array:
            tol = 10 * float(jnp.finfo(X.dtype).eps)
            return cg(system, right, tol=tol, maxiter=STEPS)[0]

        return scale * jax.lax.custom_linear_solve(
            system, scale * right, solver, symmetric=True
        )

    each = jax.vmap(unit, in_axes=(None, 0, 0, 0, 0))
    moved = each(fit.X, usable, moves.astype(A.dtype), scale, -turn)
    moved = jnp.where(usable, moved, 0)
    # only the zeros of W count, but a tangent that is NaN makes the result NaN
    unknown = 0 * (jnp.sum(tangents[1]) + jnp.sum(tangents[2]))
    return new, _apart(program, moved + unknown, W.shape[0], tangents[2])


def _apart(program: Program, A: Array, count: int, b: Array) -> tuple[Array, Array]:
    """The weights ``[d_in, d_out]`` and the bias in a fitted ``A``."""
    return A[:, :count].T, b if program.bias == "fixed" else A[:, count]


def _curvature(fit: _Fit, moves: Array) -> Callable[[Array], Array]:
    """The product with every unit's Gram matrix on its support, the identity off it.

    ``moves`` says which rows of a unit count.
    """
    counts = moves.astype(fit.X.dtype)

    def curved(P: Array) -> Array:
        turn = matmul(jnp.where(fit.support, P, 0), fit.X.T)
        return jnp.where(fit.support, matmul(counts * turn, fit.X), P)

    return curved


def _newton(fit: _Fit, moves: Array, slope: Array) -> Array:
    """Solves every unit's normal equations on its support, ``[d_out, k]``.

    It takes steps of conjugate gradients, preconditioned by the diagonal.
    """
    diagonal = matmul(moves.astype(fit.X.dtype), fit.X**2)
    usable = fit.support & (diagonal > 0)
    scale = jnp.where(usable, 1 / jnp.where(usable, diagonal, 1), 0)
    curved = _curvature(fit._replace(support=usable), moves)

    def inner(_, carry: tuple) -> tuple:
        A, R, P, energy = carry
        H = curved(P)
        curve = jnp.sum(P * H, axis=1)
        # a unit with fewer rows than weights ends early, and what is left is rounding
        going = (curve > 0) & (energy > least)
        length = jnp.where(going, energy / jnp.where(going, curve, 1), 0)
        A, R = A + length[:, None] * P, R - length[:, None] * H
        left = jnp.sum(R * scale * R, axis=1)
        turn = jnp.where(energy > 0, left / jnp.where(energy > 0, energy, 1), 0)
        return A, R, scale * R + turn[:, None] * P, left

    R = jnp.where(usable, -slope, 0)
    energy = jnp.sum(R * scale * R, axis=1)
    least = (16 * jnp.finfo(R.dtype).eps) ** 2 * energy
    start = jnp.zeros_like(R), R, scale * R, energy
    return jax.lax.fori_loop(0, INNER, inner, start)[0]
