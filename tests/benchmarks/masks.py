"""LeNet-300-100 on MNIST: what the best values make of other methods' masks.

Each rule removes a share of the first two layers (of the last one at most 70 %), with
no label and no retraining; ``refit`` keeps the mask and nothing else. Run ``python
tests/benchmarks/masks.py``; needs the data folder.
"""

import argparse

import jax.numpy as jnp
import numpy as np
from mnist import apply_fn, load

import nettrim_jax as nt

RULES = [nt.Random, nt.Magnitude, nt.Wanda, nt.SparseGPT]


def main():
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--levels", type=float, nargs="+", default=[0.9, 0.95, 0.97])
    arguments = parser.parse_args()
    params, train, test, labels = load()

    def accuracy(params):
        return 100 * float((jnp.argmax(apply_fn(params, test), 1) == labels).mean())

    x = train[np.random.default_rng(0).permutation(len(train))[: arguments.rows]]
    print(f"Trained: {accuracy(params):.2f} % on the test images.\n")
    print("| mask | zeros | as it came | refit, parallel | refit, cascade |")
    print("| --- | --- | --- | --- | --- |")
    for level in arguments.levels:
        for rule in RULES:
            method = {
                "Dense_2": rule(nt.Sparsity(min(level, 0.7))),
                ".*": rule(nt.Sparsity(level)),
            }
            came = nt.prune(params, apply_fn, x, method=method)
            cells = [accuracy(came.params)]
            for mode in ("parallel", "cascade"):
                new = nt.refit(params, came.mask, apply_fn, x, mode=mode)
                cells.append(accuracy(new.params))
            figures = " | ".join(f"{cell:.2f}" for cell in cells)
            print(f"| {rule.__name__} | {100 * level:g} % | {figures} |", flush=True)


if __name__ == "__main__":
    main()
