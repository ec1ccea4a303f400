"""Layers that a clip follows, as ReLU6: what saturates need not be matched."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import only_fast, slow

import nettrim_jax as nt

RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(16, 16)) / 4


def draw(n, seed):
    """Rows of inputs that depend on each other, as behind another layer."""
    rows = np.random.default_rng(seed).normal(size=(n, 16))
    return (np.abs(rows @ MIX) + 0.3 * rows).astype(np.float32)


ROWS, OTHERS = draw(400, 1), draw(2000, 2)
PARAMS = {
    "a": (1.5 * RNG.normal(size=(16, 24))).astype(np.float32),
    "b": RNG.normal(size=24).astype(np.float32),
    "c": (0.4 * RNG.normal(size=(24, 8))).astype(np.float32),
}


def net(activation, p, x):
    hidden = activation(x @ p["a"] + p["b"][None, :])
    return activation(hidden @ p["c"])


def seen_whole(z):
    """The same clip of what is read elsewhere, too, so that all of it must be kept."""
    return jax.nn.relu6(z) + 0 * jnp.sin(z)


CLIPS = {
    "relu6": (jax.nn.relu6, (0.0, 6.0)),
    "hard-tanh": (lambda z: jax.nn.hard_tanh(z / 2), (-1.0, 1.0)),
    "below": (lambda z: jnp.maximum(z, -0.5), (-0.5, None)),
    "above": (lambda z: jnp.minimum(z, 1.0), (None, 1.0)),
}
relu6 = functools.partial(net, jax.nn.relu6)
plain = functools.partial(net, seen_whole)


@slow
@pytest.mark.parametrize("name", only_fast(["relu6", "hard-tanh", "above"], CLIPS))
def test_the_report_says_so_and_the_error_is_behind_the_clip(name):
    activation, limits = CLIPS[name]
    apply_fn = functools.partial(net, activation)
    pruned = nt.prune(
        PARAMS, apply_fn, ROWS, method=nt.NetTrim(epsilon=0.1), held_out=0.0
    )
    for site in pruned.report.sites:
        assert (site.response, site.limits) == ("clip", limits)
        assert float(site.error) <= 0.1 * (1 + 1e-2)
    hidden = [
        activation(ROWS @ p["a"] + p["b"][None, :]) for p in (PARAMS, pruned.params)
    ]
    off = np.linalg.norm(hidden[1] - hidden[0]) / np.linalg.norm(hidden[0])
    np.testing.assert_allclose(pruned.report.sites[0].error, off, rtol=2e-3)
    assert pruned.report.to_dict()["sites"][0]["limits"] == list(limits)


def error(params, rows):
    """How far the hidden values move."""
    hidden = [jax.nn.relu6(rows @ p["a"] + p["b"][None, :]) for p in (PARAMS, params)]
    return float(np.linalg.norm(hidden[1] - hidden[0]))


@slow
def test_an_exact_budget_loses_less_where_a_clip_is_seen():
    seen, whole = (
        nt.prune(PARAMS, f, ROWS, method=nt.Sparsity(0.5)) for f in (relu6, plain)
    )
    assert int(seen.report.nonzeros) == int(whole.report.nonzeros)
    assert error(seen.params, OTHERS) < 0.95 * error(whole.params, OTHERS)


@slow
def test_a_refit_loses_less_where_a_clip_is_seen():
    mask = nt.prune(PARAMS, relu6, ROWS, method=nt.Magnitude(nt.Sparsity(0.5))).mask
    seen, whole = (
        nt.refit(PARAMS, mask, f, ROWS, held_out=0.0) for f in (relu6, plain)
    )
    assert error(seen.params, ROWS) < error(whole.params, ROWS)


@slow
@pytest.mark.parametrize(
    "method",
    [
        nt.NetTrim(epsilon=0.1, refit=True),
        pytest.param(nt.Sparsity(0.5), marks=slow),
    ],
    ids=["nettrim", "sparsity"],
)
def test_a_cascade_keeps_to_what_the_program_allows(method):
    pruned = nt.prune(PARAMS, relu6, ROWS, method=method, mode="cascade")
    alone = nt.prune(PARAMS, relu6, ROWS, method=method)
    assert all(int(s.result) in nt.results.GOOD for s in pruned.report.sites)
    assert float(pruned.report.deviation) < 1.2 * float(alone.report.deviation)


@slow
def test_within_jit_it_is_the_same():
    def run(params, rows):
        return nt.prune(params, relu6, rows, method=nt.NetTrim(epsilon=0.1)).params

    once, traced = run(PARAMS, ROWS), jax.jit(run)(PARAMS, ROWS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), once, traced)


@slow
def test_the_bound_of_the_theorems_holds():
    pruned = nt.prune(PARAMS, relu6, ROWS, method=nt.NetTrim(epsilon=0.05), bound=True)
    moved = np.linalg.norm(relu6(pruned.params, ROWS) - relu6(PARAMS, ROWS))
    relative = moved / np.linalg.norm(relu6(PARAMS, ROWS))
    assert relative <= float(pruned.report.tight_bound) * (1 + 1e-4)


@slow
def test_a_convolution_of_a_mobile_network_is_clipped():
    kernel = RNG.normal(size=(3, 3, 1, 6)).astype(np.float32)
    image = RNG.normal(size=(16, 8, 8, 6)).astype(np.float32)
    scale = jnp.asarray(RNG.uniform(0.5, 2, size=6), jnp.float32)

    def block(p, x):
        y = jax.lax.conv_general_dilated(
            *(x, p["k"], (1, 1), "SAME"),
            feature_group_count=6,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",
        )
        shape = (1, 1, 1, 6)
        return jax.nn.relu6(y * scale.reshape(shape) + p["b"].reshape(shape))

    params = {"k": kernel, "b": np.linspace(-1, 1, 6, dtype=np.float32)}
    pruned = nt.prune(params, block, image, method=nt.NetTrim(epsilon=0.2))
    (site,) = pruned.report.sites
    assert (site.kind, site.response, site.limits) == ("conv", "clip", (0.0, 6.0))
    assert 0 < int(site.nonzeros) < kernel.size and float(site.error) < 0.25
