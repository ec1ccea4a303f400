"""What it costs to capture every layer's activations, beside plain forward passes.

``python tests/benchmarks/capture.py``: ResNet-20 on 1024 random images, all 20 layers,
row copies included. Medians over alternating runs; compilation apart.
"""

import argparse
import functools
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from resnet_cifar import ResNet20  # noqa: E402

from nettrim_jax.calibration import cascade  # noqa: E402
from nettrim_jax.calibration.batches import Source, parts  # noqa: E402
from nettrim_jax.calibration.capture import Draw, capture  # noqa: E402
from nettrim_jax.calibration.model import Model  # noqa: E402


def seconds(function):
    """The seconds that a call took."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def main():
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    x = jax.random.normal(jax.random.key(0), (args.images, 32, 32, 3))
    trained = ResNet20().init(jax.random.key(1), x[:1])
    network = jax.jit(ResNet20().apply)
    model = Model(trained, ResNet20().apply)
    [part] = parts(Source(model, x, jax.random.key(2), None))
    graph, leaves = part.network, model.leaves
    chosen = tuple(range(len(graph.sites)))

    def draw(sites):
        return Draw(sites, args.rows, ((),) * len(sites))

    def parallel():
        inputs = [*leaves, *part.batch]
        return capture(graph, draw(chosen), graph.consts, inputs, part.key)[0]

    def in_cascade():
        run = cascade.Run(part, chosen, leaves)
        seen = []
        for at, level in enumerate(run.plan.levels):
            seen.append(run.capture(at, leaves, leaves, draw(level)))
            run.advance(at + 1, leaves, leaves)
        return seen

    runs = {
        "forward pass": functools.partial(network, trained, x),
        "capture, parallel": parallel,
        "captures, cascade": in_cascade,
    }
    times = {name: [] for name in runs}
    for repeat in range(args.repeats + 1):
        for name, run in runs.items():
            took = seconds(run)
            if repeat:  # the first one compiles
                times[name].append(took)
    medians = {name: statistics.median(took) for name, took in times.items()}
    forward = medians["forward pass"]
    levels = len(cascade.plan(graph, chosen).levels)
    print(f"ResNet-20, {args.images} images, {args.rows} rows, {levels} levels, ")
    print(f"jax {jax.__version__} on {jnp.zeros(()).devices()}\n")
    print("| what | s | forward passes |")
    print("| --- | --- | --- |")
    for name, took in medians.items():
        print(f"| {name} | {took:.2f} | {took / forward:.2f} |")


if __name__ == "__main__":
    main()
