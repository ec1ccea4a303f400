"""``SparseGPT`` over several blocks: an oracle, derivatives, and what it compiles."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from jax.test_util import check_grads
from marks import slow

import nettrim_jax as nt
from nettrim_jax.methods import rules
from nettrim_jax.results import MethodError


def problem(d_in=23, d_out=6, lanes=2, dead=0, seed=0):
    """Weights and second moments of some lanes; some inputs are zero."""
    rng = np.random.default_rng(seed)
    mix = np.eye(d_in) + rng.normal(size=(d_in, d_in)) / (2 * np.sqrt(d_in))
    X = rng.normal(size=(lanes, 4 * d_in, d_in)) @ mix
    X[:, :, rng.permutation(d_in)[:dead]] = 0
    W = rng.normal(size=(lanes, d_in, d_out))
    return jnp.asarray(W), jnp.asarray(np.einsum("bni,bnj->bij", X, X))


def best(costs, count):
    """Marks the highest, in NumPy."""
    keep = np.zeros(costs.size, bool)
    keep[np.argsort(-costs.ravel(), kind="stable")[:count]] = True
    return keep.reshape(costs.shape)


def chosen(pattern, costs, done):
    """What is left of a block, or of a group, after so many earlier inputs."""
    b, size, d_out = costs.shape

    def left(per_input):  # of the block, of those that the pattern has left so far
        counts = [n * per_input for n in (done, done + size)]
        first, last = (n - round(pattern.level * n) for n in counts)
        return last - first

    if isinstance(pattern, nt.Sparsity) and pattern.scope == "layer":
        return best(costs, left(b * d_out))
    n = pattern.n if isinstance(pattern, nt.NM) else left(1)
    keep = np.zeros(costs.shape, bool)
    for lane, unit in np.ndindex(b, d_out):
        keep[lane, :, unit] = best(costs[lane, :, unit], n)
    return keep


def oracle(W, gram, pattern, damping, block):
    """The algorithm of the paper, weight by weight."""
    W, gram = np.array(W), np.array(gram)
    b, d_in, d_out = W.shape
    U = np.empty_like(gram)
    for lane, G in enumerate(gram):
        dead = np.diag(G) == 0
        W[lane, dead] = 0
        H = G + np.diag(dead + damping * np.mean(np.diag(G)))
        U[lane] = np.linalg.cholesky(np.linalg.inv(H)).T
    if isinstance(pattern, nt.NM):
        block = pattern.m
    for start in range(0, d_in, block):
        stop = min(start + block, d_in)
        scale = np.stack([np.diag(u)[start:stop] for u in U])[:, :, None]
        keep = chosen(pattern, (W[:, start:stop] / scale) ** 2, start)
        for lane, i, unit in np.ndindex(b, stop - start, d_out):
            if not keep[lane, i, unit]:
                row = U[lane, start + i]
                W[lane, start + i :, unit] -= (
                    W[lane, start + i, unit] / row[start + i] * row[start + i :]
                )
                W[lane, start + i, unit] = 0
    return W


CASES = {
    "blocks": (nt.Sparsity(0.6), 8, {}),
    "whole blocks": (nt.Sparsity(0.6), 8, {"d_in": 24}),
    "dead": (nt.Sparsity(0.3), 8, {"dead": 5}),
    "column": (nt.Sparsity(0.5, scope="column"), 10, {}),
    "groups": (nt.NM(2, 4), 10, {"d_in": 24, "lanes": 1}),
    "short group": (nt.NM(2, 4, pad=True), 8, {"dead": 3}),
}


@pytest.mark.parametrize("name", CASES)
def test_sparsegpt_is_the_papers_algorithm(name):
    pattern, block, sizes = CASES[name]
    W, gram = problem(**sizes)
    rule = nt.SparseGPT(pattern, damping=0.02, block=block)
    new = jax.jit(rule.answer)(W, gram)
    want = oracle(W, gram, pattern, 0.02, block)
    np.testing.assert_array_equal(new != 0, want != 0)
    np.testing.assert_allclose(new, want, atol=1e-9)


@slow
def test_derivatives_are_those_of_differences():
    W, gram = problem(d_in=10, d_out=3)
    for pattern in (nt.Sparsity(0.5), nt.NM(2, 4, pad=True)):

        def answer(W, gram, damping, pattern=pattern):
            gram = (gram + gram.transpose(0, 2, 1)) / 2
            return nt.SparseGPT(pattern, damping=damping, block=4).answer(W, gram)

        check_grads(
            jax.jit(answer), (W, gram, jnp.asarray(0.02)), 1, atol=1e-5, rtol=1e-5
        )


@slow
def test_maps_and_jit_give_the_same_and_solve_one_by_one():
    W, gram = problem(lanes=4)
    rule = nt.SparseGPT(nt.Sparsity(0.6), block=8)
    pairs = W.reshape(2, 2, *W.shape[1:]), gram.reshape(2, 2, *gram.shape[1:])
    mapped = jax.jit(jax.vmap(rule.answer))
    want = jnp.stack([rule.answer(*pair) for pair in zip(*pairs, strict=True)])
    np.testing.assert_allclose(mapped(*pairs), want, atol=1e-12)
    # XLA's own loops over a stack of triangular matrices are slow to compile
    text = mapped.lower(*pairs).as_text()
    assert "trsm" in text and "triangular_solve" not in text


def test_a_new_damping_compiles_nothing():
    W, gram = problem()
    rule = nt.SparseGPT(nt.Sparsity(0.6), block=8)
    call = jax.jit(chex.assert_max_traces(lambda r, W, G: r.answer(W, G), n=1))
    for damping in (0.01, 0.3):
        other = dataclasses.replace(rule, damping=damping)
        want = oracle(W, gram, rule.pattern, damping, 8)
        np.testing.assert_allclose(call(other, W, gram), want, atol=1e-9)

    model = models.get("square")
    sizes = []
    for damping in (0.01, 0.3):
        method = dataclasses.replace(rule, damping=damping)
        nt.prune(model.params, model.apply_fn, model.batch, method=method)
        sizes.append(rules._conclude._cache_size())
    assert sizes[0] == sizes[1]


@slow
def test_one_damping_serves_all_layers_of_a_loop_and_may_be_traced():
    W, x = models.normal(3, 8, 8), models.data(60, 8)

    def looped(W, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, W)[0]

    def prune(damping):
        method = nt.SparseGPT(nt.Sparsity(0.5), damping=damping)
        return nt.prune(W, looped, x, method=method).params

    want = prune(0.1)
    assert not np.allclose(want, prune(1.0), atol=1e-3)
    np.testing.assert_allclose(jax.jit(prune)(0.1), want, atol=1e-5)


@pytest.mark.parametrize("damping", [-1.0, np.nan, [0.1, 0.2]])
def test_a_damping_that_is_an_array_is_checked_by_prune(damping):
    method = nt.SparseGPT(nt.Sparsity(0.5), damping=jnp.asarray(damping))
    model = models.get("square")
    with pytest.raises(MethodError, match="damping.*a finite number of at least 0"):
        nt.prune(model.params, model.apply_fn, model.batch, method=method)
