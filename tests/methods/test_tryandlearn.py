"""The agent's parts against their definitions: reward, gradient, choices, the best."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nettrim_jax as nt
from nettrim_jax.methods import policy as policies
from nettrim_jax.methods.policy import Measured, Policy, Tried
from nettrim_jax.results import MethodError

S, K, D, WIDTH = 1, 3, 2, 4

start = jax.jit(policies.start, static_argnums=2)
propose = jax.jit(policies.propose, static_argnums=3)
learn, better, odds = map(jax.jit, (policies.learn, policies.better, policies.odds))


def metric(params, batch):
    return 0.0


# ---- the gradient, against the sum over all actions


@pytest.fixture
def filters(rng):
    return jnp.asarray(rng.normal(size=(S, K, D)), "float32")


@pytest.fixture
def policy(rng):
    shapes = (D, WIDTH), (WIDTH,), (WIDTH,), (S, K)
    return Policy(*(jnp.asarray(rng.normal(size=s), "float32") for s in shapes))


ACTIONS = np.array(list(itertools.product([False, True], repeat=K)))[:, None]
VALUES = 3 + np.random.default_rng(1).normal(size=len(ACTIONS)).astype("float32")


def chances(policy, filters):
    """The probability of every action, by the definition of the policy."""
    inner = jnp.maximum(filters[0] @ policy.hidden + policy.hidden_bias[None], 0)
    p = 1 / (1 + jnp.exp(-(inner @ policy.output + policy.output_bias[0])))
    return jnp.prod(jnp.where(ACTIONS[:, 0], p[None], 1 - p[None]), axis=1)


def flat(tree):
    return np.concatenate([np.ravel(a) for a in jax.tree.leaves(tree)])


def estimates(policy, filters, estimate):
    """An estimate for every pair of actions, and the probabilities of the pairs."""
    p = np.asarray(chances(policy, filters), float)
    pairs = np.array(list(itertools.product(range(len(ACTIONS)), repeat=2)))
    each = jax.vmap(lambda a, r: estimate(policy, filters, a, r))
    given = jnp.asarray(ACTIONS[pairs]), jnp.asarray(VALUES[pairs])
    out = jax.jit(each)(*given)
    slopes = np.concatenate(
        [np.reshape(a, (len(pairs), -1)) for a in jax.tree.leaves(out)], axis=1
    )
    return slopes, p[pairs].prod(1)


def without_baseline(policy, filters, actions, rewards):
    """The plain estimate, of the policy as it is defined."""

    def surrogate(policy):
        at = actions.astype(int)[:, 0] @ jnp.array([4, 2, 1])
        return jnp.mean(rewards * jnp.log(chances(policy, filters)[at]))

    return jax.grad(surrogate)(policy)


def test_gradient_is_that_of_the_expected_reward(policy, filters):
    expected = jax.grad(lambda p: jnp.sum(chances(p, filters) * VALUES))(policy)
    slopes, p = estimates(policy, filters, policies.policy_gradient)
    assert np.abs(flat(expected)).max() > 0.1
    np.testing.assert_allclose(p @ slopes, flat(expected), atol=2e-5)


def test_baseline_reduces_the_variance(policy, filters):
    mean, spread = [], []
    for estimate in (policies.policy_gradient, without_baseline):
        slopes, p = estimates(policy, filters, estimate)
        mean.append(p @ slopes)
        spread.append((p @ (slopes - mean[-1]) ** 2).sum())
    np.testing.assert_allclose(*mean, atol=2e-5)
    assert spread[0] < spread[1] / 2


# ---- the reward


def test_reward_is_accuracy_times_efficiency():
    keep = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 0, 0], [0, 1, 1, 0]], bool)
    fall = jnp.array([0.0, 0.01, 0.05, -0.3], "float32")
    got = jax.jit(policies.rewards)(Tried(jnp.asarray(keep[:, None]), fall), 0.02)
    expected = [0, 0.5 * np.log(2), -1.5 * np.log(4), np.log(2)]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fall, worst", [([0.01, np.nan, 0.5], 0.5), ([np.inf], 0.04)])
def test_what_is_no_number_is_the_worst(fall, worst):
    keep = jnp.ones((len(fall), 1, 4), bool).at[:, 0, 0].set(False)
    got = jax.jit(policies.rewards)(Tried(keep, jnp.asarray(fall, "float32")), 0.02)
    expected = (0.02 - worst) / 0.02 * np.log(4 / 3)
    assert float(got.min()) == pytest.approx(expected, rel=1e-4)
    assert np.isfinite(got).all()


# ---- choices


def test_an_action_is_a_choice_unless_nothing_would_stay():
    scores = jnp.array([[0.3, 2.0, -1.0]], "float32")
    got = jax.jit(policies.choices)(jnp.asarray(ACTIONS), scores)
    assert np.array_equal(got[1:], ACTIONS[1:])
    assert got[0].tolist() == [[False, True, False]]


def test_steps_of_a_loop_keep_as_many(rng):
    actions = jnp.asarray(rng.random((20, 4, 6)) < 0.4)
    scores = jnp.asarray(rng.normal(size=(4, 6)), "float32")
    got = np.asarray(jax.jit(policies.choices)(actions, scores))
    counts = got.sum(-1)
    assert (counts == counts[:, :1]).all() and counts.min() >= 1
    mean = np.asarray(actions).sum(-1).mean(1)
    assert np.abs(counts[:, 0] - mean).max() <= 0.5
    # units only come or only go at each step
    more, less = got & ~np.asarray(actions), np.asarray(actions) & ~got
    assert not (more.any(-1) & less.any(-1)).any()


def test_last_steps_try_numbers_of_the_likeliest(policy, filters):
    learner = start(filters, jax.random.key(0), WIDTH)._replace(policy=policy)
    _, _, keep = propose(learner, filters, jnp.asarray(True), 2)
    order = np.argsort(-np.asarray(odds(policy, filters))[0])
    counts = keep.sum(-1)[:, 0].tolist()
    assert counts == sorted(counts) and 1 <= counts[0] and counts[-1] < K
    for one, count in zip(np.asarray(keep)[:, 0], counts, strict=True):
        assert set(np.flatnonzero(one)) == set(order[:count])


# ---- what is remembered


def test_best_has_the_fewest_units_within_the_bound():
    keep = np.array([[1, 1, 0, 1], [0, 1, 0, 1], [1, 0, 1, 0], [0, 0, 0, 1]], bool)
    tried = Tried(jnp.asarray(keep[:, None]), jnp.array([0.0, 0.02, 0.01, 0.03]))
    nothing = Tried(jnp.ones((1, 4), bool), jnp.zeros(()))
    assert better(nothing, tried, 0.025).keep[0].tolist() == list(keep[2])
    assert better(nothing, tried, 0.005).keep[0].tolist() == list(keep[0])
    assert better(nothing, tried, -1.0).keep.all()
    lost = tried._replace(fall=jnp.full(4, jnp.nan))
    assert better(nothing, lost, 1.0).keep.all()


@pytest.mark.parametrize("last", [False, True])
def test_policy_learns_but_at_the_last_steps(filters, last):
    learner = start(filters, jax.random.key(0), WIDTH)
    last = jnp.asarray(last)
    learner, actions, keep = propose(learner, filters, last, 8)
    seen = Measured(
        actions, Tried(keep, 0.1 * (~keep[:, 0, 1]).astype("float32")), last
    )
    new = learn(learner, filters, seen, jnp.float32(0.05), jnp.float32(0.1))
    moved = np.abs(flat(new.policy) - flat(learner.policy)).max()
    assert (moved == 0) if last else (0 < moved <= 0.11)
    assert new.best.keep[0, 1] and float(new.best.fall) <= 0.05


# ---- what the user gives

BAD = [
    ({"metric": None}, r"metric=None\): expected a function metric\(params, batch\)"),
    ({"bound": 0}, r"bound=0\): expected a finite number above 0"),
    ({"bound": -0.1}, r"bound=-0.1\): expected a finite number"),
    ({"bound": np.inf}, r"bound=inf\): expected a finite number"),
    ({"bound": "1%"}, r"bound='1%'\): expected a finite number"),
    ({"bound": True}, r"bound=True\): expected a finite number"),
    ({"rate": np.nan}, r"rate=nan\): expected a finite number above 0"),
    ({"steps": 0}, r"steps=0\): expected an integer of at least 1"),
    ({"steps": 2.5}, r"steps=2.5\): expected an integer"),
    ({"samples": 1}, r"samples=1\): expected an integer of at least 2"),
    ({"width": 0}, r"width=0\): expected an integer of at least 1"),
    ({"seed": -1}, r"seed=-1\): expected an integer in \[0, 2\*\*32\)"),
    ({"seed": True}, r"seed=True\): expected an integer in"),
]


@pytest.mark.parametrize("given, match", BAD, ids=str)
def test_bad_settings_are_refused(given, match):
    with pytest.raises(MethodError, match=match):
        nt.TryAndLearn(**{"metric": metric, "bound": 0.01, **given})


def test_a_traced_bound_is_refused():
    with pytest.raises(MethodError, match="bound.*being traced.*give a number"):
        jax.jit(lambda b: nt.TryAndLearn(metric, b).bound)(0.1)


def test_record_is_configuration():
    method = nt.TryAndLearn(metric, np.float32(0.5), seed=3)
    assert not jax.tree.leaves(method)
    assert method == nt.TryAndLearn(metric, 0.5, seed=3) != nt.TryAndLearn(metric, 0.5)
