"""The quadratic of ``Reconstruct``: its solver against dense systems, and couplings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import only_fast, slow

from nettrim_jax.methods import quadratic
from nettrim_jax.methods.quadratic import Coupling, Quadratic, coupling_of


def spd(rng, b, k, floor=0.0):
    A = rng.normal(size=(b, k + 4, k))
    return A.transpose(0, 2, 1) @ A / k + floor * np.eye(k)


def quadratic_with(A):
    """A quadratic of which only the curvature is used."""
    e, Q = np.linalg.eigh(A)
    fields = dict.fromkeys(Quadratic._fields)
    return Quadratic(**{**fields, "A": jnp.asarray(A), "e": e, "Q": jnp.asarray(Q)})


@pytest.mark.parametrize("units", [2, 9])  # without an explicit inverse, and with it
@pytest.mark.parametrize("kind", only_fast(["whole"], ["none", "whole", "some"]))
def test_the_solver_solves_the_dense_system(kind, units, rng):
    b, d_in = 2, 8
    A, lift = spd(rng, b, d_in), 0.3
    right = rng.normal(size=(b, d_in, units))
    coupling, M = None, np.broadcast_to(np.eye(units), (b, units, units))
    if kind != "none":
        k = units if kind == "whole" else units // 2
        Q = np.linalg.qr(rng.normal(size=(b, units, units)))[0][:, :, :k]
        e, c = rng.uniform(1, 3, size=(b, k)), np.array([0.5, 0.7])
        coupling = Coupling(*map(jnp.asarray, (c, e, Q)))
        rest = np.eye(units) - Q @ Q.transpose(0, 2, 1)
        M = c[:, None, None] * rest + (Q * e[:, None, :]) @ Q.transpose(0, 2, 1)
        times = coupling.times(jnp.asarray(right))
        np.testing.assert_allclose(times, right @ M, rtol=1e-9, atol=1e-9)
    solve = quadratic_with(A).solver(coupling, lift, units)
    W = jax.jit(solve)(right)
    np.testing.assert_allclose(A @ W @ M + lift * W, right, rtol=1e-8, atol=1e-8)


def test_a_coupling_that_is_not_used_counts_all_errors_alike(rng):
    M = jnp.asarray(spd(rng, 1, 5))
    coupling = coupling_of(M, jnp.zeros(1))
    G = jnp.asarray(rng.normal(size=(1, 3, 5)))
    on, off = (coupling.only_if(jnp.asarray(use)).times(G) for use in (True, False))
    np.testing.assert_allclose(on, G @ M, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(off, G, rtol=1e-9, atol=1e-9)


def test_many_units_have_the_largest_directions(monkeypatch, rng):
    monkeypatch.setattr(quadratic, "WHOLE", 10)
    monkeypatch.setattr(quadratic, "DIRECTIONS", 4)
    d, Q = 24, np.linalg.qr(rng.normal(size=(24, 24)))[0]
    e = np.concatenate([[40.0, 30.0, 20.0, 10.0], np.linspace(0.5, 0.7, 20)])
    M = jnp.asarray((Q * e) @ Q.T)[None]
    found = coupling_of(M, jnp.zeros(1))
    np.testing.assert_allclose(np.sort(found.e[0])[::-1], e[:4], rtol=1e-5)
    np.testing.assert_allclose(found.c[0], e[4:].mean(), rtol=1e-4)
    # the trace, to which the loss is scaled, is kept
    every = found.times(jnp.eye(d)[None])[0]
    np.testing.assert_allclose(jnp.trace(every), jnp.trace(M[0]), rtol=1e-9)


@slow
def test_the_inverse_of_a_stack_is_that_of_each(rng):
    from nettrim_jax._numerics import inverse

    H = jnp.asarray(spd(rng, 3, 6, 0.5))
    want = np.linalg.inv(np.asarray(H))
    for found in (
        jnp.stack([inverse(one) for one in H]),
        jax.vmap(inverse)(H),
        jax.jit(jax.vmap(jax.vmap(inverse)))(H[None])[0],
    ):
        np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-9)

    def total(f):
        return jax.grad(lambda H: jnp.sum(jnp.sin(jax.vmap(f)(H))))(H)

    np.testing.assert_allclose(total(inverse), total(jnp.linalg.inv), rtol=1e-7)
    # XLA's loops for a stack of triangular solves are slow to compile and may hang
    text = jax.jit(jax.vmap(inverse)).lower(H).as_text()
    assert "stablehlo.triangular_solve" not in text
