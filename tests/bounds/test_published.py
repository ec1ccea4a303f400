"""The bound of Dong, Chen and Pan (2017), beside its own formula on many chains."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import only_fast, slow

import nettrim_jax as nt


def relu(z):
    return np.maximum(z, 0)


def published(old, new, x, size):
    """The theorem in NumPy: errors before the ReLUs, norms of the new weights."""
    v, total = np.asarray(x, np.float64), 0.0
    for i, ((W, b), (pruned, c)) in enumerate(zip(old, new, strict=True)):
        own = np.linalg.norm((v @ pruned + c) - (v @ W + b))
        total = size(pruned) * total + own if i else own
        v = relu(v @ W + b)
    return total / np.linalg.norm(x_through(old, np.asarray(x)))


def x_through(layers, x):
    """The output of a chain with ReLUs in between."""
    for i, (W, b) in enumerate(layers):
        x = (relu(x) if i else x) @ W + b
    return x


def apply_fn(params, x):
    """A chain of layers, with biases where there are any."""
    for i, layer in enumerate(params):
        x = jax.nn.relu(x) if i else x
        x = x @ layer["w"] + (layer["b"][None, :] if "b" in layer else 0)
    return x


def chain(widths, biases, seed):
    """Params of a chain, and a batch."""
    rng = np.random.default_rng(seed)
    params = []
    for d_in, d_out in zip(widths, widths[1:], strict=False):
        layer = {"w": rng.normal(size=(d_in, d_out)) * math.sqrt(2 / d_in)}
        if biases:
            layer["b"] = 0.3 * rng.normal(size=d_out)
        params.append(layer)
    x = rng.normal(size=(48, widths[0]))
    return jax.tree.map(lambda a: jnp.asarray(a, "float32"), (params, x))


def arrays(params):
    """Weights and biases in float64."""
    return [
        tuple(np.asarray(a, np.float64) for a in (p["w"], p.get("b", 0.0)))
        for p in params
    ]


PARALLEL, CASCADE = "parallel", "cascade"
WIDTHS = {
    "one": (12, 6),
    "two": (12, 16, 6),
    "narrow": (12, 4, 6),
    "wide": (8, 40, 40, 5),
    "four": (10, 14, 9, 14, 3),
    "deep": (10, *[12] * 6, 4),
}
METHODS = {
    "magnitude": lambda share: nt.Magnitude(nt.Sparsity(share)),
    "random": lambda share: nt.Random(nt.Sparsity(share)),
    "wanda": lambda share: nt.Wanda(nt.Sparsity(share)),
    "obs": lambda share: nt.LayerOBS(nt.Sparsity(share)),
    "inputs": lambda share: nt.Magnitude(nt.Inputs(share)),
    "nettrim": lambda share: nt.NetTrim(epsilon=share),
}
NETWORKS = [  # widths, biases, method, share (or epsilon), mode
    ("one", True, "magnitude", 0.5, PARALLEL),
    ("one", False, "obs", 0.8, CASCADE),
    ("two", True, "magnitude", 0.3, PARALLEL),
    ("two", True, "magnitude", 0.9, CASCADE),
    ("two", False, "obs", 0.5, PARALLEL),
    ("two", True, "obs", 0.9, CASCADE),
    ("two", False, "nettrim", 0.1, PARALLEL),
    ("two", True, "nettrim", 0.3, CASCADE),
    ("narrow", True, "wanda", 0.5, PARALLEL),
    ("narrow", False, "random", 0.7, CASCADE),
    ("narrow", True, "inputs", 0.25, PARALLEL),
    ("wide", True, "magnitude", 0.8, PARALLEL),
    ("wide", False, "wanda", 0.9, PARALLEL),
    ("wide", True, "obs", 0.8, CASCADE),
    ("wide", True, "nettrim", 0.05, PARALLEL),
    ("wide", False, "inputs", 0.5, CASCADE),
    ("four", True, "random", 0.2, PARALLEL),
    ("four", False, "magnitude", 0.6, CASCADE),
    ("four", True, "nettrim", 0.2, CASCADE),
    ("deep", True, "magnitude", 0.4, PARALLEL),
    ("deep", False, "wanda", 0.6, CASCADE),
    ("deep", True, "obs", 0.7, PARALLEL),
    ("deep", True, "magnitude", 1.0, PARALLEL),
    ("four", True, "magnitude", 0.0, PARALLEL),
]
IDS = ["-".join(map(str, case)) for case in NETWORKS]
QUICK = [3]


@pytest.mark.parametrize("at", only_fast(QUICK, range(len(IDS))), ids=lambda i: IDS[i])
def test_published_bound_of_a_chain(at):
    widths, biases, method, share, mode = NETWORKS[at]
    params, x = chain(WIDTHS[widths], biases, at)
    pruned = nt.prune(
        params, apply_fn, x, method=METHODS[method](share), mode=mode, bound=True
    )
    report, (old, new) = pruned.report, map(arrays, (params, pruned.params))
    trained, moved = (x_through(layers, np.asarray(x)) for layers in (old, new))
    deviation = np.linalg.norm(moved - trained) / np.linalg.norm(trained)
    frobenius = published(old, new, x, np.linalg.norm)
    operator = published(old, new, x, lambda W: np.linalg.norm(W, 2))
    np.testing.assert_allclose(report.frobenius_bound, frobenius, rtol=1e-4, atol=1e-6)
    # with operator norms ours is no larger, since a ReLU makes errors smaller
    found = float(report.bound)
    assert deviation <= found * (1 + 1e-4) + 1e-6
    assert found <= operator * (1 + 1e-2) + 1e-6
    assert found <= float(report.frobenius_bound) * (1 + 1e-5)


def test_published_bound_by_hand():
    """Each number of a network of two layers, on one row."""
    params = [
        {"w": jnp.asarray([[3, 1, -1], [5, 4, -2]], "float32")},
        {"w": jnp.asarray([[3, 1], [0, 3], [4, 4]], "float32")},
    ]
    x = jnp.ones((1, 2), "float32")
    method = nt.Magnitude(nt.Sparsity(1 / 3))  # those of size 0 and 1 go
    report = nt.prune(params, apply_fn, x, method=method, bound=True).report
    # responses (8, 5, -3) and (24, 23); without these weights (8, 4, -2) and (24, 12)
    norm = math.hypot(24, 23)
    np.testing.assert_allclose(report.deviation, 11 / norm, rtol=1e-6)
    # own errors: sqrt(2) in front of the ReLU, 1 behind it; 8 of the second layer
    frobenius = math.sqrt(9 + 9 + 16 + 16)
    expected = (frobenius * math.sqrt(2) + 8) / norm
    np.testing.assert_allclose(report.frobenius_bound, expected, rtol=1e-5)
    operator = math.sqrt(25 + 16)  # of [[25, 16], [16, 25]]
    np.testing.assert_allclose(report.bound, (operator + 8) / norm, rtol=1e-2)


def test_published_bound_that_stops():
    """It stops where the other bounds do, and the report says where."""
    params, x = chain((8, 8, 8), True, 0)
    method = nt.Magnitude(nt.Sparsity(0.5))

    def by_rank(params, x):
        return jnp.sort(apply_fn(params, x), axis=1)

    report = nt.prune(params, by_rank, x, method=method, bound=True).report
    assert report.bound_stop == "sort, after 1/w"
    assert np.isnan(report.frobenius_bound)
    assert report.to_dict()["frobenius_bound"] is None


@slow
def test_published_bound_where_only_its_own_balls_would_stop():
    """A sort between a ReLU and the second layer: errors are then those behind it."""
    params, x = chain((8, 8, 8), True, 1)

    def sorted_between(params, x):
        z = jnp.sort(apply_fn(params[:1], x).clip(0), axis=1)
        return z @ params[1]["w"]

    method = nt.Magnitude(nt.Sparsity(0.5))
    report = nt.prune(params, sorted_between, x, method=method, bound=True).report
    assert report.bound_stop == ""
    moved, bound = float(report.deviation), float(report.bound)
    assert moved <= bound < float(report.frobenius_bound) < math.inf


@slow
def test_published_bound_counts_layers_that_are_not_pruned():
    """Their Frobenius norms stand in the products, too."""
    params, x = chain((12, 16, 6), True, 2)
    method = {"0/w": nt.Magnitude(nt.Sparsity(0.5)), "1/w": None}
    pruned = nt.prune(params, apply_fn, x, method=method, bound=True)
    expected = published(*map(arrays, (params, pruned.params)), x, np.linalg.norm)
    np.testing.assert_allclose(pruned.report.frobenius_bound, expected, rtol=1e-4)


def test_published_bound_of_plain_data():
    params, x = chain((12, 16, 6), True, 3)
    method = nt.Magnitude(nt.Sparsity(0.9))
    report = nt.prune(params, apply_fn, x, method=method, bound=True).report
    again = nt.Report.from_dict(report.to_dict())
    assert float(again.frobenius_bound) == float(report.frobenius_bound)
