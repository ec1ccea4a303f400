"""What may vary from call to call is an array, so another value compiles no solver."""

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from marks import only_fast

import nettrim_jax as nt
from nettrim_jax import _compile
from nettrim_jax.execution import batching
from nettrim_jax.methods import rules

X = models.data(60, 8)
PARAMS = {"a": models.normal(8, 12), "b": models.normal(12, 4, seed=1)}


def apply_fn(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["b"]


def prune(method, mode="parallel"):
    return nt.prune(PARAMS, apply_fn, X, method=method, mode=mode)


@pytest.fixture
def solvers():
    """A function that says how many programs of solvers and rules were compiled."""

    programs = batching._each, rules._conclude, rules._conclude_loop

    def count():
        return sum(one._cache_size() for one in programs)

    return count


LEVELS = {
    "sparsity": lambda more: nt.Sparsity(0.7 if more else 0.5),
    "column": lambda more: nt.Sparsity(0.75 if more else 0.5, scope="column"),
    "nm": lambda more: nt.NM(1 if more else 2, 4),
    "blocks": lambda more: nt.Blocks(0.75 if more else 0.5, (2, 2)),
    "neurons": lambda more: nt.Neurons(0.75 if more else 0.5),
    "inputs": lambda more: nt.Inputs(0.75 if more else 0.5),
}
QUICK = ["sparsity", "nm"]
HOLDERS = {
    "reconstruct": nt.Reconstruct,
    "magnitude": nt.Magnitude,
    "wanda": nt.Wanda,
    "sparsegpt": nt.SparseGPT,
    "layerobs": nt.LayerOBS,
}


CASES = [(level, holder) for level in LEVELS for holder in HOLDERS]
COMPILED = ("reconstruct", "sparsegpt")
FEW = {**dict.fromkeys(COMPILED, QUICK), "layerobs": QUICK[:1]}  # levels
OFTEN = [case for case in CASES if case[0] in FEW.get(case[1], LEVELS)]


@pytest.mark.parametrize("case", only_fast(OFTEN, CASES), ids="-".join)
def test_another_level_compiles_no_solver(case, solvers):
    level, holder = case
    if holder == "sparsegpt" and level not in ("sparsity", "column", "nm"):
        pytest.skip("SparseGPT removes no groups")
    make = HOLDERS[holder]
    first = prune(make(LEVELS[level](False)))
    before = solvers()
    second = prune(make(LEVELS[level](True)))
    assert solvers() == before
    # the level is the one that was asked for, as without what was compiled before
    assert float(second.report.sparsity) > float(first.report.sparsity)


@pytest.mark.parametrize("holder, level", [("magnitude", "blocks"), ("wanda", "nm")])
def test_ranking_compiles_nothing_and_chooses_as_within_jit(holder, level, solvers):
    method = HOLDERS[holder](LEVELS[level](False))
    before = solvers()
    alone = prune(method).params
    assert solvers() == before
    within = jax.jit(lambda params: nt.prune(params, apply_fn, X, method=method).params)
    jax.tree.map(np.testing.assert_array_equal, alone, within(PARAMS))


HALF = nt.Sparsity(0.5)
OTHERS = {
    "mode": (HALF, HALF, "cascade"),
    "downstream": (
        nt.Reconstruct(HALF, downstream=0.3),
        nt.Reconstruct(HALF, downstream=0.6),
        "parallel",
    ),
    "ridge": (
        nt.Reconstruct(HALF, ridge=0.3),
        nt.Reconstruct(HALF, ridge=0.1),
        "parallel",
    ),
    "plain": (
        nt.Reconstruct(HALF, plain=0.0),
        nt.Reconstruct(HALF, plain=1.0),
        "parallel",
    ),
    "damping": (
        nt.SparseGPT(HALF, damping=0.01),
        nt.SparseGPT(HALF, damping=0.1),
        "parallel",
    ),
    "epsilon": (nt.NetTrim(0.1), nt.NetTrim(0.3), "parallel"),
    "NetTrim's mode": (nt.NetTrim(0.1), nt.NetTrim(0.1), "cascade"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_setting_compiles_no_solver(what, solvers):
    one, other, mode = OTHERS[what]
    first = prune(one)
    before = solvers()
    second = prune(other, mode)
    assert solvers() == before
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), first.params, second.params)
    assert not all(jax.tree.leaves(same))


def test_compiled_is_jit_within_programs_of_others():
    calls = []

    @_compile.compiled(static_argnames="power")
    def raised(x, power):
        calls.append(power)
        return jnp.sum(x**power)

    x = jnp.arange(4.0)
    assert float(raised(x, 2)) == float(jax.jit(lambda x: raised(x, 2))(x)) == 14.0
    assert float(raised(x, power=3)) == 36.0
    assert jax.grad(lambda x: raised(x, 2))(x).tolist() == [0.0, 2.0, 4.0, 6.0]
    assert jax.vmap(lambda x: raised(x, 2))(jnp.stack([x, x])).tolist() == [14.0] * 2
    # known values within a program of others: its operations are traced there
    assert float(jax.jit(lambda: raised(x, 2))()) == 14.0
    assert raised._cache_size() >= 3


def test_an_option_that_xla_does_not_have_is_left_out():
    known = _compile._known((("xla_no_such_option", 1), *_compile.HASTE.items()))
    assert known == dict(_compile._known(tuple(_compile.HASTE.items())))
    assert "xla_no_such_option" not in known


def test_who_asks_jax_for_little_optimisation_gets_little(monkeypatch):
    function = _compile.compiled(often=True)(lambda x: x + 1)
    forms = []
    for little in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(jax.config, "read", lambda name, little=little: little)
            forms.append(function._form((np.ones(3),), {}))
    assert forms == ["little", "brisk"]  # which adds no level, and which sets one
    assert not any("level" in option for option in _compile.FORMS["little"])


def test_progress_says_when_it_compiles():
    params = {"w": models.normal(7, 11)}
    said = []
    for _ in range(2):
        calls = []
        nt.prune(
            params,
            lambda p, x: x @ p["w"],
            models.normal(43, 7),
            method=nt.NetTrim(0.3),
            progress=lambda done, total, what, calls=calls: calls.append(what),
        )
        said.append("compiling" in calls)
    assert said == [True, False]
