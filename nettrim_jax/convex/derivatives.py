r"""Derivatives of a solution with respect to its program.

They are those of the fixed point at which a solve stopped, not of the steps that led
there. Where a weight or a response is about to enter or leave a constraint, they are
one-sided.

Knows programs and a step; knows no loop.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax._numerics import matmul
from nettrim_jax.convex import implicit, programs, projection
from nettrim_jax.convex.programs import Program
from nettrim_jax.convex.solution import Solution
from nettrim_jax.convex.step import Halves, State, cold, step, warm
from nettrim_jax.results import CONVERGED
from nettrim_jax.typing import Array

Point = tuple[Array, Array]  # weights [d_out, d_in] and response [d_out, n]


def tangent(program: Program, moved: Any, solution: Solution) -> Solution:
    """The tangent of a program's solution; NaN if the solve did not converge.

    Args:
      program: one program.
      moved: its tangent.
      solution: its solution.

    Returns:
      The tangents of weights, bias, dual and objective, and of the lower bound, which
      moves with the objective; zeros for all other fields.
    """
    fixed = jax.lax.stop_gradient(solution)
    # a factor, since in reverse mode a ``where`` would give zero instead of NaN; and at
    # both ends, since a ``where`` in between drops NaN
    known = jnp.where(solution.result == CONVERGED, 1, jnp.nan)

    def if_known(a: Any) -> Any:
        return a if a.dtype == jax.dtypes.float0 else a * known.astype(a.dtype)

    moved = jax.tree.map(if_known, moved)
    _, moves = jax.jvp(lambda p: _answer(p, fixed), (program,), (moved,))
    W, bias, dual, objective = map(if_known, moves)
    still = jax.tree.map(_still, solution)
    return still._replace(
        W=W,
        bias=bias,
        dual=dual,
        stats=still.stats._replace(objective=objective),
        certificate=still.certificate._replace(lower_bound=objective),
    )


def _still(a: Array) -> Any:
    floating = jnp.issubdtype(a.dtype, jnp.floating)
    return jnp.zeros_like(a) if floating else np.zeros(a.shape, jax.dtypes.float0)


def _answer(program: Program, solution: Solution) -> Sequence[Array]:
    """Weights, bias, dual and objective of a solution, as a function of its program."""
    free = program.bias == "free"
    factor = projection.factorise(program.X, free)
    program = dataclasses.replace(program, X=factor.X)
    state = warm(
        program, factor, cold(program, factor, program.response.scale()), solution
    )
    rho = jax.lax.stop_gradient(state.rho)
    # in these units the projection on the graph is orthogonal
    units = jnp.sqrt(factor.scale2)[None, :], jnp.sqrt(factor.sigma2)

    def project(point: Point) -> State:
        hats = point[0] / units[0], point[1] / units[1]
        return State(*hats, *projection.project(factor, *hats, free), rho)

    def halves(state: State) -> Halves:
        return step(program, factor, state, 1.0)[1]

    def reflect(point: Point) -> Point:
        state = project(point)
        return 2 * units[0] * state.W - point[0], 2 * units[1] * state.R - point[1]

    def residual(point: Point) -> Point:
        state = project(point)
        half = halves(state)
        return units[0] * (half.W - state.W), units[1] * (half.R - state.R)

    at = units[0] * state.W_hat, units[1] * state.R_hat
    state = project(implicit.root(residual, at, reflect))
    W = halves(state).W
    objective = programs.objective(program, W)
    W, b = W.T, state.b - matmul(W, factor.mean)
    if program.bias == "penalized":
        W, b = W[:-1], W[-1]
    dual = rho * factor.sigma2 * (state.R - state.R_hat)
    return W, b, dual.T, objective
