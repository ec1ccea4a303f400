"""Budgets of whole networks: the choice against brute force, and what prune keeps."""

import dataclasses
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow

import nettrim_jax as nt
from nettrim_jax.allocation import budget as budgets
from nettrim_jax.allocation.budget import Reading
from nettrim_jax.allocation.curves import Point
from nettrim_jax.calibration import splits as dealing
from nettrim_jax.results import BatchError, MethodError


def curves(rng, layers, points):
    """Random curves, falling in weights on the whole and rising in cost."""
    out = []
    for _ in range(layers):
        size = int(rng.integers(20, 200))
        cost = np.sort(rng.exponential(size=points)) ** 2
        left = np.sort(rng.integers(0, size, points))[::-1]
        swap = rng.permutation(points) if rng.random() < 0.3 else np.arange(points)
        out.append(
            [Point(size, 0.0, 0.0)]
            + [
                Point(int(left[i]), float(cost[j]), float(i + 1))
                for i, j in enumerate(swap)
            ]
        )
    return out


def total(curves, choice):
    picked = [curve[i] for curve, i in zip(curves, choice, strict=True)]
    return sum(p.nonzeros for p in picked), sum(p.cost for p in picked)


def every(curves):
    return [total(curves, c) for c in itertools.product(*map(range, map(len, curves)))]


# ---- the choice, as numbers


@pytest.mark.parametrize("seed", range(20))
def test_chain_is_best_at_its_own_cost(seed):
    some = curves(np.random.default_rng(seed), 3, 5)
    whole = every(some)
    row = [total(some, choice) for choice in budgets.chain(some)]
    for left, cost in row:
        assert left == min(n for n, c in whole if c <= cost * (1 + 1e-12))
    assert row[0] == total(some, (0, 0, 0))
    assert row[-1][0] == min(n for n, _ in whole)
    assert all(b[0] < a[0] and b[1] >= a[1] for a, b in itertools.pairwise(row))


@pytest.mark.parametrize("seed", range(20))
def test_chain_misses_no_more_than_one_step(seed):
    """Between two choices of the chain, brute force gains less than the step itself."""
    some = curves(np.random.default_rng(100 + seed), 3, 5)
    whole = every(some)
    row = [total(some, choice) for choice in budgets.chain(some)]
    for (left, cost), (after, more) in itertools.pairwise(row):
        best = min(n for n, c in whole if c < (cost + more) / 2)
        assert after <= best <= left
        # the hull: no point within lies below the line between its neighbours
        assert best >= (left + after) / 2 - 1e-9


@pytest.mark.parametrize("seed", range(20))
def test_exchange_of_costs_that_do_not_add_up(seed):
    rng = np.random.default_rng(200 + seed)
    some = curves(rng, 3, 4)
    # layers make each other worse or better: a matrix that is positive definite
    half = rng.normal(size=(3, 3)) * 0.4 + np.eye(3)
    mixed = half @ half.T / np.sqrt(np.outer(*[np.diag(half @ half.T)] * 2))

    def measure(choice):
        each = np.sqrt([curve[i].cost for curve, i in zip(some, choice, strict=True)])
        value = math.sqrt(each @ mixed @ each)
        return Reading(value, 1.1 * value)

    most = 1.5
    fitting = {
        choice: total(some, choice)[0]
        for choice in itertools.product(*map(range, map(len, some)))
        if measure(choice).bound <= most
    }
    row = budgets.chain(some)
    start = row[budgets.climb(len(row), lambda i: measure(row[i]).bound <= most)]
    end = budgets.exchange(some, start, measure, most, 1000)
    assert end in fitting
    assert fitting[end] <= fitting[start]
    # no single neighbour is left that saves and fits
    for k, curve in enumerate(some):
        for i in range(len(curve)):
            other = (*end[:k], i, *end[k + 1 :])
            order = budgets._front(curve)
            near = end[k] in order and i in order
            if near and abs(order.index(i) - order.index(end[k])) == 1:
                assert other not in fitting or fitting[other] >= fitting[end]


