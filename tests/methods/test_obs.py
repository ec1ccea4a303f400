"""``OBS`` against its definition, brute force and dense matrices."""

import itertools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from marks import only_fast

import nettrim_jax as nt
from nettrim_jax.methods.obs import Layer, Surgeon, pruned
from nettrim_jax.results import DIRECT, MethodError

TINY = 1e-9  # a damping that does not show


def problem(rng, n=8):
    root = rng.normal(size=(3 * n, n))
    return rng.normal(size=n), root.T @ root


def best_without(w, H, gone):
    """The least rise of the quadratic with some weights at zero, and where it is."""
    rest = np.setdiff1d(np.arange(len(w)), gone)
    move = np.zeros(len(w))
    move[gone] = -w[gone]
    move[rest] = np.linalg.solve(
        H[np.ix_(rest, rest)], H[np.ix_(rest, gone)] @ w[list(gone)]
    )
    return move @ H @ move / 2, w + move


def test_a_single_removal_is_the_closed_form_and_the_best_of_all(rng):
    for _ in range(10):
        w, H = problem(rng)
        surgeon = Surgeon(w, H)
        each = [best_without(w, H, [q]) for q in range(len(w))]
        np.testing.assert_allclose(surgeon.lost(), [cost for cost, _ in each])
        surgeon.one_by_one(np.zeros(len(w), int), np.array([len(w) - 1]))
        q = int(np.argmin([cost for cost, _ in each]))
        np.testing.assert_allclose(surgeon.w, each[q][1], atol=1e-12)
        inverse = np.linalg.inv(H)
        closed = w - w[q] / inverse[q, q] * inverse[:, q]
        np.testing.assert_allclose(surgeon.w, closed, atol=1e-12)


@pytest.mark.parametrize("left", [1, 4])
def test_the_sequence_is_that_of_the_naive_definition(rng, left):
    """Each step from the trained weights anew, for 15 problems."""
    for _ in range(15):
        w, H = problem(rng)
        gone = []
        while len(w) - len(gone) > left:
            # the loss of one more, beyond the best without those that went
            rest = [q for q in range(len(w)) if q not in gone]
            costs = [best_without(w, H, [*gone, q])[0] for q in rest]
            gone.append(rest[int(np.argmin(costs))])
        surgeon = Surgeon(w, H)
        surgeon.one_by_one(np.zeros(len(w), int), np.array([left]))
        assert set(np.flatnonzero(surgeon.w == 0)) == set(gone)
        np.testing.assert_allclose(surgeon.w, best_without(w, H, gone)[1], atol=1e-9)


def test_a_set_goes_in_the_best_way(rng):
    w, H = problem(rng)
    surgeon = Surgeon(w, H)
    surgeon.remove(np.array([1, 4]))
    surgeon.remove(np.array([6]))
    np.testing.assert_allclose(surgeon.w, best_without(w, H, [1, 4, 6])[1], atol=1e-10)
    assert list(surgeon.live) == [0, 2, 3, 5, 7]


