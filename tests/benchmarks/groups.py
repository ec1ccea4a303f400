"""Whole neurons, inputs and channels removed: group penalties against ranking by norm.

On layers of LeNet-300-100 (MNIST) and ResNet-20 (CIFAR-10), each alone, with what the
trained network feeds it. Net-Trim under a group norm, reweighted in rounds, removes as
many groups as a budget allows; beside it the same number of least norm. What is left
stays as trained or takes the values that fit best, whichever is better on a quarter of
the rows. Errors are those after the activation on another quarter. Needs the data
folder: ``python tests/benchmarks/groups.py``.
"""

import argparse
import dataclasses
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from mnist import apply_fn as lenet
from mnist import load
from problems import data_file

import nettrim_jax as nt
from nettrim_jax.calibration.capture import Draw, capture
from nettrim_jax.convex import least_squares, programs
from nettrim_jax.methods.base import kind_of
from nettrim_jax.methods.layer_program import programs_of
from nettrim_jax.tracing.sites import trace

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples"))

LAYERS = {
    "lenet": ["Dense_0", "Dense_1"],
    "resnet": ["layer1_0/conv1", "layer2_1/conv1", "layer3_1/conv1"],
}


def networks():
    """Name, params, function and batch of each network."""
    params, train, _, _ = load()
    pick = np.random.default_rng(0).permutation(len(train))[:4096]
    yield "lenet", params, lenet, train[pick]
    from resnet_cifar import ResNet20, images, variables

    folder = pathlib.Path(data_file("resnet20_cifar10.npz")).parent
    train, _ = images(folder, "train", 1024)
    yield "resnet", variables(folder), ResNet20().apply, train


def seen_by(params, apply_fn, batch, names, rows):
    """Per layer of these names: its site, and what it saw."""
    graph = trace(apply_fn, params, batch)
    chosen = tuple(
        k for k, site in enumerate(graph.sites) if any(n in site.path for n in names)
    )
    leaves = jax.tree.leaves(params)
    draw, key = Draw(chosen, rows, ((),) * len(chosen)), jax.random.key(0)
    seen, _ = capture(graph, draw, graph.consts, [*leaves, batch], key)
    return [
        (graph.sites[k], a, leaves[graph.sites[k].leaf])
        for k, a in zip(chosen, seen, strict=True)
    ]


@functools.partial(jax.jit, static_argnames="rounds")
def solved(program, rounds):
    """Weights, bias and the worst code of a program solved and reweighted."""
    found = nt.solve(program)
    code, now = found.result, program
    for _ in range(rounds - 1):
        now = programs.reweighted(program, found.W, found.bias)
        found = nt.solve(now, init=found)
        code = jnp.maximum(code, found.result)
    return found.W, found.bias, code


refit = jax.jit(least_squares.refit)


def main():
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.2, 0.3])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(
        "| layer | removed | epsilon | group norm | least norm, as trained | least "
        "norm, fitted |\n| --- | --- | --- | --- | --- | --- |"
    )
    worse = []
    for network, params, apply_fn, batch in networks():
        for site, a, leaf in seen_by(
            params, apply_fn, batch, LAYERS[network], args.rows
        ):
            for groups in ("neurons", "channels" if site.kind == "conv" else "inputs"):
                for epsilon in args.epsilon:
                    row = compare(site, a, leaf, groups, epsilon, args.rounds)
                    worse += [row] if row[-3] > min(row[-2:]) else []
                    name = f"{network} {site.path.removeprefix('params/')}"
                    cells = [f"{x:.3f}" for x in row[-3:]]
                    print(
                        f"| {name} | {row[0]} of {row[1]} {groups} | {epsilon} | "
                        + " | ".join(cells)
                        + " |",
                        flush=True,
                    )
    print(f"\n{len(worse)} rows in which ranking by norm is better.")


def compare(site, seen, leaf, groups, epsilon, rounds):
    """How many groups of how many go, and three held-out errors."""
    n = seen.X.shape[1]
    part = np.arange(n) % 4
    fit, choose, out = (
        seen._replace(**{name: x[:, rows] for name, x in seen.rows().items()})
        for rows in (part > 1, part == 1, part == 0)
    )
    penalty = nt.GroupL1(groups)
    if groups == "channels":
        penalty = penalty.of_channels(site.channels)
    bias = "fixed" if site.bias is None else "free"
    method = nt.NetTrim(epsilon, penalty=penalty)
    made, _ = programs_of(method, fit, bias, kind_of(site, method))
    program = jax.tree.map(lambda x: x[0], made)
    scale = seen.scale[0][None, :]
    W0 = jnp.ravel(leaf)[jnp.asarray(site.index[0])] * scale
    W, zero, code = solved(program, rounds)
    assert int(code) == nt.results.CONVERGED, (site.path, groups, epsilon)
    members = penalty.members(W.shape)
    kept = np.zeros(members.max() + 1)
    np.maximum.at(kept, members.ravel(), np.ravel(np.asarray(W) != 0))
    count = int((kept == 0).sum())
    sizes = np.zeros(len(kept))
    trained = np.asarray(W0 / scale)  # ranked as they stand in the leaf
    np.add.at(sizes, members.ravel(), np.ravel(trained) ** 2)
    stay = np.ones(len(kept), bool)
    stay[np.argsort(sizes, kind="stable")[:count]] = False
    ranked = W0 * stay[members]

    def error(W, b, rows=out):
        Z = jnp.einsum("ni,io->no", rows.X[0], W, precision="highest") + rows.t[0] + b
        want = rows.P[0]
        if site.response == "relu":
            Z, want = jnp.maximum(Z, 0), jnp.maximum(want, 0)
        return float(jnp.linalg.norm(Z - want) / jnp.linalg.norm(want))

    plain = dataclasses.replace(program, penalty=nt.L1(jnp.ones((1, 1))))
    zero = jnp.zeros_like(zero)

    def best(W):
        """As trained or refitted, whichever is better on rows of their own."""
        both = (W, zero), refit(plain, W, zero)
        return error(*min(both, key=lambda answer: error(*answer, choose)))

    ours = best(W0 * (kept > 0)[members])
    return count, len(kept), ours, error(ranked, zero), best(ranked)


if __name__ == "__main__":
    main()
