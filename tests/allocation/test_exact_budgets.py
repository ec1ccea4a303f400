"""Budgets of whole networks under exact patterns: how far each layer may go."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import only_fast, slow
from test_budgets import apply_fn, in_turns, network, relative, right

import nettrim_jax as nt
from nettrim_jax.allocation import budget as budgets
from nettrim_jax.calibration import splits as dealing
from nettrim_jax.results import MethodError


def loss(params, batch):
    return -jnp.mean(
        jnp.take_along_axis(apply_fn(params, batch), batch["y"][:, None], 1)
    )


METHODS = {
    "magnitude": nt.Magnitude,
    "random": nt.Random,
    "wanda": nt.Wanda,
    "sparsegpt": nt.SparseGPT,
    "layerobs": nt.LayerOBS,
    "taylor": lambda pattern, **more: nt.Taylor(pattern, loss, **more),
    "reconstruct": nt.Reconstruct,
}


def levels(report):
    """The share of zeros of each layer, by an expression for its path."""
    return {f"^{s.path}$": int(s.size - s.nonzeros) / s.size for s in report.sites}


@slow
def test_an_exact_pattern_keeps_the_budget_and_its_count():
    params, call, batch = network()
    method = nt.Wanda(nt.Sparsity(), deviation=0.1)
    pruned = nt.prune(params, call, batch, method=method, key=3)
    report, last = pruned.report, pruned.report.search[-1]
    dealt = dealing.deal(batch, None, jax.random.key(3), turns=True)
    check = relative(params, pruned.params, dealt.check)
    given = {path: nt.Wanda(nt.Sparsity(v)) for path, v in levels(report).items()}
    steer = in_turns(params, dealt, given, 3)
    assert np.isclose(steer, last.value, rtol=1e-5) and last.bound <= 0.1
    assert np.isclose(check, report.checked, rtol=1e-5) and report.checked <= 0.1
    left = [int(site.nonzeros) for site in report.sites]
    assert last.left.tolist() == left and int(last.nonzeros) == sum(left)
    assert report.sparsity > 0.3 and len(set(left)) == 2
    assert all(math.isnan(e) for e in last.epsilons.tolist())
    # each layer is what the rule makes of it at that level
    same = nt.prune(params, call, dealt.whole.solve, method=given, key=3)
    for name in params:
        np.testing.assert_array_equal(pruned.params[name]["w"], same.params[name]["w"])
        kept = np.asarray(pruned.params[name]["w"]) != 0
        np.testing.assert_array_equal(pruned.mask[name]["w"], kept)


@pytest.mark.parametrize("mode", only_fast(["parallel"], ["parallel", "cascade"]))
@pytest.mark.parametrize("name", only_fast(["wanda"], list(METHODS)))
def test_methods_and_modes(name, mode):
    params, call, batch = network()
    dealt = dealing.deal(batch, None, jax.random.key(0))
    left = []
    for most in (0.05, 0.2):
        method = METHODS[name](nt.Sparsity(), deviation=most)
        pruned = nt.prune(params, call, batch, method=method, mode=mode)
        assert relative(params, pruned.params, dealt.steer) <= most
        check = relative(params, pruned.params, dealt.check)
        assert np.isclose(check, pruned.report.checked, rtol=1e-4)
        assert check <= most
        left.append(int(pruned.report.nonzeros))
    assert left[1] < left[0] < pruned.report.size or name == "random"


@slow
@pytest.mark.parametrize("name", ["wanda", "reconstruct"])
def test_no_other_levels_of_a_fine_grid_leave_much_less(name):
    """Brute force over pairs of levels, each network measured on the same rows."""
    params, call, batch = network()
    dealt = dealing.deal(batch, None, jax.random.key(0))
    make = METHODS[name]
    report = nt.prune(
        params, call, batch, method=make(nt.Sparsity(), deviation=0.1)
    ).report
    last, best = report.search[-1], report.size
    for a, b in itertools.product(np.arange(0.3, 0.8, 0.05), repeat=2):
        given = {"in": make(nt.Sparsity(a)), "out": make(nt.Sparsity(b))}
        other = nt.prune(params, call, dealt.solve, method=given)
        if relative(params, other.params, dealt.steer) <= float(last.value):
            best = min(best, int(other.report.nonzeros))
    assert best < report.size
    assert int(report.nonzeros) <= best + 0.05 * report.size


def test_a_level_is_the_most_that_a_layer_loses():
    params, call, batch = network()
    method = nt.Magnitude(nt.Sparsity(0.25), deviation=0.5)
    report = nt.prune(params, call, batch, method=method).report
    assert [int(s.nonzeros) for s in report.sites] == [108, 108]
    none = nt.Magnitude(nt.Sparsity(0.0), deviation=0.5)
    report = nt.prune(params, call, batch, method=none).report
    assert [int(s.nonzeros) for s in report.sites] == [144, 144]


GROUPS = {
    "neurons": (nt.Neurons(), lambda w: w.any(0).sum() * 12),
    "inputs": (nt.Inputs(), lambda w: w.any(1).sum() * 12),
    "blocks": (
        nt.Blocks(None, (3, 2)),
        lambda w: w.reshape(4, 3, 6, 2).any((1, 3)).sum() * 6,
    ),
    "column": (nt.Sparsity(scope="column"), lambda w: w.sum(0).max() * 12),
    "network": (nt.Sparsity(scope="network"), lambda w: w.sum()),
}


@pytest.mark.parametrize("name", only_fast(["blocks"], list(GROUPS)))
def test_patterns_stay_whole(name):
    params, call, batch = network()
    pattern, count = GROUPS[name]
    method = nt.Magnitude(pattern, deviation=0.4)
    pruned = nt.prune(params, call, batch, method=method)
    for layer in pruned.params.values():
        kept = np.asarray(layer["w"]) != 0
        assert kept.sum() == count(kept)
    assert pruned.report.checked <= 0.4 and pruned.report.sparsity > 0.05


@slow
def test_drop_of_a_metric():
    params, call, batch = network()
    method = nt.Reconstruct(nt.Sparsity(), drop=0.05, metric=right)
    report = nt.prune(params, call, batch, method=method).report
    assert report.measure == "drop" and report.search[-1].bound <= 0.05
    assert report.checked <= 0.05 and report.sparsity > 0.3


@slow
def test_two_kinds_share_one_budget():
    params, call, batch = network()
    method = {
        "in": nt.NetTrim(deviation=0.1),
        "out": nt.Wanda(nt.Sparsity(), deviation=0.1),
    }
    report = nt.prune(params, call, batch, method=method).report
    first, second = report.sites
    assert first.epsilon > 0 and math.isnan(second.epsilon)
    assert first.nonzeros < first.size and second.nonzeros < second.size
    assert report.search[-1].bound <= 0.1


@slow
def test_without_a_method_each_layer_has_the_better_kind():
    params, call, batch = network()
    found = nt.prune(params, call, batch, deviation=0.1)
    same = nt.prune(params, call, batch, method=nt.Sparsest(deviation=0.1))
    for one, two in zip(
        *map(jax.tree.leaves, (found.params, same.params)), strict=True
    ):
        np.testing.assert_array_equal(one, two)
    report = found.report
    assert report.search[-1].bound <= 0.1 and report.checked <= 0.1
    kinds = nt.NetTrim(deviation=0.1, refit=True), METHODS["reconstruct"]
    kinds = kinds[0], kinds[1](nt.Sparsity(), deviation=0.1)
    others = [nt.prune(params, call, batch, method=one).report for one in kinds]
    least = min(int(one.nonzeros) for one in others)
    assert int(report.nonzeros) <= least + 0.01 * report.size
    turned = nt.prune(params, call, batch, deviation=0.1, mode="cascade").report
    assert turned.search[-1].bound <= 0.1 and turned.sparsity > 0.3


# ---- errors


def test_a_method_and_a_budget_beside_it():
    params, call, batch = network()
    with pytest.raises(MethodError, match="give the budget to the method"):
        nt.prune(params, call, batch, method=nt.Sparsity(0.5), deviation=0.1)
    with pytest.raises(MethodError, match="Sparsest: drop and metric go together"):
        nt.prune(params, call, batch, drop=0.1)
    with pytest.raises(MethodError, match=r"Sparsest\(\): expected what the network"):
        nt.prune(params, call, batch, method=nt.Sparsest())


def test_a_level_that_nothing_finds():
    params, call, batch = network()
    for method in (nt.Sparsity(), nt.Wanda(nt.Neurons()), {"in": nt.Inputs()}):
        with pytest.raises(MethodError, match="its level is open; give a share"):
            nt.prune(params, call, batch, method=method)
    score = jnp.ones((1, 4, 4))
    for pattern in (nt.Sparsity(), nt.Neurons(), nt.Blocks(None, (2, 2))):
        with pytest.raises(MethodError, match="its level is open"):
            pattern.keep(score)


def test_patterns_that_no_budget_has_a_level_for():
    params, call, batch = network()
    for pattern, match in (
        (nt.NM(2, 4), r"Wanda\(NM.*has no level"),
        (nt.Sparsity(0.5, scope="network"), "for the most that a layer may lose"),
    ):
        with pytest.raises(MethodError, match=match):
            method = nt.Wanda(pattern, deviation=0.1)
            nt.prune(params, call, batch, method=method)


def test_settings_that_contradict_name_the_method():
    for settings, match in (
        ({"drop": 0.1, "deviation": 0.1, "metric": right}, "deviation and drop are"),
        ({"drop": 0.1}, "drop and metric go together"),
        ({"metric": right}, r"SparseGPT\(metric\): goes with drop"),
        ({"deviation": -1.0}, r"SparseGPT\(deviation=-1.0\): .*above 0"),
        ({"deviation": True}, r"SparseGPT\(deviation=True\): expected a number"),
    ):
        with pytest.raises(MethodError, match=match):
            nt.SparseGPT(nt.Sparsity(), **settings)
    params, call, batch = network()
    method = nt.Wanda(nt.Sparsity(), deviation=0.1)
    with pytest.raises(MethodError, match=r"Wanda\(deviation=.*does not work within"):
        jax.jit(lambda p: nt.prune(p, call, batch, method=method).params)(params)
    mixed = {"in": nt.Wanda(nt.Sparsity(0.5, scope="network")), "out": method}
    with pytest.raises(MethodError, match="expected one search"):
        nt.prune(params, call, batch, method=mixed)


# ---- turns


@slow
def test_what_the_turns_say_counts(monkeypatch):
    params, call, batch = network()
    method = nt.Wanda(nt.Sparsity(), deviation=0.1)

    def prune(factor):
        def aim(bound, most, **settings):
            assert most == 0.1 and settings["proportional"]
            assert factor is None or math.isfinite(bound(factor))
            return factor

        monkeypatch.setattr(budgets, "aim", aim)
        return nt.prune(params, call, batch, method=method)

    found = prune(None)  # no factor fits
    monkeypatch.setattr(dealing, "FEW", 0)
    alone = nt.prune(params, call, batch, method=method)
    for one, two in zip(*map(jax.tree.leaves, (found, alone)), strict=True):
        np.testing.assert_array_equal(one, two)
    assert alone.report.margin.steering == 128
    monkeypatch.undo()
    less = prune(0.5).report  # the search met its rows by luck
    assert less.margin.steering == 384 and less.sites[0].shape[1] == 346
    assert less.nonzeros > found.report.nonzeros
    near = prune(0.985).report  # by less than is worth a look
    assert near.nonzeros == found.report.nonzeros and near.margin.steering == 128
    more = prune(1.25).report
    assert more.margin.steering == 384 and more.nonzeros < found.report.nonzeros
    odds = [[s.sparsity / (1 - s.sparsity) for s in r.sites] for r in (less, more)]
    np.testing.assert_allclose(np.divide(*odds), 0.5 / 1.25, rtol=0.06)
