"""Weights that have to be zero, under any penalty."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import only_fast, slow
from penalized import GROUPS

import nettrim_jax as nt
from nettrim_jax.convex.masked import Masked
from nettrim_jax.results import CONVERGED

PENALTIES = {**helpers.ENTRYWISE, **GROUPS}
SHAPES = dict.fromkeys(helpers.ENTRYWISE, (6, 4)) | dict.fromkeys(GROUPS, (12, 3))


QUICK = ["l1", "l1-per-row", "sparse-inputs"]


@pytest.mark.parametrize("name", only_fast(QUICK, PENALTIES))
def test_prox_and_conjugate_are_those_of_the_smaller_problem(name, rng):
    inner, shape = PENALTIES[name], SHAPES[name]
    mask = rng.uniform(size=shape) < 0.6
    penalty = Masked(inner, jnp.asarray(mask))
    V = rng.normal(size=shape)
    step = jnp.full((shape[0], 1), 0.4)
    found = np.asarray(jax.jit(penalty.prox)(V, step))
    assert not found[~mask].any() and found.any()

    @jax.jit
    @jax.vmap
    def objective(P):
        return inner.value(P) + jnp.sum((P - V) ** 2 / (2 * step))

    # the prox of the penalty alone stays within its limits: mixtures with it do, too
    others = mask * np.asarray(inner.prox(rng.normal(size=(1, *shape))[0], step))
    mixed = [found + t * (others - found) for t in (1e-3, 1e-2, 0.3)]
    mixed += [found * (1 - t) for t in (1e-3, 0.1, 1.0)]
    least, *rest = objective(np.stack([found, *mixed]))
    assert (np.array(rest) >= least - 1e-12).all()

    A = rng.normal(size=shape[::-1])
    conjugate = jax.jit(penalty.T.conjugate)
    shrink, value = conjugate(A)
    # large duals of weights that are zero cost nothing
    same = conjugate(np.where(mask.T, A, 1e3))
    np.testing.assert_array_equal(shrink, same[0])
    np.testing.assert_array_equal(value, same[1])
    for size in (1e-3, 1.0, 1e2):  # g*(A) >= <A, W> - g(W)
        W = mask * np.asarray(inner.prox(size * rng.normal(size=shape), step))
        gain = np.sum(A * np.asarray(shrink)[:, None] * W.T) - inner.value(W)
        assert gain <= value + 1e-9 * size


def problem(rng):
    X = rng.normal(size=(30, 6))
    mask = rng.uniform(size=(6, 4)) < 0.6
    return X, np.maximum(X @ np.where(mask, rng.normal(size=(6, 4)), 0), 0), mask


@slow
def test_magnitudes_within_a_mask_are_a_fixed_pattern(rng):
    X, Y, mask = problem(rng)
    budget = 0.2 * np.linalg.norm(Y)
    penalties = Masked(nt.L1(), mask), nt.FixedPattern(mask)
    mine, other = (
        nt.solve(nt.relu_program(X, Y, budget, penalty=penalty))
        for penalty in penalties
    )
    assert int(mine.result) == int(other.result) == CONVERGED
    assert not np.asarray(mine.W)[~mask].any()
    np.testing.assert_allclose(mine.stats.objective, other.stats.objective, rtol=1e-3)


@slow
def test_groups_within_a_mask_agree_with_cvxpy(rng):
    cp = pytest.importorskip("cvxpy")
    X, Y, mask = problem(rng)
    Y, budget = X @ np.where(mask, 1.0, 0.0) + 0.1 * Y, 0.4 * np.linalg.norm(Y)
    inner = nt.GroupL1("inputs")
    one = np.zeros((6, 4))
    one[0, 0] = 1
    weights = [float(inner.value(jnp.asarray(np.roll(one, i, 0)))) for i in range(6)]
    W = cp.Variable((6, 4))
    size = sum(w * cp.norm(W[i], 2) for i, w in enumerate(weights))
    inside = [cp.norm(X @ W - Y, "fro") <= budget, W[np.where(~mask)] == 0]
    want = cp.Problem(cp.Minimize(size), inside).solve(cp.CLARABEL)
    program = nt.linear_program(X, Y, budget, penalty=Masked(inner, mask))
    found = nt.solve(program, nt.ADMM(tol=1e-5))
    assert int(found.result) == CONVERGED
    np.testing.assert_allclose(found.stats.objective, want, rtol=1e-4)
