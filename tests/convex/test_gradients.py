"""Derivatives of solutions, refits and prunings, against central differences."""

import dataclasses
import functools

import helpers
import jax
import jax.numpy as jnp
import models
import numpy as np
import penalized
import pytest
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax.convex import implicit
from nettrim_jax.convex import least_squares as refitting
from nettrim_jax.results import CONVERGED

EXACT = nt.ADMM(tol=1e-12, max_steps=200000)
# a solution that sits at its constraints' edge has one-sided derivatives only
NAMES = [
    name
    for name in helpers.GENERATED
    if float(helpers.problem(name).epsilon) > 0 and not name.startswith("epsilon")
]
names = pytest.mark.parametrize(
    "name",
    only_fast(["tall-zero_columns-relu-free-0.2"], NAMES),
)


def difference(f):
    """The derivative at zero of a function of one number, of fourth order.

    A stencil that reaches into another regime, where its two halves disagree, shrinks.
    """
    for h in (1e-4, 1e-5, 1e-6):
        near, far = ((f(k) - f(-k)) / (2 * k) for k in (h, 2 * h))
        if (abs(near - far) <= 1e-4 * abs(near)).all():
            return (4 * near - far) / 3
    pytest.fail("a regime ends at the program itself")


def direction(program, seed=1):
    """A direction for everything that one may differentiate by."""
    rng = np.random.default_rng(seed)

    def like(a):
        if a.dtype == bool:
            return jnp.zeros(a.shape, a.dtype)
        return jnp.asarray(rng.normal(size=a.shape))

    def limited(a):
        # a limit that is zero or infinite stays so
        return jnp.where(jnp.isinf(a) | (a == 0), 0, like(a))

    turn = jax.tree.map(like, program)
    penalty = jax.tree.map(limited, program.penalty)
    # columns that are zero stay so: what enters there changes the regime
    X = jnp.where(jnp.any(program.X != 0, axis=0)[None, :], turn.X, 0)
    if program.bias == "penalized":
        X = X.at[:, -1].set(0)
    epsilon = program.response.epsilon * turn.response.epsilon
    response = dataclasses.replace(turn.response, epsilon=epsilon)
    return dataclasses.replace(turn, X=X, penalty=penalty, response=response)


def moved(program, turn, s):
    def step(a, d):
        return a if a.dtype == bool else a + s * d

    return jax.tree.map(step, program, turn)


def named(name):
    """The program of this name, with a weight per entry that may move."""
    program = helpers.program(helpers.problem(name), "float64")
    weight = jnp.ones((len(program.response.Y), program.X.shape[1]))
    return dataclasses.replace(program, penalty=nt.L1(weight))


def line(program, config=EXACT):
    """Numbers of a solution, along a line through a program."""
    turn = direction(program)
    rng = np.random.default_rng(2)
    shape = program.X.shape[1] - (program.bias == "penalized"), len(program.response.Y)
    C, c = (jnp.asarray(rng.normal(size=s)) for s in (shape, shape[1:]))
    # the bias of a unit that is never on is not unique
    c = jnp.where(jnp.any(program.response.on, axis=1), c, 0)

    @jax.jit
    def numbers(s):
        found = nt.solve(moved(program, turn, s), config)
        answer = jnp.sum(C * found.W) + jnp.sum(c * found.bias)
        return jnp.stack([answer, found.stats.objective]), found.result

    return numbers


def check(program):
    numbers = line(program)
    zero = jnp.zeros(())
    (value, result), (slope, _) = jax.jvp(numbers, (zero,), (zero + 1,))
    assert int(result) == CONVERGED
    expected = difference(lambda s: numbers(s)[0])
    np.testing.assert_allclose(slope, expected, rtol=1e-6)
    back = jax.jacrev(lambda s: numbers(s)[0])(zero)
    np.testing.assert_allclose(back, slope, rtol=1e-9)


@names
def test_solutions_move_as_differences_say(name):
    check(named(name))


@slow
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
@pytest.mark.parametrize("penalty", penalized.PENALTIES)
def test_solutions_of_every_penalty(penalty, relu):
    check(penalized.program(penalty, relu, "free"))


@slow
def test_vmap_is_a_loop():
    numbers = line(named("tall-zero_columns-relu-free-0.2"))
    slope = jax.jacrev(lambda s: numbers(s)[0])
    points = jnp.asarray([0.0, 0.01, -0.02])
    for at, row in zip(points, jax.vmap(slope)(points), strict=True):
        np.testing.assert_allclose(row, slope(at), rtol=1e-9)


