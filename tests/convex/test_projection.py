"""The projection on the graph is dense least squares, whatever the shape."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nettrim_jax.convex import projection

SHAPES = {"n<d": (7, 12), "n=d": (9, 9), "n>d": (15, 6), "one-row": (1, 4)}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
kinds = pytest.mark.parametrize("kind", ["white", "zero", "constant", "scales"])
biases = pytest.mark.parametrize("free_bias", [False, True], ids=["fixed", "free"])


def data(shape, kind, rng, d_out=3):
    n, d_in = shape
    X = rng.normal(size=shape) + 0.5
    if kind == "zero":
        X[:, ::3] = 0
    if kind == "constant":
        X[:, 1] = -2.7
    if kind == "scales":
        X = X * np.logspace(-3, 3, d_in)
    W, Z, t = (rng.normal(size=(k, d_out)) for k in (d_in, n, n))
    return X, W, Z, t


factor = jax.jit(projection.factorise, static_argnums=1)


@functools.partial(jax.jit, static_argnums=4)
def nearest(X, W, Z, t, free_bias):
    """The factor and the projection, at once, one unit per column."""
    graph = projection.factorise(X, free_bias)
    W, b, R = projection.project(graph, W.T, (Z - t).T, free_bias)
    return graph, (W.T, b, R.T + t)


def live(X, free_bias):
    """The columns that do what the bias does not."""
    return np.ptp(X, axis=0) > 0 if free_bias else X.any(axis=0)


def dense(graph, X, W, Z, t, free_bias):
    """The same point by one least-squares problem in (W, b), columns not centred."""
    (n, d_in), s = X.shape, np.sqrt(float(graph.sigma2))
    # by the size of each input, or the scales of inputs cost lstsq eight digits
    root = np.sqrt(graph.scale2)
    above = np.hstack([np.eye(d_in), np.zeros((d_in, 1))])
    below = s * np.hstack([X / root, np.full((n, 1), float(free_bias))])
    right = np.vstack([root[:, None] * W, s * (Z - t)])
    answer = np.linalg.lstsq(np.vstack([above, below]), right, rcond=None)[0]
    new = answer[:-1] / root[:, None]
    return new, answer[-1], X @ new + answer[-1] * free_bias + t


@shapes
@kinds
@biases
def test_projection_is_least_squares(shape, kind, free_bias, rng):
    X, W, Z, t = data(shape, kind, rng)
    graph, (W1, b1, Z1) = jax.device_get(nearest(X, W, Z, t, free_bias))
    W2, b2, Z2 = dense(graph, X, W, Z, t, free_bias)
    # a weight's size is that of its input's inverse
    root = np.sqrt(graph.scale2)[:, None]
    np.testing.assert_allclose(root * W1, root * W2, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(b1 - graph.mean @ W1, b2, atol=1e-9)
    np.testing.assert_allclose(Z1, Z2, atol=1e-9)


@shapes
@kinds
@biases
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_result_lies_on_the_graph(shape, kind, free_bias, dtype, rng):
    X, W, Z, t = (a.astype(dtype) for a in data(shape, kind, rng))
    graph, (W, b, Z) = jax.device_get(nearest(X, W, Z, t, free_bias))
    assert W.dtype == b.dtype == Z.dtype == dtype
    X, t, W, b, mean = (a.astype(float) for a in (X, t, W, b, graph.mean))
    expected = X @ W + b - mean @ W + t
    size = np.abs(X) @ np.abs(W) + np.abs(t) + np.abs(b)
    assert np.max(np.abs(Z - expected) / size) <= 50 * np.finfo(dtype).eps


@shapes
@kinds
@biases
def test_metric(shape, kind, free_bias, rng):
    X, *_ = data(shape, kind, rng)
    graph = factor(X, free_bias)
    C = X - X.mean(axis=0) if free_bias else X
    acts = live(X, free_bias)
    norm2 = np.where(acts, (C**2).sum(axis=0), 1)
    np.testing.assert_allclose(graph.scale2, norm2, rtol=1e-12)
    # sigma2 is one over the mean eigenvalue of the smaller scaled Gram matrix
    scaled = np.where(acts, C, 0) / np.sqrt(norm2)
    gram = scaled.T @ scaled if shape[1] <= shape[0] else scaled @ scaled.T
    mean = np.linalg.eigvalsh(gram).mean() if acts.any() else 1 / min(shape)
    np.testing.assert_allclose(graph.sigma2, 1 / mean, rtol=1e-12)


@shapes
@biases
def test_projection_is_idempotent(shape, free_bias, rng):
    X, W, Z, t = data(shape, "white", rng)
    _, once = nearest(X, W, Z, t, free_bias)
    _, twice = nearest(X, once[0], once[2], t, free_bias)
    for first, second in zip(once, twice, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-12)


@biases
def test_weights_of_dead_columns_stay(free_bias, rng):
    X, W, Z, t = data((15, 6), "constant" if free_bias else "zero", rng)
    _, (answer, *_) = nearest(X, W, Z, t, free_bias)
    dead = ~live(X, free_bias)
    assert dead.any()
    np.testing.assert_allclose(answer[dead], W[dead], rtol=1e-14)


def test_float32_constant_columns_are_dead_in_spite_of_rounding(rng):
    # the mean of n equal float32 numbers is not exactly that number
    X = rng.normal(size=(1000, 3)).astype(np.float32)
    X[:, 1] = np.float32(1e3 / 3)
    graph = factor(X, True)
    assert jnp.any(graph.X != 0, axis=0).tolist() == [True, False, True]


def test_vmap_is_a_loop(rng):
    X, W, Z = (rng.normal(size=s) for s in ((3, 7, 12), (3, 12, 2), (3, 7, 2)))
    t = np.zeros((1, 1))
    lanes = jax.vmap(lambda X, W, Z: nearest(X, W, Z, t, True)[1])(X, W, Z)
    for k in range(3):
        _, alone = nearest(X[k], W[k], Z[k], t, True)
        for lane, one in zip(lanes, alone, strict=True):
            np.testing.assert_allclose(lane[k], one, atol=1e-12)
