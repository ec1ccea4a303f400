"""Every prox of the library is the prox that it claims to be."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ENTRYWISE, PROXES, RESPONSES, TERMS
from jaxopt import projection
from marks import only_fast, slow

from nettrim_jax.convex._jaxopt import prox as jaxopt_prox

proxes = pytest.mark.parametrize("prox", PROXES.values(), ids=PROXES)
scales = pytest.mark.parametrize("scale", only_fast([1.0], [0.1, 1.0, 10.0]))


def objective(prox, P, V):
    return prox.value(P) + jnp.sum((P - V) ** 2 / (2 * prox.step))


def somewhere(prox, rng, scale):
    return jnp.asarray(prox.centre + scale * rng.normal(size=(6, 4)))


@proxes
@scales
def test_gradient_of_the_moreau_envelope(prox, scale, rng):
    V, h = somewhere(prox, rng, scale), 1e-6

    @jax.jit
    def difference(direction):
        def envelope(V):
            return objective(prox, prox.call(V), V)

        return (envelope(V + h * direction) - envelope(V - h * direction)) / (2 * h)

    gradient = jax.vmap(difference)(jnp.eye(24).reshape(24, 6, 4)).reshape(6, 4)
    np.testing.assert_allclose(gradient, (V - prox.call(V)) / prox.step, atol=1e-5)


@proxes
@scales
def test_firmly_non_expansive(prox, scale, rng):
    for _ in range(20):
        A, B = somewhere(prox, rng, scale), somewhere(prox, rng, scale)
        P = prox.call(A) - prox.call(B)
        # in the metric of the steps, one over step per row
        assert jnp.sum(P**2 / prox.step) <= jnp.sum(P * (A - B) / prox.step) + 1e-12


@pytest.mark.parametrize("name", RESPONSES)
@scales
def test_projections_are_feasible_and_idempotent(name, scale, rng):
    prox, response = PROXES[name], RESPONSES[name]
    V = somewhere(prox, rng, scale)
    P = prox.call(V)
    assert response.distance(P) <= 1e-15 * float(response.scale())
    np.testing.assert_allclose(prox.call(P), P, rtol=1e-15, atol=1e-15)
    R = np.asarray(P - response.Y)[np.asarray(response.on)]
    assert np.linalg.norm(R) <= response.epsilon + 1e-14
    assert jnp.all(response.on | (P <= response.V))


@proxes
@scales
def test_no_perturbation_is_better(prox, scale, rng):
    V = somewhere(prox, rng, scale)
    P = prox.call(V)
    best = objective(prox, P, V)
    for size in (1e-4, 1e-2, 1.0):
        for _ in range(20):
            other = P + size * rng.normal(size=(6, 4))
            other = prox.call(other) if prox.limited else other  # back into the set
            assert objective(prox, other, V) >= best - 1e-12


@proxes
@pytest.mark.parametrize("jacobian", [jax.jacrev, pytest.param(jax.jacfwd, marks=slow)])
def test_finite_derivatives_where_a_norm_is_zero(prox, jacobian):
    points = jnp.stack([jnp.zeros((6, 4)), jnp.asarray(prox.centre)])
    assert jnp.isfinite(jacobian(prox.call)(points[1])).all()
    assert jnp.isfinite(jax.vmap(jacobian(prox.call))(points)).all()


@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES)
def test_finite_derivative_in_the_budget(response):
    def first(epsilon, Z):
        moved = type(response)(response.Y, response.on, response.V, epsilon)
        return jnp.sum(moved.prox(Z) ** 2)

    Z = jnp.stack([response.Y, jnp.zeros_like(response.Y)])
    epsilon = jnp.stack([response.epsilon, response.epsilon])
    assert jnp.isfinite(jax.vmap(jax.grad(first))(epsilon, Z)).all()


@proxes
@scales
def test_agrees_with_cvxpy(prox, scale, rng):
    cp = pytest.importorskip("cvxpy")
    V = somewhere(prox, rng, scale)
    P = cp.Variable((6, 4))
    value, constraints = prox.cvx(P)
    root = np.sqrt(1 / (2 * prox.step)) * np.ones((6, 4))
    distance = cp.sum_squares(cp.multiply(root, P - np.asarray(V)))
    cvx = cp.Problem(cp.Minimize(value + distance), constraints)
    cvx.solve(cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    # a distance of the answers is the root of a distance of the objectives
    np.testing.assert_allclose(prox.call(V), P.value, atol=2e-4 * max(1, scale))
    np.testing.assert_allclose(
        objective(prox, prox.call(V), V), cvx.value, rtol=1e-7, atol=1e-7
    )


def test_soft_thresholding_by_hand():
    W = jnp.array([[3.0, -3.0, 0.5, -0.5, 2.0, 0.0]])
    answer = helpers.nt.L1(2.0).prox(W, jnp.array([[1.0]]))
    assert answer.tolist() == [[1, -1, 0, 0, 0, 0]]
    answer = helpers.nt.L1(2.0).prox(W, jnp.array([[0.25]]))
    assert answer.tolist() == [[2.5, -2.5, 0, 0, 1.5, 0]]


def test_match_by_hand():
    # residual (3, 4) on a ball of radius 1; off: one above the limit, one below it
    Z = jnp.array([[4.0, 6.0, 2.0, -2.0]])
    Y = jnp.array([[1.0, 2.0, 0.0, 0.0]])
    response = helpers.Match(Y, Y > 0, jnp.array([[0.5]]), jnp.array(1.0))
    np.testing.assert_allclose(response.prox(Z), [[1.6, 2.8, 0.5, -2.0]])
    np.testing.assert_allclose(response.distance(Z), np.sqrt(4.0**2 + 1.5**2))


@pytest.mark.parametrize("name", ENTRYWISE)
@scales
def test_penalty_conjugate(name, scale, rng):
    penalty = ENTRYWISE[name]
    A = scale * rng.normal(size=(6, 4))
    shrink, value = penalty.T.conjugate(jnp.asarray(A.T))
    assert shrink.shape == (4,) and ((shrink >= 0) & (shrink <= 1)).all()
    small = A * np.asarray(shrink)[None, :]
    lower, upper, weight, ridge = (np.broadcast_to(a, (6, 4)) for a in TERMS[name])
    # nothing that goes on for ever gains
    endless = (ridge == 0) & np.isinf(np.where(A > 0, upper, lower))
    assert (np.abs(small) <= np.where(endless, weight * (1 + 1e-15), np.inf)).all()
    # and no more than that: a column that was shrunk touches such a weight
    touches = (endless & np.isclose(np.abs(small), weight, rtol=1e-12)).any(axis=0)
    assert (touches | (np.asarray(shrink) == 1)).all()

    def gain(W):
        return small * W - weight * np.abs(W) - ridge / 2 * W**2

    # g*(A) = sup <A, W> - g(W), of a concave function of each entry: at zero, where its
    # slope is zero, or at a limit
    with np.errstate(divide="ignore", invalid="ignore"):
        flat = np.sign(small) * (np.abs(small) - weight) / ridge
    points = [np.zeros((6, 4)), flat, lower, upper]
    points = [np.where(np.isfinite(p), np.clip(p, lower, upper), 0) for p in points]
    best = np.max([gain(p) for p in points], axis=0)
    np.testing.assert_allclose(value, best.sum(), rtol=1e-12, atol=1e-14)
    for size in (1e-3, 1.0, 1e3):
        W = np.clip(size * rng.normal(size=(6, 4)), lower, upper)
        total = np.sum(small * W) - penalty.value(jnp.asarray(W))
        assert total <= value + 1e-12 * size


@pytest.mark.parametrize("name", ENTRYWISE)
@pytest.mark.parametrize("factor", [3.0, -0.5])
def test_scaled_and_transposed_penalty(name, factor, rng):
    penalty = ENTRYWISE[name]
    V, step = jnp.asarray(rng.normal(size=(6, 4))), jnp.array([[0.3]])
    P = penalty.prox(V, step)
    np.testing.assert_allclose(penalty.T.value(P.T), penalty.value(P), rtol=1e-14)
    np.testing.assert_allclose(penalty.T.prox(V.T, step).T, P, rtol=1e-14)
    np.testing.assert_allclose(penalty.box().prox(V, step), P, rtol=1e-14)
    # g'(W) = g(factor W), so its prox is that of g, in other units
    scaled = penalty.scaled(jnp.array(factor))
    answer = scaled.prox(V / factor, step / factor**2)
    np.testing.assert_allclose(factor * answer, P, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(scaled.value(answer), penalty.value(P), rtol=1e-12)


@pytest.mark.parametrize("name", ENTRYWISE)
def test_reweighted_penalty_spares_what_is_large(name):
    penalty = ENTRYWISE[name]
    W = penalty.prox(jnp.linspace(-3, 3, 24).reshape(6, 4), jnp.array([[0.1]]))
    again = penalty.reweighted(W, 0.1).box()
    weight = np.broadcast_to(TERMS[name][2], (6, 4))
    ratio = np.asarray(again.weight)[weight > 0] / weight[weight > 0]
    order = np.argsort((weight * np.abs(W))[weight > 0])
    assert (np.diff(ratio[order]) <= 1e-12).all() and ratio.max() <= 1
    np.testing.assert_array_equal(again.prox(W, jnp.zeros((1, 1))), W)  # same limits


@pytest.mark.parametrize("name", RESPONSES)
@pytest.mark.parametrize("free_bias", [False, True])
def test_response_bound_is_minus_the_support_function(name, free_bias, rng):
    response, prox = RESPONSES[name], PROXES[name]
    L = response.dual(jnp.asarray(rng.normal(size=(6, 4))), free_bias)
    t = jnp.asarray(rng.normal(size=(6, 4)))
    bound = response.bound(L, t)
    if free_bias:
        np.testing.assert_allclose(jnp.sum(L, axis=1), 0, atol=1e-14)
    for scale in (0.1, 1.0, 10.0):
        Z = prox.call(somewhere(prox, rng, scale))
        assert jnp.sum(L * (t - Z)) >= bound - 1e-12
    # reached by going far in the direction of L; what is free has no dual
    far = response.prox(response.Y + 1e9 * L)
    np.testing.assert_allclose(jnp.sum(L * (t - far)), bound, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("weight", [0.0, 0.7, "array"])
def test_jaxopt_prox_lasso_is_right(weight, rng):
    # the one function of jaxopt that is used
    V = rng.normal(size=(6, 4))
    weight = np.abs(rng.normal(size=(6, 4))) if weight == "array" else weight
    expected = np.where(V > weight, V - weight, np.where(V < -weight, V + weight, 0))
    full = jnp.broadcast_to(jnp.asarray(weight), (6, 4))
    answer = jaxopt_prox.prox_lasso(jnp.asarray(V), full)
    np.testing.assert_allclose(answer, expected, rtol=1e-14, atol=1e-15)


@slow
def test_why_jaxopt_projection_l2_ball_is_not_used():
    # it divides by the norm outside the branch: the value is right everywhere, the
    # gradient at the centre is NaN in reverse mode, with vmap and without
    def total(x):
        return jnp.sum(projection.projection_l2_ball(x, 1.0))

    x = jnp.zeros((2, 3))
    assert jnp.isnan(jax.grad(total)(x[0])).all()
    assert jnp.isnan(jax.vmap(jax.grad(total))(x)).all()
    assert (jax.vmap(lambda v: projection.projection_l2_ball(v, 1.0))(x) == 0).all()
