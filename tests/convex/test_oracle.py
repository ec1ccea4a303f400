"""Every program's answer against cvxpy with Clarabel, which shares no code with us.

``helpers.oracle`` is good to about 1e-8. What is compared is computed here in NumPy
from the weights and the bias that came back, not read off the certificate.
"""

import helpers
import numpy as np
import pytest
from helpers import (
    FAST,
    PROBLEMS,
    ROUNDING,
    TOL,
    evaluate,
    optimum,
    oracle,
    problem,
    solution,
)
from marks import only_fast, slow

import nettrim_jax as nt

PAIRS = [(name, dtype) for name in PROBLEMS for dtype in TOL]
# float64 shows that the answer is right; of float32 a few show what rounding does
QUICK = {(name, "float64") for name in FAST} | {(name, "float32") for name in FAST[::8]}
programs = pytest.mark.parametrize(
    "name, dtype",
    [pytest.param(*pair, marks=() if pair in QUICK else slow) for pair in PAIRS],
)

# Programs whose optimum falls by more than one part for each part of violation, so
# that the violation allowed shows in the objective
STEEP = [
    "tall-white-linear-fixed-0.05",
    "tall-deficient-linear-penalized-0.02",
    "tall-nonnegative-relu-fixed-0.05",
    "on-off-fixed",
    "lenet-2-free-0.05",
]


@programs
def test_converges_to_a_feasible_point(name, dtype):
    answer = solution(name, dtype)
    assert answer.result == nt.results.CONVERGED
    *_, violation = evaluate(problem(name), answer.W, answer.bias)
    assert violation <= TOL[dtype] + ROUNDING[dtype]


@programs
def test_objective_is_the_optimum(name, dtype):
    answer, best, tol = solution(name, dtype), oracle(name), TOL[dtype]
    objective, distance, _ = evaluate(problem(name), answer.W, answer.bias)
    slack = tol * best.value + 1e-8
    assert objective <= best.value + slack
    # a point off the set may undercut the optimum, by price * distance at most
    assert objective >= best.value - slack - best.price * distance


@programs
def test_lower_bound_is_below_the_optimum(name, dtype):
    answer, best, tol = solution(name, dtype), oracle(name), TOL[dtype]
    bound = float(answer.certificate.lower_bound)
    assert bound <= best.value + ROUNDING[dtype] * best.value + 1e-8
    assert bound <= float(answer.stats.objective) * (1 + tol)


@programs
def test_certificate_says_what_the_weights_say(name, dtype):
    answer, rounding = solution(name, dtype), ROUNDING[dtype]
    objective, _, violation = evaluate(problem(name), answer.W, answer.bias)
    assert float(answer.stats.objective) == pytest.approx(objective, rel=rounding)
    assert float(answer.certificate.violation) == pytest.approx(violation, abs=rounding)
    # the gap also holds what the violation may be worth, so it may be the larger
    gap = abs(objective - float(answer.certificate.lower_bound))
    assert gap / (objective or 1) <= float(answer.certificate.gap) + rounding
    assert float(answer.certificate.gap) <= TOL[dtype]


@slow
@pytest.mark.parametrize("name", STEEP)
def test_nothing_but_the_tolerance_keeps_the_objectives_apart(name):
    answer = solution(name, "float64", tol=1e-8)
    objective, *_ = evaluate(problem(name), answer.W, answer.bias)
    assert answer.result == nt.results.CONVERGED
    assert objective == pytest.approx(oracle(name).value, rel=1e-6)


# (weight of the penalty, limit where a unit is off) for a wide program, 41 rows of
# weights with the bias's and 20 rows of samples
_rng = np.random.default_rng(3)
VARIANTS = {
    "cascade": (1.0, np.maximum(0.3 * _rng.normal(size=(20, 4)), 0)),
    "per-entry": (0.1 + _rng.random(size=(41, 4)), 0.0),
    "per-row": (np.linspace(0.1, 2, 41)[:, None], 0.0),
    "per-unit": (np.linspace(0.5, 2, 4), 0.0),
    "some-weights-small": (np.arange(41.0)[:, None] % 3 + 0.1, 0.0),
}


@pytest.mark.parametrize("variant", only_fast(["per-entry"], VARIANTS))
def test_weighted_penalties_and_other_limits(variant):
    weight, V = VARIANTS[variant]
    base = problem("wide-white-relu-penalized-0.02")
    best = optimum(base, weight=weight, V=V)
    assert abs(best.value / oracle(base.name).value - 1) > 1e-2  # it does matter
    other = nt.relu_program(
        base.X, base.Y, base.epsilon, base.t, V, nt.L1(weight), bias=base.bias
    )
    answer = helpers.solve(other, tol=1e-8)
    assert answer.result == nt.results.CONVERGED
    assert float(answer.stats.objective) == pytest.approx(best.value, rel=1e-6)


def test_fast_names_exist():
    assert set(helpers.FAST) <= set(PROBLEMS)
    assert len(PROBLEMS) == len(set(PROBLEMS)) == 47
