r"""ADMM on the graph form of a program: the only loop of the library.

.. math::
    \min_{W, b, Z} \; g(W) + f(Z) \quad\text{s.t.}\quad Z = X W + b + t

Each step is a prox of ``g`` and one of ``f``, side by side, then the projection of
both on the graph. The loop stops on the certificate alone: a dual bound and the
violation of the very weights that it returns.

Everything is a pure function of one program; ``jax.vmap`` stacks programs. Knows
programs and the graph; knows no model.

Sources: Boyd et al. (2011), secs. 3.4 and 5; Parikh and Boyd (2014), "Block
splitting for distributed optimization", for the graph form.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nettrim_jax import linalg, programs, results
from nettrim_jax.linalg import Graph
from nettrim_jax.programs import Program
from nettrim_jax.results import MethodError, ProgramError
from nettrim_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class ADMM:
    """How to solve: every setting of the solver and its default.

    Attributes:
      tol: largest relative gap and largest relative violation at which a solve
        counts as converged. In float32 at least 1e-6; on layers with
        millions of responses rounding holds the gap near 1e-4.
      max_steps: most steps, in multiples of ``check_every``.
      relaxation: over-relaxation, in (0, 2).
      check_every: steps between two looks at the certificate and the step size.
      imbalance: the step size changes when the relative primal and dual residuals
        differ by more than this factor.
      feasibility: weight of the primal residual in that comparison: what is priced
        into the gap is the violation, which it brings down.
      patience: after a change of the step size the next one waits until the number
        of steps has grown by this factor, so that changes end (without it some
        programs cycle for ever).

    Raises:
      MethodError: a setting is out of its range.

    Example:
      >>> import nettrim_jax as nt
      >>> nt.ADMM(tol=1e-4).tol
      0.0001
    """

    tol: float = 1e-3
    max_steps: int = 20000
    relaxation: float = 1.7
    check_every: int = 10
    imbalance: float = 1.5
    feasibility: float = 2.5
    patience: float = 1.5

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            whole = name in ("max_steps", "check_every")
            if not isinstance(value, int if whole else int | float):
                raise MethodError(
                    f"ADMM({name}={value!r}): expected "
                    + ("an integer" if whole else "a number")
                )
        for name, good, wanted in (
            ("tol", self.tol > 0, "a positive number"),
            ("max_steps", self.max_steps >= 1, "at least 1"),
            ("relaxation", 0 < self.relaxation < 2, "between 0 and 2"),
            ("check_every", self.check_every >= 1, "at least 1"),
            ("imbalance", self.imbalance > 1, "above 1"),
            ("feasibility", self.feasibility > 0, "a positive number"),
            ("patience", self.patience >= 1, "at least 1"),
        ):
            if not good:
                raise MethodError(
                    f"ADMM({name}={getattr(self, name)!r}): expected {wanted}"
                )


class State(NamedTuple):
    """What the next step needs: a point of the graph, its duals, the step size."""

    W: Array  # [d_in, d_out]
    b: Array  # [d_out], beside the centred columns of the graph
    Z: Array  # [n, d_out]
    U_W: Array  # [d_in, d_out], scaled dual of the weight block
    U_Z: Array  # [n, d_out], scaled dual of the response block
    rho: Array  # []


class Halves(NamedTuple):
    """What the two proxes answered within a step, before the projection."""

    W: Array  # [d_in, d_out], exact zeros
    Z: Array  # [n, d_out], meets the response's requirement
    dual: Array  # [n, d_out], a subgradient of f at Z


class Stats(NamedTuple):
    """What a reader wants to know of a solve; arrays without lanes."""

    steps: Array  # [], int32
    objective: Array  # [], g(W)
    rho: Array  # [], the last step size


class Certificate(NamedTuple):
    """Proof of the answer's quality, in the units said; arrays without lanes."""

    gap: Array  # [], max(|objective - lower_bound|, ||L|| distance) / objective
    lower_bound: Array  # [], no feasible weights have a smaller penalty
    violation: Array  # [], distance of the response to its set / ||Y_Omega||_F


class Solution(NamedTuple):
    """Answer, code, stats and certificate; each with a lane axis under ``vmap``."""

    W: Array  # [d_in, d_out], exact zeros
    bias: Array  # [d_out], what to add to t; zeros if the bias is fixed
    result: Array  # [], int32, see nettrim_jax.results
    stats: Stats
    certificate: Certificate


