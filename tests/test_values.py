"""Single values: numbers of NumPy serve everywhere, other kinds are refused by name."""

import jax
import jax.numpy as jnp
import models
import numpy as np
import optax
import pytest

import nettrim_jax as nt

W = models.normal(8, 8)
X = models.data(40, 8)
Y = X @ W
HALF = nt.Magnitude(nt.Sparsity(0.5))


def method(make):
    """Pruning by a method with this value."""

    def prune(value):
        return nt.sites(W, lambda w, x: x @ w, X, method=make(value))

    return prune


def call(name):
    """Pruning with this value of an argument."""

    def prune(value):
        settings = {"method": HALF} | {name: value}
        return nt.prune(W, lambda w, x: x @ w, X, **settings)

    return prune


def penalty(make):
    return lambda value: nt.linear_program(X, Y, 1.0, penalty=make(value))


WHOLE = [2, np.int64(2), np.int32(2), np.uint8(2)]
SHARE = [0.5, np.float32(0.5), np.float64(0.5), np.float16(0.5), 1, np.int64(1)]
SCALAR = [*SHARE, np.array(0.5), np.array(1), jnp.asarray(0.5), np.array(0.5, "half")]
FLAG = [True, False, np.True_]
NEVER = ["abc", {}, 1j, [1, 2], float("nan"), object()]
NUMBERS = [*NEVER, True, np.True_]
NONE = [*NUMBERS, None]

SETTINGS = {  # what is served, and what is refused
    "rows": (call("rows"), WHOLE, [*NONE, 0.5]),
    "held_out": (call("held_out"), SHARE[:4], NONE),
    "memory": (call("memory"), [*WHOLE, 1e9, np.float32(1e9)], NONE),
    "bound": (call("bound"), FLAG[1:2] + [np.False_], [*NEVER, None, 1]),
    "revive": (call("revive"), FLAG, [*NEVER, None, 1]),
    "key": (call("key"), WHOLE, [*NONE, 0.5]),
    "tol": (lambda v: nt.ADMM(tol=v), SHARE, NONE),
    "max_steps": (lambda v: nt.ADMM(max_steps=v), WHOLE, [*NONE, 0.5]),
    "epsilon": (method(lambda v: nt.NetTrim(epsilon=v)), SCALAR, NONE),
    "gamma": (method(lambda v: nt.NetTrim(gamma=v)), [2, *WHOLE, 1.5], [*NONE, [1.5]]),
    "rounds": (method(lambda v: nt.NetTrim(rounds=v)), WHOLE, [*NONE, 0.5]),
    "refit": (method(lambda v: nt.NetTrim(refit=v)), FLAG, [*NEVER, None, 1]),
    "deviation": (method(lambda v: nt.NetTrim(deviation=v)), SCALAR, NUMBERS),
    "drop": (
        method(lambda v: nt.NetTrim(drop=v, metric=lambda p, b: 0.0)),
        SCALAR,
        NONE,
    ),
    "level": (method(lambda v: nt.Magnitude(nt.Sparsity(v))), SHARE, NONE),
    "n": (method(lambda v: nt.Magnitude(nt.NM(v, 4))), WHOLE, [*NONE, 0.5]),
    "m": (method(lambda v: nt.Magnitude(nt.NM(1, v))), WHOLE, [*NONE, 0.5]),
    "pad": (lambda v: nt.NM(2, 4, pad=v), FLAG, [*NEVER, None, 1]),
    "block pad": (lambda v: nt.Blocks(0.5, (2, 2), pad=v), FLAG, [*NEVER, None, 1]),
    "block side": (
        method(lambda v: nt.Magnitude(nt.Blocks(0.5, (v, 2)))),
        WHOLE,
        [*NONE, 0.5],
    ),
    "neurons": (method(lambda v: nt.Magnitude(nt.Neurons(v))), SHARE, NONE),
    "ridge": (method(lambda v: nt.Reconstruct(nt.NM(2, 4), ridge=v)), SHARE, NUMBERS),
    "steps": (
        method(lambda v: nt.Reconstruct(nt.NM(2, 4), steps=v)),
        WHOLE,
        [*NUMBERS, 0.5],
    ),
    "damping": (method(lambda v: nt.SparseGPT(nt.NM(2, 4), damping=v)), SCALAR, NONE),
    "damping of OBS": (
        method(lambda v: nt.LayerOBS(nt.NM(2, 4), damping=v)),
        SCALAR,
        NONE,
    ),
    "block": (
        method(lambda v: nt.SparseGPT(nt.NM(2, 4), block=v)),
        WHOLE,
        [*NONE, 0.5],
    ),
    "seed": (method(lambda v: nt.Random(nt.NM(2, 4), seed=v)), WHOLE, [*NONE, 0.5]),
    "budget": (lambda v: nt.linear_program(X, Y, v), SCALAR, NONE),
    "t": (lambda v: nt.linear_program(X, Y, 1.0, t=v), SCALAR, [*NEVER, None]),
    "V": (lambda v: nt.relu_program(X, Y, 1.0, V=v), SCALAR, [*NEVER, None]),
    "X": (lambda v: nt.relu_program(v, Y, 1.0), [X], NONE),
    "Y": (lambda v: nt.relu_program(X, v, 1.0), [Y], [*NEVER, None]),
    "L1": (penalty(nt.L1), SCALAR, [*NEVER, None]),
    "Box": (penalty(lambda v: nt.Box(-1.0, v)), SCALAR, [*NEVER, None]),
    "ElasticNet": (penalty(nt.ElasticNet), SCALAR, [*NEVER, None]),
    "Sign": (penalty(nt.Sign), [W], ["abc", {}, 1j, None]),
    "FixedPattern": (penalty(nt.FixedPattern), [W, W != 0], ["abc", {}, 1j, None]),
    "groups": (penalty(lambda v: nt.GroupL1((v, 1))), WHOLE, [*NONE, 0.5]),
    "config": (lambda v: nt.path(PROGRAM, [1.0], v), [], [*NUMBERS, W]),
    "program": (lambda v: nt.path(v, [1.0]), [], [*NONE, W]),
    "path": (
        lambda v: nt.path(PROGRAM, v),
        [],
        ["abc", None, 1j, {}, object(), 0.5, [-1.0], [[1.0]], [], ["a"]],
    ),
    "optimizer": (
        lambda v: nt.keep_sparse(v, W != 0),
        [optax.adam(1e-3)],
        ["adam", None, 1e-3, optax.adam],
    ),
    "message": (nt.results.message, [0, np.int32(1), jnp.asarray(2)], ["abc", None, 9]),
}
PROGRAM = nt.linear_program(X, Y, 1.0)


