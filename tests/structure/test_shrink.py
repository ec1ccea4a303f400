"""``shrink``: a network with units removed is the one with zeros in their place."""

import importlib.util
import io

import flax.linen as nn
import jax
import jax.numpy as jnp
import models
import numpy as np
import optax
import pytest
import structures
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax import export
from marks import only_fast
from models import data, normal, relaxed
from networks import network
from structures import distance, outputs_and_gradients, some, zeros

import nettrim_jax as nt
from nettrim_jax.results import ApplyFnError, MethodError, ParamsError
from nettrim_jax.structure import cutting

CLOSE = 1e-5


def agree(params, apply_fn, batch, remove=None, seed=0):
    """Removes units, and asserts that this is as good as zeros; returns the network."""
    found = nt.units(params, apply_fn, batch)
    remove = some(found, np.random.default_rng(seed)) if remove is None else remove
    small = nt.shrink(params, apply_fn, batch, remove)
    full = zeros(params, found, remove)
    out, grads = outputs_and_gradients(small.apply_fn, small.params, batch)
    expected, slopes = outputs_and_gradients(apply_fn, full, batch)
    assert distance(out, expected) < CLOSE
    assert distance(grads, small.cut(slopes)) < CLOSE
    return small


FAST = "conv-flatten scan-remat".split()


@pytest.mark.parametrize("name", only_fast(FAST, structures.NETS))
def test_removed_is_zero(name):
    net = structures.get(name)
    small = agree(net.params, net.apply_fn, net.batch)
    assert small.report.parameters.after < small.report.parameters.before
    assert small.report.multiply_adds.after < small.report.multiply_adds.before
    sizes = sorted(g.units.before for g in small.report.groups)
    assert sizes == sorted(count for _, count in net.groups)


UNITS = (
    "experts ragged-experts ensemble scan-over-time wrapped linen-cnn linen-batch-norm "
    "linen-remat linen-residual linen-attention linen-embedding linen-weight-norm nnx "
    "equinox equinox-conv haiku siamese called-twice tied-embedding max-pool cast "
    "plain bfloat16 fused-qkv scan-changes-a-leaf closed-over"
).split()


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.slow
def test_removed_is_zero_in_other_models(name):
    m = models.get(name)
    params, batch = m.params, m.batch
    if name in ("bfloat16", "cast"):  # in as many digits as can be compared
        params, batch = jax.tree.map(lambda a: a.astype("float32"), (params, batch))
    agree(params, m.apply_fn, batch)


def double(tree):
    """The same in float64, so that what differs is not rounding."""
    return jax.tree.map(lambda a: a.astype("float64"), tree)


def check_generated(seed):
    """Whatever a program does: units are removed as zeros are, or refused."""
    params, apply_fn, x = network(seed)
    found = nt.units(params, apply_fn, x)
    rng = np.random.default_rng(seed)
    remove = some(found, rng, rng.uniform(0.2, 0.99))
    agree(double(params), apply_fn, double(x), remove)
    return found


@pytest.mark.parametrize("seed", [8])
def test_generated_programs(seed):
    assert check_generated(seed).groups


@pytest.mark.parametrize("start", range(0, 200, 20))
@pytest.mark.slow
def test_many_generated_programs(start):
    found = [check_generated(seed) for seed in range(start, start + 20)]
    assert sum(len(one.groups) for one in found) > 20


NAMES = ["mlp", "dense-net", "grouped", "gpt", "grouped-keys", "scan-remat"]


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
)
@given(st.sampled_from(NAMES), st.data())
@pytest.mark.slow
def test_any_units_may_go(name, draw):
    net = structures.get(name)
    found = nt.units(net.params, net.apply_fn, net.batch)
    remove = {}
    for group in found.groups:
        count = draw.draw(st.integers(0, group.count - 1), label=group.name)
        rows = [
            draw.draw(st.permutations(range(group.count)))[:count]
            for _ in range(int(np.prod(group.steps)))
        ]
        remove[group.name] = np.array(rows, int).reshape(*group.steps, count)
    agree(net.params, net.apply_fn, net.batch, remove)


# ---- where it runs


def shrunk(name):
    net = structures.get(name)
    found = nt.units(net.params, net.apply_fn, net.batch)
    remove = some(found, np.random.default_rng(1))
    small = nt.shrink(net.params, net.apply_fn, net.batch, remove)
    return net, small, zeros(net.params, found, remove)


# one looks at the first sample, and one draws for the whole batch
ALONE = {"branches", "dropped-out"}
WHERE = only_fast(["conv-flatten"], [n for n in structures.NETS if n not in ALONE])


