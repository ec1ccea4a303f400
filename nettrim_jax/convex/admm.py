r"""ADMM on the graph form of a program: the loop of the solver.

.. math::
    \min_{W, b, Z} \; g(W) + f(Z) \quad\text{s.t.}\quad Z = X W + b + t

The loop stops on the certificate alone: a dual bound, and the violation of the very
weights that it returns. All functions are pure and take one program; ``jax.vmap``
stacks programs.

Knows programs and the projection; knows no model.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from nettrim_jax import results
from nettrim_jax._compile import compiled
from nettrim_jax._numerics import matmul
from nettrim_jax._sharding import untyped
from nettrim_jax._trees import known
from nettrim_jax.convex import programs, projection
from nettrim_jax.convex.config import ADMM
from nettrim_jax.convex.derivatives import tangent
from nettrim_jax.convex.programs import Program
from nettrim_jax.convex.projection import Factor
from nettrim_jax.convex.solution import Certificate, History, Solution, Stats
from nettrim_jax.convex.step import Halves, State, cold, step, warm
from nettrim_jax.results import MethodError, ProgramError
from nettrim_jax.typing import Array

Kept = TypeVar("Kept")


class _Loop(NamedTuple):
    state: State
    W: Array  # [d_out, d_in], the weights so far
    b: Array  # [d_out]
    result: Array  # []
    stats: Stats
    certificate: Certificate
    next_change: Array  # [], number of steps until which rho stays


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
    return _solve(program, config, init)


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
    seen, looks = _history(program, config, init)
    return History(seen.steps, *(_until(looks, a) for a in seen[1:]))


def _until(looks: Array, values: Array) -> Array:
    """The values of so many checks, and NaN after them."""
    if not (known(values) and known(looks)):
        return jnp.where(jnp.arange(len(values)) < looks, values, jnp.nan)
    # not in a program: jax_debug_nans would take them for a fault
    some = np.where(np.arange(len(values)) < np.asarray(looks), values, np.nan)
    return jax.device_put(some.astype(values.dtype), values.sharding)


@compiled(static_argnames="config", often=True)
def _history(
    program: Program, config: ADMM, init: Solution | None
) -> tuple[History, Array]:
    """The certificate at every check, and the number of checks."""
    every = config.check_every
    looks = -(-config.max_steps // every)
    steps = every * jnp.arange(1, looks + 1, dtype=jnp.int32)
    nothing = jnp.zeros((looks,), program.X.dtype)

    def keep(kept: History, loop: _Loop) -> History:
        at = loop.stats.steps // every - 1
        proof = loop.certificate
        values = (loop.stats.objective, proof.lower_bound, proof.gap, proof.violation)
        lists = zip(kept[1:], values, strict=True)
        return History(steps, *(a.at[at].set(value) for a, value in lists))

    start = History(steps, *[nothing] * 4)
    solution, seen = _run(program, config, init, start, keep)
    return seen, solution.stats.steps // every


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _solved(program: Program, config: ADMM, init: Solution | None) -> Solution:
    return _run(program, config, init, (), lambda kept, loop: kept)[0]


def _run(
    program: Program,
    config: ADMM,
    init: Solution | None,
    kept: Kept,
    keep: Callable[[Kept, _Loop], Kept],
) -> tuple[Solution, Kept]:
    """The solution of the loop, and ``kept``, which ``keep`` updates at every check."""
    factor = projection.factorise(program.X, program.bias == "free")
    usable = programs.finite(program)
    program = dataclasses.replace(program, X=factor.X)
    scale = program.response.scale()

    def running(carry: tuple[_Loop, Kept]) -> Array:
        loop, _ = carry
        return (loop.result == results.MAX_STEPS) & (
            loop.stats.steps < config.max_steps
        )

    def body(carry: tuple[_Loop, Kept]) -> tuple[_Loop, Kept]:
        loop = _advance(program, factor, scale, config, carry[0])
        return loop, keep(carry[1], loop)

    state = cold(program, factor, scale)
    if init is not None:
        state = warm(program, factor, state, init)
    start = _start(program, state, usable)
    loop, kept = jax.lax.while_loop(running, body, (start, kept))
    # stale weights would look like a good solution
    stale = (loop.result == results.NAN) | (loop.result == results.INFEASIBLE)
    W = jnp.where(stale, jnp.nan, loop.W.T)
    b = loop.b - matmul(factor.mean, W)
    if program.bias == "penalized":
        W, b = W[:-1], W[-1]
    state = loop.state
    dual = state.rho * factor.sigma2 * (state.R - state.R_hat)
    return Solution(W, b, loop.result, loop.stats, loop.certificate, dual.T), kept


@_solved.defjvp
def _solved_jvp(config: ADMM, primals: tuple, tangents: tuple) -> tuple:
    program, init = primals
    solution = _solved(program, config, init)
    return solution, tangent(program, tangents[0], solution)


_solve = compiled(static_argnames="config", often=True)(_solved)


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


def _start(program: Program, state: State, usable: Array) -> _Loop:
    zero = jnp.zeros((), state.rho.dtype)
    inf = jnp.full((), jnp.inf, state.rho.dtype)
    return _Loop(
        state=state,
        W=state.W,
        b=state.b,
        result=jnp.where(usable, results.MAX_STEPS, results.NAN).astype(jnp.int32),
        stats=Stats(jnp.zeros((), jnp.int32), zero, state.rho),
        # zero is a lower bound, since no penalty is negative
        certificate=Certificate(inf, zero, inf),
        next_change=zero,
    )


def _advance(
    program: Program, factor: Factor, scale: Array, config: ADMM, loop: _Loop
) -> _Loop:
    """Takes ``check_every`` steps, then finds the certificate and the step size."""
    relaxation = config.relaxation
    before = jax.lax.fori_loop(
        0,
        config.check_every - 1,
        lambda _, state: step(program, factor, state, relaxation)[0],
        loop.state,
    )
    state, halves = step(program, factor, before, relaxation)
    certificate, value = _certify(
        program, scale, halves, state.b, loop.certificate.lower_bound
    )
    done = (certificate.gap <= config.tol) & (certificate.violation <= config.tol)
    lost = ~jnp.isfinite(value + certificate.lower_bound + certificate.violation)
    result = jnp.where(done, results.CONVERGED, results.MAX_STEPS)
    none = ~done & programs.excludes(program, halves.dual)
    result = jnp.where(none, results.INFEASIBLE, result)
    result = jnp.where(lost, results.NAN, result).astype(jnp.int32)

    steps = loop.stats.steps + config.check_every
    state, next_change = jax.lax.cond(
        steps.astype(value.dtype) >= loop.next_change,
        lambda: _balance(factor, config, before, halves, state, loop),
        lambda: (state, loop.next_change),
    )
    stats = Stats(steps, value, state.rho)
    return _Loop(state, halves.W, state.b, result, stats, certificate, next_change)


def _certify(
    program: Program, scale: Array, halves: Halves, b: Array, best: Array
) -> tuple[Certificate, Array]:
    """The certificate and objective of ``(halves.W, b)``; ``best`` is a lower bound."""
    value = programs.objective(program, halves.W)
    bound, multiplier = programs.dual_bound(program, halves.dual)
    bound = jnp.maximum(best, bound)
    distance = programs.distance(program, halves.W, b)
    norm, info = jnp.sqrt(jnp.sum(multiplier**2)), jnp.finfo(value.dtype)
    # weights that miss the set by more than rounding may be cheaper by this much
    price = norm * jnp.where(distance > 8 * info.eps * scale, distance, 0)
    off = jnp.maximum(jnp.abs(value - bound), price)
    # both are zero to within the rounding of the sums whose difference is the bound
    size = norm * (scale + program.response.epsilon)
    nothing = jnp.maximum(jnp.abs(value), jnp.abs(bound)) <= 8 * info.eps * size
    off = jnp.where(nothing, 0, off)
    return Certificate(
        gap=off / jnp.maximum(jnp.abs(value), info.tiny),
        lower_bound=bound,
        violation=distance / scale,
    ), value


def _balance(
    factor: Factor,
    config: ADMM,
    before: State,
    halves: Halves,
    after: State,
    loop: _Loop,
) -> tuple[State, Array]:
    """Adapts rho so that the relative primal and dual residuals stay of one size.

    Both blocks share rho, so the factor stays as it is.
    (Boyd et al., 2011, sec. 3.4.1; relative residuals as in Wohlberg, 2017.)
    """

    def norm(W: Array, R: Array) -> Array:
        return jnp.sqrt(
            jnp.sum(factor.scale2[None, :] * W**2) + factor.sigma2 * jnp.sum(R**2)
        )

    U_W, U_R = after.W_hat - after.W, after.R_hat - after.R
    size = jnp.maximum(norm(halves.W, halves.R), norm(before.W, before.R))
    primal = norm(halves.W - before.W, halves.R - before.R) / size
    dual = norm(after.W - before.W, after.R - before.R) / norm(U_W, U_R)
    ratio = config.feasibility * primal / dual
    off = jnp.maximum(ratio, 1 / ratio) > config.imbalance
    change = off & jnp.isfinite(ratio) & (ratio > 0)
    growth = jnp.clip(jnp.sqrt(jnp.where(change, ratio, 1)), 0.2, 5.0)
    steps = (loop.stats.steps + config.check_every).astype(ratio.dtype)
    later = jnp.where(change, config.patience * steps, loop.next_change)
    return after._replace(
        W_hat=after.W + U_W / growth,
        R_hat=after.R + U_R / growth,
        rho=after.rho * growth,
    ), later


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
