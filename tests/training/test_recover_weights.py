"""``recover`` with weights: what stands at padded positions never matters."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from marks import only_fast
from models import Loader

import nettrim_jax as nt
from nettrim_jax.results import BatchError

N, T, D = 48, 5, 6
RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(1, T + 1, N)
REAL = np.arange(T)[None, :] < LENGTHS[:, None]  # [N, T]
X = RNG.normal(size=(N, T, D)).astype("float32")
JUNK = np.where(REAL[:, :, None], X, 30 + X[::-1]).astype("float32")
PARAMS = {k: RNG.normal(size=(D, D)).astype("float32") / 2 for k in ("u", "v", "w")}
SETTINGS = {"steps": 9, "checks": 2, "every": 3, "size": 8, "key": 1}
SETTINGS["optimizer"] = optax.sgd(0.03)


def batch_major(p, x):
    return jax.nn.relu(x @ p["w"]) @ p["v"]


def time_major(p, x):
    b, t, _ = x.shape
    h = x.transpose(1, 0, 2).reshape(t * b, D) @ p["w"]
    return jax.nn.relu(h).reshape(t, b, D) @ p["v"]


def recurrent(p, x):
    def step(h, now):
        h = jnp.tanh(now @ p["w"] + h @ p["u"])
        return h, h

    _, h = jax.lax.scan(step, jnp.zeros((len(x), D), x.dtype), x.swapaxes(0, 1))
    return h @ p["v"]


NETWORKS = {"batch": batch_major, "time": time_major, "recurrent": recurrent}
MATCH = ("output", "layers", "both")
CASES = [(name, match) for name in NETWORKS for match in MATCH]
OFTEN = [("time", "both"), ("recurrent", "layers")]


def pruned_by(network):
    method = nt.Magnitude(nt.Sparsity(0.5))
    return nt.prune(PARAMS, network, X, method=method, weights=REAL)


def recovered(network, x, weights=None, **more):
    given = {**SETTINGS, **more}
    start = pruned_by(network)
    return nt.recover(start, PARAMS, network, x, weights=weights, **given)


def same(one, other, **bounds):
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(a, b, **bounds)


@pytest.mark.parametrize("case", only_fast(OFTEN, CASES), ids="-".join)
def test_padding_never_matters(case):
    network, match = NETWORKS[case[0]], case[1]
    clean, junk = (recovered(network, x, REAL, match=match) for x in (X, JUNK))
    same(clean.params, junk.params, rtol=1e-6, atol=1e-7)
    same(clean.report.curve, junk.report.curve, rtol=1e-6)
    assert junk.report.deviation < junk.report.before
    # without weights it does
    assert recovered(network, JUNK, match=match).report.before != junk.report.before


def test_it_is_the_network_whose_answers_are_multiplied():
    def masked(p, batch):
        return batch_major(p, batch["x"]) * batch["on"][:, :, None]

    batch = {"x": JUNK, "on": REAL.astype("float32")}
    pruned = pruned_by(batch_major)
    wanted = nt.recover(pruned, PARAMS, masked, batch, **SETTINGS)
    done = nt.recover(pruned, PARAMS, batch_major, JUNK, weights=REAL, **SETTINGS)
    same(done.params, wanted.params, rtol=1e-5, atol=1e-7)
    same(done.report.curve, wanted.report.curve, rtol=1e-5)


@pytest.mark.parametrize("network", [batch_major, time_major])
def test_what_is_compared_is_what_follows_each_layer(network):
    """One step of length one is the slope of a loss that is written out."""
    pruned = pruned_by(network)
    settings = {"steps": 1, "checks": 1, "match": "layers", "optimizer": optax.sgd(1.0)}
    loader = Loader([JUNK, JUNK])
    done = nt.recover(pruned, PARAMS, network, loader, weights=REAL, **settings)

    def loss(p):
        def after(p):
            hidden = jax.nn.relu(X @ p["w"])
            return [
                jnp.where(REAL[:, :, None], a, 0) for a in (hidden, hidden @ p["v"])
            ]

        pairs = zip(after(p), after(PARAMS), strict=True)
        return sum(jnp.sum((a - b) ** 2) / jnp.sum(b**2) for a, b in pairs) / 2

    slope = jax.grad(loss)(pruned.params)
    moves = {k: np.where(pruned.mask[k], slope[k], 0) for k in ("v", "w")}
    wanted = [pruned.params[k] - move for k, move in moves.items()]
    same(done.state.leaves, wanted, rtol=1e-4, atol=1e-6)


def test_weights_of_a_batch_and_of_a_loader():
    cuts = [slice(at, at + 8) for at in range(0, N, 8)]
    loader = Loader([{"x": JUNK[cut], "on": REAL[cut]} for cut in cuts])

    def network(p, batch):
        return batch_major(p, batch["x"])

    pruned = pruned_by(batch_major)
    of_batch = {**SETTINGS, "weights": lambda batch: batch["on"]}
    done = nt.recover(pruned, PARAMS, network, loader, **of_batch)
    clean = Loader([{"x": X[cut], "on": REAL[cut]} for cut in cuts])
    same(done.params, nt.recover(pruned, PARAMS, network, clean, **of_batch).params)
    # a function of the one batch sees its pieces
    whole = {"x": JUNK, "on": REAL}
    by_function = nt.recover(pruned, PARAMS, network, whole, **of_batch)
    by_array = nt.recover(
        pruned, PARAMS, network, whole, **{**SETTINGS, "weights": REAL}
    )
    same(by_function.params, by_array.params)


def test_a_batch_of_nothing_but_padding_is_no_step():
    none = np.zeros_like(REAL[:8])
    loader = Loader([X[:8], X[8:16], JUNK[16:24]])
    sizes = itertools.chain([REAL[:8], REAL[8:16]], itertools.repeat(none))
    done = recovered(batch_major, loader, lambda batch: next(sizes))
    assert done.report.deviation == done.report.before


BAD = {
    "samples": (REAL[:40], r"\[40, 5\] beside a batch of 48 samples"),
    "negative": (REAL - 1.0, r"are negative, NaN or infinite"),
    "nothing": (0.0 * REAL, r"leave no row"),
    "positions": (np.ones((N, T + 1)), r"no prefix of the rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_weights_are_named(name):
    weights, message = BAD[name]
    with pytest.raises(BatchError, match=message):
        recovered(batch_major, X, weights)