@pytest.mark.parametrize("name", WHERE)
def test_under_vmap_and_on_other_batches(name):
    net, small, full = shrunk(name)
    more = jnp.concatenate([net.batch, net.batch[:2]])
    expected = jax.jit(net.apply_fn)(full, more)
    got = jax.jit(small.apply_fn)(small.params, more)
    assert distance(got, expected) < CLOSE

    def one(x):
        return small.apply_fn(small.params, x[None])[0]

    assert distance(jax.jit(jax.vmap(one))(more), expected) < CLOSE
    two = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), small.params)
    both = jax.jit(jax.vmap(small.apply_fn, (0, None)))(two, more)
    assert distance(both[0], expected) < CLOSE


@pytest.mark.parametrize("name", WHERE)
def test_it_is_exported_with_a_symbolic_batch(name):
    net, small, full = shrunk(name)
    [size] = export.symbolic_shape("size")
    shape = jax.ShapeDtypeStruct((size, *net.batch.shape[1:]), net.batch.dtype)
    given = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), small.params)
    exported = export.export(jax.jit(small.apply_fn))(given, shape)
    expected = jax.jit(net.apply_fn)(full, net.batch[:3])
    assert distance(exported.call(small.params, net.batch[:3]), expected) < CLOSE
    if importlib.util.find_spec("flatbuffers"):  # which jax.export writes with
        again = export.deserialize(exported.serialize())
        assert distance(again.call(small.params, net.batch[:3]), expected) < CLOSE


def test_derivatives_are_the_users_own():
    relu = jax.nn.relu

    def apply_fn(p, x):
        return relu(x @ p["a"]) @ p["b"]

    params = {"a": np.zeros((3, 4), "float32"), "b": np.ones((4, 2), "float32")}
    x = data(2, 3)
    small = nt.shrink(params, apply_fn, x, {"a": [1]})
    for function, own in ((apply_fn, params), (small.apply_fn, small.params)):
        slope = jax.grad(lambda p, f=function: jnp.sum(f(p, x)))(own)
        assert (slope["a"] == 0).all()  # half of it if the rule of relu were lost


@pytest.mark.slow
def test_second_derivatives_and_forward_mode():
    net = structures.get("own-derivatives")
    found = nt.units(net.params, net.apply_fn, net.batch)
    assert len(found.groups) == 2

    def apply_fn(p, x):
        return jax.nn.silu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]

    small = nt.shrink(net.params, relaxed(apply_fn), net.batch, {"a": [0, 3], "b": [2]})
    full = zeros(net.params, found, {"a": [0, 3], "b": [2]})

    def twice(function, params):
        def along(s):
            moved = jax.tree.map(lambda a: s * a, params)
            return jnp.sum(jnp.sin(function(moved, net.batch)))

        one = jnp.float32(1.0)
        return [jax.jvp(along, (one,), (one,))[1], jax.grad(jax.grad(along))(one)]

    with jax.numpy_dtype_promotion("standard"):
        got, expected = jax.jit(
            lambda s, f: [twice(small.apply_fn, s), twice(apply_fn, f)]
        )(small.params, full)
    assert distance(got, expected) < 1e-4


def test_the_plan_is_made_once_per_shape():
    calls = []

    def apply_fn(p, x):
        calls.append(x.shape)
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    params = {"a": normal(3, 4), "b": normal(4, 2)}
    small = nt.shrink(params, apply_fn, data(2, 3), {"a": [1]})
    calls.clear()
    for _ in range(3):
        small.apply_fn(small.params, data(5, 3))
    assert len(calls) == 1


def test_outputs_have_the_users_tree():
    def apply_fn(p, x):
        h = jax.nn.relu(x @ p["a"])
        return {"y": h @ p["b"], "name": "net", "none": None, "two": (x, 3)}

    params = {"a": normal(3, 4), "b": normal(4, 2)}
    small = nt.shrink(params, apply_fn, data(2, 3), {"a": [1]})
    out = small.apply_fn(small.params, data(2, 3))
    assert out["name"] == "net" and out["none"] is None and out["two"][1] == 3
    assert out["y"].shape == (2, 2)


def gone(count, kept):
    """The units that are not among those that are kept."""
    rows = kept.reshape(-1, kept.shape[-1])
    left = np.stack([np.setdiff1d(np.arange(count), row) for row in rows])
    return left.reshape(*kept.shape[:-1], -1)


