"""Budgets of whole networks: links removed, and whether the budget holds.

For each network and budget ``prune`` searches for an epsilon per layer; the value on
rows that steered nothing stands beside the budget. Beside it, one epsilon for all
layers, searched until the output moves as far on the same steering rows: or
at most a little farther. Run ``python tests/benchmarks/budgets.py``;
LeNet, ResNet-20 and the transformer need the data folder, and the transformer a file
of ``shakespeare.py --params``.
"""

import argparse
import math
import pathlib
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import shakespeare
from flax import serialization
from mnist import apply_fn as lenet
from mnist import load
from problems import data_file

import nettrim_jax as nt
from nettrim_jax.calibration import splits

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples"))
import digits as digits_example  # noqa: E402
import resnet_cifar  # noqa: E402


class Conv(nn.Module):
    """Two convolutions, two dense layers."""

    @nn.compact
    def __call__(self, x):
        """``[batch, 64]`` to logits."""
        x = nn.relu(nn.Conv(16, (3, 3))(x.reshape(-1, 8, 8, 1)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


def accuracy(apply_fn):
    """Share of right answers of a network on a batch ``{"x", "y"}``."""

    @jax.jit
    def metric(params, batch):
        answers = jnp.argmax(apply_fn(params, batch), axis=-1)
        return jnp.mean((answers == batch["y"]).astype(jnp.float32))

    return metric


def likelihood(apply_fn):
    """Mean log-likelihood of the right answers."""

    @jax.jit
    def metric(params, batch):
        losses = optax.softmax_cross_entropy_with_integer_labels(
            apply_fn(params, batch), batch["y"]
        )
        return -losses.mean()

    return metric


def on_x(call):
    """A network of the images in a batch ``{"x", "y"}``."""
    return lambda params, batch: call(params, batch["x"])


def a_digits_net(model):
    """Params, network, batch and metrics of a network for scikit-learn's digits."""
    (x, y), _ = digits_example.data()
    params = digits_example.train(model, x, y)
    return params, on_x(model.apply), {"x": x, "y": y}, likelihood


def a_lenet(count=4096):
    """The same of LeNet-300-100 and MNIST."""
    params, train, *_ = load()
    labels = np.load(data_file("mnist.npz"))["y_train"].astype("int32")
    pick = np.random.default_rng(0).permutation(len(train))[:count]
    return params, on_x(lenet), {"x": train[pick], "y": labels[pick]}, accuracy


def a_resnet(count=1024):
    """The same of ResNet-20 and CIFAR-10."""
    file = data_file("resnet20_cifar10.npz")
    if file is None:
        raise SystemExit("needs resnet20_cifar10.npz; set NETTRIM_DATA to its folder")
    x, y = resnet_cifar.images(file.parent, "train", count)
    call = on_x(resnet_cifar.ResNet20().apply)
    batch = {"x": x, "y": y.astype("int32")}
    return resnet_cifar.variables(file.parent), call, batch, likelihood


def a_transformer(file, count=512):
    """The same of the transformer and tinyshakespeare."""
    text, _, letters = shakespeare.load()
    network = shakespeare.Transformer(letters)
    pieces = shakespeare.windows(text, count, 10**6)
    params = network.init(jax.random.key(0), pieces[:1, :-1])["params"]
    if file.exists():
        params = serialization.from_bytes(params, file.read_bytes())
    else:
        params = shakespeare.train(network, text, 1000)
        file.write_bytes(serialization.to_bytes(params))
    call = on_x(lambda params, x: network.apply({"params": params}, x))
    return params, call, {"x": pieces[:, :-1], "y": pieces[:, 1:]}, likelihood


def deviation(apply_fn, params, pruned, parts):
    """Relative change of the output over all parts."""
    off = size = 0.0
    for part in parts:
        old, new = (apply_fn(p, part) for p in (params, pruned))
        off, size = (
            off + float(jnp.sum((new - old) ** 2)),
            size + float(jnp.sum(old**2)),
        )
    return math.sqrt(off / size)


def common_epsilon(params, apply_fn, dealt, report, wanted, rows):
    """One epsilon for all layers that moves the output at least as far, narrowly."""
    apply_fn = jax.jit(apply_fn)
    found = [float(e) for e in report.search[-1].epsilons if e > 0]
    epsilon, tried, best = math.exp(np.mean(np.log(found))), [], None
    for _ in range(6):
        method = nt.NetTrim(epsilon=epsilon, refit=True)
        pruned = nt.prune(
            params, apply_fn, dealt.solve, method=method, rows=rows, on_failure="keep"
        )
        off = deviation(apply_fn, params, pruned.params, dealt.steer)
        if off >= wanted and (best is None or off < best[1]):
            best = 100 * float(pruned.report.sparsity), off
        if best is not None and best[1] <= 1.02 * wanted:
            break
        tried.append((math.log(epsilon), math.log(off / (1.01 * wanted))))
        tried = sorted(tried, key=lambda pair: abs(pair[1]))[:2]
        slope = 1.0
        if len(tried) > 1:
            (x, y), (x2, y2) = tried
            slope = min(max((y - y2) / (x - x2), 0.5), 2.0)
        epsilon = min(math.exp(tried[0][0] - tried[0][1] / slope), 1.0)
    return best


def main():
    """Print one Markdown table."""
    networks = {
        "digits": (lambda: a_digits_net(digits_example.MLP()), [0.05, 0.1], [0.02]),
        "conv": (lambda: a_digits_net(Conv()), [0.05, 0.1], [0.02]),
        "lenet": (a_lenet, [0.05, 0.1], [0.005]),
        "transformer": (lambda: a_transformer(args.params), [0.05, 0.1], [0.05]),
        "resnet": (a_resnet, [0.05, 0.1], [0.05]),
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(networks))
    parser.add_argument("--params", type=pathlib.Path, default="shakespeare.msgpack")
    parser.add_argument("--mode", default="parallel")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--alone", action="store_true", help="no common epsilon")
    parser.add_argument("--only", help="deviation or drop")
    args = parser.parse_args()
    print("| network | budget | on check rows | removed | one epsilon | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in args.networks:
        make, deviations, drops = networks[name]
        params, apply_fn, batch, metric = make()
        dealt = splits.deal(batch, None, jax.random.key(0))
        methods = [nt.NetTrim(deviation=d, refit=True) for d in deviations]
        methods += [
            nt.NetTrim(drop=d, metric=metric(apply_fn), refit=True) for d in drops
        ]
        for method in methods:
            start = time.perf_counter()
            if args.only and args.only != method.shared.measure:
                continue
            pruned = nt.prune(
                params,
                apply_fn,
                batch,
                method=method,
                mode=args.mode,
                rows=args.rows,
            )
            seconds = time.perf_counter() - start
            report = pruned.report
            removed = 100 * float(report.sparsity)
            off = deviation(jax.jit(apply_fn), params, pruned.params, dealt.steer)
            other = None
            if not args.alone:
                other = common_epsilon(params, apply_fn, dealt, report, off, args.rows)
            shown = "-" if other is None else f"{other[0]:.1f} % ({other[1]:.4f})"
            print(
                f"| {name} | {report.measure} {float(report.budget):g} "
                f"| {float(report.checked):.4f} | {removed:.1f} % ({off:.4f}) "
                f"| {shown} | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
