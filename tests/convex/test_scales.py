"""Inputs of very different scale: what is certified, and where rounding ends it."""

import dataclasses
import functools
import warnings

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax import _checks, results
from nettrim_jax.convex import admm, certificate, programs, projection, stage
from nettrim_jax.convex.responses import Match
from nettrim_jax.convex.solution import Solution
from nettrim_jax.convex.stage import sample_weights
from nettrim_jax.execution import batching
from nettrim_jax.methods import layer_program
from nettrim_jax.methods.base import Lanes

SCALED = {problem.name: problem for problem in problems.scaled()}
# rounding held three of them 2e-4 to 4e-3 from the optimum; 28 took 10740 steps to 1e-3
HARD = [name for name in SCALED if int(name.split("-")[0]) in (8, 17, 28, 32)]


@functools.cache
def optimum(name):
    """The least penalty by cvxpy and Clarabel, in float64."""
    problem = SCALED[name]
    # inputs and responses of one scale under penalty weights of many, which interior
    # points like better
    norms, size = np.linalg.norm(problem.X, axis=0), np.abs(problem.Y).max()
    least = norms.min()
    weight = np.append(least / norms, least)
    weight = weight[: len(norms) + (problem.bias == "penalized")]
    even = dataclasses.replace(
        problem,
        X=problem.X / norms,
        Y=problem.Y / size,
        t=problem.t / size,
        epsilon=problem.epsilon / size,
    )
    cvx = helpers.cvxpy_problem(even, weight=weight[:, None])
    cvx.solve("CLARABEL", tol_gap_abs=1e-8, tol_gap_rel=1e-8, tol_feas=1e-8)
    assert cvx.status == "optimal"
    return float(cvx.value) * size / least


@functools.cache
def found(name, tol):
    return nt.solve(program(SCALED[name], np.float32), nt.ADMM(tol=tol))


def program(problem, dtype):
    make = nt.relu_program if problem.relu else nt.linear_program
    arrays = (problem.X, problem.Y, problem.epsilon, problem.t)
    X, Y, epsilon, t = (np.asarray(a, dtype) for a in arrays)
    return make(X, Y, epsilon, t=t, bias=problem.bias)


def error(name, tol):
    """How far the objective is from the optimum, and how far the bound is above it."""
    solution, best = found(name, tol), optimum(name)
    off = abs(float(solution.stats.objective) / best - 1)
    return off, float(solution.certificate.lower_bound) / best - 1


@pytest.mark.parametrize("name", only_fast(HARD[:1], HARD))
def test_hard_ones_are_certified_in_float32(name):
    solution = found(name, 1e-4)
    off, above = error(name, 1e-4)
    assert solution.result == results.CONVERGED and solution.stats.steps <= 3000
    assert off <= 3e-4 and above <= 2e-5


@slow
@pytest.mark.parametrize("name", SCALED)
def test_all_are_certified_to_a_thousandth(name):
    solution = found(name, 1e-3)
    off, above = error(name, 1e-3)
    assert solution.result == results.CONVERGED
    assert off <= 2e-3 and above <= 2e-5


@slow
def test_nine_of_ten_are_certified_to_a_ten_thousandth():
    solutions = [found(name, 1e-4) for name in SCALED]
    assert all(error(name, 1e-4)[1] <= 2e-5 for name in SCALED)
    good = sum(int(solution.result) == results.CONVERGED for solution in solutions)
    assert good >= 0.9 * len(SCALED) == 36


@pytest.mark.parametrize(
    "tol, code",
    [(1e-6, "STALLED"), pytest.param(1e-7, "ROUNDED", marks=slow)],
)
def test_a_solve_at_rest_stops_and_says_so(monkeypatch, tol, code):
    # what can be certified here in float32 is a few times 1e-6
    name = next(name for name in SCALED if name.startswith("17-"))
    monkeypatch.setattr(admm, "checked", lambda config, *_: config)
    solution, best = found(name, tol), optimum(name)
    assert solution.result == getattr(results, code)
    assert solution.stats.steps <= 600
    assert float(solution.stats.objective) == pytest.approx(best, rel=1e-5)
    assert tol < solution.certificate.gap <= (10 * tol if tol == 1e-6 else 1)


@slow
def test_the_first_stage_alone_is_compiled_where_all_end_in_it():
    hard, easy = program(SCALED[HARD[2]], np.float32), nt.ADMM(tol=0.05)
    assert nt.solve(hard, easy).stats.steps <= stage.FIRST
    size = admm._one._cache_size()
    nt.solve(hard, easy)
    assert admm._one._cache_size() == size
    # one program more, whatever comes after it
    assert nt.solve(hard, nt.ADMM(tol=2e-4)).stats.steps > stage.FIRST
    assert admm._one._cache_size() == size + 2


