"""``recover`` against loops written by hand, and what it leaves as it is."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import models
import numpy as np
import optax
import pytest
from marks import only_fast, slow
from models import Loader

import nettrim_jax as nt
from nettrim_jax.calibration.minibatches import Minibatches, Piece
from nettrim_jax.calibration.model import Model
from nettrim_jax.calibration.responses import responses
from nettrim_jax.results import BatchError, MethodError, ParamsError
from nettrim_jax.tracing.sites import trace
from nettrim_jax.training.recovery import relative

HALF = nt.Magnitude(nt.Sparsity(0.5))
RNG = np.random.default_rng(0)
DIMS = (8, 8, 4)
PARAMS = models.mlp_params(DIMS, 0)


ROWS = [RNG.normal(size=(16, 8)).astype("float32") for _ in range(7)]
BATCHES = Loader(ROWS)
SGD = optax.sgd(0.05, momentum=0.9)
SETTINGS = {"steps": 12, "checks": 2, "every": 5, "optimizer": SGD}


def pruned(params=PARAMS, apply_fn=models.mlp, batch=ROWS[0], method=HALF):
    return nt.prune(params, apply_fn, batch, method=method)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def output_loss(params, x):
    old = models.mlp(PARAMS, x)
    return jnp.sum((models.mlp(params, x) - old) ** 2) / jnp.sum(old**2)


def layer_loss(params, x):
    """The mean over the two layers, written out."""

    def both(params):
        first, second = (params[k] for k in sorted(params))
        hidden = jax.nn.relu(x @ first["w"] + first["b"][None, :])
        return hidden, hidden @ second["w"] + second["b"][None, :]

    pairs = zip(both(params), both(PARAMS), strict=True)
    each = [jnp.sum((a - b) ** 2) / jnp.sum(b**2) for a, b in pairs]
    return sum(each) / len(each)


LOSSES = {
    "output": output_loss,
    "layers": layer_loss,
    "both": lambda params, x: output_loss(params, x) + layer_loss(params, x),
}


@models.relaxed
def by_hand(loss, start, mask, batches):
    """The same steps as a user would write them, and all params on the way."""
    optimizer = nt.keep_sparse(SGD, mask)
    params, state, every = start, optimizer.init(start), [start]
    for x in batches:
        updates, state = optimizer.update(jax.grad(loss)(params, x), state, params)
        params = optax.apply_updates(params, updates)
        every.append(params)
    return every


@pytest.mark.parametrize("match", only_fast(["both"], LOSSES))
def test_steps_are_those_of_a_loop(match):
    start = pruned()
    done = nt.recover(start, PARAMS, models.mlp, BATCHES, match=match, **SETTINGS)
    seen = list(itertools.islice(itertools.cycle(ROWS[2:]), 12))
    every = by_hand(LOSSES[match], start.params, start.mask, seen)
    off = [deviation(params, ROWS[:2]) for params in every]
    assert [step for step, _ in done.report.curve] == [0, 5, 10, 12]
    for step, value in done.report.curve:
        assert value == pytest.approx(off[step], rel=1e-5)
    best = min((0, 5, 10, 12), key=off.__getitem__)
    assert done.report.step == best and done.report.deviation < done.report.before
    for one, other in zip(
        *map(jax.tree.leaves, (done.params, every[best])), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def deviation(params, batches):
    pairs = [(models.mlp(params, x), models.mlp(PARAMS, x)) for x in batches]
    off = sum(float(jnp.sum((a - b) ** 2)) for a, b in pairs)
    return (off / sum(float(jnp.sum(b**2)) for _, b in pairs)) ** 0.5


def test_removed_weights_are_zero_and_dtypes_stay():
    start = pruned()
    done = nt.recover(start, PARAMS, models.mlp, BATCHES, **SETTINGS)
    same(done.mask, start.mask)
    for new, old, keep in zip(
        *map(jax.tree.leaves, (done.params, start.params, start.mask)), strict=True
    ):
        assert new.dtype == old.dtype and new.shape == old.shape
        assert not np.asarray(new)[~np.asarray(keep)].any()
    assert done.report.nonzeros == sum(int(m.sum()) for m in jax.tree.leaves(done.mask))
    assert "deviation" in str(done.report)
    assert done.report.to_dict()["planned"] == 12


def test_with_interruptions_it_is_the_same_in_every_bit():
    start = pruned()
    call = (start, PARAMS, models.mlp, BATCHES)
    whole = nt.recover(*call, **SETTINGS)
    part = nt.recover(*call, until=3, **SETTINGS)
    assert part.report.steps == 3 and part.report.planned == 12
    # as read back from a file
    state = jax.tree.map(np.asarray, part.state)
    part = nt.recover(*call, until=7, state=state, **SETTINGS)
    done = nt.recover(*call, state=part.state, **SETTINGS)
    same(done.params, whole.params)
    same(done.state, whole.state)
    assert done.report == whole.report


def test_what_does_not_help_changes_nothing():
    start = pruned()
    settings = {**SETTINGS, "optimizer": optax.sgd(-0.01)}
    done = nt.recover(start, PARAMS, models.mlp, BATCHES, **settings)
    same(done.params, start.params)
    assert done.report.step == 0 and done.report.deviation == done.report.before


def test_what_diverges_is_said_and_left():
    start = pruned()
    settings = {**SETTINGS, "optimizer": optax.sgd(1e30)}
    with pytest.warns(UserWarning, match="no number any more at step 5"):
        done = nt.recover(start, PARAMS, models.mlp, BATCHES, **settings)
    same(done.params, start.params)


# ---- what moves


class _Norm(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        return nn.Dense(4)(x)


@models.relaxed
def test_layers_and_their_biases_move_and_nothing_else():
    network = _Norm()
    params = network.init(jax.random.key(0), ROWS[0])
    start = pruned(params, network.apply)
    done = nt.recover(start, params, network.apply, BATCHES, **SETTINGS)
    moved = {
        jax.tree_util.keystr(keys, simple=True, separator="/")
        for (keys, a), b in zip(
            jax.tree_util.tree_flatten_with_path(done.params)[0],
            jax.tree.leaves(start.params),
            strict=True,
        )
        if not np.array_equal(a, b)
    }
    want = {"Dense_0/kernel", "BatchNorm_0/bias", "Dense_1/kernel", "Dense_1/bias"}
    assert moved == {f"params/{path}" for path in want} == set(done.report.moved)
    more = nt.recover(
        *(start, params, network.apply, BATCHES), also=r"scale$", **SETTINGS
    )
    assert set(more.report.moved) - moved == {"params/BatchNorm_0/scale"}
    with pytest.raises(MethodError, match="also='nothing'.*BatchNorm_0/scale"):
        nt.recover(*(start, params, network.apply, BATCHES), also="nothing", **SETTINGS)


@slow
def test_a_smaller_network_is_taught_by_the_whole_one():
    start = pruned(method={"0": nt.Units(0.5), ".*": None})
    small = nt.shrink(start, models.mlp, ROWS[0])
    done = nt.recover(small, PARAMS, models.mlp, BATCHES, **SETTINGS)
    same(*(jax.tree.map(jnp.shape, one.params) for one in (done, small)))
    assert done.report.deviation < done.report.before
    with pytest.raises(MethodError, match="layers of a smaller network"):
        nt.recover(small, PARAMS, models.mlp, BATCHES, match="both", **SETTINGS)


# ---- which samples


def test_every_other_sample_comes_once_in_each_turn():
    x, y = np.arange(23), jnp.arange(23) * 10
    given = Minibatches({"x": x, "y": y}, 4, 2, jax.random.key(0))
    kept = np.concatenate([one.batch["x"] for one in given.checks])
    assert len(set(kept)) == 8
    # 15 others, 3 to a turn
    taken = [one.batch for one in itertools.islice(given.after(0), 6)]
    for turn in (taken[:3], taken[3:]):
        each = np.concatenate([one["x"] for one in turn])
        assert len(set(each)) == 12 and not set(each) & set(kept)
    assert not np.array_equal(taken[0]["x"], taken[3]["x"])
    assert all((one["y"] == 10 * one["x"]).all() for one in taken)
    again = Minibatches({"x": x, "y": y}, 4, 2, jax.random.key(0)).after(4)
    np.testing.assert_array_equal(next(again).batch["x"], taken[4]["x"])


def test_an_optimiser_sees_the_tree_of_the_params():
    start, still = pruned(), sorted(PARAMS)[1]

    def labels(tree):
        return jax.tree_util.tree_map_with_path(
            lambda keys, _: "stay" if keys[0].key == still else "move", tree
        )

    ways = {"move": optax.adam(1e-2), "stay": optax.set_to_zero()}
    settings = {**SETTINGS, "optimizer": optax.multi_transform(ways, labels)}
    done = nt.recover(start, PARAMS, models.mlp, BATCHES, **settings)
    same(done.params[still], start.params[still])
    assert done.report.deviation < done.report.before


def test_shared_values_stay_shared():
    shared = nt.share(pruned(), PARAMS, models.mlp, ROWS[0], bits=2)
    settings = {**SETTINGS, "optimizer": nt.keep_shared(optax.adam(1e-2), shared)}
    done = nt.recover(shared, PARAMS, models.mlp, BATCHES, **settings)
    assert done.report.deviation < done.report.before
    for layer, old in zip(done.params.values(), shared.params.values(), strict=True):
        for new in np.unique(old["w"]):
            assert len(np.unique(layer["w"][old["w"] == new])) == 1
        assert not layer["w"][old["w"] == 0].any()


def test_an_iterator_that_ends_is_said():
    start = pruned()
    with pytest.warns(UserWarning, match="ended after 5 of 12 steps"):
        done = nt.recover(start, PARAMS, models.mlp, iter(ROWS), **SETTINGS)
    assert done.report.steps == 5


# ---- what follows the layers


NETS = ["scan-of-layers"]


@pytest.mark.parametrize(
    "name", only_fast([n for n in NETS if n in models.MODELS], models.MODELS)
)
def test_what_follows_is_behind_the_clip(name):
    made = models.get(name)
    network = trace(made.apply_fn, made.params, made.batch)
    model = Model(made.params, made.apply_fn)
    [(outputs, after)] = responses(model, [model.given], Piece(made.batch))
    wanted = jax.tree.leaves(made.apply_fn(made.params, made.batch))
    for one, other in zip(outputs, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    for site, each in zip(network.sites, after, strict=True):
        assert len(each) == len(site.uses)
        for value in each:
            if site.response == "relu":
                assert (np.asarray(value) >= 0).all()


def test_infinities_are_of_no_size():
    old = jnp.asarray([1.0, jnp.inf, -jnp.inf, 2.0])
    new = jnp.asarray([1.5, jnp.inf, 3.0, 2.0])
    assert float(relative([new], [old])) == pytest.approx(0.25 / 5)
    slope = jax.grad(lambda a: relative([a], [old]))(new)
    np.testing.assert_allclose(slope, [2 * 0.5 / 5, 0, 0, 0], rtol=1e-6)


# ---- what is refused


BAD = {
    "match": ({"match": "outputs"}, r"match='outputs'.*\('output', 'layers', 'both'\)"),
    "steps": ({"steps": 0}, r"steps=0.*at least 1"),
    "size": ({"size": 1.5}, r"size=1.5.*integer"),
    "until": ({"until": -1}, r"until=-1.*at least 0"),
    "every": ({"every": True}, r"every=True.*integer"),
    "state": ({"state": 3}, r"state=int.*state of an earlier call"),
    "optimizer": ({"optimizer": 0.1}, r"expected an optimiser of optax"),
    "progress": ({"progress": 3}, r"progress=3"),
    "key": ({"key": 0.5}, r"key=0.5.*PRNG key"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_setting_is_named(name):
    more, text = BAD[name]
    with pytest.raises(MethodError, match=text):
        nt.recover(*(pruned(), PARAMS, models.mlp, BATCHES), **{**SETTINGS, **more})


def test_wrong_params_and_batches_are_named():
    start = pruned()
    other = models.mlp_params((8, 6, 4), 0)
    with pytest.raises(ParamsError, match="params have 0/b as .*second"):
        nt.recover(start, other, models.mlp, BATCHES)
    with pytest.raises(ParamsError, match="expected what prune, refit, shrink or trim"):
        nt.recover(PARAMS, PARAMS, models.mlp, BATCHES)
    with pytest.raises(BatchError, match="16 samples .* at least 320"):
        nt.recover(start, PARAMS, models.mlp, ROWS[0])
    with pytest.raises(BatchError, match="the loader gave 3.* first 4"):
        nt.recover(start, PARAMS, models.mlp, Loader(ROWS[:3]))
    with pytest.raises(BatchError, match="all are kept to measure"):
        nt.recover(start, PARAMS, models.mlp, Loader(ROWS[:4]))
    state = nt.recover(start, PARAMS, models.mlp, BATCHES, **SETTINGS).state
    state = state._replace(leaves=state.leaves[1:])
    with pytest.raises(ParamsError, match="leaves are 3 arrays .* the 4 that move"):
        nt.recover(start, PARAMS, models.mlp, BATCHES, state=state, **SETTINGS)
    with pytest.raises(MethodError, match="outputs are zero"):
        nt.recover(start, PARAMS, lambda p, x: 0 * models.mlp(p, x), BATCHES)


@slow
@pytest.mark.parametrize("match", ["output", "layers"])
@pytest.mark.parametrize("name", ["scan-of-layers", "nnx", "equinox"])
@models.relaxed
def test_networks_of_all_kinds(name, match):
    found = [n for n in models.MODELS if name.split("-")[0] in n]
    made = models.get(found[0])
    start = pruned(made.params, made.apply_fn, made.batch)
    settings = {"steps": 20, "size": 4, "checks": 2, "match": match}
    loader = Loader([made.batch] * 4)
    done = nt.recover(start, made.params, made.apply_fn, loader, **settings)
    assert done.report.deviation < done.report.before
    assert jax.tree.structure(done.params) == jax.tree.structure(made.params)
