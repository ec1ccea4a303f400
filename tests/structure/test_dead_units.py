"""``shrink`` without ``remove``: what is dead goes, and the network stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import structures
from models import convolve, data, normal, relaxed
from structures import distance

import nettrim_jax as nt


def same(params, apply_fn, batch):
    """Shrinks what is dead; asserts that nothing changes, and that once is enough."""
    small = nt.shrink(params, apply_fn, batch)
    got = jax.jit(lambda s, p, x: (small.apply_fn(s, x), apply_fn(p, x)))(
        small.params, params, batch
    )
    assert distance(*got) < 1e-6
    again = nt.shrink(small.params, small.apply_fn, batch)
    assert again.report.folded == 0
    jax.tree.map(np.testing.assert_array_equal, again.params, small.params)
    return small


def counts(small):
    return {name: units.shape[-1] for name, units in small.kept.items()}


def with_zeros(params, **where):
    """Params with zeros at some indices of some leaves."""
    out = dict(params)
    for name, at in where.items():
        leaf = np.array(out[name])
        leaf[at] = 0
        out[name] = jax.device_put(leaf)
    return out


def two_layers(p, x):
    h = jax.nn.relu(x @ p["a"] + p["a_bias"])
    return jax.nn.gelu(h @ p["b"] + p["b_bias"]) @ p["c"] + p["c_bias"]


def params_of_two():
    shapes = dict(a=(6, 10), a_bias=(10,), b=(10, 8), b_bias=(8,), c=(8, 3))
    return structures.tree(**shapes, c_bias=(3,))


def test_units_without_a_weight_out_go():
    params = with_zeros(params_of_two(), b=[1, 4], c=[7])
    small = same(params, relaxed(two_layers), data(4, 6))
    assert counts(small) == {"a": 8, "b": 7} and small.report.folded == 0
    assert small.kept["a"].tolist() == [0, 2, 3, 5, 6, 7, 8, 9]
    np.testing.assert_array_equal(small.params["c_bias"], params["c_bias"])


def test_constants_of_units_without_a_weight_in_go_into_the_next_bias():
    columns = (slice(None), [0, 2, 5])
    params = with_zeros(params_of_two(), a=columns, b=(slice(None), [3]))
    params["a_bias"] = params["a_bias"].at[jnp.array([0, 2])].set(0.7).at[5].set(-1.0)
    small = same(params, relaxed(two_layers), data(4, 6))
    assert counts(small) == {"a": 7, "b": 7}
    assert small.report.folded == 3  # a negative one is zero behind the relu
    moved = np.asarray(small.params["b_bias"])
    rest = [k for k in range(8) if k != 3]
    expected = params["b_bias"] + 0.7 * (params["b"][0] + params["b"][2])
    np.testing.assert_allclose(moved, np.asarray(expected)[rest], rtol=1e-5)
    assert "constants of 3 dead units" in str(small.report)


def test_a_constant_without_a_bias_behind_it_stays():
    net = structures.get("mlp")  # no bias behind its last product
    params = with_zeros(net.params, b=(slice(None), [2, 3]))
    params["b_bias"] = params["b_bias"].at[2].set(0.0).at[3].set(0.5)
    small = same(params, net.apply_fn, net.batch)
    assert counts(small) == {"a": 10, "b": 7}  # gelu(0) is zero, gelu(0.5) is not


def test_what_only_feeds_the_dead_is_dead():
    # behind a dead unit of b, three of a have no weight left
    params = with_zeros(params_of_two(), c=[0, 1], b=([2, 3, 4], slice(2, None)))
    small = same(params, relaxed(two_layers), data(4, 6))
    assert counts(small) == {"a": 7, "b": 6}


def normed(p, x):
    x = jax.nn.relu(structures.batch_norm(convolve(x, p["a"]), p["norm"]))
    x = jax.nn.relu(convolve(x, p["b"], padding=p_of(x)) + p["b_bias"])
    return jnp.mean(x, (1, 2)) @ p["c"] + p["c_bias"]


def p_of(x):
    return "VALID" if x.shape[1] > 4 else "SAME"


@pytest.mark.parametrize("size, left", [(6, 2), (4, 4)])
def test_batch_norms_of_dead_channels(size, left):
    shapes = dict(a=(3, 3, 2, 5), b=(3, 3, 5, 4), b_bias=(4,), c=(4, 3), c_bias=(3,))
    params = structures.tree(**shapes)
    norm = {name: np.ones(5, "float32") for name in ("scale", "var")}
    norm |= {name: np.zeros(5, "float32") for name in ("mean",)}
    norm["bias"] = np.array([0.5, -0.5, 0.3, 0.1, 0.1], "float32")
    params = with_zeros(params, a=(..., [0, 1, 2])) | {"norm": norm}
    small = same(params, relaxed(normed), data(3, size, size, 2))
    # with padding the constants stay, but for that which the relu makes zero
    assert counts(small)["a"] == left
    assert small.report.folded == (2 if left == 2 else 0)


def test_a_bias_that_is_read_twice_stays_as_it_is():
    def apply_fn(p, x):
        h = jax.nn.relu(x @ p["a"] + p["a_bias"])
        return h @ p["b"] + p["b_bias"], jnp.sum(p["b_bias"])

    params = structures.tree(a=(5, 6), a_bias=(6,), b=(6, 3), b_bias=(3,))
    params = with_zeros(params, a=(slice(None), [0]))
    params["a_bias"] = params["a_bias"].at[0].set(1.0)
    small = same(params, relaxed(apply_fn), data(4, 5))
    assert counts(small) == {"a": 6}


def test_a_response_that_is_read_without_its_bias_keeps_its_units():
    def apply_fn(p, x):
        z = jax.nn.relu(x @ p["a"] + p["a_bias"]) @ p["b"]
        return z + p["b_bias"], jnp.sin(z)

    params = structures.tree(a=(5, 6), a_bias=(6,), b=(6, 3), b_bias=(3,))
    params = with_zeros(params, a=(slice(None), [0]))
    params["a_bias"] = params["a_bias"].at[0].set(1.0)
    assert counts(same(params, relaxed(apply_fn), data(4, 5))) == {"a": 6}


def dense_behind(make):
    """A product with a bias behind what is made of hidden units ``h [4, 6]``."""

    def apply_fn(p, x):
        h = x @ p["a"] + p["a_bias"]
        return make(h, p) @ p["b"] + p["b_bias"]

    return relaxed(apply_fn)


MIXED = {  # what is one number in each part, but not in all of them
    "concatenate": lambda h, p: jnp.concatenate([h, 2 * h]),
    "pad": lambda h, p: jnp.pad(h, ((0, 1), (0, 0)), constant_values=3),
    "cond": lambda h, p: jax.lax.cond(
        p["s"] > 0, lambda h: h, lambda h: 3 * h + p["s"], h
    ),
    "scatter": lambda h, p: h.at[jnp.array([1])].set(2 * h[:1]),
    "dynamic_update_slice": lambda h, p: jax.lax.dynamic_update_slice(
        h, 2 * h[:1], (jnp.int32(1), jnp.int32(0))
    ),
    "added": lambda h, p: h + p["places"],
}


@pytest.mark.parametrize("name", MIXED)
def test_what_is_not_one_number_is_no_constant(name):
    params = structures.tree(a=(5, 6), a_bias=(6,), b=(6, 3), b_bias=(3,), s=())
    params |= {"places": normal(4, 6)}
    params = with_zeros(params, a=(slice(None), [0, 3]))
    params["a_bias"] = params["a_bias"].at[jnp.array([0, 3])].set(0.5)
    small = nt.shrink(params, dense_behind(MIXED[name]), data(4, 5))
    assert counts(small) == {"a": 6} and small.report.folded == 0


def test_heads_that_make_one_number_per_dimension():
    # each entry of the bias is one number; those of a head are not the same one
    def apply_fn(p, x):
        h = jnp.cos(x @ p["a"] + p["a_bias"]).reshape(-1, 2, 3)
        return jnp.einsum("nhd,hdo->no", h, p["b"]) + p["b_bias"]

    params = structures.tree(a=(5, 6), a_bias=(6,), b=(2, 3, 4), b_bias=(4,))
    params = with_zeros(params, a=(slice(None), [0, 1, 2]))
    small = same(params, relaxed(apply_fn), data(4, 5))
    assert sorted(counts(small).values()) == [2, 3]


def test_heads_and_dimensions():
    net = structures.get("transformer")
    params = with_zeros(net.params, o=([0, 1], [0, 0]), q=(..., [2]), qb=(..., [2]))
    small = same(params, net.apply_fn, net.batch)
    kinds = {g.kind: g.units.after for g in small.report.groups if g.units.before < 10}
    assert sorted((g.units.before, g.units.after) for g in small.report.groups) == [
        *((2, 2), (3, 2), (4, 3), (10, 10))
    ]
    assert kinds["head"] == 2
    params = with_zeros(net.params, o=[1])
    small = same(params, net.apply_fn, net.batch)
    assert [g.units.after for g in small.report.groups if g.kind == "head"] == [1]


def test_every_step_of_a_loop_loses_as_many():
    net = structures.get("scan-stacked")
    layers = net.params["layers"]
    down = np.array(layers["down"])
    down[0, :2], down[1, 3:6], down[2, 4:8] = 0, 0, 0
    params = {**net.params, "layers": {**layers, "down": jax.device_put(down)}}
    small = same(params, net.apply_fn, net.batch)
    [kept] = small.kept.values()
    assert kept.shape == (3, 8)
    assert 0 not in kept[0] and 1 not in kept[0]


def test_the_last_unit_stays():
    params = with_zeros(params_of_two(), b=(slice(None),))
    small = same(params, relaxed(two_layers), data(4, 6))
    assert counts(small)["a"] == 1


def test_shared_weights_are_not_changed():
    # behind the relu a unit is constant, but its weights are used elsewhere, too
    def apply_fn(p, x):
        h = jax.nn.relu(x @ p["a"] + p["a_bias"])
        return h @ p["b"] + p["b_bias"], jnp.tanh(x @ p["d"]) @ p["b"]

    params = structures.tree(a=(5, 6), a_bias=(6,), b=(6, 3), b_bias=(3,), d=(5, 6))
    params = with_zeros(params, a=(slice(None), [0]))
    params["a_bias"] = params["a_bias"].at[0].set(1.0)
    assert counts(same(params, relaxed(apply_fn), data(4, 5))) == {"a": 6}


@pytest.mark.slow
def test_what_prune_zeroed_goes():
    params = {"a": normal(6, 10), "b": normal(10, 3)}

    def apply_fn(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    x = data(32, 6)
    method = {"a": nt.Magnitude(nt.Neurons(0.5)), "b": None}
    pruned = nt.prune(params, apply_fn, x, method=method)
    small = nt.shrink(pruned, apply_fn, x)
    assert small.params["a"].shape == (6, 5) and small.params["b"].shape == (5, 3)
    assert small.report.as_it_is
    masks = small.cut(pruned.mask)
    assert masks["b"].shape == (5, 3)
    assert distance(apply_fn(small.params, x), apply_fn(pruned.params, x)) < 1e-6


def test_abstract_batches_and_other_dtypes():
    params = with_zeros(params_of_two(), a=(slice(None), [0]), b=[4])
    params = jax.tree.map(lambda a: a.astype("bfloat16"), params)
    batch = jax.ShapeDtypeStruct((4, 6), "bfloat16")
    small = nt.shrink(params, relaxed(two_layers), batch)
    assert counts(small)["a"] <= 9
    assert all(a.dtype == jnp.bfloat16 for a in jax.tree.leaves(small.params))
