"""Programs of clipped responses, against cvxpy, scipy and finite differences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax import results
from nettrim_jax._clip import NO_CLIP, RELU, Clip
from nettrim_jax.convex import least_squares, programs

INF = np.inf
N, D_IN, D_OUT = 60, 12, 4
LIMITS = {
    "relu6": (0.0, 6.0),
    "both": (-1.0, 2.0),
    "below": (-INF, 0.5),
    "above": (0.7, INF),
    "far": (-50.0, 50.0),
}
EVERY = pytest.mark.parametrize("name", LIMITS)


def arrays(name, seed=0):
    """Inputs, the trained response, an offset and a budget."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(N, D_IN))
    t = rng.normal(size=(1, D_OUT))
    Z = 2 * X @ rng.normal(size=(D_IN, D_OUT)) + t
    Y = np.clip(Z, *LIMITS[name])
    return X, Y, t, 0.1 * np.linalg.norm(Y)


def program(name, bias="fixed", seed=0):
    X, Y, t, epsilon = arrays(name, seed)
    return nt.clip_program(X, Y, epsilon, *LIMITS[name], t=t, bias=bias)


def oracle(name, bias="fixed", seed=0):
    """The optimum, from the arrays alone."""
    cp = pytest.importorskip("cvxpy")
    (X, Y, t, epsilon), (low, high) = arrays(name, seed), LIMITS[name]
    W = cp.Variable((D_IN, D_OUT))
    Z = X @ W + np.broadcast_to(t, Y.shape)
    if bias == "free":
        Z = Z + np.ones((N, 1)) @ cp.Variable((1, D_OUT))
    below, above = np.where(Y <= low), np.where(Y >= high)
    on = np.where((low < Y) & (high > Y))
    constraints = [cp.norm(Z[on] - Y[on], 2) <= epsilon]
    constraints += [Z[below] <= low] if below[0].size else []
    constraints += [Z[above] >= high] if above[0].size else []
    problem = cp.Problem(cp.Minimize(cp.sum(cp.abs(W))), constraints)
    return problem.solve(cp.CLARABEL)


PAIRS = [(name, bias) for name in LIMITS for bias in ("fixed", "free")]
QUICK = [pair for k, pair in enumerate(PAIRS) if k % 4 == 0]


@pytest.mark.parametrize("pair", only_fast(QUICK, PAIRS), ids="-".join)
def test_the_solution_is_the_optimum(pair):
    name, bias = pair
    made = program(name, bias)
    solution = nt.solve(made, nt.ADMM(tol=1e-6, max_steps=20000))
    assert int(solution.result) == results.CONVERGED
    best = oracle(name, bias)
    # a certified solution may lie outside by its violation, and be better by as much
    assert abs(float(jnp.abs(solution.W).sum()) - best) <= 1e-4 * best
    X, Y, t, epsilon = arrays(name)
    Z = X @ np.asarray(solution.W) + np.asarray(solution.bias) + t
    off = np.clip(Z, *LIMITS[name]) - Y
    assert np.linalg.norm(off) <= epsilon * (1 + 1e-4)


@EVERY
def test_any_dual_bounds_the_optimum(name):
    made, best = program(name), oracle(name)
    rng = np.random.default_rng(1)
    for size in (1e-3, 1e-2, 0.1, 1.0):
        L = jnp.asarray(size * rng.normal(size=(D_OUT, N)))
        assert float(programs.dual_bound(made, L)[0]) <= best * (1 + 1e-6)
    solution = nt.solve(made, nt.ADMM(tol=1e-6, max_steps=20000))
    assert float(solution.certificate.gap) <= 1e-6


@EVERY
def test_the_problem_of_cvxpy_is_the_same(name):
    pytest.importorskip("cvxpy")
    problem = nt.to_cvxpy(program(name))
    assert problem.solve(solver="CLARABEL") == pytest.approx(oracle(name), rel=1e-5)


