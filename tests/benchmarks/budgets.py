"""Budgets of whole networks: links removed, and whether the budget holds.

For each network and budget ``prune`` searches for an epsilon per layer; the value on
rows that steered nothing stands beside the budget. Beside it, one epsilon for all
layers, searched until the output moves as far on the same steering rows: or
at most a little farther. Run ``python tests/benchmarks/budgets.py``;
LeNet, ResNet-20, the network for CIFAR-10 and the transformer need the data folder, and
the transformer a file of ``shakespeare.py --params``.

``--kind pattern`` and ``--kind sparsest`` are the same budgets for ``Reconstruct`` and
for the better of both. With ``--count 1200`` the batch has so many rows, drawn anew in
each of ``--repeat`` runs, and the others are rows that were never seen.
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


class Cifar(nn.Module):
    """Three convolutions with batch normalisation, two dense layers: 47,664 weights."""

    @nn.compact
    def __call__(self, x, train=False):
        """``[batch, 32, 32, 3]`` to logits."""
        for width in (16, 32, 32):
            x = nn.Conv(width, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
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


def a_resnet(few=None):
    """The same of ResNet-20 and CIFAR-10; four times as many images as few rows."""
    file = data_file("resnet20_cifar10.npz")
    if file is None:
        raise SystemExit("needs resnet20_cifar10.npz; set NETTRIM_DATA to its folder")
    x, y = resnet_cifar.images(file.parent, "train", 4 * few if few else 1024)
    call = on_x(resnet_cifar.ResNet20().apply)
    batch = {"x": x, "y": y.astype("int32")}
    return resnet_cifar.variables(file.parent), call, batch, likelihood


def a_cifar(count=14000, epochs=2):
    """The same of a small network for CIFAR-10, at about 52 % on test images."""
    file = data_file("cifar10_jpeg.npz")
    if file is None:
        raise SystemExit("needs cifar10_jpeg.npz; set NETTRIM_DATA to its folder")
    x, y = resnet_cifar.images(file.parent, "train", count)
    y, model, optimizer = y.astype("int32"), Cifar(), optax.adam(1e-3)
    variables = model.init(jax.random.key(0), x[:1])
    state = optimizer.init(variables["params"])

    @jax.jit
    def step(variables, state, x, y):
        def loss(params):
            given = {**variables, "params": params}
            out, new = model.apply(given, x, train=True, mutable=["batch_stats"])
            each = optax.softmax_cross_entropy_with_integer_labels(out, y)
            return each.mean(), new

        params = variables["params"]
        grads, new = jax.grad(loss, has_aux=True)(params)
        moves, state = optimizer.update(grads, state)
        return {**new, "params": optax.apply_updates(params, moves)}, state

    rng = np.random.default_rng(0)
    for _ in range(epochs):
        for rows in rng.permutation(10000).reshape(-1, 100):
            variables, state = step(variables, state, x[rows], y[rows])
    return variables, on_x(model.apply), {"x": x, "y": y}, likelihood


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


KINDS = {
    "nettrim": lambda **budget: nt.NetTrim(refit=True, **budget),
    "pattern": lambda **budget: nt.Reconstruct(nt.Sparsity(), **budget),
    "sparsest": nt.Sparsest,
    "wanda": lambda **budget: nt.Wanda(nt.Sparsity(), **budget),
}


def drawn(batch, count, seed):
    """So many rows of a batch, and the others as one more batch."""
    order = np.random.default_rng(seed).permutation(len(batch["x"]))
    parts = order[:count], order[count:]
    return [jax.tree.map(lambda a, rows=rows: a[rows], batch) for rows in parts]


def lost(method, apply_fn, params, pruned, part):
    """What a budget measures, on one batch."""
    budget = method.shared
    if budget.metric is None:
        return deviation(jax.jit(apply_fn), params, pruned, [part])
    return float(budget.metric(params, part) - budget.metric(pruned, part))


def on_few_rows(name, methods, params, apply_fn, batch, args):
    """Print a line per budget and draw of the rows."""
    for method in methods:
        for seed in range(args.repeat):
            few, others = drawn(batch, args.count, seed)
            start = time.perf_counter()
            pruned = nt.prune(
                params, apply_fn, few, method=method, mode=args.mode, rows=args.rows
            )
            seconds, report = time.perf_counter() - start, pruned.report
            fresh = lost(method, apply_fn, params, pruned.params, others)
            print(
                f"| {name} | {report.measure} {float(report.budget):g} "
                f"| {float(report.checked):.4f} | {fresh:.4f} "
                f"| {100 * float(report.sparsity):.1f} % "
                f"| {float(report.margin.size):.4f} | {seconds:.0f} |",
                flush=True,
            )


def main():
    """Print one Markdown table."""
    networks = {
        "digits": (lambda: a_digits_net(digits_example.MLP()), [0.05, 0.1], [0.02]),
        "conv": (lambda: a_digits_net(Conv()), [0.05, 0.1], [0.02]),
        "lenet": (a_lenet, [0.05, 0.1], [0.005]),
        "transformer": (lambda: a_transformer(args.params), [0.05, 0.1], [0.05]),
        "resnet": (lambda: a_resnet(args.count), [0.05, 0.1], [0.05]),
        "cifar": (a_cifar, [0.05], []),
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(networks))
    parser.add_argument("--params", type=pathlib.Path, default="shakespeare.msgpack")
    parser.add_argument("--mode", default="parallel")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--alone", action="store_true", help="no common epsilon")
    parser.add_argument("--deviations", type=float, nargs="*", help="not its own ones")
    parser.add_argument("--drops", type=float, nargs="*")
    parser.add_argument("--kind", choices=list(KINDS), default="nettrim")
    parser.add_argument("--count", type=int, help="rows of the batch")
    parser.add_argument("--repeat", type=int, default=1, help="draws of these rows")
    args = parser.parse_args()
    last = "margin" if args.count else "one epsilon"
    fresh = "on fresh rows | " if args.count else ""
    print(f"| network | budget | on check rows | {fresh}removed | {last} | seconds |")
    print("| --- | --- | --- | --- | --- | --- |" + " --- |" * bool(args.count))
    for name in args.networks:
        make, deviations, drops = networks[name]
        params, apply_fn, batch, metric = make()
        turns = args.mode == "parallel"
        dealt = splits.deal(batch, None, jax.random.key(0), turns=turns)
        make_method = KINDS[args.kind]
        if args.deviations is not None:
            deviations = args.deviations
        if args.drops is not None:
            drops = args.drops
        methods = [make_method(deviation=d) for d in deviations]
        methods += [make_method(drop=d, metric=metric(apply_fn)) for d in drops]
        if args.count:
            on_few_rows(name, methods, params, apply_fn, batch, args)
            continue
        for method in methods:
            start = time.perf_counter()
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
            off = float(report.search[-1].value)
            if report.measure == "drop":
                off = deviation(jax.jit(apply_fn), params, pruned.params, dealt.check)
            other = None
            if args.kind == "nettrim" and not args.alone:
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