@slow
def test_within_jit_both_stages_are_taken():
    made, config = program(SCALED[HARD[0]], np.float32), nt.ADMM(tol=1e-4)
    within = jax.jit(nt.solve, static_argnums=1)(made, config)
    assert within.result == results.CONVERGED and within.stats.steps > stage.FIRST
    best = float(found(HARD[0], 1e-4).stats.objective)
    assert float(within.stats.objective) == pytest.approx(best, rel=2e-4)


def off(made):
    """The same program with units that are off, for which zeros are best."""
    response = dataclasses.replace(made.response, on=made.response.on & False)
    return dataclasses.replace(made, t=made.t * 0 - 1, response=response)


@slow
def test_lanes_that_have_ended_stay_as_they_are_while_others_go_on():
    made = program(SCALED[HARD[0]], np.float32)
    stack = [off(made), made, off(made)]
    stack = jax.tree.map(lambda *lanes: jnp.stack(lanes), *stack)
    for chunk in (1, 3):
        each = functools.partial(batching.each, chunk=chunk)
        lanes = Lanes(nt.ADMM(tol=1e-4), each)
        got = layer_program.solve_lanes((stack, None), lanes)
        assert got.result.tolist() == [results.CONVERGED] * 3
        first, most, last = got.stats.steps.tolist()
        assert first <= stage.FIRST and last <= stage.FIRST and most > stage.FIRST
        assert (got.W[0] == 0).all() and (got.W[2] == 0).all()
        best = float(found(HARD[0], 1e-4).stats.objective)
        assert float(got.stats.objective[1]) == pytest.approx(best, rel=2e-4)


@slow
def test_history_goes_on_in_the_second_stage():
    made, config = program(SCALED[HARD[0]], np.float32), nt.ADMM(tol=1e-4)
    seen = nt.history(made, config)
    within = jax.jit(nt.history, static_argnums=1)(made, config)
    looks = int(found(HARD[0], 1e-4).stats.steps) // config.check_every
    assert looks > 10
    for gap in (seen.gap, within.gap):
        assert np.isfinite(gap[:looks]).all() and np.isnan(gap[looks + 1 :]).all()
        assert gap[9] > config.tol


@slow
def test_a_bound_that_rounding_spoils_is_repaired():
    rng = np.random.default_rng(0)
    problem = next(p for name, p in SCALED.items() if name.startswith("8-"))
    made = program(problem, np.float64)
    made = dataclasses.replace(made, X=projection.factorise(made.X, False).X)
    exact = nt.solve(made, nt.ADMM(tol=1e-9)).dual.T
    spoiled = exact + 1e-6 * np.abs(exact).max() * rng.normal(size=exact.shape)
    best = optimum(problem.name)
    plain = float(programs.dual_bound(made, spoiled)[0])
    better, multiplier = certificate.repaired_bound(made, spoiled)
    assert plain < (1 - 1e-3) * best
    assert (1 - 1e-4) * best < float(better) <= (1 + 1e-8) * best
    # its multiplier is one that gives the bound
    again = float(programs.dual_bound(made, multiplier)[0])
    assert again == pytest.approx(float(better), rel=1e-6)


@slow
def test_a_repair_that_goes_too_far_is_not_used():
    # inputs that are nearly one, each of which takes back the excess of all
    rng = np.random.default_rng(0)
    X = 1 + 0.1 * rng.normal(size=(60, 12))
    made = nt.linear_program(X, X @ rng.normal(size=(12, 5)), 0.1)
    L = rng.normal(size=(5, 60))
    plain, better = programs.dual_bound(made, L)[0], certificate.repaired_bound(made, L)
    assert better[0] == pytest.approx(float(plain), rel=1e-12)
    assert programs.dual_bound(made, better[1])[0] == pytest.approx(float(plain))


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("n, d", [pytest.param(30, 8, marks=slow), (8, 30)])
def test_projection_with_weights_of_samples(n, d, free):
    rng = np.random.default_rng(0)
    X, W, R = (rng.normal(size=s) for s in ((n, d), (3, d), (3, n)))
    rows = np.exp(2 * rng.normal(size=n))
    factor = projection.factorise(jnp.asarray(X), free, jnp.asarray(rows))
    near, b, fitted = projection.project(factor, W, R, free)
    # ridge regression, with a column of ones for a bias
    side = np.sqrt(float(factor.sigma2) * rows)[:, None]
    ones = side if free else np.zeros((n, 1))
    root = np.sqrt(np.append(factor.scale2, 0 if free else 1))
    A = np.vstack([np.hstack([side * X, ones]), np.diag(root)])
    right = np.vstack([side * R.T, root[:, None] * np.vstack([W.T, np.zeros((1, 3))])])
    best = np.linalg.lstsq(A, right, rcond=None)[0]
    np.testing.assert_allclose(near, best[:-1].T, atol=1e-9)
    np.testing.assert_allclose(fitted, (X @ best[:-1] + best[-1]).T, atol=1e-9)
    np.testing.assert_allclose(b - near @ factor.mean, best[-1], atol=1e-9)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 100.0])