@pytest.mark.parametrize("count", [1, 2, 3, 32, 33, 34, 200, 1000])
def test_climb_finds_the_last_that_fits(count):
    for last in {0, 1, count // 3, count - 2, count - 1} & set(range(count)):
        looked = []

        def fits(i, last=last, looked=looked):
            looked.append(i)
            return i <= last

        assert budgets.climb(count, fits) == last
        assert len(looked) <= budgets.LOOKS + math.log2(count) + 2


def test_climb_stops_at_the_first_failure():
    assert budgets.climb(33, lambda i: i != 10) == 9


def test_scale_brackets_and_bisects():
    for edge in (0.03, 0.4, 1.0, 1.9, 30.0):
        found = budgets.scale(lambda f, edge=edge: f <= edge, looks=12)
        assert edge / 1.3 < found <= edge
    assert budgets.scale(lambda f: False) is None


@pytest.mark.parametrize("edge", [0.4, 0.85, 0.999, 1.0, 1.1, 2.0])
@pytest.mark.parametrize("proportional", [True, False])
def test_aim_finds_a_factor_that_fits(edge, proportional):
    looked = []

    def bound(factor):
        looked.append(factor)
        return 0.3 * (factor / edge) ** 1.3

    settings = {"step": 1.25, "proportional": proportional}
    found = budgets.aim(bound, 0.3, looks=6, **settings)
    assert found <= edge and bound(found) <= 0.3 and looked[0] == 1.0
    assert 1.25 * found >= edge
    assert len(looked) <= 7
    assert budgets.aim(lambda f: math.inf, 0.3, looks=3, **settings) is None
    assert budgets.aim(lambda f: -0.1, 0.3, looks=3, **settings) == 1.25**2


def test_between_halves_the_steps():
    curve = [Point(1, 1.0, e) for e in (0.0, 1.0, 0.25, 0.0625)]
    assert budgets.between(curve, 2, 0.001) == (0.5, 0.125)
    assert budgets.between(curve, 1, 0.001) == (0.5, 0.5)
    assert budgets.between(curve, 3, 0.001) == (0.125, 0.03125)
    assert budgets.between(curve, 0, 0.001) == (0.03125, 0.015625)
    assert budgets.between(curve, 0, 0.02) == (0.03125, 0.02)
    assert budgets.between(curve[:1], 0, 0.02) == (0.02, 0.02)


# ---- the margin


@pytest.mark.parametrize("cv", [0.3, 1.5])
def test_margin_is_exceeded_about_one_time_in_a_hundred(cv):
    """Rows of one kind, dealt into folds that steer and folds that check."""
    rng, times, exceeded = np.random.default_rng(0), 4000, 0
    shape = 1 / cv**2
    for _ in range(times):
        size = rng.gamma(4, size=(2, 16, 20))
        moved = size * rng.gamma(shape, 1 / shape, size=size.shape)
        m, s = moved.sum(-1), size.sum(-1)
        reading = budgets.deviation(m[0], s[0], 1.0)
        exceeded += math.sqrt(m[1].sum() / s[1].sum()) > reading.bound
    assert 0.002 < exceeded / times < 0.025


def test_margin_of_a_drop_is_a_prediction_interval():
    rng, times = np.random.default_rng(0), 4000
    exceeded = 0
    for _ in range(times):
        falls = rng.normal(size=(2, 16))
        exceeded += falls[1].mean() > budgets.drop(falls[0], 0 * falls[0], 1.0).bound
    assert 0.004 < exceeded / times < 0.02


@pytest.mark.parametrize("measure", ["deviation", "drop"])
@pytest.mark.parametrize("spread", [1e-3, 0.1, 3.0])
def test_that_many_rows_halve_the_margin(measure, spread):
    """A fold is a mean over rows: its spread falls with the root of their number."""
    noise = np.random.default_rng(0).normal(size=16)
    noise = (noise - noise.mean()) / noise.std(ddof=1)

    def read(rows):
        off = spread * noise / math.sqrt(rows)
        if measure == "drop":
            return budgets.drop(0.2 + off, 0 * off, 1.0)
        return budgets.deviation(1e-4 * (1 + off), np.ones(16), 1.0)

    one = read(1)
    factor = budgets.halving(one, measure)
    more = read(factor)
    assert more.value == pytest.approx(one.value)
    assert more.bound - more.value == pytest.approx((one.bound - one.value) / 2)
    assert factor == 4 if measure == "drop" else 4 < factor < 16


def test_no_margin_is_halved_by_no_rows():
    for reading in (Reading(0.2, 0.2), Reading(math.inf, math.inf)):
        assert math.isnan(budgets.halving(reading, "deviation"))


def test_quantiles_are_those_of_student():
    stats = pytest.importorskip("scipy.stats")
    for df, q in enumerate(budgets.QUANTILES[1:], 1):
        assert math.isclose(q, stats.t.ppf(0.99, df), rel_tol=1e-3)


def test_readings_of_nothing_and_of_what_is_not_finite():
    assert budgets.deviation([0, 0], [1, 2], 1.0) == (0, 0)
    assert budgets.deviation([0, 0], [0, 0], 1.0) == (0, 0)
    assert budgets.deviation([1, 0], [0, 0], 1.0) == (math.inf, math.inf)
    assert budgets.deviation([math.nan, 0], [1, 1], 1.0) == (math.inf, math.inf)
    assert budgets.deviation([4, 4], [100, 100], 1.0) == (0.2, 0.2)
    assert budgets.drop([1.0, 1.0], [0.5, 0.5], 1.0) == (0.5, 0.5)


# ---- a small network


def network(rows=512):
    """Two layers of one shape with small weights among large, labels of its own."""
    rng = np.random.default_rng(3)

    def layer():
        w = rng.normal(size=(12, 12)) * np.where(rng.random((12, 12)) < 0.4, 1, 0.05)
        return {"w": w, "b": 0.1 * rng.normal(size=12)}

    params, x = {"in": layer(), "out": layer()}, rng.normal(size=(rows, 12))
    params, x = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (params, x))
    return params, apply_fn, {"x": x, "y": jnp.argmax(apply_fn(params, {"x": x}), 1)}


