"""``Units`` on whole networks: exact counts, zeros in all entries, smaller arrays."""

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
import structures
from marks import only_fast, slow
from models import normal, relaxed
from structures import distance

import nettrim_jax as nt
from nettrim_jax._trees import is_array
from nettrim_jax.results import MethodError


def gone(params, structure):
    """By group, the units of which all entries are zero, ``[*steps, count]`` bool."""
    leaves = [leaf for leaf in jax.tree.leaves(params) if is_array(leaf)]
    out = {}
    for group in structure.groups:
        dead = np.ones((*group.steps, group.count), bool)
        for entry in group.entries:
            if entry.leaf is None:
                continue
            if leaves[entry.leaf].dtype.kind not in "fb":
                continue
            leaf, steps = np.asarray(leaves[entry.leaf]), len(group.steps)
            rest = tuple(a for a in range(steps, leaf.ndim) if a != entry.axis)
            zero = (leaf == 0).all(rest) if rest else leaf == 0
            for unit in range(group.count):
                dead[..., unit] &= zero[..., entry.units == unit].all(-1)
        out[group.name] = dead
    return out


def mlp(widths=(6, 10, 8, 3), seed=0):
    """A multilayer perceptron with biases, and a batch."""
    params = {
        f"l{k}": {
            "w": normal(a, b, seed=seed + k),
            "b": 0.3 * normal(b, seed=seed + 50 + k),
        }
        for k, (a, b) in enumerate(zip(widths, widths[1:], strict=False))
    }

    def apply_fn(params, x):
        for k in range(len(params)):
            x = x @ params[f"l{k}"]["w"] + params[f"l{k}"]["b"]
            x = jax.nn.relu(x) if k < len(params) - 1 else x
        return x

    return params, relaxed(apply_fn), normal(80, widths[0], seed=seed + 99)


@relaxed
def first(params, x):
    """The activations of the first hidden layer."""
    return jax.nn.relu(x @ params["l0"]["w"] + params["l0"]["b"])


FAST = ["mlp"]


@pytest.mark.parametrize("name", only_fast(FAST, structures.NETS))
def test_so_many_units_of_every_group_are_zero_everywhere(name):
    net = structures.get(name)
    found = nt.units(net.params, net.apply_fn, net.batch)
    pruned = nt.prune(net.params, net.apply_fn, net.batch, method=nt.Units(0.5))
    dead = gone(pruned.params, found)
    for group in found.groups:
        want = min(round(0.5 * group.count), group.count - 1)
        if any(f"{group.name}: stays" in note for note in pruned.report.notes):
            assert name == "low-rank"  # the product of two leaves is no layer
            want = 0
        assert (dead[group.name].sum(-1) == want).all(), group.name
    remove = {name: where for name, where in dead.items() if where.any()}
    small = nt.shrink(pruned, net.apply_fn, net.batch, remove)
    out = net.apply_fn(pruned.params, net.batch)
    assert distance(small.apply_fn(small.params, net.batch), out) < 1e-5
    # an entry that was removed is not in the mask, and all that is not there is zero
    trees = pruned.params, pruned.mask
    for leaf, mask in zip(*map(jax.tree.leaves, trees), strict=True):
        if is_array(leaf) and leaf.dtype.kind == "f":
            assert (np.asarray(leaf)[~np.asarray(mask)] == 0).all()
    for name, where in gone(pruned.mask, found).items():
        assert (where == dead[name]).all(), name


@pytest.mark.parametrize(
    "by",
    [
        nt.L1(),
        pytest.param(nt.L2(), marks=slow),
        pytest.param(nt.MeanActivation(), marks=slow),
        pytest.param(nt.NonZeros(), marks=slow),
        nt.APoZ(),
        pytest.param(nt.Random(seed=3), marks=slow),
        pytest.param(nt.Joint(), marks=slow),
    ],
    ids=lambda by: type(by).__name__,
)
def test_scores_are_those_of_the_network(by):
    params, apply_fn, x = mlp()
    pruned = nt.prune(params, apply_fn, x, method=nt.Units(count=4, by=by, refit=False))
    hidden = first(params, x)
    scores = {
        "L1": jnp.abs(params["l0"]["w"]).sum(0),
        "L2": (params["l0"]["w"] ** 2).sum(0),
        "MeanActivation": hidden.mean(0),
        "NonZeros": (hidden != 0).mean(0),
        "APoZ": (hidden != 0).mean(0),
    }.get(type(by).__name__)
    removed = np.flatnonzero((np.asarray(pruned.params["l0"]["w"]) == 0).all(0))
    assert len(removed) == 4
    assert (np.asarray(pruned.params["l0"]["b"])[removed] == 0).all()
    if scores is not None:
        assert set(removed) == set(np.argsort(np.asarray(scores))[:4])
    # all else stays as trained
    for new, old in zip(
        jax.tree.leaves(pruned.params), jax.tree.leaves(params), strict=True
    ):
        new, old = np.asarray(new), np.asarray(old)
        assert (new[new != 0] == old[new != 0]).all()