@pytest.mark.parametrize("name", only_fast(["conv-flatten"], structures.NETS))
def test_shrinking_twice_is_shrinking_once(name):
    net, rng = structures.get(name), np.random.default_rng(2)
    found = nt.units(net.params, net.apply_fn, net.batch)
    first = nt.shrink(net.params, net.apply_fn, net.batch, some(found, rng, 0.3))
    for group in found.groups:
        kept = cutting.units_left(group, first.leaves)
        np.testing.assert_array_equal(kept, first.kept[group.name])
    others = nt.units(first.params, first.apply_fn, net.batch)
    second = nt.shrink(first.params, first.apply_fn, net.batch, some(others, rng, 0.4))
    leaves = [a.then(b) for a, b in zip(first.leaves, second.leaves, strict=True)]
    left = {g.name: cutting.units_left(g, leaves) for g in found.groups}
    remove = {g.name: gone(g.count, left[g.name]) for g in found.groups}
    once = nt.shrink(net.params, net.apply_fn, net.batch, remove)
    jax.tree.map(np.testing.assert_array_equal, second.params, once.params)
    out = [jax.jit(s.apply_fn)(s.params, net.batch) for s in (once, second)]
    jax.tree.map(np.testing.assert_array_equal, *out)
    assert second.report.as_it_is == once.report.as_it_is
    assert second.report.multiply_adds.after == once.report.multiply_adds.after


def test_a_network_shrunk_often_runs_its_program_once():
    net, traces = structures.get("mlp"), []

    def apply_fn(p, x):
        traces.append(1)
        return net.apply_fn(p, x)

    params, function = net.params, apply_fn
    for _ in range(4):
        small = nt.shrink(params, function, net.batch, {"a": [0], "b": [1]})
        params, function = small.params, small.apply_fn
    traces.clear()
    jax.make_jaxpr(function)(params, net.batch[:2])
    assert len(traces) == 1


def test_shapes_are_enough():
    net = structures.get("gpt")
    structs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), net.params)
    batch = jax.ShapeDtypeStruct(net.batch.shape, net.batch.dtype)
    small = nt.shrink(structs, net.apply_fn, batch, {"gate_up": [0, 1]})
    assert small.params["gate_up"].shape == (8, 8)
    assert small.params["down"].shape == (4, 8)
    out = jax.eval_shape(small.apply_fn, small.params, batch)
    assert out.shape == (6, 4, 11)


@pytest.mark.slow
def test_within_jit_and_vmap():
    net = structures.get("mlp")

    def run(params):
        small = nt.shrink(params, net.apply_fn, net.batch, {"a": [1, 2, 3]})
        return small.apply_fn(small.params, net.batch)

    outside = run(net.params)
    assert distance(jax.jit(run)(net.params), outside) < CLOSE
    stack = jax.tree.map(lambda a: jnp.stack([a, a]), net.params)
    assert distance(jax.jit(jax.vmap(run))(stack)[1], outside) < CLOSE


# ---- trees beside the params


def test_states_of_optimisers_and_masks_are_cut():
    net = structures.get("mlp")
    small = nt.shrink(net.params, net.apply_fn, net.batch, {"a": [1, 2], "b": [0]})
    optimizer = optax.chain(optax.clip(1.0), optax.adam(1e-3))
    state = small.cut(optimizer.init(net.params))
    expected = optimizer.init(small.params)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (state, expected)]
    assert shapes[0] == shapes[1]
    marks = jax.tree.map(lambda a: np.arange(a.size).reshape(a.shape), net.params)
    cut = small.cut({"average": marks, "other": np.zeros(3)})
    assert cut["other"].shape == (3,)
    kept = small.kept["a"]
    assert kept.tolist() == [0, *range(3, 10)]
    np.testing.assert_array_equal(cut["average"]["a"], marks["a"][:, kept])
    b = marks["b"][kept][:, small.kept["b"]]
    np.testing.assert_array_equal(cut["average"]["b"], b)
    with pytest.raises(MethodError, match="no array of this tree"):
        small.cut({"x": np.zeros(3)})


def test_every_step_keeps_its_own():
    net = structures.get("scan-stacked")
    [group] = nt.units(net.params, net.apply_fn, net.batch).groups
    gone = np.array([[0, 1], [5, 2], [9, 7]])
    small = agree(net.params, net.apply_fn, net.batch, {group.name: gone})
    kept = small.kept[group.name]
    assert kept.shape == (3, 8)
    up = np.asarray(net.params["layers"]["up"])
    for step in range(3):
        assert not set(kept[step]) & set(gone[step])
        mine = small.params["layers"]["up"][step]
        np.testing.assert_array_equal(mine, up[step][:, kept[step]])
    marks = np.zeros((3, 10), bool)
    marks[np.arange(3)[:, None], gone] = True
    same = nt.shrink(net.params, net.apply_fn, net.batch, {group.name: marks})
    jax.tree.map(np.testing.assert_array_equal, same.params, small.params)
    alike = nt.shrink(net.params, net.apply_fn, net.batch, {group.name: [3]})
    assert alike.kept[group.name].shape == (9,)


