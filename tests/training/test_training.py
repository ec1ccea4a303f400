"""Optimisers that leave zeros zero, against one that is masked by hand."""

import jax
import jax.numpy as jnp
import models
import numpy as np
import optax
import pytest
from marks import slow
from problems import data_file

import nettrim_jax as nt
from nettrim_jax.results import ParamsError


@pytest.fixture(autouse=True)
def promotion():
    """Optimisers promote dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.01),
    "adamw": optax.adamw(0.01, weight_decay=0.1),
    "noise": optax.chain(optax.add_noise(0.1, 0.5, 0), optax.sgd(0.1)),
}


def problem():
    """Params with half of the weights removed, their mask, and a loss."""
    params = models.mlp_params((8, 8, 4), 0)
    rng = np.random.default_rng(1)
    mask = jax.tree.map(
        lambda a: jnp.asarray(rng.random(a.shape) < (0.5 if a.ndim > 1 else 2)), params
    )
    params = jax.tree.map(lambda a, keep: jnp.where(keep, a, 0), params, mask)
    x = jnp.asarray(rng.normal(size=(32, 8)), jnp.float32)
    y = jnp.asarray(rng.normal(size=(32, 4)), jnp.float32)

    def loss(params):
        return jnp.mean((models.mlp(params, x) - y) ** 2)

    return params, mask, loss


def steps(optimizer, params, loss, count):
    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(count):
        params, state = step(params, state)
    return params, state


def all_zero(tree, mask):
    parts = jax.tree.map(lambda a, keep: (jnp.where(keep, 0, a) == 0).all(), tree, mask)
    return jnp.all(jnp.asarray(jax.tree.leaves(parts)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_zero_and_the_rest_learns(name):
    params, mask, loss = problem()
    new, _ = steps(nt.keep_sparse(OPTIMIZERS[name], mask), params, loss, 20)
    assert all_zero(new, mask)
    assert name == "noise" or loss(new) < 0.9 * loss(params)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_it_is_what_one_would_do_by_hand(name):
    params, mask, loss = problem()
    ours, state = steps(nt.keep_sparse(OPTIMIZERS[name], mask), params, loss, 20)

    def masked(params):
        return loss(jax.tree.map(lambda a, keep: jnp.where(keep, a, 0), params, mask))

    theirs, expected = steps(OPTIMIZERS[name], params, masked, 20)
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    # the moments, too, are zero where nothing is kept
    for a, b in zip(*map(jax.tree.leaves, (state, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


def test_params_that_are_not_zero_yet_become_so():
    params = jnp.ones(4)
    optimizer = nt.keep_sparse(optax.adam(0.1), jnp.array([True, False, True, False]))
    updates, _ = optimizer.update(jnp.ones(4), optimizer.init(params), params)
    new = optax.apply_updates(params, updates)
    assert new[1] == 0 == new[3] and (new[::2] < 1).all()


def among(mask):
    sparse = nt.keep_sparse(optax.adamw(0.01), mask)
    first = next(iter(mask))
    labels = {name: "sparse" if name == first else "dense" for name in mask}
    return {
        "chain": optax.chain(optax.clip_by_global_norm(1.0), sparse),
        "many": optax.multi_transform(
            {"sparse": sparse, "dense": optax.sgd(0.0)}, labels
        ),
        "accumulated": optax.MultiSteps(sparse, 2),
        "accumulating": nt.keep_sparse(
            optax.MultiSteps(optax.adam(0.01), 2).gradient_transformation(), mask
        ),
    }


@pytest.mark.parametrize("name", ["chain", "many", "accumulated", "accumulating"])
def test_composes(name):
    params, mask, loss = problem()
    optimizer = among(mask)[name]
    new, _ = steps(optimizer, params, loss, 10)
    assert all_zero(new, mask) and loss(new) < loss(params)


def test_sharded_params_stay_sharded():
    params, mask, loss = problem()
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params, mask = jax.device_put((params, mask), sharding)
    new, _ = steps(nt.keep_sparse(optax.adam(0.01), mask), params, loss, 2)
    assert all_zero(new, mask)
    assert all(a.sharding.mesh.shape == mesh.shape for a in jax.tree.leaves(new))


def test_half_precision_stays_half():
    params = jnp.ones(4, jnp.bfloat16)
    optimizer = nt.keep_sparse(optax.sgd(jnp.bfloat16(0.5)), jnp.arange(4) > 1)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert updates.dtype == jnp.bfloat16


def test_errors():
    optimizer = nt.keep_sparse(optax.sgd(0.1), {"a": jnp.ones((2, 3))})
    with pytest.raises(ParamsError, match=r"a: expected a mask of shape \[3, 2\]"):
        optimizer.init({"a": jnp.ones((3, 2))})
    with pytest.raises(ParamsError, match="a mask of the params' tree"):
        optimizer.init({"b": jnp.ones((2, 3))})
    state = optimizer.init({"a": jnp.ones((2, 3))})
    with pytest.raises(ParamsError, match="expected params, got None"):
        optimizer.update({"a": jnp.ones((2, 3))}, state)


@slow
def test_after_a_pruning():
    model = models.get("square")
    params, apply_fn, x = model.params, model.apply_fn, model.batch
    pruned = nt.prune(params, apply_fn, x, method=nt.NetTrim(epsilon=0.3))
    target = jax.tree.map(lambda a: a + 0.1, apply_fn(params, x))

    def loss(params):
        return jnp.mean((apply_fn(params, x) - target) ** 2)

    optimizer = nt.keep_sparse(optax.adamw(1e-2), pruned.mask)
    new, _ = steps(optimizer, pruned.params, loss, 50)
    assert all_zero(new, pruned.mask)
    assert loss(new) < loss(pruned.params)


def test_a_mask_that_is_no_array():
    optimizer = nt.keep_sparse(optax.sgd(0.1), {"a": False})
    with pytest.raises(ParamsError, match=r"a: expected a mask of shape \[3\], got F"):
        optimizer.init({"a": jnp.ones(3)})


def test_updates_narrower_than_the_params():
    params, mask = jnp.asarray([0.3, 0.3], jnp.float32), jnp.asarray([True, False])
    optimizer = nt.keep_sparse(optax.sgd(0.1), mask)
    updates, _ = optimizer.update(
        jnp.ones(2, jnp.bfloat16), optimizer.init(params), params
    )
    assert optax.apply_updates(params, updates)[1] == 0


@slow
@pytest.mark.parametrize("name", ["adamw", "momentum"])
def test_fine_tuning_regains_what_a_mask_by_hand_does(name):
    """500 steps at 97 % zeros; in float64, where rounding does not part the two."""
    files = [data_file(name) for name in ("lenet300_mnist.npz", "mnist.npz")]
    if None in files:
        pytest.skip("needs lenet300_mnist.npz and mnist.npz; set NETTRIM_DATA")
    flat, mnist = (dict(np.load(file)) for file in files)
    params = {
        f"{i}": {
            leaf: jnp.asarray(flat[f"Dense_{i}/{name}"], "float32")
            for leaf, name in (("w", "kernel"), ("b", "bias"))
        }
        for i in range(3)
    }
    images, test = (
        jnp.asarray(mnist[name].reshape(-1, 784) / 255, "float32")
        for name in ("x_train", "x_test")
    )

    def apply_fn(params, x):
        for i in range(3):
            x = x @ params[f"{i}"]["w"] + params[f"{i}"]["b"]
            x = jax.nn.relu(x) if i < 2 else x
        return x

    pruned = nt.prune(
        params,
        apply_fn,
        images[:4096],
        method={
            "2": nt.SparseGPT(nt.Sparsity(0.7)),
            ".*": nt.SparseGPT(nt.Sparsity(0.97)),
        },
    )
    start = jax.tree.map(lambda a: a.astype("float64"), pruned.params)
    optimizer = {
        "adamw": optax.adamw(0.01, weight_decay=0.01),
        "momentum": optax.chain(
            optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9)
        ),
    }[name]
    labels = jnp.asarray(mnist["y_train"], "int32")
    picks = np.random.default_rng(0).integers(0, len(images), (500, 128))

    def train(optimizer, after):
        def loss(params, x, y):
            log = jax.nn.log_softmax(apply_fn(params, x))
            return -jnp.mean(jnp.take_along_axis(log, y[:, None], axis=1))

        def step(carry, pick):
            params, state = carry
            x, y = images[pick].astype("float64"), labels[pick]
            grads = jax.grad(loss)(params, x, y)
            updates, state = optimizer.update(grads, state, params)
            params = after(optax.apply_updates(params, updates))
            return (params, state), all_zero(params, pruned.mask)

        @jax.jit
        def run(params):
            carry = params, optimizer.init(params)
            return jax.lax.scan(step, carry, jnp.asarray(picks))

        (params, state), zero = run(start)
        return params, state, zero

    def masked(params):
        return jax.tree.map(lambda a, keep: a * keep, params, pruned.mask)

    def right(params):
        guess = jnp.argmax(apply_fn(params, test.astype("float64")), axis=1)
        return int((guess == mnist["y_test"]).sum())

    ours, state, zero = train(nt.keep_sparse(optimizer, pruned.mask), lambda p: p)
    theirs, *_ = train(optimizer, masked)
    *_, without = train(optimizer, lambda p: p)
    assert zero.all() and not without.any()
    tree = jax.tree.structure(pruned.mask)

    def like(part):
        return jax.tree.structure(part) == tree

    moments = [part for part in jax.tree.leaves(state, is_leaf=like) if like(part)]
    assert moments and all(all_zero(part, pruned.mask) for part in moments)
    assert right(ours) >= right(theirs) > right(pruned.params) + 3000
