"""``train_sparse``: exact counts, and exact zeros after every step."""

import functools

import jax
import jax.numpy as jnp
import loops
import numpy as np
import optax
import optax.contrib
import pytest
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax.results import MethodError, ParamsError


@pytest.fixture(autouse=True)
def promotion():
    """Optimisers promote dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


GRADUAL = nt.Gradual(nt.Sparsity(0.75), end=9, every=2)
LABELS = {"hidden": "sparse", "bias": "dense", "output": "sparse"}


def injected(schedule):
    def make(learning_rate):
        return nt.train_sparse(optax.adam(learning_rate), schedule)

    return optax.inject_hyperparams(make)(learning_rate=0.05)


# what is around the optimiser, and how many updates of the loop make one of its
AROUND = {
    "nesterov": lambda s: nt.train_sparse(
        optax.chain(
            optax.add_decayed_weights(1e-2),
            optax.sgd(0.05, momentum=0.9, nesterov=True),
        ),
        s,
    ),
    "adamw": lambda s: nt.train_sparse(optax.adamw(0.05, weight_decay=0.1), s),
    "lion": lambda s: nt.train_sparse(optax.lion(0.01), s),
    "lamb": lambda s: nt.train_sparse(optax.lamb(0.05, weight_decay=0.1), s),
    "adafactor": lambda s: nt.train_sparse(
        optax.adafactor(0.05, min_dim_size_to_factor=4, momentum=0.9), s
    ),
    "muon": lambda s: nt.train_sparse(optax.contrib.muon(0.05), s),
    "noise": lambda s: nt.train_sparse(optax.noisy_sgd(0.05, 0.01, 0.55, 0), s),
    "clipping": lambda s: optax.chain(
        optax.clip_by_global_norm(0.1), nt.train_sparse(optax.adam(0.05), s)
    ),
    "accumulated": lambda s: optax.MultiSteps(
        nt.train_sparse(optax.adam(0.05), s), 2
    ).gradient_transformation(),
    "accumulating": lambda s: nt.train_sparse(
        optax.MultiSteps(optax.adam(0.05), 2).gradient_transformation(), s
    ),
    "injected": injected,
    "injecting": lambda s: nt.train_sparse(
        # which gives adam's b2 the params' dtype: in bfloat16 it would be one
        optax.inject_hyperparams(optax.sgd)(learning_rate=0.05, momentum=0.9),
        s,
    ),
    "many": lambda s: optax.multi_transform(
        {"sparse": nt.train_sparse(optax.adam(0.05), s), "dense": optax.sgd(0.05)},
        LABELS,
    ),
    "finite": lambda s: nt.train_sparse(optax.apply_if_finite(optax.adam(0.05), 3), s),
    "finite around": lambda s: optax.apply_if_finite(
        nt.train_sparse(optax.adam(0.05), s), 3
    ),
}


def seen(name):
    """After how many of the wrapper's updates each step of the loop is."""
    each = 2 if name == "accumulated" else 1
    return [(t + 1) // each for t in range(loops.STEPS)]


@pytest.mark.parametrize("dtype", only_fast(["float32"], ["float32", "bfloat16"]))
@pytest.mark.parametrize("name", only_fast(["adamw", "adafactor"], AROUND))
def test_counts_and_zeros_after_every_step(name, dtype):
    params, loss = loops.problem(dtype)
    tx = AROUND[name](GRADUAL)
    numbers = loops.removed(GRADUAL)
    before = None
    for t, (new, state) in zip(seen(name), loops.run(tx, params, loss), strict=True):
        mask = nt.mask_of(state)
        assert loops.zeros(mask) == (numbers[t - 1] if t else [0, 0]), t
        nt.check_sparse(new, state)
        for key in loops.LAYERS:
            assert not jnp.any((new[key] != 0) & ~mask[key])
            assert before is None or not jnp.any(mask[key] & ~before[key])
            assert new[key].dtype == params[key].dtype
        before = mask
    assert all(jnp.isfinite(a).all() for a in new.values())
    if name != "noise":
        assert float(loss(new, 0)) < 1.5 * float(loss(params, 0))


@slow
@pytest.mark.parametrize("name", AROUND)
def test_regrowth_keeps_the_count_with_any_optimiser(name):
    params, loss = loops.problem()
    tx = AROUND[name](nt.Regrow(nt.Sparsity(0.75), every=2, end=10))
    masks = [nt.mask_of(tx.init(params))]
    for new, state in loops.run(tx, params, loss):
        masks.append(nt.mask_of(state))
        # with MultiSteps around, nothing happens before the first whole step
        if seen(name)[len(masks) - 2]:
            nt.check_sparse(new, state)
        assert loops.zeros(masks[-1]) == [96, 48]
    moved = [not loops.same(a, b) for a, b in zip(masks, masks[1:], strict=False)]
    assert any(moved)


def states(schedule, name, cut):
    params, loss = loops.problem()
    tx = AROUND[name](schedule)
    step = loops.step_of(tx, loss)
    whole = loops.run(tx, params, loss, step=step)
    return tx, params, loss, step, whole, whole[cut - 1]


RESUMED = {
    "gradual": GRADUAL,
    "movement": nt.Gradual(nt.Sparsity(0.75), end=9, every=2, by="movement"),
    "random": nt.Regrow(nt.Sparsity(0.75), every=2, end=10, by="random"),
    "threshold": nt.Threshold(quality=0.5, every=2, revive=0.2),
}


@pytest.mark.parametrize("cut", only_fast([5], range(1, loops.STEPS, 2)))
@pytest.mark.parametrize("schedule", only_fast(["random"], RESUMED))
@pytest.mark.parametrize("name", only_fast(["adamw"], ["adamw", "nesterov", "many"]))
def test_saved_by_msgpack_it_goes_on_bit_for_bit(schedule, name, cut):
    serialization = pytest.importorskip("flax.serialization")
    tx, params, loss, step, whole, at = states(RESUMED[schedule], name, cut)
    data = serialization.to_bytes(at)
    fresh = params, tx.init(params)
    params, state = jax.device_put(serialization.from_bytes(fresh, data))
    rest = loops.run(tx, params, loss, start=cut, state=state, step=step)
    assert loops.same(rest[-1], whole[-1])


@slow
@pytest.mark.parametrize("schedule", RESUMED)
def test_saved_by_orbax_it_goes_on_bit_for_bit(schedule, tmp_path):
    orbax = pytest.importorskip("orbax.checkpoint", reason="Orbax is not installed")
    tx, params, loss, step, whole, at = states(RESUMED[schedule], "adamw", 5)
    with orbax.StandardCheckpointer() as saver:
        saver.save(tmp_path / "state", at)
        saver.wait_until_finished()
        like = jax.tree.map(jax.numpy.zeros_like, (params, tx.init(params)))
        params, state = saver.restore(tmp_path / "state", like)
    rest = loops.run(tx, params, loss, start=5, state=state, step=step)
    assert loops.same(rest[-1], whole[-1])


def test_a_scan_is_the_loop():
    params, loss = loops.problem()
    tx = nt.train_sparse(optax.adamw(0.05), GRADUAL)
    numbers = jnp.arange(loops.STEPS)

    def step(carry, at):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, at), state, params)
        new = optax.apply_updates(params, updates)
        mask = nt.mask_of(state)
        left = [jnp.sum((new[key] != 0) & ~mask[key]) for key in loops.LAYERS]
        return (new, state), (sum(left), [jnp.sum(~mask[k]) for k in loops.LAYERS])

    @jax.jit
    def train(params):
        return jax.lax.scan(step, (params, tx.init(params)), numbers)

    (new, _), (left, zeros) = train(params)
    assert not left.any()
    assert np.stack(zeros, 1).tolist() == loops.removed(GRADUAL)
    nt.check_sparse(new, _)


