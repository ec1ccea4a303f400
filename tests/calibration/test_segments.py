"""Segments of a cascade: those that compute the same are compiled once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow

import nettrim_jax as nt
from nettrim_jax.calibration import cascade

TIME, WIDTH = 6, 16


def array(rng, *shape):
    return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), "float32")


def norm(x, scale):
    x = x - jnp.mean(x, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5) * scale


def attention(p, x):
    q, k, v = (x @ p[name] for name in "qkv")
    scores = jnp.einsum("ntd,nsd->nts", q, k) / WIDTH**0.5
    scores = jnp.where(np.tril(np.ones((1, TIME, TIME), bool)), scores, -1e9)
    return jnp.einsum("nts,nsd->ntd", jax.nn.softmax(scores), v) @ p["out"]


def transformer(layers):
    """Params, the network with its layers in a loop of Python, and a batch."""
    rng = np.random.default_rng(layers)

    def layer():
        return {
            **{name: array(rng, WIDTH, WIDTH) for name in ("q", "k", "v", "out")},
            "up": array(rng, WIDTH, 2 * WIDTH),
            "bias": 0.1 * array(rng, 1, 1, 2 * WIDTH),
            "down": array(rng, 2 * WIDTH, WIDTH),
            "scales": jnp.ones((2, 1, 1, WIDTH), "float32"),
        }

    params = {"layers": [layer() for _ in range(layers)], "head": array(rng, WIDTH, 5)}

    def apply_fn(params, x):
        for p in params["layers"]:
            x = x + attention(p, norm(x, p["scales"][0]))
            z = norm(x, p["scales"][1]) @ p["up"] + p["bias"]
            x = x + jax.nn.relu(z) @ p["down"]
        return x @ params["head"]

    return params, apply_fn, array(rng, 8, TIME, WIDTH)


@pytest.mark.parametrize(
    "method",
    [
        nt.Magnitude(nt.Sparsity(0.5)),
        pytest.param(nt.SparseGPT(nt.Sparsity(0.5)), marks=slow),
    ],
)
def test_more_layers_compile_nothing_more(method):
    counts = []
    for layers in (4, 12):
        params, apply_fn, x = transformer(layers)
        pruned = nt.prune(params, apply_fn, x, method=method, mode="cascade", rows=20)
        assert len(pruned.report.sites) == 6 * layers + 1
        counts.append((cascade._advance._cache_size(), cascade._capture._cache_size()))
    assert counts[0] == counts[1]
