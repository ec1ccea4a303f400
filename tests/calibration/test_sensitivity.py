"""What errors of layers count for: against derivatives, and what it gains."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import reconstruct, seen
from marks import only_fast, slow

import nettrim_jax as nt
from nettrim_jax._clip import RELU
from nettrim_jax.calibration.capture import Activation
from nettrim_jax.calibration.padding import row_weights
from nettrim_jax.calibration.sensitivity import sensitivities
from nettrim_jax.methods.base import LayerKind
from nettrim_jax.methods.reconstruct import Reconstruct, blend
from nettrim_jax.tracing.sites import trace

N = 5  # samples


def dense(params, x, nudge):
    z = x @ params["w"] + nudge
    return jnp.tanh(z) @ params["out"]


def scaled(params, x, nudge):
    z = (x @ params["w"] + nudge) * jnp.array([[1.0, -2.0, 0.5]]) + 0.1
    return jax.nn.relu(z) @ params["out"]


def conv(params, x, nudge):
    image = jnp.tile(x, (1, 2)).reshape(N, 4, 2, 1)
    z = jax.lax.conv_general_dilated(
        image, params["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.sum(jnp.sin(z + nudge), axis=(1, 2)) @ params["out"]


def heads(params, x, nudge):
    z = jnp.einsum("nhd,hde->nhe", x.reshape(N, 2, 2), params["w"]) + nudge
    return jnp.tanh(z.reshape(N, 6)) @ params["out"]


def shared(params, x, nudge):
    def step(h, more):
        return jnp.tanh(h @ params["w"] + more), None

    return jax.lax.scan(step, x, nudge)[0] @ params["out"]


def stacked(params, x, nudge):
    def step(h, both):
        w, more = both
        return jnp.tanh(h @ w + more), None

    return jax.lax.scan(step, x, (params["w"], nudge))[0] @ params["out"]


def tied(params, x, nudge):
    h = jnp.tanh(x @ params["w"] + nudge[0])
    return jnp.tanh(h @ params["w"] + nudge[1]) @ params["out"]


# name: network, shapes of w and out, shape of the nudge, its axes as lanes, rows, units
CASES = {
    "dense": (dense, (4, 3), 3, (N, 3), (1, N, 3)),
    "scaled": (scaled, (4, 3), 3, (N, 3), (1, N, 3)),
    "conv": (conv, (3, 1, 1, 3), 3, (N, 4, 2, 3), (1, N * 8, 3)),
    "heads": (heads, (2, 2, 3), 6, (N, 2, 3), (N, 2, 3)),
    "shared": (shared, (4, 4), 4, (2, N, 4), (1, 2 * N, 4)),
    "stacked": (stacked, (2, 4, 4), 4, (2, N, 4), (2, N, 4)),
    "tied": (tied, (4, 4), 4, (2, N, 4), (1, 2 * N, 4)),
}


def given(name, rng):
    network, w, d_out, nudge, _ = CASES[name]
    params = {"w": rng.normal(size=w), "out": rng.normal(size=(d_out, 1))}
    x = jnp.asarray(rng.normal(size=(N, 4)))
    return network, jax.tree.map(jnp.asarray, params), x, jnp.zeros(nudge)


def quick(level, **settings):
    """The method without trials, which take longest to compile."""
    return Reconstruct(nt.Sparsity(level), ridge=0.1, plain=0.3, **settings)


def measured(apply_fn, params, x, weights=None, seed=1):
    graph = trace(apply_fn, params, x)
    leaves, key = jax.tree.leaves(params), jax.random.key(seed)
    every = tuple(range(len(graph.sites)))
    found = sensitivities(
        graph, every, graph.consts, [*leaves, x], key, row_weights(graph, weights)
    )
    return {graph.sites[k].path: M for k, M in found.items()}


@pytest.mark.parametrize("name", only_fast(["conv", "stacked"], CASES))
def test_sums_of_derivatives_are_those_of_jax(name, rng):
    """With one output a sample, no random sign is left in the products."""
    network, params, x, nudge = given(name, rng)
    found = measured(lambda p, x: network(p, x, jnp.zeros_like(nudge)), params, x)
    slope = jax.grad(lambda nudge: network(params, x, nudge).sum())(nudge)
    rows = np.asarray(slope).reshape(CASES[name][4])
    rows = rows.swapaxes(0, 1) if name == "heads" else rows
    expected = np.einsum("bni,bnj->bij", rows, rows)
    np.testing.assert_allclose(found["w"], expected, rtol=1e-10)
    assert set(found) == {"w"}  # nothing follows the other one


def test_the_mean_over_signs_is_that_of_all_outputs(rng):
    w, out = jnp.asarray(rng.normal(size=(4, 3))), jnp.asarray(rng.normal(size=(3, 2)))
    x = jnp.asarray(rng.normal(size=(N, 4)))
    params = {"w": w, "out": out}
    means = [
        measured(lambda p, x: (x @ p["w"]) @ p["out"], params, x, seed=seed)["w"]
        for seed in range(400)
    ]
    np.testing.assert_allclose(
        np.mean(means, axis=0)[0], N * np.asarray(out @ out.T), atol=0.4 * N**0.5
    )


def test_rows_of_weight_zero_do_not_count(rng):
    network, params, x, nudge = given("dense", rng)
    weights = jnp.asarray([1.0, 0.0, 1.0, 1.0, 0.0])
    apply_fn = lambda p, x: network(p, x, jnp.zeros((len(x), 3)))  # noqa: E731
    some = measured(apply_fn, params, x, weights)["w"]
    alone = measured(apply_fn, params, x[weights > 0])["w"]
    np.testing.assert_allclose(some, alone, rtol=1e-10)


def network(rng, d_in=16, width=16, d_out=3, n=300):
    """Params, a function and rows that prune, and others."""
    sizes = [(d_in, width), (width, width), (width, d_out)]
    params = [jnp.asarray(rng.normal(size=s) / s[0] ** 0.5) for s in sizes]
    turn = rng.normal(size=(d_in, d_in)) / np.arange(1, d_in + 1)[:, None]
    x = jnp.asarray(rng.normal(size=(2 * n, d_in)) @ turn)

    def apply_fn(params, x):
        for w in params[:-1]:
            x = jax.nn.relu(x @ w)
        return x @ params[-1]

    return params, apply_fn, x[:n], x[n:]


@slow
@pytest.mark.parametrize("mode", only_fast(["cascade"], ["parallel", "cascade"]))
def test_the_output_moves_less(mode):
    gains = []
    for seed in range(5):
        params, apply_fn, x, later = network(np.random.default_rng(seed))
        moved = []
        for share in (0.0, 0.5):
            method = quick(0.7, downstream=share)
            pruned = nt.prune(params, apply_fn, x, method=method, mode=mode)
            off = apply_fn(pruned.params, later) - apply_fn(params, later)
            moved.append(float(jnp.linalg.norm(off)))
            said = [site.downstream for site in pruned.report.sites]
            assert said == [share, share, 0.0]
        gains.append(moved[1] / moved[0])
    assert np.median(gains) < 0.95, gains


def test_values_are_least_squares_under_the_metric(rng):
    """On the support that was found, by the normal equations of all units at once."""
    X, W0 = (
        rng.normal(size=(1, 80, 6)) @ rng.normal(size=(6, 6)),
        rng.normal(size=(6, 4)),
    )
    root, shift = rng.normal(size=(4, 4)), rng.normal(size=(1, 80, 4))
    M = root @ root.T + 0.1 * np.eye(4)
    one = seen(X, W0[None])
    one = one._replace(P=one.P + shift, coupling=jnp.asarray(M)[None])
    method = Reconstruct(nt.Sparsity(0.5), ridge=0.0, downstream=1.0, steps=600)
    W, _ = reconstruct(method, one, False, False)
    kept = np.asarray(W[0] != 0).ravel()
    curve, right = (
        np.kron(X[0].T @ X[0], M),
        (X[0].T @ np.asarray(one.P[0]) @ M).ravel(),
    )
    best = np.zeros(24)
    best[kept] = np.linalg.solve(curve[np.ix_(kept, kept)], right[kept])
    np.testing.assert_allclose(np.asarray(W[0]).ravel(), best, rtol=0.02, atol=0.02)


def test_parts_of_a_batch_add_up(rng):
    _, params, x, _ = given("dense", rng)
    apply_fn = lambda p, x: dense(p, x, jnp.zeros((len(x), 3)))  # noqa: E731
    whole, *parts = (
        measured(apply_fn, params, part)["w"] for part in (x, x[:2], x[2:])
    )
    np.testing.assert_allclose(whole, sum(parts), rtol=1e-10)


@slow
def test_what_has_no_derivative_in_reverse_is_pruned_without(rng):
    params = {name: jnp.asarray(rng.normal(size=(8, 8))) for name in ("a", "b")}
    x = jnp.asarray(rng.normal(size=(100, 8)))

    def apply_fn(params, x):
        def more(carry):
            return carry[0] + 1, 0.9 * carry[1]

        h = jax.lax.while_loop(lambda c: c[0] < 3, more, (0, x @ params["a"]))[1]
        return h @ params["b"]

    pruned = nt.prune(params, apply_fn, x, method=quick(0.5))
    assert [site.downstream for site in pruned.report.sites] == [0.0, 0.0]
    assert pruned.report.to_dict()["sites"][0]["downstream"] == 0.0
    assert int(pruned.report.nonzeros) == 64


def test_each_mode_has_its_own_share():
    kind = LayerKind((1, 4, 3), RELU, True, layers=1, channels=4, held=0, fed=False)
    method = Reconstruct(nt.Sparsity(0.5))
    parallel, cascade = (method.bind(kind, mode).downstream for mode in (False, True))
    assert 0 < parallel < cascade < 1
    given = Reconstruct(nt.Sparsity(0.5), downstream=0.0)
    assert given.bind(kind, True).downstream == 0.0


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), "all", True])
def test_a_share_is_a_number_from_0_to_1(share):
    with pytest.raises(nt.NetTrimError, match=r"downstream=.*in \[0, 1\]"):
        Reconstruct(nt.Sparsity(0.5), downstream=share)


def test_numpys_numbers_are_numbers():
    method = Reconstruct(
        nt.Sparsity(0.5), downstream=np.float32(0.5), steps=np.int64(9)
    )
    assert (method.downstream, method.steps) == (0.5, 9)


SCALE = jnp.array([[3.0, -0.2, 1.0, -5.0]])


def with_scale(params, x):
    return jax.nn.relu(x @ params["w"] * SCALE) @ params["out"]


@slow
def test_a_scale_behind_the_weights_changes_nothing_but_them(rng):
    """Weights times their scale are those of a network that has it in its weights."""
    params = {"w": rng.normal(size=(6, 4)), "out": rng.normal(size=(4, 2))}
    params, x = jax.tree.map(jnp.asarray, params), jnp.asarray(rng.normal(size=(90, 6)))
    method = {"w": quick(0.5, downstream=0.9)}
    apart = nt.prune(params, with_scale, x, method=method)
    folded = nt.prune(
        params | {"w": params["w"] * SCALE},
        lambda p, x: jax.nn.relu(x @ p["w"]) @ p["out"],
        x,
        method=method,
    )
    np.testing.assert_allclose(
        apart.params["w"] * SCALE, folded.params["w"], rtol=1e-6, atol=1e-9
    )


@slow
@pytest.mark.parametrize("mode", only_fast(["cascade"], ["parallel", "cascade"]))
def test_a_stream_counts_as_its_batches_together(mode):
    """With one output no random sign is left, and all rows are kept."""
    params, apply_fn, x, _ = network(np.random.default_rng(0), 6, 6, d_out=1)
    method = quick(0.7, downstream=0.9)
    whole, stream = (
        nt.prune(params, apply_fn, batch, method=method, mode=mode, held_out=0.0)
        for batch in (x, iter(jnp.split(x, [60, 150])))
    )
    chex.assert_trees_all_close(stream.params, whole.params, rtol=1e-5, atol=1e-8)


def blended(metric, layers):
    b, d_out = metric.shape[:2]
    rows, ones = jnp.ones((b, 3, d_out)), jnp.ones((b, d_out))
    stats = {"sensitivity": metric}
    seen = Activation(rows, rows, rows, None, rows[:, :, 0], ones, ones, stats)
    return blend(seen, layers, 0.5)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, 1e308, 0.0])
def test_where_nothing_is_known_all_errors_are_alike(bad, rng):
    root = rng.normal(size=(2, 3, 3))
    good = jnp.asarray(root @ root.swapaxes(1, 2))
    expected, share = blended(good, 2)
    assert share == 0.5
    np.testing.assert_allclose(jnp.trace(expected, axis1=1, axis2=2), 3)
    mixed = good.at[1].set(bad)
    found, share = blended(mixed, 2)
    assert share == 0.25
    np.testing.assert_allclose(found, [expected[0], np.eye(3)], rtol=1e-12)
    if bad != 0.0:  # lanes of one layer stand or fall together
        found, share = blended(mixed, 1)
        assert share == 0
        np.testing.assert_array_equal(found, [np.eye(3)] * 2)


def rounded(params, x):
    return jnp.round(x @ params["a"]) @ params["b"]


def chosen(params, x):
    return jnp.argmax(jax.nn.relu(x @ params["a"]) @ params["b"], axis=1)


@slow
@pytest.mark.parametrize("apply_fn", only_fast([chosen], [rounded, chosen]))
def test_the_report_says_so_where_no_error_moves_the_output(apply_fn, rng):
    params = {name: jnp.asarray(rng.normal(size=(8, 8))) for name in ("a", "b")}
    x = jnp.asarray(rng.normal(size=(100, 8)))
    pruned = nt.prune(params, apply_fn, x, method=quick(0.5))
    assert [float(site.downstream) for site in pruned.report.sites] == [0.0, 0.0]
    assert int(pruned.report.nonzeros) == 64


@slow
def test_layers_before_sorted_rows_are_measured_and_these_are_not(rng):
    shapes = {"first": (6, 6), "experts": (2, 6, 5), "last": (5, 3)}
    params = {name: jnp.asarray(rng.normal(size=s)) for name, s in shapes.items()}

    def apply_fn(p, x):
        h = jax.nn.relu(x @ p["first"])
        h = jax.lax.ragged_dot(h, p["experts"], jnp.array([30, 50], "int32"))
        return jax.nn.relu(h) @ p["last"]

    x = jnp.asarray(rng.normal(size=(80, 6)))
    report = nt.prune(params, apply_fn, x, method=quick(0.5)).report
    shares = {site.path: float(site.downstream) for site in report.sites}
    assert shares.pop("first") > 0
    assert shares == {"experts": 0.0, "last": 0.0}


@slow
def test_units_that_are_never_on_leave_derivatives_finite(rng):
    params = {name: jnp.asarray(rng.normal(size=(6, 6))) for name in ("a", "b")}
    x = jnp.asarray(rng.normal(size=(80, 6)))
    bias = jnp.array([[0.0, 0, 0, 0, -100, -100]])

    def output(params):
        pruned = nt.prune(
            params,
            lambda p, x: jax.nn.relu(x @ p["a"] + bias) @ p["b"],
            x,
            method={"a": quick(0.5)},
            on_failure="keep",
        )
        return jnp.sum(pruned.params["a"] ** 2)

    assert all(jnp.isfinite(g).all() for g in jax.grad(output)(params).values())