def test_layers_are_matrices_as_they_are_found():
    """With ``layers`` the same network by transposed weights keeps the same ones."""
    params, loss = loops.problem()
    turned = {**params, "hidden": params["hidden"].T}

    def other(params, at):
        return loss({**params, "hidden": params["hidden"].T}, at)

    def apply_fn(params, x):
        return loops.apply_fn({**params, "hidden": params["hidden"].T}, x)

    x = jnp.zeros((32, 8), "float32")
    schedule = nt.Gradual(nt.NM(1, 4), end=9, every=2)
    found = nt.sites(turned, apply_fn, x)
    ours = loops.run(
        nt.train_sparse(optax.sgd(0.05), schedule, layers=found), turned, other
    )
    theirs = loops.run(
        nt.train_sparse(optax.sgd(0.05), schedule, layers=loops.layers()), params, loss
    )
    left = []
    for (_, a), (_, b) in zip(ours, theirs, strict=True):
        a, b = nt.mask_of(a), nt.mask_of(b)
        assert (a["hidden"].T == b["hidden"]).all()
        assert (a["output"] == b["output"]).all()
        groups = b["hidden"].reshape(2, 4, 16).sum(1)
        left.append(int(groups.max()))
        assert (groups == groups[0, 0]).all()
    assert left[0] == 4 and left[-1] == 1 and left == sorted(left, reverse=True)


