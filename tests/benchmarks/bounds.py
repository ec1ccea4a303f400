"""How loose the bounds are: what the theorems allow beside what is measured.

Prunes trained networks in both modes and prints a Markdown table: the output's measured
movement, the three bounds, and how many times it they are. Run ``PYTHONPATH=. python
tests/benchmarks/bounds.py``; LeNet and ResNet-20 need the data folder.
"""

import argparse
import importlib.util
import os
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import mnist
import numpy as np
import optax
from sklearn.datasets import load_digits

import nettrim_jax as nt

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Conv(nn.Module):
    """Two convolutions, pooling and a dense layer for 8 x 8 digits."""

    @nn.compact
    def __call__(self, x):
        """``[batch, 64]`` to ``[batch, 10]``."""
        x = nn.relu(nn.Conv(8, (3, 3))(x.reshape(-1, 8, 8, 1)))
        x = nn.relu(nn.Conv(16, (3, 3))(nn.max_pool(x, (2, 2), (2, 2))))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(10)(x.reshape(len(x), -1))


class Residual(nn.Module):
    """Two residual blocks of width 64 for 8 x 8 digits."""

    @nn.compact
    def __call__(self, x):
        """``[batch, 64]`` to ``[batch, 10]``."""
        for _ in range(2):
            x = x + nn.Dense(64)(nn.relu(nn.Dense(64)(x)))
        return nn.Dense(10)(nn.relu(x))


def digits(network, steps=500):
    """A network trained on all digits: params, network, images."""
    images, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
    params = network.init(jax.random.key(0), x)
    optimizer = optax.adamw(3e-3, weight_decay=1e-2)

    def loss(params):
        logits = network.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, network.apply, x[:512]


def lenet():
    """LeNet-300-100, 1024 images."""
    params, train, *_ = mnist.load()
    chosen = np.random.default_rng(0).permutation(len(train))[:1024]
    return params, mnist.apply_fn, train[chosen]


def resnet():
    """ResNet-20, 128 images."""
    path = ROOT / "examples" / "resnet_cifar.py"
    spec = importlib.util.spec_from_file_location("resnet_cifar", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    folder = pathlib.Path(os.environ.get("NETTRIM_DATA", ROOT / "../shared/data"))
    images, _ = example.images(folder, "train", 128)
    return example.variables(folder), example.ResNet20().apply, images


NETWORKS = {
    "LeNet-300-100": lenet,
    "convolutions": lambda: digits(Conv()),
    "residual MLP": lambda: digits(Residual()),
    "ResNet-20": resnet,
}


BOUNDS = ("tight_bound", "bound", "frobenius_bound")


def methods(arguments):
    """What prunes, by its name in the table."""
    found = {f"NetTrim({e})": nt.NetTrim(epsilon=e) for e in arguments.epsilon}
    return found | {
        f"{name}, {share:.0%}": method(nt.Sparsity(share))
        for name, method in (("LayerOBS", nt.LayerOBS), ("Magnitude", nt.Magnitude))
        for share in arguments.levels
    }


def main():
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--modes", nargs="+", default=["parallel", "cascade"])
    parser.add_argument("--epsilon", type=float, nargs="*", default=[0.02, 0.1, 0.3])
    parser.add_argument("--levels", type=float, nargs="*", default=[0.5, 0.8, 0.9])
    parser.add_argument("--rows", type=int, default=1024)
    arguments = parser.parse_args()
    print("| network | mode | method | moved | tighter | bound | Frobenius | times |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.networks:
        params, apply_fn, x = NETWORKS[name]()
        for mode in arguments.modes:
            for label, method in methods(arguments).items():
                report = nt.prune(
                    params,
                    apply_fn,
                    x,
                    method=method,
                    mode=mode,
                    rows=arguments.rows,
                    held_out=0,
                    bound=True,
                    on_failure="keep",
                    progress=False,
                ).report
                moved = float(report.deviation)
                bounds = [float(getattr(report, name)) for name in BOUNDS]
                sizes = " | ".join(f"{a:.3g}" for a in bounds)
                times = ", ".join(f"{a / moved:.2g}" for a in bounds)
                print(
                    f"| {name} | {mode} | {label} | {moved:.3f} | {sizes} | {times} |",
                    flush=True,
                )
                tight, bound, frobenius = bounds
                assert moved <= tight <= bound <= frobenius


if __name__ == "__main__":
    main()
