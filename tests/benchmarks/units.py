"""Accuracy without a share of the units: every criterion, with the same refit.

LeNet-300-100 loses as large a share of both hidden layers, ResNet-20 of the hidden
channels of all blocks. No labels are used but by ``Taylor``, and nothing is retrained.
Every draw takes other training images; the same ones for all criteria. Settings were
fixed on training images that no draw has. Needs the data folder. From the root:

    python tests/benchmarks/units.py lenet --draws 3 --on test --no-refit Joint L1
    python tests/benchmarks/units.py resnet --draws 3 --on test --no-refit Joint L1 \\
        --network-scope
"""

import argparse
import json
import pathlib
import sys
import time
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from mnist import apply_fn as lenet
from mnist import load
from problems import data_file

import nettrim_jax as nt

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples"))
import resnet_cifar  # noqa: E402

LAYERS = {"lenet": {".*": True}, "resnet": {r"layer._./conv1": True, ".*": None}}
ROWS = {"lenet": 8192, "resnet": 4096}
BESIDE = 10000  # training images that no draw has


def on_x(call):
    """A function of params and of images with labels."""
    return lambda params, batch: call(params, batch[0])


def a_lenet(on):
    """Params, function, training images with labels, and those to measure on."""
    params, train, test, labels = load()
    mine = np.load(data_file("mnist.npz"))["y_train"]
    rest = train[:-BESIDE], mine[:-BESIDE]
    beside = train[-BESIDE:], mine[-BESIDE:]
    return params, lenet, rest, (test, labels) if on == "test" else beside


def a_resnet(on):
    """The same of ResNet-20."""
    folder = data_file("resnet20_cifar10.npz").parent
    params, call = resnet_cifar.variables(folder), resnet_cifar.ResNet20().apply
    most = 12000
    x, y = resnet_cifar.images(folder, "train", most)
    beside = x[-4000:], y[-4000:]
    if on == "test":
        beside = resnet_cifar.images(folder, "test", 10000)
    return params, call, (x[:-4000], y[:-4000]), beside


def recalibrated(variables, x):
    """ResNet-20 with the statistics of these images in all batch normalisations."""

    def train(call, args, kwargs, context):
        if isinstance(context.module, nn.BatchNorm):
            object.__setattr__(context.module, "momentum", 0.0)
            kwargs["use_running_average"] = False
        return call(*args, **kwargs)

    with nn.intercept_methods(train):
        _, new = resnet_cifar.ResNet20().apply(variables, x, mutable=["batch_stats"])
    return {**variables, **new}


def criteria(call):
    """Every criterion by its name."""

    def loss(params, batch):
        logits = call(params, batch[0])
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return each.mean()

    return {
        "Joint": nt.Joint(),
        "L1": nt.L1(),
        "L2": nt.L2(),
        "MeanActivation": nt.MeanActivation(),
        "NonZeros": nt.NonZeros(),
        "APoZ": nt.APoZ(),
        "Taylor": nt.Taylor(loss),
        "Random": nt.Random(),
    }


def accuracy(network, params, data):
    """The share of images that are told right."""
    x, y = data
    parts = np.array_split(np.arange(len(y)), -(-len(y) // 1000))
    hits = [np.asarray(network(params, x[p])).argmax(1) == y[p] for p in parts]
    return 100 * float(np.concatenate(hits).mean())


def main():
    """Prints one Markdown table, and a line per measurement to stderr."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=sorted(LAYERS))
    parser.add_argument("--on", choices=["beside", "test"], default="beside")
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--count", type=int, help="images of a draw")
    parser.add_argument("--shares", type=float, nargs="+")
    parser.add_argument("--criteria", nargs="+")
    parser.add_argument("--no-refit", nargs="+", default=[], help="these, without, too")
    parser.add_argument("--network-scope", action="store_true", help="Joint, beside")
    parser.add_argument(
        "--out", type=pathlib.Path, help="a JSON file, to be taken up where it stopped"
    )
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    made = a_lenet if args.network == "lenet" else a_resnet
    params, call, train, beside = made(args.on)
    network = jax.jit(call)
    whole = {"lenet": [0.25, 0.5, 0.75, 0.9], "resnet": [0.25, 0.5, 0.75]}
    shares = args.shares or whole[args.network]
    rules = criteria(call)
    rules = {name: rules[name] for name in args.criteria or rules}
    kinds = [(name, by, {}) for name, by in rules.items()]
    bare = {"refit": False}
    kinds += [(f"{n}, no refit", rules[n], bare) for n in args.no_refit]
    if args.network == "resnet":
        kinds += [(f"{n}, only batch norm", rules[n], bare) for n in args.no_refit]
    if args.network_scope:
        scope = {"scope": "network", "of": "multiply-adds"}
        kinds.append(("Joint, network", nt.Joint(), scope))
    count = args.count or {"lenet": 8192, "resnet": 2048}[args.network]
    found = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    for draw in range(args.draws):
        pick = np.random.default_rng(draw).permutation(len(train[1]))[:count]
        batch = jnp.asarray(train[0][pick]), jnp.asarray(train[1][pick])
        for share in shares:
            for name, by, more in kinds:
                mine = found.setdefault(name, {}).setdefault(str(share), {})
                if str(draw) in mine:
                    continue
                began = time.process_time()
                level = share
                if more.get("scope") == "network":
                    # as many multiply-adds as Joint leaves of each block
                    level = 1 - found["Joint"][str(share)][str(draw)]["adds"]
                method = nt.Units(level, by=by, **more)
                layers = {k: v and method for k, v in LAYERS[args.network].items()}
                pruned = nt.prune(
                    *(params, on_x(call), batch),
                    method=layers,
                    mode="cascade",
                    rows=ROWS[args.network],
                    held_out=0.0,
                    key=draw,
                )
                new = pruned.params
                if name.endswith("batch norm"):
                    new = recalibrated(new, batch[0])
                score = accuracy(network, new, beside)
                left = nt.shrink(pruned, on_x(call), batch).report.multiply_adds
                mine[str(draw)] = {"score": score, "adds": left.after / left.before}
                took = time.process_time() - began
                print(
                    f"draw {draw} {share} {name}: {score:.2f} ({took:.0f} CPU s)",
                    file=sys.stderr,
                    flush=True,
                )
                if args.out:
                    args.out.write_text(json.dumps(found, indent=1))
    print(f"full: {accuracy(network, params, beside):.2f} % ({args.on})")
    print("| criterion |", " | ".join(f"{s:.0%} removed" for s in shares), "|")
    print("| --- |", " | ".join("---" for _ in shares), "|")
    scores = {
        name: [
            [each[str(s)][str(d)]["score"] for d in range(args.draws)] for s in shares
        ]
        for name, each in ((name, found[name]) for name, _, _ in kinds)
    }
    for name, each in scores.items():
        cells = [f"{np.mean(draws):.2f}" for draws in each]
        print(f"| {name} |", " | ".join(cells), "|")
    if "Joint" in scores and args.draws > 1:
        print("Joint minus the other, with its standard error, over draws:")
        for name in [n for n in scores if n != "Joint"]:
            cells = []
            for ours, others in zip(scores["Joint"], scores[name], strict=True):
                d = np.subtract(ours, others)
                cells.append(f"{d.mean():+.2f} ± {d.std(ddof=1) / len(d) ** 0.5:.2f}")
            print(f"| {name} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
