"""Accuracy back without labels: ``recover`` after a pruning, by what it matches.

LeNet-300-100 on MNIST, ResNet-20 on CIFAR-10, a transformer of characters and the
sentence encoder MiniLM, each pruned in cascade mode; then steps on unlabelled training
data. Settings were fixed on training samples that no run has. Needs the data folder.
From the root:

    python tests/benchmarks/recover.py lenet --levels 0.9 0.95 0.98 --on test
    python tests/benchmarks/recover.py resnet --levels 0.9 0.95 --on test
    python tests/benchmarks/recover.py transformer --levels 0.8 --on test
    python tests/benchmarks/recover.py minilm --levels 0.7 --on test
"""

import argparse
import functools
import pathlib
import sys
import time
import warnings

import cold_networks
import jax
import numpy as np
import optax
import race_cases
import shakespeare
from mnist import apply_fn as lenet
from mnist import load
from problems import data_file

import nettrim_jax as nt

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples"))
import resnet_cifar  # noqa: E402

BESIDE = 4000  # training samples that no run has


def accuracy(network, params, data):
    """The share of images that are told right."""
    x, y = data
    parts = np.array_split(np.arange(len(y)), -(-len(y) // 1000))
    hits = [np.asarray(network(params, x[p])).argmax(1) == y[p] for p in parts]
    return f"{100 * float(np.concatenate(hits).mean()):.2f}"


def a_lenet(on, seed):
    """Params, function, rows to prune with, rows to recover with, and a score."""
    params, train, test, labels = load()
    mine = np.load(data_file("mnist.npz"))["y_train"]
    beside = (test, labels) if on == "test" else (train[-BESIDE:], mine[-BESIDE:])
    order = np.random.default_rng(seed).permutation(len(train) - BESIDE)
    network = jax.jit(lenet)
    return (
        *(params, lenet, train[order[:4096]], train[order], {"Dense_2": 0.7}),
        {"rows": 4096},
        lambda params: accuracy(network, params, beside),
    )


def a_resnet(on, seed, images=8192):
    """The same of ResNet-20."""
    folder = data_file("resnet20_cifar10.npz").parent
    params, call = resnet_cifar.variables(folder), resnet_cifar.ResNet20().apply
    x, y = resnet_cifar.images(folder, "train", 12000 + BESIDE)
    beside = x[-BESIDE:], y[-BESIDE:]
    if on == "test":
        beside = resnet_cifar.images(folder, "test", 10000)
    order = np.random.default_rng(seed).permutation(12000)
    network = jax.jit(call)
    return (
        *(params, call, x[order[:1024]], x[order[:images]], {"linear": 0.7}),
        {"rows": 4096},
        lambda params: accuracy(network, params, beside),
    )


def a_transformer(on, seed):
    """The same of the race's transformer: cross-entropy of the next letter, in nats."""
    case = race_cases.transformer()
    text, later, letters = shakespeare.load()
    text, beside = np.split(text, [len(text) * 9 // 10])
    if on == "test":
        beside = later
    loss = functools.partial(shakespeare.loss_of, shakespeare.Transformer(letters))
    loss, pieces = jax.jit(loss), shakespeare.windows(beside, 512, 0)
    few, many = (
        shakespeare.windows(text, count, 10**6 + seed)[:, :-1] for count in (256, 8192)
    )
    return (
        *(case.params, case.apply_fn, few, many, {"head": 0.7}, {"rows": 4096}),
        lambda params: f"{float(loss(params, pieces)):.3f}",
    )


def a_minilm(on, seed):
    """The same of the sentence encoder: cosine, and rank correlation of pairs."""
    from scipy.stats import spearmanr

    params, call, _ = cold_networks.minilm(1)
    file = np.load(data_file("minilm_l6.npz"))
    ids, mask = file["ids_train"], file["mask_train"]
    order = np.random.default_rng(seed).permutation(len(ids) - 256)
    beside = ids[-256:], mask[-256:]
    if on == "test":
        beside = file["ids_test"][:256], file["mask_test"][:256]
    network = jax.jit(call)
    trained = np.asarray(network(params, beside))
    upper = np.triu_indices(len(trained), 1)

    def score(params):
        new = np.asarray(network(params, beside))
        pairs = [(a @ a.T)[upper] for a in (new, trained)]
        return f"{(new * trained).sum(1).mean():.3f} / {spearmanr(*pairs)[0]:.3f}"

    few, many = ((ids[rows], mask[rows]) for rows in (order[:128], order))
    more = {"weights": few[1], "exclude": "embed"}
    return params, call, few, many, {}, more, score


NETWORKS = {
    "lenet": a_lenet,
    "resnet": a_resnet,
    "transformer": a_transformer,
    "minilm": a_minilm,
}
SETTINGS = {  # steps, samples of a step
    "lenet": (1000, 64),
    "resnet": (1000, 64),
    "transformer": (1000, 64),
    "minilm": (400, 48),
}


def main():
    """Prints one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=sorted(NETWORKS))
    parser.add_argument("--on", choices=["beside", "test"], default="beside")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.9])
    parser.add_argument("--match", nargs="+", default=["output", "layers", "both"])
    parser.add_argument("--rates", type=float, nargs="+", help="else the default")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    steps, size = SETTINGS[args.network]
    steps = args.steps or steps
    print("| zeros | seed | match | rate | before | after | deviation | CPU s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for seed in range(args.seeds):
        made = NETWORKS[args.network](args.on, seed)
        params, call, few, many, levels, more, score = made
        for level in args.levels:
            method = {
                name: nt.Sparsity(min(level, most)) for name, most in levels.items()
            }
            method[".*"] = nt.Sparsity(level)
            pruned = nt.prune(
                *(params, call, few), method=method, mode="cascade", key=seed, **more
            )
            before = score(pruned.params)
            for match in args.match:
                for rate in args.rates or [None]:
                    began = time.process_time()
                    adam = None
                    if rate is not None:
                        adam = optax.adam(optax.cosine_decay_schedule(rate, steps))
                    done = nt.recover(
                        *(pruned, params, call, many),
                        **{"steps": steps, "size": size, "match": match},
                        optimizer=adam,
                        key=seed,
                    )
                    took = time.process_time() - began
                    report = done.report
                    print(
                        f"| {level:.0%} | {seed} | {match} | {rate or 'default'} "
                        f"| {before} | {score(done.params)} "
                        f"| {report.before:.3f} -> {report.deviation:.3f} "
                        f"| {took:.0f} |",
                        flush=True,
                    )
    print(f"\nTrained: {score(params)} ({args.on}); {steps} steps of {size}.")


if __name__ == "__main__":
    main()
