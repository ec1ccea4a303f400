"""The registries that the tests run over, and an oracle that shares no code with us."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from marks import only_fast

import nettrim_jax as nt
from nettrim_jax.convex.responses import Match

# ---- proxes


class Prox(NamedTuple):
    """One prox of the library and what it claims to minimise."""

    call: Callable  # V -> argmin_P value(P) + sum (P - V)^2 / (2 step)
    value: Callable  # value of a point of the domain
    step: Any  # [6, 1]
    centre: Any  # [6, 4], where the residual is zero
    limited: bool  # whether some points are not of the domain
    cvx: Callable  # variable -> (expression, constraints)


def _entrywise(name):
    step = np.array([0.3, 0.5, 1.0, 1.0, 2.0, 3.0])[:, None]
    penalty = ENTRYWISE[name]
    lower, upper, weight, ridge = (np.broadcast_to(a, (6, 4)) for a in TERMS[name])

    def cvx(P):
        import cvxpy as cp

        inside = [np.where(np.isfinite(limit)) for limit in (lower, upper)]
        constraints = [P[inside[0]] >= lower[inside[0]]] if inside[0][0].size else []
        constraints += [P[inside[1]] <= upper[inside[1]]] if inside[1][0].size else []
        size = cp.sum(cp.multiply(weight, cp.abs(P)))
        return size + cp.sum(cp.multiply(ridge / 2, cp.square(P))), constraints

    return Prox(
        call=jax.jit(lambda V: penalty.prox(V, jnp.asarray(step))),
        value=penalty.value,
        step=step,
        centre=np.zeros((6, 4)),
        limited=bool(np.isfinite(lower).any() or np.isfinite(upper).any()),
        cvx=cvx,
    )


def match(relu=True, V=0.0, rows=None, epsilon=0.7):
    """A ``Match`` of six units, four rows; ``rows`` are those that do not count."""
    rng = np.random.default_rng(1)
    Y = rng.normal(size=(6, 4))
    Y = np.maximum(Y, 0) if relu else Y
    on = Y > 0 if relu else np.ones(Y.shape, bool)
    V = np.maximum(rng.normal(size=(6, 4)), 0) if V == "cascade" else np.full((1, 1), V)
    if rows is not None:
        V = np.broadcast_to(V, Y.shape).copy()
        V[:, rows], on[:, rows] = np.inf, False
    return Match(*(jnp.asarray(leaf) for leaf in (Y, on, V, np.float64(epsilon))))


def _projection(response):
    Y, on = np.asarray(response.Y), np.asarray(response.on)
    V, epsilon = np.broadcast_to(response.V, Y.shape), float(response.epsilon)

    def cvx(P):
        import cvxpy as cp

        inside, below = np.where(on), np.where(~on & np.isfinite(V))
        constraints = [cp.norm(P[inside] - Y[inside], 2) <= epsilon]
        if epsilon == 0:  # a cone without interior: no interior-point method likes it
            constraints = [P[inside] == Y[inside]]
        if below[0].size:
            constraints.append(P[below] <= V[below])
        return 0, constraints

    return Prox(
        call=jax.jit(response.prox),
        value=lambda P: jnp.zeros(()),
        step=np.ones((6, 1)),
        centre=np.where(on, Y, 0),
        limited=True,
        cvx=cvx,
    )


_noise = np.random.default_rng(2).normal(size=(6, 4))
_signs = np.sign(_noise) * (np.abs(_noise) > 0.3)
ENTRYWISE = {
    "l1": nt.L1(2.0),
    "l1-per-row": nt.L1(np.linspace(0, 2, 6)[:, None]),
    "l1-per-unit": nt.L1(np.linspace(0.5, 2, 4)),
    "l1-per-entry": nt.L1(np.abs(_noise)),
    "box": nt.Box(-0.5, np.abs(_noise), 0.7),
    "box-with-ridge": nt.Box(-0.5, np.inf, 0.7, np.linspace(0, 2, 4)),
    "elastic-net": nt.ElasticNet(np.linspace(0.1, 2, 6)[:, None], 0.4),
    "nonnegative": nt.Nonnegative(0.3),
    "sign": nt.Sign(_signs, np.linspace(0.5, 2, 4)),
    "fixed-pattern": nt.FixedPattern(_noise > 0, 0.5),
}
# the same in figures: limits below and above, weight of magnitudes, ridge
TERMS = {
    "l1": (-np.inf, np.inf, 2.0, 0.0),
    "l1-per-row": (-np.inf, np.inf, np.linspace(0, 2, 6)[:, None], 0.0),
    "l1-per-unit": (-np.inf, np.inf, np.linspace(0.5, 2, 4), 0.0),
    "l1-per-entry": (-np.inf, np.inf, np.abs(_noise), 0.0),
    "box": (-0.5, np.abs(_noise), 0.7, 0.0),
    "box-with-ridge": (-0.5, np.inf, 0.7, np.linspace(0, 2, 4)),
    "elastic-net": (-np.inf, np.inf, 0.4, np.linspace(0.1, 2, 6)[:, None]),
    "nonnegative": (0.0, np.inf, 0.3, 0.0),
    "sign": (
        np.where(_signs > 0, 0.0, -np.inf),
        np.where(_signs < 0, 0.0, np.inf),
        np.linspace(0.5, 2, 4),
        0.0,
    ),
    "fixed-pattern": (
        np.where(_noise > 0, -np.inf, 0.0),
        np.where(_noise > 0, np.inf, 0.0),
        0.5,
        0.0,
    ),
}
RESPONSES = {
    "relu": match(),
    "ball": match(relu=False),
    "cascade": match(V="cascade"),
    "rows-that-do-not-count": match(rows=[1, 3]),
    "epsilon-zero": match(epsilon=0.0),
}
PROXES = {name: _entrywise(name) for name in ENTRYWISE}
PROXES |= {name: _projection(response) for name, response in RESPONSES.items()}


# ---- programs

GENERATED = {problem.name: problem for problem in problems.generated()}
REAL = [f"lenet-{i}-{kind}" for i in range(3) for kind in ("free-0.05", "fixed-0.2")]
# every kind of inputs, shape, bias and edge, in as few shapes to compile as possible
FAST = [
    "tall-white-relu-fixed-0.02",
    "tall-white-linear-fixed-0.05",
    "tall-nonnegative-relu-fixed-0.05",
    "tall-correlated-linear-free-0.2",
    "tall-zero_columns-relu-free-0.2",
    "wide-white-relu-penalized-0.02",
    "wide-nonnegative-linear-penalized-0.1",
    "square-deficient-relu-fixed-0.4",
    "square-deficient-linear-fixed-0.02",
    "on-off-fixed",
    "one-unit",
    "epsilon-0.0-relu",
    "epsilon-1.0-relu",
    "epsilon-1.5-linear",
    "lenet-0-fixed-0.2",
]
PROBLEMS = [*GENERATED, *REAL]
MARKED = only_fast(FAST, PROBLEMS)

# what is asked of a solve in each dtype, and how far rounding may move a figure
TOL = {"float64": 1e-6, "float32": 1e-4}
ROUNDING = {"float64": 1e-9, "float32": 2e-6}


@functools.cache
def _real():
    return {problem.name: problem for problem in problems.real_cut()}


def problem(name):
    """The problem of this name; skips the test where it needs absent data."""
    if name in GENERATED:
        return GENERATED[name]
    if problems.data_file("lenet300_mnist.npz") is None:
        pytest.skip("lenet300_mnist.npz is absent; set NETTRIM_DATA to its folder")
    return _real()[name]


def program(problem, dtype, penalty=None):
    """The library's program of a problem, in this dtype."""
    make = nt.relu_program if problem.relu else nt.linear_program
    X, Y, t, epsilon = (
        np.asarray(x, dtype) for x in (problem.X, problem.Y, problem.t, problem.epsilon)
    )
    return make(X, Y, epsilon, t=t, bias=problem.bias, penalty=penalty)