@slow
def test_a_stack_has_a_layer_per_step():
    rng = np.random.default_rng(0)
    params = {"stack": jnp.asarray(rng.normal(size=(3, 8, 8)), "float32")}
    params["stack"] *= jnp.asarray([1, 10, 100], "float32")[:, None, None]

    def apply_fn(params, x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, params["stack"])[0]

    found = nt.sites(params, apply_fn, jnp.zeros((4, 8), "float32"))
    rounds = nt.Rounds(nt.Sparsity(0.5), starts=(0,))
    for layers, counts in ((found, [32, 32, 32]), (None, None)):
        tx = nt.train_sparse(optax.sgd(0.0), rounds, layers=layers)
        grads = jax.tree.map(jnp.ones_like, params)
        _, state = loops.once(tx, grads, params)
        left = nt.mask_of(state)["stack"].sum((1, 2)).tolist()
        assert left == (counts or left) and sum(left) == 96
    assert left[0] < 32 < left[2]


def test_a_convolution_is_a_matrix():
    """A row of its matrix is a channel at one place of the window."""
    rng = np.random.default_rng(0)
    params = {"conv": jnp.asarray(rng.normal(size=(3, 3, 4, 2)), "float32")}

    def apply_fn(params, x):
        return jax.lax.conv_general_dilated(
            x,
            params["conv"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    found = nt.sites(params, apply_fn, jnp.zeros((1, 6, 6, 4), "float32"))
    rounds = nt.Rounds(nt.Inputs(0.5), starts=(0,))
    tx = nt.train_sparse(optax.sgd(0.0), rounds, layers=found)
    grads = jax.tree.map(jnp.ones_like, params)
    _, state = loops.once(tx, grads, params)
    rows = nt.mask_of(state)["conv"].reshape(36, 2)
    assert (rows[:, 0] == rows[:, 1]).all() and rows[:, 0].sum() == 18


def test_paths_choose_schedules():
    params, loss = loops.problem()
    rounds = nt.Rounds(nt.Sparsity(0.5), starts=(0,))
    tx = nt.train_sparse(optax.sgd(0.05), {"out": None, "hidden|output": rounds})
    new, state = loops.run(tx, params, loss, steps=2)[-1]
    assert loops.zeros(nt.mask_of(state)) == [64, 0]
    assert nt.mask_of(state)["bias"].all() and (new["output"] != 0).all()


def test_an_update_goes_in_the_order_that_it_says():
    """Masked gradients inside, the mask from what the step leaves, fresh moments."""
    params, loss = loops.problem()
    rounds = nt.Rounds(nt.Sparsity(0.5), starts=(0, 3))
    tx, plain = nt.train_sparse(optax.adam(0.05), rounds), optax.adam(0.05)
    ours = loops.run(tx, params, loss, steps=5)
    state, mask = plain.init(params), jax.tree.map(lambda a: a == a, params)
    for at, (new, got) in enumerate(ours):
        grads = jax.tree.map(jnp.where, mask, jax.grad(loss)(params, at), _none(mask))
        updates, state = plain.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        if at in (0, 2):
            for name in loops.LAYERS:
                left = SIZES_LEFT[at](loops.SIZES[name])
                size = jnp.where(mask[name], jnp.abs(params[name]), -1)
                last = jnp.sort(size.ravel())[-left]
                mask[name] = size >= last
        hide = functools.partial(jax.tree.map, lambda keep, a: jnp.where(keep, a, 0))
        params = hide(mask, params)
        adam = state[0]._replace(mu=hide(mask, state[0].mu), nu=hide(mask, state[0].nu))
        state = (adam, *state[1:])
        for name in loops.LAYERS:
            assert (nt.mask_of(got)[name] == mask[name]).all()
        for a, b in zip(
            *map(jax.tree.leaves, ((new, got.inner), (params, state))), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def _none(mask):
    return jax.tree.map(lambda a: jnp.zeros(a.shape, "float32"), mask)


SIZES_LEFT = {
    0: lambda size: size - round((1 - 0.5**0.5) * size),
    2: lambda size: size - round(0.5 * size),
}


def test_one_line_makes_a_loop_compile_once():
    params, loss = loops.problem()
    step = loops.step_of(nt.train_sparse(optax.adam(0.05), GRADUAL), loss)
    tx = nt.train_sparse(optax.adam(0.05), GRADUAL)
    loops.run(tx, params, loss, step=step)
    assert step._cache_size() == 1


@slow
@pytest.mark.parametrize("name", ["gradual", "random", "threshold", "movement"])
def test_outside_of_jit_it_chooses_the_same(name):
    params, loss = loops.problem()
    tx = nt.train_sparse(optax.sgd(0.05), RESUMED[name])
    compiled = loops.run(tx, params, loss, steps=4)
    state = tx.init(params)
    for at, (_, want) in enumerate(compiled):
        updates, state = tx.update(jax.grad(loss)(params, at), state, params)
        params = optax.apply_updates(params, updates)
        assert loops.same(nt.mask_of(state), nt.mask_of(want))


@slow
def test_an_ensemble_under_vmap():
    params, loss = loops.problem()
    many = jax.tree.map(lambda a: jnp.stack([a, 2 * a[::-1]]), params)
    tx = nt.train_sparse(optax.adam(0.05), GRADUAL)
    state = jax.vmap(tx.init)(many)
    step = jax.vmap(loops.step_of(tx, loss), in_axes=(0, 0, None))
    for at in range(loops.STEPS):
        many, state = step(many, state, at)
    alone = loops.run(tx, params, loss)[-1]
    for key in loops.LAYERS:
        assert (~nt.mask_of(state)[key]).sum((1, 2)).tolist() == [
            round(0.75 * loops.SIZES[key])
        ] * 2
        assert (nt.mask_of(state)[key][0] == nt.mask_of(alone[1])[key]).all()


@slow
def test_what_is_no_number_removes_nothing_wrongly():
    """A step with NaN gradients, which the optimiser leaves out, chooses by weights."""
    params, loss = loops.problem()
    rounds = nt.Rounds(nt.Sparsity(0.5), starts=(0,), by="gradient")
    tx = nt.train_sparse(optax.apply_if_finite(optax.sgd(0.05), 3), rounds)
    grads = jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), params)
    updates, state = loops.once(tx, grads, params)
    new, mask = optax.apply_updates(params, updates), nt.mask_of(state)
    for key in loops.LAYERS:
        size = jnp.abs(params[key])
        assert size[mask[key]].min() >= size[~mask[key]].max()
        assert jnp.isfinite(new[key]).all()


def test_errors():
    params, _ = loops.problem()
    adam, gradual = optax.adam(0.1), GRADUAL
    with pytest.raises(MethodError, match="expected an optimiser of optax"):
        nt.train_sparse(None, gradual)
    with pytest.raises(MethodError, match=r"expected a schedule.*got Sparsity"):
        nt.train_sparse(adam, nt.Sparsity(0.5))
    with pytest.raises(MethodError, match=r"expected a schedule.*got 3"):
        nt.train_sparse(adam, {"hidden": 3})
    with pytest.raises(MethodError, match="expected an integer"):
        nt.train_sparse(adam, gradual, seed=0.5)
    with pytest.raises(MethodError, match="expected layers=nettrim_jax.sites"):
        nt.train_sparse(adam, gradual, layers=["hidden"])
    listing = nt.Listing.from_dict(loops.layers().to_dict())
    with pytest.raises(MethodError, match="call nettrim_jax.sites again"):
        nt.train_sparse(adam, gradual, layers=listing)
    with pytest.raises(MethodError, match=r"'in' matches no leaf; the leaves are bias"):
        nt.train_sparse(adam, {"in": gradual}).init(params)
    with pytest.raises(MethodError, match=r"'\(' is no regular expression"):
        nt.train_sparse(adam, {"(": gradual}).init(params)
    with pytest.raises(MethodError, match="no layer has a schedule"):
        nt.train_sparse(adam, {"bias": gradual}).init(params)
    with pytest.raises(MethodError, match="hidden: NM.*does not divide the 8 inputs"):
        nt.train_sparse(adam, nt.Gradual(nt.NM(1, 3), end=9)).init(params)
    layers = loops.layers()
    with pytest.raises(ParamsError, match=r"hidden: a layer of layers= that is none"):
        nt.train_sparse(adam, gradual, layers=layers).init({"a": params})
    with pytest.raises(ParamsError, match=r"hidden: expected the shape \[8, 16\]"):
        tx = nt.train_sparse(adam, gradual, layers=layers)
        tx.init({**params, "hidden": params["output"]})
    tx = nt.train_sparse(adam, gradual)
    with pytest.raises(ParamsError, match="expected params, got None"):
        tx.update(params, tx.init(params))