@pytest.mark.parametrize("clip", [False, True])
def test_nearest_point_with_weights_of_samples(epsilon, clip):
    import cvxpy as cp

    rng = np.random.default_rng(1)
    Y, Z = np.maximum(rng.normal(size=(4, 6)), 0), rng.normal(size=(4, 6))
    above = (Y > 1) & clip
    rows, on = np.exp(2 * rng.normal(size=6)), (Y > 0) & ~above
    V, lower = np.where(above, np.inf, 0), np.where(above, 1.0, -np.inf)
    match = Match(*map(jnp.asarray, (Y, on, V, epsilon)))
    if clip:
        match = dataclasses.replace(match, lower=jnp.asarray(lower))
    near = match.prox(jnp.asarray(Z), jnp.asarray(rows))
    P, at = cp.Variable(Y.shape), np.where(on)
    limits = [P[at] == Y[at]] if not epsilon else [cp.norm(P[at] - Y[at]) <= epsilon]
    limits += [P[np.where(Y == 0)] <= 0]
    limits += [P[np.where(above)] >= 1] if clip else []
    far = cp.sum(cp.multiply(np.broadcast_to(rows, Y.shape), cp.square(P - Z)))
    cp.Problem(cp.Minimize(far), limits).solve("CLARABEL", tol_gap_rel=1e-12)
    np.testing.assert_allclose(near, P.value, atol=3e-5)
    plain = match.prox(jnp.asarray(Z), jnp.ones(6))
    np.testing.assert_allclose(plain, match.prox(jnp.asarray(Z)), atol=1e-12)


@slow
def test_samples_weigh_more_where_a_large_input_is_small():
    problem = next(p for name, p in SCALED.items() if name.startswith("28-"))
    made = program(problem, np.float64)
    shape = problem.X.shape[1], problem.Y.shape[1]
    rest = [None] * (len(Solution._fields) - 2)
    ones = Solution(jnp.ones(shape), jnp.zeros(shape[1]), *rest)
    rows = sample_weights(made, ones)
    terms = shape[1] * (problem.X**2).sum(1) + (
        np.broadcast_to(problem.t, problem.Y.shape) ** 2
    ).sum(1)
    expected = (terms / terms.max() + 1e-6) ** -0.75
    np.testing.assert_allclose(rows / rows[0], expected / expected[0], rtol=1e-9)
    # the weights of the columns stay as they were on average
    plain, other = (projection.factorise(made.X, False, by) for by in (None, rows))
    change = np.log(np.asarray(other.scale2) / np.asarray(plain.scale2))
    assert abs(change.mean()) < 1e-9


def report_of(code):
    """A pruning of two layers, of which the first ended with a code."""
    params = {"a": jnp.eye(6), "b": jnp.ones((6, 2)) / 6}
    x = jax.random.normal(jax.random.key(0), (20, 6))

    def apply_fn(params, x):
        return jax.nn.relu(x @ params["a"]) @ params["b"]

    pruned = nt.prune(params, apply_fn, x, method=nt.Magnitude(nt.Sparsity(0.5)))
    first, *rest = pruned.report.sites
    figures = {"result": np.int32(code), "gap": 5e-3, "violation": 0.0}
    sites = [dataclasses.replace(first, **figures), *rest]
    report = dataclasses.replace(pruned.report, sites=tuple(sites))
    return pruned._replace(report=report)


def test_a_stalled_layer_is_a_warning_and_not_a_failure():
    pruned = report_of(results.STALLED)
    with pytest.warns(UserWarning, match="1 of 2 layers came within ten times tol"):
        _checks.converged(pruned, "raise", nt.ADMM())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _checks.converged(report_of(results.CONVERGED), "raise", nt.ADMM())


def test_a_layer_that_rounding_keeps_farther_fails():
    with pytest.raises(results.SolveError, match="do not help against rounding"):
        _checks.converged(report_of(results.ROUNDED), "raise", nt.ADMM())


@slow
def test_prune_uses_a_stalled_answer_and_warns():
    rng = np.random.default_rng(3)
    scales = np.geomspace(1, 1e4, 12)
    x = (rng.normal(size=(60, 12)) * scales).astype(np.float32)
    W = rng.normal(size=(12, 5)) / np.sqrt(12) / scales[:, None]
    params = {"a": jnp.asarray(W, jnp.float32)}
    method = nt.NetTrim(epsilon=0.1)

    def prune(tol):
        return nt.prune(
            params,
            lambda params, x: jax.nn.relu(x @ params["a"]),
            x,
            method=method,
            solver=nt.ADMM(tol=tol),
        )

    with pytest.warns(UserWarning, match="a .gap .*Their answers are used"):
        pruned = prune(1e-6)
    (site,) = pruned.report.sites
    assert site.result == results.STALLED and 1e-6 < site.gap <= 1e-5
    assert "a: stalled: rounding keeps" in str(pruned.report)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        least = prune(1e-4)
    assert least.report.sites[0].result == results.CONVERGED
    assert pruned.report.nonzeros == least.report.nonzeros < 60
