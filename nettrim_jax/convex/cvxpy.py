"""A program as a problem of cvxpy, for other convex solvers.

cvxpy is imported only where :func:`to_cvxpy` is called.
Knows programs; knows no model.
"""

from typing import Any

import jax
import numpy as np

from nettrim_jax._trees import known
from nettrim_jax.convex.penalties import Groups
from nettrim_jax.convex.programs import Program
from nettrim_jax.results import ProgramError


def to_cvxpy(program: Program) -> Any:
    r"""Converts a program to a problem of cvxpy, for any solver that cvxpy supports.

    .. math::
        \min_{W, b} \; g(W) + f(X W + b + t)

    Args:
      program: one program, with known values.

    Returns:
      A ``cvxpy.Problem``. After ``problem.solve()``, ``problem.value`` is the optimum,
      and ``problem.var_dict`` holds ``"W"`` ``[d_in, d_out]`` and, unless the bias is
      fixed, ``"bias"`` ``[1, d_out]``.

    Raises:
      ProgramError: cvxpy is not installed, or ``program`` is a stack or is traced.

    Example:
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> program = nt.linear_program(jnp.eye(2), jnp.array([[3.0], [0.1]]), 0.5)
      >>> problem = nt.to_cvxpy(program)
      >>> round(float(problem.solve(solver="CLARABEL")), 2)
      2.51
    """
    try:
        import cvxpy as cp
    except ImportError:
        raise ProgramError(
            "to_cvxpy: cvxpy is not installed; install nettrim-jax[cvxpy]"
        ) from None
    if not isinstance(program, Program) or program.X.ndim != 2:
        got = "a stack" if isinstance(program, Program) else type(program).__name__
        raise ProgramError(
            f"to_cvxpy: expected one program, got {got}; make one with "
            "nettrim_jax.relu_program(X, Y, epsilon) or linear_program"
        )
    if not all(known(leaf) for leaf in jax.tree.leaves(program)):
        raise ProgramError(
            "to_cvxpy: the program is being traced; call it outside of jax.jit, "
            "jax.vmap and jax.grad"
        )
    response = program.response
    X, Y, t = (np.asarray(a, float) for a in (program.X, response.Y.T, program.t.T))
    on = np.asarray(response.on.T)
    V = np.broadcast_to(np.asarray(response.V.T, float), Y.shape)
    lowest = response.lower if response.lower is not None else -np.inf
    U = np.broadcast_to(np.asarray(lowest, float).T, Y.shape)
    n, d_out = Y.shape
    inputs = X.shape[1] - (program.bias == "penalized")
    W, rows = cp.Variable((inputs, d_out), name="W"), []
    if program.bias != "fixed":
        rows = [cp.Variable((1, d_out), name="bias")]
    penalised = cp.vstack([W, *rows]) if program.bias == "penalized" else W
    Z = X @ penalised + np.broadcast_to(t, Y.shape)
    if program.bias == "free":
        Z = Z + np.ones((n, 1)) @ rows[0]

    box = program.penalty.box()
    lower, upper, weight, ridge = (
        np.broadcast_to(np.asarray(a, float).T, penalised.shape) for a in box.terms()
    )
    objective = cp.sum(cp.multiply(weight, cp.abs(penalised)))
    if ridge.any():
        objective += cp.sum(cp.multiply(ridge / 2, cp.square(penalised)))
    if isinstance(program.penalty, Groups):
        objective += _norms(program.penalty, penalised, cp)
    inside, below = np.where(on), np.where(~on & np.isfinite(V))
    above = np.where(~on & np.isfinite(U))
    off = Z[inside] - Y[inside]
    epsilon = float(response.epsilon)
    # a ball of radius zero has no interior, which interior-point methods need
    constraints: list[Any] = []
    if inside[0].size:
        constraints = [cp.norm(off, 2) <= epsilon if epsilon > 0 else off == 0]
    constraints += [Z[below] <= V[below]] if below[0].size else []
    constraints += [Z[above] >= U[above]] if above[0].size else []
    for limit, sign in ((lower, 1), (upper, -1)):
        some = np.where(np.isfinite(limit))
        if some[0].size:
            constraints.append(sign * penalised[some] >= sign * limit[some])
    return cp.Problem(cp.Minimize(objective), constraints)


def _norms(penalty: Groups, W: Any, cp: Any) -> Any:
    """The weighted sum of the norms of all groups; ``W`` is ``[d_in, d_out]``."""
    layer = penalty.T
    members = layer.members(W.shape)
    weights, entries = layer.norms(W.shape)
    return cp.sum(
        [
            weights[g] * cp.norm(cp.multiply(entries[members == g], W[members == g]), 2)
            for g in range(members.max() + 1)
        ]
    )
