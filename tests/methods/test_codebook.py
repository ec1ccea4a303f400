"""Weights of few values: each step against an oracle in NumPy, and brute force."""

import itertools

import devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax.methods import codebook
from nettrim_jax.methods.centroids import ascending, chosen, k_means, nearest, start
from nettrim_jax.methods.codebook import Choice, Codebook, Problem
from nettrim_jax.methods.codes import codes_of, groups_of, ranks_of
from nettrim_jax.results import MethodError

D_IN, D_OUT = 24, 6
APART = pytest.mark.parametrize("apart", only_fast([False], [False, True]))


def problem(rng, d_in=D_IN, d_out=D_OUT, share=0.5, lost=0.1):
    """Weights, correlated inputs, and what their response lost."""
    mix = np.eye(d_in) + rng.normal(size=(d_in, d_in)) / np.sqrt(d_in)
    X = rng.normal(size=(4 * d_in, d_in)) @ mix
    X /= np.sqrt((X**2).sum(0).mean())
    W = rng.normal(size=(d_in, d_out))
    live = rng.random((d_in, d_out)) < share
    D = lost * rng.normal(size=(len(X), d_out))
    size = rng.random(d_out) + 0.5
    arrays = (np.where(live, W, 0), live, X.T @ X, X.T @ D, size)
    return Problem(*map(jnp.asarray, arrays)), X, D


def loss(given, Q):
    """What is minimised, up to a constant."""
    W, _, H, G, size = map(np.asarray, given)
    E = np.asarray(Q) - W
    return float((size * E * (H @ E - 2 * G)).sum())


STATIC = ("count", "apart", "compensate", "fit")
LANE = jax.jit(codebook.share_lane, static_argnames=STATIC)


def share_lane(given, count, *, apart=False, compensate=True, fit=True):
    return LANE(given, count=count, apart=apart, compensate=compensate, fit=fit)


# ---- values


@pytest.mark.parametrize("units", [1, D_OUT])
def test_nearest_is_the_least_distance(rng, units):
    values = np.sort(rng.normal(size=(units, 7)))
    W = rng.normal(size=(D_IN, D_OUT))
    every = np.broadcast_to(values, (D_OUT, 7))
    want = np.abs(W[:, :, None] - every[None]).argmin(2)
    places = nearest(jnp.asarray(values), jnp.asarray(W))
    np.testing.assert_array_equal(places, want)
    got = chosen(jnp.asarray(values), places)
    np.testing.assert_array_equal(got, every[np.arange(D_OUT), want])


def test_values_in_another_order_are_the_same_weights(rng):
    values = jnp.asarray(rng.normal(size=(D_OUT, 5)))
    places = jnp.asarray(rng.integers(5, size=(D_IN, D_OUT)), jnp.int32)
    new, moved = ascending(values, places)
    assert (np.diff(new, axis=1) > 0).all()
    np.testing.assert_array_equal(chosen(new, moved), chosen(values, places))


def test_k_means_is_that_of_scikit_learn_with_weights_of_samples(rng):
    cluster = pytest.importorskip("sklearn.cluster")
    W, mass = rng.normal(size=400), rng.random(400) ** 2
    first = start(jnp.asarray(W), jnp.asarray(mass), 6)
    ours = k_means(jnp.asarray(W), jnp.asarray(mass), first)
    theirs = cluster.KMeans(
        6, init=np.asarray(first)[:, None], n_init=1, tol=0, max_iter=100
    ).fit(W[:, None], sample_weight=mass)
    np.testing.assert_allclose(ours, np.sort(theirs.cluster_centers_[:, 0]), rtol=1e-9)


@slow
def test_k_means_leaves_out_what_is_no_weight_and_keeps_values_of_none(rng):
    W, mass = jnp.asarray([0.0, 1.0, 2.0, 0.0, 9.0]), jnp.asarray([0.0, 1, 3, 0, 1])
    values = k_means(W, mass, jnp.asarray([-5.0, 2.0, 8.0]))
    np.testing.assert_allclose(values, [-5, 1.75, 9])


