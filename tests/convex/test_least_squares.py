"""Refits against other solvers of the same least squares, and what they promise."""

import functools

import jax
import jax.numpy as jnp
import models
import numpy as np
import problems
import pytest
from marks import only_fast, slow
from scipy.optimize import minimize

import nettrim_jax as nt
from nettrim_jax.convex import least_squares

PROBLEMS = {p.name: p for p in problems.generated()[::3]}
MARKED = only_fast([*PROBLEMS][::18], PROBLEMS)


def made(p, dtype="float64"):
    X, Y, t = (jnp.asarray(a, dtype) for a in (p.X, p.Y, p.t))
    make = nt.relu_program if p.relu else nt.linear_program
    return make(X, Y, p.epsilon, t=t, bias=p.bias)


@functools.cache
def answers(name):
    """A program, its solution and the refit of that, in float64."""
    p = PROBLEMS[name]
    program = made(p)
    solution = nt.solve(program)
    W, b = least_squares.refit(program, solution.W, solution.bias)
    return p, *(np.asarray(a) for a in (solution.W, solution.bias, W, b))


def loss(p, j, w, b):
    """What one unit's refit minimises, with its gradients in w and b."""
    z = p.X @ w + b + np.broadcast_to(p.t, p.Y.shape)[:, j]
    off = z - p.Y[:, j]
    if p.relu:
        off = np.where(p.Y[:, j] > 0, off, np.maximum(z, 0))
    return off @ off, 2 * p.X.T @ off, 2 * off.sum()


def best(p, j, w, b):
    """The least loss on the support of ``w``, by quasi-Newton steps."""
    support, moves = w != 0, p.bias == "free" or (p.bias == "penalized" and b != 0)

    def flat(v):
        full = np.zeros_like(w)
        full[support] = v[: support.sum()]
        value, slope, turn = loss(p, j, full, v[-1] if moves else b)
        return value, np.concatenate([slope[support], [turn] if moves else []])

    start = np.concatenate([w[support], [b] if moves else []])
    if not start.size:
        return flat(start)[0]
    options = {"maxiter": 5000, "maxfun": 50000, "ftol": 1e-15, "gtol": 1e-12}
    found = minimize(flat, start, jac=True, method="L-BFGS-B", options=options)
    return found.fun


@pytest.mark.parametrize("name", MARKED)
def test_refit_is_the_least_loss_on_the_support(name):
    p, W0, b0, W, b = answers(name)
    np.testing.assert_array_equal(W[W0 == 0], 0)
    got = [loss(p, j, W[:, j], b[j])[0] for j in range(W.shape[1])]
    before = [loss(p, j, W0[:, j], b0[j])[0] for j in range(W.shape[1])]
    want = [best(p, j, W0[:, j], b0[j]) for j in range(W.shape[1])]
    size = np.sum(p.Y**2)
    assert (np.asarray(got) <= np.asarray(before) + 1e-12 * size).all()
    # the last round gains less than a thousandth of what is left
    assert sum(got) <= sum(want) * (1 + 1e-2) + 1e-7 * size


@pytest.mark.parametrize("name", MARKED)
def test_a_refit_keeps_theorem_1(name):
    p, _, _, W, b = answers(name)
    Z = p.X @ W + b + p.t
    Z = np.maximum(Z, 0) if p.relu else Z
    # a converged answer may violate its constraints by tol of the response's norm
    slack = 2 * nt.ADMM().tol * np.linalg.norm(p.Y)
    assert np.linalg.norm(Z - p.Y) <= p.epsilon + slack


@slow
def test_vmap_is_a_loop():
    p = next(iter(PROBLEMS.values()))
    programs = [made(p, "float32"), made(p, "float32")]
    solutions = [nt.solve(program) for program in programs]
    stacked, answers = (
        jax.tree.map(lambda *a: jnp.stack(a), *trees) for trees in (programs, solutions)
    )
    W, b = jax.vmap(least_squares.refit)(stacked, answers.W, answers.bias)
    for i in range(2):
        one = least_squares.refit(programs[i], solutions[i].W, solutions[i].bias)
        np.testing.assert_allclose(W[i], one[0], atol=1e-4)
        np.testing.assert_allclose(b[i], one[1], atol=1e-4)


@slow
@pytest.mark.parametrize("mode", only_fast(["parallel"], ["parallel", "cascade"]))
def test_prune_with_refit_has_the_same_zeros_first_and_less_error(mode):
    model = models.get("square")
    plain, fitted = (
        nt.prune(
            model.params,
            model.apply_fn,
            model.batch,
            method=nt.NetTrim(epsilon=0.2, refit=refit),
            mode=mode,
        )
        for refit in (False, True)
    )
    pairs = list(zip(plain.report.sites, fitted.report.sites, strict=True))
    # in cascade mode the later layers see other inputs
    for one, two in pairs if mode == "parallel" else pairs[:1]:
        assert int(one.nonzeros) == int(two.nonzeros)
        assert float(two.error) < 0.9 * float(one.error)
        assert (one.gap, one.steps) == (two.gap, two.steps)
    assert float(fitted.report.deviation) < 0.9 * float(plain.report.deviation)


def test_refit_is_true_or_false():
    with pytest.raises(nt.NetTrimError, match="refit=1.*True or False"):
        nt.NetTrim(refit=1)
