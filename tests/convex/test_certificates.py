"""Certificates of random programs, every penalty under every kind of response."""

import functools

import jax
import numpy as np
import pytest
from marks import slow
from penalized import GROUPS, PENALTIES, W0

import nettrim_jax as nt
from nettrim_jax.results import CONVERGED

SEEDS = 6
RESPONSES = ("relu", "cascade", "linear")


def trained(penalty):
    """Weights that the penalty's limits allow."""
    box = PENALTIES[penalty].box()
    W = np.abs(W0) if penalty == "nonnegative" else W0
    return np.clip(W, *(np.asarray(a, float) for a in (box.lower, box.upper)))


def inputs(rng, seed):
    """White, correlated or non-negative, of very different sizes or not."""
    X = rng.normal(size=(30, 12))
    X = [X, X + 2 * X[:, :1], np.maximum(X + 0.3, 0)][seed % 3]
    return X * np.geomspace(1, 100, 12) if seed >= 3 else X


def program(penalty, response, seed):
    rng = np.random.default_rng(seed)
    X, t, W = inputs(rng, seed), 0.3 * rng.normal(size=(30, 3)), trained(penalty)
    W = W / np.linalg.norm(X, axis=0)[:, None] if not _limits(penalty) else W
    Z = X @ W + t
    given = PENALTIES[penalty]
    bias = ("fixed", "free")[seed % 2]
    low, high = (0.1, 0.5) if penalty in GROUPS else (0.02, 0.4)
    share = rng.uniform(low, high)
    if response == "linear":
        return nt.linear_program(X, Z, share * np.linalg.norm(Z), t=t, penalty=given)
    # what the pruned network feeds a layer is a little off
    moved = Z + 0.1 * np.abs(Z).mean() * rng.normal(size=Z.shape)
    Y = np.maximum(moved if response == "cascade" else Z, 0)
    V = np.maximum(Z, 0) if response == "cascade" else 0.0
    off = np.linalg.norm((Z - Y)[Y > 0])
    epsilon = 1.05 * off if response == "cascade" else share * np.linalg.norm(Y)
    return nt.relu_program(X, Y, epsilon, t=t, V=V, penalty=given, bias=bias)


def _limits(penalty):
    box = PENALTIES[penalty].box()
    return bool((np.isfinite(box.lower) & (np.asarray(box.lower) < 0)).any())


@functools.cache
def case(penalty, response):
    """What a solver that knows nothing of us says, and what we say in both dtypes."""
    made = [program(penalty, response, seed) for seed in range(SEEDS)]
    optima = []
    for one in made:
        problem = nt.to_cvxpy(one)
        problem.solve("CLARABEL", tol_gap_abs=1e-8, tol_gap_rel=1e-8, tol_feas=1e-8)
        assert problem.status == "optimal"
        optima.append(problem.value)
    found = {}
    for dtype, tol in (("float64", 1e-6), ("float32", 1e-3), ("float32", 1e-4)):
        cast = [
            jax.tree.map(lambda a: a if a.dtype == bool else a.astype(dtype), one)  # noqa: B023
            for one in made
        ]
        solver = nt.ADMM(tol=tol, max_steps=20000)
        # programs with and without a bias are of two kinds
        lanes = [nt.solve(one, solver) for one in cast]
        found[dtype, tol] = jax.tree.map(lambda *a: np.stack(a), *lanes)
    return np.asarray(optima), found


cases = pytest.mark.parametrize(
    "penalty, response",
    [
        pytest.param(
            penalty,
            response,
            marks=[] if (penalty, response) == ("inputs", "linear") else slow,
        )
        for penalty in PENALTIES
        for response in RESPONSES
    ],
)


@cases
def test_the_optimum_is_between_bound_and_objective(penalty, response):
    optima, found = case(penalty, response)
    for (dtype, tol), solution in found.items():
        if tol == 1e-4:
            continue
        assert (solution.result == CONVERGED).all()
        proof, value = solution.certificate, solution.stats.objective
        rounding = 1e-6 if dtype == "float64" else 1e-4
        assert (proof.lower_bound <= optima * (1 + rounding)).all()
        # weights may miss the set by tol, and be cheaper by what the gap prices in
        assert (value >= optima * (1 - 2 * tol - rounding)).all()
        assert (value <= optima * (1 + 2 * tol + rounding)).all()
        assert (proof.gap <= tol).all() and (proof.violation <= tol).all()


@slow
def test_nine_of_ten_reach_a_gap_of_1e_4_in_float32():
    codes = [
        case(penalty, response)[1]["float32", 1e-4].result
        for penalty in PENALTIES
        for response in RESPONSES
    ]
    codes = np.concatenate(codes)
    assert codes.size >= 200 and (codes == CONVERGED).mean() >= 0.9