def with_epsilon(program, epsilon):
    """The same program under another budget."""
    response = dataclasses.replace(program.response, epsilon=epsilon)
    return dataclasses.replace(program, response=response)


def solve(program, tol=None):
    """A solve as tests ask for it: one configuration per dtype, so few to compile."""
    tol = TOL[str(program.X.dtype)] if tol is None else tol
    return nt.solve(program, nt.ADMM(tol=tol, max_steps=20000))


@functools.cache
def solution(name, dtype, tol=None):
    """The library's solution of a problem, made once per test process."""
    return solve(program(problem(name), dtype), tol)


def evaluate(problem, W, bias):
    """Objective, distance to the feasible set and that over ``|Y|``, in float64."""
    W, bias = np.asarray(W, float), np.asarray(bias, float)
    Z = problem.X @ W + bias[None, :] + problem.t
    on = problem.Y > 0 if problem.relu else np.ones(Z.shape, bool)
    far = max(0.0, np.linalg.norm((Z - problem.Y)[on]) - problem.epsilon)
    distance = np.hypot(far, np.linalg.norm(np.maximum(Z, 0)[~on]))
    objective = np.abs(W).sum()
    if problem.bias == "penalized":
        objective += np.abs(bias).sum()
    return objective, distance, distance / (np.linalg.norm(problem.Y[on]) or 1.0)


