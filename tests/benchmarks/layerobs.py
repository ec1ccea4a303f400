"""LeNet-300-100 on MNIST: exact removals, and sensitivities that are taken once.

Prunes every layer to a level, the last one to 70 % at most, without a label and without
retraining. ``once`` ranks the weights by their first sensitivities, adapts the others
by the first inverse and masks them at the end, as the code of Dong et al. does;
``fitted`` has the best weights for that choice. Run
``python tests/benchmarks/layerobs.py``; needs the data folder. ``LayerOBS`` takes
minutes on two cores.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from mnist import apply_fn, load

import nettrim_jax as nt

LAST = 0.7


def inputs_of(params, x):
    """The inputs of each layer in the trained network, in float64."""
    out = []
    for i in range(3):
        out.append(np.asarray(x, float))
        layer = params[f"Dense_{i}"]
        x = x @ layer["kernel"] + layer["bias"]
        x = jax.nn.relu(x)
    return out


def once(W, X, level):
    """New weights by sensitivities taken once: masked at the end, and fitted."""
    G = X.T @ X
    H = G + 0.01 * np.mean(np.diag(G)) * np.eye(len(G))
    K = np.linalg.inv(H)
    cost = W**2 / np.diag(K)[:, None]
    order = np.argsort(cost, axis=None)[: round(level * W.size)]
    mask = np.ones(W.shape, bool)
    mask[np.unravel_index(order, W.shape)] = False
    moved, fitted = W.copy(), np.zeros_like(W)
    for q, j in zip(*np.unravel_index(order, W.shape), strict=True):
        moved[:, j] -= moved[q, j] / K[q, q] * K[:, q]
    for j in range(W.shape[1]):
        s = mask[:, j]
        fitted[s, j] = np.linalg.solve(H[np.ix_(s, s)], (H @ W)[s, j])
    return moved * mask, fitted


def main():
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--levels", type=float, nargs="+", default=[0.8, 0.9])
    arguments = parser.parse_args()
    params, train, test, labels = load()
    x = train[np.random.default_rng(0).permutation(len(train))[: arguments.rows]]

    def accuracy(params):
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
        return 100 * float((jnp.argmax(apply_fn(params, test), 1) == labels).mean())

    print(f"Trained: {accuracy(params):.2f} % on the test images.\n")
    print(
        "| removed | LayerOBS | SparseGPT | once | once, fitted | LayerOBS, seconds |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for level in arguments.levels:
        row, seconds = [], 0.0
        for make in (nt.LayerOBS, nt.SparseGPT):
            method = {
                "Dense_2": make(nt.Sparsity(min(level, LAST))),
                ".*": make(nt.Sparsity(level)),
            }
            start = time.perf_counter()
            pruned = nt.prune(params, apply_fn, x, method=method, held_out=0)
            jax.block_until_ready(pruned)
            seconds = seconds or time.perf_counter() - start
            row.append(accuracy(pruned.params))
        ways = ({}, {})
        for i, X in enumerate(inputs_of(params, x)):
            layer = params[f"Dense_{i}"]
            share = level if i < 2 else min(level, LAST)
            found = once(np.asarray(layer["kernel"], float), X, share)
            for way, W in zip(ways, found, strict=True):
                way[f"Dense_{i}"] = layer | {"kernel": W}
        row += [accuracy(way) for way in ways]
        figures = " | ".join(f"{a:.2f}" for a in row)
        print(f"| {100 * level:.0f} % | {figures} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
