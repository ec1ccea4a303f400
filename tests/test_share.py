"""``share`` on whole networks: few values, exact zeros, codes, and what it costs."""

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax.execution import batching
from nettrim_jax.methods.codebook import Codebook
from nettrim_jax.results import MethodError, ParamsError, SolveError

_, PARAMS, APPLY, X, *_ = models.get("square")
FAST = ["bfloat16"]
MODELS = pytest.mark.parametrize("name", only_fast(FAST, models.MODELS))


@functools.cache
def pruned():
    """Half of the weights, the largest ones."""
    return nt.prune(PARAMS, APPLY, X, method=nt.Magnitude(nt.Sparsity(0.5)))


def share(bits=2, given=None, **settings):
    given = pruned() if given is None else given
    return nt.share(given, PARAMS, APPLY, X, bits=bits, **settings)


@functools.cache
def shared():
    return share()


def values(leaf):
    leaf = np.asarray(leaf)
    return np.unique(leaf[leaf != 0])


def test_weights_share_few_values_and_zeros_stay():
    done = shared()
    assert done.mask is pruned().mask
    for name in PARAMS:
        w, keep = done.params[name]["w"], pruned().mask[name]["w"]
        assert ((w != 0) == keep).all()
        assert len(values(w)) <= 3
        codes = done.codes[f"{name}/w"]
        assert codes.codes.shape == w.shape and codes.codes.max() <= 3
        np.testing.assert_array_equal(codes.decode(), w)
        # biases move, and have as many values as before
        assert len(values(done.params[name]["b"])) == 8


def test_the_report_says_what_it_did():
    report = shared().report
    out = [np.asarray(APPLY(p, X)) for p in (PARAMS, pruned().params, shared().params)]
    trained, before, after = out

    def far(one, other):
        return np.linalg.norm(one - other) / np.linalg.norm(other)

    np.testing.assert_allclose(report.before, far(before, trained), rtol=1e-4)
    np.testing.assert_allclose(report.deviation, far(after, trained), rtol=1e-4)
    np.testing.assert_allclose(report.moved, far(after, before), rtol=1e-4)
    assert [site.path for site in report.sites] == ["0/w", "1/w", "2/w"]
    assert all(site.bits == 2 and site.size == 64 for site in report.sites)
    assert all(int(site.values) == 3 for site in report.sites)
    assert all(int(site.nonzeros) == 32 for site in report.sites)
    text = str(report)
    assert re.search(r"0/w +2 +3 +64 +32 +0\.\d+ +0\.\d+ +direct", text)
    assert f"-> {float(report.deviation):.4f}" in text
    assert report.to_dict()["sites"][0]["values"] == 3
    assert report.budget is report.bytes is None and "file of" not in text


def test_compensation_moves_the_output_less_than_k_means():
    method = Codebook(2, bias="fixed", compensate=False, fit=False)
    plain = nt.prune(pruned().params, APPLY, X, method=method, mode="cascade")
    out = [np.asarray(APPLY(one.params, X)) for one in (pruned(), plain, shared())]
    far = [np.linalg.norm(one - out[0]) for one in out[1:]]
    assert far[1] < 0.7 * far[0]


@slow
def test_more_bits_move_the_output_less():
    moves = [float(share(bits).report.moved) for bits in (1, 2, 3, 5)]
    assert moves == sorted(moves, reverse=True)
    assert moves[-1] < 0.03  # 31 values for 32 weights


def test_bits_by_layer():
    done = share({"0/w": 2, "1/w": None, ".*": 2})
    assert done.codes.keys() == {"0/w", "2/w"}
    assert done.params["1"]["w"] is pruned().params["1"]["w"]
    assert dict(done.report.skipped)["1/w"] == "method['1/w'] is None"
    np.testing.assert_array_equal(done.params["0"]["w"], shared().params["0"]["w"])


@slow
def test_each_unit_has_values_of_its_own():
    done = share(1, per="unit")
    for name in PARAMS:
        w = np.asarray(done.params[name]["w"])
        assert all(len(values(unit)) <= 1 for unit in w.T)
        assert len(values(w)) > 3
        np.testing.assert_array_equal(done.codes[f"{name}/w"].decode(), w)


def test_params_alone_and_a_bias_that_stays():
    done = share(given=pruned().params, bias="fixed")
    assert (np.asarray(done.params["0"]["b"]) == PARAMS["0"]["b"]).all()
    for name in PARAMS:
        same = done.mask[name]["w"] == pruned().mask[name]["w"]
        assert same.all()
        assert done.mask[name]["b"].all()


@MODELS
def test_every_model(name):
    model = models.get(name)
    params, call, batch = model.params, model.apply_fn, model.batch
    try:
        done = nt.share(params, params, call, batch, bits=2, include=".")
    except MethodError as error:
        assert "multiplies these weights by constants" in str(error)
        return
    before, after = models.arrays(params), models.arrays(done.params)
    assert [a.dtype for a in before] == [a.dtype for a in after]
    listing = nt.sites(params, call, batch, include=".")
    leaves = dict(zip(nt._trees.paths_of(params), before, strict=True))
    new = dict(zip(nt._trees.paths_of(params), after, strict=True))
    for site in listing.sites:
        codes, leaf = done.codes[site.path], new[site.path]
        for group in np.unique(codes.group[codes.group >= 0]):
            mine = np.broadcast_to(codes.group == group, leaf.shape)
            assert len(values(leaf[mine])) <= 3
        inside = np.broadcast_to(codes.group >= 0, leaf.shape)
        assert (np.asarray(codes.decode())[inside] == leaf[inside]).all()
        assert (leaf[~inside] == leaves[site.path][~inside]).all()
        assert ((leaf == 0) >= (leaves[site.path] == 0)).all()