def test_values_start_at_equal_distances(rng):
    W, mass = rng.normal(size=50), rng.random(50)
    W[:2], mass[:2] = [-9.0, 9.0], 0.0  # no weights
    left = W[2:]
    want = left.min() + (np.arange(4) + 0.5) / 4 * (left.max() - left.min())
    got = start(jnp.asarray(W), jnp.asarray(mass), 4)
    np.testing.assert_allclose(got, want)


def test_few_weights_are_their_own_values():
    W = jnp.asarray([0.0, 3.0, -1.0, 3.0, 0.0])
    got = start(W, (W != 0).astype(float), 3)
    assert got.tolist() == [-1, 3, 3]


def test_large_weights_are_their_own_values():
    W = jnp.asarray([-2e7, -1e7, 0.0, 1e7], jnp.float32)
    got = start(W, jnp.asarray([1, 1, 0, 1], jnp.float32), 4)
    assert got.tolist() == [-2e7, -1e7, 1e7, 1e7]


# ---- places


def test_later_inputs_make_up_for_each_change(rng, monkeypatch):
    monkeypatch.setattr(codebook, "BLOCK", 8)  # three blocks
    given, _, _ = problem(rng)
    values = np.array([-1.2, -0.3, 0.4, 1.5])
    W, live, H = (np.array(a) for a in given[:3])
    U = np.linalg.cholesky(np.linalg.inv(H)).T
    want = np.zeros(W.shape, int)
    for i, j in np.ndindex(*W.shape):
        want[i, j] = np.abs(W[i, j] - values).argmin()
        new = values[want[i, j]] if live[i, j] else 0
        W[i + 1 :, j] -= (W[i, j] - new) / U[i, i] * U[i, i + 1 :]
    places = jnp.zeros(W.shape, jnp.int32)
    done = codebook.compensated(given, Choice(jnp.asarray(values)[None], places))
    np.testing.assert_array_equal(np.asarray(done.places)[live], want[live])


def test_each_weight_gets_its_best_value_beside_all_others(rng, monkeypatch):
    monkeypatch.setattr(codebook, "BLOCK", 8)
    given, _, _ = problem(rng)
    values = np.array([-1.2, -0.3, 0.4, 1.5])
    W, live, H, G, _ = (np.asarray(a) for a in given)
    before = Choice(jnp.asarray(values)[None], nearest(jnp.asarray(values)[None], W))
    Q = np.array(before.weights(given))
    for i, j in zip(*np.nonzero(live), strict=True):
        tries = np.repeat(Q[:, j][None], 4, 0)
        tries[:, i] = values
        E = tries - W[:, j]
        costs = ((E @ H) * E).sum(1) - 2 * E @ G[:, j]
        Q[i, j] = values[costs.argmin()]
    after = codebook.descended(given, before).weights(given)
    np.testing.assert_allclose(after, Q)
    assert loss(given, after) < loss(given, before.weights(given))


@pytest.mark.parametrize("apart", only_fast([False], [False, True]))
def test_values_are_those_of_least_squares(rng, monkeypatch, apart):
    monkeypatch.setattr(codebook, "PULL", 0.0)
    given, X, D = problem(rng)
    W, live, _, _, size = map(np.asarray, given)
    count = 3
    places = np.arange(W.size).reshape(W.shape) % 5 % count
    first = np.sort(rng.normal(size=(D_OUT if apart else 1, count)))
    done = codebook.fitted(given, Choice(jnp.asarray(first), jnp.asarray(places)))
    columns, sides = [], []
    for j in range(D_OUT):
        onehot = live[:, j, None] * np.eye(count)[places[:, j]]
        columns.append(np.sqrt(size[j]) * X @ onehot)
        sides.append(np.sqrt(size[j]) * (X @ W[:, j] + D[:, j]))
    if apart:
        every = zip(columns, sides, strict=True)
        want = [np.linalg.lstsq(A, b, rcond=None)[0] for A, b in every]
    else:
        A, b = np.concatenate(columns), np.concatenate(sides)
        want = [np.linalg.lstsq(A, b, rcond=None)[0]] * D_OUT
    want = np.stack(want)[np.arange(D_OUT)[None], places]
    got = np.asarray(done.weights(given))
    np.testing.assert_allclose(got, np.where(live, want, 0), atol=1e-3)
    assert (np.diff(np.asarray(done.values), axis=1) >= 0).all()