@slow
def test_taylor_is_the_derivative_by_a_gate_of_each_sample():
    params, apply_fn, x = mlp()
    y = normal(80, 3, seed=5)

    def loss(params, batch):
        return jnp.mean((apply_fn(params, batch[0]) - batch[1]) ** 2)

    @relaxed
    def gated(gate, x, y):
        hidden = first(params, x) * gate
        hidden = jax.nn.relu(hidden @ params["l1"]["w"] + params["l1"]["b"])
        return jnp.mean((hidden @ params["l2"]["w"] + params["l2"]["b"] - y) ** 2)

    each = jax.vmap(jax.grad(gated), (None, 0, 0))(jnp.ones(10), x, y)
    least = np.argsort(np.abs(np.asarray(each)).mean(0))[:3]
    method = nt.Units(count=3, by=nt.Taylor(loss), refit=False)
    pruned = nt.prune(
        *(params, lambda p, b: apply_fn(p, b[0]), (x, y)),
        method={"l0": method, ".*": None},
    )
    removed = np.flatnonzero((np.asarray(pruned.params["l0"]["w"]) == 0).all(0))
    assert set(removed) == set(least)
    assert (np.asarray(pruned.params["l1"]["w"]) == 0).all(1).sum() == 3


@slow
@pytest.mark.parametrize("mode", only_fast(["cascade"], ["parallel", "cascade"]))
def test_the_fit_loses_less_than_none(mode):
    params, apply_fn, x = mlp()
    moved = {
        refit: nt.prune(
            params, apply_fn, x, method=nt.Units(0.3, refit=refit), mode=mode
        ).report.deviation
        for refit in (True, False)
    }
    assert moved[True] < 0.7 * moved[False]


@slow
def test_units_that_others_can_take_the_part_of_go_for_nothing():
    params, apply_fn, x = mlp()
    twice = {"w": jnp.concatenate([params["l0"]["w"]] * 2, 1)}
    twice["b"] = jnp.concatenate([params["l0"]["b"]] * 2)
    after = {**params["l1"], "w": jnp.concatenate([params["l1"]["w"]] * 2) / 2}
    params = {**params, "l0": twice, "l1": after}
    method = {"l0": nt.Units(0.5, by=nt.Joint(ridge=1e-8)), ".*": None}
    pruned = nt.prune(params, apply_fn, x, method=method)
    kept = np.flatnonzero(np.asarray(pruned.params["l0"]["w"]).any(0))
    fires = np.flatnonzero(np.asarray(first(params, x)).any(0)) % 10
    assert set(fires) <= set(kept % 10)  # one of each pair
    assert pruned.report.deviation < 1e-3


@slow
def test_a_share_of_the_network_goes_where_it_costs_least():
    params, apply_fn, x = mlp((6, 12, 12, 3))
    # of the first layer two units say all
    params["l0"] = {k: a.at[..., 2:].multiply(1e-3) for k, a in params["l0"].items()}
    full = nt.shrink(params, apply_fn, x, {}).report
    for of in ("units", "parameters", "multiply-adds"):
        method = nt.Units(0.4, scope="network", of=of)
        pruned = nt.prune(params, apply_fn, x, method=method)
        small = nt.shrink(pruned, apply_fn, x)
        kept = {name: len(k) for name, k in small.kept.items()}
        assert kept["l0/w"] < kept["l1/w"]
        report, left = small.report, {"units": sum(kept.values()) / 24}
        left["parameters"] = report.parameters.after / full.parameters.before
        left["multiply-adds"] = report.multiply_adds.after / full.multiply_adds.before
        assert left[of] <= 0.6
        even = nt.prune(params, apply_fn, x, method=nt.Units(1 - left["units"]))
        if of == "units":
            assert pruned.report.deviation < even.report.deviation


def test_deviations_below_the_mean_of_the_scores():
    params, apply_fn, x = mlp()
    hidden = np.asarray(first(params, x))
    share = (hidden == 0).mean(0)
    want = np.flatnonzero(share > share.mean() + share.std())
    method = {"l0": nt.Units(deviations=1, by=nt.APoZ()), ".*": None}
    pruned = nt.prune(params, apply_fn, x, method=method)
    removed = np.flatnonzero(~np.asarray(pruned.params["l0"]["w"]).any(0))
    assert len(want) and set(removed) == set(want)
    assert f"l0/w: {len(want)} of 10 neurons removed" in pruned.report.notes


