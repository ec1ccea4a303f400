"""Warm starts and paths end where cold solves end, in fewer steps."""

import dataclasses

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax.convex.programs import BIASES
from nettrim_jax.results import CONVERGED, ProgramError

TIGHT = nt.ADMM(tol=1e-6)
NAMES = [name for name in helpers.FAST if not name.startswith(("lenet", "epsilon"))]
names = pytest.mark.parametrize("name", only_fast(NAMES[6::6], NAMES))


def program(name, factor=1.0):
    made = helpers.program(helpers.problem(name), "float64")
    return helpers.with_epsilon(made, factor * made.response.epsilon)


@names
def test_a_solution_is_a_fixed_point(name):
    first = helpers.solution(name, "float64")
    again = nt.solve(program(name), TIGHT, init=first)
    assert int(again.result) == CONVERGED
    assert int(again.stats.steps) <= 0.2 * int(first.stats.steps) + 20
    assert float(again.stats.objective) == pytest.approx(
        float(first.stats.objective), rel=2e-6
    )


@slow
def test_a_warm_start_ends_at_the_optimum_sooner():
    cold, warm = 0, 0
    for name in helpers.FAST:
        if name.startswith(("lenet", "epsilon")):
            continue
        near = program(name, 0.9)
        one = nt.solve(near, TIGHT)
        two = nt.solve(near, TIGHT, init=helpers.solution(name, "float64"))
        assert int(two.result) == CONVERGED
        assert float(two.stats.objective) == pytest.approx(
            float(one.stats.objective), rel=4e-6
        )
        cold, warm = cold + int(one.stats.steps), warm + int(two.stats.steps)
    assert warm < 0.9 * cold


@slow
def test_vmap_honours_the_starts():
    name = "tall-white-relu-fixed-0.02"
    first = helpers.solution(name, "float64")
    programs = [program(name), program(name, 3.0)]
    stack = jax.tree.map(lambda *a: jnp.stack(a), *programs)
    starts = jax.tree.map(lambda a: jnp.stack([a, a]), first)
    found = jax.vmap(lambda p, s: nt.solve(p, TIGHT, init=s))(stack, starts)
    assert int(found.stats.steps[0]) == 20 < int(found.stats.steps[1])
    alone = nt.solve(programs[1], TIGHT, init=first)
    assert int(found.stats.steps[1]) == int(alone.stats.steps)
    np.testing.assert_allclose(found.W[1], alone.W, atol=1e-9)


def test_a_start_that_is_not_finite_is_passed_over():
    name = "tall-white-relu-fixed-0.02"
    first = helpers.solution(name, "float64")
    bad = first._replace(dual=first.dual.at[0, 0].set(jnp.nan))
    found = nt.solve(program(name), TIGHT, init=bad)
    assert int(found.stats.steps) == int(first.stats.steps)
    np.testing.assert_array_equal(found.W, first.W)


@slow
@pytest.mark.parametrize(
    "bias",
    only_fast(["free"], BIASES),
)
def test_a_path_is_its_solves(bias):
    base = helpers.problem("tall-zero_columns-relu-free-0.2")
    base = dataclasses.replace(base, bias=bias)
    epsilons = jnp.geomspace(3 * base.epsilon, base.epsilon / 3, 5)
    start = helpers.program(base, "float64")
    found = nt.path(start, epsilons, TIGHT)
    assert found.solutions.result.tolist() == [CONVERGED] * 5
    objectives = np.asarray(found.solutions.stats.objective)
    assert (np.diff(objectives) > 0).all()
    for k, epsilon in enumerate(epsilons):
        alone = nt.solve(helpers.with_epsilon(start, epsilon), TIGHT)
        assert objectives[k] == pytest.approx(float(alone.stats.objective), rel=4e-6)
    np.testing.assert_allclose(
        found.sparsity, np.mean(np.asarray(found.solutions.W) == 0, axis=(1, 2))
    )
    twice = jax.vmap(lambda p: nt.path(p, epsilons, TIGHT))(
        jax.tree.map(lambda a: jnp.stack([a, a]), start)
    )
    np.testing.assert_allclose(twice.sparsity[1], found.sparsity)


def test_refusals():
    one = program("tall-white-relu-fixed-0.02")
    other = helpers.solution("one-unit", "float64")
    with pytest.raises(ProgramError, match="expected init with W.*same shapes"):
        nt.solve(one, init=other)
    with pytest.raises(
        ProgramError, match="expected init with W.*what nettrim_jax.solve"
    ):
        nt.solve(one, init=3)
    for epsilons, says in ((1.0, r"budgets \[k\]"), ([-1.0], "at least 0")):
        with pytest.raises(ProgramError, match=says):
            nt.path(one, epsilons)