# ---- the oracle


class Oracle(NamedTuple):
    """What cvxpy and Clarabel say of a problem."""

    value: float  # the optimum
    price: float  # norm of the multipliers: fall of the optimum per unit of distance


def cvxpy_problem(problem, weight=1.0, V=0.0):
    """The cvxpy problem straight from the arrays of a problem.

    ``weight`` of the penalty and limit ``V`` where units are off broadcast as in the
    library.
    """
    import cvxpy as cp

    (n, d_in), d_out = problem.X.shape, problem.Y.shape[1]
    W = penalized = cp.Variable((d_in, d_out))
    Z = problem.X @ W + np.broadcast_to(problem.t, (n, d_out))
    if problem.bias != "fixed":
        bias = cp.Variable((1, d_out))
        Z = Z + np.ones((n, 1)) @ bias
    if problem.bias == "penalized":
        penalized = cp.vstack([W, bias])
    weight = np.broadcast_to(weight, penalized.shape)
    objective = cp.sum(cp.multiply(weight, cp.abs(penalized)))
    inside = problem.Y > 0 if problem.relu else np.ones((n, d_out), bool)
    on, off = np.where(inside), np.where(~inside)
    constraints = []
    if on[0].size:
        R = Z[on] - problem.Y[on]
        # a ball of radius zero has no interior, which interior-point methods need
        ball = R == 0 if problem.epsilon == 0 else cp.norm(R, 2) <= problem.epsilon
        constraints.append(ball)
    if off[0].size:
        constraints.append(Z[off] <= np.broadcast_to(V, Z.shape)[off])
    return cp.Problem(cp.Minimize(objective), constraints)


def optimum(problem, tol=1e-9, **changes):
    """The optimum by cvxpy and Clarabel, which know nothing of this library."""
    cp = pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    cvx = cvxpy_problem(problem, **changes)
    cvx.solve(cp.CLARABEL, tol_gap_abs=tol, tol_gap_rel=tol, tol_feas=tol)
    assert cvx.status == cp.OPTIMAL
    duals = [np.ravel(constraint.dual_value) for constraint in cvx.constraints]
    return Oracle(float(cvx.value), float(np.linalg.norm(np.concatenate(duals))))


@functools.cache
def oracle(name):
    """The optimum of the problem of this name, found once per test process."""
    return optimum(problem(name))