def cases(part):
    return [
        pytest.param(name, value, id=f"{name}-{i}")
        for name, entry in SETTINGS.items()
        for i, value in enumerate(entry[part])
    ]


@pytest.mark.parametrize("name, value", cases(1))
def test_is_served(name, value):
    SETTINGS[name][0](value)


@pytest.mark.parametrize("name, value", cases(2))
def test_is_refused(name, value):
    with pytest.raises(nt.NetTrimError) as caught:
        SETTINGS[name][0](value)
    assert len(str(caught.value)) < 600


def test_numbers_of_numpy_mean_the_same():
    """Equal settings compile once, and make the same choice."""
    assert nt.NM(np.int64(2), np.int32(4)) == nt.NM(2, 4)
    assert type(nt.NM(np.int64(2), 4).n) is int
    assert nt.Blocks(0.5, (np.int64(2), 2)) == nt.Blocks(0.5, (2, 2))
    one = call("method")(nt.Magnitude(nt.NM(np.int64(2), np.int64(4), pad=np.True_)))
    other = call("method")(nt.Magnitude(nt.NM(2, 4, pad=True)))
    np.testing.assert_array_equal(one.mask, other.mask)
    assert int(np.sum(one.mask)) == 32


def test_what_is_refused_is_named():
    with pytest.raises(
        nt.NetTrimError, match=r"path: expected budgets \[k\], got none"
    ):
        nt.path(PROGRAM, "abc")
    match = r"keep_sparse\('adam'\): expected an optimiser of optax"
    with pytest.raises(nt.NetTrimError, match=match):
        nt.keep_sparse("adam", W != 0)
    with pytest.raises(
        nt.NetTrimError, match=r"NetTrim\(epsilon=True\): expected a nu"
    ):
        nt.NetTrim(epsilon=True).check()
    match = "program: expected numbers in L1, got 'abc'"
    with pytest.raises(nt.NetTrimError, match=match):
        nt.linear_program(X, Y, 1.0, penalty=nt.L1("abc"))


def test_traced_values_are_served():
    """Neither their kind nor their value is in the way."""

    def prune(epsilon):
        method = nt.NetTrim(epsilon=epsilon)
        settings = {"method": method, "on_failure": "keep"}
        return nt.prune(W, lambda w, x: x @ w, X, **settings).report.sites[0].epsilon

    assert float(jax.eval_shape(prune, jnp.asarray(0.25)).size) == 1
