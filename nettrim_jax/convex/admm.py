r"""ADMM on the graph form of a program: the solver, stage by stage.

.. math::
    \min_{W, b, Z} \; g(W) + f(Z) \quad\text{s.t.}\quad Z = X W + b + t

A solve stops on the certificate alone: a dual bound, and the violation of the very
weights that it returns. All functions are pure and take one program; ``jax.vmap``
stacks programs.

Knows programs and their stages; knows no model.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax._compile import compiled, traced
from nettrim_jax._sharding import untyped
from nettrim_jax._trees import known
from nettrim_jax.convex import stage
from nettrim_jax.convex.config import ADMM
from nettrim_jax.convex.derivatives import tangent
from nettrim_jax.convex.programs import Program
from nettrim_jax.convex.solution import Certificate, History, Solution, Stats
from nettrim_jax.results import MethodError, ProgramError
from nettrim_jax.typing import Array

Each = Callable[..., Any]


@untyped
def solve(
    program: Program, config: ADMM | None = None, init: Solution | None = None
) -> Solution:
    r"""Solves one program; ``jax.vmap`` solves a stack of them.

    .. math::
        \min_{W, b} \; g(W) + f(X W + b + t)

    The solution has derivatives of any order with respect to all arrays of the program,
    in forward and in reverse mode. They are those of the fixed point, whatever the
    steps were, and NaN where the solve did not converge. They are as exact as the
    solution, so lower ``config.tol`` if they matter. Between two regimes, as where a
    weight is about to leave zero, they are one-sided. ``init`` has none.

    Args:
      program: from :func:`nettrim_jax.relu_program` or
        :func:`nettrim_jax.linear_program`.
      config: the settings; ``ADMM()`` by default.
      init: the solution of a program of the same shapes, to start from; it saves steps
        if the programs are similar. One that is not finite is ignored.

    Returns:
      The solution, in the dtype of the program. ``result`` says whether the certificate
      reached ``config.tol``; values of arrays raise no error. The weights are NaN where
      none meet the budget, or where a number is not finite.

    Raises:
      MethodError: ``config`` is not an ``ADMM``, or its ``tol`` is beyond the dtype.
      ProgramError: ``program`` is not a single program, or ``init`` has other shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> program = nt.relu_program(jnp.eye(3), jnp.array([[2.0], [1.0], [0.0]]), 0.1)
      >>> solution = nt.solve(program)
      >>> nt.results.message(solution.result)
      'converged: gap and violation are certified within tol'
      >>> [round(float(w), 1) for w in solution.W[:, 0]]
      [1.9, 0.9, 0.0]
    """
    config = checked(config, program, init, "solve")
    if traced((program, init)):
        return _solve(program, config, init)
    return by_stages(_one, (program, init), config)


@untyped
def history(
    program: Program, config: ADMM | None = None, init: Solution | None = None
) -> History:
    r"""The certificate at every check of :func:`solve`.

    .. math::
        \frac{|g(W_k) - D_k|}{g(W_k)}, \quad
        \frac{\mathrm{dist}(X W_k + b_k + t)}{\|Y_\Omega\|_F},
        \qquad k = \text{check\_every}, 2\,\text{check\_every}, \dots

    It takes the same steps as :func:`solve`, which keeps no history. ``jax.vmap``
    stacks programs. Unlike a solution, a history has no implicit derivatives.

    Args:
      program: as for :func:`solve`.
      config: as for :func:`solve`.
      init: as for :func:`solve`.

    Returns:
      One entry per check within ``max_steps``, ``[k]``, in the dtype of the program;
      NaN after the check at which the solve stopped.

    Raises:
      MethodError: as :func:`solve`.
      ProgramError: as :func:`solve`.

    Example:
      >>> import jax.numpy as jnp
      >>> import nettrim_jax as nt
      >>> program = nt.relu_program(jnp.eye(3), jnp.array([[2.0], [1.0], [0.0]]), 0.1)
      >>> seen = nt.history(program, nt.ADMM(max_steps=100))
      >>> seen.steps.tolist()
      [20, 40, 60, 80, 100]
      >>> bool(jnp.isclose(jnp.nanmin(seen.gap), nt.solve(program).certificate.gap))
      True
    """
    config = checked(config, program, init, "history")
    solution, seen = _begun(program, config, init)
    if _going(solution, config):
        solution, seen = _finished(program, config, solution, seen)
    looks = solution.stats.steps // config.check_every
    return History(seen.steps, *(_until(looks, a) for a in seen[1:]))


def _until(looks: Array, values: Array) -> Array:
    """The values of so many checks, and NaN after them."""
    if not (known(values) and known(looks)):
        checks = jnp.arange(len(values), dtype=looks.dtype)
        return jnp.where(checks < looks, values, jnp.nan)
    # not in a program: jax_debug_nans would take them for a fault
    some = np.where(np.arange(len(values)) < np.asarray(looks), values, np.nan)
    return jax.device_put(some.astype(values.dtype), values.sharding)


@compiled(static_argnames="config", often=True)
def _begun(
    program: Program, config: ADMM, init: Solution | None
) -> tuple[Solution, History]:
    """The first stage, and the certificate at its checks."""
    every = config.check_every
    looks = -(-config.max_steps // every)
    steps = every * jnp.arange(1, looks + 1, dtype=jnp.int32)
    nothing = jnp.zeros((looks,), program.X.dtype)
    start = History(steps, *[nothing] * 4)
    return stage.first(program, config, init, start, _noted(every))


@compiled(static_argnames="config", often=True)
def _finished(
    program: Program, config: ADMM, solution: Solution, seen: History
) -> tuple[Solution, History]:
    """The second stage, and the certificate at all checks."""
    keep = _noted(config.check_every)
    return stage.second(program, config, solution, seen, keep)


def _noted(every: int) -> stage.Keep:
    def keep(kept: History, stats: Stats, proof: Certificate) -> History:
        at = stats.steps // every - 1
        values = (stats.objective, proof.lower_bound, proof.gap, proof.violation)
        lists = zip(kept[1:], values, strict=True)
        return History(kept.steps, *(a.at[at].set(value) for a, value in lists))

    return keep


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _solved(program: Program, config: ADMM, init: Solution | None) -> Solution:
    solution, _ = stage.first(program, config, init)
    return stage.second(program, config, solution)[0]


@_solved.defjvp
def _solved_jvp(config: ADMM, primals: tuple, tangents: tuple) -> tuple:
    program, init = primals
    solution = _solved(program, config, init)
    return solution, tangent(program, tangents[0], solution)


_solve = compiled(static_argnames="config", often=True)(_solved)


def by_stages(
    each: Each, lanes: tuple[Program, Solution | None], config: ADMM
) -> Solution:
    """Solves one program or a stack, whose values are known.

    Most programs end within the first stage. So what follows it is compiled, and runs,
    only where some program has not.

    Args:
      each: ``each(function, lanes, config=config)`` applies a compiled function of one
        lane to all of them.
      lanes: the programs, and the solutions to start from.
      config: the settings.

    Returns:
      The solutions.
    """
    solution = each(_first_of, lanes, config=config)
    if _going(solution, config):
        return each(_second_of, (lanes[0], solution), config=config)
    return solution


def _going(solution: Solution, config: ADMM) -> bool:
    """Whether the first stage has not ended some solve, or nobody knows yet."""
    result, steps = solution.result, solution.stats.steps
    if not known(result):
        return True
    going = stage.unsolved(np.asarray(result), np.asarray(steps), config.max_steps)
    return bool(np.any(going))


@compiled(static_argnames=("function", "config"), often=True)
def _one(function: Each, lane: Any, config: ADMM) -> Any:
    return function(lane, config)


def _first_of(lane: tuple[Program, Solution | None], config: ADMM) -> Solution:
    program, init = lane
    return stage.first(program, checked(config, program, init, "solve"), init)[0]


def _second_of(lane: tuple[Program, Solution], config: ADMM) -> Solution:
    return stage.second(lane[0], config, lane[1])[0]


def _check_init(program: Program, init: Solution, caller: str) -> None:
    (n, d_in), d_out = program.X.shape, program.response.Y.shape[0]
    shape = (d_in - (program.bias == "penalized"), d_out)
    got = getattr(init, "W", init), getattr(init, "dual", None)
    if [getattr(a, "shape", None) for a in got] != [shape, (n, d_out)]:
        raise ProgramError(
            f"{caller}: expected init with W {list(shape)} and dual {[n, d_out]}, got "
            f"{jax.tree.map(jnp.shape, init)}; start from what nettrim_jax.solve "
            "returned for a program of the same shapes"
        )


def checked(
    config: ADMM | None, program: Program, init: Solution | None, caller: str
) -> ADMM:
    """The settings of a solve; raises an error if its arguments do not fit."""
    config = ADMM() if config is None else config
    if not isinstance(program, Program):
        raise ProgramError(
            f"{caller}: expected a program, got {type(program).__name__}; make one "
            "with nettrim_jax.relu_program(X, Y, epsilon) or linear_program"
        )
    if program.X.ndim != 2:
        raise ProgramError(
            f"{caller}: expected one program, got a stack with X "
            f"{list(program.X.shape)}; take jax.vmap(nettrim_jax.{caller})(stack)"
        )
    if not isinstance(config, ADMM):
        raise MethodError(
            f"solver: expected an ADMM(...), got {type(config).__name__}; "
            "give solver=nettrim_jax.ADMM(tol=1e-3)"
        )
    # about ten roundings, below which the certificate is noise
    least = 1e-6 if program.X.dtype == jnp.float32 else 1e-14
    if config.tol < least:
        raise MethodError(
            f"ADMM(tol={config.tol:g}) is beyond {program.X.dtype}, where at least "
            f"{least:g} can be certified; raise tol, or solve in float64 "
            "(jax.config.update('jax_enable_x64', True) and float64 data)"
        )
    if init is not None:
        _check_init(program, init, caller)
    return config