class _Loop(NamedTuple):
    state: State
    W: Array  # [d_in, d_out], the answer so far
    b: Array  # [d_out]
    result: Array  # []
    stats: Stats
    certificate: Certificate
    next_change: Array  # [], steps before which rho stays


def init(program: Program, graph: Graph) -> State:
    """The start: zero weights, and a step size of the order of what is sought."""
    (n, d_in), d_out = program.X.shape, program.response.Y.shape[1]
    dtype = program.X.dtype
    W, Z = jnp.zeros((d_in, d_out), dtype), jnp.zeros((n, d_out), dtype)
    typical = jnp.mean(1 / jnp.sqrt(graph.metric)) * jnp.sqrt(
        jnp.asarray(d_in * d_out, dtype)
    )
    rho = typical / program.response.scale()
    return State(W, jnp.zeros((d_out,), dtype), Z + program.t, W, Z, rho)


def step(
    program: Program, graph: Graph, state: State, relaxation: float
) -> tuple[State, Halves]:
    r"""One step.

    .. math::
        W^{1/2} &= \mathrm{prox}_{g/\rho}(W - U_W), \quad
        Z^{1/2} = \mathrm{prox}_{f/\rho}(Z - U_Z) \\
        \hat W &= \alpha W^{1/2} + (1 - \alpha) W + U_W, \quad \hat Z \;\text{alike} \\
        (W, b, Z) &\leftarrow \Pi_{\text{graph}}(\hat W, \hat Z), \quad
        U_W \leftarrow \hat W - W, \quad U_Z \leftarrow \hat Z - Z

    in the metric of the graph.
    """
    W, _, Z, U_W, U_Z, rho = state
    W_half = program.penalty.prox(W - U_W, 1 / (rho * graph.metric[:, None]))
    Z_half = program.response.prox(Z - U_Z)
    dual = rho * graph.sigma2 * (Z - U_Z - Z_half)
    W_hat = relaxation * W_half + (1 - relaxation) * W + U_W
    Z_hat = relaxation * Z_half + (1 - relaxation) * Z + U_Z
    W, b, Z = linalg.project(graph, W_hat, Z_hat, program.t, program.bias == "free")
    return State(W, b, Z, W_hat - W, Z_hat - Z, rho), Halves(W_half, Z_half, dual)


