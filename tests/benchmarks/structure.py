"""Wall time of a convolutional network, full and without half of its channels.

Needs no data: the time does not depend on what the weights are. Both programs run in
turns, so that other work on the machine slows both alike. From the root:

    python tests/benchmarks/structure.py
    python tests/benchmarks/structure.py --share 0.75 --batch 16
    python tests/benchmarks/structure.py --widths 8 16 16 32
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

import nettrim_jax as nt

WIDTHS = (64, 128, 128, 256)


def network(batch, widths=WIDTHS):
    """A network of convolutions, with params and a batch of images."""
    keys = iter(jax.random.split(jax.random.key(0), 16))
    params, before = {}, 3
    for k, width in enumerate(widths):
        kernel = jax.random.normal(next(keys), (3, 3, before, width), "float32")
        params[f"conv{k}"] = {
            "kernel": kernel / np.sqrt(9 * before),
            "bias": jnp.zeros(width, "float32"),
        }
        before = width
    head = jax.random.normal(next(keys), (before, 10), "float32")
    params["head"] = head / np.sqrt(before)

    def apply_fn(params, x):
        for k in range(len(widths)):
            layer = params[f"conv{k}"]
            x = jax.lax.conv_general_dilated(
                x,
                layer["kernel"],
                (1 + k % 2,) * 2,
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            x = jax.nn.relu(x + layer["bias"])
        return x.mean((1, 2)) @ params["head"]

    return params, apply_fn, jax.random.normal(next(keys), (batch, 32, 32, 3))


def weakest(params, groups, share):
    """Of every group, the units whose weights are smallest, so many of them."""
    out = {}
    for group in groups:
        size = jnp.sum(jnp.abs(params[group.name.split("/")[0]]["kernel"]), (0, 1, 2))
        out[group.name] = np.argsort(size)[: int(share * group.count)]
    return out


def seconds(calls, rounds):
    """The least time of each call, in turns."""
    for call in calls:
        jax.block_until_ready(call())
    best = [np.inf] * len(calls)
    for _ in range(rounds):
        for k, call in enumerate(calls):
            start = time.perf_counter()
            jax.block_until_ready(call())
            best[k] = min(best[k], time.perf_counter() - start)
    return best


def main():
    """Prints the report and both times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=0.5, help="of channels to go")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    asked = parser.parse_args()
    params, apply_fn, x = network(asked.batch, asked.widths)
    groups = nt.units(params, apply_fn, x).groups
    small = nt.shrink(params, apply_fn, x, remove=weakest(params, groups, asked.share))
    print(small.report)
    full, less = jax.jit(apply_fn), jax.jit(small.apply_fn)
    times = seconds(
        [lambda: full(params, x), lambda: less(small.params, x)], asked.rounds
    )
    print(f"full {1e3 * times[0]:.1f} ms, smaller {1e3 * times[1]:.1f} ms")
    print(f"{times[1] / times[0]:.2f} of the time")


if __name__ == "__main__":
    main()