@slow
def test_without_an_upper_limit_it_is_the_program_of_a_relu():
    X, Y, t, epsilon = arrays("above")
    Y = np.maximum(Y - 1, 0)
    one = nt.clip_program(X, Y, epsilon, 0.0, t=t)
    other = nt.relu_program(X, Y, epsilon, t=t)
    for a, b in zip(nt.solve(one)[:2], nt.solve(other)[:2], strict=True):
        np.testing.assert_array_equal(a, b)
    one = nt.clip_program(X, Y, epsilon, t=t)
    other = nt.linear_program(X, Y, epsilon, t)
    np.testing.assert_array_equal(nt.solve(one).W, nt.solve(other).W)


def test_a_unit_that_cannot_reach_its_limit_is_proved_so():
    X = np.zeros((8, 3))
    X[:4, 0] = 1.0
    Y = np.full((8, 1), 6.0)  # the last four rows have no input that could reach it
    found = nt.solve(nt.clip_program(X, Y, 0.1, 0.0, 6.0), nt.ADMM(max_steps=5000))
    assert int(found.result) == results.INFEASIBLE


@slow
def test_stacks_are_solved_as_one_by_one():
    many = [program("both", seed=seed) for seed in range(3)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *many)
    solver = nt.ADMM(tol=1e-6, max_steps=20000)
    together = jax.vmap(lambda one: nt.solve(one, solver))(stack)
    for k, one in enumerate(many):
        alone = nt.solve(one, solver)
        np.testing.assert_allclose(together.W[k], alone.W, atol=1e-6)


@slow
def test_the_derivative_by_epsilon_is_that_of_finite_differences():
    made, solver = program("both"), nt.ADMM(tol=1e-9, max_steps=50000)

    def value(epsilon):
        response = dataclasses.replace(made.response, epsilon=epsilon)
        solved = nt.solve(dataclasses.replace(made, response=response), solver)
        return jnp.abs(solved.W).sum()

    epsilon, step = made.response.epsilon, 1e-3 * made.response.epsilon
    slope = jax.grad(value)(epsilon)
    wanted = (value(epsilon + step) - value(epsilon - step)) / (2 * step)
    np.testing.assert_allclose(slope, wanted, rtol=1e-3)


@EVERY
def test_a_refit_has_the_least_error_behind_the_clip(name):
    optimize = pytest.importorskip("scipy.optimize")
    X, Y, t, _ = arrays(name)
    rng = np.random.default_rng(2)
    W = np.where(rng.random((D_IN, D_OUT)) < 0.6, rng.normal(size=(D_IN, D_OUT)), 0)
    made = program(name)
    fitted, _ = least_squares.refit(made, jnp.asarray(W), jnp.zeros(D_OUT))
    low, high = LIMITS[name]

    def off(j, W):  # where on, the response itself; elsewhere what is clipped less
        Z, y = X @ W + t[0, j], Y[:, j]
        part = np.where(y <= low, np.maximum(Z - y, 0), np.minimum(Z - y, 0))
        return np.where((low < y) & (y < high), Z - y, part)

    for j in range(D_OUT):
        keep = W[:, j] != 0

        def error(values, j=j, keep=keep):
            whole = np.zeros(D_IN)
            whole[keep] = values
            return off(j, whole)

        best = optimize.least_squares(error, W[keep, j], xtol=1e-12, ftol=1e-12)
        mine = np.sum(off(j, np.asarray(fitted)[:, j]) ** 2)
        assert mine <= 2 * best.cost * (1 + 1e-4) + 1e-9


@pytest.mark.parametrize(
    "low, high", [(1.0, 1.0), (2.0, 1.0), (np.nan, 1.0), ("a", 1.0), (0.0, None)]
)
def test_limits_that_are_none_are_named(low, high):
    with pytest.raises(nt.NetTrimError, match="low=.*high=.*first below the second"):
        nt.clip_program(np.eye(3), np.ones((3, 1)), 0.1, low, high)


def test_clips_one_after_another():
    z = np.linspace(-9, 9, 181)
    some = [NO_CLIP, RELU, Clip(0.0, 6.0), Clip(-1.0, 2.0), Clip(high=0.5), Clip(3.0)]
    for one in some:
        for two in some:
            both, wanted = one.then(two), two(one(z))
            if both is None:
                assert np.ptp(wanted) == 0
            else:
                np.testing.assert_array_equal(both(z), wanted)
