"""What a step of ``recover`` costs, beside a plain step with the teacher's pass.

The plain step is written by hand: the gradient of the squared distance between the
outputs of two networks, and Adam, with no mask. CPU seconds of a step, without
compilation, in turns; the ratio is that of the medians. LeNet-300-100 and ResNet-20
need the data folder; the transformer has random weights. From the root:

    python tests/benchmarks/teaching.py
"""

import argparse
import statistics
import time

import cold_networks
import jax
import jax.numpy as jnp
import numpy as np
import optax
from recover import a_lenet, a_resnet

import nettrim_jax as nt


def a_transformer(on, seed):
    """Params, function and rows, as the others have them."""
    params, call, x = cold_networks.transformer()
    return params, call, x, jnp.concatenate([x] * 8)


NETWORKS = {"lenet": a_lenet, "resnet": a_resnet, "transformer": a_transformer}
SIZES = {"lenet": 64, "resnet": 64, "transformer": 8}  # samples of a step


def recovering(pruned, params, call, rows, size):
    """CPU seconds of so many steps of ``recover``."""

    def run(steps):
        optimizer = optax.adam(1e-3)
        began = time.process_time()
        nt.recover(
            *(pruned, params, call, rows),
            **{"steps": steps, "every": steps, "size": size, "checks": 1},
            optimizer=optimizer,
        )
        return time.process_time() - began

    return run


def plain(start, params, call, rows, size):
    """CPU seconds of so many steps by hand."""
    optimizer = optax.adam(1e-3)

    def loss(new, trained, x):
        wanted = call(trained, x)
        return jnp.sum((call(new, x) - wanted) ** 2) / jnp.sum(wanted**2)

    @jax.jit
    def step(new, state, trained, x):
        updates, state = optimizer.update(jax.grad(loss)(new, trained, x), state, new)
        return optax.apply_updates(new, updates), state

    def run(steps):
        new, state = start, optimizer.init(start)
        rng = np.random.default_rng(0)
        given = np.asarray(rows)
        began = time.process_time()
        for _ in range(steps):
            x = given[rng.integers(0, len(given), size)]
            new, state = step(new, state, params, x)
        jax.block_until_ready(new)
        return time.process_time() - began

    return run


def main():
    """Prints one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print("| network | plain step, CPU ms | step of recover, CPU ms | ratio |")
    print("| --- | --- | --- | --- |")
    for name in args.networks:
        params, call, few, many, *_ = NETWORKS[name]("beside", 0)
        pruned = nt.prune(params, call, few[:64], method=nt.Magnitude(nt.Sparsity(0.8)))
        ours = recovering(pruned, params, call, many, SIZES[name])
        by_hand = plain(pruned.params, params, call, many, SIZES[name])
        few_steps, steps = 5, args.steps
        ours(few_steps), by_hand(few_steps)
        pairs = [
            # what is made once per call, compilation too, is in both of a difference
            (by_hand(steps) - by_hand(few_steps), ours(steps) - ours(few_steps))
            for _ in range(args.repeats)
        ]
        plainly, ourly = (
            1000 * statistics.median(part) / (steps - few_steps)
            for part in zip(*pairs, strict=True)
        )
        print(f"| {name} | {plainly:.1f} | {ourly:.1f} | {ourly / plainly:.2f} |")


if __name__ == "__main__":
    main()
