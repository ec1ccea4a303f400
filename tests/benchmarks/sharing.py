"""Weights that share few values: k-means, compensation, values fitted, fine-tuning.

LeNet-300-100 on MNIST and ResNet-20 on CIFAR-10, each pruned by ``Reconstruct`` in
cascade mode; then the weights of every layer share values, in cascade mode and without
labels. ``linear`` is k-means in which weights count alike; the others count weights by
their inputs. ``bytes`` chooses the bits of each layer for a file of so many bytes, by
default as many as that of ``share`` takes. ``tuned`` makes steps with labels in which
values stay shared. Settings were fixed on training images that no run has. Needs the
data folder. From the root:

    python tests/benchmarks/sharing.py lenet --levels 0.9 0.95 --bits 3 5 --on test
    python tests/benchmarks/sharing.py resnet --levels 0.7 --bits 5 --on test
"""

import argparse
import os
import pathlib
import tempfile
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
from recover import BESIDE, NETWORKS, data_file, resnet_cifar

import nettrim_jax as nt
from nettrim_jax.methods.centroids import chosen, k_means, nearest
from nettrim_jax.methods.codebook import Codebook

WAYS = ["pruned", "linear", "k-means", "k-means, fit", "compensated", "share", "bytes"]
WAYS += ["tuned"]
SIZE = 64  # samples of a step


def linear(params, listing, bits):
    """K-means from values at equal distances, in which all weights count alike."""
    paths = {site.path for site in listing.sites}

    def one(keys, leaf):
        if jax.tree_util.keystr(keys, simple=True, separator="/") not in paths:
            return leaf
        W = leaf.ravel()
        mass = (W != 0).astype(W.dtype)
        start = jnp.linspace(W.min(), W.max(), 2**bits - 1, dtype=W.dtype)
        values = jax.jit(k_means)(W, mass, start)[None]
        new = chosen(values, nearest(values, W[:, None]))[:, 0]
        return jnp.where(W != 0, new, 0).reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(one, params)


def entropy(counts):
    """Bits that a sequence with these counts takes at least."""
    counts = np.asarray(counts, float)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def stored(params, listing):
    """Bytes: of a file where the library writes one, else by the entropy of codes."""
    if hasattr(nt, "save"):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.safetensors"
            nt.save(path, params)
            return os.path.getsize(path)
    paths, bits = {site.path for site in listing.sites}, 0.0
    for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        leaf = np.asarray(leaf)
        if jax.tree_util.keystr(keys, simple=True, separator="/") not in paths:
            bits += 8 * leaf.nbytes
            continue
        left = leaf[leaf != 0]
        values, counts = np.unique(left, return_counts=True)
        bits += entropy([left.size, leaf.size - left.size])  # where weights are
        codes = entropy(counts) + 8 * values.nbytes
        bits += min(codes, 8 * left.nbytes)
    return bits / 8


def labels_of(network, seed):
    """The labels of the rows to recover with, in their order."""
    if network == "lenet":
        mine = np.load(data_file("mnist.npz"))["y_train"]
        return mine[np.random.default_rng(seed).permutation(len(mine) - BESIDE)]
    folder = data_file("resnet20_cifar10.npz").parent
    mine = resnet_cifar.images(folder, "train", 12000 + BESIDE)[1]
    return mine[np.random.default_rng(seed).permutation(12000)[:8192]]


def tuned(shared, call, x, labels, *, steps, rate, seed):
    """Steps with labels in which values stay shared."""
    adam = optax.adam(optax.cosine_decay_schedule(rate, steps))
    optimizer = nt.keep_shared(adam, shared)

    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(
            call(params, x), y
        ).mean()

    @jax.jit
    def step(params, state, x, y):
        grads = jax.grad(loss)(params, x, y)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = shared.params, optimizer.init(shared.params)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        rows = rng.integers(len(labels), size=SIZE)
        params, state = step(params, state, x[rows], labels[rows])
    return params


def main():
    """Prints one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=["lenet", "resnet"])
    parser.add_argument("--on", choices=["beside", "test"], default="beside")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.95])
    parser.add_argument("--bits", type=int, nargs="+", default=[5])
    parser.add_argument("--per", default="leaf")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--bytes", type=int, help="of the file of `bytes`")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--recover", type=int, default=0, help="steps before sharing")
    parser.add_argument("--recover-rate", type=float, default=1e-3)
    parser.add_argument("--tune", type=int, default=2000, help="steps with labels")
    parser.add_argument("--tune-rate", type=float, default=1e-3)
    parser.add_argument("--fewer", help="expression of layers with one bit less")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    print("| zeros | bits | seed | way | accuracy | moved | times smaller | CPU s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for seed in range(args.seeds):
        made = NETWORKS[args.network](args.on, seed)
        params, call, few, many, levels, more, score = made
        whole = sum(a.nbytes for a in jax.tree.leaves(params))
        listing = nt.sites(params, call, few)
        for level in args.levels:
            method = {
                name: nt.Sparsity(min(level, most)) for name, most in levels.items()
            }
            method[".*"] = nt.Sparsity(level)
            pruned = nt.prune(
                *(params, call, few), method=method, mode="cascade", key=seed, **more
            )
            if args.recover:
                schedule = optax.cosine_decay_schedule(args.recover_rate, args.recover)
                steps = {"steps": args.recover, "size": SIZE, "key": seed}
                steps["optimizer"] = optax.adam(schedule)
                pruned = nt.recover(pruned, params, call, many, **steps)
            before = np.asarray(call(pruned.params, few))
            for bits in args.bits:
                given, shared = pruned.params, None
                few_values = {"mode": "cascade", "held_out": 0.0, "key": seed, **more}
                bits_of = {"bits": bits, "per": args.per}
                mixed = {args.fewer: bits - 1, ".*": bits} if args.fewer else bits
                for way in args.ways:
                    began = time.process_time()
                    if way == "pruned":
                        new = given
                    elif way == "linear":
                        new = linear(given, listing, bits)
                    elif way in ("share", "bytes", "tuned"):
                        mine = pruned, params, call, few
                        widths = {**bits_of, "bits": mixed}
                        shared = shared or nt.share(*mine, **widths, **few_values)
                        new = shared.params
                        if way == "bytes":
                            most = args.bytes or stored(new, listing)
                            few_bytes = {"bytes": most, "per": args.per}
                            found = nt.share(*mine, **few_bytes, **few_values)
                            new = found.params
                            chosen_bits = [site.bits for site in found.report.sites]
                            way = f"bytes: {chosen_bits}"
                        elif way == "tuned":
                            own = labels_of(args.network, seed)
                            steps = {"steps": args.tune, "rate": args.tune_rate}
                            new = tuned(shared, call, many, own, seed=seed, **steps)
                    else:
                        plain = way == "k-means"
                        book = Codebook(
                            **bits_of,
                            bias="fixed" if plain else "free",
                            compensate=way == "compensated",
                            fit=way == "k-means, fit",
                        )
                        new = nt.prune(
                            *(given, call, few), method=book, **few_values
                        ).params
                    took = time.process_time() - began
                    after = np.asarray(call(new, few))
                    moved = np.linalg.norm(after - before) / np.linalg.norm(before)
                    times = whole / stored(new, listing)
                    print(
                        f"| {level:.0%} | {bits} | {seed} | {way} | {score(new)} "
                        f"| {moved:.4f} | {times:.1f} | {took:.0f} |",
                        flush=True,
                    )
    print(f"\nTrained: {score(params)} ({args.on}).")


if __name__ == "__main__":
    main()
