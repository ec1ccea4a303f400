"""Exchanges of single weights: against refits of every exchange, and brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import seen
from marks import only_fast
from problems import inputs

import nettrim_jax as nt
from nettrim_jax._clip import NO_CLIP, RELU
from nettrim_jax.methods import exchanges
from nettrim_jax.methods.counts import counted
from nettrim_jax.methods.exchanges import Units, exchanged, suits
from nettrim_jax.methods.quadratic import sizes
from nettrim_jax.methods.trials import Fit, Parts
from nettrim_jax.methods.within import Within

RIDGE = 0.01
PATTERNS = [nt.Sparsity(0.6), nt.Sparsity(0.6, scope="column"), nt.NM(2, 4)]


def layer(lanes=1, d_in=8, d_out=3, n=60, t=0.0, seed=0):
    """What a layer saw, in NumPy's arrays."""
    rng = np.random.default_rng(seed)
    X = np.stack([inputs("correlated", n, d_in, rng) for _ in range(lanes)])
    one = seen(X, rng.normal(size=(lanes, d_in, d_out)), t)
    return jax.tree.map(np.asarray, one)


def some(pattern, one, seed=0):
    """A counted pattern of one layer, and weights that it allows, far from good."""
    rng = np.random.default_rng(seed)
    pattern = counted(pattern, one.W0.shape, 1)
    pattern = jax.tree.map(lambda a: a[0], pattern)
    kept = np.asarray(pattern.keep(rng.uniform(size=one.W0.shape)))
    W = np.where(kept, one.W0, 0)
    b, _, d_out = W.shape
    return pattern, Fit(W, np.zeros((b, d_out)), Parts(RIDGE, np.zeros(b)))


def moments(one, lane, free):
    """Second moments of a lane, with a unit diagonal, and the inputs' sizes."""
    X = one.X[lane] - free * one.X[lane].mean(0)
    H = X.T @ X
    size = sizes(H[None])[0]
    return H / np.outer(size, size), size


def loss(one, kept, free):
    """The least loss on a support, and its weights; each unit by itself."""
    out, W = 0.0, np.zeros(kept.shape)
    for lane in range(len(kept)):
        A, size = moments(one, lane, free)
        K = A + RIDGE * np.eye(len(A))
        for j in range(kept.shape[2]):
            s, w0 = kept[lane, :, j], one.W0[lane, :, j] * size
            w = np.zeros(len(A))
            w[s] = np.linalg.solve(K[np.ix_(s, s)], (K @ w0)[s])
            out += (w - w0) @ K @ (w - w0) / 2
            W[lane, :, j] = w / size
    return out, W


def neighbours(pattern, kept):
    """All supports that differ by one exchange, within the pattern."""
    inner = pattern.pattern if isinstance(pattern, Within) else pattern
    allowed = pattern.allowed if isinstance(pattern, Within) else np.ones_like(kept)
    for out, back in itertools.product(
        np.argwhere(kept), np.argwhere(~kept & np.asarray(allowed))
    ):
        new = kept.copy()
        new[tuple(out)], new[tuple(back)] = False, True
        if (np.asarray(inner.keep(1.0 * new)) | ~new).all():
            yield new


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("lanes", only_fast([2], [1, 2]))
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_no_exchange_is_left_that_gains(pattern, lanes, free):
    one = layer(lanes)
    pattern, fit = some(pattern, one)
    W, move = exchanged(pattern, one, fit, NO_CLIP, free)
    kept = W != 0
    assert kept.sum() == (fit.W != 0).sum()
    assert (np.asarray(pattern.keep(1.0 * kept)) | ~kept).all()
    now, best = loss(one, kept, free)
    np.testing.assert_allclose(W, best, rtol=1e-8, atol=1e-8)
    shift = np.einsum("bni,bio->bo", one.X, one.W0 - W) / one.X.shape[1]
    np.testing.assert_allclose(move, free * shift, rtol=1e-8, atol=1e-8)
    assert now < loss(one, fit.W != 0, free)[0]
    others = [loss(one, new, free)[0] for new in neighbours(pattern, kept)]
    assert min(others) > (1 - exchanges.WORTH) * now


def test_the_best_choice_of_all_is_often_found():
    found = []
    for seed in range(6):
        one = layer(d_in=5, d_out=2, seed=seed)
        pattern, fit = some(nt.Sparsity(0.6), one, seed)
        W, _ = exchanged(pattern, one, fit, NO_CLIP, True)
        places = list(np.ndindex(W.shape))
        least = np.inf
        for pick in itertools.combinations(places, (fit.W != 0).sum()):
            kept = np.zeros(W.shape, bool)
            kept[tuple(np.transpose(pick))] = True
            least = min(least, loss(one, kept, True)[0])
        found.append(loss(one, W != 0, True)[0] / least)
    assert min(found) > 1 - 1e-9 and np.median(found) < 1 + 1e-9


def test_what_may_not_be_left_does_not_come_back():
    one = layer()
    allowed = np.random.default_rng(1).uniform(size=one.W0.shape) < 0.7
    pattern, fit = some(nt.Sparsity(0.6), one)
    pattern, fit = Within(pattern, allowed), fit._replace(W=fit.W * allowed)
    W, _ = exchanged(pattern, one, fit, NO_CLIP, True)
    kept = W != 0
    assert not (kept & ~allowed).any() and kept.sum() == (fit.W != 0).sum()
    now = loss(one, kept, True)[0]
    others = [loss(one, new, True)[0] for new in neighbours(pattern, kept)]
    assert min(others) > (1 - exchanges.WORTH) * now


