"""What a user waits for: compilations, CPU seconds and wall seconds of ``prune``.

Every row is measured in a process of its own: a first call, the same call again, the
next level of sparsity (or epsilon), and the other mode. Run
``python tests/benchmarks/cold.py``; ``--against REV`` measures another commit beside
it, row by row in one sitting.
"""

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from freeze import Checkout  # noqa: E402

COMPILED = "/jax/core/compile/backend_compile_duration"


def readme():
    """The network of the README."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)
    shapes = {"hidden": (64, 128), "output": (128, 10)}
    params = {k: jnp.asarray(rng.normal(size=s) ** 3, "f") for k, s in shapes.items()}

    def apply_fn(params, x):
        return jax.nn.relu(x @ params["hidden"]) @ params["output"]

    return params, apply_fn, jnp.asarray(rng.normal(size=(2000, 64)), "f")


def conv():
    """Three convolutions with batch norm and two dense layers, by Linen."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for width in (16, 32, 32):
                x = nn.Conv(width, (3, 3), strides=2)(x)
                x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
            x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
            return nn.Dense(10)(x)

    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 16, 16, 3)), "f")
    return jax.jit(Net().init)(jax.random.key(0), x), Net().apply, x


NETWORKS = {"readme": readme, "conv": conv}
METHODS = {
    "nettrim": lambda nt, more: nt.NetTrim(0.2 if more else 0.1),
    "sparsity": lambda nt, more: nt.Sparsity(0.8 if more else 0.9),
    "sparsegpt": lambda nt, more: nt.SparseGPT(nt.Sparsity(0.8 if more else 0.9)),
}
CALLS = (  # another level, another mode
    ("cold", False, False),
    ("warm", False, False),
    ("next level", True, False),
    ("other mode", False, True),
)


def child(network, method, mode):
    """Measures one row and prints it as JSON."""
    import jax

    import nettrim_jax as nt

    counts = []

    def listen(event, duration, **_):
        if event == COMPILED:
            counts.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    params, apply_fn, x = NETWORKS[network]()
    out = {}
    for name, more, other in CALLS:
        counts.clear()
        cpu, wall = time.process_time(), time.perf_counter()
        there = "cascade" if (mode == "cascade") != other else "parallel"
        pruned = nt.prune(
            params, apply_fn, x, method=METHODS[method](nt, more), mode=there
        )
        jax.block_until_ready(pruned)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        out[name] = {"compiled": len(counts), "cpu": cpu, "wall": wall}
    print(json.dumps(out))


def measure(tree, row):
    """One row of the package in a folder, by a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, "--child", *row]
    answer = subprocess.run(
        command, env=env, cwd=tree, check=True, text=True, stdout=subprocess.PIPE
    )
    return json.loads(answer.stdout.splitlines()[-1])


def main():
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--child", nargs=3)
    parser.add_argument("--against", metavar="REV")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--modes", nargs="+", default=["parallel", "cascade"])
    given = parser.parse_args()
    if given.child:
        return child(*given.child)
    with contextlib.ExitStack() as stack:
        trees = {"here": ROOT}
        if given.against:
            trees = {
                given.against: stack.enter_context(Checkout(given.against)),
                **trees,
            }
        print(
            "| network, method, mode | commit |", " | ".join(n for n, *_ in CALLS), "|"
        )
        print("| --- | --- |", " | ".join("---" for _ in CALLS), "|")
        for network in given.networks:
            for method in given.methods:
                for mode in given.modes:
                    for name, tree in trees.items():
                        row = measure(tree, (network, method, mode))
                        cells = [
                            f"{one['compiled']}; {one['cpu']:.2f}; {one['wall']:.2f}"
                            for one in row.values()
                        ]
                        title = f"{network}, {method}, {mode}"
                        print(
                            f"| {title} | {name} |", " | ".join(cells), "|", flush=True
                        )
        print("\nCompilations; CPU seconds; wall seconds.")


if __name__ == "__main__":
    main()