@slow
def test_zeros_do_not_come_back_unless_they_may():
    params, apply_fn, x = mlp()
    first = nt.prune(params, apply_fn, x, method=nt.Magnitude(nt.Sparsity(0.5)))
    for revive in (False, True):
        pruned = nt.prune(
            first.params, apply_fn, x, method=nt.Units(0.3), revive=revive
        )
        came = (np.asarray(pruned.params["l1"]["w"]) != 0) & ~np.asarray(
            first.mask["l1"]["w"]
        )
        assert came.any() == revive
    within = nt.prune(params, apply_fn, x, method=nt.Units(0.3), within=first.mask)
    assert not (np.asarray(within.params["l1"]["w"])[~first.mask["l1"]["w"]]).any()


@slow
def test_the_bound_holds_where_biases_go_too():
    params, apply_fn, x = mlp()
    pruned = nt.prune(params, apply_fn, x, method=nt.Units(0.5), bound=True)
    assert not pruned.report.bound_stop
    assert float(pruned.report.deviation) <= float(pruned.report.bound)


@slow
def test_a_loader_is_one_batch_of_all():
    params, apply_fn, x = mlp()
    whole = nt.prune(params, apply_fn, x, method=nt.Units(0.5))
    parts = nt.prune(params, apply_fn, iter([x[:40], x[40:]]), method=nt.Units(0.5))
    found = nt.units(params, apply_fn, x)
    for name, dead in gone(whole.params, found).items():
        assert (gone(parts.params, found)[name] == dead).all()


@slow
@pytest.mark.parametrize("name", ["nnx", "equinox-conv", "haiku", "linen-batch-norm"])
@pytest.mark.parametrize("by", [nt.L1(), nt.APoZ(), nt.Joint()], ids=lambda b: repr(b))
def test_any_framework(name, by):
    net = models.get(name)
    method = nt.Units(0.5, by=by)
    pruned = nt.prune(net.params, net.apply_fn, net.batch, method=method)
    small = nt.shrink(pruned, net.apply_fn, net.batch)
    assert small.report.parameters.after < small.report.parameters.before


def test_bad_arguments_are_told():
    params, apply_fn, x = mlp()
    for wrong, text in (
        (lambda: nt.Units(), "expected one of share, count and deviations"),
        (lambda: nt.Units(0.5, count=3), "share=0.5, count=3"),
        (lambda: nt.Units(1.0), r"share=1.0.*in \[0, 1\)"),
        (lambda: nt.Units(count=-1), "count=-1"),
        (lambda: nt.Units(deviations="1"), "deviations='1'"),
        (lambda: nt.Units(0.5, scope="layer"), "scope='layer'.*'group', 'network'"),
        (lambda: nt.Units(0.5, of="bytes"), "of='bytes'"),
        (lambda: nt.Units(0.5, of="parameters"), "goes with scope='network'"),
        (lambda: nt.Units(count=2, scope="network"), "goes with share"),
        (lambda: nt.Units(0.5, by=nt.Sparsity(0.5)), "expected a criterion"),
        (lambda: nt.Units(0.5, by=nt.Joint), "expected a criterion"),
        (lambda: nt.Units(0.5, refit=1), "refit=1"),
        (lambda: nt.Joint(downstream=2), "downstream=2"),
        (lambda: nt.Joint(ridge=0), "ridge=0"),
    ):
        with pytest.raises(MethodError, match=text):
            wrong()

    def prune(method, batch=x):
        return nt.prune(params, apply_fn, batch, method=method)

    with pytest.raises(MethodError, match="each choose for the whole network"):
        prune({"l0": nt.Units(0.5), ".*": nt.Reconstruct(nt.Sparsity(), deviation=0.1)})
    with pytest.raises(MethodError, match="give other layers None"):
        prune({"l0": nt.Units(0.5), ".*": nt.Magnitude(nt.Sparsity(0.5))})
    with pytest.raises(MethodError, match="none of the layers makes units"):
        prune({"l2": nt.Units(0.5), ".*": None})
    with pytest.raises(MethodError, match="has no pattern, so it can only rank units"):
        prune(nt.Random())
    with pytest.raises(MethodError, match="one floating number"):
        prune(nt.Units(0.5, by=nt.Taylor(apply_fn)))
    with pytest.raises(MethodError, match="Units: the search measures networks"):
        jax.jit(prune, static_argnums=0)(nt.Units(0.5), x)
