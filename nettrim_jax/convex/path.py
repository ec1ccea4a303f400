"""Solutions of one program for a series of budgets.

Each solve starts from the solution for the budget before it.
Knows programs and the solver; knows no model.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax._compile import compiled
from nettrim_jax._sharding import untyped
from nettrim_jax._trees import known
from nettrim_jax._values import numbers
from nettrim_jax.convex import admm
from nettrim_jax.convex.config import ADMM
from nettrim_jax.convex.programs import Program
from nettrim_jax.convex.solution import Solution
from nettrim_jax.results import ProgramError
from nettrim_jax.typing import Array, ArrayLike


class Path(NamedTuple):
    """The solutions for a series of budgets, with one entry per budget."""

    epsilons: Array  # [k]
    solutions: Solution  # with a leading axis of k; without duals

    @property
    def sparsity(self) -> Array:
        """Share of the weights that are zero, ``[k]``."""
        return jnp.mean((self.solutions.W == 0).astype(jnp.float32), axis=(-2, -1))


@untyped
def path(program: Program, epsilons: ArrayLike, config: ADMM | None = None) -> Path:
    r"""Solves a program for a series of budgets, in one compiled scan.

    .. math::
        \min_{W, b} \; g(W) \quad\text{s.t.}\quad
        \|(X W + b + t - Y)_\Omega\|_F \le \epsilon_k, \quad
        (X W + b + t)_{ij} \le V_{ij} \;\text{off}\; \Omega,
        \qquad k = 1, 2, \dots

    Each solve starts from the solution before it, so neighbouring budgets should be
    close; from large to small ones the weights enter one after another. ``jax.vmap``
    stacks programs.

    Args:
      program: one program; its own budget is not used.
      epsilons: absolute budgets (Frobenius norm), ``[k]``, at least 0.
      config: the settings; ``ADMM()`` by default.

    Returns:
      The budgets, their solutions and the sparsity of each.

    Raises:
      ProgramError: ``epsilons`` is not a series of budgets.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> X = jax.random.normal(jax.random.key(0), (50, 10))
      >>> Y = jax.nn.relu(X @ jax.random.normal(jax.random.key(1), (10, 3)))
      >>> found = nt.path(nt.relu_program(X, Y, 0.0), jnp.array([9.0, 3.0, 1.0]))
      >>> bool((jnp.diff(found.sparsity) <= 0).all())
      True
    """
    config = admm.checked(config, program, None, "path")
    budgets = numbers(epsilons, program.X.dtype)
    if budgets is None or budgets.ndim != 1 or not budgets.size:
        got = "none" if budgets is None else f"shape {list(budgets.shape)}"
        raise ProgramError(
            f"path: expected budgets [k], got {got}; give an "
            "array such as jnp.geomspace(largest, smallest, 20)"
        )
    if known(budgets) and not (np.isfinite(budgets) & (np.asarray(budgets) >= 0)).all():
        raise ProgramError("path: expected finite budgets of at least 0")
    return _path(program, budgets, config)


@compiled(static_argnames="config", often=True)
def _path(program: Program, epsilons: Array, config: ADMM) -> Path:
    def at(epsilon: Array) -> Program:
        response = dataclasses.replace(program.response, epsilon=epsilon)
        return dataclasses.replace(program, response=response)

    def solve(before: Solution, epsilon: Array) -> tuple[Solution, Solution]:
        solution = admm.solve(at(epsilon), config, before)
        return solution, solution._replace(dual=None)

    shapes = jax.eval_shape(lambda: admm.solve(at(epsilons[0]), config))

    # a start with a step size of zero is ignored, so the first solve starts cold
    def nothing(a: jax.ShapeDtypeStruct) -> Array:
        return jnp.zeros(a.shape, a.dtype)

    _, solutions = jax.lax.scan(solve, jax.tree.map(nothing, shapes), epsilons)
    return Path(epsilons, solutions)