def apply_fn(params, batch):
    first, last = params["in"], params["out"]
    z = jax.nn.relu(batch["x"] @ first["w"] + first["b"][None, :])
    return z @ last["w"] + last["b"][None, :]


def right(params, batch):
    return (jnp.argmax(apply_fn(params, batch), 1) == batch["y"]).mean()


def relative(params, pruned, parts, call=apply_fn):
    """The deviation of the output, by numpy."""
    old, new = (
        np.concatenate([np.asarray(call(p, part)) for part in parts])
        for p in (params, pruned)
    )
    return np.linalg.norm(new - old) / np.linalg.norm(old)


def in_turns(params, dealt, given, key):
    """The deviation of networks by these methods, each on rows that it did not see."""
    off = size = 0.0
    for turn in dealt.turns:
        pruned = nt.prune(params, apply_fn, turn.solve, method=given, key=key).params
        for part in turn.steer:
            old, new = (np.asarray(apply_fn(p, part)) for p in (params, pruned))
            off, size = off + np.sum((new - old) ** 2), size + np.sum(old**2)
    return math.sqrt(off / size)


def test_deviation_is_kept_and_reported():
    params, call, batch = network()
    method = nt.NetTrim(deviation=0.1)
    pruned = nt.prune(params, call, batch, method=method, key=3)
    report = pruned.report
    dealt = dealing.deal(batch, None, jax.random.key(3), turns=True)
    assert np.isclose(
        relative(params, pruned.params, dealt.check), report.checked, rtol=1e-5
    )
    last = report.search[-1]
    assert [s.shape[1] for s in report.sites] == [346, 346]  # of 384 rows, 38 held out
    given = {f"^{s.path}$": nt.NetTrim(s.epsilon) for s in report.sites}
    assert np.isclose(in_turns(params, dealt, given, 3), last.value, rtol=1e-5)
    same = nt.prune(params, call, dealt.whole.solve, method=given, key=3).params
    for name in params:
        np.testing.assert_allclose(same[name]["w"], pruned.params[name]["w"], atol=1e-5)
    assert last.value < last.bound <= 0.1
    assert report.checked <= report.budget == jnp.float32(0.1)
    assert int(last.nonzeros) == int(report.nonzeros) < report.size
    each = [float(site.epsilon) for site in report.sites]
    assert np.allclose(each, last.epsilons, rtol=1e-6)
    assert len(set(last.epsilons.tolist())) == 2
    assert all(int(s.result) == nt.results.CONVERGED for s in report.sites)
    # nothing that was tried and fits has fewer
    fitting = [int(s.nonzeros) for s in report.search if s.bound <= report.budget]
    assert int(last.nonzeros) == min(fitting)
    text = str(report)
    assert "on rows that steered nothing, within the budget of 0.1;" in text
    assert max(map(len, text.splitlines())) <= 100
    margin = report.margin
    assert float(margin.size) == pytest.approx(float(last.bound - last.value), rel=1e-5)
    assert (margin.steering, margin.given) == (384, 512)
    assert 4 * 512 < float(margin.halved) < 5 * 512
    assert ", as 384 of 512 rows steered; about " in text
    data = json.loads(json.dumps(report.to_dict()))["budget"]
    assert data["margin"]["steering"] == 384 and data["margin"]["unit"] == "rows"
    assert data["measure"] == "deviation" and len(data["search"]) == len(report.search)
    again = jax.tree.map(lambda a: a, report)
    assert str(again) == text


