"""What the directions of errors cost and gain in a wide layer of ``Reconstruct``.

A layer of many units before a ReLU, which a narrower one reads, at 50 % zeros: how far
the output moves on new rows, the layer's own held-out error, and CPU seconds of a warm
call. ``none`` counts the layer's own error alone; ``all`` has all directions; a number
is that of the largest ones, with the mean of the rest. Run
``python tests/benchmarks/directions.py --units 1536 --directions 64 256``.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

import nettrim_jax as nt
from nettrim_jax.methods import quadratic

D_IN, D_OUT, ROWS = 256, 48, 3000


def network(units, seed=0):
    """Params, the function, and rows to prune on and to measure on."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(D_IN, D_IN)) * np.arange(1, D_IN + 1) ** -0.5
    x, new = (rng.normal(size=(ROWS, D_IN)) @ mix.T for _ in range(2))
    sizes = np.exp(rng.normal(size=(units, 1)))
    hidden = rng.normal(size=(D_IN, units)) / D_IN**0.5
    output = rng.normal(size=(units, D_OUT)) / units**0.5 * sizes
    params = {"hidden": jnp.asarray(hidden, "f"), "output": jnp.asarray(output, "f")}

    def apply_fn(params, x):
        return jax.nn.relu(x @ params["hidden"]) @ params["output"]

    return params, apply_fn, jnp.asarray(x, "f"), jnp.asarray(new, "f")


def measure(units, name, mode):
    """The output's movement on new rows, the layer's error, and CPU seconds."""
    quadratic.WHOLE = 0 if name.isdigit() else units
    quadratic.DIRECTIONS = int(name) if name.isdigit() else quadratic.DIRECTIONS
    jax.clear_caches()  # which know nothing of the numbers above
    params, apply_fn, x, new = network(units)
    share = 0.0 if name == "none" else None
    method = {"hidden": nt.Reconstruct(nt.Sparsity(0.5), downstream=share), ".*": None}
    for _ in range(2):  # the first call compiles
        start = time.process_time()
        pruned = nt.prune(params, apply_fn, x, method=method, mode=mode)
        jax.block_until_ready(pruned.params)
        seconds = time.process_time() - start
    want = apply_fn(params, new)
    off = jnp.linalg.norm(apply_fn(pruned.params, new) - want) / jnp.linalg.norm(want)
    return float(off), float(pruned.report.sites[0].held_out_error), seconds


def main():
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--units", type=int, default=1536)
    parser.add_argument("--directions", type=int, nargs="+", default=[64, 256])
    given = parser.parse_args()
    print("| mode | directions | output moves | layer's error | CPU s |")
    print("| --- | --- | --- | --- | --- |")
    for mode in ("parallel", "cascade"):
        for name in ("none", "all", *map(str, given.directions)):
            off, error, seconds = measure(given.units, name, mode)
            cells = f"{off:.4f} | {error:.4f} | {seconds:.1f}"
            print(f"| {mode} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