@slow
def test_brute_force_finds_little_better(rng):
    ratios, wins = [], 0
    for _ in range(24):
        given, _, _ = problem(rng, d_in=5, d_out=1, share=1.0, lost=0.0)
        values = np.asarray(codebook.first_values(given, 3, False))[0]
        every = np.array(list(itertools.product(values, repeat=5)))
        E = every - np.asarray(given.W)[:, 0]
        costs = ((E @ np.asarray(given.H)) * E).sum(1) * float(given.size[0])
        ours = loss(given, share_lane(given, 3, fit=False))
        plain = loss(given, share_lane(given, 3, compensate=False, fit=False))
        ratios.append(ours / costs.min())
        wins += ours < plain
        assert costs.min() - 1e-9 <= ours <= plain + 1e-9
    assert np.median(ratios) < 1.0001 and max(ratios) < 3
    assert wins >= 3


# ---- a lane


@APART
def test_each_step_makes_the_loss_smaller(rng, apart):
    given, _, _ = problem(rng)
    ways = [(False, False), (False, True), (True, False), (True, True)]
    losses = [
        loss(given, share_lane(given, 3, apart=apart, compensate=c, fit=f))
        for c, f in ways
    ]
    plain, fit, compensated, both = losses
    assert both < fit < plain
    assert both < compensated < plain


@APART
def test_zeros_stay_and_values_are_few(rng, apart):
    given, _, _ = problem(rng)
    new = np.asarray(share_lane(given, 3, apart=apart))
    assert ((new != 0) == given.live).all()
    groups = new.T if apart else [new]
    assert all(len(np.unique(g[g != 0])) <= 3 for g in groups)
    assert apart == (len(np.unique(new[new != 0])) > 3)


def test_shared_weights_stay_in_every_bit(rng):
    given, _, _ = problem(rng, lost=0.0)
    new = share_lane(given, 3)
    again = share_lane(given._replace(W=new), 3)
    np.testing.assert_array_equal(new, again)


@slow
def test_lanes_together_are_lanes_alone(rng):
    several = [problem(rng)[0] for _ in range(3)]
    stack = jax.tree.map(lambda *a: jnp.stack(a), *several)

    def one(lane):
        return codebook.share_lane(
            lane, count=3, apart=False, compensate=True, fit=True
        )

    together = jax.jit(jax.vmap(one))(stack)
    alone = np.stack([share_lane(lane, 3) for lane in several])
    np.testing.assert_allclose(together, alone, atol=1e-9)


# ---- codes


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("traced", [False, True])
def test_codes_say_the_leaf(rng, apart, traced):
    leaf = np.array(rng.choice([0, 0.5, -1.5, 3], size=(2, 4, 5)), np.float32)
    index = np.arange(40).reshape(2, 4, 5)
    group = groups_of([index], leaf.shape, apart)
    assert group.shape == ((2, 1, 5) if apart else (2, 1, 1))
    if traced:
        codes = jax.jit(lambda a: codes_of(a, group, 3))(leaf)
    else:
        codes = codes_of(leaf, group, 3)
    assert codes.codes.dtype == np.uint8 and codes.codebook.dtype == np.float32
    assert ((codes.codes == 0) == (leaf == 0)).all()
    np.testing.assert_array_equal(codes.decode(), leaf)
    lanes = codes.codebook.reshape(2, -1, codes.codebook.shape[1])[:, 0]
    for lane, book in zip(leaf, lanes, strict=True):
        mine = lane[:, 0] if apart else lane
        want = np.unique(mine[mine != 0])
        assert book[: len(want)].tolist() == want.tolist()
        assert not np.any(book[len(want) :])


