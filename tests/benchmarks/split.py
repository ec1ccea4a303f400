"""One share for the whole network against the same share in every layer.

Both are pruned to the same number of weights by the same method: ``scope="network"``
chooses each layer's number by what the output moves, with no label. Prints accuracy on
test images, or nats a letter on later text. Run ``python tests/benchmarks/split.py``;
needs the data folder, and the transformer a file of ``shakespeare.py --params``.
"""

import argparse
import functools
import itertools
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import mnist
import numpy as np
import shakespeare
from flax import serialization
from problems import data_file

import nettrim_jax as nt

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples"))
import resnet_cifar  # noqa: E402


def lenet(args):
    """Params, network, batch and what is asked of it on other data."""
    params, train, test, labels = mnist.load()
    x = train[np.random.default_rng(0).permutation(len(train))[: args.images]]

    def accuracy(params):
        right = jnp.argmax(mnist.apply_fn(params, test), axis=1) == labels
        return 100 * float(right.mean())

    return params, mnist.apply_fn, x, accuracy


def resnet(args):
    """The same of ResNet-20 and CIFAR-10."""
    file = data_file("resnet20_cifar10.npz")
    if file is None:
        raise SystemExit("needs resnet20_cifar10.npz; set NETTRIM_DATA to its folder")
    params, network = resnet_cifar.variables(file.parent), resnet_cifar.ResNet20()
    x, _ = resnet_cifar.images(file.parent, "train", 1024)
    test, labels = resnet_cifar.images(file.parent, "test", args.tests)
    call = jax.jit(network.apply)

    def accuracy(params):
        parts = np.split(test, range(500, len(test), 500))
        answers = [np.argmax(call(params, part), 1) for part in parts]
        return 100 * float(np.mean(np.concatenate(answers) == labels))

    return params, network.apply, x, accuracy


def transformer(args):
    """The same of the transformer and tinyshakespeare, with its loss."""
    text, later, letters = shakespeare.load()
    network = shakespeare.Transformer(letters)
    pieces, test = (
        shakespeare.windows(text, 512, 10**6)[:, :-1],
        shakespeare.windows(later, 512, 0),
    )
    params = network.init(jax.random.key(0), pieces[:1])["params"]
    if not args.params.exists():
        raise SystemExit(f"no {args.params}; make it by shakespeare.py --params")
    params = serialization.from_bytes(params, args.params.read_bytes())
    loss = jax.jit(functools.partial(shakespeare.loss_of, network))

    def apply_fn(params, pieces):
        return network.apply({"params": params}, pieces)

    return params, apply_fn, pieces, lambda params: float(loss(params, test))


NETWORKS = {
    "lenet": (lenet, "{:.2f}", [0.9, 0.95, 0.98]),
    "resnet": (resnet, "{:.1f}", [0.5, 0.7, 0.8]),
    "transformer": (transformer, "{:.3f}", [0.5, 0.7, 0.8]),
}


def parser(doc, modes):
    """Which of the networks, and how much of their data."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--modes", nargs="+", default=modes)
    parser.add_argument("--levels", type=float, nargs="+")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--images", type=int, default=4096, help="of MNIST")
    parser.add_argument("--tests", type=int, default=2000, help="images of CIFAR-10")
    parser.add_argument("--params", type=pathlib.Path, default="shakespeare.msgpack")
    return parser


def main():
    """Print one Markdown table."""
    options = parser(__doc__, ["parallel"])
    options.add_argument("--methods", nargs="+", default=["Reconstruct"])
    args = options.parse_args()
    columns = "network", "method", "mode", "removed", "same share", "network scope"
    columns += "removed per layer", "deviation, same and network scope", "seconds"
    print(f"| {' | '.join(columns)} |")
    print(f"{'| --- ' * len(columns)}|")
    for name in args.networks:
        load, form, levels = NETWORKS[name]
        params, apply_fn, batch, measure = load(args)
        print(f"| {name} | | | 0 | {form.format(measure(params))} | | | | |")
        for method, mode, level in itertools.product(
            args.methods, args.modes, args.levels or levels
        ):
            found, seconds = [], []
            for scope in ("layer", "network"):
                make = getattr(nt, method)
                start = time.perf_counter()
                pruned = nt.prune(
                    params,
                    apply_fn,
                    batch,
                    method=make(nt.Sparsity(level, scope=scope)),
                    mode=mode,
                    rows=args.rows,
                )
                found.append(jax.block_until_ready(pruned))
                seconds.append(time.perf_counter() - start)
            same, ours = (form.format(measure(pruned.params)) for pruned in found)
            report = found[1].report
            shares = [100 * float(site.sparsity) for site in report.sites]
            moved = "-"
            if report.split is not None:
                split = report.split.equal, report.split.deviation
                moved = ", ".join(f"{float(a):.3f}" for a in split)
            print(
                f"| {name} | {method} | {mode} "
                f"| {100 * float(report.sparsity):.1f} % | {same} | {ours} "
                f"| {min(shares):.0f} to {max(shares):.0f} % | {moved} "
                f"| {seconds[0]:.0f}, {seconds[1]:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
