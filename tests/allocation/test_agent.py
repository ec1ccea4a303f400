"""The agent on whole networks: what goes, what stays, and the bound in between."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import structures
from jax.core import Tracer
from marks import only_fast, slow
from sklearn.datasets import load_digits

import nettrim_jax as nt
from nettrim_jax._trees import Filler, is_array
from nettrim_jax.allocation import agent
from nettrim_jax.methods import tryandlearn
from nettrim_jax.results import MethodError
from nettrim_jax.structure import cutting

UNITS = 16


def logits(params, batch):
    hidden = jax.nn.relu(batch[0] @ params["a"] + params["bias"][None])
    return hidden @ params["b"]


def accuracy(params, batch):
    return jnp.mean(jnp.argmax(logits(params, batch), 1) == batch[1], dtype="float32")


@functools.cache
def half_useless(seed=0):
    """Params and a batch; half of the hidden units are read by nothing."""
    rng = np.random.default_rng(seed)
    params = {
        "a": rng.normal(size=(10, UNITS)),
        "bias": rng.normal(size=UNITS),
        "b": rng.normal(size=(UNITS, 4)),
    }
    params["b"][UNITS // 2 :] = 0
    params = {k: jnp.asarray(a, "float32") for k, a in params.items()}
    x = jnp.asarray(rng.normal(size=(400, 10)), "float32")
    return params, (x, jnp.argmax(logits(params, (x, None)), 1))


def choose(params, batch, apply_fn, metric, bound, **settings):
    """The units to remove, and what the metric loses by their zeros."""
    found = nt.units(params, apply_fn, batch)
    leaves = [leaf for leaf in jax.tree.leaves(params) if is_array(leaf)]
    method = nt.TryAndLearn(metric, bound, **settings)
    remove = agent.choose(method, leaves, found, batch, Filler(params))
    zeros = structures.zeros(params, found, remove)
    return remove, float(metric(params, batch)) - float(metric(zeros, batch))


# ---- what goes and what stays


@pytest.mark.parametrize("seed", only_fast([1], [0, 1, 2]))
def test_what_is_useless_goes_and_nothing_else(seed):
    params, batch = half_useless(seed)
    remove, fall = choose(params, batch, logits, accuracy, 1e-3)
    gone = remove["a"]
    assert gone.min() >= UNITS // 2
    assert len(gone) >= 0.75 * UNITS // 2
    assert fall == 0


def test_as_a_method_it_zeroes_the_same_units():
    params, batch = half_useless(0)
    method = nt.TryAndLearn(accuracy, 0.05, steps=20)
    remove, fall = choose(params, batch, logits, accuracy, 0.05, steps=20)
    pruned = nt.prune(params, logits, batch, method=method)
    gone = np.flatnonzero(~np.asarray(pruned.params["b"]).any(1))
    assert set(remove["a"]) <= set(gone)
    assert not np.asarray(pruned.params["a"])[:, remove["a"]].any()
    assert f"a: {len(remove['a'])} of {UNITS} neurons removed" in pruned.report.notes
    assert float(accuracy(params, batch) - accuracy(pruned.params, batch)) <= 0.05
    # all else stays as trained
    for name, new in pruned.params.items():
        new, old = np.asarray(new), np.asarray(params[name])
        assert (new[new != 0] == old[new != 0]).all()
    with pytest.raises(MethodError, match="one batch, got a loader of 2"):
        nt.prune(params, logits, iter([batch, batch]), method=method)
    with pytest.raises(MethodError, match="give other layers None"):
        rest = nt.Magnitude(nt.Sparsity(0.5))
        nt.prune(params, logits, batch, method={"a": method, "b": rest})


def table(params, batch):
    """A metric in which each unit counts for itself."""
    return jnp.sum(jnp.where(jnp.abs(params["a"]).max(0) > 0, batch[0][0, :6], 0))


@slow
def test_small_groups_have_the_best_choice_there_is(rng):
    """Against all choices of six units."""
    params = {"a": jnp.ones((3, 6)), "b": jnp.ones((6, 2))}
    for bound in (0.2, 0.5, 1.0):
        worth = rng.random(6)
        batch = (jnp.tile(jnp.asarray(worth)[None], (4, 1)),)

        def apply_fn(params, batch):
            return jax.nn.relu(batch[0][:, :3] @ params["a"]) @ params["b"]

        remove, fall = choose(params, batch, apply_fn, table, bound)
        fits = [
            sum(some)
            for some in itertools.product([0, 1], repeat=6)
            if worth @ np.array(some) <= bound and sum(some) < 6
        ]
        assert len(remove.get("a", ())) == max(fits)
        assert fall <= bound


def test_one_unit_stays():
    params, batch = half_useless()
    remove, _ = choose(params, batch, logits, lambda p, b: jnp.sum(p["a"] * 0), 1.0)
    assert len(remove["a"]) == UNITS - 1


def test_nothing_goes_where_all_matters():
    params, batch = half_useless()
    remove, fall = choose(
        params,
        batch,
        logits,
        lambda p, b: -jnp.sum(p["bias"] == 0, dtype="float32"),
        0.5,
    )
    assert remove == {} and fall == 0


def test_bound_is_kept_and_larger_ones_remove_more():
    params, batch = half_useless()
    counts = []
    for bound in (0.01, 0.1, 0.3):
        settings = {"steps": 30, "samples": 4}
        remove, fall = choose(params, batch, logits, accuracy, bound, **settings)
        assert fall <= bound
        counts.append(len(remove["a"]))
    assert 0 < counts[0] < counts[1] < counts[2]


def digits(seed=0, steps=200):
    """A trained network of two hidden layers, with images that it was not shown."""
    images, labels = load_digits(return_X_y=True)
    x = jnp.asarray(images / 16, "float32")
    y = jnp.asarray(labels)
    keys = jax.random.split(jax.random.key(seed), 3)
    sizes = [(64, 24), (24, 16), (16, 10)]
    params = [
        jax.random.normal(key, size, "float32") * (2 / size[0]) ** 0.5
        for key, size in zip(keys, sizes, strict=True)
    ]

    def loss(params):
        logs = jax.nn.log_softmax(dense(params, (x[:1000],)))
        return -jnp.mean(jnp.take_along_axis(logs, y[:1000, None], axis=1))

    def step(params, _):
        return jax.tree.map(
            lambda a, g: a - 0.3 * g, params, jax.grad(loss)(params)
        ), None

    run = jax.jit(lambda params: jax.lax.scan(step, params, length=steps)[0])
    return run(params), (x[1000:1300], y[1000:1300])


def dense(params, batch):
    x = batch[0]
    for w in params[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ params[-1]


def right(params, batch):
    return jnp.mean(jnp.argmax(dense(params, batch), 1) == batch[1], dtype="float32")


@slow
def test_bounds_of_a_trained_network():
    params, batch = digits()
    assert right(params, batch) > 0.85
    counts = []
    for bound in (0.01, 0.04, 0.16):
        settings = {"steps": 60, "samples": 8}
        remove, fall = choose(params, batch, dense, right, bound, **settings)
        assert fall <= bound
        counts.append(sum(map(len, remove.values())))
        small = nt.shrink(params, dense, batch, remove)
        y = small.apply_fn(small.params, batch)
        lost = right(params, batch) - jnp.mean(
            jnp.argmax(y, 1) == batch[1], dtype="float32"
        )
        assert float(lost) <= bound + 1e-6
    assert 0 < counts[0] < counts[1] < counts[2]


# ---- the same answer


def test_same_seed_has_the_same_answer():
    params, batch = half_useless()
    settings = {"steps": 30, "samples": 4}
    first, again, other = (
        choose(params, batch, logits, accuracy, 0.1, seed=seed, **settings)[0]["a"]
        for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@slow
def test_one_program_per_group():
    params, batch = half_useless()
    traces = []

    def metric(params, batch):
        if isinstance(params["a"], Tracer):
            traces.append(1)
        return accuracy(params, batch)

    before = tryandlearn.learned._cache_size()
    for bound, rate, seed in ((0.1, 0.01, 0), (0.05, 0.02, 1), (0.2, 0.01, 2)):
        settings = {"steps": 30, "samples": 4, "rate": rate, "seed": seed}
        choose(params, batch, logits, metric, bound, **settings)
    other = {name: 2 * a for name, a in params.items()}
    choose(other, batch, logits, metric, 0.1, steps=30, samples=4)
    assert tryandlearn.learned._cache_size() == before + 1
    # each call looks once whether it can be traced, which JAX remembers
    assert len(traces) <= 3


@slow
def test_a_metric_that_cannot_be_traced_gives_the_same():
    params, batch = half_useless()

    def outside(params, batch):
        return float(np.mean(np.asarray(accuracy(params, batch))))

    class Unhashable:
        __hash__ = None

        def __call__(self, params, batch):
            return accuracy(params, batch)

    settings = {"steps": 20, "samples": 4}
    traced, _ = choose(params, batch, logits, accuracy, 0.05, **settings)
    for metric in (outside, Unhashable()):
        called, fall = choose(params, batch, logits, metric, 0.05, **settings)
        assert fall <= 0.05
        assert np.array_equal(traced["a"], called["a"])


# ---- the bound, whatever the program said


def test_bound_is_that_of_the_metric_as_it_is_called():
    params, batch = half_useless()

    def metric(params, batch):
        left = jnp.sum(jnp.abs(params["a"]).max(0) > 0, dtype="float32")
        return left * 0 + UNITS if isinstance(left, Tracer) else left

    # the program sees no unit matter; outside of it each of them counts as one
    remove, fall = choose(params, batch, logits, metric, 3.5, steps=20, samples=4)
    assert len(remove["a"]) == fall == 3


@slow
def test_a_choice_that_gives_no_number_is_not_taken():
    params, batch = half_useless()

    def metric(params, batch):
        lost = params["bias"][0] == 0
        return jnp.where(lost, jnp.nan, accuracy(params, batch))

    remove, fall = choose(params, batch, logits, metric, 0.5)
    assert 0 not in remove["a"] and len(remove["a"]) > 0
    assert fall <= 0.5


# ---- groups of every kind

FAST = ["mlp"]


@pytest.mark.parametrize("name", only_fast(FAST, structures.NETS))
def test_units_of_any_network_are_zero_and_can_be_removed(name):
    net = structures.get(name)

    def metric(params, batch):
        with jax.numpy_dtype_promotion("standard"):
            off = [
                jnp.sum((a - b) ** 2) / jnp.sum(b**2)
                for a, b in zip(
                    jax.tree.leaves(net.apply_fn(params, batch)), expected, strict=True
                )
                if jnp.issubdtype(b.dtype, jnp.floating)
            ]
            return -jnp.sqrt(sum(off)).astype("float32")

    expected = jax.tree.leaves(jax.jit(net.apply_fn)(net.params, net.batch))
    given = net.params, net.batch, net.apply_fn
    remove, fall = choose(*given, metric, 0.8, steps=4, samples=3)
    assert 0 < fall <= 0.8 + 1e-5
    small = nt.shrink(net.params, net.apply_fn, net.batch, remove)
    assert small.report.parameters.after < small.report.parameters.before


def test_masks_are_zeros_in_the_leaves(rng):
    for name in ("scan-remat", "transformer"):
        net = structures.get(name)
        found = nt.units(net.params, net.apply_fn, net.batch)
        remove = structures.some(found, rng)
        leaves = [leaf for leaf in jax.tree.leaves(net.params) if is_array(leaf)]
        for group in found.groups:
            keep = np.ones((int(np.prod(group.steps)), group.count), bool)
            np.put_along_axis(keep, remove[group.name].reshape(len(keep), -1), 0, 1)
            places = cutting.places_of(group, leaves)
            leaves = cutting.zeroed(leaves, places, keep)
        expected = jax.tree.leaves(structures.zeros(net.params, found, remove))
        for ours, theirs in zip(leaves, expected, strict=True):
            assert np.array_equal(np.asarray(ours), np.asarray(theirs))
            assert ours.dtype == theirs.dtype


def test_filters_are_incoming_weights_standardised(rng):
    params, batch = half_useless()
    [group] = nt.units(params, logits, batch).groups
    got = agent.filters_of(group, jax.tree.leaves(params))
    a = np.asarray(params["a"], float).T
    expected = (a - a.mean(0)) / a.std(0)
    np.testing.assert_allclose(got, expected[None], atol=1e-5)


# ---- what the user gives


@pytest.mark.parametrize("value", [np.nan, None, "much"], ids=str)
def test_a_metric_without_a_number_is_refused(value):
    params, batch = half_useless()
    match = r"TryAndLearn\(metric\): expected a finite number from metric"
    with pytest.raises(MethodError, match=match):
        choose(params, batch, logits, lambda *_: value, 0.1)


def test_values_must_be_known():
    params, batch = half_useless()
    with pytest.raises(MethodError, match="TryAndLearn: .* concrete values"):
        jax.jit(lambda p: choose(p, batch, logits, accuracy, 0.1)[1])(params)
