"""``mask_of``, ``check_sparse``, and the loops of frameworks and meshes."""

import pathlib

import devices
import jax
import jax.numpy as jnp
import loops
import numpy as np
import optax
import pytest
from marks import slow

import nettrim_jax as nt
from nettrim_jax.results import MethodError, ParamsError


@pytest.fixture(autouse=True)
def promotion():
    """Optimisers promote dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


ROUNDS = nt.Rounds(nt.Sparsity(0.75), starts=(0, 2))
ZEROS = [96, 48]


@slow
def test_two_parts_of_one_network_are_one_mask():
    params, loss = loops.problem()
    labels = {"hidden": "a", "bias": "rest", "output": "b"}
    first = nt.train_sparse(optax.adam(0.05), ROUNDS)
    other = nt.train_sparse(optax.sgd(0.05), nt.Rounds(nt.NM(1, 4), starts=(0,)))
    parts = {"a": first, "b": other, "rest": optax.sgd(0.05)}
    tx = optax.multi_transform(parts, labels)
    new, state = loops.run(tx, params, loss, steps=3)[-1]
    assert loops.zeros(nt.mask_of(state)) == ZEROS
    nt.check_sparse(new, state)
    with pytest.raises(ParamsError, match="output: 48 of 48 removed weights"):
        nt.check_sparse({**new, "output": params["output"]}, state)


def test_what_scales_after_it_is_told():
    params, loss = loops.problem()
    tx = optax.chain(nt.train_sparse(optax.adam(0.05), ROUNDS), optax.scale(0.5))
    new, state = loops.run(tx, params, loss, steps=1)[-1]
    with pytest.raises(ParamsError, match=r"hidden: 64 of 64 removed.*the last"):
        nt.check_sparse(new, state)


def test_errors():
    params, loss = loops.problem()
    tx = nt.train_sparse(optax.adam(0.05), ROUNDS)
    state = tx.init(params)
    with pytest.raises(
        MethodError, match="found no state of nettrim_jax.train_sparse.*keep_sparse"
    ):
        nt.mask_of(optax.adam(0.1).init(params))
    with pytest.raises(ParamsError, match="expected the 3 leaves"):
        nt.check_sparse({"hidden": params["hidden"]}, state)
    with pytest.raises(ParamsError, match=r"hidden: expected the shape \[8, 16\]"):
        nt.check_sparse({**params, "hidden": params["output"]}, state)
    with pytest.raises(MethodError, match="outside of jax.jit"):
        jax.jit(nt.check_sparse)(params, state)
    other = nt.train_sparse(optax.adam(0.05), ROUNDS).init([params["hidden"]])
    with pytest.raises(MethodError, match="several trees of params"):
        nt.mask_of((state, other))


def test_moments_are_found_by_their_paths():
    """A leaf of the state belongs to the param on whose whole path its own ends."""
    from nettrim_jax.training.leaves import flatten
    from nettrim_jax.training.state import fresh

    params = {"w": jnp.ones((2, 2)), "mu": {"w": jnp.ones((2, 2))}}
    state = optax.adam(0.1).init(params)
    state = jax.tree.map(lambda a: jnp.ones_like(a), state)
    flat = flatten(params)
    moved = [jnp.asarray([[True, False], [False, False]]), None]
    assert flat.paths == ("mu/w", "w")
    new = fresh(state, flat, moved)[0]
    for moments in (new.mu, new.nu):
        assert moments["mu"]["w"].tolist() == [[0, 1], [1, 1]]
        assert moments["w"].tolist() == [[1, 1], [1, 1]]
    assert new.count == 1


SEVERAL = """
import sys, jax, jax.numpy as jnp, numpy as np, optax, nettrim_jax as nt
sys.path.insert(0, sys.argv[1])
import loops

kind = getattr(jax.sharding.AxisType, sys.argv[2])
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",), axis_types=(kind,))
enter = getattr(jax, "set_mesh", None) or jax.sharding.use_mesh
P = jax.sharding.PartitionSpec
specs = {"hidden": P(None, "x"), "bias": P("x"), "output": P("x", None)}
alone, _ = loops.problem()

def put(key, a):
    return jax.device_put(a, jax.sharding.NamedSharding(mesh, specs[key]))

def loss(params, at):
    return sum((a**2).sum() for a in params.values())

for schedule in (
    nt.Regrow(nt.Sparsity(0.75, scope="network"), every=2, end=10),
    nt.Threshold(quality=0.5, every=2, revive=0.1),
):
    sparse = nt.train_sparse(optax.adam(0.05), schedule)
    tx = optax.chain(sparse, nt.connection_cost(0.1, 0.05, nt.GroupL1("neurons")))
    _, want = loops.run(tx, alone, loss, steps=3)[-1]
    params = {key: put(key, a) for key, a in alone.items()}
    first = tx.init(params)
    with enter(mesh):
        new, state = loops.run(tx, params, loss, steps=3, state=first)[-1]
    nt.check_sparse(new, state)
    for key, mask in nt.mask_of(state).items():
        assert nt.mask_of(first)[key].sharding == params[key].sharding
        if kind.name == "Explicit":  # else XLA chooses how results are laid out
            assert mask.sharding == new[key].sharding == params[key].sharding
        assert (np.asarray(mask) == np.asarray(nt.mask_of(want)[key])).all()