def branch(params, batch):
    """The small network beside a branch that weighs a tenth."""
    x = batch["x"]
    more = jax.nn.relu(x @ params["a"]["w"]) @ params["b"]["w"]
    return apply_fn(params, batch) + 0.1 * more


@slow
def test_one_epsilon_for_all_leaves_more():
    """Where layers give unlike amounts for what they take."""
    params, _, batch = network()
    more = {"a": {"w": params["out"]["w"].T}, "b": {"w": params["in"]["w"].T}}
    params = {**params, **more}
    method = nt.NetTrim(deviation=0.1)
    report = nt.prune(params, branch, batch, method=method).report
    dealt = dealing.deal(batch, None, jax.random.key(0))
    wanted = float(report.search[-1].value)
    left = left_by_one_epsilon(branch, params, dealt, wanted)
    assert left > 1.1 * int(report.nonzeros)


def left_by_one_epsilon(call, params, dealt, wanted):
    """Weights left by one epsilon for all that moves the output as far or farther."""
    low, high, left = 0.001, 1.0, None
    for _ in range(9):
        epsilon = math.sqrt(low * high)
        method = nt.NetTrim(epsilon=epsilon)
        pruned = nt.prune(params, call, dealt.solve, method=method)
        if relative(params, pruned.params, dealt.steer, call) < wanted:
            low = epsilon
        else:
            high, left = epsilon, int(pruned.report.nonzeros)
    return left


