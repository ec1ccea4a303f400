"""Small layers of trained networks, alone: ``Reconstruct`` beside every other method.

Convolutions of ResNet-20 (27 to 288 inputs) as products with their windows, the heads
of ResNet-20, LeNet-300-100 and the transformer, and LeNet's middle layer. Each has 4096
rows of training data to prune with and 8192 rows of test data to be measured on, after
its ReLU if it has one. Run ``python tests/benchmarks/small_layers.py``; needs the data
folder. ``LayerOBS`` takes most of the time.
"""

import argparse
import collections
import functools
import re
import statistics
import sys

import jax
import jax.numpy as jnp
import race_cases
from race_runs import METHODS, pattern
from race_tables import LABELS, OBS, OURS, UNDAMPED

import nettrim_jax as nt
from nettrim_jax.calibration.capture import Draw, capture
from nettrim_jax.tracing import entries
from nettrim_jax.tracing.sites import trace

LAYERS = {
    "resnet": [
        "conv1",
        "layer1_0/conv1",
        "layer1_2/conv2",
        "layer2_0/conv1",
        "layer2_1/conv1",
        "layer2_2/conv2",
        "layer3_0/conv1",
        "linear",
    ],
    "lenet": ["Dense_1", "Dense_2"],
    "transformer": ["head"],
}
TARGETS = ("50 %", "70 %", "80 %", "90 %", "95 %", "98 %", "2:4", "4:8")
OTHERS = ("magnitude", "wanda", "sparsegpt", "obd", OBS, UNDAMPED)
ROWS, HELD = 4096, 8192


def batches(name):
    """A network's case, with samples to prune with, and others to measure on."""
    case = race_cases.make(name)
    if name == "resnet":  # rows of many images
        from resnet_cifar import images

        folder = race_cases.data_file("resnet20_cifar10.npz").parent
        return case, images(folder, "train", ROWS)[0], images(folder, "test", 4096)[0]
    return case, case.batch, case.held


def rows_of(case, batch, rows, key):
    """Rows of all layers of the trained network, and the layers."""
    graph = trace(case.apply_fn, case.params, batch)
    every = tuple(range(len(graph.sites)))
    inputs = [*jax.tree.leaves(case.params), batch]
    draw = Draw(every, rows, ((),) * len(every))
    seen, _ = capture(graph, draw, graph.consts, inputs, jax.random.key(key))
    return graph.sites, seen


def layers(name):
    """Each layer of a network alone: its name, params, function, rows, others."""
    case, train, test = batches(name)
    (sites, seen), (_, held) = (
        rows_of(case, batch, rows, key)
        for key, (batch, rows) in enumerate([(train, ROWS), (test, HELD)])
    )
    for site, mine, others in zip(sites, seen, held, strict=True):
        path = re.sub("^params/|/kernel$", "", site.path)
        if path not in LAYERS[name]:
            continue
        place = entries.take(site, jax.tree.leaves(case.params), True)
        W = place.weights[0] * mine.scale[0]
        params = {"kernel": W, "bias": jnp.zeros(W.shape[1], W.dtype)}
        own, later = ((one.X[0], one.t[0]) for one in (mine, others))
        yield f"{name} {path}", params, on(site.response == "relu"), own, later


@functools.cache
def on(relu):
    """The function of a layer alone; what does not depend on its weights is given."""

    def apply_fn(params, rows):
        x, t = rows
        answer = x @ params["kernel"] + params["bias"] + t
        return jax.nn.relu(answer) if relu else answer

    return apply_fn


def error(params, new, apply_fn, rows):
    """The relative error of new params."""
    want, got = apply_fn(params, rows), apply_fn(new, rows)
    return float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want))


def ratio(layer, target, methods):
    """Our error on held-out rows over the lowest of the others, and whose that is."""
    name, params, apply_fn, own, later = layer
    found = {}
    for method in (*methods, OURS):
        pruned = nt.prune(
            *(params, apply_fn, own),
            method=METHODS[method](pattern(target)),
            rows=ROWS,
            held_out=0,
            progress=False,
        )
        found[method] = error(params, pruned.params, apply_fn, later)
    print(name, target, found, file=sys.stderr, flush=True)
    ours = found.pop(OURS)
    least = min(found, key=found.__getitem__)
    return ours / found[least], least


def main():
    """Print one Markdown table, and the errors of every layer to stderr."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(LAYERS))
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("--methods", nargs="+", default=OTHERS)
    args = parser.parse_args()
    print("| layer | inputs, units |", " | ".join(args.targets), "|")
    print("| --- | --- |", " | ".join("---" for _ in args.targets), "|")
    every = []
    for network in args.networks:
        for layer in layers(network):
            found = [ratio(layer, target, args.methods) for target in args.targets]
            every += found
            shape = "{} × {}".format(*layer[1]["kernel"].shape)
            cells = " | ".join(f"{number:.3f}" for number, _ in found)
            print(f"| {layer[0]} | {shape} | {cells} |", flush=True)
    numbers, whose = zip(*every, strict=True)
    print(f"median {statistics.median(numbers):.3f}, worst {max(numbers):.3f}")
    lowest = collections.Counter(LABELS[who] for who in whose)
    print("lowest of the others:", dict(lowest))


if __name__ == "__main__":
    main()
