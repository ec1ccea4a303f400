"""``share(bytes=...)``: no file is larger than asked for, and no bits are better."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow

import nettrim_jax as nt
from nettrim_jax.results import BatchError, MethodError

KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = {  # the first layer has most weights, and the second one moves the output most
    "0": {"w": jax.random.normal(KEYS[0], (24, 48)) / 5, "b": jnp.full(48, 0.1)},
    "1": {"w": jax.random.normal(KEYS[1], (48, 10)) / 7, "b": jnp.zeros(10)},
}
X = jax.random.normal(KEYS[2], (400, 24))


def call(params, x):
    x = jax.nn.relu(x @ params["0"]["w"] + params["0"]["b"][None])
    return x @ params["1"]["w"] + params["1"]["b"][None]


@functools.cache
def pruned():
    return nt.prune(PARAMS, call, X, method=nt.Magnitude(nt.Sparsity(0.5)))


def share(batch=X, **settings):
    return nt.share(pruned(), PARAMS, call, batch, **settings)


@functools.cache
def with_bits(*bits):
    return share(bits={"0/w": bits[0], "1/w": bits[1]})


def size(folder, done):
    nt.save(folder / "model", done)
    return (folder / "model").stat().st_size


@slow
def test_against_all_bits(tmp_path):
    every = {
        bits: (size(tmp_path, with_bits(*bits)), float(with_bits(*bits).report.moved))
        for bits in itertools.product(range(1, 7), repeat=2)
    }
    sizes = sorted(every[n, n][0] for n in range(1, 6))
    between = [(a + b) // 2 for a, b in itertools.pairwise(sizes)]
    before = np.inf
    for most in sorted([*sizes[::2], *between[1::2]]):
        done = share(bytes=most)
        report, moved = done.report, float(done.report.moved)
        assert report.bytes == size(tmp_path, done) <= most == report.budget
        assert f"file of {report.bytes:,} bytes, of at most {most:,}" in str(report)
        same = with_bits(*(site.bits for site in report.sites))
        assert moved == pytest.approx(float(same.report.moved))
        fitting = {b: far for b, (n, far) in every.items() if n <= most}
        assert moved <= 1.3 * min(fitting.values())
        # rows that choose are not those of the report
        assert all(moved <= 1.02 * fitting.get((n, n), np.inf) for n in range(1, 7))
        assert moved <= 1.02 * before
        before = moved
    whole = share(bytes=10**6)
    assert [site.bits for site in whole.report.sites] == [8, 8]
    least = min(n for n, _ in every.values())
    with pytest.raises(MethodError, match=rf"share\(bytes=500\): .* has {least} bytes"):
        share(bytes=500)


@slow
def test_a_loader_and_a_fixed_bias_and_each_unit():
    batches = [X[k : k + 50] for k in range(0, 400, 50)]
    settings = {"exclude": "1/w", "bias": "fixed", "per": "unit", "mode": "parallel"}
    done = share(iter(batches), batches=6, bytes=np.int64(4200), **settings)
    assert done.report.bytes <= 4200
    assert json.loads(json.dumps(done.report.to_dict()))["budget"] == 4200
    assert done.codes.keys() == {"0/w"}
    # what comes back is fitted on all rows, and on no other batch
    again = share(iter(batches[:6]), bits=done.report.sites[0].bits, **settings)
    for one, other in zip(
        *map(jax.tree.leaves, (done.params, again.params)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


# ---- errors


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"bits": 4, "bytes": 3000}, r"share\(bits=4, bytes=3000\): expected one"),
        ({"bytes": 0}, r"share\(bytes=0\): expected an integer of at"),
        ({"bytes": 2e3}, r"share\(bytes=2000.0\): expected an integer of at"),
        ({"bytes": True}, r"share\(bytes=True\): expected an integer of at"),
        ({"bytes": 3000, "per": "layer"}, r"share\(per='layer'\): expected one of"),
        ({"bytes": 3000, "mode": "both"}, r"share\(mode='both'\): expected one of"),
        ({"bytes": 3000, "exclude": "other"}, "exclude='other' matches no layer"),
    ],
    ids=str,
)
def test_wrong_settings(settings, match):
    with pytest.raises(MethodError, match=match):
        share(**settings)


def test_outputs_that_are_zero():
    with pytest.raises(MethodError, match=r"share\(bytes=3000\): the .* are zero"):
        w = PARAMS["0"]["w"]
        nt.share(w, w, lambda w, x: x @ w, 0 * X, bytes=3000)


def test_too_few_rows():
    with pytest.raises(BatchError, match="3 rows; a budget needs at least 4"):
        share(X[:3], bytes=3000)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap], ids=["jit", "vmap"])
def test_values_that_are_traced(transform):
    stack = jax.tree.map(lambda a: jnp.stack([a, a]), PARAMS)
    given = PARAMS if transform is jax.jit else stack
    with pytest.raises(MethodError, match=r"share\(bytes=3000\): the search measures"):
        transform(lambda p: nt.share(p, p, call, X, bytes=3000).params)(given)