@pytest.mark.parametrize("plain", [0.0, 0.3, 1.0])
def test_behind_a_relu_the_loss_falls(plain):
    one = layer(d_in=12, d_out=6, t=-0.5, seed=3)
    pattern, fit = some(nt.Sparsity(0.6), one)
    fit = fit._replace(parts=Parts(RIDGE, np.full(1, plain)))

    def lost(W, b):
        A, size = moments(one, 0, True)
        off = one.P0 + one.X @ (W - one.W0) + b[:, None, :] - one.P
        below = np.maximum(one.P + off, 0)
        part = np.where(one.P > 0, off, plain**0.5 * off)
        above = np.where((one.P <= 0) & (below > 0), below**2 * (1 - plain), 0)
        ridge = RIDGE * np.sum((size[:, None] * (W - one.W0)[0]) ** 2)
        return np.sum(part**2 + above) + ridge

    W, move = exchanged(pattern, one, fit, RELU, True)
    assert (W != 0).sum() == (fit.W != 0).sum() and ((W != 0) != (fit.W != 0)).any()
    before = fit._replace(W=np.where(fit.W != 0, loss(one, fit.W != 0, True)[1], 0))
    start = np.einsum("bni,bio->bo", one.X, one.W0 - before.W) / one.X.shape[1]
    assert lost(W, move) < lost(before.W, start)
    # nothing is left to gain by the same weights
    for at in np.argwhere(W != 0)[::3]:
        for step in (1e-3, -1e-3):
            moved = W.copy()
            moved[tuple(at)] += step
            assert lost(moved, move) > lost(W, move) * (1 - 3e-4)


def test_a_pivot_makes_the_tableau_of_another_support():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(2, 30, 7))
    K = A.transpose(0, 2, 1) @ A
    here = rng.uniform(size=(6, 7)) < 0.5
    G = rng.normal(size=(6, 7))
    units = Units(K, here.copy())
    units.take(G)
    for u, k in [(0, 2), (3, 1), (5, 6), (0, 2), (0, 4)]:
        units.pivot(u, k)
        here[u, k] ^= True
    fresh = Units(K, here)
    fresh.take(G)
    np.testing.assert_allclose(units.T, fresh.T, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(units.y, fresh.y, rtol=1e-9, atol=1e-9)
    for u, s in enumerate(here):
        best = np.linalg.solve(K[u // 3][np.ix_(s, s)], G[u, s])
        np.testing.assert_allclose(units.weights[u, s], best, rtol=1e-9, atol=1e-9)


def test_without_a_ridge_and_with_few_rows_all_stays():
    one = layer(d_in=8, n=3)
    pattern, fit = some(nt.Sparsity(0.1), one)
    fit = fit._replace(parts=Parts(0.0, np.zeros(1)))
    W, move = exchanged(pattern, one, fit, NO_CLIP, True)
    assert np.isfinite(W).all() and np.isfinite(move).all()
    assert (W != 0).sum() == (fit.W != 0).sum()


def test_which_layers_have_exchanges(monkeypatch):
    one = jax.tree.map(lambda a: jnp.asarray(a)[None], layer())
    pattern = counted(nt.Sparsity(0.5), one.W0.shape[1:], 1)
    assert suits(pattern, one)
    assert not suits(counted(nt.Neurons(0.5), one.W0.shape[1:], 1), one)

    class Own(nt.Sparsity):
        """A pattern that a user made of one of the library's."""

    assert not suits(Own(0.5), one)
    assert not suits(pattern, one._replace(coupling=jnp.eye(3)[None, None]))
    assert not jax.jit(lambda one: jnp.asarray(suits(pattern, one)))(one)
    monkeypatch.setattr(exchanges, "ENTRIES", 8 * 8 * 3 - 1)
    assert not suits(pattern, one)


@pytest.mark.parametrize("relu", [True, False])
def test_prune_ends_with_them(relu, monkeypatch):
    one = layer(d_in=40, d_out=16, n=400, seed=5)
    params = {"w": jnp.asarray(one.W0[0], jnp.float32), "b": jnp.zeros(16, jnp.float32)}
    x = jnp.asarray(one.X[0], jnp.float32)

    def apply_fn(params, x):
        z = x @ params["w"] + params["b"][None]
        return jax.nn.relu(z) if relu else z

    def error(pruned):
        assert int((pruned.params["w"] != 0).sum()) == 320
        want = apply_fn(params, x)
        off = apply_fn(pruned.params, x) - want
        return float(jnp.linalg.norm(off) / jnp.linalg.norm(want))

    told = dict(method=nt.Sparsity(0.5), held_out=0, progress=False)
    ours = error(nt.prune(params, apply_fn, x, **told))
    # the choice within a trace has none
    traced = error(
        jax.jit(lambda params: nt.prune(params, apply_fn, x, **told))(params)
    )
    monkeypatch.setattr(exchanges, "ENTRIES", 0)
    without = error(nt.prune(params, apply_fn, x, **told))
    assert ours < without
    assert traced == pytest.approx(without, rel=0.02)