@pytest.mark.slow
def test_parts_of_an_axis_are_groups_of_their_own():
    # so that each of them keeps a unit, and as many at every step
    def apply_fn(p, x):
        def step(x, q):
            one, two = jnp.split(x @ q["w"], 2, -1)
            out = jnp.concatenate([jnp.tanh(one), jax.nn.relu(two)], -1)
            return x + out @ q["v"], None

        return jax.lax.scan(step, x, p)[0] @ jnp.ones((4, 2), x.dtype)

    params = {"w": normal(2, 4, 6), "v": normal(2, 6, 4)}
    groups = nt.units(params, relaxed(apply_fn), data(3, 4)).groups
    assert [(group.count, group.steps) for group in groups] == [(3, (2,))] * 2
    remove = {groups[0].name: [[0, 2], [1, 2]], groups[1].name: [[1], [0]]}
    small = agree(params, relaxed(apply_fn), data(3, 4), remove)
    assert small.params["w"].shape == (2, 4, 3)


# ---- errors

WRONG = [
    ({"x": [0]}, MethodError, "no group has the name 'x'"),
    (
        {"c": [0]},
        MethodError,
        "its axis 1 stays: it is an axis of the network's output",
    ),
    ({"a": [10]}, MethodError, "expected units from 0 to 9, got 10 to 10"),
    ({"a": [-1]}, MethodError, "expected units from 0 to 9"),
    ({"a": range(10)}, MethodError, "all 10 units would go; one has to stay"),
    ({"a": [0.5]}, MethodError, "expected indices of units"),
    ({"a": [[1, 2]]}, MethodError, "expected indices of units"),
    ({"a": np.ones(9, bool)}, MethodError, "or booleans"),
    ([1, 2], MethodError, "expected a dict from names of groups to units"),
]


@pytest.mark.parametrize("remove, error, text", WRONG)
def test_what_cannot_be_removed_says_so(remove, error, text):
    net = structures.get("mlp")
    with pytest.raises(error, match=text):
        nt.shrink(net.params, net.apply_fn, net.batch, remove)


def test_other_errors():
    net = structures.get("mlp")
    small = nt.shrink(net.params, net.apply_fn, net.batch, {"a": [0]})
    with pytest.raises(
        ParamsError, match=r"a has the shape \(6, 10\); expected \(6, 9"
    ):
        small.apply_fn(net.params, net.batch)
    with pytest.raises(ParamsError, match="expected the 5 arrays"):
        small.apply_fn({"a": net.params["a"]}, net.batch)
    with pytest.raises(ParamsError, match="say what to remove"):
        jax.jit(lambda p: nt.shrink(p, net.apply_fn, net.batch).params)(net.params)
    with pytest.raises(ApplyFnError, match="expected a function"):
        nt.units(net.params, net.batch, net.apply_fn)

    def fickle(p, x):  # another program at another batch
        h = jax.nn.relu(x @ p["a"])
        h = jnp.sort(h, -1) if x.shape[0] == 2 else h
        return h @ p["b"]

    params = {"a": normal(3, 4), "b": normal(4, 2)}
    small = nt.shrink(params, fickle, data(5, 3), {"a": [1]})
    small.apply_fn(small.params, data(6, 3))
    with pytest.raises(ApplyFnError, match="would have to stay: `sort` goes over it"):
        small.apply_fn(small.params, data(2, 3))


def test_steps_must_remove_as_many():
    net = structures.get("scan-stacked")
    with pytest.raises(MethodError, match="as many units, got"):
        nt.shrink(
            net.params, net.apply_fn, net.batch, {"layers/up": [[1, 2], [3, 3], [4, 5]]}
        )
    marks = np.zeros((3, 10), bool)
    marks[0, 0] = True
    with pytest.raises(MethodError, match="as many units, got"):
        nt.shrink(net.params, net.apply_fn, net.batch, {"layers/up": marks})


def test_what_prune_returns_is_taken_as_it_is():
    class Pruned:
        params, mask, report = structures.get("mlp").params, None, None

    net = structures.get("mlp")
    small = nt.shrink(Pruned(), net.apply_fn, net.batch, {"a": [0]})
    assert small.params["a"].shape == (6, 9)


def test_a_small_network_is_saved_and_read():
    net, small, _ = shrunk("mlp")
    file = io.BytesIO()
    np.savez(file, **small.params)
    file.seek(0)
    read = dict(np.load(file))
    out = small.apply_fn(read, net.batch)
    np.testing.assert_array_equal(out, small.apply_fn(small.params, net.batch))


def test_linen_takes_other_arguments():
    class Net(nn.Module):
        hidden: int = 7

        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(self.hidden)(x))
            return nn.Dense(3)(x)

    params, apply_fn, x = models.linen(Net(), data(4, 5))
    small = nt.shrink(params, apply_fn, x, {"params/Dense_0/kernel": [1, 2]})
    assert not small.report.as_it_is
    text = "params/Dense_0/kernel: [5, 7] -> [5, 5] (Dense_0: features=5)"
    assert text in str(small.report)
    own = relaxed(Net(hidden=5).apply)(small.params, x)
    assert distance(small.apply_fn(small.params, x), own) < CLOSE
