"""Optimisers that keep shared values shared, against the codebook's own gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from marks import slow

import nettrim_jax as nt
from nettrim_jax.methods.codes import Codes
from nettrim_jax.results import MethodError, ParamsError


@pytest.fixture(autouse=True)
def promotion():
    """Optimisers promote dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


GROUP = np.zeros((1, 1), np.int32)
CODES = np.random.default_rng(0).integers(4, size=(8, 5)).astype(np.uint8)
BOOK = np.array([[-1.0, 0.25, 2.0]], np.float32)
SHARED = {"w": Codes(CODES, BOOK, GROUP)}
X = jnp.asarray(np.random.default_rng(1).normal(size=(20, 8)), jnp.float32)
Y = jnp.asarray(np.random.default_rng(2).normal(size=(20, 5)), jnp.float32)


def params(dtype="float32"):
    return {"w": jnp.asarray(SHARED["w"].decode(), dtype), "b": jnp.zeros(5, dtype)}


def loss(params):
    return jnp.mean((X @ params["w"] + params["b"] - Y) ** 2)


def steps(optimizer, given, count):
    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(given)
    for _ in range(count):
        given, state = step(given, state)
    return given


def test_sgd_moves_values_by_their_own_gradients():
    onehot = jnp.asarray(np.eye(4)[CODES][..., 1:], jnp.float32)

    def of_values(values, b):
        return loss({"w": onehot @ values, "b": b})

    values, b = jnp.asarray(BOOK[0]), jnp.zeros(5)
    for _ in range(5):
        g = jax.grad(of_values, argnums=(0, 1))(values, b)
        values, b = values - 0.1 * g[0], b - 0.1 * g[1]
    done = steps(nt.keep_shared(optax.sgd(0.1), SHARED), params(), 5)
    np.testing.assert_allclose(done["w"], onehot @ values, atol=1e-5)
    np.testing.assert_allclose(done["b"], b, atol=1e-5)


OPTIMIZERS = {
    "adam": optax.adam(0.03),
    "adamw": optax.adamw(0.03, weight_decay=0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "noise": optax.chain(optax.add_noise(0.1, 0.5, 0), optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_stay_shared_in_every_bit(name, dtype):
    done = steps(nt.keep_shared(OPTIMIZERS[name], SHARED), params(dtype), 7)
    w = np.asarray(done["w"])
    assert done["w"].dtype == jnp.dtype(dtype)
    assert (w[CODES == 0] == 0).all()
    for code in (1, 2, 3):
        mine = w[CODES == code]
        assert len({one.tobytes() for one in mine}) == 1
        assert mine[0] != params(dtype)["w"][CODES == code][0]
    assert len(np.unique(np.asarray(done["b"], np.float32))) > 3  # not shared


@slow
@pytest.mark.parametrize("name", ["adam", "momentum"])
def test_sums_of_gradients_that_leave_the_range_of_float16(name):
    given = params("float16")
    grads = jax.tree.map(lambda a: jnp.full(a.shape, 2e4, a.dtype), given)
    wrapped = nt.keep_shared(OPTIMIZERS[name], SHARED)
    state = wrapped.init(given)
    updates, after = wrapped.update(grads, state, given)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (given, grads))
    want, _ = wrapped.update(wide[1], wrapped.init(wide[0]), wide[0])
    np.testing.assert_allclose(updates["w"], want["w"], rtol=1e-3)
    assert np.isfinite(np.asarray(updates["w"])).all()
    assert jax.tree.map(lambda a: a.dtype, updates) == {"w": "float16", "b": "float16"}
    kinds = [jax.tree.map(jnp.result_type, one) for one in (state, after)]
    assert kinds[0] == kinds[1]


@slow
def test_it_takes_what_share_returned_and_the_loss_falls():
    w = jnp.asarray(np.random.default_rng(3).normal(size=(8, 5)), jnp.float32)
    given = {"w": w, "b": jnp.zeros(5)}

    def call(params, x):
        return x @ params["w"] + params["b"]

    done = nt.share(given, given, call, X, bits=2, held_out=0)
    better = steps(nt.keep_shared(optax.adam(0.01), done), done.params, 30)
    assert loss(better) < loss(done.params)
    assert len(np.unique(better["w"])) == 3


def test_entries_of_no_layer_are_the_optimisers_own():
    group = np.where(np.arange(5) < 4, 0, -1)[None].astype(np.int32)
    codes = np.where(np.arange(5) < 4, CODES, 0).astype(np.uint8)
    own = {"w": params()["w"].at[:, 4].set(jnp.arange(8.0, dtype="float32"))}
    optimizer = nt.keep_shared(optax.sgd(1.0), {"w": Codes(codes, BOOK, group)})
    grads = {"w": jnp.ones((8, 5))}
    updates, _ = optimizer.update(grads, optimizer.init(own), own)
    assert updates["w"][:, 4].tolist() == [-1] * 8


def test_leaves_that_an_optimiser_does_not_see():
    labels = {"w": "shared", "b": "other"}
    every = optax.multi_transform(
        {"shared": nt.keep_shared(optax.sgd(0.1), SHARED), "other": optax.sgd(0.1)},
        labels,
    )
    done = steps(every, params(), 3)
    alone = steps(nt.keep_shared(optax.sgd(0.1), SHARED), params(), 3)
    np.testing.assert_allclose(done["w"], alone["w"], atol=1e-6)


def test_errors():
    with pytest.raises(MethodError, match="keep_shared.*expected an optimiser"):
        nt.keep_shared("adam", SHARED)
    with pytest.raises(ParamsError, match="keep_shared: expected what share returned"):
        nt.keep_shared(optax.sgd(0.1), params())
    optimizer = nt.keep_shared(optax.sgd(0.1), SHARED)
    with pytest.raises(ParamsError, match="w: its weights do not share"):
        optimizer.init({"w": jnp.asarray(np.arange(40.0).reshape(8, 5))})
    with pytest.raises(ParamsError, match=r"w: expected the shape \[8, 5\]"):
        optimizer.init({"w": jnp.ones((5, 8))})
    with pytest.raises(ParamsError, match="have no leaf w"):
        optimizer.init({"v": jnp.ones((8, 5))})
    with pytest.raises(ParamsError, match="expected params, got None"):
        optimizer.update(params(), optimizer.init(params()))