@slow
def test_second_derivatives():
    program = helpers.program(helpers.problem("tall-white-relu-fixed-0.02"), "float64")

    def value(epsilon):
        found = nt.solve(helpers.with_epsilon(program, epsilon), EXACT)
        return found.stats.objective

    at = program.response.epsilon
    first = jax.grad(value)
    second = jax.jacfwd(first)(at)
    expected = difference(lambda s: first(at * (1 + s))) / at
    assert float(second) == pytest.approx(float(expected), rel=1e-5)
    assert second > 0  # the least penalty is convex in the budget


@slow
def test_no_derivative_of_a_solve_that_did_not_converge():
    numbers = line(
        named("tall-white-linear-fixed-0.05"), nt.ADMM(tol=1e-11, max_steps=20)
    )
    zero = jnp.zeros(())
    (value, _), (slope, _) = jax.jvp(numbers, (zero,), (zero + 1,))
    assert np.isfinite(value).all() and np.isnan(slope).all()
    assert np.isnan(jax.jacrev(lambda s: numbers(s)[0])(zero)).all()


@slow
def test_one_side_at_the_edge_of_a_regime():
    # with a budget of all there is nothing is kept, with a little less something is
    program = helpers.program(helpers.problem("epsilon-1.0-relu"), "float64")
    at = program.response.epsilon

    def value(epsilon):
        found = nt.solve(helpers.with_epsilon(program, epsilon), EXACT)
        return found.stats.objective

    assert float(jax.grad(value)(at)) == 0 == float(value(1.01 * at))
    below = jax.grad(value)(at * (1 - 1e-6))
    assert float(below) == pytest.approx(
        float(-value(at * 0.999) / (at * 1e-3)), rel=0.1
    )


# ---- refits


@slow
@pytest.mark.parametrize(
    "name",
    [
        "tall-zero_columns-relu-free-0.2",
        "tall-white-relu-fixed-0.02",
        "square-deficient-linear-fixed-0.02",
    ],
)
def test_refits_move_as_differences_say(name, monkeypatch):
    # to the end, which the few rounds that serve pruning stop short of
    for setting, value in (("ROUNDS", 60), ("INNER", 60), ("GAIN", 1e-14)):
        monkeypatch.setattr(refitting, setting, value)
    jax.clear_caches()
    program = helpers.program(helpers.problem(name), "float64")
    turn, first = direction(program), helpers.solution(name, "float64")
    C = jnp.asarray(np.random.default_rng(2).normal(size=first.W.shape))

    @jax.jit
    def number(s):
        W, b = refitting.refit(moved(program, turn, s), first.W, first.bias)
        return jnp.sum(C * W) + jnp.sum(C[0] * b)

    zero = jnp.zeros(())
    slope = jax.grad(number)(zero)
    assert float(slope) == pytest.approx(float(difference(number)), rel=1e-6)
    _, forward = jax.jvp(number, (zero,), (zero + 1,))
    assert float(slope) == pytest.approx(float(forward), rel=1e-9)
    jax.clear_caches()


@slow
def test_refits_in_float32_and_vmap():
    """Inputs of very different sizes, and units that are on in few rows."""
    rng = np.random.default_rng(0)
    X = np.maximum(rng.normal(size=(60, 12)) + 0.5, 0) * np.geomspace(1e-3, 1e3, 12)
    W = rng.normal(size=(12, 5)) / np.geomspace(1e-3, 1e3, 12)[:, None]
    Y = np.maximum(X @ W - np.linspace(0, 3, 5), 0)
    start = np.where(rng.random((12, 5)) < 0.5, W, 0)
    turn = rng.normal(size=Y.shape)

    def slope(dtype):
        def fitted(s):
            program = nt.relu_program(
                jnp.asarray(X, dtype),
                jnp.asarray(Y, dtype),
                jnp.asarray(1.0, dtype),
                bias="free",
            )
            moves = program.response.Y + s * jnp.asarray(turn.T, dtype)
            response = dataclasses.replace(program.response, Y=moves)
            program = dataclasses.replace(program, response=response)
            bias = jnp.zeros(5, dtype)
            new, _ = refitting.refit(program, jnp.asarray(start, dtype), bias)
            return jnp.sum(new * jnp.asarray(np.sign(W) / np.abs(W), dtype))

        zeros = jnp.zeros(2, dtype)
        return jax.vmap(jax.grad(fitted))(zeros)

    one, two = slope("float32"), slope("float64")
    assert one.dtype == jnp.float32 and one[0] == one[1]
    np.testing.assert_allclose(one, two, rtol=1e-2)


