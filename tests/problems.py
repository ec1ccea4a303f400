"""Generated programs of every shape that a layer takes, and real layers cut small."""

import dataclasses
import os
import pathlib

import numpy as np


def data_file(name):
    """Path of a data file, or None where the data is absent."""
    here = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    path = pathlib.Path(os.environ.get("NETTRIM_DATA", here)) / name
    return path if path.exists() else None


@dataclasses.dataclass(frozen=True)
class Problem:
    """Arguments of ``relu_program`` or ``linear_program``; epsilon is absolute."""

    name: str
    relu: bool
    X: np.ndarray
    Y: np.ndarray
    t: np.ndarray
    epsilon: float
    bias: str


def inputs(kind, n, d, rng):
    """Inputs of one kind, ``[n, d]``."""
    if kind == "white":
        return rng.normal(size=(n, d))
    if kind == "correlated":
        mix = np.exp(-np.abs(np.subtract.outer(np.arange(d), np.arange(d))) / 4)
        return rng.normal(size=(n, d)) @ np.linalg.cholesky(mix + 1e-9 * np.eye(d)).T
    if kind == "deficient":
        return rng.normal(size=(n, max(2, d // 2))) @ rng.normal(
            size=(max(2, d // 2), d)
        )
    if kind == "nonnegative":  # what a ReLU hands on: many zeros, a mean, and scales
        scales = np.exp(rng.normal(size=d))
        return np.maximum(rng.normal(size=(n, d)) + 0.3, 0) * scales
    if kind == "zero_columns":
        X = rng.normal(size=(n, d))
        X[:, :: max(2, d // 4)] = 0
        return X
    raise ValueError(kind)


def layer(name, relu, X, W, b, epsilon, bias):
    """The problem of a trained layer ``X W + b``; epsilon relative to its response."""
    t = b[None, :]
    Z = X @ W + t
    Y = np.maximum(Z, 0) if relu else Z
    return Problem(name, relu, X, Y, t, epsilon * np.linalg.norm(Y), bias)


def generated():
    """Small programs: shapes x inputs x response x bias x epsilon, and the edges."""
    rng = np.random.default_rng(0)
    out = []
    shapes = {"tall": (60, 12, 5), "wide": (20, 40, 4), "square": (30, 30, 3)}
    epsilons = [0.02, 0.05, 0.1, 0.2, 0.4]
    biases = ["fixed", "free", "penalized"]
    for shape, (n, d, m) in shapes.items():
        for kind in ("white", "correlated", "deficient", "nonnegative", "zero_columns"):
            for relu in (True, False):
                k = len(out)
                W = rng.normal(size=(d, m)) * (rng.random(size=(d, m)) < 0.7)
                W = W / np.sqrt(d)
                b = 0.3 * rng.normal(size=m)
                eps, bias = epsilons[k % 5], biases[(k // 2) % 3]
                name = f"{shape}-{kind}-{'relu' if relu else 'linear'}-{bias}-{eps}"
                X = inputs(kind, n, d, rng)
                out.append(layer(name, relu, X, W, b, eps, bias))
    X, W = inputs("white", 40, 10, rng), rng.normal(size=(10, 4))
    away = np.array([-30.0, 30.0, 0.2, 0.0])  # never on, always on, and two as usual
    for bias in biases:
        out.append(layer(f"on-off-{bias}", True, X, W, away, 0.1, bias))
    out.append(layer("one-unit", True, X, W[:, :1], np.zeros(1), 0.1, "free"))
    out.append(layer("one-unit-linear", False, X, W[:, :1], np.zeros(1), 0.1, "fixed"))
    for eps in (0.0, 1.0, 1.5):
        for relu in (True, False):
            name = f"epsilon-{eps}-{'relu' if relu else 'linear'}"
            out.append(layer(name, relu, X, W, np.zeros(4), eps, "fixed"))
    return out


def scaled(count=40):
    """Small programs whose inputs differ in scale by up to 1e4, one or all of them."""
    rng = np.random.default_rng(0)
    shapes = [(60, 12, 5), (20, 40, 4), (100, 30, 8), (200, 20, 10)]
    kinds = ("white", "correlated", "nonnegative", "white")
    epsilons, biases = (0.05, 0.1, 0.2, 0.02), ("free", "fixed", "penalized")
    out = []
    for k in range(count):
        n, d, m = shapes[k // 2 % 4]
        kind = kinds[k // 2 % 4 if k % 8 < 4 else k // 8 % 3]
        X = inputs(kind, n, d, rng)
        if k % 2 == 0:  # one input is far larger than all others
            scales, most = np.ones(d), rng.choice([100, 500, 1000, 10000])
            scales[rng.integers(d)] = most
            name = f"one-{most:g}"
        else:
            scales = np.geomspace(1, rng.choice([100, 1000, 10000]), d)
            name = f"all-{scales[-1]:g}"
            rng.shuffle(scales)
        W = rng.normal(size=(d, m)) / np.sqrt(d)
        if k // 4 % 2 == 0:  # the larger an input, the smaller its weights
            W, name = W / scales[:, None], name + "-even"
        b, relu = 0.3 * rng.normal(size=m), k // 2 % 2 == 0
        eps, bias = epsilons[k // 3 % 4], biases[k % 3]
        name = f"{k}-{name}-{kind}-{'relu' if relu else 'linear'}-{bias}-{eps}"
        out.append(layer(name, relu, X * scales, W, b, eps, bias))
    return out


def lenet_layers(rows=4096):
    """``(X, W, b, relu)`` of the three layers of LeNet-300-100 on MNIST."""
    z = np.load(data_file("lenet300_mnist.npz"))
    mnist = np.load(data_file("mnist.npz"))["x_train"]
    pick = np.random.default_rng(0).permutation(60000)[:rows]
    X = (mnist[pick] / 255.0).reshape(rows, -1)
    for i in range(3):
        W, b = z[f"Dense_{i}/kernel"], z[f"Dense_{i}/bias"]
        yield X, W.astype(float), b.astype(float), i < 2
        X = np.maximum(X @ W + b, 0)


def real_cut():
    """Pieces of LeNet's layers of a size that an oracle solves in seconds."""
    rng = np.random.default_rng(1)
    out = []
    for i, (X, W, b, relu) in enumerate(lenet_layers(200)):
        live = np.flatnonzero((X > 0).mean(0) > 0.2)
        inputs_kept = np.sort(rng.choice(live, min(40, len(live)), replace=False))
        units = rng.choice(W.shape[1], min(4, W.shape[1]), replace=False)
        rest = np.delete(np.arange(X.shape[1]), inputs_kept)
        X, t = X[:80], X[:80][:, rest] @ W[rest][:, units] + b[units]
        Z = X[:, inputs_kept] @ W[inputs_kept][:, units] + t
        Y = np.maximum(Z, 0) if relu else Z
        for eps, bias in ((0.05, "free"), (0.2, "fixed")):
            name = f"lenet-{i}-{bias}-{eps}"
            norm = np.linalg.norm(Y)
            out.append(Problem(name, relu, X[:, inputs_kept], Y, t, eps * norm, bias))
    return out
