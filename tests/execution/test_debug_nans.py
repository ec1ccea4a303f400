"""Under ``jax_debug_nans`` a pruning raises nothing, and what is unknown is NaN.

This takes a process of its own, because a program that was compiled before the setting
is not looked at.
"""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys

import jax
import jax.numpy as jnp
import numpy as np

import nettrim_jax as nt

rng = np.random.default_rng(0)
shapes = {"a": (8, 8), "b": (8, 8), "c": (8, 4)}
params = {name: rng.normal(size=n).astype("float32") for name, n in shapes.items()}
x = rng.normal(size=(64, 8)).astype("float32")
mask = {name: abs(a) > 0.5 for name, a in params.items()}


def apply_fn(params, x):
    x = jax.nn.relu(x @ params["a"])
    return jnp.cumprod(jax.nn.relu(x @ params["b"]) @ params["c"], axis=1)


def metric(params, x):
    return -jnp.mean(apply_fn(params, x) ** 2)


def prune(method, **settings):
    return nt.prune(params, apply_fn, x, method=method, **settings)


half = nt.Sparsity(0.5)
program = nt.linear_program(jnp.asarray(x), jnp.asarray(x @ params["a"]), 3.0)
assert jax.config.jax_debug_nans
for call in sys.argv[1:]:
    got = eval(call)
    for leaf in jax.tree.leaves(got):
        assert call.startswith("nt.history") or np.isfinite(leaf).all(), call
    if "Magnitude" in call:
        site = got.report.sites[0]
        assert all(map(np.isnan, (site.gap, site.violation, site.epsilon))), call
"""

FAST = ["prune(nt.Magnitude(half), held_out=0.0)"]
SLOW = [
    "prune(nt.Magnitude(half), bound=True)",
    "prune(half)",
    "prune(nt.Wanda(half), mode='cascade')",
    "prune(nt.SparseGPT(half))",
    "prune(nt.LayerOBS(half))",
    "prune(half, mode='cascade')",
    "prune(nt.NetTrim(0.2, rounds=2, refit=True))",
    "prune(nt.NetTrim(0.2), mode='cascade')",
    "prune(nt.NetTrim(deviation=0.5))",
    "prune(nt.NetTrim(drop=0.5, metric=metric))",
    "prune(nt.Sparsity(0.5, scope='network'))",
    "nt.refit(params, mask, apply_fn, x)",
    "nt.refit(params, mask, apply_fn, x, mode='cascade')",
    "nt.history(program)",
    "nt.path(program, jnp.array([3.0, 1.0]))",
    "jax.jit(lambda p: nt.prune(p, apply_fn, x, method=half))(params)",
    "jax.vmap(lambda s: nt.prune(jax.tree.map(lambda a: s * a, params), apply_fn, x,"
    " method=nt.Magnitude(half)))(jnp.array([1.0, 2.0], 'float32'))",
]


@pytest.mark.parametrize("calls", [FAST, pytest.param(SLOW, marks=pytest.mark.slow)])
def test_nothing_is_raised(calls):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *calls],
        env={"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        | os.environ
        | {"JAX_DEBUG_NANS": "1", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