def solve(program: Program, config: ADMM | None = None) -> Solution:
    r"""Solves one program; stack programs with ``jax.vmap``.

    .. math::
        \min_{W, b} \; g(W) + f(X W + b + t)

    Args:
      program: from :func:`nettrim_jax.relu_program` or
        :func:`nettrim_jax.linear_program`.
      config: the settings; ``ADMM()`` by default.

    Returns:
      The solution, in the dtype of the program. ``result`` says whether the
      certificate reached ``config.tol``; nothing raises on values.

    Raises:
      MethodError: ``config`` is no ``ADMM``, or its ``tol`` is beyond the dtype.

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
    return _solve(program, _checked(config, program))


@functools.partial(jax.jit, static_argnames="config")
def _solve(program: Program, config: ADMM) -> Solution:
    graph = linalg.graph(program.X, program.bias == "free")
    usable = programs.finite(program)
    program = dataclasses.replace(program, X=graph.X)

    def running(loop: _Loop) -> Array:
        return (loop.result == results.MAX_STEPS) & (
            loop.stats.steps < config.max_steps
        )

    def body(loop: _Loop) -> _Loop:
        return _advance(program, graph, config, loop)

    loop = jax.lax.while_loop(running, body, _start(program, graph, usable))
    # a stale answer would look like a good one
    W = jnp.where(loop.result == results.NAN, jnp.nan, loop.W)
    b = loop.b - linalg.matmul(graph.mean, W)
    if program.bias == "penalized":
        W, b = W[:-1], W[-1]
    return Solution(W, b, loop.result, loop.stats, loop.certificate)


def _start(program: Program, graph: Graph, usable: Array) -> _Loop:
    state = init(program, graph)
    zero = jnp.zeros((), program.X.dtype)
    inf = jnp.full((), jnp.inf, program.X.dtype)
    return _Loop(
        state=state,
        W=state.W,
        b=state.b,
        result=jnp.where(usable, results.MAX_STEPS, results.NAN).astype(jnp.int32),
        stats=Stats(jnp.zeros((), jnp.int32), zero, state.rho),
        # the dual point zero already bounds any penalty that is a norm
        certificate=Certificate(inf, programs.dual_bound(program, state.U_Z)[0], inf),
        next_change=zero,
    )


def _advance(program: Program, graph: Graph, config: ADMM, loop: _Loop) -> _Loop:
    """``check_every`` steps, then the certificate, then the step size."""
    relaxation = config.relaxation
    before = jax.lax.fori_loop(
        0,
        config.check_every - 1,
        lambda _, state: step(program, graph, state, relaxation)[0],
        loop.state,
    )
    state, halves = step(program, graph, before, relaxation)

    value = programs.objective(program, halves.W)
    new_bound, multiplier = programs.dual_bound(program, halves.dual)
    bound = jnp.maximum(loop.certificate.lower_bound, new_bound)
    distance = programs.distance(program, halves.W, state.b)
    scale, info = program.response.scale(), jnp.finfo(value.dtype)
    # weights that miss the set, by more than rounding, may be cheaper by this much
    missed = jnp.where(distance > 8 * info.eps * scale, distance, 0)
    price = jnp.sqrt(jnp.sum(multiplier**2)) * missed
    off = jnp.maximum(jnp.abs(value - bound), price)
    # both zero to within the rounding of the sums that the bound is a difference of
    size = jnp.sqrt(jnp.sum(multiplier**2)) * (scale + program.response.epsilon)
    nothing = jnp.maximum(jnp.abs(value), jnp.abs(bound)) <= 8 * info.eps * size
    off = jnp.where(nothing, 0, off)
    certificate = Certificate(
        gap=off / jnp.maximum(jnp.abs(value), info.tiny),
        lower_bound=bound,
        violation=distance / scale,
    )
    done = (certificate.gap <= config.tol) & (certificate.violation <= config.tol)
    lost = ~jnp.isfinite(value + bound + certificate.violation)
    result = jnp.where(done, results.CONVERGED, results.MAX_STEPS)
    result = jnp.where(lost, results.NAN, result).astype(jnp.int32)

    steps = loop.stats.steps + config.check_every
    state, next_change = _balance(
        program, graph, config, before, halves, state, steps, loop.next_change
    )
    stats = Stats(steps, value, state.rho)
    return _Loop(state, halves.W, state.b, result, stats, certificate, next_change)


def _balance(
    program: Program,
    graph: Graph,
    config: ADMM,
    before: State,
    halves: Halves,
    after: State,
    steps: Array,
    next_change: Array,
) -> tuple[State, Array]:
    """Moves rho so that the two relative residuals stay of one size.

    rho is shared by both blocks, so the factor of the graph stays as it is.
    (Boyd et al., 2011, sec. 3.4.1; relative residuals as in Wohlberg, 2017.)
    """
    t = program.t

    def norm(W: Array, Z: Array) -> Array:
        return jnp.sqrt(
            jnp.sum(graph.metric[:, None] * W**2) + graph.sigma2 * jnp.sum(Z**2)
        )

    size = jnp.maximum(norm(halves.W, halves.Z - t), norm(before.W, before.Z - t))
    primal = norm(halves.W - before.W, halves.Z - before.Z) / size
    dual = norm(after.W - before.W, after.Z - before.Z) / norm(after.U_W, after.U_Z)
    ratio = config.feasibility * primal / dual
    off = jnp.maximum(ratio, 1 / ratio) > config.imbalance
    steps = steps.astype(ratio.dtype)
    change = off & jnp.isfinite(ratio) & (ratio > 0) & (steps >= next_change)
    factor = jnp.clip(jnp.sqrt(jnp.where(change, ratio, 1)), 0.2, 5.0)
    later = jnp.where(change, config.patience * steps, next_change)
    return after._replace(
        rho=after.rho * factor, U_W=after.U_W / factor, U_Z=after.U_Z / factor
    ), later


def _checked(config: ADMM | None, program: Program) -> ADMM:
    config = ADMM() if config is None else config
    if not isinstance(program, Program):
        raise ProgramError(
            f"solve: expected a program, got {type(program).__name__}; make one with "
            "nettrim_jax.relu_program(X, Y, epsilon) or linear_program"
        )
    if not isinstance(config, ADMM):
        raise MethodError(
            f"solver: expected an ADMM(...), got {type(config).__name__}; "
            "give solver=nettrim_jax.ADMM(tol=1e-3)"
        )
    # about ten roundings; below that the certificate is noise
    least = 1e-6 if program.X.dtype == jnp.float32 else 1e-14
    if config.tol < least:
        raise MethodError(
            f"ADMM(tol={config.tol:g}) is beyond {program.X.dtype}, where at least "
            f"{least:g} can be certified; raise tol, or solve in float64 "
            "(jax.config.update('jax_enable_x64', True) and float64 data)"
        )
    return config