def test_a_leaf_with_other_entries_and_two_sites(rng):
    leaf = rng.choice([1.0, 2.0, 0.0], size=(4, 6))
    places = np.arange(24).reshape(4, 6)
    sites = [places[None, :, :2], places[None, :, 2:5]]
    group = groups_of(sites, leaf.shape, False)
    assert group.tolist() == [[0, 0, 1, 1, 1, -1]]
    codes = codes_of(leaf, group, 2)
    np.testing.assert_array_equal(codes.decode()[:, :5], leaf[:, :5])
    assert (codes.decode()[:, 5] == 0).all()


def test_more_values_than_codes_are_no_codes(rng):
    group = groups_of([np.arange(6).reshape(1, 2, 3)], (2, 3), False)
    assert codes_of(rng.normal(size=(2, 3)), group, 3) is None
    assert codes_of(np.full((2, 3), np.nan), group, 3) is None
    nothing = codes_of(np.zeros((2, 3)), group, 3)
    assert (nothing.decode() == 0).all()


@slow
def test_traced_groups_with_too_many_values_say_so(rng):
    leaf = np.concatenate([rng.normal(size=(1, 20, 15)), np.ones((1, 20, 15))])
    leaf = leaf.astype(np.float32) * (rng.random(leaf.shape) < 0.9)
    group = groups_of([np.arange(600).reshape(2, 20, 15)], leaf.shape, False)
    ranks = jax.jit(lambda a: ranks_of(a, group))(leaf)
    np.testing.assert_array_equal(ranks, ranks_of(leaf, group))
    assert int(ranks[0].max()) == (leaf[0] != 0).sum() > 255
    codes = jax.jit(lambda a: codes_of(a, group, 3))(leaf)
    assert codes.codes.max() == 3
    assert codes.codebook[1].tolist() == [1, 0, 0]
    decoded = np.asarray(codes.decode())
    np.testing.assert_array_equal(decoded[1], leaf[1])
    assert np.isnan(decoded[0][leaf[0] != 0]).all()
    assert (decoded[0][leaf[0] == 0] == 0).all()


SCRIPT = """
import jax
import numpy as np

from nettrim_jax.methods.codes import codes_of, groups_of

explicit = jax.sharding.AxisType.Explicit
mesh = jax.make_mesh((2,), ("a",), axis_types=(explicit,))
every = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a"))
leaf = jax.device_put(np.arange(8.0, dtype="float32").reshape(2, 4) % 3, every)
assert len(leaf.devices()) == 2
group = groups_of([np.arange(8).reshape(1, 2, 4)], (2, 4), False)
assert codes_of(leaf, group, 1) is None
codes = codes_of(leaf, group, 2)
assert isinstance(codes.codes, np.ndarray)
assert (codes.decode() == np.asarray(leaf)).all()
"""


@slow
def test_known_values_are_read_on_the_host_from_any_device():
    devices.run(SCRIPT, devices=2)


# ---- settings


@pytest.mark.parametrize("bits", [np.int8(8), np.uint8(8), np.int64(8)])
def test_integers_of_numpy_are_integers(bits):
    assert type(Codebook(bits).bits) is int and Codebook(bits) == Codebook(8)


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 0},
        {"bits": 9},
        {"bits": 2.0},
        {"bits": True},
        {"per": "layer"},
        {"bias": "moved"},
        {"compensate": 1},
        {"fit": None},
    ],
    ids=str,
)
def test_settings_out_of_range(settings):
    with pytest.raises(MethodError, match=rf"Codebook\({[*settings][0]}=.*expected"):
        Codebook(**settings)


@slow
def test_it_is_a_method_of_prune(rng):
    params = jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(50, 8)), jnp.float32)
    pruned = nt.prune(params, lambda w, x: x @ w, x, method=Codebook(3))
    assert len(np.unique(pruned.params)) <= 7
    assert pruned.mask.all()
