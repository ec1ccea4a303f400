"""``connection_cost``: the prox of each penalty after a step of any optimiser."""

import jax
import jax.numpy as jnp
import loops
import numpy as np
import optax
import pytest
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax.results import MethodError, ParamsError


@pytest.fixture(autouse=True)
def promotion():
    """Optimisers promote dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


PENALTIES = {
    "L1": nt.L1(),
    "ElasticNet": nt.ElasticNet(ridge=1.0),
    "Box": nt.Box(-0.2, 0.2),
    "Nonnegative": nt.Nonnegative(),
    "inputs": nt.GroupL1("inputs", weight=2.0),
    "neurons": nt.GroupL1("neurons", weight=2.0),
    "channels": nt.GroupL1("channels", weight=2.0),
    "blocks": nt.GroupL1((2, 2), weight=2.0),
    "SparseGroup": nt.SparseGroup("inputs", weight=2.0),
}


@slow
@pytest.mark.parametrize("dtype", only_fast(["float32"], ["float32", "bfloat16"]))
@pytest.mark.parametrize("name", only_fast(["neurons"], PENALTIES))
def test_a_step_is_that_of_proximal_gradient_descent(name, dtype):
    params, loss = loops.problem(dtype)
    penalty, rate = PENALTIES[name], 0.1
    tx = optax.chain(
        optax.sgd(rate), nt.connection_cost(3.0, rate, penalty, loops.layers())
    )
    [(new, _)] = loops.run(tx, params, loss, steps=1)
    grads = jax.grad(loss)(params, 0)
    if name == "channels":
        penalty = nt.GroupL1("inputs", weight=2.0)  # of a dense layer they are these
    zeros = 0
    for key in loops.LAYERS:
        W, G = (a[key].astype("float32") for a in (params, grads))
        if dtype == "bfloat16":
            G = (rate * G).astype(dtype).astype("float32") / rate
        want = penalty.prox(W - rate * G, jnp.full((1, 1), 3.0 * rate))
        loose = 0.01 if dtype == "bfloat16" else 1e-6
        np.testing.assert_allclose(new[key].astype("float32"), want, atol=loose)
        assert dtype == "bfloat16" or ((new[key] == 0) == (want == 0)).all()
        zeros += int((want == 0).sum())
    assert zeros and (new["bias"] == params["bias"] - rate * grads["bias"]).all()


def test_units_go_as_a_whole_and_shrink_takes_them():
    params, loss = loops.problem()
    tx = optax.chain(
        optax.adam(0.02), nt.connection_cost(1.0, 0.02, nt.GroupL1("neurons"))
    )
    new, _ = loops.run(tx, params, loss, steps=60)[-1]
    gone = (new["hidden"] == 0).all(0)
    # a unit without weights is a constant, which no bias behind it can take
    zero = int((gone & (new["bias"] <= 0)).sum())
    small = nt.shrink(new, loops.apply_fn, jnp.ones((4, 8), "float32"))
    assert 0 < zero <= 16 - small.params["hidden"].shape[1]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8)), "float32")
    np.testing.assert_allclose(
        small.apply_fn(small.params, x), loops.apply_fn(new, x), atol=1e-5
    )


@slow
def test_with_a_mask_before_it():
    """What the mask removes stays zero, and schedules of optax are followed."""
    params, loss = loops.problem()
    rate = optax.cosine_decay_schedule(0.05, 12)
    rounds = nt.Rounds(nt.Sparsity(0.5), starts=(0,))
    cost = nt.connection_cost(lambda count: 0.1 * count, rate)
    tx = optax.chain(nt.train_sparse(optax.adam(rate), rounds), cost)
    plain = nt.train_sparse(optax.adam(rate), rounds)
    ours, theirs = (loops.run(one, params, loss) for one in (tx, plain))
    # the strength is zero in the first step
    for key in loops.LAYERS:
        np.testing.assert_allclose(ours[0][0][key], theirs[0][0][key], atol=1e-6)
    for new, state in ours:
        nt.check_sparse(new, state)
    new, state = ours[-1]
    assert int((new["hidden"] == 0).sum()) > loops.zeros(nt.mask_of(state))[0]


@slow
def test_channels_of_a_convolution():
    rng = np.random.default_rng(0)
    params = {"conv": jnp.asarray(rng.normal(size=(3, 3, 4, 2)), "float32")}
    params["conv"] = params["conv"].at[:, :, 1].multiply(0.01)

    def apply_fn(params, x):
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, params["conv"], (1, 1), "SAME", dimension_numbers=names
        )

    found = nt.sites(params, apply_fn, jnp.zeros((1, 6, 6, 4), "float32"))
    penalty = nt.GroupL1("channels")
    tx = nt.connection_cost(1.0, 0.5, penalty, layers=found)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = loops.once(tx, zeros, params)
    new = optax.apply_updates(params, updates)["conv"]
    gone = (new == 0).all((0, 1, 3))
    assert gone.tolist() == [False, True, False, False]
    with pytest.raises(MethodError, match="conv: expected how many channels"):
        nt.connection_cost(1.0, 0.5, penalty).init(params)


def test_errors():
    params, _ = loops.problem()
    with pytest.raises(MethodError, match=r"strength=-1\): expected a number"):
        nt.connection_cost(-1, 0.1)
    with pytest.raises(MethodError, match=r"learning_rate='x'\): expected a number"):
        nt.connection_cost(1.0, "x")
    with pytest.raises(MethodError, match=r"penalty=0.1\): expected a penalty"):
        nt.connection_cost(1.0, 0.1, 0.1)
    with pytest.raises(MethodError, match="hidden: expected whole groups"):
        nt.connection_cost(1.0, 0.1, nt.GroupL1((3, 1))).init(params)
    with pytest.raises(MethodError, match="expected layers=nettrim_jax.sites"):
        nt.connection_cost(1.0, 0.1, layers="hidden")
    tx = nt.connection_cost(1.0, 0.1)
    with pytest.raises(ParamsError, match="expected params, got None"):
        tx.update(params, tx.init(params))