@slow
@pytest.mark.parametrize("mode", ["parallel", "cascade"])
@pytest.mark.parametrize("most", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("refit", [False, True])
def test_deviations_and_modes(mode, most, refit):
    params, call, batch = network()
    method = nt.NetTrim(deviation=most, refit=refit)
    pruned = nt.prune(params, call, batch, method=method, mode=mode, key=1)
    dealt = dealing.deal(batch, None, jax.random.key(1))
    assert relative(params, pruned.params, dealt.steer) <= most
    assert np.isclose(
        relative(params, pruned.params, dealt.check), pruned.report.checked, rtol=1e-4
    )
    assert pruned.report.checked <= most
    assert pruned.report.nonzeros < pruned.report.size
    kept = jax.tree.map(lambda a, m: bool((m | (a == 0)).all()), *pruned[:2])
    assert all(jax.tree.leaves(kept))


@slow
@pytest.mark.parametrize("mode", ["parallel", "cascade"])
def test_drop_of_a_metric(mode):
    # of fewer rows the margin takes most of the budget
    params, call, batch = network(rows=2048)
    method = nt.NetTrim(drop=0.1, metric=right)
    pruned = nt.prune(params, call, batch, method=method, mode=mode)
    dealt = dealing.deal(batch, None, jax.random.key(0))
    fall = np.mean([right(params, p) - right(pruned.params, p) for p in dealt.check])
    assert np.isclose(fall, pruned.report.checked, atol=1e-6)
    assert pruned.report.checked <= 0.1
    assert pruned.report.search[-1].bound <= 0.1
    assert pruned.report.measure == "drop" and "drop of " in str(pruned.report)
    assert pruned.report.sparsity > 0.1


@slow
def test_more_is_removed_for_more():
    params, call, batch = network()
    left = [
        int(nt.prune(params, call, batch, method=method).report.nonzeros)
        for method in (nt.NetTrim(deviation=d) for d in (0.01, 0.03, 0.1, 0.3))
    ]
    assert left == sorted(left, reverse=True) and len(set(left)) == 4


@slow
def test_layers_with_methods_of_their_own_count():
    params, call, batch = network()
    budget = nt.NetTrim(deviation=0.1)
    fixed = {"in": nt.NetTrim(epsilon=0.03), "out": budget}
    pruned = nt.prune(params, call, batch, method=fixed)
    assert float(pruned.report.sites[0].epsilon) == pytest.approx(0.03)
    assert pruned.report.search[0].value > 0  # what the other layer takes
    assert pruned.report.search[-1].epsilons.shape == (1,)
    assert pruned.report.checked <= 0.1
    left = nt.prune(params, call, batch, method={"in": None, "out": budget})
    assert (left.params["in"]["w"] == params["in"]["w"]).all()
    assert left.report.sites[0].nonzeros < pruned.report.sites[1].nonzeros
    rule = {"in": nt.Magnitude(nt.Sparsity(0.9)), "out": budget}
    for mode in ("parallel", "cascade"):
        with pytest.raises(MethodError, match="other methods alone take"):
            nt.prune(params, call, batch, method=rule, mode=mode)


@slow
def test_what_does_not_converge_is_not_taken():
    params, call, batch = network()
    solver = nt.ADMM(max_steps=20)
    pruned = nt.prune(
        params, call, batch, method=nt.NetTrim(deviation=0.1), solver=solver
    )
    for site in pruned.report.sites:
        assert int(site.result) in nt.results.GOOD
    assert pruned.report.checked <= 0.1


@slow
def test_a_budget_too_small_leaves_all_as_trained():
    params, call, batch = network()
    pruned = nt.prune(params, call, batch, method=nt.NetTrim(deviation=1e-9))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), params, pruned.params)
    assert all(jax.tree.leaves(same))
    assert pruned.report.checked == 0
    assert [float(s.epsilon) for s in pruned.report.sites] == [0, 0]


@slow
def test_a_loader_is_dealt_out():
    params, call, batch = network()
    x, y = (np.split(batch[name], 8) for name in "xy")
    batches = [{"x": a, "y": b} for a, b in zip(x, y, strict=True)]
    pruned = nt.prune(params, call, iter(batches), method=nt.NetTrim(deviation=0.1))
    assert pruned.report.sites[0].shape[1] <= 256
    assert pruned.report.checked <= 0.1
    whole = relative(params, pruned.params, batches[2::4])
    assert whole == pytest.approx(float(pruned.report.checked), rel=1e-4)


@slow
def test_plain_numbers_travel_with_the_batch():
    params, call, batch = network()

    def scaled(params, batch):
        return batch["scale"] * call(params, batch)

    method = nt.NetTrim(deviation=0.1)
    pruned = nt.prune(params, scaled, {**batch, "scale": 2.0}, method=method)
    same = nt.prune(params, call, batch, method=method)
    assert pruned.report.nonzeros == pytest.approx(float(same.report.nonzeros), abs=3)


