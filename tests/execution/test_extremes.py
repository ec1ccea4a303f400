"""Scales whose squares are no numbers are refused; all others change nothing."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax import results
from nettrim_jax.execution import layer
from nettrim_jax.methods.base import Answer
from nettrim_jax.tracing import entries
from nettrim_jax.tracing.entries import Entries

if hasattr(jax, "enable_x64"):
    disable_x64 = functools.partial(jax.enable_x64, False)
else:  # before JAX 0.8
    from jax.experimental import disable_x64

RNG = np.random.default_rng(0)
PARAMS = {
    "w": RNG.normal(size=(16, 8)).astype(np.float32),
    "v": RNG.normal(size=(8, 4)).astype(np.float32),
}
ROWS = RNG.normal(size=(200, 16)).astype(np.float32)
METHODS = {
    "nettrim": nt.NetTrim(epsilon=0.1),
    "sparsity": nt.Sparsity(0.5),
    "sparsegpt": nt.SparseGPT(nt.Sparsity(0.5)),
    "layerobs": nt.LayerOBS(nt.Sparsity(0.5)),
    "wanda": nt.Wanda(nt.Sparsity(0.5)),
    "magnitude": nt.Magnitude(nt.Sparsity(0.5)),
}
METHOD = pytest.mark.parametrize(
    "name", only_fast([n for n in METHODS if n not in ("nettrim", "layerobs")], METHODS)
)


def apply_fn(p, x):
    return jax.nn.relu(x @ p["w"]) @ p["v"]


def mask_of(name, scale):
    rows = ROWS * np.float32(scale)
    return nt.prune(PARAMS, apply_fn, rows, method=METHODS[name]).mask


SCALES = [2.0**-48, 2.0**45]
CASES = [(name, scale) for name in METHODS for scale in SCALES]
QUICK = [case for case in CASES if case[0] in ("sparsegpt", "wanda", "magnitude")]


@pytest.mark.parametrize("case", only_fast(QUICK, CASES), ids=str)
def test_the_scale_of_the_inputs_does_not_matter(case):
    name, scale = case
    one, other = mask_of(name, 1.0), mask_of(name, scale)
    jax.tree.map(np.testing.assert_array_equal, one, other)


FAR = [1e-37, 1e-25, 1e-21, 1e-18, 1e18, 1e30]


@METHOD
@pytest.mark.parametrize("scale", only_fast([1e-37, 1e30], FAR))
def test_beyond_that_the_layers_are_named(name, scale):
    names = "2 of 2 layers have .*: w, v. Scale"
    with pytest.raises(results.SolveError, match=names) as e:
        mask_of(name, scale)
    codes = [int(site.result) for site in e.value.pruned.report.sites]
    assert codes == [results.EXTREME] * 2


def test_weights_and_responses_count_too():
    small = {"w": PARAMS["w"], "v": PARAMS["v"] * np.float32(1e-30)}
    for name in ("magnitude", "wanda"):
        with pytest.raises(results.SolveError, match="1 of 2 layers have .*: v. Scale"):
            nt.prune(small, apply_fn, ROWS, method=METHODS[name])
    kept = nt.prune(small, apply_fn, ROWS, method=METHODS["wanda"], on_failure="keep")
    np.testing.assert_array_equal(kept.params["v"], small["v"])
    assert np.count_nonzero(kept.params["w"]) == 64


@slow
def test_a_refit_is_refused_as_well():
    mask = mask_of("magnitude", 1.0)
    with pytest.raises(results.SolveError, match="layers have .*: w, v. Scale"):
        nt.refit(PARAMS, mask, apply_fn, ROWS * np.float32(1e-25))


def test_a_dead_channel_of_a_grouped_convolution_is_no_reason():
    kernel = RNG.normal(size=(3, 3, 1, 4)).astype(np.float32)
    image = RNG.normal(size=(8, 6, 6, 4)).astype(np.float32)
    image[..., 1] *= np.float32(1e-30)

    def grouped(p, x):
        return jax.lax.conv_general_dilated(
            *(x, p["k"], (1, 1), "SAME"),
            feature_group_count=4,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",
        )

    method = nt.Wanda(nt.Sparsity(0.5))
    pruned = nt.prune({"k": kernel}, grouped, image, method=method)
    assert np.count_nonzero(pruned.params["k"]) == 18


@pytest.mark.parametrize(
    "name", only_fast(["magnitude"], ["magnitude", "sparsity", "nettrim"])
)
def test_params_come_back_in_the_dtype_that_was_given(name):
    params = {
        "w": RNG.normal(size=(16, 8)),  # float64
        "v": RNG.normal(size=(8, 4)).astype(np.float16),
        "steps": np.arange(3),  # int64
        "bias": np.full(8, 1 / 3),
    }

    def run(p, x):
        bias = p["bias"].astype(jnp.float32)[None, :]
        hidden = jax.nn.relu(x @ p["w"].astype(jnp.float32) + bias)
        return hidden @ p["v"].astype(jnp.float32)

    with disable_x64():
        pruned = nt.prune(params, run, ROWS, method=METHODS[name])
        again = nt.refit(params, pruned.mask, run, ROWS)
    for found in (pruned.params, again.params):
        dtypes = {name: leaf.dtype for name, leaf in found.items()}
        assert dtypes == {name: leaf.dtype for name, leaf in params.items()}
        np.testing.assert_array_equal(found["steps"], params["steps"])
    if name == "magnitude":  # what is kept has every bit
        kept = np.asarray(pruned.mask["w"])
        np.testing.assert_array_equal(pruned.params["w"], params["w"] * kept)
        np.testing.assert_array_equal(pruned.params["bias"], params["bias"])


@pytest.mark.parametrize("factor", [None, -2.0])
@pytest.mark.parametrize("lib", [np, jnp])
def test_answers_that_vanish_in_the_leaf_are_zeros_without_a_sign(factor, lib):
    leaf = lib.asarray([[1.0, -1.0], [2.0, 0.0]], "float16")
    index = np.arange(4).reshape(1, 2, 2)
    factor = factor and lib.full((1, 2, 2), factor, "float32")
    place = layer.Place(Entries(leaf, index, factor), None)
    W0 = lib.asarray(entries.read(place.weights), "float32")
    W = lib.asarray([[[-1e-9, 1e-9], [3.0, 0.0]]], "float32")
    data = types.SimpleNamespace(
        W0=W0, allowed=None, bias=None, seen=types.SimpleNamespace(gain=None)
    )
    answer = Answer(W, None, np.array([results.DIRECT]), {})
    stored, _ = layer.write(answer, data, place, keep=True)
    want = [[0, 0], [3.0 if factor is None else -1.5, 0]]
    assert stored.dtype == np.float16 and stored.tolist() == want
    gone = np.asarray(leaf) != 0
    assert not np.signbit(np.asarray(stored))[gone & (np.asarray(stored) == 0)].any()
