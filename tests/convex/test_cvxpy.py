"""Programs handed to cvxpy: what Clarabel finds is what we find, penalty by penalty."""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import penalized
import pytest
from marks import only_fast, slow
from penalized import NOT_PENALIZED, PENALTIES, W0, X, program

import nettrim_jax as nt
from nettrim_jax.results import CONVERGED, ProgramError

responses = pytest.mark.parametrize(
    "relu", only_fast([True], [True, False]), ids=["relu", "linear"]
)
FAST = [("sparse-inputs", "penalized")]
cases = pytest.mark.parametrize(
    "penalty, bias",
    [
        pytest.param(name, bias, marks=[] if (name, bias) in FAST else slow)
        for name in PENALTIES
        for bias in ("fixed", "free", "penalized")
        if bias != "penalized" or name not in NOT_PENALIZED
    ],
)


@functools.cache
def both(penalty, relu, bias):
    made = program(penalty, relu, bias)
    problem = nt.to_cvxpy(made)
    problem.solve("CLARABEL", tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    return nt.solve(made, nt.ADMM(tol=1e-8, max_steps=50000)), problem


@cases
@responses
def test_the_same_optimum(penalty, relu, bias):
    found, problem = both(penalty, relu, bias)
    assert problem.status == "optimal" and problem.value > 0.1
    assert int(found.result) == CONVERGED
    assert float(found.stats.objective) == pytest.approx(problem.value, rel=1e-6)
    assert float(found.certificate.lower_bound) <= problem.value * (1 + 1e-7)
    box = PENALTIES[penalty].box()
    lower, upper = (np.asarray(a, float) for a in (box.lower, box.upper))
    ours = np.asarray(found.W)
    assert (ours >= lower).all() and (ours <= upper).all()
    W = problem.var_dict["W"].value
    assert W.shape == ours.shape
    if bias != "fixed":
        assert problem.var_dict["bias"].value.shape == (1, 3)


@pytest.mark.parametrize("name", helpers.FAST[::3])
def test_the_same_problem_as_the_oracle(name):
    made = helpers.program(helpers.problem(name), "float64")
    problem = nt.to_cvxpy(made)
    problem.solve("CLARABEL")
    expected = helpers.oracle(name).value
    assert problem.value == pytest.approx(expected, rel=1e-5, abs=1e-6)


@slow
@pytest.mark.parametrize("penalty", only_fast(["nonnegative"], PENALTIES))
def test_float32_and_vmap(penalty):
    one = jax.tree.map(
        lambda a: a if a.dtype == bool else a.astype(jnp.float32),
        program(penalty, True, "free"),
    )
    stack = jax.tree.map(lambda a: jnp.stack([a, a]), one)
    found = jax.vmap(lambda p: nt.solve(p, nt.ADMM(tol=1e-4)))(stack)
    expected = both(penalty, True, "free")[1].value
    assert (found.result == CONVERGED).all()
    np.testing.assert_allclose(found.stats.objective, expected, rtol=3e-4)


@slow
def test_pruned_layers_keep_their_signs():
    params = {"w": jnp.asarray(W0, jnp.float32), "v": jnp.ones((3, 2), jnp.float32)}
    scale = jnp.asarray([[1.0, -2.0, 0.5]], jnp.float32)  # turns the sign of a column

    def apply_fn(params, x):
        return jax.nn.relu((x @ params["w"]) * scale) @ params["v"]

    x = jnp.asarray(X, jnp.float32)
    pruned = nt.prune(
        params,
        apply_fn,
        x,
        method={"w": nt.NetTrim(0.2, penalty=nt.Sign(W0)), "v": None},
    )
    W = np.asarray(pruned.params["w"])
    assert ((W * np.sign(W0) > 0) | (W == 0) | (W0 == 0)).all()
    assert 0 < (W != 0).sum() < 36 and float(pruned.report.sites[0].error) < 0.21


@pytest.mark.parametrize(
    "penalty, says",
    [
        (nt.Box(lower=0.5), "lower <= 0 <= upper"),
        (nt.Box(upper=np.nan), "lower <= 0 <= upper"),
        (nt.ElasticNet(-1.0), "a finite ridge of at least 0"),
        (nt.Nonnegative(0.0), "positive, finite penalty weights"),
        (nt.Sign(np.ones((5, 5))), r"broadcast to W \[12, 3\]"),
    ],
    ids=repr,
)
def test_refusals(penalty, says):
    with pytest.raises(ProgramError, match=says):
        nt.linear_program(X, X @ W0, 1.0, penalty=penalty)


@slow
@pytest.mark.parametrize(
    "penalty",
    [
        nt.Box(upper=1e30),
        nt.Box(-1e3, 1e3),
        nt.ElasticNet(1e-20),
        nt.ElasticNet(1e-8),
    ],
    ids=repr,
)
def test_limits_far_off_and_small_ridges_are_none(penalty):
    X, Y = (a.astype("float32") for a in (penalized.X, penalized.X @ penalized.W0))
    epsilon = 0.2 * np.linalg.norm(Y)
    ours, plain = (
        nt.solve(nt.linear_program(X, Y, epsilon, penalty=p)) for p in (penalty, None)
    )
    assert int(ours.result) == CONVERGED
    assert int(ours.stats.steps) <= 2 * int(plain.stats.steps)
    np.testing.assert_allclose(ours.stats.objective, plain.stats.objective, rtol=2e-3)


def test_a_refit_leaves_no_limits():
    for penalty in (nt.Nonnegative(), nt.Sign(W0), nt.Box(-1, 1)):
        with pytest.raises(nt.NetTrimError, match="keeps zeros but no other limits"):
            nt.prune(
                {"w": jnp.ones((12, 3), jnp.float32)},
                lambda params, x: x @ params["w"],
                jnp.asarray(X, jnp.float32),
                method=nt.NetTrim(penalty=penalty, refit=True),
            )


def test_a_program_that_is_traced():
    with pytest.raises(ProgramError, match="is being traced; call it outside"):
        jax.jit(lambda p: nt.to_cvxpy(p).value)(program("l1", True, "fixed"))


def test_what_is_no_program():
    stack = jax.tree.map(lambda a: jnp.stack([a, a]), program("l1", True, "fixed"))
    for given, got in ((stack, "a stack"), (3, "int")):
        with pytest.raises(ProgramError, match=f"expected one program, got {got}"):
            nt.to_cvxpy(given)