@slow
def test_refits_of_what_is_unknown_are_unknown():
    program = named("tall-zero_columns-relu-free-0.2")
    hasty = nt.ADMM(tol=1e-11, max_steps=20)

    def fitted(s):
        moves = dataclasses.replace(
            program, penalty=nt.L1(program.penalty.weight * (1 + s))
        )
        found = nt.solve(moves, hasty)
        return jnp.sum(refitting.refit(moves, found.W, found.bias)[0])

    assert np.isnan(jax.grad(fitted)(0.0))


# ---- prunings


@slow
@pytest.mark.parametrize("mode", ["parallel", "cascade"])
@pytest.mark.parametrize("by", ["epsilon", "params"])
def test_prunings_move_as_differences_say(mode, by):
    params = jax.tree.map(
        lambda a: a.astype(jnp.float64), models.mlp_params((8, 8, 8, 8), 0)
    )
    batch = models.get("square").batch.astype(jnp.float64)
    turn = jax.tree.map(
        lambda a: jnp.sin(jnp.arange(1.0, a.size + 1)).reshape(a.shape), params
    )

    def deviation(s):
        moves = functools.partial(jax.tree.map, lambda a, d: a + s * d)
        pruned = nt.prune(
            moves(params, turn) if by == "params" else params,
            models.mlp,
            batch,
            method=nt.NetTrim(epsilon=0.2 + s if by == "epsilon" else 0.2),
            mode=mode,
            solver=EXACT,
            held_out=0.0,
        )
        return pruned.report.deviation

    slope = jax.grad(deviation)(0.0)
    assert float(slope) == pytest.approx(
        float(difference(jax.jit(deviation))), rel=1e-6
    )


# ---- the linear solver


@pytest.mark.parametrize("reach", [True, False])
@pytest.mark.parametrize("singular", [0, 3])
@pytest.mark.parametrize("size", only_fast([7], [1, 2, 7, 40]))
def test_minres_is_the_pseudo_inverse(size, singular, reach, rng):
    Q, _ = np.linalg.qr(rng.normal(size=(size, size)))
    values = rng.choice([-1, 1], size) * rng.uniform(0.1, 2, size)
    values[: min(singular, size - 1)] = 0
    A = (Q * values) @ Q.T
    b = rng.normal(size=size)
    b = A @ b if reach else b
    found = implicit.minres(lambda v: jnp.asarray(A) @ v, jnp.asarray(b))
    expected = np.linalg.lstsq(A, b, rcond=1e-8)[0]
    # what is out of reach is told apart to half of the digits
    np.testing.assert_allclose(found, expected, atol=1e-9 if reach else 1e-6)


@pytest.mark.parametrize("dtype", only_fast(["float32"], ["float32", "float64"]))
@pytest.mark.parametrize("factor", only_fast([1e30], [1e-30, 1e-6, 1e6, 1e30]))
def test_minres_is_homogeneous(dtype, factor, rng):
    values = jnp.asarray(rng.uniform(-1, 1, 20), dtype)
    b = jnp.asarray(rng.normal(size=20), dtype)
    factor = jnp.asarray(factor, dtype)
    one, other = (implicit.minres(lambda v: values * v, a) for a in (b, factor * b))
    rtol = 1e-3 if dtype == "float32" else 1e-9
    np.testing.assert_allclose(other / factor, one, rtol=rtol)


def test_minres_of_nothing_is_nothing():
    assert (implicit.minres(lambda v: v, jnp.zeros(3)) == 0).all()
    assert (implicit.minres(lambda v: 0 * v, jnp.ones(3)) == 0).all()


def test_minres_leaves_out_what_rounding_decides():
    tiny = jnp.asarray([1.0, 1e-15])
    found = implicit.minres(lambda v: tiny * v, jnp.ones(2))
    np.testing.assert_allclose(found, [1, 0], atol=1e-10)


def test_minres_says_when_it_ran_out_of_steps(monkeypatch):
    monkeypatch.setattr(implicit, "STEPS", 3)
    values = jnp.linspace(0.1, 1, 30)
    assert np.isnan(implicit.minres(lambda v: values * v, jnp.ones(30))).all()
