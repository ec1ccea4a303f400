r"""The two stages of a solve: steps of ADMM in one distance, with checks in between.

The first stage takes all samples alike. A solve that has not ended then goes on where
it is, with weights of the samples that suit it better and a bound that rounding does
not spoil.

Knows programs, the projection and steps; knows no model.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from nettrim_jax import results
from nettrim_jax._numerics import divide, matmul
from nettrim_jax.convex import programs, projection
from nettrim_jax.convex.certificate import certify
from nettrim_jax.convex.config import ADMM
from nettrim_jax.convex.programs import Program
from nettrim_jax.convex.projection import Factor
from nettrim_jax.convex.solution import Certificate, Solution, Stats
from nettrim_jax.convex.step import Halves, State, cold, step, warm
from nettrim_jax.typing import Array

Kept = TypeVar("Kept")
Keep = Callable[[Kept, Stats, Certificate], Kept]

FIRST = 400  # steps before the samples are weighed
# smallest share of the largest sum of squares, so that no sample weighs without limit
LEAST = 1e-6
# a solve is at rest where so many checks in a row find moves of so many roundings only
PATIENCE, ROUNDINGS = 10, 4
NEAR = 10  # times tol, within which a solve at rest has stalled


class _Loop(NamedTuple):
    state: State
    W: Array  # [d_out, d_in], the weights so far
    b: Array  # [d_out]
    result: Array  # []
    stats: Stats
    certificate: Certificate
    next_change: Array  # [], number of steps until which rho stays
    idle: Array | None = None  # [], int32, checks in a row at rest; of the second stage


def unsolved(result: Any, steps: Any, limit: int) -> Any:
    """Whether more steps are to be taken."""
    return (result == results.MAX_STEPS) & (steps < limit)


def first(
    program: Program,
    config: ADMM,
    init: Solution | None,
    kept: Kept = (),
    keep: Keep = lambda kept, stats, certificate: kept,
) -> tuple[Solution, Kept]:
    """The first stage.

    Args:
      program: the program.
      config: the settings.
      init: the solution of a similar program, to start from.
      kept: what ``keep`` updates at every check.
      keep: takes ``kept``, the statistics and the certificate.

    Returns:
      Where the stage ended, and ``kept``.
    """
    factor = projection.factorise(program.X, program.bias == "free")
    usable = programs.finite(program)
    program = dataclasses.replace(program, X=factor.X)
    scale = program.response.scale()
    state = cold(program, factor, scale)
    if init is not None:
        state = warm(program, factor, state, init)
    zero = jnp.zeros((), state.rho.dtype)
    inf = jnp.full((), jnp.inf, state.rho.dtype)
    result = jnp.where(usable, results.MAX_STEPS, results.NAN).astype(jnp.int32)
    stats = Stats(jnp.zeros((), jnp.int32), zero, state.rho)
    # zero is a lower bound, since no penalty is negative
    start = _start(state, result, stats, Certificate(inf, zero, inf))
    config = dataclasses.replace(config, max_steps=min(FIRST, config.max_steps))
    return _run(program, factor, config, (start, kept), keep)


def second(
    program: Program,
    config: ADMM,
    solution: Solution,
    kept: Kept = (),
    keep: Keep = lambda kept, stats, certificate: kept,
) -> tuple[Solution, Kept]:
    """The second stage, which takes no step where the solve has ended.

    Args:
      program: the program.
      config: the settings.
      solution: where the first stage ended.
      kept: as for :func:`first`.
      keep: as for :func:`first`.

    Returns:
      The solution, and ``kept``.
    """

    def going(carry: tuple[Solution, Kept]) -> Array:
        solution, _ = carry
        return unsolved(solution.result, solution.stats.steps, config.max_steps)

    def stage(carry: tuple[Solution, Kept]) -> tuple[Solution, Kept]:
        solution, kept = carry
        rows = sample_weights(program, solution)
        factor = projection.factorise(program.X, program.bias == "free", rows)
        centred = dataclasses.replace(program, X=factor.X)
        state = cold(centred, factor, program.response.scale())
        state = warm(centred, factor, state, solution)
        stats = solution.stats._replace(rho=state.rho)
        start = _start(state, solution.result, stats, solution.certificate)
        start = start._replace(idle=jnp.zeros_like(solution.result))
        return _run(centred, factor, config, (start, kept), keep)

    # once at most; unlike a condition it costs nothing where no lane of a stack goes on
    return jax.lax.while_loop(going, stage, (solution, kept))


def _start(
    state: State, result: Array, stats: Stats, certificate: Certificate
) -> _Loop:
    """The loop of a stage before its first step, which may change rho."""
    now = jnp.zeros_like(state.rho)
    return _Loop(state, state.W, state.b, result, stats, certificate, now)


def sample_weights(program: Program, solution: Solution) -> Array:
    r"""Weights of the samples, ``[n]``, by the size of what makes up their responses.

    .. math::
        d_k \propto \Big(\sum_{ij} X_{ki}^2 W_{ij}^2
        + \sum_j (b_j + t_{kj})^2\Big)^{-3/4}

    Where one input is far larger than the others, samples in which it is nearly zero
    decide by their limits, and their duals are large where the others' are small. The
    weights are such that those of the columns stay as they were on average.
    """
    X = program.X
    W = programs.stacked(program, solution.W, solution.bias)
    b = solution.bias if program.bias == "free" else jnp.zeros_like(solution.bias)
    if program.bias == "free":
        mean = jnp.mean(X, axis=0)
        X, b = X - mean[None, :], b + matmul(W, mean)
    X2 = X**2
    terms = matmul(jnp.sum(W**2, axis=0), X2.T)
    terms = terms + jnp.sum((b[:, None] + program.t) ** 2, axis=0)
    most = jnp.max(terms)
    terms = jnp.where(most > 0, terms / jnp.where(most > 0, most, 1), 1)
    rows = (terms + LEAST) ** -0.75
    before, after = jnp.sum(X2, axis=0), matmul(rows, X2)
    live = before > 0
    growth = jnp.log(jnp.where(live, divide(after, before), 1))
    count = jnp.maximum(jnp.sum(live), 1).astype(rows.dtype)
    return rows / jnp.exp(jnp.sum(growth) / count)


def _run(
    program: Program,
    factor: Factor,
    config: ADMM,
    carry: tuple[_Loop, Kept],
    keep: Keep,
) -> tuple[Solution, Kept]:
    """The steps of one stage."""
    scale = program.response.scale()

    def running(carry: tuple[_Loop, Kept]) -> Array:
        loop, _ = carry
        return unsolved(loop.result, loop.stats.steps, config.max_steps)

    def body(carry: tuple[_Loop, Kept]) -> tuple[_Loop, Kept]:
        loop = _advance(program, factor, scale, config, carry[0])
        return loop, keep(carry[1], loop.stats, loop.certificate)

    loop, kept = jax.lax.while_loop(running, body, carry)
    # stale weights would look like a good solution
    stale = (loop.result == results.NAN) | (loop.result == results.INFEASIBLE)
    W = jnp.where(stale, jnp.nan, loop.W.T)
    b = loop.b - matmul(factor.mean, W)
    if program.bias == "penalized":
        W, b = W[:-1], W[-1]
    state = loop.state
    dual = state.rho * factor.sigma2 * factor.weigh(state.R - state.R_hat)
    return Solution(W, b, loop.result, loop.stats, loop.certificate, dual.T), kept


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
    certificate, value = certify(
        program,
        scale,
        halves,
        state.b,
        loop.certificate.lower_bound,
        repair=factor.rows is not None,
    )
    done = _within(certificate, config.tol)
    lost = ~jnp.isfinite(value + certificate.lower_bound + certificate.violation)
    result = jnp.where(done, results.CONVERGED, results.MAX_STEPS)
    idle = loop.idle
    if idle is not None:
        idle = jnp.where(_at_rest(factor, before, halves, state), idle + 1, 0)
        near = _within(certificate, NEAR * config.tol)
        at_rest = jnp.where(near, results.STALLED, results.ROUNDED)
        result = jnp.where(~done & (idle >= PATIENCE), at_rest, result)
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
    found = halves.W, state.b, result, stats, certificate
    return _Loop(state, *found, next_change, idle)


def _within(certificate: Certificate, tol: float) -> Array:
    return (certificate.gap <= tol) & (certificate.violation <= tol)


def _norm(factor: Factor, W: Array, R: Array) -> Array:
    """The norm in whose square the factor projects."""
    return jnp.sqrt(
        jnp.sum(factor.scale2[None, :] * W**2)
        + factor.sigma2 * jnp.sum(factor.weigh(R**2))
    )


def _at_rest(factor: Factor, before: State, halves: Halves, after: State) -> Array:
    """Whether a step moved the state, and the two proxes differ, by rounding only."""
    size = _norm(factor, after.W, after.R)
    nothing = ROUNDINGS * jnp.finfo(size.dtype).eps * size
    moved = _norm(factor, after.W - before.W, after.R - before.R)
    apart = _norm(factor, halves.W - before.W, halves.R - before.R)
    return (moved <= nothing) & (apart <= nothing) & (size > 0)


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
    norm = functools.partial(_norm, factor)
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
