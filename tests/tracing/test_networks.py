"""What holds of every network holds of random ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from limits import free_mappings
from marks import slow
from networks import network

import nettrim_jax as nt
from nettrim_jax.calibration.capture import Draw, capture
from nettrim_jax.tracing.sites import trace

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]
seeds = given(st.integers(0, 10**6))


def few(examples):
    """So many networks, the same ones every time."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],  # a seed has nothing to shrink
        suppress_health_check=QUIET,
    )


def folded_problems_are_the_operations(seed):
    free_mappings()
    params, apply_fn, x = network(seed)
    graph, leaves = trace(apply_fn, params, x), jax.tree.leaves(params)
    matrices = {
        path for path, leaf in zip(graph.paths, leaves, strict=True) if leaf.ndim >= 2
    }
    taken = {site.path for site in graph.sites}
    skipped = {path for path, _ in graph.skipped}
    assert not taken & skipped
    assert matrices <= taken | skipped
    chosen = tuple(range(len(graph.sites)))
    draw = Draw(chosen, 10**6, ((),) * len(chosen))
    seen, outputs = capture(graph, draw, graph.consts, [*leaves, x], jax.random.key(0))
    for site, rows in zip(graph.sites, seen, strict=True):
        W = np.asarray(leaves[site.leaf], float).ravel()[site.index]
        X, t, P, scale = (
            np.asarray(a, float) for a in (rows.X, rows.t, rows.P, rows.scale)
        )
        again = scale[:, None, :] * (X @ W) + t
        size = max(np.abs(P).max(), 1e-3)
        np.testing.assert_allclose(again, P, atol=1e-5 * size, err_msg=site.path)
    want = jax.tree.leaves(jax.jit(apply_fn)(params, x))
    for one, two in zip(outputs, want, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5 * float(jnp.abs(two).max() + 1))


@slow
@few(4)
@seeds
def test_folded_problems_are_the_operations(seed):
    folded_problems_are_the_operations(seed)


@slow
@few(300)
@seeds
def test_folded_problems_of_many_networks(seed):
    folded_problems_are_the_operations(10**6 + seed)


@slow
@pytest.mark.parametrize("mode", ["parallel", "cascade"])
@few(4)
@seeds
def test_pruned_networks_run(mode, seed):
    params, apply_fn, x = network(seed)
    if not nt.sites(params, apply_fn, x).sites:
        return
    answer = nt.prune(
        params,
        apply_fn,
        x,
        method=nt.NetTrim(epsilon=0.2),
        mode=mode,
        held_out=0.0,
        on_failure="keep",
        # a distance of tol to the set moves the response by tol of its norm
        solver=nt.ADMM(tol=4e-4),
    )
    assert jax.tree.structure(answer.params) == jax.tree.structure(params)
    for old, new in zip(
        jax.tree.leaves(params), jax.tree.leaves(answer.params), strict=True
    ):
        assert old.shape == new.shape and old.dtype == new.dtype
    assert np.isfinite(np.asarray(apply_fn(answer.params, x))).all()
    for site in answer.report.sites:
        # in cascade what is off may rise to its limit, beside the budget
        if mode == "parallel" and int(site.result) == nt.results.CONVERGED:
            assert float(site.error) <= float(site.epsilon) * (1 + 2e-3) + 1e-4