@slow
def test_within_jit_and_vmap():
    mask = pruned().mask

    def run(params):
        done = nt.share(params, params, APPLY, X, bits=2)
        return done.params, done.codes

    alone = run(pruned().params)
    traced = jax.jit(run)(pruned().params)
    stack = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), pruned().params)
    stacked = jax.vmap(lambda p: run(p)[0])(stack)
    for name in PARAMS:
        want = alone[0][name]["w"]
        np.testing.assert_allclose(traced[0][name]["w"], want, atol=1e-4)
        np.testing.assert_allclose(stacked[name]["w"][0], want, atol=1e-4)
        codes = traced[1][f"{name}/w"]
        np.testing.assert_array_equal(codes.decode(), traced[0][name]["w"])
        assert ((stacked[name]["w"][1] != 0) == mask[name]["w"]).all()


def test_other_values_compile_no_solver():
    shared()
    before = batching._each._cache_size()
    other = jax.tree.map(lambda a: 1.1 * a, pruned().params)
    nt.share(other, PARAMS, APPLY, X + 0.1, bits=2)
    assert batching._each._cache_size() == before


# ---- params and results


class Masked(NamedTuple):
    """Params with leaves that are called as fields of a result are."""

    params: Any
    mask: Any
    report: Any


def test_params_with_fields_of_a_result_are_no_result():
    w, ones = PARAMS["0"]["w"], jnp.ones(8, jnp.float32)
    given = Masked(w, ones, ones)

    def call(given, x):
        return (x @ given.params) * given.mask[None] * given.report[None]

    done = nt.share(given, given, call, X, bits=2)
    assert isinstance(done.mask, Masked)
    assert done.mask.params.shape == (8, 8) and done.mask.mask.all()
    assert len(values(done.params.params)) == 3
    np.testing.assert_array_equal(done.codes["params"].decode(), done.params.params)
    with pytest.raises(ParamsError, match="got Masked; the order is"):
        nt.recover(given, given, call, [X], steps=1)
    assert isinstance(nt.shrink(given, call, X).params, Masked)


# ---- layers that fail


def overflowing(w, x):
    out = jnp.exp(1e3 * x) @ w
    return jnp.where(jnp.isfinite(out), out, 0)


@functools.cache
def failed(traced=False):
    def run(w):
        done = nt.share(w, w, overflowing, X, bits=1, on_failure="keep")
        return done.params, done.codes, done.report

    return (jax.jit(run) if traced else run)(PARAMS["0"]["w"])


@slow
def test_a_layer_that_fails_has_no_codes_and_says_its_values():
    params, codes, report = failed()
    w = np.asarray(PARAMS["0"]["w"])
    np.testing.assert_array_equal(params, w)
    assert codes == {}
    assert int(report.sites[0].values) == len(values(w)) == 64
    assert re.search(r" 1 +64 +64 +64 .* nan", str(report))


def test_a_layer_that_fails_within_jit_has_codes_that_say_so():
    params, codes, report = failed(traced=True)
    np.testing.assert_array_equal(params, PARAMS["0"]["w"])
    (codes,) = codes.values()
    assert np.isnan(codes.decode()).all() and codes.codes.max() == 1
    assert int(report.sites[0].values) == 64


def test_a_failure_is_told_in_words_of_share():
    w = PARAMS["0"]["w"]
    with pytest.raises(SolveError, match="leave such layers as they are in the pruned"):
        nt.share(w, w, overflowing, X, bits=1)


# ---- errors


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"bits": 9}, r"share\(bits=9\): expected an integer from 1 to 8"),
        ({"bits": {"0/w": 2.5}}, r"share\(bits=2.5\): expected"),
        ({"bits": {"nothing": 2}}, "share: method: the regular expression 'nothing'"),
        ({"per": "layer"}, r"share\(per='layer'\): expected one of"),
        ({"bias": None}, r"share\(bias=None\): expected one of"),
        ({"mode": "both"}, r"share\(mode='both'\): expected one of"),
        ({"exclude": "other"}, "exclude='other' matches no layer"),
    ],
    ids=str,
)
def test_wrong_settings(settings, match):
    with pytest.raises(MethodError, match=match):
        share(**settings)


def test_params_that_do_not_fit():
    other = {**PARAMS, "2": {**PARAMS["2"], "w": PARAMS["2"]["w"][:, :4]}}
    with pytest.raises(ParamsError, match=r"share: params have 2/w as .*\[8, 4\]"):
        nt.share(pruned(), other, APPLY, X)
    with pytest.raises(ParamsError, match="0/b as no leaf"):
        nt.share(pruned(), {"0": {"w": PARAMS["0"]["w"]}}, APPLY, X)


def test_constants_that_differ():
    def call(w, x):
        return x @ (w * jnp.linspace(1, 2, 8, dtype=w.dtype)[:, None])

    w = PARAMS["0"]["w"]
    with pytest.raises(MethodError, match="by constants from 1 to 2"):
        nt.share(w, w, call, X)
