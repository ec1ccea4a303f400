"""``units``: the groups of every network, their places, and why the rest stays."""

import time

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
import structures
from marks import only_fast
from models import data, normal, relaxed

import nettrim_jax as nt
from nettrim_jax.structure.groups import UNSUMMED
from nettrim_jax.structure.walk import INPUT, OUTPUT

FAST = (
    "mlp resnet-a grouped shuffled gpt grouped-keys scan-remat own-derivatives".split()
)


def shape(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


@pytest.mark.parametrize("name", only_fast(FAST, structures.NETS))
def test_groups_are_those_that_are_there(name):
    net = structures.get(name)
    found = nt.units(net.params, net.apply_fn, net.batch)
    assert sorted((g.kind, g.count) for g in found.groups) == list(net.groups)
    names = [group.name for group in found.groups]
    assert len(set(names)) == len(names)
    leaves = jax.tree.leaves(net.params)
    for group in found.groups:
        assert found[group.name] is group
        for entry in group.entries:
            assert entry.leaf is not None
            assert len(entry.units) == leaves[entry.leaf].shape[entry.axis]
            counts = np.bincount(entry.units[entry.indices], minlength=group.count)
            assert len(set(counts.tolist())) == 1 and counts[0] > 0


def test_a_group_says_where_it_stands():
    net = structures.get("conv-flatten")
    found = nt.units(net.params, net.apply_fn, net.batch)
    group = found["b"]
    assert (group.kind, group.count, group.steps) == ("channel", 4, ())
    assert (group.producers, group.consumers) == (("b",), ("c",))
    places = {(e.path, e.axis): e.units.tolist() for e in group.entries}
    assert places[("b", 3)] == places[("bias", 0)] == [0, 1, 2, 3]
    assert places[("c", 0)] == [0, 1, 2, 3] * 4  # of four places
    assert set(places) == {("b", 3), ("bias", 0), ("c", 0)}
    group = found["a"]
    assert {e.path for e in group.entries} == {
        *("a", "b", "norm/bias", "norm/mean", "norm/scale", "norm/var")
    }


def test_heads_and_dimensions_that_share_a_leaf_are_told_apart():
    net = structures.get("gpt")
    found = nt.units(net.params, net.apply_fn, net.batch)
    by_kind = {(g.kind, len(g.entries)): g for g in found.groups}
    head = next(g for g in found.groups if g.kind == "head")
    assert {e.path for e in head.entries} == {"qkv", "qkv_bias", "o"}
    values, keys = by_kind["dimension", 3], by_kind["dimension", 2]
    assert {e.path for e in values.entries} == {"qkv", "qkv_bias", "o"}
    assert {e.path for e in keys.entries} == {"qkv", "qkv_bias"}
    [units] = [e.units for e in keys.entries if e.path == "qkv"]
    assert units.tolist() == [0, 1, 2, 3] * 4 + [-1] * 8  # queries, keys, no values
    [units] = [e.units for e in head.entries if e.path == "qkv"]
    assert units.tolist() == [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    "name, steps",
    [("scan-stacked", (3,)), ("loop-in-loop", (3, 2)), ("gru", ()), ("while", ())],
)
def test_steps_choose_for_themselves(name, steps):
    net = structures.get(name)
    found = nt.units(net.params, net.apply_fn, net.batch)
    assert [group.steps for group in found.groups] == [steps]


def test_steps_that_are_told_apart_by_a_constant_do_not_choose():
    scales = jnp.linspace(1, 2, 5, dtype="float32")

    def apply_fn(p, x):
        def step(x, w):
            return x + (jax.nn.relu(x @ w[0]) * scales[None, :]) @ w[1], None

        return jax.lax.scan(step, x, (p["a"], p["b"]))[0]

    params = {"a": normal(3, 8, 5), "b": normal(3, 5, 8)}
    [group] = nt.units(params, relaxed(apply_fn), data(4, 8)).groups
    assert (group.count, group.steps) == (5, ())
    assert {e.path for e in group.entries} == {"a", "b", "constant 0"}


REFUSED = {  # why the units between two products stay
    "reduce_sum": lambda h: h - jnp.mean(h, -1, keepdims=True),
    "reduce_max": jax.nn.softmax,
    "sort": lambda h: jnp.sort(h, -1),
    "top_k": lambda h: jax.lax.top_k(h, 8)[0],
    "cumsum": lambda h: jnp.cumsum(h, -1),
    "gather": lambda h: h[:, jnp.asarray([3, 1, 2, 0, 7, 6, 4, 5])],
    "dynamic_slice": lambda h: jax.lax.dynamic_slice(
        h, (jnp.int32(0), (h[0, 0] > 0).astype("int32")), (4, 7)
    ),
    "fft": lambda h: jnp.abs(jnp.fft.fft(h)),
    "reduce_window_max": lambda h: jax.lax.reduce_window(
        h, -jnp.inf, jax.lax.max, (1, 2), (1, 1), "SAME"
    ),
    "squeeze": lambda h: jnp.squeeze(h[:, 2:3], 1)[:, None] + h,
    "conv_general_dilated": lambda h: jax.lax.conv(
        h[None], jnp.ones((4, 4, 3), "float32"), (1,), "SAME"
    )[0],
    "dot_general": lambda h: jnp.cos(h) @ jnp.ones((8, 8), "float32"),
    "pad": lambda h: jax.lax.pad(h, jnp.float32(0), ((0, 0, 0), (0, 0, 1))),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_refusal_names_the_operation(why):
    def apply_fn(p, x):
        h = REFUSED[why](x @ p["a"])
        return h @ p["b"][: h.shape[1]]

    params = {"a": normal(5, 8), "b": normal(15, 3)}
    found = nt.units(params, relaxed(apply_fn), data(4, 5))
    free = [e.units for g in found.groups for e in g.entries if e.path == "a"]
    assert sum((units >= 0).sum() for units in free) == (7 if why == "squeeze" else 0)
    reasons = {(one.path, one.axis): one.reason for one in found.refused}
    assert f"`{why}`" in reasons["a", 1]
    assert reasons["a", 0] == INPUT and reasons["b", 1] == OUTPUT


@jax.custom_vjp
def centred(x):
    return 2 * x


centred.defvjp(
    lambda x: (2 * x, None), lambda _, g: (g - jnp.mean(g, -1, keepdims=True),)
)


def test_a_derivative_that_mixes_units_keeps_them():
    def apply_fn(p, x):
        return centred(x @ p["a"]) @ p["b"]

    params = {"a": normal(5, 4), "b": normal(4, 3)}
    found = nt.units(params, apply_fn, data(2, 5))
    assert not found.groups
    [reason] = [one.reason for one in found.refused if one[:2] == ("a", 1)]
    assert "`reduce_sum`" in reason


def test_what_is_not_used_stays():
    def apply_fn(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["b"] + p["places"][:2, :1]

    params = {"a": normal(5, 8), "b": normal(8, 1), "c": normal(4, 4)}
    params["places"] = normal(6, 3)
    found = nt.units(params, relaxed(apply_fn), data(2, 5))
    assert [group.name for group in found.groups] == ["a"]
    reasons = {(one.path, one.axis): one.reason for one in found.refused}
    assert reasons["c", 0] == "apply_fn does not use it"
    assert UNSUMMED in reasons["places", 0] or "input" in reasons["places", 0]


def test_one_unit_stays():
    def apply_fn(p, x):
        return jax.nn.relu(x @ p["a"])[:, None, :] @ p["b"]

    params = {"a": normal(5, 4), "b": normal(4, 3)}
    assert len(nt.units(params, relaxed(apply_fn), data(2, 5)).groups) == 1

    def tied(p, x):  # all units are one: their order is turned
        return (jax.nn.relu(x @ p["a"]) + jax.nn.relu(x @ p["a"])[:, ::-1]) @ p["b"]

    params = {"a": normal(5, 2), "b": normal(2, 3)}
    found = nt.units(params, tied, data(2, 5))
    assert not found.groups
    assert any("last one stays" in one.reason for one in found.refused)


def test_shapes_are_enough_and_values_do_not_matter():
    net = structures.get("transformer")
    structs = jax.tree.map(lambda a: shape(*a.shape, dtype=a.dtype), net.params)
    batch = shape(*net.batch.shape, dtype=net.batch.dtype)
    ours = nt.units(structs, net.apply_fn, batch)
    theirs = nt.units(net.params, net.apply_fn, net.batch)
    assert str(ours) == str(theirs)


def test_it_prints_as_a_table():
    net = structures.get("transformer")
    text = str(nt.units(net.params, net.apply_fn, net.batch)).splitlines()
    assert text[0].split() == ["layer", "kind", "units", "leaves", "steps"]
    assert any(line.split()[:3] == ["up", "neuron", "10"] for line in text)
    assert any(
        line.startswith("stays: ") and "network's input" in line for line in text
    )
    assert all(len(line) <= 100 for line in text)
    params = {"a": normal(5, 4)}
    none = nt.units(params, lambda p, x: x @ p["a"], data(2, 5))
    assert str(none).splitlines()[0] == "no group of units can be removed"
    with pytest.raises(KeyError, match="the groups are"):
        none["a"]


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.slow
def test_every_model_has_groups_or_reasons(name):
    m = models.get(name)
    found = nt.units(m.params, m.apply_fn, m.batch)
    seen = {e.path for g in found.groups for e in g.entries}
    seen |= {one.path for one in found.refused}
    leaves = jax.tree_util.tree_flatten_with_path(m.params)[0]
    for keys, leaf in leaves:
        if max(getattr(leaf, "shape", None) or (0,)) > 1:
            path = jax.tree_util.keystr(keys, simple=True, separator="/")
            assert (path or "params") in seen, path


# ---- large ones, without weights


def llama(layers=24, d=2048, heads=32, keys=8, size=64, hidden=8192, words=32000):
    block = dict(q=shape(d, heads * size), k=shape(d, keys * size))
    block |= dict(v=shape(d, keys * size), o=shape(heads * size, d), n=shape(d))
    block |= dict(gate=shape(d, hidden), up=shape(d, hidden), down=shape(hidden, d))
    params = {"embed": shape(words, d), "layers": [dict(block) for _ in range(layers)]}

    def apply_fn(p, ids):
        b, t = ids.shape
        x, places = p["embed"][ids], jnp.arange(t, dtype="float32")
        for q in p["layers"]:
            h = structures.mean_norm(x, q["n"])
            a, k = ((h @ q[n]).reshape(b, t, -1, size) for n in "qk")
            a, k = (structures.halves(part, places) for part in (a, k))
            v = (h @ q["v"]).reshape(b, t, keys, size)
            k, v = (jnp.repeat(part, heads // keys, axis=2) for part in (k, v))
            x = x + structures.attend(a, k, v, True).reshape(b, t, -1) @ q["o"]
            h = structures.mean_norm(x)
            x = x + (jax.nn.silu(h @ q["gate"]) * (h @ q["up"])) @ q["down"]
        return structures.mean_norm(x) @ p["embed"].T

    return params, relaxed(apply_fn), shape(1, 128, dtype="int32")


@pytest.mark.slow
def test_a_large_language_model_takes_seconds():
    params, apply_fn, batch = llama()
    start = time.process_time()
    found = nt.units(params, apply_fn, batch)
    assert time.process_time() - start < 20
    kinds = [(group.kind, group.count) for group in found.groups]
    for kind in (("neuron", 8192), ("head", 8), ("head", 4), ("dimension", 64)):
        assert kinds.count(kind) == 24
    assert kinds.count(("dimension", 32)) == 24  # rotated in pairs


@pytest.mark.slow
def test_a_large_image_model_takes_seconds():
    def block(width, before, stride):
        p = dict(a=shape(1, 1, before, width), b=shape(3, 3, width, width))
        p |= dict(c=shape(1, 1, width, 4 * width), s=shape(1, 1, before, 4 * width))
        sizes = {"a": width, "b": width, "c": 4 * width, "s": 4 * width}
        norm = ("mean", "var", "scale", "bias")
        return p | {f"n{k}": {one: shape(n) for one in norm} for k, n in sizes.items()}

    params, before, strides = {"stem": shape(7, 7, 3, 64), "blocks": []}, 64, []
    for width, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for k in range(count):
            strides.append(2 if k == 0 and width > 64 else 1)
            params["blocks"].append(block(width, before, strides[-1]))
            before = 4 * width
    params["head"] = shape(before, 1000)

    def apply_fn(p, x):
        x = models.convolve(x, p["stem"], window_strides=(2, 2))
        for q, stride in zip(p["blocks"], strides, strict=True):

            def unit(x, name, stride=1, q=q):
                x = models.convolve(x, q[name], window_strides=(stride, stride))
                return structures.batch_norm(x, q["n" + name])

            h = jax.nn.relu(unit(x, "a"))
            h = unit(jax.nn.relu(unit(h, "b", stride)), "c")
            x = jax.nn.relu(h + unit(x, "s", stride))
        return jnp.mean(x, (1, 2)) @ p["head"]

    start = time.process_time()
    found = nt.units(params, relaxed(apply_fn), shape(1, 224, 224, 3))
    assert time.process_time() - start < 5
    assert len(found.groups) > 2 * 16
    assert {group.kind for group in found.groups} == {"channel"}
