"""Programs that have no answer, by construction, and what a solve says of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import only_fast, slow
from penalized import X

import nettrim_jax as nt
from nettrim_jax import results

SEEDS = 3
SOLVER = nt.ADMM(max_steps=20000)


def apart(rng, share, **given):
    """A ball that is a share of the least residual of all weights."""
    X, Y = rng.normal(size=(30, 8)), rng.normal(size=(30, 3))
    left = np.linalg.norm(Y - X @ np.linalg.lstsq(X, Y, rcond=None)[0])
    return nt.linear_program(X, Y, share * left, **given)


def silent_row(rng, **given):
    """A row without inputs that is to answer."""
    X, W = rng.normal(size=(30, 8)), rng.normal(size=(8, 3))
    X[0] = 0
    Y = np.maximum(X @ W, 0)
    Y[0] = 1
    return nt.relu_program(X, Y, 0.5, **given)


def silent_row_that_is_on(rng):
    """A row without inputs that ought to be off, and is not."""
    X, W, t = rng.normal(size=(30, 8)), rng.normal(size=(8, 3)), np.zeros((30, 3))
    X[0], t[0] = 0, 1
    Y = np.maximum(X @ W, 0)
    return nt.relu_program(X, Y, 0.5, t=t)


def opposed(rng, **given):
    """The same inputs twice, with answers of opposite signs."""
    X, W = rng.normal(size=(30, 8)), rng.normal(size=(8, 3))
    Y = X @ W
    return nt.linear_program(
        np.vstack([X, X]), np.vstack([Y, -Y]), 0.5 * np.linalg.norm(Y), **given
    )


def contradicted(rng):
    """The same inputs twice, once on and once far below."""
    X, W = np.abs(rng.normal(size=(15, 8))), np.abs(rng.normal(size=(8, 3)))
    Y = np.vstack([X @ W, np.zeros((15, 3))])
    return nt.relu_program(np.vstack([X, X]), Y, 0.3 * np.linalg.norm(Y))


def limited(rng, penalty, sign=1.0):
    """Limits that the only weights do not meet."""
    X, W = rng.normal(size=(30, 8)), np.abs(rng.normal(size=(8, 3))) + 0.5
    Y = sign * X @ W
    return nt.linear_program(X, Y, 0.1 * np.linalg.norm(Y), penalty=penalty)


HOPELESS = {
    "ball-0.5": lambda rng: apart(rng, 0.5),
    "ball-0.9": lambda rng: apart(rng, 0.9),
    "ball-0": lambda rng: apart(rng, 0.0),
    "ball-free": lambda rng: apart(rng, 0.5, bias="free"),
    "ball-groups": lambda rng: apart(rng, 0.5, penalty=nt.GroupL1("inputs")),
    "ball-ridge": lambda rng: apart(rng, 0.5, penalty=nt.ElasticNet(1.0)),
    "silent-row": silent_row,
    "silent-row-that-is-on": silent_row_that_is_on,
    "opposed": opposed,
    "opposed-penalized": lambda rng: opposed(rng, bias="penalized"),
    "contradicted": contradicted,
    "box": lambda rng: limited(rng, nt.Box(-0.1, 0.1)),
    "nonnegative": lambda rng: limited(rng, nt.Nonnegative(), sign=-1.0),
    "sign": lambda rng: limited(rng, nt.Sign(np.full((8, 1), -1.0))),
    "pattern": lambda rng: limited(rng, nt.FixedPattern(np.arange(8)[:, None] > 3)),
}


def stacked(kind, dtype):
    """Programs of one kind, which differ by seed, in one dtype."""
    made = [HOPELESS[kind](np.random.default_rng(seed)) for seed in range(SEEDS)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)
    return jax.tree.map(lambda a: a if a.dtype == bool else a.astype(dtype), stack)


def least_penalty(program, L):
    """No smaller penalty has any feasible weights, by one dual ``[d_out, n]``.

    In float64 and by hand: for all W, ``g(W) >= s (<L, t> - f*(L)) - g*(-s L X)``.
    """
    box = program.penalty.box()
    lower, upper, weight = (
        np.broadcast_to(np.asarray(a, float), (len(L), program.X.shape[1]))
        for a in (box.lower, box.upper, box.weight)
    )
    if isinstance(program.penalty, nt.GroupL1):
        weight = np.full(weight.shape, 1 / np.sqrt(len(L)))
    response = program.response
    on, Y, V, t, X = (
        np.asarray(a)
        for a in (response.on, response.Y, response.V, program.t, program.X)
    )
    L = np.asarray(L, float)
    L = np.where(on, L, np.maximum(L, 0))
    if program.bias == "free":
        L = L - (L.sum(axis=1) / on.sum(axis=1))[:, None]  # all are on
    value = np.sum(L * (t - np.where(on, Y, V)))
    value -= float(response.epsilon) * np.linalg.norm(L[on])
    A = -L @ X
    limit = np.where(A > 0, upper, -lower)
    bounded = np.isfinite(limit)
    value -= np.sum(np.abs(A) * np.where(bounded, limit, 0))
    over = np.max(np.where(bounded, 0, np.abs(A) / weight))
    # where all directions are limited a positive number is all that is asked
    return value / over if over > 0 else np.sign(value) * np.inf


kinds = pytest.mark.parametrize("kind", only_fast(["ball-0.5"], HOPELESS))
dtypes = pytest.mark.parametrize(
    "dtype", only_fast(["float32"], ["float32", "float64"])
)


@kinds
@dtypes
def test_what_has_no_answer_gets_none(kind, dtype):
    programs = stacked(kind, dtype)
    found = jax.vmap(lambda program: nt.solve(program, SOLVER))(programs)
    assert found.result.tolist() == [results.INFEASIBLE] * SEEDS
    assert np.isnan(found.W).all() and (found.stats.steps < SOLVER.max_steps).all()
    assert (found.certificate.violation > SOLVER.tol).all()
    for lane in range(SEEDS):
        program = jax.tree.map(lambda a: a[lane], programs)  # noqa: B023
        # the dual that comes with it excludes all weights that are not astronomic
        X, Y = np.asarray(program.X), np.asarray(program.response.Y)
        W = np.linalg.lstsq(X, Y.T, rcond=None)[0]
        least = least_penalty(program, found.dual[lane].T)
        assert least > 100 * np.abs(W).sum()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "share, spread",
    [
        (1.02, 1.0),
        pytest.param(1.02, 1e4, marks=slow),
        pytest.param(1.5, 1e-4, marks=slow),
    ],
)
def test_what_has_an_answer_is_not_called_hopeless(share, spread, dtype):
    """Hardly a feasible point, inputs of very different sizes."""
    rng = np.random.default_rng(0)
    program = apart(rng, share)
    X = program.X * jnp.geomspace(1, spread, 8)[None, :]
    program = dataclasses.replace(program, X=X)
    program = jax.tree.map(lambda a: a if a.dtype == bool else a.astype(dtype), program)
    assert int(nt.solve(program).result) == results.CONVERGED


@slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inputs_that_nearly_agree_are_not_called_hopeless(dtype):
    # weights that have to be thousands of times the response's size
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 1)) + 1e-3 * rng.normal(size=(30, 8))
    Y = X @ (1e3 * rng.normal(size=(8, 3)))
    made = nt.linear_program(
        X.astype(dtype), Y.astype(dtype), 0.01 * np.linalg.norm(Y).astype(dtype)
    )
    assert int(nt.solve(made).result) in (results.CONVERGED, results.MAX_STEPS)


@slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_that_cancel_each_other_are_weights(dtype):
    X = np.array([[1, 1], [1, 1 + 1e-4]], dtype)
    found = nt.solve(nt.linear_program(X, np.array([[1], [-1]], dtype), 0.1))
    assert int(found.result) != results.INFEASIBLE


def test_zero_weights_are_an_answer():
    made = nt.relu_program(X, np.zeros((30, 2)), 0.1, t=-np.ones((30, 2)))
    found = nt.solve(made)
    assert int(found.result) == results.CONVERGED and not np.asarray(found.W).any()


@slow
def test_a_hopeless_lane_leaves_the_others_alone():
    rng = np.random.default_rng(0)
    bad, good = apart(rng, 0.5), apart(rng, 1.5)
    both = jax.tree.map(lambda *a: jnp.stack(a), bad, good)
    found = jax.vmap(nt.solve)(both)
    assert found.result.tolist() == [results.INFEASIBLE, results.CONVERGED]
    assert np.isfinite(found.W[1]).all()


@slow
def test_no_derivative_of_what_has_no_answer():
    program = apart(np.random.default_rng(0), 0.5)

    def value(epsilon):
        response = dataclasses.replace(program.response, epsilon=epsilon)
        found = nt.solve(dataclasses.replace(program, response=response))
        return found.stats.objective

    assert np.isnan(jax.grad(value)(program.response.epsilon))


def prune(**given):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(1 + rng.random((8, 3)), jnp.float32)}
    batch = jnp.asarray(rng.normal(size=(60, 8)), jnp.float32)
    method = nt.NetTrim(0.05, penalty=nt.Box(-0.1, 0.1))
    pruned = nt.prune(
        params, lambda p, x: jax.nn.relu(x @ p["w"]), batch, method=method, **given
    )
    return params, pruned


def test_prune_says_what_to_do():
    with pytest.raises(nt.NetTrimError, match="no weights that meet the budget: w"):
        prune()
    with pytest.raises(nt.NetTrimError, match="penalty's limits forbid"):
        prune()
    params, kept = prune(on_failure="keep")
    np.testing.assert_array_equal(kept.params["w"], params["w"])
    assert "infeasible" in str(kept.report)
