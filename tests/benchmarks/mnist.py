"""LeNet-300-100 on MNIST: accuracy against the share of links removed.

Prunes the trained network for a range of epsilon, with no label and no retraining,
and beside it removes the smallest weights of each layer to the same numbers of
non-zeros. Run ``python tests/benchmarks/mnist.py``; needs the data folder.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from common import magnitude
from problems import data_file

import nettrim_jax as nt

PUBLISHED = """\
Published, with retraining (Aghasi et al., 2017; 784-300-1000-100-10): 84.5 % of the
links removed at 98.55 % accuracy, 88 % at 98.45, 91 % at 98.31, 93.5 % at 98.07, 97 %
at 96.52. No retraining here, so these are a reference, not a rival."""


def apply_fn(params, x):
    """The network: two ReLU layers and the logits."""
    for i in range(3):
        layer = params[f"Dense_{i}"]
        x = x @ layer["kernel"] + layer["bias"]
        x = jax.nn.relu(x) if i < 2 else x
    return x


def load():
    """Trained params, training images, test images and labels."""
    if data_file("lenet300_mnist.npz") is None or data_file("mnist.npz") is None:
        raise SystemExit("needs lenet300_mnist.npz and mnist.npz; set NETTRIM_DATA")
    flat = np.load(data_file("lenet300_mnist.npz"))
    params: dict = {}
    for name in flat.files:
        layer, leaf = name.split("/")
        params.setdefault(layer, {})[leaf] = jnp.asarray(flat[name])
    mnist = np.load(data_file("mnist.npz"))
    train, test = (
        jnp.asarray(mnist[name].reshape(-1, 784) / 255, jnp.float32)
        for name in ("x_train", "x_test")
    )
    return params, train, test, mnist["y_test"]


def main():
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--rounds", type=int, nargs="+", default=[1])
    parser.add_argument("--refit", action="store_true")
    parser.add_argument("--modes", nargs="+", default=["parallel", "cascade"])
    parser.add_argument(
        "--epsilon", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.2, 0.3]
    )
    arguments = parser.parse_args()
    params, train, test, labels = load()

    def accuracy(params):
        return 100 * float((jnp.argmax(apply_fn(params, test), 1) == labels).mean())

    x = train[np.random.default_rng(0).permutation(len(train))[: arguments.rows]]
    print(f"Trained: {accuracy(params):.2f} % on the test images.\n")
    print("| mode | rounds | epsilon | removed | Net-Trim | magnitude | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for mode in arguments.modes:
        for rounds in arguments.rounds:
            for epsilon in arguments.epsilon:
                method = nt.NetTrim(
                    epsilon=epsilon, rounds=rounds, refit=arguments.refit
                )
                start = time.perf_counter()
                pruned = nt.prune(
                    params, apply_fn, x, method=method, mode=mode, held_out=0
                )
                jax.block_until_ready(pruned)
                seconds = time.perf_counter() - start
                ours = accuracy(pruned.params)
                theirs = accuracy(magnitude(params, apply_fn, x, pruned.report))
                print(
                    f"| {mode} | {rounds} | {epsilon} "
                    f"| {100 * float(pruned.report.sparsity):.1f} % "
                    f"| {ours:.2f} | {theirs:.2f} | {seconds:.0f} |",
                    flush=True,
                )
    print(f"\n{PUBLISHED}")


if __name__ == "__main__":
    main()