# ---- dealing


def test_parts_share_no_row():
    batch = {"x": np.arange(1000.0), "y": np.arange(1000), "scale": 2.0}
    dealt = dealing.deal(batch, None, jax.random.key(0))
    rows = [np.concatenate([p["x"] for p in parts]) for parts in dealt[2:4]]
    rows.append(dealt.solve["x"])
    assert [len(r) for r in rows] == [240, 240, 520]
    assert sorted(np.concatenate(rows)) == list(range(1000))
    assert all((p["x"] == p["y"]).all() and p["scale"] == 2.0 for p in dealt.check)
    other = dealing.deal(batch, None, jax.random.key(1))
    assert (other.solve["x"] != dealt.solve["x"]).any()


def test_all_rows_but_those_that_check_steer_in_one_turn():
    batch, weights = np.arange(1000.0)[:, None], np.arange(1000.0) + 1
    dealt = dealing.deal(batch, weights, jax.random.key(0), turns=True)
    check = np.concatenate(dealt.check).ravel()
    rest = dealt.whole.solve.ravel()
    assert len(check) == 240 and len(rest) == 760
    assert sorted([*check, *rest]) == list(range(1000))
    once = dealing.deal(batch, None, jax.random.key(0))
    np.testing.assert_array_equal(dealt.check, once.check)
    steered = []
    for turn in dealt.turns:
        mine = np.concatenate(turn.steer).ravel()
        assert sorted([*mine, *turn.solve.ravel()]) == sorted(rest)
        assert (turn.weights == turn.solve[:, 0] + 1).all() and len(turn.steer) == 16
        assert len(turn.solve) == len(once.solve)
        steered += mine.tolist()
    assert len(steered) == len(set(steered)) == 3 * 240 and set(steered) <= set(rest)
    np.testing.assert_array_equal(dealt.turns[0].solve, once.solve)
    np.testing.assert_array_equal(dealt.steer, once.steer)
    assert dealt[4:8] == once[4:8] == (1.0, 1000, 240, "rows")
    for few in (60, 5000):  # too few to be dealt so, and more than gain by it
        dealt = dealing.deal(np.zeros((few, 1)), None, jax.random.key(0), turns=True)
        assert dealt.turns == () and dealt.whole is None


def test_weights_are_dealt_with_their_rows():
    batch, weights = np.arange(100.0)[:, None], np.arange(100.0) + 1
    dealt = dealing.deal(batch, weights, jax.random.key(0))
    assert (dealt.weights == dealt.solve[:, 0] + 1).all()


def test_batches_are_dealt_in_turn():
    given = [np.full((32, 2), float(i)) for i in range(8)]
    dealt = dealing.deal(iter(given), None, jax.random.key(0))
    assert [float(a[0, 0]) for a in dealt.solve] == [0, 3, 4, 7]
    assert {float(a[0, 0]) for a in dealt.steer} == {1, 5}
    assert {float(a[0, 0]) for a in dealt.check} == {2, 6}
    assert len(dealt.steer) == len(dealt.check) == 16
    assert dealt[5:8] == (256, 64, "rows")
    ragged = [{"x": np.zeros((5, 2)), "z": np.zeros(3)}] * 8
    dealt = dealing.deal(iter(ragged), None, jax.random.key(0))
    assert dealt[5:8] == (8, 2, "batches")


# ---- errors


@pytest.mark.parametrize("name", ["deviation", "drop"])
@pytest.mark.parametrize(
    "value", [0, -0.1, math.nan, math.inf, np.float32(-1)], ids=str
)
def test_budgets_out_of_range(name, value):
    metric = right if name == "drop" else None
    with pytest.raises(MethodError, match=rf"NetTrim\({name}=.*above 0"):
        nt.NetTrim(**{name: value}, metric=metric).check()


