"""``trim``: rounds of choosing, removing and training, counted, resumed and refused."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import structures
from marks import slow
from models import data, normal, relaxed

import nettrim_jax as nt
from nettrim_jax import trimming
from nettrim_jax.results import BatchError, MethodError, ParamsError

PARAMS = {"a": normal(6, 16, seed=1), "b": normal(16, 12, seed=2), "c": normal(12, 3)}
X = data(40, 6)
QUARTER = {"a|b": nt.Magnitude(nt.Neurons(0.25)), "c": None}
# whose choice depends on the rows that are drawn
DRAWN = {"a|b": nt.Wanda(nt.Neurons(0.25)), "c": None}
UNITS = nt.Units(0.25, by=nt.L2(), refit=False)
SIZES = [(16, 12), (12, 9), (9, 7), (7, 5)]  # of a and b, by round


@relaxed
def apply_fn(p, x):
    return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]


TARGET = apply_fn(PARAMS, X)


def loss(params, function):
    return jnp.mean((function(params, X) - TARGET) ** 2)


def train(params, function):
    """One step of gradient descent."""
    slope = jax.grad(lambda p: loss(p, function))(params)
    return jax.tree.map(lambda a, g: a - jnp.float32(1e-4) * g, params, slope)


def trim(params=PARAMS, function=apply_fn, batch=X, method=QUARTER, **options):
    return nt.trim(params, function, batch, method, **({"until": 3} | options))


def assert_same(one, other):
    """Two runs, in every bit."""
    assert str(one) == str(other)
    assert len(one.rounds) == len(other.rounds)
    for a, b in zip(one.rounds, other.rounds, strict=True):
        for name in ("params", "kept"):
            pair = getattr(a, name), getattr(b, name)
            jax.tree.map(np.testing.assert_array_equal, *pair)
        for name in ("number", "units", "deviation", "metric_before", "metric"):
            assert getattr(a, name) == getattr(b, name), name


# ---- what the records say


@slow
def test_a_table_counts_what_is_there():
    trimmed = trim(train=train, metric=lambda p, f: -loss(p, f))
    every = [trimmed.start, *trimmed.rounds]
    assert [one.number for one in every] == [0, 1, 2, 3]
    total = 6 * 16 + 16 * 12 + 12 * 3
    lines = str(trimmed).splitlines()
    assert lines[0].split()[:3] == ["round", "units", "parameters"]
    for one, (a, b), line in zip(every, SIZES, lines[1:], strict=False):
        size = 6 * a + a * b + b * 3
        assert one.units == {"a": a, "b": b}
        assert one.parameters == (total, size)
        assert one.parameters.share == size / total
        assert one.multiply_adds == (40 * total, 40 * size)
        shapes = jax.tree.map(jnp.shape, one.params)
        assert shapes == {"a": (6, a), "b": (a, b), "c": (b, 3)}
        cells = line.split()
        assert cells[:3] == [str(one.number), str(a + b), str(size)]
        assert cells[3] == f"{size / total:.1%}" and cells[4] == f"{40 * size:,}"
        assert float(cells[-1]) == pytest.approx(one.metric, rel=1e-3)
        assert one.metric == pytest.approx(-float(loss(one.params, one.apply_fn)))
    assert "a, neuron: 16 -> 12 -> 9 -> 7" in lines
    assert "b, neuron: 12 -> 9 -> 7 -> 5" in lines
    assert lines[-1] == "stopped: until=3" and trimmed.stop == "until=3"
    assert all(len(line) <= 100 for line in lines)
    assert trimmed.last is trimmed.rounds[-1]
    assert trimmed.params is trimmed.last.params
    assert trimmed.apply_fn is trimmed.last.apply_fn
    assert trimmed.kept is trimmed.last.kept


def test_deviation_and_metric_are_those_before_training():
    seen = []

    def watched(params, function):
        seen.append((params, function))
        return train(params, function)

    trimmed = trim(train=watched, metric=lambda p, f: -loss(p, f), until=2)
    assert len(seen) == 2
    for before, (params, function), one in zip(
        [trimmed.start, *trimmed.rounds], seen, trimmed.rounds, strict=False
    ):
        old = np.asarray(before.apply_fn(before.params, X), float)
        new = np.asarray(function(params, X), float)
        moved = np.linalg.norm(new - old) / np.linalg.norm(old)
        assert one.deviation == pytest.approx(moved, rel=1e-4) and moved > 0.01
        assert one.metric_before == -float(loss(params, function))
        assert one.metric > one.metric_before


@pytest.mark.parametrize("method", [DRAWN, pytest.param(UNITS, marks=slow)])
def test_kept_is_of_the_given_network(method):
    trimmed = trim(method=method)
    structure = trimmed.start.structure
    for one in (trimmed.start, *trimmed.rounds):
        gone = {
            group.name: np.setdiff1d(range(group.count), one.kept[group.name])
            for group in structure.groups
        }
        full = structures.zeros(PARAMS, structure, gone)
        expected = apply_fn(full, X[:7])
        got = one.apply_fn(one.params, X[:7])
        assert structures.distance(got, expected) < 1e-5
        small = nt.shrink(PARAMS, apply_fn, X, gone)
        jax.tree.map(np.testing.assert_array_equal, one.params, small.params)
    kept = [one.kept["a"] for one in trimmed.rounds]
    assert all(set(new) < set(old) for old, new in itertools.pairwise(kept))


def test_trees_beside_the_params_are_cut_over_all_rounds():
    trimmed = trim()
    optimizer = optax.adam(1e-3)
    state = trimmed.cut(optimizer.init(PARAMS))
    shapes = jax.tree.map(jnp.shape, optimizer.init(trimmed.params))
    assert jax.tree.map(jnp.shape, state) == shapes
    jax.tree.map(np.testing.assert_array_equal, trimmed.cut(PARAMS), trimmed.params)
    with pytest.raises(MethodError, match="no array of this tree"):
        trimmed.rounds[0].cut({"x": np.zeros(3)})


@slow
@pytest.mark.parametrize("name", ["conv-flatten", "scan-remat", "gpt", "resnet-a"])
def test_networks_of_other_kinds(name):
    net = structures.get(name)
    method = nt.Magnitude(nt.Neurons(0.4))
    trimmed = nt.trim(net.params, net.apply_fn, net.batch, method, until=2)
    structure = trimmed.start.structure
    assert trimmed.rounds and structure.groups
    for group in structure.groups:
        kept = trimmed.kept[group.name]
        assert kept.shape[:-1] in ((), group.steps)
        assert trimmed.last.units[group.name] == kept.shape[-1]
    out = trimmed.apply_fn(trimmed.params, net.batch)
    expected = jax.eval_shape(net.apply_fn, net.params, net.batch)
    assert jax.tree.map(jnp.shape, out) == jax.tree.map(jnp.shape, expected)


# ---- until, schedules, going on


def test_until_is_asked_of_every_round():
    seen = []

    def until(one):
        seen.append(one.number)
        return one.parameters.share < 0.5

    trimmed = trim(until=until)
    assert seen == [0, 1, 2]
    shares = [one.parameters.share for one in trimmed.rounds]
    assert shares[0] >= 0.5 > shares[1]
    assert trimmed.stop == "until(round) is true of round 2"
    whole = trim(until=2)
    jax.tree.map(np.testing.assert_array_equal, whole.params, trimmed.params)
    assert trim(until=lambda one: np.bool_(one.number == 1)).last.number == 1
    assert trim(until=lambda one: jnp.asarray(one.number == 1)).last.number == 1


def test_no_round_at_all():
    trimmed = trim(until=0)
    assert trimmed.rounds == () and trimmed.params is PARAMS
    assert trimmed.apply_fn is apply_fn and trimmed.stop == "until=0"
    assert trim(until=lambda one: True).last.number == 0


def test_a_schedule_has_the_number_of_the_round():
    asked = []

    def method(number, function):
        asked.append(number)
        return {"a": nt.Magnitude(nt.Neurons(0.5 / number)), ".*": None}

    trimmed = trim(method=method, until=2)
    assert asked == [1, 2]
    assert [one.units["a"] for one in trimmed.rounds] == [8, 6]
    again = trim(*going_on(trimmed.rounds[0]), method=method, after=trimmed.rounds[0])
    assert asked == [1, 2, 2, 3] and again.rounds[1].units["a"] == 6


def test_a_loss_of_the_network_of_the_round():
    calls = []

    def method(number, function):
        def off(params, x):
            calls.append(number)
            return jnp.mean((function(params, x) - 2 * TARGET) ** 2)

        return {"a": nt.Taylor(nt.Neurons(0.25), off), ".*": None}

    class Strict:
        """A network that takes arrays of its own sizes only, as modules do."""

        def __call__(self, p, x):
            assert p["a"].shape == (6, 16)
            return apply_fn(p, x)

    trimmed = trim(function=Strict(), method=method, until=2)
    assert [one.units["a"] for one in trimmed.rounds] == [12, 9]
    assert set(calls) == {1, 2}


def going_on(one):
    return one.params, one.apply_fn


@slow
@pytest.mark.parametrize(
    "method",
    [pytest.param(QUARTER, marks=slow), DRAWN, pytest.param(UNITS, marks=slow)],
)
def test_it_goes_on_from_any_round(method):
    options = {"method": method, "train": train, "metric": lambda p, f: -loss(p, f)}
    options["rows"] = 9
    whole = trim(**options, key=5)
    assert_same(whole, trim(**options, key=jax.random.key(5)))
    for one in (whole.start, *whole.rounds):
        assert_same(whole, trim(*going_on(one), **options, key=5, after=one))
    # as they come back from a file
    one = whole.rounds[0]
    stored = jax.tree.map(np.asarray, one.params)
    again = trim(stored, one.apply_fn, **options, key=5, after=one)
    assert_same(whole, again)


def test_rounds_draw_anew(monkeypatch):
    keys = []

    def watched(*args, key, **options):
        keys.append(jax.random.key_data(key).tolist())
        return nt.prune(*args, key=key, **options)

    monkeypatch.setattr(trimming, "prune", watched)
    whole = trim(key=3)
    assert len({tuple(key) for key in keys}) == 3
    one = whole.rounds[1]
    trim(*going_on(one), key=3, after=one)
    trim(key=4, until=1)
    assert keys[3] == keys[2] and keys[4] not in keys[:4]


def test_params_may_be_others_of_the_same_shapes():
    one = trim(until=1).rounds[0]
    other = jax.tree.map(lambda a: 2 * a, one.params)
    again = trim(other, one.apply_fn, after=one, until=2)
    assert again.rounds[0].params is other and again.last.units == {"a": 9, "b": 7}
    # and the function may be the user's own, which takes these arrays
    own, whole = trim(one.params, apply_fn, after=one, until=2), trim(until=2)
    jax.tree.map(np.testing.assert_array_equal, own.kept, whole.kept)
    jax.tree.map(np.testing.assert_array_equal, own.params, whole.params)


# ---- data, and other arguments of prune


class Loader:
    """Batches, from the first one at each ``iter``."""

    def __init__(self):
        self.times = 0

    def __iter__(self):
        self.times += 1
        return iter([X[:20], X[20:]])


@slow
def test_a_loader_is_read_in_every_round():
    loader = Loader()
    method = {"a|b": nt.Wanda(nt.Neurons(0.25)), "c": None}
    trimmed = trim(batch=loader, method=method, until=2)
    assert trimmed.last.units == {"a": 9, "b": 7} and loader.times >= 3
    assert trimmed.last.multiply_adds.after == 20 * (6 * 9 + 9 * 7 + 7 * 3)
    with pytest.raises(BatchError, match="an iterator, which can be read only once"):
        trim(batch=iter(Loader()))


@slow
def test_arguments_of_prune_are_passed_on():
    trimmed = trim(method=nt.Magnitude(nt.Neurons(0.25)), exclude="b|c", until=1)
    assert trimmed.last.units == {"a": 12, "b": 12}
    cascade = nt.Reconstruct(nt.Neurons(0.25))
    options = {"method": {"a|b": cascade, "c": None}, "until": 1, "mode": "cascade"}
    assert trim(**options, rows=30).last.units == {"a": 12, "b": 9}
    with pytest.raises(TypeError, match="unexpected keyword argument 'moed'"):
        trim(moed="cascade")


def test_a_mask_is_cut_with_the_params():
    mask = jax.tree.map(lambda a: np.ones(a.shape, bool), PARAMS)
    mask["a"][0] = False
    trimmed = trim(within=mask, until=2)
    assert trimmed.last.units == {"a": 9, "b": 7}
    assert (np.asarray(trimmed.params["a"])[0] == 0).all()


# ---- where nothing is removed


def test_a_round_that_removes_nothing_is_the_end():
    method = {"a": nt.Magnitude(nt.Neurons(0.9)), ".*": None}
    with pytest.warns(UserWarning, match="round 3 removed nothing") as caught:
        trimmed = trim(method=method, until=9)
    assert [one.units["a"] for one in trimmed.rounds] == [2, 1]
    assert trimmed.stop.startswith("round 3 removed nothing")
    assert "stopped: round 3 removed" in str(trimmed)
    assert caught[0].filename == __file__


def test_weights_without_units_are_told():
    method = nt.Magnitude(nt.Sparsity(0.3))
    with pytest.warns(UserWarning, match="not all of a unit that can go; take a"):
        trimmed = trim(method=method, train=lambda p, f: pytest.fail("trained"))
    assert trimmed.rounds == () and trimmed.params is PARAMS
    with pytest.warns(UserWarning, match="the method removed no weight"):
        trim(method=nt.Magnitude(nt.Sparsity(0.0)))


# ---- refusals


X_BAD = {
    "until": ({"until": 2.5}, r"trim\(until=2.5\): expected the number of the last"),
    "negative": ({"until": -1}, r"trim\(until=-1\): expected the number"),
    "flag": ({"until": True}, r"trim\(until=True\): expected the number"),
    "until(round)": ({"until": lambda r: None}, r"from until\(round\), got None; retu"),
    "array": ({"until": lambda r: X > 0}, r"True or False .* got bool \[40, 6\]"),
    "train": ({"train": 3}, r"trim\(train=3\): expected a function train\(params, app"),
    "metric": ({"metric": 3}, r"trim\(metric=3\): expected a function metric\("),
    "no number": (
        {"metric": lambda p, f: f(p, X)},
        r"trim\(metric\): expected one number .* got float32 \[40, 3\]",
    ),
    "none": ({"metric": lambda p, f: None}, r"trim\(metric\): .* got None"),
    "after": ({"after": 1}, r"trim\(after=1\): expected a round, such as trimmed\.ro"),
    "key": ({"key": "a"}, r"trim\(key='a'\): expected an integer or a PRNG key"),
}


@pytest.mark.parametrize("case", X_BAD)
def test_refusals(case):
    options, says = X_BAD[case]
    with pytest.raises(MethodError, match=says):
        trim(**options)


def test_warnings_of_prune_are_of_the_users_line():
    @relaxed
    def function(p, x):
        return jnp.log(-jnp.abs(apply_fn(p, x)) - 1)

    with pytest.warns(UserWarning, match="outputs on this batch hold NaN") as caught:
        nt.prune(PARAMS, function, X, method=QUARTER)
        nt.trim(PARAMS, function, X, QUARTER, until=1)
    assert [one.filename for one in caught] == [__file__] * 2


def test_until_is_required():
    with pytest.raises(TypeError, match="until"):
        nt.trim(PARAMS, apply_fn, X, QUARTER)


BAD_TRAINING = {
    "shape": (
        lambda p: {**p, "b": p["b"][:, 1:]},
        r"train returned b as float32 \[12, 8\]; expected float32 \[12, 9\]; retu",
    ),
    "dtype": (
        lambda p: {**p, "c": p["c"].astype("float64")},
        r"returned c as float64 \[9, 3\]; expected float32 \[9, 3\]",
    ),
    "forgotten": (lambda p: None, r"other arrays \(NoneType\): a, b, c missing"),
    "pair": (lambda p: (p, 1), r"\(tuple\): a, b, c missing; 0/a, 0/b, 0/c new; exp"),
    "full": (lambda p: PARAMS, r"returned a as float32 \[6, 16\]; expected float32 \["),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_training_that_returns_something_else(case):
    change, says = BAD_TRAINING[case]
    with pytest.raises(ParamsError, match=says) as caught:
        trim(train=lambda params, function: change(params))
    assert caught.value.__notes__[0].startswith("in round 1 of nettrim_jax.trim")


def test_params_that_are_not_of_the_round():
    one = trim(until=1).rounds[0]
    says = r"trim\(after=r\): got a as float32 \[6, 16\]; expected float32 \[6, 12\]"
    with pytest.raises(ParamsError, match=says):
        trim(PARAMS, apply_fn, after=one)


def test_errors_have_the_round():
    def broken(params, function):
        if params["a"].shape[1] < 12:
            raise RuntimeError("out of memory")
        return params

    stored = []
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        trim(train=broken, until=lambda one: stored.append(one) or False)
    assert re.match("in round 2 of nettrim_jax.trim", caught.value.__notes__[0])
    assert [one.number for one in stored] == [0, 1]
    again = trim(*going_on(stored[1]), after=stored[1])
    assert_same(again, trim())