"""


@slow
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_on_several_devices(kind):
    tests = str(pathlib.Path(__file__).parents[1])
    devices.run(SEVERAL, tests, kind, devices=2)


@slow
@pytest.mark.parametrize("explicit", [False, True])
def test_masks_are_sharded_as_params_are(explicit):
    params, loss = loops.problem()
    alone = loops.run(nt.train_sparse(optax.adam(0.05), ROUNDS), params, loss, steps=3)
    kind = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("x",), axis_types=(kind,))
    spec = jax.sharding.PartitionSpec()
    sharding = jax.sharding.NamedSharding(mesh, spec)
    params = jax.device_put(params, sharding)
    tx = nt.train_sparse(optax.adam(0.05), ROUNDS)
    new, state = loops.run(tx, params, loss, steps=3)[-1]
    for key in loops.LAYERS:
        assert nt.mask_of(state)[key].sharding.mesh.shape == mesh.shape
        assert (nt.mask_of(state)[key] == nt.mask_of(alone[-1][1])[key]).all()


def linen():
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(nn.relu(nn.Dense(16)(x)))

    return Net()


def batch():
    rng = np.random.default_rng(1)
    shapes = ((32, 8), (32, 4))
    return jax.device_put([rng.normal(size=s).astype("float32") for s in shapes])


@slow
def test_a_train_state_of_flax():
    pytest.importorskip("flax")
    from flax.training.train_state import TrainState

    model, (x, y) = linen(), batch()
    params = model.init(jax.random.key(0), x)["params"]

    def apply_fn(params, x):
        return model.apply({"params": params}, x)

    layers = nt.sites(params, apply_fn, x)
    tx = nt.train_sparse(optax.adamw(0.05), {"Dense_0": None, ".*": ROUNDS}, layers)
    state = TrainState.create(apply_fn=apply_fn, params=params, tx=tx)

    @jax.jit
    def step(state):
        def loss(params):
            return jnp.mean((state.apply_fn(params, x) - y) ** 2)

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    for _ in range(3):
        state = step(state)
        nt.check_sparse(state.params, state.opt_state)
    mask = nt.mask_of(state.opt_state)
    # the inner layer is made last
    assert (~mask["Dense_1"]["kernel"]).sum() == 96 and mask["Dense_0"]["kernel"].all()
    # those that were listed with the collection around them are other params
    other = nt.sites({"params": params}, model.apply, x)
    with pytest.raises(ParamsError, match="params/Dense_1/kernel: a layer of layers="):
        nt.train_sparse(optax.sgd(0.1), ROUNDS, layers=other).init(params)


@slow
def test_an_optimizer_of_nnx():
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self):
            self.hidden = nnx.Linear(8, 16, rngs=nnx.Rngs(0))
            self.output = nnx.Linear(16, 4, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.output(nnx.relu(self.hidden(x)))

    model, (x, y) = Net(), batch()
    graph, params = nnx.split(model, nnx.Param)
    found = nt.sites(params, lambda params, x: nnx.merge(graph, params)(x), x)
    tx = nt.train_sparse(optax.adamw(0.05), ROUNDS, layers=found)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            return jnp.mean((model(x) - y) ** 2)

        optimizer.update(model, nnx.grad(loss)(model))

    step_ = step
    for _ in range(3):
        step_(model, optimizer)
        nt.check_sparse(nnx.state(model, nnx.Param), optimizer.opt_state)
    for layer, zeros in zip((model.hidden, model.output), ZEROS, strict=True):
        assert int((layer.kernel[...] == 0).sum()) == zeros


@slow
def test_modules_of_equinox():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0))
    model = eqx.nn.Sequential(
        [
            eqx.nn.Linear(8, 16, key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Linear(16, 4, key=keys[1]),
        ]
    )
    x, y = batch()
    found = nt.sites(model, lambda model, x: jax.vmap(model)(x), x)
    # of each four inputs of a unit one is left: the matrices are stored [out, in]
    rounds = nt.Rounds(nt.NM(1, 4), starts=(0,))
    tx = nt.train_sparse(optax.adamw(0.05), rounds, layers=found)
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        def loss(model):
            return jnp.mean((jax.vmap(model)(x) - y) ** 2)

        grads = eqx.filter_grad(loss)(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = tx.update(grads, state, params)
        return eqx.apply_updates(model, updates), state

    for _ in range(3):
        model, state = step(model, state)
        nt.check_sparse(eqx.filter(model, eqx.is_inexact_array), state)
    for at in (0, 2):
        weight = model.layers[at].weight
        groups = (weight != 0).reshape(weight.shape[0], -1, 4).sum(2)
        assert (groups == 1).all()