def test_budgets_that_contradict():
    for settings, match in (
        ({"epsilon": 0.1, "deviation": 0.1}, "epsilon and deviation are given"),
        ({"drop": 0.1, "deviation": 0.1, "metric": right}, "deviation and drop are"),
        ({"drop": 0.1}, "drop and metric go together"),
        ({"deviation": 0.1, "metric": right}, "drop and metric go together"),
        ({"metric": right}, "goes with drop"),
        ({"drop": 0.1, "metric": 3}, "expected a function"),
        ({"deviation": "0.1"}, "expected a number such as 0.02"),
        ({"deviation": True}, "expected a number such as 0.02"),
    ):
        with pytest.raises(MethodError, match=match):
            nt.NetTrim(**settings)
    with pytest.raises(MethodError, match="epsilon and deviation are given"):
        nt.NetTrim(epsilon=jnp.float32(0.1), deviation=0.1).check()


def test_epsilon_is_as_before():
    assert nt.NetTrim().epsilon == 0.1 == nt.NetTrim(0.1).epsilon
    assert nt.NetTrim().shared is None
    changed = dataclasses.replace(nt.NetTrim(), deviation=0.1)
    assert changed.epsilon is None and changed.shared.most == 0.1
    again = jax.tree.map(lambda a: a, changed)
    assert again == changed
    assert dataclasses.replace(changed, rounds=2).epsilon is None


def test_one_budget_for_the_network():
    params, call, batch = network()
    method = {"in": nt.NetTrim(deviation=0.1), "out": nt.NetTrim(deviation=0.2)}
    with pytest.raises(MethodError, match="one budget for the whole network, got dev"):
        nt.prune(params, call, batch, method=method)


@pytest.mark.parametrize("what", ["params", "batch", "deviation"])
def test_a_search_needs_concrete_values(what):
    params, call, batch = network()

    def run(value):
        given = {"params": params, "batch": batch, "deviation": 0.1} | {what: value}
        method = nt.NetTrim(deviation=given["deviation"])
        return nt.prune(given["params"], call, given["batch"], method=method).report

    value = {"params": params, "batch": batch, "deviation": jnp.float32(0.1)}[what]
    with pytest.raises(MethodError, match="does not work within"):
        jax.jit(run)(value)


def test_batches_that_cannot_be_dealt():
    params, call, batch = network()
    for given, match in (
        (jax.tree.map(lambda a: a[:7], batch), "7 rows; a budget needs at least 8"),
        ({**batch, "y": batch["y"][:9]}, "share, got .*give a loader of at least 3"),
        ([batch, batch].__iter__(), "the loader gave 2 batches; .* at least 3"),
    ):
        with pytest.raises(BatchError, match=match):
            nt.prune(params, call, given, method=nt.NetTrim(deviation=0.1))
    ragged = {"x": np.zeros((5, 2)), "z": np.zeros(3)}
    with pytest.raises(BatchError, match="give at least 6 batches"):
        dealing.deal(iter([ragged] * 4), None, jax.random.key(0))
    with pytest.raises(BatchError, match="one entry for each"):
        dealing.deal(batch["x"], np.ones(3), jax.random.key(0))


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "high", jnp.ones(3)])
def test_metrics_that_are_no_numbers(value):
    params, call, batch = network()
    method = nt.NetTrim(drop=0.1, metric=lambda params, batch: value)
    with pytest.raises(MethodError, match=r"NetTrim\(metric\): expected a finite num"):
        nt.prune(params, call, batch, method=method)


@pytest.mark.parametrize("answer", [lambda z: jnp.argmax(z, axis=1), lambda z: 0 * z])
def test_a_deviation_of_nothing(answer):
    params = {"w": jnp.ones((4, 3), jnp.float32)}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 4)), jnp.float32)
    with pytest.raises(MethodError, match="zero or not floating"):
        nt.prune(
            params,
            lambda p, x: answer(x @ p["w"]),
            x,
            method=nt.NetTrim(deviation=0.02),
        )
