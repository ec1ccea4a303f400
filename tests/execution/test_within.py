"""Zeros stay zero under every method; the mask is the choice, not what is not zero."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import models
import numpy as np
import optax
import pytest
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax.results import MethodError, ParamsError

X = models.data(200, 32)
PARAMS = {"a": models.normal(32, 24), "b": models.normal(24, 8, seed=1)}
SIZE = 32 * 24 + 24 * 8


def apply_fn(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["b"]


def prune(params, method, **settings):
    settings = {"on_failure": "warn", "held_out": 0.0} | settings
    return nt.prune(params, apply_fn, X, method=method, **settings)


def arrays(tree):
    return [np.asarray(a) for a in jax.tree.leaves(tree)]


def support(params):
    return [a != 0 for a in arrays(params)]


@functools.cache
def two_of_four():
    """A network of which half of the weights are left, two of every four."""
    return prune(PARAMS, nt.Magnitude(nt.NM(2, 4))).params


METHODS = {  # with the share of the weights that is left, where it is exact
    "sparsity": (nt.Sparsity(0.7), 0.3),
    "column": (nt.Sparsity(0.75, scope="column"), 0.25),
    "network": (nt.Sparsity(0.7, scope="network"), 0.3),
    "nm": (nt.NM(1, 4), 0.25),
    "blocks": (nt.Blocks(0.75, (4, 4)), None),
    "neurons": (nt.Neurons(0.5), None),
    "fixed bias": (nt.Reconstruct(nt.Sparsity(0.7), bias="fixed"), 0.3),
    "sparsegpt": (nt.SparseGPT(nt.Sparsity(0.7)), 0.3),
    "sparsegpt nm": (nt.SparseGPT(nt.NM(1, 4)), 0.25),
    "layerobs": (nt.LayerOBS(nt.Sparsity(0.7)), 0.3),
    "layerobs nm": (nt.LayerOBS(nt.NM(1, 4)), 0.25),
    "layerobs blocks": (nt.LayerOBS(nt.Blocks(0.75, (4, 4))), None),
    "wanda": (nt.Wanda(nt.Sparsity(0.7)), 0.3),
    "random": (nt.Random(nt.Sparsity(0.7)), 0.3),
    "magnitude": (nt.Magnitude(nt.Sparsity(0.7, scope="network")), 0.3),
    "nettrim": (nt.NetTrim(0.1), None),
    "rounds": (nt.NetTrim(0.1, rounds=2, refit=True), None),
    "groups": (nt.NetTrim(0.3, penalty=nt.GroupL1("inputs")), None),
    "budget": (nt.NetTrim(deviation=0.3), None),
}
FAST = ["sparsegpt", "random", "nettrim"]


CASES = [(name, mode) for name in METHODS for mode in ("parallel", "cascade")]
QUICK = [(name, "parallel") for name in FAST]


@pytest.mark.parametrize("case", only_fast(QUICK, CASES), ids=" ".join)
def test_no_zero_comes_back(case):
    name, mode = case
    method, share = METHODS[name]
    given = two_of_four()
    pruned = prune(given, method, mode=mode)
    for before, after in zip(support(given), support(pruned.params), strict=True):
        assert not (after & ~before).any()
        groups = after.reshape(-1, 4, after.shape[1])
        assert groups.sum(1).max() <= 2
    left = sum(a.sum() for a in support(pruned.params))
    assert left == sum(a.sum() for a in arrays(pruned.mask))
    if share is not None:
        assert left == round(share * SIZE)
    assert 0 < left < SIZE / 2


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(nt.Sparsity(0.3), marks=slow),
        nt.Magnitude(nt.Sparsity(0.3)),
        nt.NM(3, 4),
    ],
)
def test_a_level_below_the_present_one_leaves_what_is_there(method):
    given = two_of_four()
    pruned = prune(given, method)
    for a, b in zip(arrays(given), arrays(pruned.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert "a: no more than 384 of its 768 weights were left before" in str(
        pruned.report
    )
    site = pruned.report.sites[0]
    assert int(site.before) == int(site.nonzeros) == int(site.kept) == 384


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(nt.Sparsity(0.25), marks=slow),
        nt.Magnitude(nt.Sparsity(0.25)),
        pytest.param(nt.NetTrim(0.05), marks=slow),
    ],
)
def test_they_come_back_where_that_is_asked(method):
    given = two_of_four()
    pruned = prune(given, method, revive=True)
    if isinstance(method, nt.NetTrim | nt.Sparsity):
        assert any(
            (after & ~before).any()
            for before, after in zip(
                support(given), support(pruned.params), strict=True
            )
        )
    if not isinstance(method, nt.NetTrim):  # the mask is the pattern's own choice
        assert sum(a.sum() for a in arrays(pruned.mask)) == round(0.75 * SIZE)


OWN = [name for name in METHODS if name != "budget"]


@pytest.mark.parametrize("name", only_fast(["sparsity"], OWN))
def test_a_mask_of_ones_own(name, rng):
    method, share = METHODS[name]
    # far fewer weights meet no budget: units that are off have to stay off
    part = 0.6 if share else 0.97
    mask = jax.tree.map(lambda a: rng.uniform(size=a.shape) < part, PARAMS)
    pruned = prune(PARAMS, method, within=mask)
    for inside, after in zip(arrays(mask), support(pruned.params), strict=True):
        assert not (after & ~inside).any() and after.any()
    if name in ("sparsity", "wanda", "random"):
        assert int(pruned.report.nonzeros) == round(share * SIZE)


def test_a_mask_of_another_tree():
    with pytest.raises(ParamsError, match="prune.within.: expected a mask of the par"):
        prune(PARAMS, nt.Sparsity(0.5), within={"a": PARAMS["a"]})
    with pytest.raises(ParamsError, match="within.: b: expected a mask of shape"):
        prune(PARAMS, nt.Sparsity(0.5), within={**PARAMS, "b": np.ones(3)})
    with pytest.raises(MethodError, match="revive='no'.: expected True or False"):
        prune(PARAMS, nt.Sparsity(0.5), revive="no")


@slow
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(nt.Sparsity(0.7), marks=slow),
        nt.SparseGPT(nt.NM(1, 4)),
        pytest.param(nt.NetTrim(0.1), marks=slow),
    ],
)
def test_within_jit_it_is_the_same(method):
    given = two_of_four()
    pruned = jax.jit(lambda params: prune(params, method)[:2])(given)
    for before, after in zip(support(given), support(pruned[0]), strict=True):
        assert not (after & ~before).any() and after.any()
    want = prune(given, method)
    counts = [[int(a.sum()) for a in arrays(mask)] for mask in (pruned[1], want.mask)]
    # another rounding may stop at another step
    np.testing.assert_allclose(*counts, atol=2 * isinstance(method, nt.NetTrim))


@slow
def test_the_mask_of_a_refit_is_the_one_that_was_given():
    given = two_of_four()
    mask = jax.tree.map(lambda a: np.ones(a.shape, bool), given)
    mask["a"][:, 0] = False  # a weight is removed, so that there is something to fit
    fitted = nt.refit(given, mask, apply_fn, X)
    for inside, kept, new in zip(*map(arrays, (mask, *fitted[1::-1])), strict=True):
        np.testing.assert_array_equal(kept, inside)
        assert not (new != 0)[~inside].any()


# ---- layers that were never trained


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(nt.Sparsity(0.5), marks=slow),
        pytest.param(nt.NM(2, 4), marks=slow),
        nt.Wanda(nt.Sparsity(0.5)),
    ],
)
def test_a_layer_of_zeros_has_the_patterns_mask(method):
    untrained = {**PARAMS, "b": jnp.zeros_like(PARAMS["b"])}
    pruned = prune(untrained, method)
    assert int(pruned.mask["b"].sum()) == 96 and not pruned.params["b"].any()
    site = pruned.report.sites[1]
    assert (int(site.nonzeros), int(site.kept)) == (0, 96)
    assert "b: the mask keeps 96 weights, of which 96 are zero" in str(pruned.report)
    # so it can be trained
    optimiser = nt.keep_sparse(optax.sgd(0.1), pruned.mask)
    slopes = jax.tree.map(jnp.ones_like, pruned.params)
    updates, _ = optimiser.update(slopes, optimiser.init(pruned.params), pruned.params)
    moved = optax.apply_updates(pruned.params, updates)
    np.testing.assert_array_equal(moved["b"] != 0, pruned.mask["b"])


def test_a_step_of_a_loop_that_was_never_trained():
    stack = np.array(models.normal(3, 8, 8))
    stack[1] = 0

    def looped(stack, x):
        return jax.lax.scan(lambda h, w: (h + jnp.tanh(h @ w), None), x, stack)[0]

    method = nt.Magnitude(nt.Sparsity(0.5))
    pruned = nt.prune(jnp.asarray(stack), looped, models.data(60, 8), method=method)
    assert np.asarray(pruned.mask).sum((1, 2)).tolist() == [32, 32, 32]
    assert (np.asarray(pruned.params) != 0).sum((1, 2)).tolist() == [32, 0, 32]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ones(nt.Magnitude):
    """A method of one's own that knows no mask."""

    def answer(self, W, evidence=None):
        return jnp.ones_like(W)


def test_a_method_that_knows_no_mask_revives_nothing():
    given = two_of_four()
    after = prune(given, Ones(nt.Sparsity(0.5))).params
    for a, b in zip(support(given), arrays(after), strict=True):
        np.testing.assert_array_equal(a.astype(b.dtype), b)