PATTERNS = {
    "layer": nt.Sparsity(0.5),
    "column": nt.Sparsity(0.5, scope="column"),
    "network": nt.Sparsity(0.6, scope="network"),
    "n of m": nt.NM(1, 2),
    "padded": nt.NM(2, 3, pad=True),
    "neurons": nt.Neurons(0.5),
    "inputs": nt.Inputs(0.5),
    "blocks": nt.Blocks(0.5, (2, 2)),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_every_pattern_has_its_number_and_the_others_are_the_best(rng, name):
    pattern = PATTERNS[name]
    shapes = [(2, 4, 2), (1, 4, 4)]
    layers = [
        Layer(rng.normal(size=s), s[0], pattern, np.ones(s, bool)) for s in shapes
    ]
    size = sum(layer.W.size for layer in layers)
    w, H = problem(rng, size + 2)
    found, others = pruned(layers, w[size:], H, TINY)
    masks = [W != 0 for W in found]
    if name == "network":
        assert sum(int(m.sum()) for m in masks) == size - round(0.6 * size)
    elif name == "padded":
        assert [int(m.sum()) for m in masks] == [12, 12]
    else:
        assert [int(m.sum()) for m in masks] == [8, 8]
    if name == "column":
        assert all((m.sum(1) == 2).all() for m in masks)
    if name == "n of m":
        assert all((m.reshape(-1, 2, 2, m.shape[2]).sum(2) == 1).all() for m in masks)
    if name == "neurons":
        assert all((m.any(1).sum(1) == m.shape[2] // 2).all() for m in masks)
    full = np.concatenate([*(layer.W.ravel() for layer in layers), w[size:]])
    gone = np.flatnonzero(~np.concatenate([m.ravel() for m in masks]))
    best = best_without(full, H, gone)[1]
    mine = np.concatenate([*(W.ravel() for W in found), others])
    np.testing.assert_allclose(mine, best, atol=1e-5)


def test_what_may_not_be_left_goes_first(rng):
    allowed = rng.random((1, 4, 3)) > 0.4
    layer = Layer(rng.normal(size=(1, 4, 3)), 1, nt.Sparsity(0.75), allowed)
    _, H = problem(rng, 12)
    (found,), _ = pruned([layer], np.zeros(0), H, TINY)
    assert np.count_nonzero(found) == 3 and not found[~allowed].any()


# ---- through ``prune``


def params_of(rng):
    shapes = {"a": (3, 4), "bias": (4,), "stack": (2, 4, 4), "b": (4, 2)}
    return {k: jnp.asarray(rng.normal(size=s)) for k, s in shapes.items()}


def apply_fn(params, batch):
    h = jnp.tanh(batch[0] @ params["a"] + params["bias"][None, :])

    def step(h, w):
        return jnp.tanh(h @ w), None

    return jax.lax.scan(step, h, params["stack"])[0] @ params["b"]


def loss(params, batch):
    logs = jax.nn.log_softmax(apply_fn(params, batch))
    return -jnp.mean(jnp.take_along_axis(logs, batch[1][:, None], axis=1))


@pytest.fixture
def given(rng):
    x = jnp.asarray(rng.normal(size=(30, 3)))
    return params_of(rng), (x, jnp.asarray(rng.integers(0, 2, 30)))


def dense(params, batch, use_loss):
    """The weights and biases as a vector, and their whole Gauss-Newton matrix."""
    flat, fill = jax.flatten_util.ravel_pytree(params)
    J = np.asarray(jax.jacobian(lambda v: apply_fn(fill(v), batch))(flat))
    H = np.broadcast_to(np.eye(2), (30, 2, 2))
    if use_loss:
        p = np.asarray(jax.nn.softmax(apply_fn(params, batch)))
        H = np.einsum("no,op->nop", p, np.eye(2)) - p[:, :, None] * p[:, None, :]
    return np.asarray(flat), np.einsum("noi,nop,npj->ij", J, H, J), fill


@pytest.mark.parametrize("use_loss", only_fast([True], [False, True]))
def test_all_layers_go_together_by_the_dense_matrix(given, use_loss):
    params, batch = given
    method = nt.OBS(
        nt.Sparsity(0.5, scope="network"), loss if use_loss else None, damping=1e-3
    )
    new = nt.prune(params, apply_fn, batch, method=method)
    w, H, fill = dense(params, batch, use_loss)
    H = H + 1e-3 * np.mean(np.diagonal(H)) * np.eye(len(w))
    kinds = np.asarray(
        jax.flatten_util.ravel_pytree(
            {k: jnp.full(a.shape, -1 if k == "bias" else 0) for k, a in params.items()}
        )[0]
    )
    surgeon = Surgeon(w, H)
    surgeon.one_by_one(kinds, np.array([26]))  # of 52
    expected = fill(jnp.asarray(surgeon.w))
    for name, value in expected.items():
        np.testing.assert_allclose(new.params[name], value, rtol=1e-6, atol=1e-9)
        mask = np.asarray(value) != 0 if name != "bias" else np.ones(4, bool)
        np.testing.assert_array_equal(new.mask[name], mask)
    assert np.any(np.asarray(new.params["bias"] != params["bias"]))
    assert all(int(site.result) == DIRECT for site in new.report.sites)
    assert int(new.report.nonzeros) == 26


def test_it_loses_less_than_rules_that_leave_the_others(rng):
    """Inputs that are alike can take each other's part over."""
    x = jnp.asarray(rng.normal(size=(200, 4)) @ rng.normal(size=(4, 12)))
    x = x + 0.1 * jnp.asarray(rng.normal(size=x.shape))
    params = {"w": jnp.asarray(rng.normal(size=(12, 5)))}
    pattern = nt.Sparsity(0.5)
    obs, obd, magnitude = (
        float(nt.prune(params, lambda p, x: x @ p["w"], x, method=m).report.deviation)
        for m in (nt.OBS(pattern, damping=1e-6), nt.OBD(pattern), nt.Magnitude(pattern))
    )
    assert obs < 0.2 * min(obd, magnitude)


def test_a_stream_counts_as_its_batches_together_and_a_mask_holds(given):
    params, (x, y) = given
    method = nt.OBS(nt.Sparsity(0.6))
    keep = jax.tree.map(lambda a: np.arange(a.size).reshape(a.shape) % 4 > 0, params)
    stream = iter([(x[:8], y[:8]), (x[8:], y[8:])])
    one, two = (
        nt.prune(params, apply_fn, b, method=method, within=keep)
        for b in (stream, (x, y))
    )
    for name, value in one.params.items():
        np.testing.assert_allclose(value, two.params[name], rtol=1e-6, atol=1e-10)
        if name != "bias":
            assert not np.asarray(value)[~keep[name]].any()
    # zeros stay zero
    again = nt.prune(one.params, apply_fn, (x, y), method=nt.OBS(nt.Sparsity(0.7)))
    for name, mask in again.mask.items():
        assert not np.any(np.asarray(mask) & ~np.asarray(one.mask[name]))


def test_layers_may_have_other_patterns(given):
    params, batch = given
    method = {
        "^b$": nt.OBS(nt.NM(1, 2)),
        "stack": None,
        ".*": nt.OBS(nt.Sparsity(0.75)),
    }
    new = nt.prune(params, apply_fn, batch, method=method)
    assert {k: int(np.sum(m)) for k, m in new.mask.items()} == {
        "a": 3,
        "b": 4,
        "bias": 4,
        "stack": 32,
    }


@pytest.mark.parametrize(
    "method, match",
    [
        (
            {"^a$": nt.OBS(nt.NM(1, 3)), ".*": nt.Magnitude(nt.NM(1, 2))},
            "all layers at",
        ),
        (
            {"^a$": nt.OBS(nt.NM(1, 3)), ".*": nt.OBS(nt.NM(1, 2), loss)},
            "patterns alone",
        ),
        ({"^a$": nt.OBS(nt.NM(1, 3)), ".*": nt.Units(0.5)}, "whole network"),
        (nt.OBS(nt.NM(1, 2)), "2 does not divide"),
        (nt.OBS(nt.Sparsity()), "Sparsity"),
    ],
)
def test_what_does_not_go_together(given, method, match):
    params, batch = given
    with pytest.raises(MethodError, match=match):
        nt.prune(params, apply_fn, batch, method=method)


def test_large_networks_are_refused_by_name(rng):
    params = {"w": jnp.ones((100, 50))}
    with pytest.raises(
        MethodError, match="OBS: inverts .* 5000; expected at most 4096"
    ):
        nt.prune(
            params,
            lambda p, x: x @ p["w"],
            jnp.ones((4, 100)),
            method=nt.OBS(nt.Sparsity(0.5)),
        )


def test_traced_values_are_refused(given):
    params, batch = given

    def one(params):
        return nt.prune(params, apply_fn, batch, method=nt.OBS(nt.Sparsity(0.5))).params

    with pytest.raises(MethodError, match="OBS: .* concrete"):
        jax.jit(one)(params)


@pytest.mark.parametrize(
    "settings", [{"damping": 0}, {"damping": np.inf}, {"loss": 0.1}, {"pattern": 0.5}]
)
def test_what_is_no_setting(settings):
    with pytest.raises(MethodError, match=r"OBS\("):
        nt.OBS(**{"pattern": nt.Sparsity(0.5), **settings})


def test_a_pair_by_brute_force(rng):
    """Greedy need not be the best pair; on nearly free weights it is."""
    H = np.diag(rng.uniform(0.5, 2, 6)) + 0.01
    w = rng.normal(size=6)
    pairs = itertools.combinations(range(6), 2)
    best = min(pairs, key=lambda pair: best_without(w, H, list(pair))[0])
    surgeon = Surgeon(w, H)
    surgeon.one_by_one(np.zeros(6, int), np.array([4]))
    assert set(np.flatnonzero(surgeon.w == 0)) == set(best)
